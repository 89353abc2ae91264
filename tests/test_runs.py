"""Runs on disk: reused if nothing has changed, otherwise retrained."""

import contextlib
import gc
from types import SimpleNamespace

import pytest
import torch
from conftest import METHODS, same, settings_of

from dlcvlib.methods.vae import VAE
from dlcvlib.training import loop, runs
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError


@pytest.fixture
def fitted(monkeypatch):
    """Seeds of what is trained."""
    seeds, fit = [], loop.fit
    monkeypatch.setattr(loop, "fit", lambda m, *a: seeds.append(m.settings.seed) or fit(m, *a))
    return seeds


def test_the_second_call_trains_nothing(train, fitted, monkeypatch):
    monkeypatch.setattr(runs, "handed_out", [])
    first, second = train("vae"), train("vae")
    assert fitted == [0]
    assert same(first.method, second.method)
    assert first.provenance == second.provenance
    assert not any(module.training for module in second.method.modules())
    assert not any(weight.requires_grad for weight in second.method.parameters())
    assert "optimizers" not in vars(second.method)
    assert set(runs.handed_out) == {first.name}


def test_files_of_a_run(train):
    run = train("dcgan", keep_snapshots=False, batch_size=1000)
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"history.csv", "model.safetensors", "provenance.json"}
    record = storage.read_sealed(run.folder / "provenance.json")
    assert record["settings"] == run.settings.model_dump()
    assert torch.__version__.startswith(record["torch"])
    assert run.seconds == record["seconds"] > 0
    assert record["images_per_second"] == pytest.approx(12 * 40 / record["seconds"])  # not 1000
    # The moving average is not trained.
    players = (run.method.generator, run.method.discriminator)
    assert record["parameters"] == sum(p.numel() for m in players for p in m.parameters())


def test_training_leaves_no_tensors_behind(train):
    """Autocast leaves modules in reference cycles, which are rarely collected."""

    def alive(seed):
        train("vae", precision="bf16", seed=seed)
        assert not gc.get_freeze_count()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    alive(0)
    gc.collect()  # what other tests have left
    first = alive(1)
    gc.disable()
    try:
        assert alive(2) == first
    finally:
        gc.enable()


def test_a_runs_dir_that_cannot_be_written(train, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write to .*runs"):
        train("vae")


# --- what a run's key covers ------------------------------------------------------------------


def identity(method, fingerprint="f"):
    data = SimpleNamespace(fingerprint=fingerprint)
    return runs.identity_of(METHODS[method], settings_of(method), data)


@pytest.mark.parametrize("package", ["torch", "accelerate"])
def test_data_and_versions_determine_a_run(monkeypatch, package):
    one, versions = identity("vae"), fingerprints.versions
    assert identity("vae") == one
    assert identity("vae", fingerprint="g") != one
    monkeypatch.setattr(fingerprints, "versions", lambda *n: versions(*n) | {package: "0"})
    assert identity("vae") != one


AFFECTED = {
    "methods/averaging": {"dcgan", "adamatch"},
    "methods/classifier": {"classifier", "dann", "pixelda", "adamatch"},
    "training/loop": set(METHODS),
    "config/schema": set(),
    "evaluation/features": set(),
}


@pytest.mark.parametrize(("module", "affected"), AFFECTED.items())
def test_only_code_that_trains_determines_a_run(module, affected, monkeypatch):
    """Nor do comments and docstrings."""

    path = fingerprints.PACKAGE / f"{module}.py"
    before, source = {name: identity(name) for name in METHODS}, path.read_text()
    for changed, expected in (
        (f'"""Other words."""\n# why\n\n{source}', set()),
        (f"{source}\nNEW = 1\n", affected),
    ):
        monkeypatch.setitem(fingerprints._LOADED, path, changed)
        assert {name for name in METHODS if identity(name) != before[name]} == expected


def test_code_edited_under_a_running_process_is_not_what_it_trains_with(monkeypatch, tmp_path):
    path = tmp_path / "vae.py"
    path.write_text("x = 2")
    edited = fingerprints.hashes([path])
    monkeypatch.setitem(fingerprints._LOADED, path, "x = 1")
    assert fingerprints.hashes([path]) != edited


# --- files ------------------------------------------------------------------------------------


def test_snapshots_are_the_generator_along_the_run(train):
    run, z = train("dcgan", steps=6, ema_decay=0.9, keep_snapshots=True), torch.randn(4, 8)
    assert list(run.snapshots) == [3, 6]
    early, late = (method.sample(z) for method in run.snapshots.values())
    torch.testing.assert_close(late, run.method.sample(z), atol=0.01, rtol=0)
    assert not torch.equal(early, late)


def test_what_a_late_kill_leaves_is_removed(train):
    run = train("vae")
    files = set(run.folder.iterdir())
    half = storage.make_dir(run.folder / f"{storage.TEMPORARY}folder")
    for left in ("checkpoint-12.safetensors", "checkpoint.json", half / "model.safetensors"):
        (run.folder / left).write_bytes(b"left")
    train("vae")
    assert set(run.folder.iterdir()) == files


# --- several at once --------------------------------------------------------------------------


def test_what_another_process_trains_is_waited_for(faces, fitted, tmp_path, monkeypatch):
    job = VAE, settings_of("vae"), faces
    digest = fingerprints.json_hash(runs.identity_of(*job))
    other = contextlib.ExitStack()
    other.enter_context(storage.exclusive_lock(tmp_path / f"vae-{digest[:10]}", "trained"))

    def waiting(_):
        other.close()
        runs.train_or_load(*job, tmp_path)  # the other process completes it
        return contextlib.nullcontext()

    monkeypatch.setattr(storage, "timed", waiting)
    runs.train_or_load(*job, tmp_path)
    assert len(fitted) == 1
