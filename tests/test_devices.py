"""Which precision is chosen, and process-wide settings, made only in `setup`."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import built, disk_full_beyond, same, settings_of, start, weights
from torch import nn

from dlcvlib.data.batches import memory_format
from dlcvlib.training import device, processes


def test_apples_gpus_get_no_channels_last():
    """BatchNorm's gradients would be wrong there."""
    assert memory_format(torch.device("mps")) is torch.contiguous_format
    assert memory_format(torch.device("cpu")) is torch.channels_last


@pytest.fixture
def untrained():
    return built("vae", precision="auto")


@pytest.fixture
def trials(monkeypatch, tmp_path):
    """On a CPU with bfloat16: counted trials that find it twice as fast, with an empty cache."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(device.platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    trial = Mock(return_value=2.0)
    monkeypatch.setattr(device, "_trial", trial)
    return trial


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("trainer", ["cpu", "several", "cuda", "mps"])
def test_auto_depends_on_the_device_that_trains(monkeypatch, trials, untrained, trainer, has):
    """An accelerator other than CUDA does not get the CPU's precision.

    Several processes run no trial: its steps would wait for those that are waiting for the trial.
    """
    several = SimpleNamespace(num_processes=2 if trainer == "several" else 1)
    monkeypatch.setattr(device, "PartialState", lambda: several)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: trainer in ("cuda", "mps"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: trainer == "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    chosen = "bf16" if has and trainer != "mps" else "fp32"
    assert device.choose(untrained, None)[0] == chosen
    assert trials.call_count == (has and trainer == "cpu")


@pytest.mark.parametrize(("has", "chosen"), [(True, "tf32"), (False, "fp32")])
def test_tf32_is_for_gpus_that_have_it(monkeypatch, has, chosen):
    """Elsewhere it is float32, and the run says why."""
    net = built("classifier", precision="tf32", deterministic=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: has)
    assert device.choose(net, None) == (chosen, "requested" if has else "no support for tf32")
    device.prepare(net, chosen)
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    assert (cudnn.allow_tf32, products.allow_tf32) == (has, has)
    assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    device.setup()  # for what comes after
    assert (cudnn.allow_tf32, products.allow_tf32) == (False, False)
    assert (cudnn.deterministic, cudnn.benchmark) == (True, False)


COMPILED = [
    # setting, steps, device, processes, property of the method -> mode
    ("auto", 20_000, "cuda", 1, "", "reduce-overhead"),
    ("auto", 19_999, "cuda", 1, "", ""),
    ("auto", 20_000, "cuda", 2, "", ""),
    ("auto", 20_000, "cpu", 1, "", ""),
    ("never", 20_000, "cuda", 1, "", ""),
    ("always", 1, "cuda", 2, "", "reduce-overhead"),
    ("always", 1, "cpu", 1, "", "default"),
    ("always", 1, "cuda", 1, "second_derivatives", ""),
    ("always", 1, "cuda", 1, "swaps_buffers", "default"),
]


@pytest.mark.parametrize(("wanted", "steps", "on", "count", "has", "mode"), COMPILED)
def test_long_runs_are_compiled_on_a_gpu(monkeypatch, wanted, steps, on, count, has, mode):
    monkeypatch.setattr(device, "PartialState", lambda: SimpleNamespace(num_processes=count))
    settings = settings_of("vae", compile=wanted, steps=steps)
    method = SimpleNamespace(settings=settings, device=torch.device(on))
    method.second_derivatives, method.swaps_buffers = has == "second_derivatives", bool(has)
    assert device.compiling(method) == mode


def test_several_gpus_get_torchs_synchronised_batch_norm():
    net, before = built("adamatch"), weights(built("adamatch"))
    processes.synchronise(net)
    kinds = {type(module) for module in net.modules()}
    assert nn.SyncBatchNorm in kinds
    assert not {nn.BatchNorm1d, nn.BatchNorm2d} & kinds
    assert same(net, before)


def test_a_trial_is_made_once_per_machine_and_network(trials, untrained):
    """Unless its outcome cannot be kept."""

    def choose(method=untrained):
        assert device.choose(method, None) == ("bf16", "bf16 is 2 times as fast as fp32")
        return trials.call_count

    with disk_full_beyond(0):
        assert choose() == 1
    assert [choose(), choose()] == [2, 2]
    assert choose(built("vae", precision="auto", latent_dim=9)) == 3


def test_a_trial_does_not_change_the_method(untrained):
    untrained.to(device.default())
    images, before = torch.rand(8, 3, 64, 64, device=untrained.device), weights(untrained)
    assert device._trial(untrained, lambda step: (images,)) > 0
    assert same(untrained, before)


def test_requested_precisions_alternate_in_one_process():
    for requested, dtype in [("bf16", torch.bfloat16), ("fp32", torch.float32)] * 2:
        net, seen = built("classifier", precision=requested).to(device.default()), []
        device.prepare(net, device.choose(net, None)[0])
        net.extractor.layers[0].register_forward_hook(lambda *call, s=seen: s.append(call[2].dtype))
        features = net.extractor(torch.rand(2, 3, 32, 32, device=net.device))
        assert (seen, features.dtype) == ([dtype], torch.float32)


IMPORTS = """
import pkgutil, sys
from importlib import import_module
import joblib, matplotlib, pandas, torch
import dlcvlib

cudnn = torch.backends.cudnn

def state():
    flags = cudnn.deterministic, cudnn.benchmark, torch.get_num_threads()
    others = torch.random.get_rng_state().tolist(), pandas.get_option("display.width")
    return flags, others, dict(matplotlib.rcParams)

torch.set_num_threads(500)
before = state()
modules = [module.name for module in pkgutil.walk_packages(dlcvlib.__path__, "dlcvlib.")]
for name in {*modules} - {"dlcvlib.__main__"}:
    import_module(name)
assert len(modules) > 40
assert state() == before
assert not {"torchvision", "torch._dynamo"} & set(sys.modules)

dlcvlib.training.device.setup()
assert (cudnn.deterministic, cudnn.allow_tf32) == (True, False)
assert torch.get_num_threads() <= joblib.cpu_count()
"""


def test_importing_the_library_changes_no_global_state():
    """Nor does it load torchvision or torch's compiler, which the first optimiser loads: 150 MB."""
    with start("-c", IMPORTS) as process:
        assert process.communicate() == ("", "")
