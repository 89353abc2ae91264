"""The loop: schedules, batches, determinism, resume, and numbers that go wrong."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.data.batches import Batches, epoch_indices, random_flips, to_float
from dlcvlib.methods import vae
from dlcvlib.training import device, loop
from dlcvlib.training.loop import learning_rate_factor
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

CPU = torch.device("cpu")


def test_halvings_are_the_originals():
    factors = [
        learning_rate_factor("halvings", epoch / 1000) for epoch in (0, 149, 150, 300, 450, 999)
    ]
    assert factors == [1, 1, 0.5, 0.25, 0.125, 0.125]


def test_cosine_rises_then_falls():
    factors = [learning_rate_factor("cosine", p / 100) for p in range(101)]
    peak = max(range(101), key=factors.__getitem__)
    assert 5 <= peak <= 10
    assert factors[0] < 0.1
    assert factors[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in zip(factors[peak:], factors[peak + 1 :], strict=False))


def test_an_epoch_shows_every_image_once():
    epoch = torch.cat([epoch_indices(100, 10, seed=3, step=step) for step in range(10)])
    assert sorted(epoch.tolist()) == list(range(100))
    second = torch.cat([epoch_indices(100, 10, seed=3, step=step) for step in range(10, 20)])
    assert epoch.tolist() != second.tolist()


def test_a_set_smaller_than_a_batch_is_used_whole():
    assert sorted(epoch_indices(5, 64, seed=0, step=9).tolist()) == [0, 1, 2, 3, 4]


def test_batches_are_scaled_and_in_step_with_their_labels():
    images = (
        torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 4, 4).contiguous()
    )
    batch, labels = Batches([images, torch.arange(20)], 5, 0, CPU)(2)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch[:, 0, 0, 0] * 255, labels.float())


def test_flips_mirror_half_of_the_images():
    torch.manual_seed(0)
    images = torch.randint(0, 255, (400, 3, 6, 6), dtype=torch.uint8)
    for axis, wanted in ((3, {"horizontal": True, "vertical": False}),
                         (2, {"horizontal": False, "vertical": True})):  # fmt: skip
        flipped = random_flips(**wanted)(images)
        mirrored = (flipped == images.flip(axis)).flatten(1).all(1)
        kept = (flipped == images).flatten(1).all(1)
        assert bool((mirrored | kept).all())
        assert mirrored.float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(random_flips(horizontal=False, vertical=False)(images), images)


def fit(settings, faces, folder, after=None):
    """Train a small VAE; `after` is called with each step before it begins."""
    torch.manual_seed(settings.seed)
    model = vae.VAE(settings)
    draw = Batches(
        [faces.train.images],
        settings.batch_size,
        settings.seed,
        device.default(),
        random_flips(True, False),
    )

    def batch(step):
        if after:
            after(step)
        return draw(step)

    outcome = loop.fit(
        model, batch, settings, folder, label="test",
        evaluate=lambda: model.evaluate(faces.validation.images),
    )  # fmt: skip
    return loop.module_tensors(model), outcome["history"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit_weight(settings, folder, before=lambda optimizer: None, **arguments):
    """Train a single weight; `before` is called with its optimiser before each step."""
    weight = nn.Linear(1, 1)
    optimizer = loop.adam([weight], settings)

    def step(batch):
        before(optimizer)
        loss = weight(batch).square().mean()
        loop.move(loss, [optimizer])
        return {"loss": loss}

    method = SimpleNamespace(
        modules={"weight": weight}, optimizers={"weight": optimizer}, done=0, step=step
    )

    def batch(_):
        return torch.ones(1, 1, device=weight.weight.device)

    return loop.fit(method, batch, settings, folder, label="test", **arguments)


@pytest.mark.parametrize("schedule", ["cosine", "halvings", "constant"])
def test_each_step_has_the_rate_of_its_schedule(smoke, tmp_path, schedule):
    settings = smoke(precision="fp32", steps=20, learning_rate_schedule=schedule).settings
    rates = []
    outcome = fit_weight(
        settings, tmp_path, lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    )
    expected = [settings.learning_rate * learning_rate_factor(schedule, i / 20) for i in range(20)]
    assert rates == pytest.approx(expected)
    assert [row["learning_rate"] for row in outcome["history"]] == pytest.approx(expected)


def test_each_step_and_seed_has_noise_of_its_own(smoke, tmp_path):
    drawn = []
    for seed in range(3):
        settings = smoke(precision="fp32", steps=50, seed=seed).settings
        fit_weight(settings, tmp_path / str(seed), lambda _: drawn.append(torch.rand(2)))
    assert len(torch.stack(drawn).unique(dim=0)) == 150


PROCESSES = """
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.training import loop

