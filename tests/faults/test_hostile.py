"""Hostile input: nothing is unpickled, executed, or read from outside of the given folders."""

import json
import pickle
import shutil
import struct

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import write_csv

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


@pytest.fixture
def made(request, small, smoke, train, tmp_path):
    """How something is made, or read again, and the files that it is then read from."""
    if request.param == "run":
        return lambda: train("vae", steps=4), "runs/vae-*/*"
    if request.param == "prepared data":
        chosen = smoke(runs_dir=str(tmp_path / "runs"))
        return lambda: load_faces(chosen), "runs/data/faces-*/images.[js]*"
    small.write(p1_1=["1 + 1"])
    return small.make, "report/notebooks/*.*"


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("made", ["run", "prepared data", "notebook"], indirect=True)
def test_in_each_file_that_is_read_again(made, tmp_path, malicious):
    make, pattern = made
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
def test_in_a_data_folder(smoke, folder, tmp_path, malicious, name):
    (folder / name).write_bytes(malicious)
    runs = str(tmp_path / "runs")
    chosen = smoke(data=f"folder:{folder}", runs_dir=runs, validation_size=2)
    with pytest.raises(UserError, match=name):
        load_faces(chosen)


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


def safetensors(header, body=b"\0" * 8, length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(begin, end):
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]}


META = {"__metadata__": {"meta": "{}"}}
FALSE = {
    "oversized": safetensors({"a": tensor(0, 8)} | META, length=2**62),
    "overlapping": safetensors({"a": tensor(0, 8), "b": tensor(4, 12)} | META, b"\0" * 12),
    "outside": safetensors({"a": tensor(0, 2**40)} | META),
    "no body": safetensors({"a": tensor(0, 8)} | META, body=b""),
    "no meta": safetensors({"a": tensor(0, 8)}),
    "other meta": safetensors({"a": tensor(0, 8), "__metadata__": {"other": "{}"}}),
    "bad meta": safetensors({"a": tensor(0, 8), "__metadata__": {"meta": "{"}}),
    "deep": safetensors(b"[" * 10_000),
    "empty": b"",
}


@pytest.mark.parametrize("content", FALSE.values(), ids=FALSE)
def test_a_file_with_a_false_header_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"a": tensor(0, 8)} | META))  # of this form, but valid
    assert storage.read_tensors(path, storage.sha256(path))[0]["a"].tolist() == [0, 0]
    path.write_bytes(content)
    with pytest.raises(storage.DamagedFileError, match="refused"):
        storage.read_tensors(path, storage.sha256(path))


# --- text from data -----------------------------------------------------------------------------

SYNTAX = "<script>alert(1)</script> #panic() $(touch x) `y` *z* ![a](b.png) [c](http://d) | a"


def test_attribute_names_and_folders_are_text(smoke, tmp_path, folder, capsys):
    """A column's name with HTML, Typst and shell syntax comes through the whole report as text."""
    for split in ("train", "test"):
        place = folder / "face" / split
        for i in range(6, 80):
            shutil.copy(place / f"{i % 6}.png", place / f"{i}.png")
        rows = [(f"{i}.png", i % 2) for i in range(80)]
        write_csv(place.with_suffix(".csv"), ["image_name", SYNTAX], rows)
    strange = folder.rename(tmp_path / "<b>#x $(y)")
    arguments = ["report", "--profile=smoke", "--only=1-5", f"--data=folder:{strange}"]
    arguments += ["--set=vae.validation_size=32", "--set=vae.tsne_perplexity=5"]
    arguments += [f"--out={tmp_path / 'out'}", f"--runs-dir={tmp_path / 'runs'}"]
    assert main(arguments) == 0, capsys.readouterr().err
    page = BeautifulSoup((tmp_path / "out" / "report.html").read_text(), "html.parser")
    assert not page.select("script, a[href^=http]")
    captions = [" ".join(c.get_text().split()) for c in page.select("figcaption, caption, p")]
    assert sum(SYNTAX in caption for caption in captions) > 3


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
