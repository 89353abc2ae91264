"""`python -m benchmarks.walk`: every parameter at both ends of its range, and degenerate data.

The ends come from the parameters' schema. Each case is a few settings of profile smoke, or a data
set, with which all notebooks of a chapter run; a group that fails is run again one by one. A case
must end in notebooks that show everything, or in a UserError. All chapters take about an hour.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import random
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import nbformat
import numpy as np
import pandas as pd
import seaborn  # noqa: F401  before the processes part
import yaml
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from traitlets.config import Config

from dlcvlib.config import paths, profiles
from dlcvlib.data import source
from dlcvlib.evaluation import features, latent, sweep  # noqa: F401  before the processes part
from dlcvlib.plots import curves, widgets  # noqa: F401
from dlcvlib.report import notebook
from dlcvlib.utils.errors import UserError

LARGE = {int: 24, float: 1e6}
"""In place of an end where there is none: many steps or wide networks only take long."""
FREE = {"steps", "vae_changes", "dann_changes", "data", "attribute", "runs_dir", "seed"}
FREE |= {"vae_profile", "dann_profile", "precision", "background", "pairs"}
"""Parameters whose values `EXTRA` names, or that are no range."""
FEW: dict[str, dict[str, Any]] = {
    "vae": {"ablation_seeds": [0]},
    "gan": {"ablation_seeds": [0]},
    "dann": {"seeds": [0], "pairs": ["usps->mnistm"]},
    "pixelda": {"seeds": [0], "pairs": ["usps->mnistm"]},
}
"""Set in all cases that do not change them, to save time."""
ALONE = {"drawn_train", "drawn_test", "validation_size"}
"""Parameters whose ends are refused, which would hide others."""
EXTRA = yaml.safe_load(Path(__file__).with_name("walk.yaml").read_text(encoding="utf-8"))
"""Chapter -> further cases."""


def ends(annotation: Any, metadata: Sequence[Any]) -> list[Any]:
    """Both ends of a parameter's range, or all its values."""
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        return ends(annotation, [*inner, *metadata])
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if annotation is bool:
        return [False, True]
    # Field(gt=0) holds its limits as metadata of its own.
    limits = {
        name: getattr(limit, name)
        for item in metadata
        for limit in (getattr(item, "metadata", None) or [item])
        for name in ("gt", "ge", "lt", "le", "min_length", "max_length")
        if hasattr(limit, name)
    }
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        values = ends(item, ())
        fewest, most = limits.get("min_length", 0), limits.get("max_length", 3)
        if isinstance(values[0], str):
            return [values[:fewest], values[:most]]
        up = 1 if isinstance(values[0], int) else 1e-3
        rising = [values[0] + up * n for n in range(fewest)]
        return [rising, [values[1] - up * n for n in range(most)][::-1]]
    above, below = (1, 1) if annotation is int else (1e-9, 1e-6)
    low = limits.get("ge", limits.get("gt", 0) + above)
    high = min(limits.get("le", LARGE[annotation]), max(low, LARGE[annotation]))
    high = limits["lt"] - below if "lt" in limits else high
    return [annotation(low), annotation(high)]


def walk(chapter: str, size: int) -> list[dict[str, Any]]:
    """Settings of a chapter at the ends of their ranges, several of them in each case."""
    normal = profiles.load("smoke", chapter).model_dump()
    single = [
        {name: value}
        for name, field in profiles.CHAPTERS[chapter].model_fields.items()
        if name not in FREE
        for value in ends(field.annotation, field.metadata)
        if value != normal[name]
    ]
    random.Random(0).shuffle(single)
    groups: list[dict[str, Any]] = []
    for one in single:
        free = (
            g
            for g in groups
            if len(g) < size and not (one.keys() | ALONE) & g.keys() and not one.keys() & ALONE
        )
        group = next(free, None)
        if group is None:
            groups.append(group := {})
        group |= one
    return groups + EXTRA[chapter]


# --- data ---------------------------------------------------------------------------------------


def folders(root: Path) -> Iterator[tuple[str, str, str]]:
    """Degenerate data sets: chapter, name and folder of each."""
    rng = np.random.default_rng(0)

    def noise(_: int) -> np.ndarray:
        return rng.integers(0, 256, (64, 64, 3), np.uint8)

    def faces(name: str, draw: Any, columns: Any, train: int = 64, test: int = 32) -> Any:
        for split, count in (("train", train), ("test", test)):
            _write(root / name / "face", split, count, draw, columns)
        return "vae", name, f"folder:{root / name}"

    halves = {"Male": lambda i: i % 2}
    same = noise(0)
    yield faces("identical", lambda _: same, halves)
    yield faces("black", lambda _: np.zeros_like(same), halves)
    yield faces("white", lambda _: np.full_like(same, 255), halves)
    yield faces("two_pictures", lambda i: np.full_like(same, 255 * (i % 2)), halves)
    yield faces("grey_levels", lambda i: np.full_like(same, 2 * i), halves)
    yield faces("rare", noise, {"Male": lambda i: int(i == 0), "Bald": lambda i: 0})
    yield faces("rarest", noise, {"Male": lambda i: int(i < 60)}, 64, 61)
    yield faces("constant", noise, {"Male": lambda i: 1})

    def digits(name: str, draw: Any, labels: Any, train: int = 64, test: int = 12) -> Any:
        for domain, split in itertools.product(("usps", "mnistm", "svhn"), ("train", "test")):
            place, count = root / name / "digits" / domain, train if split == "train" else test
            columns = {"label": lambda i, d=domain: labels(d, i)}
            _write(place, split, count, draw, columns)
        return "dann", name, f"folder:{root / name}"

    yield digits("least", noise, lambda d, i: i % 10)
    yield digits("same", lambda _: same, lambda d, i: i % 10)
    yield digits("dark", lambda _: np.zeros_like(same), lambda d, i: i % 10)
    yield digits("one_class", noise, lambda d, i: 3)
    yield digits("disjoint", noise, lambda d, i: i % 5 + 5 * (d == "mnistm"))
    yield digits("two_classes", noise, lambda d, i: 9 * (i % 2))


