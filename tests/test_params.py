"""Parameters: profiles, ranges, names, and that notebooks and profiles agree."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dlcvlib.config import paths, profiles, schema
from dlcvlib.config.schema import VAEParams
from dlcvlib.utils.errors import UserError

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("profile", schema.PROFILES)
@pytest.mark.parametrize("chapter", profiles.CHAPTERS)
def test_profiles_are_valid(profile, chapter):
    profiles.load(profile, chapter)


def test_original_is_the_homeworks_setting():
    original = profiles.load("original", "vae")
    assert original.latent_dim == 1024
    assert original.batch_size == 64
    assert original.learning_rate == 5e-4
    assert original.adam_betas == [0.5, 0.999]
    assert original.weight_decay == 0
    assert (original.horizontal_flip, original.vertical_flip) == (True, False)
    assert (original.activation, original.output) == ("leaky_relu", "sigmoid")
    assert original.learning_rate_schedule == "halvings"
    assert original.kld_weight == 1
    assert (original.decoder_kernel, original.normalise_heads, original.normalise_output) == (
        2,
        True,
        True,
    )


def test_original_gan_is_the_homeworks_setting():
    original = profiles.load("original", "gan")
    assert (original.latent_dim, original.batch_size, original.channels) == (100, 64, 64)
    assert (original.learning_rate, original.adam_betas) == (1e-4, [0.5, 0.999])
    assert (original.loss, original.discriminator_norm) == ("bce", "batch")
    assert (original.ema_decay, original.augmentation) == (0, [])
    assert (original.kernel, original.soft_labels) == (5, [1, 1])
    assert (original.flip_labels, original.flip_labels_until) == (0.1, original.steps)
    assert original.learning_rate_schedule == "constant"


def test_full_has_five_seeds_and_quick_two():
    for profile, count in (("full", 5), ("quick", 2)):
        for chapter in profiles.CHAPTERS:
            chosen = profiles.load(profile, chapter)
            seeds = chosen.ablation_seeds if chapter in ("vae", "gan") else chosen.seeds
            assert len(seeds) == count


def test_the_gan_is_compared_with_the_vae_that_chapter_1_trains():
    changes = {"vae_changes": {"kld_weight": 0.5}, "drawn_train": 77, "vae_profile": "smoke"}
    gan = profiles.load("quick", "gan", changes)
    vae = profiles.load("smoke", "vae", {"kld_weight": 0.5})
    assert gan.vae.settings == vae.settings
    assert gan.vae.drawn_train == 77
    with pytest.raises(UserError, match="unknown parameter 'kdl'"):
        profiles.load("quick", "gan", {"vae_changes": {"kdl": 1}})


@pytest.mark.parametrize(
    ("chapter", "changes", "message"),
    [
        ("vae", {"steps": True}, "'steps': True is a switch"),
        ("vae", {"kld_weight": False}, "'kld_weight': False is a switch"),
        ("vae", {"ablation_seeds": [True]}, "'ablation_seeds': .*True.* is a switch"),
        ("vae", {"steps": True, "latent_dim": 0}, "steps.*; .*latent_dim"),
        ("vae", {"ablation_seeds": [0, 0]}, "named twice"),
        ("vae", {"kld_weights": [0.1, 0.1]}, "named twice"),
        ("gan", {"ablation_seeds": [1, 1]}, "named twice"),
        ("dann", {"seeds": [2, 2]}, "named twice"),
    ],
)
def test_switches_for_numbers_and_doubles_are_refused(chapter, changes, message):
    with pytest.raises(UserError, match=message):
        profiles.load("quick", chapter, changes)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_cell_holds_quick(path):
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    chapter = list(profiles.CHAPTERS)[int(path.name[0]) - 1]
    assert cell.source == profiles.parameters_cell(chapter), (
        f"run: python -m dlcvlib params {chapter} --write-notebooks"
    )


@pytest.mark.parametrize(("number", "chapter"), list(enumerate(profiles.CHAPTERS, 1)))
def test_papermill_documents_every_parameter(number, chapter):
    notebook = next(path for path in NOTEBOOKS if path.name.startswith(str(number)))
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(notebook)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, field in profiles.CHAPTERS[chapter].model_fields.items():
        assert f"{name}:" in text
        assert field.description.split()[0] in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kld_wieght": 1}, "did you mean 'kld_weight'"),
        ({"steps": 0}, "'steps'"),
        ({"learning_rate": -1}, "'learning_rate'"),
        ({"output": "softmax"}, "'output'"),
        ({"kld_weight": float("nan")}, "'kld_weight'"),
        ({"adam_betas": [0.5]}, "'adam_betas'"),
        ({"seed": "one"}, "'seed'"),
    ],
)
def test_bad_parameters_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        profiles.load("quick", "vae", changes)


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError, match=r"steps.*latent_dim"):
        profiles.load("quick", "vae", {"steps": 0, "latent_dim": 0})


def test_yaml_number_without_a_point_is_a_number():
    assert profiles.load("quick", "vae", {"kld_weight": "1e-4"}).kld_weight == 1e-4


def test_unknown_profile():
    with pytest.raises(UserError, match="smoke, quick, full, original"):
        profiles.load("fast", "vae")


def test_from_notebook_refuses_what_papermill_only_warns_of():
    namespace = profiles.load("quick", "vae").model_dump() | {"In": [], "_hidden": 1, "kld": 2}
    with pytest.raises(UserError, match="unknown parameter 'kld'"):
        VAEParams.from_notebook(namespace)


def test_from_notebook_may_run_again_after_later_cells():
    namespace = profiles.load("quick", "vae").model_dump()
    VAEParams.from_notebook(namespace)
    namespace |= {"gap": 0.5, "steps": 7}
    assert VAEParams.from_notebook(namespace).steps == 7


def test_a_notebook_in_its_own_folder_finds_what_the_report_has_trained(monkeypatch):
    monkeypatch.chdir(paths.NOTEBOOKS)
    found = VAEParams.from_notebook(profiles.load("quick", "vae").model_dump())
    assert Path(found.runs_dir).absolute() == paths.ROOT / "runs"


def test_a_notebook_elsewhere_keeps_its_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    VAEParams.from_notebook(profiles.load("quick", "vae").model_dump())
    assert Path.cwd() == tmp_path


def test_assignments():
    changes = profiles.parse_assignments(["vae.kld_weight=0.5", "vae.channels=[4, 8]"])
    assert changes["vae"] == {"kld_weight": 0.5, "channels": [4, 8]}


@pytest.mark.parametrize("text", ["kld_weight=1", "vae.kld_weight", "cat.x=1", "vae.x=[1", "=", ""])
def test_bad_assignments_are_shown(text):
    with pytest.raises(UserError, match="--set"):
        profiles.parse_assignments([text])