if sys.argv[2:]:
    PartialState(cpu=True)
changes = {"precision": "fp32", "steps": 5, "batch_size": 8}
settings = profiles.load("smoke", "vae", changes).settings
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))
optimizer = loop.adam([net], settings)

def step(batch):
    images, wanted = batch
    loss = (method.net(images).flatten() - wanted).square().mean()
    loop.move(loss, [optimizer])
    return {"loss": loss}

method = SimpleNamespace(net=net, modules={"net": net}, optimizers={"net": optimizer}, step=step)

def batch(step):
    numbers = torch.Generator().manual_seed(step)
    images = torch.rand(8, 3, 4, 4, generator=numbers).contiguous(memory_format=torch.channels_last)
    return images, torch.rand(8, generator=numbers)

folder = Path(sys.argv[1])
loop.fit(method, batch, settings, folder / str(PartialState().process_index), label="test")
weights = torch.cat([weight.flatten() for weight in net.parameters()])
(folder / f"weights-{PartialState().process_index}").write_text(repr(weights.tolist()))
PartialState().destroy_process_group()
"""


def test_processes_that_share_batches_move_as_one_does(tmp_path):
    """Their gradients' mean is that of the whole batch, where no BatchNorm and no noise are."""
    program = tmp_path / "program.py"
    program.write_text(PROCESSES)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    several += ["--local-addr=127.0.0.1"]  # the host's own name may lead nowhere
    found = []
    for name, launch in (("one", []), ("two", several)):
        (tmp_path / name).mkdir()
        command = [sys.executable, *launch, str(program), str(tmp_path / name), *launch[:1]]
        subprocess.run(command, check=True, cwd=ROOT, timeout=300)
        found += [
            torch.tensor(json.loads(path.read_text()))
            for path in sorted((tmp_path / name).glob("weights-*"))
        ]
    one, *two = found
    assert len(two) == 2
    assert torch.equal(*two)
    torch.testing.assert_close(two[0], one, atol=1e-5, rtol=1e-4)
    checkpoint = {"precision": ["fp32", ""], "processes": 2, "step": 0}
    folder = tmp_path / "begun"
    storage.write_tensors(folder / "checkpoint-0.safetensors", {}, checkpoint)
    digest = storage.sha256(folder / "checkpoint-0.safetensors")
    pointer = {"file": "checkpoint-0.safetensors", "sha256": digest, "step": 0}
    storage.write_sealed(folder / "checkpoint.json", pointer)
    settings = profiles.load("smoke", "vae", {"precision": "fp32"}).settings
    with pytest.raises(UserError, match="begun was begun by 2 processes"):
        fit_weight(settings, folder)


@pytest.mark.parametrize("processes", [3, 8])
def test_batches_that_cannot_be_shared_out_are_refused(processes):
    batch = [torch.zeros(8, 3), torch.zeros(8)]
    with pytest.raises(UserError, match=f"8 cannot be shared out evenly.* {processes} processes"):
        loop._share(batch, 0, processes)
    assert [rows.shape[0] for rows in loop._share(batch, 1, 4)] == [2, 2]


@pytest.mark.parametrize(("steps", "at"), [(4, [2, 4]), (5, [3, 5]), (240, [80, 160, 240])])
def test_validations_are_at_even_distances_and_at_the_end(smoke, tmp_path, steps, at):
    settings = smoke(precision="fp32").settings.replace(steps=steps)
    outcome = fit_weight(settings, tmp_path, evaluate=lambda: {"seen": 1.0})
    assert [row["step"] for row in outcome["history"] if "validation_seen" in row] == at


def test_training_is_deterministic(smoke, faces, tmp_path):
    settings = smoke(precision="fp32").settings
    first, history = fit(settings, faces, tmp_path / "a")
    second, again = fit(settings, faces, tmp_path / "b")
    assert equal(first, second)
    assert history == again
    other, _ = fit(settings.replace(seed=1), faces, tmp_path / "c")
    assert not equal(first, other)


