"""A damaged cache: every file that is read again is noticed, named, set aside and made again."""

from pathlib import Path

import pytest
import torch
from conftest import cut, flip, interrupt

from dlcvlib.config import profiles
from dlcvlib.data.faces import load_faces
from dlcvlib.evaluation import features, latent
from dlcvlib.methods import dcgan, vae
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import storage


def digests(folder):
    return {path.name: storage.sha256(path) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", ["model.safetensors", "history.csv", "provenance.json"])
def test_a_run(smoke, faces, tmp_path, damage, name, capsys):
    settings = smoke(steps=6, precision="fp32").settings
    run = train_or_load(vae.VAE, settings, faces, tmp_path)
    before, path = digests(run.folder), run.folder / name
    damage(path)
    again = train_or_load(vae.VAE, settings, faces, tmp_path)
    assert again.folder == run.folder
    assert digests(run.folder) == before
    output = capsys.readouterr().out
    assert f"{path} is damaged" in output
    assert path.with_name(f"{name}.damaged").is_file()


def test_a_snapshot(smoke, faces, tmp_path, damage, capsys):
    chosen = profiles.load("smoke", "gan", {"runs_dir": str(tmp_path), "precision": "fp32"})
    measured = features.measured(chosen, faces)
    run = train_or_load(dcgan.DCGAN, chosen.settings, measured, tmp_path)
    steps, path = list(run.snapshots), next(run.folder.glob("snapshot-*"))
    damage(path)
    again = train_or_load(dcgan.DCGAN, chosen.settings, measured, tmp_path)
    assert again.provenance == run.provenance  # nothing is trained again for a preview
    assert len(again.snapshots) == len(steps) - 1
    assert f"{path} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint-*.safetensors"])
def test_a_checkpoint(smoke, faces, tmp_path, damage, name, capsys, before_step):
    settings = smoke(steps=12, precision="fp32").settings
    whole = train_or_load(vae.VAE, settings, faces, tmp_path / "whole")
    with before_step(vae.VAE, 8, interrupt), pytest.raises(KeyboardInterrupt):
        train_or_load(vae.VAE, settings, faces, tmp_path / "cut")
    folder = tmp_path / "cut" / whole.name
    (path,) = folder.glob(name)
    damage(path)
    again = train_or_load(vae.VAE, settings, faces, tmp_path / "cut")
    assert f"{path} is damaged" in capsys.readouterr().out
    assert digests(again.folder) == digests(whole.folder)


@pytest.mark.parametrize("name", ["images.safetensors", "images.json"])
def test_prepared_data(smoke, tmp_path, damage, name, capsys):
    chosen = smoke(runs_dir=str(tmp_path))
    before = load_faces(chosen)
    (path,) = tmp_path.glob(f"data/faces-*/{name}")
    damage(path)
    after = load_faces(chosen)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert after.fingerprint == before.fingerprint
    assert after.train.images.equal(before.train.images)


def test_a_cached_map(tmp_path, damage, capsys):
    features = torch.rand(60, 8, generator=torch.Generator().manual_seed(0))
    before = latent.tsne(features, 5.0, 0, tmp_path)
    (path,) = tmp_path.rglob("tsne*.safetensors")
    damage(path)
    after = latent.tsne(features, 5.0, 0, tmp_path)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert after == pytest.approx(before, abs=1e-3)


def test_damage_that_two_processes_find_at_once(tmp_path, monkeypatch):
    """The slower one, which finds the file gone, says so as if it had been the first."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"damaged")
    real = storage.sha256

    def slowly(file):
        digest = real(file)
        file.replace(tmp_path / "model.safetensors.damaged")
        return digest

    monkeypatch.setattr(storage, "sha256", slowly)
    with pytest.raises(storage.DamagedFileError, match=r"set aside as model.safetensors.damaged"):
        storage.check(path, "another")
    with pytest.raises(storage.DamagedFileError, match="is missing"):
        storage.check(path, "another")


def test_half_a_map_that_a_kill_has_left_goes(tmp_path):
    path = tmp_path / "thing.safetensors"
    half, others = (tmp_path / f"{storage.TEMPORARY}{name}-x" for name in ("thing", "other"))
    for left in (half, others):
        left.write_bytes(b"half")
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


def test_a_record_that_only_the_report_reads(small, smoke, faces, tmp_path):
    """The report does without a run whose record is damaged or gone, and counts it."""
    run = train_or_load(vae.VAE, smoke(steps=6).settings, faces, tmp_path / "runs")
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


def test_what_a_kill_leaves_is_never_read(smoke, faces, tmp_path):
    """Half-written files under temporary names are swept and change nothing."""
    settings = smoke(steps=6, precision="fp32").settings
    whole = train_or_load(vae.VAE, settings, faces, tmp_path / "whole")
    folder = tmp_path / "other" / whole.name
    folder.mkdir(parents=True)
    half = (whole.folder / "model.safetensors").read_bytes()[:1000]
    for name in ("x.safetensors", "y.json", "z.csv"):
        (folder / f"{storage.TEMPORARY}{name}").write_bytes(half)
    again = train_or_load(vae.VAE, settings, faces, tmp_path / "other")
    assert digests(again.folder) == digests(whole.folder)
    assert not list(folder.glob(f"{storage.TEMPORARY}*"))


def test_every_file_of_a_run_is_vouched_for(smoke, faces, tmp_path):
    run = train_or_load(vae.VAE, smoke(steps=6).settings, faces, tmp_path)
    names = {path.name for path in run.folder.iterdir()}
    assert names == {*run.provenance["files"], "provenance.json"}
