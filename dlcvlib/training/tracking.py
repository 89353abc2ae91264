"""A run's history in an experiment tracker too, through accelerate's.

The environment variable DLCV_LOG_WITH names the tracker; processes that are started inherit it. The
history in the run's folder stays what counts: the tracker gets its rows as they are written, and
when a run is resumed first those of its checkpoint, since it may have lost some.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlcvlib.utils.errors import UserError, nearest

VARIABLE = "DLCV_LOG_WITH"
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PROJECT = "dlcvlib"

Row = dict[str, float]


def check(tracker: str) -> None:
    """Raise a UserError unless it is one of `TRACKERS` and is installed."""
    if tracker not in TRACKERS:
        known = f"{nearest(tracker, TRACKERS)} (there are: {', '.join(TRACKERS)})"
        raise UserError(f"--log-with: unknown tracker {tracker!r}{known}")
    if find_spec(tracker) is None:
        raise UserError(f"--log-with: {tracker} is not installed: pip install {tracker}")


@contextmanager
def tracked(folder: Path, settings: Any, history: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """Open the requested tracker, if any, for a run.

    Args:
        folder: the run's; its name is the run's there too. TensorBoard's files lie beside it, in
            `tensorboard/<name>/`.
        settings: what the run is trained with.
        history: its rows so far.

    Yields:
        What takes each further row.

    Raises:
        UserError: as `check`.
    """
    if not (tracker := os.environ.get(VARIABLE)):
        yield lambda row: None
        return
    check(tracker)
    # Loads torch, without which the command line checks. Not by an `Accelerator`, which would fix
    # the precision of all runs of this process.
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    options = {
        "tensorboard": {"purge_step": 0},  # what an interrupted process has written is replaced
        "wandb": {"name": folder.name, "id": folder.name, "resume": "allow"},
        "mlflow": {"run_name": folder.name},
        "trackio": {"name": folder.name, "embed": False},
    }
    kind, place = LOGGER_TYPE_TO_CLASS[tracker], folder.parent / "tensorboard" / folder.name
    places = [place] if kind.requires_logging_directory else []
    opened = kind(PROJECT, *places, **options[tracker])
    plain = {n: v if isinstance(v, int | float) else str(v) for n, v in settings}

    def log(row: Row) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        opened.log(values, step=int(row["step"]))

    # What some print would stand in the report.
    with redirect_stdout(None) if os.environ.get("DLCV_STATUS") else nullcontext():
        opened.start()
        try:
            opened.store_init_configuration(plain)
            for row in history:
                log(row)
            yield log
        finally:
            opened.finish()
