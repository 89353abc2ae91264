"""Any typed text or file content is understood, or one clear error says what is wrong."""

import csv
import io
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcvlib.config import profiles
from dlcvlib.config.schema import PAIRS
from dlcvlib.data import folder
from dlcvlib.utils.errors import UserError

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("fixed")

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
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
    assert found[chapter] == {name: value}
    assert not any(found[other] for other in profiles.CHAPTERS if other != chapter)


@given(st.text(max_size=60))
def test_any_assignment_is_understood_or_refused(text):
    found = attempt(lambda: profiles.parse_assignments([text]), text)
    assert found is None or sum(map(len, found.values())) == 1


# --- parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("chapter", profiles.CHAPTERS)
@given(data=st.data())
def test_any_value_is_accepted_or_named(chapter, data):
    fields = profiles.CHAPTERS[chapter].model_fields
    name = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(PLAIN)
    chosen = attempt(
        lambda: profiles.load("smoke", chapter, {name: value}), "profile smoke, chapter"
    )
    assert chosen is None or type(chosen).parse(chosen.model_dump(), "again") == chosen


@given(st.lists(st.sampled_from(PAIRS) | st.text(max_size=15), max_size=4))
def test_pairs(pairs):
    good = bool(pairs) and set(pairs) <= set(PAIRS) and len(set(pairs)) == len(pairs)
    chosen = attempt(lambda: profiles.load("smoke", "dann", {"pairs": pairs}), "pair")
    assert (chosen is not None) == good
    assert not good or chosen.pairs == pairs


# --- image lists ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with three files, and the list beside it."""
    folder = tmp_path_factory.mktemp("images") / "train"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").touch()
    return folder


COLUMNS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1
).filter(lambda name: name.strip() == name and name not in ("image_name", ""))


@given(
    st.lists(COLUMNS, max_size=4, unique=True),
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=3, max_size=3),
)
def test_a_good_list_comes_back(images, names, values):
    path = images.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [[f"{n}.png", *row[: len(names)]] for n, row in enumerate(values)]
        csv.writer(file).writerows([["image_name", *names], *rows])
    table = folder.read_list(path, images, range(2))
    assert list(table) == names
    assert [Path(file).name for file in table.index] == ["0.png", "1.png", "2.png"]
    assert table.to_numpy().tolist() == [row[: len(names)] for row in values]


CELLS = st.sampled_from(
    ["0.png", "1.png", "2.png", "../x.png", "", "0", "1", "7", "-1", "1.5", "x"]
)


@given(st.lists(st.lists(CELLS | st.text(max_size=6), max_size=4), max_size=5))
def test_any_list_is_read_or_refused(images, rows):
    path = images.with_suffix(".csv")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["image_name", "label"], *rows])
    path.write_text(text.getvalue(), encoding="utf-8", errors="replace", newline="")
    table = attempt(lambda: folder.read_list(path, images, range(10), ["label"]), str(path))
    if table is not None:
        assert table["label"].between(0, 9).all()
        assert all(Path(file).parent == images and Path(file).is_file() for file in table.index)


@given(st.binary(max_size=80))
def test_any_bytes_for_a_list_are_read_or_refused(images, content):
    path = images.with_suffix(".csv")
    path.write_bytes(content)
    attempt(lambda: folder.read_list(path, images, range(2)), str(path))
    attempt(lambda: folder.read_list(path, images, range(2), ["label"]), str(path))
