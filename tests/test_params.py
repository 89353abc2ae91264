"""Parameters: profiles, ranges, names, paths, and that notebooks and profiles agree."""

import os
import shutil
import subprocess
import sys

import nbformat
import papermill
import pytest
from conftest import cases

from dlcvlib.config import paths, profiles
from dlcvlib.utils.errors import UserError

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("profile", ["smoke", "quick", "full", "original"])
@pytest.mark.parametrize("chapter", profiles.CHAPTERS)
def test_profiles_are_valid(profile, chapter):
    chosen = profiles.load(profile, chapter)
    if profile in ("full", "quick"):
        assert len(chosen.ablation_seeds) == 5
        assert chapter in ("vae", "gan") or len(chosen.seeds) >= 3


def test_original_has_the_homeworks_settings():
    for chapter, settings in cases("original").items():
        assert settings.items() <= profiles.load("original", chapter).model_dump().items()
    gan = profiles.load("original", "gan")
    assert gan.flip_labels_until == gan.steps


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(("chapter", "changes", "message"), cases("params"))
def test_bad_parameters_are_named(chapter, changes, message):
    with pytest.raises(UserError, match=message):
        profiles.load("quick", chapter, changes)


@pytest.mark.parametrize("text", ["- 1", "a: [", "a: 2001-99-99", None])
def test_a_damaged_or_unknown_profile_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    if text:
        (tmp_path / "quick").mkdir()
        (tmp_path / "quick" / "vae.yaml").write_text(text)
    with pytest.raises(UserError, match=r"(cannot read .*|quick/)vae\.yaml"):
        profiles.load("quick", "vae")


CASES = [("vae", "'latent_dim': 1}"), ("gan", "identical"), ("pixelda", "dark")]
CASES += [("vae", "identical")]


@pytest.mark.parametrize(("chapter", "case"), CASES)
def test_the_least_settings_and_equal_pictures_are_shown(chapter, case):
    """A few cases of the walk over all settings, which takes about an hour."""
    command = [sys.executable, "-m", "benchmarks.walk", chapter, "--only", case]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    output = subprocess.check_output(command, cwd=paths.ROOT, env=environment, text=True)
    assert not {"REFUSED", "PROSE"} & set(output.split())


# --- what is read -----------------------------------------------------------------------------


def test_yaml_number_without_a_point_is_a_number():
    assert profiles.load("quick", "vae", {"kld_weight": "1e-4"}).kld_weight == 1e-4


@pytest.mark.parametrize(("chapter", "used"), [("gan", "vae"), ("pixelda", "dann")])
def test_parameters_do_not_change_with_the_disk(tmp_path, monkeypatch, chapter, used):
    """Otherwise a run could be trained with values that its name does not cover."""
    shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    chosen = profiles.load("smoke", chapter)
    before = getattr(chosen, used)
    file = tmp_path / "params" / "smoke" / f"{used}.yaml"
    file.write_text(f"{file.read_text()}\nlearning_rate: 0.5\n")
    assert getattr(chosen, used) == before
    assert getattr(profiles.load("smoke", chapter), used).learning_rate == 0.5


@pytest.mark.parametrize("chapter", profiles.CHAPTERS)
def test_paths_are_absolute_as_soon_as_they_are_read(chapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = profiles.load("smoke", chapter, {"data": "folder:mine"})
    monkeypatch.chdir("/")
    assert chosen.data == chosen.replace().data == f"folder:{tmp_path / 'mine'}"
    assert chosen.model_dump()["runs_dir"] == "runs"  # the project's; portable as written down
    elsewhere = chosen.replace(runs_dir=str(tmp_path))
    assert elsewhere.runs_dir == elsewhere.model_dump()["runs_dir"] == str(tmp_path)
    for theirs in elsewhere.uses.values():
        assert (theirs.runs_dir, theirs.data) == (str(tmp_path), chosen.data)


# --- notebooks --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_cell_holds_quick_and_papermill_documents_it(path):
    chapter, params = list(profiles.CHAPTERS.items())[int(path.name[0]) - 1]
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    remedy = f"run: python -m dlcvlib params {chapter} --write-notebooks"
    assert profiles.parameters_cell(chapter) in cells, remedy
    documented = {n: found["help"] for n, found in papermill.inspect_notebook(str(path)).items()}
    assert documented == {name: f.description for name, f in params.model_fields.items()}