def test_resumed_twice_is_the_uninterrupted_run(smoke, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_POINTS", 6)  # so that losses wait to be averaged
    settings = smoke(steps=20, precision="fp32").settings
    whole, history = fit(settings, faces, tmp_path / "whole")
    for stop in (7, 13):

        def interrupt(step, stop=stop):
            if step == stop:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(loop.Stopped, match=f"step {stop + 1} of 20"):
            fit(settings, faces, tmp_path / "cut", interrupt)
    steps = []
    resumed, again = fit(settings, faces, tmp_path / "cut", steps.append)
    assert steps == list(range(14, 20)), "resumed, not begun again"
    assert equal(whole, resumed)
    assert history == again


def test_a_resumed_run_keeps_its_precision(smoke, faces, tmp_path, monkeypatch):
    """Also where a trial would find another one faster by then, on fewer threads for instance."""
    settings = smoke(steps=20, precision="auto").settings
    found = ["bf16"]
    monkeypatch.setattr(device, "choose", lambda *_: (found[-1], "faster"))
    whole, history = fit(settings, faces, tmp_path / "whole")

    def interrupt(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Stopped):
        fit(settings, faces, tmp_path / "cut", interrupt)
    found.append("fp32")
    resumed, again = fit(settings, faces, tmp_path / "cut")
    assert equal(whole, resumed)
    assert history == again
    other, _ = fit(settings, faces, tmp_path / "other")
    assert not equal(whole, other)


def test_a_damaged_checkpoint_is_named_and_not_used(smoke, faces, tmp_path, capsys):
    settings = smoke(steps=20, precision="fp32").settings

    def interrupt(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Stopped):
        fit(settings, faces, tmp_path, interrupt)
    (path,) = tmp_path.glob("checkpoint-*.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    steps = []
    fit(settings, faces, tmp_path, steps.append)
    assert steps[0] == 0
    assert path.name in capsys.readouterr().out


def test_history_names_steps_and_validation(smoke, faces, tmp_path):
    _, history = fit(smoke(steps=20, precision="fp32").settings, faces, tmp_path)
    assert [row["step"] for row in history] == [float(s) for s in range(1, 21)]
    assert {"mse", "kld", "learning_rate", "validation_mse", "validation_kld"} <= history[-1].keys()


class Diverging:
    """Its loss becomes infinite at step 6."""

    def __init__(self):
        self.net = nn.Linear(1, 1)
        self.modules = {"net": self.net}
        self.optimizers = {"sgd": torch.optim.SGD(self.net.parameters(), lr=0.1)}

    def step(self, batch):
        return {"fine": torch.tensor(1.0), "bad": torch.tensor(float("inf") if batch == 5 else 1.0)}


def test_a_loss_that_is_not_finite_stops_the_run(smoke, tmp_path):
    settings = smoke(steps=50, precision="fp32").settings
    with pytest.raises(loop.TrainingError, match=r"'bad' is not finite at step 6 .*checkpoint"):
        loop.fit(Diverging(), lambda step: step, settings, tmp_path, label="test")


class Exploding(Diverging):
    """Its loss stays finite while its gradient, at step 6, does not."""

    def step(self, batch):
        self.optimizers["sgd"].zero_grad()
        loss = self.net(torch.ones(1, 1, device=self.net.weight.device)).mean()
        loss.backward()
        if batch == 5:
            self.net.weight.grad.fill_(float("nan"))
        return {"fine": loss}


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
def test_a_gradient_that_is_not_finite_stops_the_run_and_is_not_kept(
    smoke, tmp_path, monkeypatch, checkpoint_seconds
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", checkpoint_seconds)
    message = "the gradient of 'sgd' is not finite at step 6 .*checkpoint"
    with pytest.raises(loop.TrainingError, match=message) as error:
        loop.fit(
            Exploding(),
            lambda step: step,
            smoke(steps=4000, precision="fp32").settings,
            tmp_path,
            label="",
        )
    files = list(tmp_path.glob("checkpoint-*.safetensors"))
    if checkpoint_seconds:
        assert "none yet" in str(error.value)
        assert files == []
    else:
        assert "step 5 in" in str(error.value)
        tensors, _ = storage.read_tensors(files[0], storage.sha256(files[0]))
        assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(("cost", "saves"), [(0.1, 32), (6.0, 4)])
def test_slow_checkpoints_come_less_often(smoke, tmp_path, monkeypatch, cost, saves):
    """On a clock by which a step takes a second: every 30 s, or at 2 % of the time."""
    now = 0.0
    taken = []

    class Stepping(Diverging):
        def step(self, batch):
            nonlocal now
            now += 1
            loss = self.net(torch.ones(1, 1, device=self.net.weight.device)).square().mean()
            self.optimizers["sgd"].zero_grad()
            loss.backward()
            return {"loss": loss}

    def save(*_):
        nonlocal now
        now += cost
        taken.append(now)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    monkeypatch.setattr(loop.Progress, "save", save)
    settings = smoke(steps=1000, precision="fp32").settings
    loop.fit(Stepping(), lambda step: step, settings, tmp_path, label="")
    assert len(taken) == saves


def test_gradient_norms():
    method = Diverging()
    method.net.weight.grad, method.net.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert loop.gradient_norms(method.optimizers)["gradient_sgd"] == 5.0


def test_to_float_is_exact():
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert to_float(images).flatten().tolist() == [0.0, 1.0]
