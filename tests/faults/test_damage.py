"""A damaged cache: every file that is read again is noticed, named, set aside and made again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cut, flip, interrupt

from dlcvlib.data.faces import load_faces
from dlcvlib.evaluation import latent
from dlcvlib.methods import vae
from dlcvlib.utils import storage


def digests(folder):
    return {path.name: storage.sha256(path) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "provenance.json"])
def test_a_run(train, damage, name, capsys):
    run = train("vae", steps=6)
    files = {path.name for path in run.folder.iterdir()}
    assert files == {*run.provenance["files"], "provenance.json"}
    before, path = digests(run.folder), run.folder / name
    damage(path)
    assert train("vae", steps=6).folder == run.folder
    assert digests(run.folder) == before
    assert f"{path} is damaged" in capsys.readouterr().out
    assert path.with_name(f"{name}.damaged").is_file()


def test_a_snapshot(train, damage, capsys):
    run = train("dcgan", steps=6, keep_snapshots=True)
    steps, path = list(run.snapshots), next(run.folder.glob("snapshot-*"))
    damage(path)
    again = train("dcgan", steps=6, keep_snapshots=True)
    assert again.provenance == run.provenance  # nothing is trained again for a preview
    assert len(again.snapshots) == len(steps) - 1
    assert f"{path} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-*.safetensors"])
def test_a_checkpoint(train, tmp_path, damage, name, capsys, before_step):
    whole = train("vae", "whole", steps=12)
    with before_step(vae.VAE, 8, interrupt), pytest.raises(KeyboardInterrupt):
        train("vae", "cut", steps=12)
    (path,) = (tmp_path / "cut" / whole.name).glob(name)
    damage(path)
    again = train("vae", "cut", steps=12)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert digests(again.folder) == digests(whole.folder)


def faces_of(params):
    return load_faces(params).train.images


def map_of(params):
    features = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    return latent.tsne(features, 5.0, 0, params.runs_dir)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (faces_of, "images.safetensors"),
        (faces_of, "images.json"),
        (map_of, "tsne-*.safetensors"),
    ],
)
def test_prepared_data_and_maps(smoke, tmp_path, make, damage, name, capsys):
    params = smoke(runs_dir=str(tmp_path))
    before = make(params)
    (path,) = tmp_path.rglob(name)
    damage(path)
    np.testing.assert_allclose(make(params), before, atol=1e-3)
    assert f"{path} is damaged" in capsys.readouterr().out


def test_damage_that_two_processes_find_at_once(tmp_path, monkeypatch):
    """The slower one, which finds the file gone, goes on as if it had never been there."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"damaged")
    monkeypatch.setattr(storage, "sha256", lambda file: file.unlink())
    with pytest.raises(storage.DamagedFileError, match="is missing"):
        storage.check(path, "another")


def test_what_a_kill_has_left_is_never_read_and_goes(tmp_path):
    path = tmp_path / "thing.safetensors"
    half, others = (tmp_path / f"{storage.TEMPORARY}{name}-x" for name in ("thing", "other"))
    for left in (half, others):
        left.mkdir()
        (left / path.name).write_bytes(b"half")
    storage.cached(path, lambda: ({}, {}))
    assert not half.exists()
    assert others.exists()  # it may be in the making


@pytest.mark.usefixtures("unrendered")
def test_an_executed_notebook(small, damage, capsys):
    small.write(p1_1=["40 + 2"])
    assert small.make()
    for suffix in (".ipynb", ".json"):
        path = small.out / "notebooks" / f"1-1-test{suffix}"
        damage(path)
        capsys.readouterr()
        assert small.make()
        output = capsys.readouterr().out
        assert f"{path} is damaged" in output
        assert "unchanged" not in output
        (task,) = small.plan()
        assert not task.reasons


def test_a_record_that_only_the_report_reads(small, train):
    """The report does without a run whose record is damaged or gone, and counts it."""
    run = train("vae", steps=6)
    handed = f"types.SimpleNamespace(handed_out=[{run.name!r}])"
    cells = [
        f"import sys, types\nsys.modules['dlcvlib.training.runs'] = {handed}",
        "from dlcvlib.report.notebook import record\nrecord(a=1)",
    ]
    small.write(p1_1=cells, p1_2=["1"])
    assert small.make()
    provenance = small.results()["provenance"]
    assert [record["run"] for record in provenance["runs"]] == [run.name]
    assert "threads" in provenance["device"]
    path = run.folder / "provenance.json"
    whole = path.read_bytes()
    for harm in (flip, cut, Path.unlink):
        path.write_bytes(whole)
        harm(path)
        assert small.make()
        provenance = small.results()["provenance"]
        assert provenance["runs"] == []
        assert "training runs without a record: 1" in provenance["device"]
