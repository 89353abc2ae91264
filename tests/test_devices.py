"""Which precision is chosen, and process-wide settings, made only in `setup`."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, class_of, flip, same, settings_of, weights
from torch import nn

from dlcvlib.training import device


@pytest.fixture
def untrained():
    torch.manual_seed(0)
    return class_of("vae")(settings_of("vae", precision="auto"))


@pytest.fixture
def trials(monkeypatch, tmp_path):
    """On a CPU with bfloat16: counted trials that find it twice as fast, with an empty cache."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(device.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    made = []
    monkeypatch.setattr(device, "_trial", lambda *_: made.append(1) or 2.0)
    return made


@pytest.mark.parametrize("requested", ["bf16", "fp32"])
def test_a_requested_precision_is_taken(requested):
    method = class_of("vae")(settings_of("vae", precision=requested))
    assert device.choose(method, None) == (requested, "requested")


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("accelerator", ["none", "cuda", "mps"])
def test_auto_depends_on_the_device_that_trains(monkeypatch, trials, untrained, accelerator, has):
    """An accelerator other than CUDA does not get the CPU's precision."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator != "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    chosen = "bf16" if has and accelerator != "mps" else "fp32"
    assert device.choose(untrained, None)[0] == chosen
    assert len(trials) == (has and accelerator == "none")


def test_a_trial_is_made_once_per_machine_and_network(trials, untrained):
    first = device.choose(untrained, None)
    assert device.choose(untrained, None) == first == ("bf16", "2 times as fast as fp32")
    assert len(trials) == 1
    wider = class_of("vae")(settings_of("vae", precision="auto", latent_dim=9))
    device.choose(wider, None)
    assert len(trials) == 2


def test_an_outcome_that_is_damaged_or_cannot_be_kept_is_found_again(
    trials, untrained, tmp_path, disk_full_beyond
):
    with disk_full_beyond(0):
        assert device.choose(untrained, None)[0] == "bf16"
    for _ in range(2):
        assert device.choose(untrained, None)[0] == "bf16"
    assert len(trials) == 2
    (outcome,) = tmp_path.glob("cache/*.json")
    flip(outcome)
    assert device.choose(untrained, None)[0] == "bf16"
    assert len(trials) == 3


def test_several_processes_run_no_trial(monkeypatch, trials, untrained):
    """Each of its steps would wait for processes that are waiting for the trial."""
    monkeypatch.setattr(device, "PartialState", lambda: SimpleNamespace(num_processes=2))
    assert device.choose(untrained, None)[0] == "bf16"
    assert trials == []


def test_a_trial_does_not_change_the_method(untrained):
    images = torch.rand(8, 3, 64, 64, device=device.default())
    before = weights(untrained)
    assert device._trial(untrained, lambda step: (images,)) > 0
    assert same(untrained, before)


def test_precisions_alternate_in_one_process():
    for precision in ("bf16", "fp32", "bf16"):
        accelerator = device.accelerator_for(precision)
        layer = accelerator.prepare_model(nn.Linear(2, 2), evaluation_mode=True)
        with accelerator.autocast():
            found = nn.functional.linear(torch.ones(1, 2).to(accelerator.device), layer.weight)
        assert found.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


IMPORTS = """
import os, pkgutil, signal, sys
from importlib import import_module

import matplotlib, pandas, torch

import dlcvlib


def state():
    cudnn = torch.backends.cudnn
    return {
        "cudnn": (cudnn.deterministic, cudnn.allow_tf32, cudnn.benchmark),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "generator": torch.random.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "rcParams": dict(matplotlib.rcParams),
        "width": pandas.get_option("display.width"),
        "folder": os.getcwd(),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


torch.set_num_threads(500)
before = state()
modules = [module.name for module in pkgutil.walk_packages(dlcvlib.__path__, "dlcvlib.")]
for name in modules:
    if name != "dlcvlib.__main__":
        import_module(name)
assert len(modules) > 40
changed = [name for name, value in state().items() if value != before[name]]
assert not changed, changed

sys.path.append("tests")
from conftest import METHODS, built
from dlcvlib.training import device

methods = [built(name) for name in METHODS]
assert "torch._dynamo" not in sys.modules
assert all(method.optimizers for method in methods)
assert "torch._dynamo" in sys.modules  # else there is nothing to put off any more

device.setup()
assert torch.backends.cudnn.deterministic
assert not torch.backends.cudnn.allow_tf32
assert torch.get_num_threads() <= os.cpu_count()
"""


def test_importing_the_library_changes_no_global_state():
    """Nor does it load torch's compiler, which the first optimiser loads: seconds, and 150 MB."""
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, cwd=ROOT, env=os.environ)
