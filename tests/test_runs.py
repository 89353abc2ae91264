"""Runs on disk: reused when nothing has changed, trained again when anything has."""

import contextlib
import functools
import gc
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from dlcvlib.config import profiles
from dlcvlib.methods import dcgan, vae
from dlcvlib.training import loop, runs
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError


@pytest.fixture
def counted(monkeypatch):
    """How often something was trained."""
    calls = []
    fit = loop.fit
    monkeypatch.setattr(loop, "fit", lambda *a, **k: calls.append(k["label"]) or fit(*a, **k))
    return calls


def weights(run):
    return loop.module_tensors(run.method)


def test_the_second_call_trains_nothing(smoke, faces, tmp_path, counted):
    first = vae.train_or_load(smoke().settings, faces, tmp_path)
    second = vae.train_or_load(smoke().settings, faces, tmp_path)
    assert counted == ["vae"]
    assert first.name == second.name
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(first).values(), weights(second).values(), strict=True)
    )
    assert first.history.equals(second.history)
    assert not second.method.encoder.training


UNTRAINED = """
import sys
from dlcvlib.config import profiles
from dlcvlib.evaluation import features
from dlcvlib.methods import adamatch, classifier, dann, dcgan, pixelda, vae
face, gan, digit, pixel = (profiles.load("smoke", c) for c in ("vae", "gan", "dann", "pixelda"))
methods = [
    vae.VAE(face.settings),
    features.AttributeClassifier(features.settings_for(face), ["Male"]),
    dcgan.DCGAN(gan.settings),
    classifier.Classifier(digit.settings(0)),
    dann.DANN(digit.settings(0)),
    pixelda.PixelDA(pixel.settings(0)),
    adamatch.AdaMatch(pixel.adamatch(0)),
]
assert "torch._dynamo" not in sys.modules
for method in methods:
    assert method.optimizers
assert "torch._dynamo" in sys.modules  # else there is nothing to put off any more
"""


def test_an_untrained_method_loads_no_compiler():
    """torch loads it for the first optimiser of a process: seconds, and 150 MB."""
    subprocess.run([sys.executable, "-c", UNTRAINED], check=True, cwd=ROOT)


def test_a_run_from_disk_does_without_optimisers(smoke, faces, tmp_path):
    run = [vae.train_or_load(smoke().settings, faces, tmp_path) for _ in range(2)][-1]
    assert "optimizers" not in vars(run.method)
    assert run.method.optimizers is run.method.optimizers


def test_a_training_leaves_no_tensors_behind(smoke, faces, tmp_path):
    """Autocast keeps modules in cycles, which wait for a collector that seldom comes."""

    def alive(seed):
        vae.train_or_load(smoke(precision="bf16", seed=seed).settings, faces, tmp_path)
        assert not gc.get_freeze_count()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    alive(0)
    gc.collect()  # of what other tests have left
    first = alive(1)
    gc.disable()
    try:
        assert alive(2) == first
    finally:
        gc.enable()


def test_a_changed_setting_or_data_trains_again(smoke, faces, tmp_path, counted):
    from dataclasses import replace

    names = {
        vae.train_or_load(smoke().settings, faces, tmp_path).name,
        vae.train_or_load(smoke(kld_weight=0.5).settings, faces, tmp_path).name,
        vae.train_or_load(smoke(seed=1).settings, faces, tmp_path).name,
        vae.train_or_load(smoke().settings, replace(faces, fingerprint="g"), tmp_path).name,
    }
    assert len(names) == len(counted) == 4


def test_changed_code_trains_again_and_comments_do_not(smoke, monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("vae", "devices", "training", "data/batches"):
        (tmp_path / f"{name}.py").write_text('"""Doc."""\nx = 1\n')

    def name():
        return runs.run_name("vae", runs.identity_of(smoke().settings, "f", ["vae"]))

    first = name()
    (tmp_path / "vae.py").write_text('"""Other words."""\n# why\nx = 1  # one\n\n\n')
    assert name() == first
    (tmp_path / "vae.py").write_text("x = 2\n")
    assert name() != first


def test_code_edited_under_a_running_process_is_not_what_it_trains_with(monkeypatch, tmp_path):
    path = tmp_path / "vae.py"
    path.write_text("x = 1")
    monkeypatch.setitem(fingerprints._LOADED, path, path.read_text())
    before = fingerprints.source_hash([path])
    path.write_text("x = 2")
    assert fingerprints.source_hash([path]) == before
    monkeypatch.delitem(fingerprints._LOADED, path)
    assert fingerprints.source_hash([path]) != before


def test_another_version_of_torch_is_another_run(smoke, monkeypatch):
    one = runs.identity_of(smoke().settings, "f", ["vae"])
    real = fingerprints.versions
    monkeypatch.setattr(fingerprints, "versions", lambda *names: real(*names) | {"torch": "0"})
    assert runs.identity_of(smoke().settings, "f", ["vae"]) != one


def test_parameters_that_decide_nothing_do_not_matter(smoke):
    a, b = smoke().settings, smoke(tsne_perplexity=5, runs_dir="elsewhere").settings
    assert runs.identity_of(a, "f", ["vae"]) == runs.identity_of(b, "f", ["vae"])


@pytest.mark.parametrize("file", ["model.safetensors", "history.csv"])
def test_one_flipped_byte_is_noticed(smoke, faces, tmp_path, counted, capsys, file):
    run = vae.train_or_load(smoke().settings, faces, tmp_path)
    path = tmp_path / run.name / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = vae.train_or_load(smoke().settings, faces, tmp_path)
    assert counted == ["vae", "vae"]
    assert run.name in capsys.readouterr().out
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(run).values(), weights(again).values(), strict=True)
    )


