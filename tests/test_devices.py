"""Which precision is chosen, on a clock that the network under trial turns."""

import time
from types import SimpleNamespace

import pytest
import torch

from dlcvlib.training import device


class Net(torch.nn.Linear):
    """Turns the clock by what `seconds` says of the precision that it is run in."""

    def __init__(self, clock, seconds):
        super().__init__(2, 1)
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        precision = "bf16" if torch.is_autocast_enabled("cpu") else "fp32"
        self.clock[0] += self.seconds[precision]
        return super().forward(x)

    def __deepcopy__(self, memo):
        copied = Net(self.clock, self.seconds)
        copied.load_state_dict(self.state_dict())
        return copied


class Timed:
    def __init__(self, clock, seconds):
        self.net = Net(clock, seconds)
        self.modules, self.optimizers, self.done = {"net": self.net}, {}, 0

    def step(self, batch):
        self.net(batch).sum().backward()
        with torch.no_grad():
            self.modules["net"].weight += 1
        return {}

    def __deepcopy__(self, memo):
        copied = Timed(self.net.clock, self.net.seconds)
        copied.net.load_state_dict(self.net.state_dict())
        return copied


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """On a CPU that has bfloat16, with nothing kept of earlier trials."""
    if torch.accelerator.is_available():
        pytest.skip("only a CPU is tried")
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return now


def batch(step):
    return torch.ones(3, 2)


@pytest.mark.parametrize(
    ("seconds", "chosen", "why"),
    [
        ({"fp32": 3.0, "bf16": 2.0}, "bf16", "1.5 times as fast as fp32"),
        ({"fp32": 2.0, "bf16": 5.0}, "fp32", "2.5 times as fast as bf16"),
    ],
)
def test_the_faster_one_is_chosen_and_kept(smoke, clock, seconds, chosen, why):
    method = Timed(clock, seconds)
    before = method.net.weight.clone()
    assert device.choose(smoke(precision="auto").settings, method, batch) == (chosen, why)
    assert torch.equal(method.net.weight, before)
    tried = clock[0]
    assert tried > 0
    assert device.choose(smoke(precision="auto").settings, method, batch) == (chosen, why)
    assert clock[0] == tried


def test_another_batch_is_another_trial(smoke, clock):
    method = Timed(clock, {"fp32": 3.0, "bf16": 2.0})
    device.choose(smoke(precision="auto").settings, method, batch)
    tried = clock[0]
    device.choose(smoke(batch_size=5, precision="auto").settings, method, batch)
    assert clock[0] == 2 * tried


def test_a_damaged_outcome_is_found_again(smoke, clock, tmp_path):
    method = Timed(clock, {"fp32": 3.0, "bf16": 2.0})
    device.choose(smoke(precision="auto").settings, method, batch)
    (kept,) = tmp_path.glob("cache/dlcv-report/*.json")
    kept.write_text(kept.read_text().replace("1.5", "0.5"))
    assert device.choose(smoke(precision="auto").settings, method, batch)[0] == "bf16"
    assert kept.with_name(f"{kept.name}.damaged").is_file()


def test_without_a_place_to_keep_it(smoke, clock, monkeypatch, tmp_path):
    (tmp_path / "cache").touch()
    method = Timed(clock, {"fp32": 3.0, "bf16": 2.0})
    assert device.choose(smoke(precision="auto").settings, method, batch)[0] == "bf16"


def test_a_full_disk_there_ends_no_training(smoke, clock, disk_full_beyond):
    method = Timed(clock, {"fp32": 3.0, "bf16": 2.0})
    with disk_full_beyond(0):
        assert device.choose(smoke(precision="auto").settings, method, batch)[0] == "bf16"


def test_what_is_asked_for_or_alone_possible_needs_no_trial(smoke, clock, monkeypatch):
    method = Timed(clock, {"fp32": 3.0, "bf16": 2.0})
    assert device.choose(smoke(precision="fp32").settings, method, batch) == ("fp32", "asked for")
    assert device.choose(smoke(precision="bf16").settings, method, batch) == ("bf16", "asked for")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert device.choose(smoke(precision="auto").settings, method, batch) == (
        "fp32",
        "this CPU has no bfloat16",
    )
    assert clock[0] == 0


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_needs_no_trial(smoke, monkeypatch, has, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    method = Timed([0.0], {"fp32": 3.0, "bf16": 2.0})
    assert device.choose(smoke(precision="auto").settings, method, batch)[0] == chosen
    assert method.net.clock[0] == 0


def test_several_processes_do_not_wait_for_each_others_trial(smoke, clock, monkeypatch):
    monkeypatch.setattr(device, "PartialState", lambda: SimpleNamespace(num_processes=2))
    method = Timed(clock, {"fp32": 1.0, "bf16": 2.0})
    assert device.choose(smoke(precision="auto").settings, method, batch)[0] == "bf16"
    assert clock[0] == 0
