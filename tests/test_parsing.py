"""Any typed text or file content is understood, or one clear error says what is wrong."""

import re
import string
import unicodedata
from pathlib import Path

import pytest
import yaml
from conftest import cases, write_csv
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlcvlib.config import profiles
from dlcvlib.data import folder
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("fixed")

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
PLAIN = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(), LEAVES, max_size=3)
NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=20)


def attempt(function, named):
    """What a function returns, or None if it refuses with an error that names the cause."""
    try:
        return function()
    except UserError as error:
        text = str(error)
    assert named in text
    return None


# --- assignments ------------------------------------------------------------------------------


@given(st.sampled_from(list(profiles.CHAPTERS)), NAMES, st.integers() | st.booleans() | NAMES)
def test_an_assignment_is_parsed_as_yaml(chapter, name, value):
    text = yaml.safe_dump(value).removesuffix("...\n").strip()
    found = profiles.parse_assignments([f"{chapter}.{name}={text}"])
    assert found == {key: {} for key in profiles.CHAPTERS} | {chapter: {name: value}}


@given(st.text(max_size=60))
@example("vae.kld_weight")
@example("cat.x=1")
@example("vae.x=[1")
def test_any_assignment_is_understood_or_refused(text):
    expected = f"--set {text}: expected CHAPTER.NAME=VALUE"
    found = attempt(lambda: profiles.parse_assignments([text]), expected)
    assert found is None or sum(map(len, found.values())) == 1


# --- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", profiles.CHAPTERS)
@given(data=st.data())
def test_any_value_is_accepted_or_named(chapter, data):
    name = data.draw(st.sampled_from(sorted(profiles.CHAPTERS[chapter].model_fields)))
    value = data.draw(PLAIN)
    chosen = attempt(lambda: profiles.load("smoke", chapter, {name: value}), name)
    assert chosen is None or type(chosen).parse(chosen.model_dump(), "again") == chosen


# --- image lists ------------------------------------------------------------------------------


def with_files(folder, names):
    """A folder for the pictures of a list, and the list's path."""
    for name in names:
        storage.make_dir((folder / name).parent)
        (folder / name).touch()
    return folder, folder.with_suffix(".csv")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with three files."""
    return with_files(tmp_path_factory.mktemp("images") / "train", ["0.png", "1.png", "2.png"])[0]


COLUMNS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1
).filter(lambda name: name.strip() == name and name not in ("image_name", ""))


@given(st.lists(COLUMNS, max_size=4, unique=True))
def test_columns_of_any_name_come_back(images, names):
    path = images.with_suffix(".csv")
    rows = [[f"{n}.png", *((n + k) % 2 for k in range(len(names)))] for n in range(3)]
    write_csv(path, ["image_name", *names], rows)
    table, _ = folder.read_list(path, images, range(2))
    assert list(table) == names
    assert table.reset_index().to_numpy().tolist() == [[f"{images}/{n}", *r] for n, *r in rows]


CELLS = st.sampled_from(["0.png", "1.png", "2.png", "../x.png", "", "0", "7", "-1", "1.5", "x"])


@given(st.lists(st.lists(CELLS | st.text(max_size=6), max_size=4), max_size=5))
def test_any_list_is_read_or_refused(images, rows):
    path = images.with_suffix(".csv")
    write_csv(path, ["image_name", "label"], rows)
    found = attempt(lambda: folder.read_list(path, images, range(10), ["label"]), str(path))
    if found is not None:
        table, _ = found
        assert table["label"].between(0, 9).all()
        assert all(Path(file).parent == images and Path(file).is_file() for file in table.index)


@given(st.binary(max_size=80))
def test_any_bytes_for_a_list_are_read_or_refused(images, content):
    path = images.with_suffix(".csv")
    path.write_bytes(content)
    attempt(lambda: folder.read_list(path, images, range(2)), str(path))
    attempt(lambda: folder.read_list(path, images, range(2), ["label"]), str(path))


@pytest.mark.parametrize("case", cases("lists"))
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_what_people_write_is_understood(tmp_path, case, form):
    """Also where the files' names are in another normal form, which is noted as well."""
    names = [unicodedata.normalize(form, n) for n in ("0.png", "1.PNG", "a/2.png", "\u00e9.png")]
    place, path = with_files(tmp_path / "face" / "train", names)
    path.write_text(case["list"], encoding="utf-8", newline="")
    table, notes = folder.read_list(path, place, range(2), zero=-1)
    assert table.to_dict() == {"Male": {f"{place}/{n}": i % 2 for i, n in enumerate(names)}}
    if form == "NFC":
        assert bool(notes) == ("note" in case)
        assert re.search(case.get("note", ""), " ".join(notes)), notes


@pytest.mark.parametrize("name", ["2.png", "a/0.png", "../test/0.png", "/0.png", "x", "x.gif", ""])
def test_names_without_a_single_meaning_are_refused(tmp_path, name):
    files = "0.png", "x.png", "x.jpg", "X.gif", "x.GIF"
    place, path = with_files(tmp_path / "train", files)
    path.write_text(f"image_name,Male\n0.png,1\n{name},0\n")
    with pytest.raises(UserError, match="names files that are not in"):
        folder.read_list(path, place, range(2))
