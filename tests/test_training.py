"""The loop: schedules, batches, noise, several processes, interrupts, and non-finite numbers."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, interrupt, same, settings_of
from torch import nn

from dlcvlib.data.batches import Batches, epoch_indices, prior_samples, random_flips, to_float
from dlcvlib.methods.vae import VAE
from dlcvlib.training import device, loop
from dlcvlib.training.loop import TrainingError, learning_rate_factor
from dlcvlib.training.method import Method, gradient_norms, update
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

CPU = torch.device("cpu")
DATA = SimpleNamespace(fingerprint="f")


class Line(Method):
    """One weight and a bias, fitted to 0."""

    name = "line"

    def __init__(self, settings):
        super().__init__(settings)
        self.line = nn.Linear(1, 1)

    def batches(self, data, device):
        return lambda step: (torch.ones(2, 1, device=device),)

    def training_step(self, batch):
        loss = self.line(batch[0]).square().mean()
        update(loss, self.optimizers.values())
        return {"loss": loss}

    def evaluate(self, data):
        return {"seen": 1.0}


def fit(folder, kind=Line, **changes):
    return train_or_load(kind, settings_of("vae", **changes), DATA, folder)


# --- schedules and batches --------------------------------------------------------------------


def test_halvings_are_the_originals():
    epochs = (0, 149, 150, 300, 450, 999)
    factors = [learning_rate_factor("halvings", epoch / 1000) for epoch in epochs]
    assert factors == [1, 1, 0.5, 0.25, 0.125, 0.125]


def test_cosine_rises_then_falls():
    factors = [learning_rate_factor("cosine", p / 100) for p in range(101)]
    peak = max(range(101), key=factors.__getitem__)
    assert 5 <= peak <= 10
    assert factors[0] < 0.1
    assert factors[100] == pytest.approx(0.01)
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "halvings", "constant"])
def test_each_step_has_the_rate_of_its_schedule(tmp_path, schedule):
    rates = []

    class Noted(Line):
        def training_step(self, batch):
            rates.append(self.optimizers["adam"].param_groups[0]["lr"])
            return super().training_step(batch)

    run = fit(tmp_path, Noted, steps=20, learning_rate_schedule=schedule)
    peak = run.settings.learning_rate
    expected = [peak * learning_rate_factor(schedule, i / 20) for i in range(20)]
    assert rates == pytest.approx(expected)
    assert run.history["learning_rate"].tolist() == pytest.approx(expected)


def test_each_step_and_seed_has_its_own_noise(tmp_path):
    drawn = []

    class Noisy(Line):
        def training_step(self, batch):
            drawn.append(torch.rand(2))
            return super().training_step(batch)

    for seed in range(3):
        fit(tmp_path, Noisy, steps=50, seed=seed)
    assert len(torch.stack(drawn).unique(dim=0)) == 150


def test_an_epoch_shows_every_image_once():
    epoch = torch.cat([epoch_indices(100, 10, seed=3, step=step) for step in range(10)])
    assert sorted(epoch.tolist()) == list(range(100))
    second = torch.cat([epoch_indices(100, 10, seed=3, step=step) for step in range(10, 20)])
    assert epoch.tolist() != second.tolist()
    # A set smaller than a batch is used whole.
    assert sorted(epoch_indices(5, 64, seed=0, step=9).tolist()) == [0, 1, 2, 3, 4]


def test_batches_are_scaled_and_in_step_with_their_labels():
    numbers = torch.arange(20, dtype=torch.uint8)
    images = numbers[:, None, None, None].expand(20, 3, 4, 4).contiguous()
    batch, labels = Batches([images, torch.arange(20)], 5, 0, CPU)(2)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch[:, 0, 0, 0] * 255, labels.float())
    assert to_float(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("horizontal", "vertical", "axis"), [(True, False, 3), (False, True, 2)])
def test_flips_mirror_half_of_the_images(horizontal, vertical, axis):
    torch.manual_seed(0)
    images = torch.randint(0, 255, (400, 3, 6, 6), dtype=torch.uint8)
    flipped = random_flips(horizontal, vertical)(images)
    mirrored = (flipped == images.flip(axis)).flatten(1).all(1)
    unchanged = (flipped == images).flatten(1).all(1)
    assert bool((mirrored | unchanged).all())
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.1)


def test_prior_samples_depend_on_the_seed_alone():
    assert torch.equal(prior_samples(4, 5, 1), prior_samples(4, 5, 1))
    assert not torch.equal(prior_samples(4, 5, 1), prior_samples(4, 5, 2))


# --- history ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "at"), [(4, [2, 4]), (5, [3, 5]), (240, [80, 160, 240])])
def test_validations_are_evenly_spaced_and_at_the_end(tmp_path, steps, at):
    history = fit(tmp_path, steps=steps).history
    assert history["step"].tolist() == list(range(1, steps + 1))
    assert history.dropna()["step"].tolist() == at
    assert list(history) == ["step", "loss", "gradient_adam", "learning_rate", "validation_seen"]


def test_a_row_is_the_mean_of_its_steps(tmp_path, monkeypatch):
    every = fit(tmp_path, steps=8).history
    monkeypatch.setattr(loop, "LOG_POINTS", 2)
    some = fit(tmp_path / "other", steps=8).history
    assert some["step"].tolist() == [4, 8]
    assert some["loss"].tolist() == pytest.approx([every["loss"][i : i + 4].mean() for i in (0, 4)])


def test_gradient_norms():
    method = Line(settings_of("vae"))
    method.line.weight.grad, method.line.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    assert gradient_norms(method.optimizers)["adam"] == 5.0


# --- several processes ------------------------------------------------------------------------


class Regression(Line):
    """Neither BatchNorm nor noise: the mean of the processes' gradients is the whole batch's."""

    name = "regression"

    def __init__(self, settings):
        super().__init__(settings)
        self.line = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))

    def batches(self, data, device):
        def batch(step):
            images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
            return (images.contiguous(memory_format=torch.channels_last).to(device),)

        return batch


PROCESS = """
import sys
from pathlib import Path

