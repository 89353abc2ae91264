"""Hostile input: nothing is unpickled, executed, or read from outside of the given folders."""

import json
import pickle
import re
import shutil
import struct

import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from conftest import write_csv

from dlcvlib.config import paths, profiles
from dlcvlib.data.faces import load_faces
from dlcvlib.evaluation import features
from dlcvlib.methods import vae
from dlcvlib.training.runs import train_or_load
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError


class Payload:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w')",)


@pytest.fixture
def malicious(tmp_path):
    """A pickle that leaves a file when it is loaded, and the check that it was not."""
    mark = tmp_path / "was-here"
    pickled = pickle.dumps(Payload(mark))
    pickle.loads(pickled)
    mark.unlink()  # it would work
    yield pickled
    assert not mark.exists()


# --- pickles in every place that is read --------------------------------------------------------


@pytest.fixture
def train(smoke, faces):
    """Train a small model in a folder of runs, or load it."""
    settings = smoke(steps=4, precision="fp32").settings
    return lambda folder: train_or_load(vae.VAE, settings, faces, folder)


def test_in_each_file_of_a_run(train, tmp_path, malicious):
    run = train(tmp_path)
    for path in sorted(run.folder.iterdir()):
        path.write_bytes(malicious)
        assert train(tmp_path).folder == run.folder
        assert path.read_bytes() != malicious


def test_in_a_run_with_matching_hashes(train, tmp_path, malicious, capsys):
    """Hash and seal are valid: the attacker controlled the whole folder."""
    run = train(tmp_path)
    model = run.folder / "model.safetensors"
    good = model.read_bytes()
    model.write_bytes(malicious)
    files = run.provenance["files"] | {model.name: storage.sha256(model)}
    storage.write_sealed(run.folder / "provenance.json", run.provenance | {"files": files})
    train(tmp_path)
    assert "is refused" in capsys.readouterr().out
    assert model.read_bytes() == good


def test_in_a_checkpoint(train, tmp_path, malicious):
    folder = storage.make_dir(tmp_path / "runs" / train(tmp_path / "other").name)
    checkpoint = folder / "checkpoint-2.safetensors"
    checkpoint.write_bytes(malicious)
    pointer = {"file": checkpoint.name, "sha256": storage.sha256(checkpoint), "step": 2}
    storage.write_sealed(folder / "checkpoint.json", pointer)
    assert len(train(tmp_path / "runs").history) == 4


def test_in_prepared_data(smoke, tmp_path, malicious):
    chosen = smoke(runs_dir=str(tmp_path))
    before = load_faces(chosen).fingerprint
    paths = sorted(tmp_path.glob("data/faces-*/images.[js]*"))
    assert [path.suffix for path in paths] == [".json", ".safetensors"]
    for path in paths:
        path.write_bytes(malicious)
        assert load_faces(chosen).fingerprint == before


@pytest.mark.parametrize("name", ["face/train/0.png", "face/train.csv"])
def test_in_a_data_folder(smoke, folder, tmp_path, malicious, name):
    (folder / name).write_bytes(malicious)
    runs = str(tmp_path / "runs")
    chosen = smoke(data=f"folder:{folder}", runs_dir=runs, validation_size=2)
    with pytest.raises(UserError, match=name):
        load_faces(chosen)


@pytest.mark.usefixtures("unrendered")
def test_in_an_executed_notebook_and_its_record(small, malicious):
    small.write(p1_1=["1 + 1"])
    assert small.make()
    (task,) = small.plan()
    for path in (task.target, task.record):
        path.write_bytes(malicious)
        assert small.plan()[0].reasons
        assert small.make()
        assert not small.plan()[0].reasons


# --- YAML and assignments cannot reach code -----------------------------------------------------

CALL = "!!python/object/apply:builtins.open [{!r}, 'w']"


def test_yaml_tags_run_no_code(tmp_path):
    call, mark = CALL.format(str(tmp_path / "was-here")), tmp_path / "was-here"
    yaml.unsafe_load(call).close()
    assert mark.exists()  # it would
    mark.unlink()
    with pytest.raises(UserError, match="a value in YAML"):
        profiles.parse_assignments([f"vae.data={call}"])
    assert not mark.exists()


