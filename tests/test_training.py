"""The loop: schedules, batches, noise, several processes, checkpoints, and non-finite numbers."""

import itertools
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import before_step, interrupt, same, settings_of, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dlcvlib.data.batches import Batches, random_flips
from dlcvlib.training import checkpoint, device, loop, processes, tracking
from dlcvlib.training.method import Method, update
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

CPU = torch.device("cpu")
DATA = SimpleNamespace(fingerprint="f")


class Small(Method):
    """A few weights, fitted to 0: without BatchNorm or noise, so that batches can be divided."""

    name = "small"

    def __init__(self, settings):
        super().__init__(settings)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))

    def batches(self, data, device):
        def batch(step):
            images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
            return (images.contiguous(memory_format=torch.channels_last).to(device),)

        return batch

    def training_step(self, batch):
        loss = self.net(batch[0]).square().mean()
        update(loss, self.optimizers.values())
        return {"loss": loss}

    def evaluate(self, data):
        gradients = [weight.grad.flatten() for weight in self.parameters()]
        return {"gradient": torch.cat(gradients).norm().item()}


def fit(folder, kind=Small, **changes):
    return train_or_load(kind, settings_of("vae", **changes), DATA, folder)


def with_each_step(action):
    """`Small` with an action on it before each step."""

    class Watched(Small):
        def training_step(self, batch):
            action(self)
            return super().training_step(batch)

    return Watched


# --- schedules and batches --------------------------------------------------------------------


def test_each_step_has_the_rate_of_the_originals_schedule(tmp_path):
    rates = []
    noted = with_each_step(lambda m: rates.append(m.optimizers["adam"].param_groups[0]["lr"]))
    run = fit(tmp_path, noted, steps=20, learning_rate_schedule="halvings")
    factors = [1] * 3 + [0.5] * 3 + [0.25] * 3 + [0.125] * 11
    assert rates == pytest.approx([run.settings.learning_rate * factor for factor in factors])
    assert run.history["learning_rate"].tolist() == pytest.approx(rates)


def test_cosine_rises_then_falls():
    factors = [loop.learning_rate_factor("cosine", p) for p in (0, 0.05, 0.1, 0.55, 1)]
    assert factors == pytest.approx([0.010, 0.507, 0.976, 0.428, 0.010], abs=0.001)


def test_each_step_and_seed_has_its_own_noise():
    drawn = set()
    for seed, step in itertools.product(range(3), range(50)):
        loop.seed_step(seed, step)
        drawn.add(tuple(torch.rand(2).tolist()))
    assert len(drawn) == 150


def test_an_epoch_has_every_image_once_with_its_label():
    numbers = torch.arange(20)
    images = numbers.byte()[:, None, None, None].expand(20, 3, 4, 4).contiguous()
    draw = Batches([images, numbers], 5, seed=3, device=CPU)
    shown = []
    for step in range(8):
        batch, labels = draw(step)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(batch[:, 0, 0, 0] * 255, labels.float())
        shown += labels.tolist()
    assert sorted(shown[:20]) == sorted(shown[20:]) == numbers.tolist()
    assert shown[:20] != shown[20:]
    small = Batches([images, numbers], 64, 0, CPU)  # is used whole
    assert sorted(small(9)[1].tolist()) == numbers.tolist()


@pytest.mark.parametrize(("horizontal", "vertical", "axis"), [(True, False, 3), (False, True, 2)])
def test_flips_mirror_half_of_the_images(horizontal, vertical, axis):
    torch.manual_seed(0)
    images = torch.randint(0, 255, (400, 3, 6, 6), dtype=torch.uint8)
    flipped = random_flips(horizontal, vertical)(images)
    mirrored = (flipped == images.flip(axis)).flatten(1).all(1)
    unchanged = (flipped == images).flatten(1).all(1)
    assert bool((mirrored | unchanged).all())
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.1)


# --- history ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "at"), [(4, [2, 4]), (5, [3, 5]), (240, [80, 160, 240])])
def test_validations_are_evenly_spaced_and_at_the_end(tmp_path, steps, at):
    history = fit(tmp_path, steps=steps).history
    assert history["step"].tolist() == list(range(1, steps + 1))
    validated = history.dropna()
    assert validated["step"].tolist() == at
    assert validated["gradient_adam"].tolist() == pytest.approx(validated["validation_gradient"])


def test_a_row_is_the_mean_of_its_steps(tmp_path, monkeypatch):
    every = fit(tmp_path, steps=8).history
    monkeypatch.setattr(loop, "LOG_POINTS", 2)
    some = fit(tmp_path / "other", steps=8).history
    assert some["step"].tolist() == [4, 8]
    assert some["loss"].tolist() == pytest.approx([every["loss"][i : i + 4].mean() for i in (0, 4)])


# --- several processes ------------------------------------------------------------------------


