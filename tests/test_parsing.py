"""Any typed text or file content is understood, or one clear error says what is wrong."""

import re
import string
import unicodedata
from pathlib import Path

import pytest
import yaml
from conftest import write_csv
from hypothesis import given, settings
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
def test_any_assignment_is_understood_or_refused(text):
    found = attempt(lambda: profiles.parse_assignments([text]), text)
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


@given(
    st.lists(COLUMNS, max_size=4, unique=True),
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=3, max_size=3),
)
def test_a_good_list_comes_back(images, names, values):
    path, values = images.with_suffix(".csv"), [row[: len(names)] for row in values]
    rows = [[f"{n}.png", *row] for n, row in enumerate(values)]
    write_csv(path, ["image_name", *names], rows)
    table, _ = folder.read_list(path, images, range(2))
    assert list(table) == names
    assert list(table.index) == [f"{images}/{row[0]}" for row in rows]
    assert table.to_numpy().tolist() == values


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


FILES = ["0.png", "1.PNG", "a/2.png", "\u00e9.png"]
"""Of files, whose attributes in the lists below are 0, 1, 0 and 1."""
PLAIN_LIST = "image_name,Male\n0.png,0\n1.PNG,1\na/2.png,0\n\u00e9.png,1\n"


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda text: text, None),
        (lambda text: "\ufeff" + text.replace("\n", "\r\n\r\n"), None),
        (lambda text: text.replace(",0", ",False").replace(",1", ",TRUE"), None),
        (lambda text: text.replace(",", ", "), None),
        (lambda text: text.replace(",", ";"), None),
        (lambda text: text.replace(",", "\t"), None),
        (lambda text: text + ",\n,\n", None),
        (lambda text: text.replace("\n", ";\n").replace(",", ";"), None),
        (lambda text: text.replace("\n", ", ,\n"), None),
        (lambda text: text.replace("\n", ",\n").replace(",\n", ",Note\n", 1), "not read: 'Note'"),
        (lambda text: numbered(text, "", 7), "not read: 'Unnamed: 0'"),
        (lambda text: numbered(text, "Unnamed: 0.1", 0), "not read: 'Unnamed: 0.1'"),
        (lambda text: numbered(text, "index", 0), "not read: 'index'"),
        (lambda text: numbered(text, "id", 1), "not read: 'id'"),
        (lambda text: text.replace(",0", ",-1"), "-1 stands for 0: 'Male'"),
        (lambda text: "4\nMale \n" + text[16:].replace(",1", "  1").replace(",0", " -1"), "-1 st"),
        (lambda text: text.replace("image_name", "image_id"), "'image_id' is taken for image_name"),
        (lambda text: text.replace("image_name", ""), "'Unnamed: 0' is taken for image_name"),
        (lambda text: prefixed(text, "./"), "4 .*'./0.png' for '0.png'"),
        (lambda text: prefixed(text, "face\\train\\"), "4 names in"),
        (lambda text: prefixed(text, "/home/me/data/face/train/"), "4 names in"),
        (lambda text: prefixed(text, "../train/"), "4 names in"),
        (lambda text: text.replace(".png", "").replace(".PNG", ""), "4 names .*'0' for '0.png'"),
        (lambda text: text.replace("PNG", "png"), "1 names .*'1.png' for '1.PNG'"),
        (lambda text: text.replace("\u00e9", "e\u0301"), "1 names in"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_what_people_write_is_understood(tmp_path, change, note, form):
    names = [unicodedata.normalize(form, name) for name in FILES]
    place, path = with_files(tmp_path / "face" / "train", names)
    text = change(unicodedata.normalize(form, PLAIN_LIST))
    path.write_text(text, encoding="utf-8", newline="")
    table, notes = folder.read_list(path, place, range(2), zero=-1)
    assert table.to_dict() == {"Male": {f"{place}/{n}": i % 2 for i, n in enumerate(names)}}
    if form == "NFC":
        assert bool(notes) == bool(note)
        assert not note or re.search(note, " ".join(notes)), notes


def numbered(text, name, start):
    """A list with an index in front."""
    head, *rows = text.splitlines()
    return "\n".join([f"{name},{head}", *(f"{n},{row}" for n, row in enumerate(rows, start)), ""])


def prefixed(text, prefix):
    """A list with something before each name."""
    return text.replace("\n", f"\n{prefix}").removesuffix(prefix)


@pytest.mark.parametrize("name", ["2.png", "a/0.png", "../test/0.png", "/0.png", "x", "x.gif", ""])
def test_names_without_a_single_meaning_are_refused(tmp_path, name):
    files = "0.png", "x.png", "x.jpg", "X.gif", "x.GIF"
    place, path = with_files(tmp_path / "train", files)
    path.write_text(f"image_name,Male\n0.png,1\n{name},0\n")
    with pytest.raises(UserError, match="names files that are not in"):
        folder.read_list(path, place, range(2))