@pytest.mark.parametrize("tagged", [True, False])
def test_in_a_parameters_file(tmp_path, monkeypatch, malicious, tagged):
    call = f"data: {CALL.format(str(tmp_path / 'was-here'))}\n"
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "vae.yaml").write_bytes(call.encode() if tagged else malicious)
    with pytest.raises(UserError, match=r"quick/vae\.yaml"):
        profiles.load("quick", "vae")


# --- safetensors --------------------------------------------------------------------------------


def safetensors(header, body=b"\0" * 16, length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(begin, end):
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]}


META = {"__metadata__": {"meta": "{}"}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": tensor(0, 8)} | META, length=2**62),
        safetensors({"a": tensor(0, 8), "b": tensor(4, 12)} | META),
        safetensors({"a": tensor(0, 2**40)} | META),
        safetensors({"a": tensor(0, 8)} | META, body=b""),
        safetensors({"a": tensor(0, 8)}, body=b"\0" * 8),
        safetensors({"a": tensor(0, 8), "__metadata__": {"meta": "{"}}, body=b"\0" * 8),
        safetensors(b"[" * 10_000),
        b"",
    ],
    ids=["oversized", "overlapping", "outside", "no body", "no meta", "bad meta", "deep", "empty"],
)
def test_a_file_with_a_false_header_is_refused(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(storage.DamagedFileError, match="refused"):
        storage.read_tensors(path, storage.sha256(path))


def test_the_form_above_is_valid(tmp_path):
    """Otherwise the tests above could not fail."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"a": tensor(0, 8)} | META, body=b"\0" * 8))
    tensors, meta = storage.read_tensors(path, storage.sha256(path))
    assert torch.equal(tensors["a"], torch.zeros(2))
    assert meta == {}


# --- text from data -----------------------------------------------------------------------------

SYNTAX = "<script>alert(1)</script> #panic() $(touch x) `y` *z* ![a](b.png) [c](http://d) | a"


def test_attribute_names_and_folders_are_text(smoke, tmp_path, folder, capsys):
    """A column's name with HTML, Typst and shell syntax comes through the whole report as text."""
    from dlcvlib.report.cli import main

    for split in ("train", "test"):
        place = folder / "face" / split
        for i in range(6, 80):
            shutil.copy(place / f"{i % 6}.png", place / f"{i}.png")
        rows = [(f"{i}.png", i % 2) for i in range(80)]
        write_csv(place.with_suffix(".csv"), ["image_name", SYNTAX], rows)
    strange = folder.rename(tmp_path / "<b>#x $(y)")
    arguments = ["report", "--profile", "smoke", "--only", "1-5", "--data", f"folder:{strange}"]
    arguments += ["--set", "vae.validation_size=32", "--set", "vae.tsne_perplexity=5"]
    arguments += ["--out", str(tmp_path / "out"), "--runs-dir", str(tmp_path / "runs")]
    status = main(arguments)
    output = capsys.readouterr()
    assert status == 0, output.err
    page = BeautifulSoup((tmp_path / "out" / "report.html").read_text(), "html.parser")
    assert page.find("script") is None
    captions = [" ".join(c.get_text().split()) for c in page.select("figcaption, caption, p")]
    assert sum(SYNTAX in caption for caption in captions) > 3
    assert not page.find("a", href=re.compile("^http"))
    policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'")
    assert not re.search("(connect|script)-src", policy)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_in_place_of_inceptions_weights(monkeypatch, tmp_path, malicious, ending):
    """The pickle that torchvision downloads is passed over, a damaged file is named."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = (tmp_path / "hub" / "checkpoints" / features.INCEPTION).with_suffix(ending)
    file.parent.mkdir(parents=True)
    file.write_bytes(malicious)
    if ending == ".pth":
        assert features.inception() is None
    else:
        with pytest.raises(UserError, match=features.INCEPTION):
            features.inception()
