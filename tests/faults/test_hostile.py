"""Hostile input: nothing is unpickled, executed, or read from outside of the given folders."""

import json
import pickle
import struct

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import write_pictures

from dlcvlib.config import paths, profiles
from dlcvlib.data.faces import load_faces
from dlcvlib.evaluation import features
from dlcvlib.report.cli import main
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError


@pytest.fixture
def malicious(tmp_path):
    """A pickle that leaves a file when it is loaded, and the check that it was not."""
    mark = tmp_path / "was-here"
    command = f"open({str(mark)!r}, 'w')"
    pickled = f"cbuiltins\nexec\n(S{command!r}\ntR.".encode()
    pickle.loads(pickled)
    mark.unlink()  # it would work
    yield pickled
    assert not mark.exists()


# --- pickles in every place that is read --------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_in_each_file_that_is_read_again(small, params, train, tmp_path, malicious):
    small.write(p1_1=["1 + 1"])
    makers = {
        "runs/vae-*/*": lambda: train("vae", steps=4),
        "runs/data/faces-*/*.[jsu]*": lambda: load_faces(params("vae")),
        "report/notebooks/*.*": small.make,
    }
    for pattern, make in makers.items():
        assert make()
        paths = sorted(tmp_path.glob(pattern))
        assert len(paths) > 1
        for path in paths:
            path.write_bytes(malicious)
            assert make()
            assert path.read_bytes() != malicious


def test_where_the_hashes_match(train, tmp_path, malicious, capsys):
    """Hash and seal are valid: the attacker controlled the whole folder."""
    run = train("vae", steps=4)
    model = run.folder / "model.safetensors"
    good = model.read_bytes()
    model.write_bytes(malicious)
    pickled = storage.sha256(model)
    files = run.provenance["files"] | {model.name: pickled}
    storage.write_sealed(run.folder / "provenance.json", run.provenance | {"files": files})
    other = storage.make_dir(tmp_path / "unfinished" / run.name)
    (other / "checkpoint-2.safetensors").write_bytes(malicious)
    pointer = {"file": "checkpoint-2.safetensors", "sha256": pickled, "step": 2}
    storage.write_sealed(other / "checkpoint.json", pointer)
    for folder in ("runs", "unfinished"):
        assert (train("vae", folder, steps=4).folder / model.name).read_bytes() == good
        assert "is refused" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["face/train/0.png", "face/train.csv"])
def test_in_a_data_folder(params, folder, malicious, name):
    (folder / name).write_bytes(malicious)
    with pytest.raises(UserError, match=name):
        load_faces(params("vae", data=f"folder:{folder}", validation_size=2))


# --- YAML and assignments cannot reach code -----------------------------------------------------


def test_yaml_runs_no_code(tmp_path, monkeypatch, malicious):
    mark = tmp_path / "was-here"
    call = f"!!python/object/apply:builtins.open [{str(mark)!r}, 'w']"
    yaml.unsafe_load(call).close()
    mark.unlink()  # it would
    with pytest.raises(UserError, match="a value in YAML"):
        profiles.parse_assignments([f"vae.data={call}"])
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    (tmp_path / "quick").mkdir()
    for content in (f"data: {call}\n".encode(), malicious):
        (tmp_path / "quick" / "vae.yaml").write_bytes(content)
        with pytest.raises(UserError, match=r"quick/vae\.yaml"):
            profiles.load("quick", "vae")


# --- safetensors --------------------------------------------------------------------------------


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def safetensors(length=None, **changes):
    """A file with a tensor of two zeros, valid but for some changes of its header."""
    header = json.dumps({"a": TENSOR, "__metadata__": {"meta": "{}"}} | changes).encode()
    return struct.pack("<Q", length or len(header)) + header + bytes(8)


FALSE = {
    "oversized": safetensors(length=2**62),
    "overlapping": safetensors(b=TENSOR),
    "outside": safetensors(a=TENSOR | {"data_offsets": [0, 2**40]}),
    "no meta": safetensors(__metadata__=None),
    "other meta": safetensors(__metadata__={"other": "{}"}),
    "bad meta": safetensors(__metadata__={"meta": "{"}),
    "empty": b"",
}


@pytest.mark.parametrize("content", FALSE.values(), ids=FALSE)
def test_a_file_with_a_false_header_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors())
    assert storage.read_tensors(path, storage.sha256(path))[0]["a"].tolist() == [0, 0]
    path.write_bytes(content)
    with pytest.raises(storage.DamagedFileError, match="refused"):
        storage.read_tensors(path, storage.sha256(path))


# --- text from data -----------------------------------------------------------------------------

SYNTAX = "<script>alert(1)</script> #panic() $(touch x) `y` *z* ![a](b.png) [c](http://d) | a"


def test_attribute_names_and_folders_are_text(tmp_path, capsys):
    """A column's name with HTML, Typst and shell syntax comes through the whole report as text."""
    strange, shades = tmp_path / "<b>#x $(y)", [5 + n % 10 for n in range(80)]
    for split in ("train", "test"):
        write_pictures(strange / "face" / split, shades, **{SYNTAX: lambda shade: shade % 2})
    arguments = ["report", "--profile=smoke", "--only=1-5", f"--data=folder:{strange}"]
    arguments += ["--set=vae.validation_size=32", "--set=vae.tsne_perplexity=5"]
    arguments += [f"--out={tmp_path / 'out'}", f"--runs-dir={tmp_path / 'runs'}"]
    assert main(arguments) == 0, capsys.readouterr().err
    page = BeautifulSoup((tmp_path / "out" / "report.html").read_text(), "html.parser")
    assert not page.select("main script:not([type='application/json'])")
    assert all(link.find_parent(id="refs") for link in page.select("a[href^=http]"))
    captions = [" ".join(c.get_text().split()) for c in page.select("figcaption, caption, p")]
    assert sum(SYNTAX in caption for caption in captions) > 2


def test_in_place_of_inceptions_weights(monkeypatch, tmp_path, malicious):
    """The pickle that torchvision downloads is passed over, a damaged file is named."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / features.INCEPTION
    file.parent.mkdir(parents=True)
    file.with_suffix(".pth").write_bytes(malicious)
    assert features.inception() is None
    file.with_suffix(".safetensors").write_bytes(malicious)
    with pytest.raises(UserError, match=features.INCEPTION):
        features.inception()
