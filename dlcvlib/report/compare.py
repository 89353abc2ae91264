"""Two reports beside each other: what differs, and whether by more than seeds do.

Whatever a notebook records for each seed, in a table with a column `seed`, is tested by Welch's t
over the seeds, with Holm's correction over all that two reports have in common. Everything else is
shown, not judged: a single value has no spread to judge a difference by.
"""

import base64
import json
import mimetypes
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from scipy import stats
from statsmodels.stats.multitest import multipletests

from dlcvlib.evaluation.significance import LEVEL
from dlcvlib.plots.style import pair_name
from dlcvlib.report import RESULTS_VERSION, TEMPLATE
from dlcvlib.report.page import FIGURES
from dlcvlib.report.tables import as_text
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

NO_RESULTS = {"seed", "cost", "seconds", "images_per_second"}
"""Columns that say which run it is, or how fast a machine was: no results."""
FIGURE = re.compile(r"(?P<problem>\d-\d)\.\d+-(?P<name>.+)\.(png|svg)")


def compare(a: Path, b: Path, out: Path) -> bool:
    """Write a page with both reports side by side.

    Args:
        a: a report's folder, or its results.json.
        b: another's.
        out: the page.

    Returns:
        Whether they agree: no notebook failed in one of them alone, and no measure differs by more
        than its spread over the seeds.

    Raises:
        UserError: naming the file, if either is not a report of this version.
    """
    files = [path / "results.json" if path.is_dir() else path for path in (a, b)]
    reports = [_read(file) for file in files]
    pictures = [_pictures(file.parent / FIGURES) for file in files]
    measures = judged(*reports)
    both = [name for name in reports[0] if name in reports[1] and re.fullmatch(r"\d-\d", name)]
    problems = {
        problem: {
            "failed": [report[problem].get("failed") for report in reports],
            "alone": _single_values(*(report[problem] for report in reports)),
            "tables": list(_tables(*(report[problem] for report in reports))),
            "figures": {
                name.replace("_", " "): [each[of, name] for each in pictures]
                for of, name in pictures[0]
                if of == problem and (of, name) in pictures[1]
            },
        }
        for problem in both
    }
    failed = [{name for name in both if "failed" in report[name]} for report in reports]
    agree = failed[0] == failed[1] and not (measures["verdict"] == "differs").any()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("compare.html.j2").render(
        names=[str(a), str(b)],
        only=[sorted(set(one) - set(other)) for one, other in (reports, reports[::-1])],
        agree=agree,
        about=_about(*(report["provenance"] for report in reports)),
        claims=_claims(*reports),
        measures=as_text(measures),
        counts=measures["verdict"].value_counts().to_dict(),
        problems=problems,
        level=LEVEL,
    )
    storage.write_text(out, page)
    return agree


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version = found["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read as a report's results ({error}): "
            "name a report's folder, or its results.json"
        ) from None
    if version != RESULTS_VERSION:
        raise UserError(
            f"{file} is of version {version}, and this compares version {RESULTS_VERSION}: "
            "make that report again"
        )
    return found


# --- what is judged -------------------------------------------------------------------------------


