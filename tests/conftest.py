"""Fixtures: small faces in memory and on disk, and one smoke report that several tests read."""

import csv
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import nbformat
import numpy as np
import pypdf
import pypdfium2
import pytest
import torch
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from dlcvlib.config import profiles
from dlcvlib.config.schema import AttributeSettings, TrainingSettings
from dlcvlib.data import decode, types
from dlcvlib.data.synthetic import faces as drawn_faces
from dlcvlib.methods import adamatch, attributes, classifier, dann, dcgan, pixelda, vae
from dlcvlib.report import cli, execute, uptodate
from dlcvlib.training import loop
from dlcvlib.training.runs import train_or_load

os.environ.setdefault("MPLBACKEND", "agg")
# Precisions that are tried here are tried once, whatever an earlier session or the user has found.
_cache = tempfile.TemporaryDirectory(prefix="dlcv-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ.pop("TORCH_HOME", None)  # with Inception's weights faces would be measured by them

ROOT = Path(__file__).parents[1]
PROBLEMS = sorted(path.name[:3] for path in (ROOT / "notebooks").glob("*.ipynb"))


def cases(name):
    """The cases of a test whose inputs and outcomes are texts, from `tests/cases`."""
    return yaml.safe_load((ROOT / "tests" / "cases" / f"{name}.yaml").read_text("utf-8"))


@pytest.fixture(scope="session")
def faces():
    """A small data set in memory: drawn faces with their attributes."""
    images = torch.empty(60, 3, 64, 64, dtype=torch.uint8)
    columns = decode.fill(partial(drawn_faces.draw_face, 0), range(60), images.numpy(), "faces")
    parts = [
        types.ImageSet(images[a:b], {n: torch.from_numpy(v[a:b]) for n, v in columns.items()})
        for a, b in itertools.pairwise((0, 40, 48, 60))
    ]
    return types.FaceData(*parts, "test faces", synthetic=True, notes=(), fingerprint="f")


@pytest.fixture
def folder(tmp_path):
    """Faces in the homework's layout: shades from 5, odd ones male, multiples of 3 young.

    Picture 1 of each split is not square, 2 is grey.
    """
    for split, count in (("train", 12), ("test", 6)):
        place, shades = tmp_path / "data" / "face" / split, range(5, 5 + count)
        write_pictures(place, shades, Male=lambda s: s % 2, Young=lambda s: float(s % 3 == 0))
        Image.open(place / "1.png").resize((70, 90)).save(place / "1.png")
        Image.open(place / "2.png").convert("L").save(place / "2.png")
    return tmp_path / "data"


NETWORKS = (vae.VAE, attributes.AttributeClassifier, dcgan.DCGAN, classifier.Classifier)
METHODS = {m.name: m for m in (*NETWORKS, dann.DANN, pixelda.PixelDA, adamatch.AdaMatch)}


@cache
def _settings():
    vae, gan, dann, pixelda = (profiles.load("smoke", chapter) for chapter in profiles.CHAPTERS)
    training = {name: getattr(vae, name) for name in TrainingSettings.model_fields}
    features = AttributeSettings(attributes=["Male", "Smiling"], **training)
    found = {"vae": vae.settings, "features": features, "dcgan": gan.settings}
    found |= {"classifier": dann.classifier(0), "dann": dann.settings(0)}
    return found | {"pixelda": pixelda.settings(0), "adamatch": pixelda.adamatch(0)}


def settings_of(method, **changes):
    """Settings of a method under profile smoke, in float32."""
    return _settings()[method].replace(**{"precision": "fp32"} | changes)


def built(method, **changes):
    """An untrained method with `settings_of` these, the same at each call."""
    torch.manual_seed(0)
    return METHODS[method](settings_of(method, **changes))


@pytest.fixture
def data(faces, pair):
    """What each method trains on, by the method's name."""

    def quality(images):
        return {"kid": images.mean().item(), "recall": images.std().item()}

    found = {"vae": faces, "features": faces, "classifier": pair.source}
    found["dcgan"] = types.MeasuredFaces(faces, 8, quality, "f")
    return found | dict.fromkeys(("dann", "pixelda", "adamatch"), pair.adaptation())


@pytest.fixture
def train(data, tmp_path):
    """Train a method on `data`, or load it: (method, folder of the runs, changed settings)."""

    def trained(method, folder="runs", **changes):
        settings = settings_of(method, **changes)
        return train_or_load(METHODS[method], settings, data[method], tmp_path / folder)

    return trained


@pytest.fixture
def params(tmp_path):
    """Parameters of a chapter under profile smoke in float32, changed by keyword."""
    fixed = {"precision": "fp32", "runs_dir": str(tmp_path / "runs")}
    return lambda chapter, **changes: profiles.load("smoke", chapter, fixed | changes)


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows([header, *rows])


def shaded(shade, *shape, seed=0):
    """A nearly flat picture: 15 times a shade, and up to 9 more."""
    return 15 * shade + np.random.default_rng(seed).integers(0, 10, shape, np.uint8)


def shades(images):
    """The shades of nearly flat pictures."""
    return (images.float().mean((1, 2, 3)) // 15).int().tolist()


def write_pictures(place, shades, side=64, **columns):
    """Pictures 0.png, … of some shades, and their list; its columns are functions of the shade."""
    place.mkdir(parents=True)
    for i, shade in enumerate(shades):
        pixels = shaded(shade, side, side, 3, seed=[i, len(shades)])
        Image.fromarray(pixels).save(place / f"{i}.png")
    rows = [(f"{i}.png", *(of(s) for of in columns.values())) for i, s in enumerate(shades)]
    write_csv(place.with_suffix(".csv"), ["image_name", *columns], rows)


def digit_folder(root, domains, train=20, test=10):
    """Digits in the homework's layout, whose shades are their labels."""
    for domain, split in itertools.product(domains, ("train", "test")):
        labels = [i % 10 for i in range({"train": train, "test": test}[split])]
        write_pictures(root / "digits" / domain / split, labels, side=28, label=int)
    return root


@pytest.fixture(scope="session")
def smoke_report(tmp_path_factory):
    """The report in profile smoke through the command line: (report folder, runs folder)."""
    base = tmp_path_factory.mktemp("smoke")
    out, runs = base / "report", base / "runs"
    arguments = ["report", "--profile", "smoke", "--out", str(out), "--runs-dir", str(runs)]
    assert cli.main(arguments) == 0
    return out, runs


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found)
        yield browser
        browser.close()


def digits_of(name, count=60, shift=0, seed=0):
    """A domain whose digits are bright bars: position encodes the label, brightness the domain."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * count) % 10
    images = torch.randint(0, 60, (3 * count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 3 * label + 1 : 3 * label + 4] = 200 - shift
    parts = map(types.LabelledImages, images.chunk(3), labels.chunk(3))
    return types.Domain(*parts, "bars", False, (), f"{name} labelled", name, f"{name} images")


@pytest.fixture
def pair():
    """Two domains in memory."""
    return types.Pair(digits_of("usps"), digits_of("mnistm", shift=80, seed=1))


@pytest.fixture
def batch(pair):
    """A batch of an adaptation step: (16, 3, 32, 32), (16,), (16, 3, 32, 32)."""
    x_s, x_t = (domain.train.images[:16].float() / 255 for domain in (pair.source, pair.target))
    return x_s, pair.source.train.labels[:16], x_t


@pytest.fixture
def digits(pair):
    """Both directions of `pair`."""
    back = types.Pair(pair.target, pair.source)
    domains = {d.name: d for d in (pair.source, pair.target)}
    return types.DigitData(domains, {p.name: p for p in (pair, back)}, (), "f")


def weights(module):
    """A copy of a module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    """Whether two modules, or copies of their states, are the same bit for bit."""
    ours, theirs = (x if isinstance(x, dict) else x.state_dict() for x in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def updated(method, before):
    """The networks of a method of which a parameter differs from an earlier `weights`."""
    names = dict(method.named_parameters())
    return {k.split(".")[0] for k, value in names.items() if not torch.equal(value, before[k])}


def gradients(module, loss):
    """The gradient of a loss with respect to each parameter of a module."""
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def close(module, expected, **tolerance):
    """Assert that the gradients in a module are those expected, as `gradients` gives them."""
    found = [parameter.grad for parameter in module.parameters()]
    torch.testing.assert_close(found, list(expected), **{"rtol": 1e-3, "atol": 1e-6} | tolerance)


class Small:
    """Notebooks, and a report from them, in a folder.

    Args:
        root: the folder.
        params: parameters of a chapter, changed by keyword.
    """

    def __init__(self, root, params):
        self.out, self.folder, self.params = root / "report", root / "notebooks", params

    def write(self, **notebooks):
        """Write notebooks from lists of cells, such as p1_2=["x = 1"]."""
        self.folder.mkdir(exist_ok=True)
        parameters = new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
        kernel = {"name": "python3", "language": "python", "display_name": ""}
        for name, cells in notebooks.items():
            problem = name[1:].replace("_", "-")
            code = map(new_code_cell, cells)
            book = new_notebook(cells=[new_markdown_cell(f"# {name}"), parameters, *code])
            book.metadata.kernelspec = kernel
            nbformat.write(book, self.folder / f"{problem}-test.ipynb")

    def chosen(self, changes):
        return {"vae": self.params("vae", **changes)}

    def plan(self, **changes):
        return uptodate.plan(self.chosen(changes), {"vae": "f"}, [], self.out, self.folder)

    def make(self, changes=None, about=(), **arguments):
        arguments |= {"out": self.out, "notebooks": self.folder}
        about = {"profile": "smoke", "command": "", **dict(about)}
        return execute.make_report(self.chosen(changes or {}), {"vae": "f"}, about, **arguments)

    def results(self):
        return json.loads((self.out / "results.json").read_text())


@pytest.fixture
def small(tmp_path, params):
    """Small notebooks and a report from them."""
    return Small(tmp_path, params)


@pytest.fixture
def unrendered(monkeypatch):
    """Reports that are not written: the tests check which notebooks run."""
    monkeypatch.setattr(execute, "run_in_subprocess", lambda *_, **__: None)


def start(*words, cwd=ROOT, **environment):
    """Start Python with some arguments; it finds the library and what the tests import."""
    command, found = [sys.executable, *map(str, words)], f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    options |= {"env": os.environ | {"PYTHONPATH": found} | environment, "cwd": cwd}
    return subprocess.Popen(command, text=True, **options)


def poll(condition, process, said=None):
    """Wait for a condition, while a process runs, for five minutes at most.

    `said` returns what the process has written, if it is not piped.
    """
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, (said or process.communicate)()
        assert time.monotonic() < until
        time.sleep(0.05)


# --- faults -----------------------------------------------------------------------------------


@contextmanager
def disk_full_beyond(size):
    """No file can exceed a number of bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def before_step(kind, number, action):
    """An action runs before one step; checkpoints are saved at every step."""
    original = kind.training_step

    def training_step(self, batch):
        if self.step == number:
            action()
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(kind, "training_step", training_step)
        yield


def interrupt():
    """Like Ctrl-C, immediately."""
    raise KeyboardInterrupt


@pytest.fixture(params=["flipped", "truncated"])
def damage(request):
    """Damage a file: flip a bit in its middle, or truncate it."""

    def harm(path):
        data = bytearray(path.read_bytes())
        if request.param == "flipped":
            data[len(data) // 2] ^= 1
        else:
            del data[-max(1, len(data) // 4) :]
        path.write_bytes(data)

    return harm


def page_fill(path):
    """How far down each page of a PDF is filled, but a chapter's last: 1 is the end of the text."""
    reader = pypdf.PdfReader(path)
    chapters = [entry for entry in reader.outline if not isinstance(entry, list)]
    first = {reader.get_destination_page_number(entry) for entry in chapters} | {len(reader.pages)}
    found = {}
    for number, page in enumerate(pypdfium2.PdfDocument(path), 1):
        if number not in first:
            drawn = page.render(scale=1 / 2).to_pil().convert("L").point(lambda v: 255 * (v < 200))
            found[number] = drawn.getbbox()[3] / (drawn.height * (297 - 17) / 297)
    return found
