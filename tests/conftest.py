"""Fixtures: small faces in memory and on disk, and one smoke report that several tests read."""

import csv
import json
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

os.environ.setdefault("MPLBACKEND", "agg")
# Precisions that are tried here are tried once, whatever an earlier session or the user has found.
_cache = tempfile.TemporaryDirectory(prefix="dlcv-cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ.pop("TORCH_HOME", None)  # with Inception's weights faces would be measured by them

ROOT = Path(__file__).parents[1]
PROBLEMS = sorted(path.name[:3] for path in (ROOT / "notebooks").glob("*.ipynb"))
HW3_DATA = ROOT.parent / "shared" / "data" / "hw3_data"


@pytest.fixture
def smoke():
    """Parameters of chapter 1 under profile smoke, changed by keyword."""
    from dlcvlib.config import profiles

    return lambda **changes: profiles.load("smoke", "vae", changes)


@pytest.fixture(scope="session")
def drawn():
    """Sixty drawn faces with their attributes: (60, 3, 64, 64) uint8 and a dict."""
    from dlcvlib.data.synthetic import faces as drawn_faces

    pictures, columns = drawn_faces.draw_faces(0, range(60))
    attributes = {
        n: torch.from_numpy(columns[:, i].copy()) for i, n in enumerate(drawn_faces.ATTRIBUTES)
    }
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()), attributes


@pytest.fixture
def faces(drawn):
    """A small data set in memory."""
    from dlcvlib.data.types import FaceData, ImageSet

    def cut(a, b):
        return ImageSet(drawn[0][a:b], {name: values[a:b] for name, values in drawn[1].items()})

    return FaceData(
        cut(0, 40),
        cut(40, 48),
        cut(48, 60),
        "test faces",
        synthetic=True,
        notes=(),
        fingerprint="f",
    )


@pytest.fixture
def folder(tmp_path):
    """A data folder in the homework's layout, with odd sizes and modes among its pictures."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, count in (("train", 12), ("test", 6)):
        (root / "face" / split).mkdir(parents=True)
        rows = []
        for i in range(count):
            shape = (90, 70, 3) if i == 1 else (64, 64) if i == 2 else (64, 64, 3)
            pixels = rng.integers(0, 255, shape, np.uint8)
            Image.fromarray(pixels).save(root / "face" / split / f"{i}.png")
            rows.append((f"{i}.png", i % 2, f"{float(i % 3 == 0)}"))
        write_csv(root / "face" / f"{split}.csv", ["image_name", "Male", "Young"], rows)
    return root


def settings_of(method, **changes):
    """Settings of a method under profile smoke, in float32."""
    from dlcvlib.config import profiles

    chapter = {"dcgan": "gan", "classifier": "dann", "adamatch": "pixelda"}.get(method, method)
    chosen = profiles.load("smoke", chapter)
    settings = {
        "vae": lambda: chosen.settings,
        "dcgan": lambda: chosen.settings,
        "classifier": lambda: chosen.classifier(0),
        "dann": lambda: chosen.settings(0),
        "pixelda": lambda: chosen.settings(0),
        "adamatch": lambda: chosen.adamatch(0),
    }[method]()
    return settings.replace(**{"precision": "fp32"} | changes)


def write_csv(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def digit_folder(root, domains, train=20, test=10):
    """Digits in the homework's layout.

    Each image is nearly flat, of the shade 20 times its label and up to 9 more.
    """
    rng = np.random.default_rng(0)
    for domain in domains:
        for split, count in (("train", train), ("test", test)):
            folder = root / "digits" / domain / split
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = 20 * (i % 10) + rng.integers(0, 10, (28, 28, 3), np.uint8)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
            rows = [(f"{i}.png", i % 10) for i in range(count)]
            write_csv(folder.with_suffix(".csv"), ["image_name", "label"], rows)
    return root


@pytest.fixture(scope="session")
def smoke_report(tmp_path_factory):
    """The report in profile smoke through the command line: (report folder, runs folder)."""
    from dlcvlib.report.cli import main

    base = tmp_path_factory.mktemp("smoke")
    out, runs = base / "report", base / "runs"
    assert main(["report", "--profile", "smoke", "--out", str(out), "--runs-dir", str(runs)]) == 0
    return out, runs


def digits_of(name, count=60, shift=0, seed=0):
    """A domain whose digits are bright bars: the place is the label, brightness the domain."""
    from dlcvlib.data.types import Domain, LabelledImages

    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * count) % 10
    images = torch.randint(0, 60, (3 * count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 3 * label + 1 : 3 * label + 4] = 200 - shift
    parts = [LabelledImages(i, y) for i, y in zip(images.chunk(3), labels.chunk(3), strict=True)]
    return Domain(name, *parts, "bars", False, (), f"{name} labelled", f"{name} images")


@pytest.fixture
def pair():
    """Two domains in memory."""
    from dlcvlib.data.types import Pair

    return Pair(digits_of("usps"), digits_of("mnistm", shift=80, seed=1))


@pytest.fixture
def batch(pair):
    """What a step of adaptation is handed: (16, 3, 32, 32), (16,), (16, 3, 32, 32)."""
    x_s, x_t = (domain.train.images[:16].float() / 255 for domain in (pair.source, pair.target))
    return x_s, pair.source.train.labels[:16], x_t


@pytest.fixture
def digits(pair):
    """Both directions of `pair`."""
    from dlcvlib.data.types import DigitData, Pair

    back = Pair(pair.target, pair.source)
    domains = {d.name: d for d in (pair.source, pair.target)}
    return DigitData(domains, {p.name: p for p in (pair, back)}, (), "f")


def weights(module):
    """A copy of a module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    """Whether any parameter of a module has changed."""
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