def judged(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """Every measure that both reports have for several seeds, those that differ first.

    Args:
        a: a report's results: problem -> name -> value.
        b: another's.

    Returns:
        problem, measure, A and B (mean ± standard deviation over the seeds), difference (B − A), p
        (Holm) and verdict: "differs" where that is below `LEVEL`, "agrees", or "the same" where
        every seed has the same value in both.
    """
    rows = []
    for problem, (of_a, of_b) in _common(a, b):
        for name, (x, y) in _common(of_a, of_b):
            left, right = _by_measure(x), _by_measure(y)
            for measure in [each for each in left if each in right]:
                row = {"problem": problem, "measure": f"{name}: {measure}"}
                rows.append(row | _tested(left[measure], right[measure]))
    frame = pd.DataFrame(rows, columns=["problem", "measure", "A", "B", "difference", "p"])
    tested = frame["p"].notna()
    if tested.any():
        frame.loc[tested, "p"] = multipletests(frame.loc[tested, "p"], LEVEL, "holm")[1]
    verdict = np.where(frame["p"] < LEVEL, "differs", "agrees")
    frame["verdict"] = np.where(tested, verdict, "the same")
    frame = frame.rename(columns={"p": "p (Holm)"})
    return frame.sort_values("verdict", key=lambda each: each != "differs", kind="stable")


def _common(a: Any, b: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What two mappings both have, by name."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        yield from ((name, (a[name], b[name])) for name in a if name in b and name != "provenance")


def _frame(value: Any) -> pd.DataFrame | None:
    """A recorded value that is a table: columns of equal lengths, or rows."""
    rows = isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value)
    if rows or (isinstance(value, Mapping) and value):
        columns = [] if rows else list(value.values())
        if all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            return pd.DataFrame(value)
    return None


def _by_measure(value: Any) -> dict[str, pd.Series]:
    """Measure, with the run's kind -> its values over the seeds, of a table that has seeds."""
    frame = _frame(value)
    if frame is None or "seed" not in frame or frame["seed"].nunique() < 2:
        return {}
    measures = [name for name in frame.select_dtypes("number") if name not in NO_RESULTS]
    kinds = [name for name in frame if name not in NO_RESULTS.union(measures)]
    found = {}
    for kind, rows in frame.groupby(kinds, sort=False) if kinds else [((), frame)]:
        of = pair_name(", ".join(map(str, kind)))
        for name, values in rows.groupby("seed")[measures].mean().items():
            found[f"{name} of {of}" if of else str(name)] = values.dropna()
    return {name: values for name, values in found.items() if len(values) > 1}


def _tested(a: pd.Series, b: pd.Series) -> dict[str, Any]:
    """A row of `judged` without its correction; p is missing where both are the same."""
    means = {name: f"{x.mean():.3g} ± {x.std():.2g}" for name, x in (("A", a), ("B", b))}
    row = {**means, "difference": b.mean() - a.mean()}
    if a.tolist() == b.tolist():
        return row | {"p": np.nan}
    if np.allclose(a, a.mean()) and np.allclose(b, b.mean()):  # no spread that could explain it
        return row | {"p": float(np.isclose(a.mean(), b.mean()))}
    moments = [each for x in (a, b) for each in (x.mean(), x.std(), len(x))]
    return row | {"p": stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue}


# --- what is shown --------------------------------------------------------------------------------


def _about(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """How either report was made."""
    names = ["profile", "command", "data", "seeds", "device", "commit", "versions", "made"]
    columns = {
        name: [_text(about.get(key)) for key in names]
        for name, about in zip("AB", (a, b), strict=True)
    }
    return pd.DataFrame({"": names, **columns})


def _claims(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """The verdicts on every claim that both judge."""
    verdicts = [
        {
            (problem, pair_name(row.claim)): row.verdict
            for problem, found in report.items()
            for frame in map(_frame, found.values() if isinstance(found, Mapping) else ())
            if frame is not None and {"claim", "verdict"} <= set(frame)
            for row in frame.itertuples()
        }
        for report in (a, b)
    ]
    both = [key for key in verdicts[0] if key in verdicts[1]]
    rows = [(*key, verdicts[0][key], verdicts[1][key]) for key in both]
    return pd.DataFrame(rows, columns=["problem", "claim", "A", "B"])


def _single_values(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """Values that stand alone."""
    flat = [
        pd.json_normalize({n: v for n, v in report.items() if _frame(v) is None}).iloc[0].to_dict()
        for report in (a, b)
    ]
    both = {name: (flat[0][name], flat[1][name]) for name in flat[0] if name in flat[1]}
    rows = [(name.replace("_", " "), *map(_text, values)) for name, values in both.items()]
    return pd.DataFrame(rows, columns=["", "A", "B"])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tables(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tables that both have, as text."""
    for name, values in _common(a, b):
        frames = [_frame(value) for value in values]
        if all(frame is not None for frame in frames):
            yield {"name": name.replace("_", " "), "frames": [as_text(frame) for frame in frames]}


def _pictures(folder: Path) -> dict[tuple[str, str], str]:
    """(problem, name) -> address of a picture that holds it."""
    found = {}
    for path in sorted(folder.glob("*")):
        if match := FIGURE.fullmatch(path.name):
            kind = mimetypes.guess_type(path.name)[0]
            data = base64.b64encode(path.read_bytes()).decode()
            found[match["problem"], match["name"]] = f"data:{kind};base64,{data}"
    return found