from accelerate import PartialState

PartialState(cpu=True)
sys.path.append("tests")
from test_training import Regression, fit

folder, rank = Path(sys.argv[1]), PartialState().process_index
method = fit(folder, Regression, steps=5, batch_size=8).method
values = [weight.flatten().tolist() for weight in method.parameters()]
(folder / f"weights-{rank}.json").write_text(repr(values))
PartialState().destroy_process_group()
"""


def test_processes_that_share_batches_match_a_single_one(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["--local-addr=127.0.0.1"]  # the host's own name may lead nowhere
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, program, tmp_path], check=True, cwd=ROOT, env=environment)
    one = fit(tmp_path / "one", Regression, steps=5, batch_size=8).method.cpu()
    first, second = (
        json.loads((tmp_path / f"weights-{rank}.json").read_text()) for rank in range(2)
    )
    assert first == second
    for found, weight in zip(first, one.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(found), weight.flatten(), atol=1e-5, rtol=1e-4)


def test_a_run_continues_only_with_the_same_number_of_processes(tmp_path, before_step):
    with before_step(Line, 3, interrupt), pytest.raises(KeyboardInterrupt):
        fit(tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    pointer = storage.read_sealed(folder / "checkpoint.json")
    tensors, meta = storage.read_tensors(folder / pointer["file"], pointer["sha256"])
    storage.write_tensors(folder / pointer["file"], tensors, meta | {"processes": 2})
    digest = storage.sha256(folder / pointer["file"])
    storage.write_sealed(folder / "checkpoint.json", pointer | {"sha256": digest})
    with pytest.raises(UserError, match=f"{folder.name} was started with 2 processes"):
        fit(tmp_path)


@pytest.mark.parametrize("processes", [3, 8])
def test_batches_that_cannot_be_divided_are_refused(processes):
    batch = torch.zeros(8, 3), torch.zeros(8)
    with pytest.raises(UserError, match=f"8 cannot be divided evenly.* {processes} processes"):
        loop._share(batch, 0, processes)
    assert [rows.shape[0] for rows in loop._share(batch, 1, 4)] == [2, 2]


# --- interrupts and checkpoints ---------------------------------------------------------------


def stop_at(step, before_step, train, *arguments, **changes):
    """Train a VAE and press Ctrl-C while a step is taken."""
    press = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with before_step(VAE, step, press), pytest.raises(loop.Stopped, match=f"step {step + 1} of 9"):
        train("vae", *arguments, steps=9, **changes)


def test_an_interrupt_waits_for_the_step_and_loses_none(train, before_step, monkeypatch):
    monkeypatch.setattr(loop, "LOG_POINTS", 3)  # so that losses wait to be averaged
    whole = train("vae", "whole", steps=9)
    for step in (3, 6):
        stop_at(step, before_step, train, "stopped")
    resumed = train("vae", "stopped", steps=9)
    assert resumed.provenance["files"] == whole.provenance["files"]


def test_a_resumed_run_keeps_its_precision(train, before_step, monkeypatch):
    """Even if this machine would now choose another one."""
    chosen = ["bf16"]
    monkeypatch.setattr(device, "choose", lambda *_: (chosen[-1], "for a test"))
    whole = train("vae", "whole", steps=9, precision="auto")
    stop_at(4, before_step, train, "stopped", precision="auto")
    chosen.append("fp32")
    resumed = train("vae", "stopped", steps=9, precision="auto")
    assert resumed.provenance["precision"] == "bf16"
    assert same(whole.method, resumed.method)
    assert not same(whole.method, train("vae", "other", steps=9, precision="auto").method)


@pytest.mark.parametrize(("cost", "saves"), [(0.1, 32), (6.0, 4)])
def test_slow_checkpoints_are_written_less_often(tmp_path, monkeypatch, cost, saves):
    """With a clock on which a step takes a second: every 30 s, or 2% of the time."""
    now, taken = 0.0, []

    class Stepping(Line):
        def training_step(self, batch):
            nonlocal now
            now += 1
            return {"loss": torch.tensor(0.0)}

    def save(*_):
        nonlocal now
        now += cost
        taken.append(now)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    monkeypatch.setattr("dlcvlib.training.checkpoint.save", save)
    monkeypatch.setattr(loop, "gradient_norms", lambda optimizers: {})
    fit(tmp_path, Stepping, steps=1000)
    assert len(taken) == saves


# --- numbers that are not finite --------------------------------------------------------------


class Diverging(Line):
    """Its loss becomes infinite at step 6."""

    def training_step(self, batch):
        bad = torch.tensor(float("inf") if self.step == 5 else 1.0)
        return super().training_step(batch) | {"bad": bad}


class Exploding(Line):
    """Its loss stays finite while its gradient, at step 6, does not."""

    def training_step(self, batch):
        terms = super().training_step(batch)
        if self.step == 5:
            self.line.weight.grad.fill_(float("nan"))
        return terms


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
@pytest.mark.parametrize(
    ("kind", "what"), [(Diverging, "the loss 'bad'"), (Exploding, "the gradient of 'adam'")]
)
def test_what_is_not_finite_stops_the_run_and_is_not_kept(
    tmp_path, monkeypatch, kind, what, seconds
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    with pytest.raises(
        TrainingError, match=f"{what} is not finite at step 6 .*checkpoint"
    ) as error:
        fit(tmp_path, kind, steps=4000)
    files = list(tmp_path.glob("*/checkpoint-*.safetensors"))
    if seconds:
        assert "none yet" in str(error.value)
        assert files == []
    else:
        assert "checkpoint: step 5)" in str(error.value)
        tensors, _ = storage.read_tensors(files[0], storage.sha256(files[0]))
        assert all(tensor.isfinite().all() for tensor in tensors.values())