def test_checkpoints_that_a_kill_at_the_end_has_left_go(smoke, faces, tmp_path):
    run = vae.train_or_load(smoke().settings, faces, tmp_path)
    for name in ("checkpoint-12.safetensors", "checkpoint.json"):
        (run.folder / name).write_bytes(b"left")
    vae.train_or_load(smoke().settings, faces, tmp_path)
    assert not list(run.folder.glob("checkpoint*"))


def test_what_a_run_leaves(smoke, faces, tmp_path):
    run = vae.train_or_load(smoke().settings, faces, tmp_path)
    left = sorted(path.name for path in (tmp_path / run.name).iterdir())
    assert left == ["history.csv", "model.safetensors", "provenance.json", "settings.yaml"]
    record = json.loads((tmp_path / run.name / "provenance.json").read_text())
    assert torch.__version__.startswith(record["torch"])
    assert record["seconds"] > 0
    assert record["parameters"] == sum(
        v.numel() for m in run.method.modules.values() for v in m.parameters()
    )


def test_an_average_is_not_counted_among_what_is_trained():
    settings = profiles.load("smoke", "gan", {"ema_decay": 0.9}).settings
    method = dcgan.DCGAN(settings)
    players = [method.generator, method.discriminator]
    assert runs._trained(method) == sum(p.numel() for m in players for p in m.parameters())


def test_runs_dir_that_cannot_be_written(smoke, faces, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write to .*runs"):
        vae.train_or_load(smoke().settings, faces, tmp_path / "runs")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a\.txt .*No space left.*4e-06 MB"):
        storage.write(path, fail, 4)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_kill_leaves_is_swept(tmp_path):
    (tmp_path / f"{storage.TEMPORARY}a.safetensors").write_text("half")
    (tmp_path / f"{storage.TEMPORARY}b").mkdir()
    (tmp_path / f"{storage.TEMPORARY}b" / "c.ipynb").write_text("half")
    (tmp_path / "whole").write_text("whole")
    storage.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_tensors_come_back_as_they_were(tmp_path):
    tensors = {"a": torch.randn(2, 3).to(torch.bfloat16), "b": torch.arange(4)}
    storage.write_tensors(tmp_path / "t.safetensors", tensors, {"step": 3})
    found, meta = storage.read_tensors(
        tmp_path / "t.safetensors", storage.sha256(tmp_path / "t.safetensors")
    )
    assert meta == {"step": 3}
    assert all(torch.equal(tensors[name], found[name]) for name in tensors)
    with pytest.raises(storage.DamagedFileError, match="damaged"):
        storage.read_tensors(tmp_path / "t.safetensors", "0" * 64)
    with pytest.raises(storage.DamagedFileError, match="missing"):
        storage.read_tensors(tmp_path / "u.safetensors", "0" * 64)


# --- several at once --------------------------------------------------------------------------


@pytest.fixture
def shared(smoke, faces, tmp_path, monkeypatch):
    """Runs a, b and c, of which another process trains a until it is let go."""
    settings = {name: smoke(seed=seed).settings for seed, name in enumerate("abc")}
    order, others, fit = [], contextlib.ExitStack(), loop.fit
    theirs = runs.run_name("vae", runs.identity_of(settings["a"], faces.fingerprint, ["vae"]))
    others.enter_context(storage.exclusive_lock(tmp_path / theirs, "trained"))

    def train(name):
        return vae.train_or_load(settings[name], faces, tmp_path)

    def noted(method, batches, settings, *args, **kwargs):
        order.append("abc"[settings.seed])
        return fit(method, batches, settings, *args, **kwargs)

    monkeypatch.setattr(loop, "fit", noted)
    yield order, others, train
    others.close()


def let_go_when_waited_for(monkeypatch, stack):
    @contextlib.contextmanager
    def waiting(_):
        stack.close()
        yield

    monkeypatch.setattr(storage, "timed", waiting)


def test_what_another_process_trains_comes_last(shared):
    order, others, train = shared

    def train_c():
        others.close()
        return train("c")

    wanted = {"a": lambda: train("a"), "b": lambda: train("b"), "c": train_c}
    assert list(runs.several(wanted)) == ["a", "b", "c"]
    assert order == ["b", "c", "a"]


def test_where_others_train_all_the_rest_it_is_waited_for(shared, monkeypatch):
    order, others, train = shared
    let_go_when_waited_for(monkeypatch, others)
    found = runs.several({name: functools.partial(train, name) for name in "ab"})
    assert [found[name].settings.seed for name in "ab"] == [0, 1]
    assert order == ["b", "a"]


def test_what_training_needs_is_waited_for_at_once(shared, monkeypatch, tmp_path):
    """Such as a trial of precisions: another's few seconds of it would else cost a whole run."""
    order, others, train = shared
    trial, fit = contextlib.ExitStack(), loop.fit
    trial.enter_context(storage.exclusive_lock(tmp_path / "trial", "tried"))

    def after_the_trial(*args, **kwargs):
        with storage.exclusive_lock(tmp_path / "trial", "tried"):
            return fit(*args, **kwargs)

    monkeypatch.setattr(loop, "fit", after_the_trial)
    let_go_when_waited_for(monkeypatch, trial)

    def train_c():
        others.close()
        return train("c")

    runs.several({"a": lambda: train("a"), "b": lambda: train("b"), "c": train_c})
    assert order == ["b", "c", "a"]


def test_an_error_of_one_is_raised(shared):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        runs.several({"b": fail})
