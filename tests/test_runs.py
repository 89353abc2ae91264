"""Runs on disk: reused if nothing has changed, otherwise retrained."""

import contextlib
import gc
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import METHODS, class_of, cut, flip, same, settings_of

from dlcvlib.methods.vae import VAE
from dlcvlib.training import loop, runs
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

ALL = set(METHODS)
DIGITS = {"classifier", "dann", "pixelda", "adamatch"}


@pytest.fixture
def fitted(monkeypatch):
    """Seeds of what is trained."""
    seeds, fit = [], loop.fit

    def noted(method, *arguments, **keywords):
        seeds.append(method.settings.seed)
        return fit(method, *arguments, **keywords)

    monkeypatch.setattr(loop, "fit", noted)
    return seeds


def test_the_second_call_trains_nothing(train, fitted, monkeypatch):
    monkeypatch.setattr(runs, "handed_out", [])
    first, second = train("vae"), train("vae")
    assert fitted == [0]
    assert same(first.method, second.method)
    assert first.history.equals(second.history)
    assert first.provenance == second.provenance
    assert not any(module.training for module in second.method.modules())
    assert not any(weight.requires_grad for weight in second.method.parameters())
    assert "optimizers" not in vars(second.method)
    assert runs.handed_out == [first.name]


def test_files_of_a_run(train):
    run = train("dcgan", keep_snapshots=False)
    left = sorted(path.name for path in run.folder.iterdir())
    assert left == ["history.csv", "model.safetensors", "provenance.json", "settings.yaml"]
    record = json.loads((run.folder / "provenance.json").read_text())
    assert torch.__version__.startswith(record["torch"])
    assert run.seconds == record["seconds"] > 0
    assert record["images_per_second"] == pytest.approx(12 * 16 / record["seconds"])
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
    gc.collect()  # of what other tests have left
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


def identity(settings=None, fingerprint="f", method="vae"):
    data = SimpleNamespace(fingerprint=fingerprint)
    return runs.identity_of(class_of(method), settings or settings_of(method), data)


def test_settings_data_and_versions_determine_a_run(smoke, monkeypatch):
    one = identity()
    assert identity() == one
    assert identity(settings_of("vae", seed=1)) != one
    assert identity(settings_of("vae", kld_weight=0.5)) != one
    assert identity(fingerprint="g") != one
    elsewhere = smoke(precision="fp32", tsne_perplexity=5, runs_dir="elsewhere").settings
    assert identity(elsewhere) == one
    versions = fingerprints.versions
    for package in ("torch", "accelerate"):
        changed = lambda *names, package=package: versions(*names) | {package: "0"}  # noqa: E731
        monkeypatch.setattr(fingerprints, "versions", changed)
        assert identity() != one


@pytest.mark.parametrize(
    ("module", "affected"),
    [
        ("methods/vae", {"vae"}),
        ("methods/attributes", {"features"}),
        ("methods/dcgan", {"dcgan"}),
        ("methods/diffaugment", {"dcgan"}),
        ("methods/averaging", {"dcgan", "adamatch"}),
        ("methods/classifier", DIGITS),
        ("methods/pixelda", {"pixelda"}),
        ("data/augment", DIGITS),
        ("data/batches", ALL),
        ("training/loop", ALL),
        ("training/method", ALL),
        ("config/schema", set()),
        ("evaluation/metrics", set()),
        ("evaluation/features", set()),
        ("plots/style", set()),
        ("report/notebook", set()),
        ("utils/storage", set()),
    ],
)
def test_only_code_that_trains_determines_a_run(module, affected, monkeypatch):
    """Nor do comments and docstrings."""

    def codes():
        return {name: identity(method=name)["code"] for name in METHODS}

    path, before = fingerprints.PACKAGE / f"{module}.py", codes()
    source = path.read_text()
    monkeypatch.setitem(fingerprints._LOADED, path, f'"""Other words."""\n# why\n\n{source}')
    assert codes() == before
    monkeypatch.setitem(fingerprints._LOADED, path, f"{source}\nNEW = 1\n")
    after = codes()
    assert {name for name in METHODS if after[name] != before[name]} == affected


