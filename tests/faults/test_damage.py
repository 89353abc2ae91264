"""A damaged cache: every file that is read again is noticed, named, set aside and made again."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import joblib
import pytest
from conftest import before_step, interrupt

from dlcvlib.data.faces import load_faces
from dlcvlib.methods import vae
from dlcvlib.report import provenance
from dlcvlib.utils import storage


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "history.csv", "provenance.json", "images.u8", "columns.safetensors"],
)
def test_runs_and_prepared_data(train, params, tmp_path, damage, name, capsys):
    few = params("vae", drawn_train=10, drawn_test=5, validation_size=2)

    def make():
        if name.startswith(("images", "columns")):
            return joblib.hash(load_faces(few).train.images.numpy())
        return train("vae").provenance["files"]

    before = make()
    (path,) = tmp_path.rglob(name)
    damage(path)
    assert make() == before
    assert f"{path} is damaged" in capsys.readouterr().out
    assert path.with_name(f"{path.name}.damaged").is_file()


def test_a_snapshot(train, damage, capsys):
    run = train("dcgan", steps=6, keep_snapshots=True)
    steps, path = list(run.snapshots), next(run.folder.glob("snapshot-*"))
    damage(path)
    again = train("dcgan", steps=6, keep_snapshots=True)
    assert again.provenance == run.provenance  # nothing is trained again for a preview
    assert len(again.snapshots) == len(steps) - 1
    assert f"{path} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-*.safetensors"])
def test_a_checkpoint(train, tmp_path, damage, name, capsys):
    with before_step(vae.VAE, 8, interrupt), pytest.raises(KeyboardInterrupt):
        train("vae", "cut")
    (path,) = tmp_path.rglob(name)
    damage(path)
    again = train("vae", "cut")
    assert f"{path} is damaged" in capsys.readouterr().out
    assert again.provenance["files"] == train("vae", "whole").provenance["files"]


def test_damage_that_two_processes_find_at_once(tmp_path, monkeypatch):
    """The slower one, which finds the file gone, goes on as if it had never been there."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"damaged")
    monkeypatch.setattr(storage, "sha256", lambda file: file.unlink())
    with pytest.raises(storage.DamagedFileError, match="is missing"):
        storage.check(path, "another")


def test_what_a_kill_has_left_is_never_read_and_goes(tmp_path):
    half, other = (tmp_path / f"{storage.TEMPORARY}{name}-x" for name in ("thing", "other"))
    for folder in (half, other):
        (storage.make_dir(folder) / "thing.safetensors").write_bytes(b"half")
    storage.cached(tmp_path / "thing.safetensors", lambda: ({}, {}))
    assert not half.exists()
    assert other.exists()  # it may be in the making


@pytest.mark.usefixtures("unrendered")
def test_an_executed_notebook(small, damage, capsys):
    small.write(p1_1=["40 + 2"])
    assert small.make()
    for suffix in (".ipynb", ".json"):
        path = small.out / "notebooks" / f"1-1-test{suffix}"
        damage(path)
        assert small.make()
        assert f"{path} is damaged" in capsys.readouterr().out
        assert not small.plan()[0].reasons


def test_a_record_that_only_the_report_reads(params, train, damage):
    """The report does without a run whose record is damaged or gone, and counts it."""
    run = train("vae")
    pages = {"1-1": SimpleNamespace(runs=[run.name], payloads=[])}
    about = {"spent": {}, "started": 0, "profile": "smoke", "command": ""}
    describe = partial(provenance.describe, pages, {"1-1": 1.0}, {"vae": params("vae")}, about)
    assert [record["run"] for record in describe()["runs"]] == [run.name]
    for harm in (damage, Path.unlink):
        harm(run.folder / "provenance.json")
        assert describe()["runs"] == []
        assert "training runs without a record: 1" in describe()["device"]