UNSUITABLE = [
    (processes, 3, "a batch of 8 cannot be divided evenly.* 3 processes"),
    (processes, 8, "at least two each, among 8 processes"),
    (checkpoint, 2, r"small-\w+ was started with 1 processes, and without sync_batch_norm"),
]


@pytest.mark.parametrize(("module", "count", "message"), UNSUITABLE)
def test_unsuitable_counts_are_refused(tmp_path, monkeypatch, module, count, message):
    """For a batch that cannot be divided among them, or where their number decides the result."""
    with before_step(Small, 3, interrupt), pytest.raises(KeyboardInterrupt):
        fit(tmp_path, sync_batch_norm=False)
    state = SimpleNamespace(num_processes=count, process_index=0)
    monkeypatch.setattr(module, "PartialState", lambda: state)
    with pytest.raises(UserError, match=message):
        fit(tmp_path, sync_batch_norm=False)


# --- checkpoints ------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_precision(tmp_path, monkeypatch):
    """Even if this machine would now choose another one."""
    monkeypatch.setattr(device, "choose", lambda *_: ("bf16", "for a test"))
    whole = fit(tmp_path / "whole")
    stopped = pytest.raises(KeyboardInterrupt, match=r"small stopped after step 4 of .* run it")
    with before_step(Small, 4, interrupt), stopped:
        fit(tmp_path / "stopped")
    monkeypatch.setattr(device, "choose", lambda *_: ("fp32", "for a test"))
    resumed = fit(tmp_path / "stopped")
    assert resumed.provenance["precision"] == "bf16"
    assert same(whole.method, resumed.method)
    assert not same(whole.method, fit(tmp_path / "other").method)


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler here")
def test_a_compiled_run_resumes_exactly_and_is_the_same_but_for_rounding(tmp_path, monkeypatch):
    """It is the same run, whose weights have the same names."""
    compiled = Mock(side_effect=torch.compile)
    monkeypatch.setattr(torch, "compile", compiled)
    eager, whole = (fit(tmp_path / how, compile=how) for how in ("never", "always"))
    with before_step(Small, 4, interrupt), pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "killed", compile="always")
    resumed = fit(tmp_path / "killed", compile="always")
    assert compiled.call_count == 3
    assert resumed.provenance["settings"]["compile"] == "always"
    assert same(resumed.method, whole.method)
    assert resumed.name == eager.name
    torch.testing.assert_close(weights(whole.method), weights(eager.method), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("cost", "saves"), [(0.1, 32), (6.0, 4)])
def test_slow_checkpoints_are_written_less_often(tmp_path, monkeypatch, cost, saves):
    """With a clock on which a step takes a second: every 30 s, or 2% of the time."""
    spent, costs = [], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: len(spent) + sum(costs))
    monkeypatch.setattr(checkpoint, "save", lambda *_: costs.append(cost))
    fit(tmp_path, with_each_step(spent.append), steps=1000)
    assert len(costs) == saves


# --- numbers that are not finite --------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
@pytest.mark.parametrize("term", ["loss", "gradient_adam"])
def test_what_is_not_finite_stops_the_run_and_is_not_kept(tmp_path, monkeypatch, term, seconds):
    def spoil(method):
        if method.step == 5 and term == "loss":
            method.net[3].bias.data.fill_(torch.inf)
        elif method.step == 5:
            method.net[3].bias.register_hook(lambda gradient: gradient * torch.inf)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", seconds)
    with pytest.raises(UserError, match=f"{term} is not finite at step 6"):
        fit(tmp_path, with_each_step(spoil), steps=4000)
    files = list(tmp_path.glob("*/checkpoint-*.safetensors"))
    assert [file.stem for file in files] == ([] if seconds else ["checkpoint-5"])
    for file in files:
        tensors, _ = storage.read_tensors(file, storage.sha256(file))
        assert all(tensor.isfinite().all() for tensor in tensors.values())


# --- trackers ---------------------------------------------------------------------------------


def tensorboard(folder):
    """What TensorBoard shows of a run: name -> [(step, value)]."""
    (run,) = (folder / "tensorboard").iterdir()
    found = EventAccumulator(str(run / tracking.PROJECT)).Reload()
    return {n: [(e.step, e.value) for e in found.Scalars(n)] for n in found.Tags()["scalars"]}


@pytest.mark.parametrize("every", [0.0, 1000.0])
def test_a_tracker_gets_each_row_of_the_history_once(tmp_path, monkeypatch, every):
    """Of a run that is resumed, from a checkpoint of the step before or from the beginning."""
    monkeypatch.setenv(tracking.VARIABLE, "tensorboard")
    with before_step(Small, 7, interrupt):
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", every)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, steps=20)
    history = fit(tmp_path, steps=20).history
    shown = tensorboard(tmp_path)
    columns = dict(history.drop(columns="step"))
    assert shown.keys() == columns.keys()
    for name, column in columns.items():
        rows = zip(history["step"], column, strict=True)
        assert shown[name] == [pytest.approx(row) for row in rows if row[1] == row[1]]