def test_code_edited_under_a_running_process_is_not_what_it_trains_with(monkeypatch, tmp_path):
    path = tmp_path / "vae.py"
    path.write_text("x = 1")
    monkeypatch.setitem(fingerprints._LOADED, path, path.read_text())
    before = fingerprints.hashes([path])
    path.write_text("x = 2")
    assert fingerprints.hashes([path]) == before
    monkeypatch.delitem(fingerprints._LOADED, path)
    assert fingerprints.hashes([path]) != before


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "history.csv"])
def test_a_damaged_run_is_retrained(train, fitted, capsys, file):
    run = train("vae")
    flip(run.folder / file)
    again = train("vae")
    assert fitted == [0, 0]
    assert f"{file} is damaged" in capsys.readouterr().out
    assert again.provenance["files"] == run.provenance["files"]


@pytest.mark.parametrize("harm", [flip, cut, lambda path: path.unlink()])
def test_a_lost_snapshot_does_not_affect_the_model(train, fitted, capsys, harm):
    changes = {"steps": 6, "ema_decay": 0.9, "keep_snapshots": True}
    run, z = train("dcgan", **changes), torch.randn(4, 8)
    assert list(run.snapshots) == [3, 6]
    early, late = (method.sample(z) for method in run.snapshots.values())
    torch.testing.assert_close(late, run.method.sample(z), atol=0.01, rtol=0)
    assert not torch.equal(early, late)
    harm(run.folder / "snapshot-3.safetensors")
    again = train("dcgan", **changes)
    assert fitted == [0]
    assert same(again.method, run.method)
    assert list(again.snapshots) == [6]
    assert "snapshot-3.safetensors is" in capsys.readouterr().out
    assert torch.equal(again.snapshots[6].sample(z), late)


def test_checkpoints_left_by_a_late_kill_are_removed(train):
    run = train("vae")
    for name in ("checkpoint-12.safetensors", "checkpoint.json"):
        (run.folder / name).write_bytes(b"left")
    train("vae")
    assert not list(run.folder.glob("checkpoint*"))


# --- files ------------------------------------------------------------------------------------


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


def test_temporary_files_left_by_a_kill_are_removed(tmp_path):
    (tmp_path / f"{storage.TEMPORARY}a").mkdir()
    (tmp_path / f"{storage.TEMPORARY}a" / "b.ipynb").write_text("half")
    (tmp_path / "whole").write_text("whole")
    storage.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_tensors_are_restored_unchanged(tmp_path):
    tensors = {"a": torch.randn(2, 3).to(torch.bfloat16), "b": torch.arange(4)}
    path = tmp_path / "t.safetensors"
    storage.write_tensors(path, tensors, {"step": 3})
    found, meta = storage.read_tensors(path, storage.sha256(path))
    assert meta == {"step": 3}
    assert same(found, tensors)
    with pytest.raises(storage.DamagedFileError, match="damaged"):
        storage.read_tensors(path, "0" * 64)
    with pytest.raises(storage.DamagedFileError, match="missing"):
        storage.read_tensors(tmp_path / "u.safetensors", "0" * 64)


# --- several at once --------------------------------------------------------------------------


@pytest.fixture
def shared(faces, tmp_path):
    """Runs of seeds 0, 1 and 2, of which another process trains the first until it is closed."""
    jobs = {seed: (VAE, settings_of("vae", seed=seed), faces) for seed in range(3)}
    digest = fingerprints.json_hash(runs.identity_of(*jobs[0]))
    with contextlib.ExitStack() as other:
        folder = tmp_path / f"vae-{digest[:10]}"
        other.enter_context(storage.exclusive_lock(folder, "trained"))
        yield jobs, other


def test_what_another_process_trains_comes_last(shared, fitted, tmp_path, monkeypatch):
    jobs, other = shared
    create = runs._create

    def last(kind, settings):
        if settings.seed == 2:
            other.close()
        return create(kind, settings)

    monkeypatch.setattr(runs, "_create", last)
    found = runs.train_all(jobs, tmp_path)
    assert [run.settings.seed for run in found.values()] == list(found) == [0, 1, 2]
    assert fitted == [1, 2, 0]


def test_runs_that_others_train_are_waited_for(shared, fitted, tmp_path, monkeypatch):
    jobs, other = shared

    @contextlib.contextmanager
    def waiting(_):
        other.close()
        yield

    monkeypatch.setattr(storage, "timed", waiting)
    assert list(runs.train_all({seed: jobs[seed] for seed in (0, 1)}, tmp_path)) == [0, 1]
    assert fitted == [1, 0]


def test_an_error_of_one_is_raised(faces, tmp_path):
    broken = replace(faces, train=None)
    with pytest.raises(AttributeError):
        runs.train_all({0: (VAE, settings_of("vae"), broken)}, tmp_path)