def _write(place: Path, split: str, count: int, draw: Any, columns: Mapping[str, Any]) -> None:
    (place / split).mkdir(parents=True)
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.fromarray(draw(i)).save(place / split / name)
    values = {name: [value(i) for i in range(count)] for name, value in columns.items()}
    pd.DataFrame({"image_name": names} | values).to_csv(place / f"{split}.csv", index=False)


# --- running ------------------------------------------------------------------------------------


def run(chapter: str, changes: Mapping[str, Any], runs_dir: str) -> list[str]:
    """What is wrong, in a process of its own: empty, or lines that begin with their kind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(_run, chapter, changes, runs_dir).result()
        except BrokenProcessPool:
            return ["CRASHED the process died"]


def _run(chapter: str, changes: Mapping[str, Any], runs_dir: str) -> list[str]:
    lines: list[str] = []
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("always")
        warnings.showwarning = lambda text, kind, file, line, *_: lines.append(
            f"WARNED {kind.__name__} {text} ({file}:{line})"
        )
        try:
            fixed = {"runs_dir": runs_dir, "precision": "fp32", "image_limit": 0}
            params = profiles.load("smoke", chapter, fixed | FEW[chapter] | changes)
            source.inspect_data({chapter: params})
        except UserError as error:
            return [f"REFUSED {error}"]
        except Exception:
            return [f"CRASHED {traceback.format_exc()[-1500:]}"]
        number = list(profiles.CHAPTERS).index(chapter) + 1
        for path in sorted(paths.NOTEBOOKS.glob(f"{number}-*.ipynb")):
            lines += _notebook(path, params.model_dump())
    return list(dict.fromkeys(lines))


def _notebook(path: Path, values: Mapping[str, Any]) -> list[str]:
    """Run a notebook's cells in this process."""
    lines: list[str] = []
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.enable_gui = lambda gui=None: None  # what `%matplotlib inline` asks for
    # Errors of formatters do not end a cell.
    shell.showtraceback = lambda found=None, **_: lines.append(
        "CRASHED while shown: " + "".join(traceback.format_exception(*found))[-1500:]
        if found
        else ""
    )
    shell.display_pub = CapturingDisplayPublisher(parent=shell)
    given = f"{notebook.INJECTED}\n" + "\n".join(f"{k} = {v!r}" for k, v in values.items())
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    for n, text in enumerate([cells[0].source, given, *(c.source for c in cells[1:])]):
        result = shell.run_cell(text, store_history=True)
        if error := result.error_before_exec or result.error_in_exec:
            where = f"{path.name[:3]}, cell {n}"
            if isinstance(error, UserError):
                return [f"REFUSED in {where}: {error}"]
            return [f"CRASHED {where}: " + "".join(traceback.format_exception(error))[-1500:]]
    for shown in shell.display_pub.outputs:
        text = shown["data"].get("text/markdown", "")
        if not text.startswith("|") and re.search(r"\b(nan|inf|None)\b", text):
            lines.append(f"PROSE {text}")
    return [f"{line} in {path.name[:3]}" for line in lines if line]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walk", description=__doc__)
    parser.add_argument("chapters", nargs="*", default=[*profiles.CHAPTERS], metavar="CHAPTER")
    parser.add_argument("--size", type=int, default=6, metavar="N", help="settings at once")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases that hold this text")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = list(folders(Path(place) / "data"))
        crashed = 0
        for chapter in arguments.chapters:
            cases = [(str(changes), changes) for changes in walk(chapter, arguments.size)]
            small = {"validation_size": 32, "attribute": "Male"}
            if chapter in ("dann", "pixelda"):
                small = {"pairs": ["usps->mnistm", "mnistm->svhn"]}
            faces = chapter in ("vae", "gan")
            cases += [
                (name, small | {"data": where})
                for kind, name, where in data
                if (kind == "vae") == faces
            ]
            for name, changes in cases:
                if arguments.only not in name:
                    continue
                lines = run(chapter, changes, place)
                bad = any(line.startswith(("CRASHED", "REFUSED")) for line in lines)
                print(f"{chapter} {name}: {'' if lines else 'fine'}", flush=True)
                singles = [{key: value} for key, value in changes.items()]
                if bad and len(singles) > 1 and "data" not in changes:
                    print("  (together)", *lines, sep="\n  ", flush=True)
                    lines = [
                        f"{one}: {line}" for one in singles for line in run(chapter, one, place)
                    ]
                crashed += any("CRASHED" in line for line in lines)
                print(*(f"  {line}" for line in lines), sep="\n", flush=True)
        print(f"{crashed} cases crash")
        raise SystemExit(crashed > 0)


if __name__ == "__main__":
    main()
