"""Two reports beside each other: what differs, and whether by more than seeds do.

Whatever a notebook records for each seed, in a table with a column `seed`, is tested by Welch's t
over the seeds, with Holm's correction over all that two reports have in common. Everything else is
shown, not judged: a single value has no spread to judge a difference by.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from dlcvlib.evaluation.significance import LEVEL
from dlcvlib.plots.style import pair_name
from dlcvlib.report import RESULTS_VERSION, embed, template
from dlcvlib.report.page import FIGURES
from dlcvlib.report.tables import as_text
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

NO_RESULTS = {"seed", "cost", "seconds", "images_per_second"}
"""Columns that say which run it is, or how fast a machine was: no results."""
ABOUT = ["profile", "command", "data", "seeds", "device", "commit", "versions", "made"]
"""What the page says of how either report was made."""


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
    made, reports = zip(*map(_read, files), strict=True)
    pictures = [_pictures(file.parent / FIGURES) for file in files]
    measures = judged(*reports)
    problems = {
        problem: {
            # Of a notebook that failed, there is nothing else.
            "failed": [each["failed"] if each.keys() == {"failed"} else None for each in both],
            "tables": list(_tables(*both)),
            "figures": {
                name: each for name, each in _common(*pictures) if name.startswith(problem)
            },
        }
        for problem, both in _common(*reports)
    }
    failed = [[error is not None for error in each["failed"]] for each in problems.values()]
    agree = all(x == y for x, y in failed) and not (measures["verdict"] == "differs").any()
    page = template("compare.html.j2").render(
        names=[str(a), str(b)],
        only=[sorted(one.keys() - other.keys()) for one, other in (reports, reports[::-1])],
        agree=agree,
        about=[as_text(pd.Series(each).reindex(ABOUT).to_frame("")) for each in made],
        measures=as_text(measures),
        counts=measures["verdict"].value_counts().to_dict(),
        problems=problems,
        level=LEVEL,
    )
    storage.write_text(out, page)
    return agree


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Provenance, and the results of each problem."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version, made = found.pop("version"), found.pop("provenance")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read as a report's results ({error}): "
            "name a report's folder, or its results.json"
        ) from None
    if version != RESULTS_VERSION:
        raise UserError(
            f"{file} is of version {version}, and this compares version {RESULTS_VERSION}: "
            "make that report again"
        )
    return made, found


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
    for problem, both in _common(a, b):
        for name, values in _common(*both):
            for measure, seeds in _common(*map(_by_measure, values)):
                rows.append({"problem": problem, "measure": f"{name}: {measure}"} | _tested(*seeds))
    frame = pd.DataFrame(rows, columns=["problem", "measure", "A", "B", "difference", "p"])
    tested = frame["p"].notna()
    if tested.any():
        frame.loc[tested, "p"] = multipletests(frame.loc[tested, "p"], LEVEL, "holm")[1]
    verdict = np.where(frame["p"] < LEVEL, "differs", "agrees")
    frame["verdict"] = np.where(tested, verdict, "the same")
    frame = frame.rename(columns={"p": "p (Holm)"})
    return frame.sort_values("verdict", key=lambda each: each != "differs", kind="stable")


def _common(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """What two mappings both have, by name."""
    yield from ((name, (a[name], b[name])) for name in a if name in b)


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
    row = {**means, "difference": b.mean() - a.mean(), "p": np.nan}
    if a.tolist() == b.tolist():
        return row
    if np.allclose(a, a.mean()) and np.allclose(b, b.mean()):  # no spread that could explain it
        return row | {"p": float(np.isclose(a.mean(), b.mean()))}
    return row | {"p": stats.ttest_ind(a, b, equal_var=False).pvalue}


# --- what is shown --------------------------------------------------------------------------------


def _tables(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tables that both have, as text, and one of the values that stand alone."""
    alone = []
    for name, values in _common(a, b):
        frames = [_frame(value) for value in values]
        if all(frame is not None for frame in frames):
            yield {"name": name.replace("_", " "), "frames": list(map(as_text, frames))}
        else:
            alone.append(name)
    if alone:
        flat = [pd.json_normalize({name: each[name] for name in alone}) for each in (a, b)]
        frames = [one.T.set_axis(["value"], axis=1).rename_axis("name") for one in flat]
        yield {"name": "single values", "frames": list(map(as_text, frames))}


def _pictures(folder: Path) -> dict[str, str]:
    """Name of an exhibit's picture -> its address, which holds it."""
    paths = [path for path in sorted(folder.glob("?-?.*")) if path.suffix in (".png", ".svg")]
    return {path.stem: embed.address(path) for path in paths}