@pytest.fixture
def small(tmp_path, smoke):
    """Write notebooks from lists of cells, and make a report of them."""

    import nbformat

    from dlcvlib.report import execute, uptodate

    class Small:
        out = tmp_path / "report"
        folder = tmp_path / "notebooks"

        def write(self, **notebooks):
            self.folder.mkdir(exist_ok=True)
            for name, cells in notebooks.items():
                book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name}")])
                tagged = nbformat.v4.new_code_cell(
                    "seed: int = 0", metadata={"tags": ["parameters"]}
                )
                book.cells += [tagged, *map(nbformat.v4.new_code_cell, cells)]
                problem = name[1:].replace("_", "-")
                book.metadata.kernelspec = {
                    "name": "python3",
                    "language": "python",
                    "display_name": "",
                }
                nbformat.write(book, self.folder / f"{problem}-test.ipynb")

        def chosen(self, changes):
            return {"vae": smoke(runs_dir=str(tmp_path / "runs"), **changes)}

        def plan(self, **changes):
            return uptodate.plan(self.chosen(changes), {"vae": "f"}, [], self.out, self.folder)

        def results(self):
            return json.loads((self.out / "results.json").read_text())

        def contents(self):
            """All that a reader sees: file -> bytes."""
            made = [*self.out.glob("*.*"), *(self.out / "figures").glob("*")]
            return {path.name: path.read_bytes() for path in made if path.name[0] != "."}

        def make(self, changes=None, **arguments):
            chosen = self.chosen(changes or {})
            return execute.make_report(
                chosen,
                {"vae": "f"},
                profile="smoke",
                out=self.out,
                notebooks=self.folder,
                **arguments,
            )

    return Small()


@pytest.fixture
def unrendered(monkeypatch):
    """Reports that are not written: what is tested is which notebooks run."""
    from dlcvlib.report import execute

    monkeypatch.setattr(execute, "run_in_subprocess", lambda *_, **__: None)


# --- faults -----------------------------------------------------------------------------------


@pytest.fixture
def disk_full_beyond():
    """A context in which no file can grow beyond so many bytes, as on a disk that is full."""

    @contextmanager
    def limit(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def before_step(monkeypatch):
    """A context in which something is done before one step; checkpoints come at every chance."""
    from dlcvlib.training import loop

    @contextmanager
    def patched(kind, number, action):
        original = kind.step

        def step(self, batch):
            if self.done == number:
                action()
            return original(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
            patch.setattr(kind, "step", step)
            yield

    return patched


def scores_of(method, frame):
    """Scores of a method that are given, not measured: one row a pair and seed, with accuracy."""
    from dlcvlib.evaluation import adaptation

    found = adaptation.Scores(method, {}, {})
    object.__setattr__(found, "frame", frame)
    return found


def interrupt():
    """As Ctrl-C, at once."""
    raise KeyboardInterrupt


def flip(path):
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    """Cut a file's tail off."""
    data = path.read_bytes()
    path.write_bytes(data[: -max(1, len(data) // 4)])


@pytest.fixture(params=[flip, cut])
def damage(request):
    """Each way to damage a file."""
    return request.param
