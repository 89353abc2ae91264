"""How far notebooks or runs are, how long they still take, and what says so meanwhile."""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Time between two lines in a log."""
START = 8.0
"""Seconds of a notebook that trains nothing, in any report: kernel, imports, figures."""
SHARES = {
    "1-1": 311, "1-2": 11, "1-3": 42, "1-4": 23, "1-5": 16, "1-6": 330,
    "2-1": 194, "2-2": 20, "2-3": 342, "2-4": 14,
    "3-1": 210, "3-2": 19, "3-3": 12, "3-4": 30, "3-5": 123, "3-6": 194,
    "4-1": 1060, "4-2": 368, "4-3": 123, "4-4": 449,
}  # fmt: skip
"""Seconds of each notebook in a new `quick` report on two cores; since they are mostly training,
any report takes them roughly in these proportions."""


def expected(problems: Iterable[str], ended: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each notebook takes, from first to last; none while none has ended.

    It takes `START` and its share of the rest, in proportion to those that have ended. A run, or a
    notebook that has been added, has the share of any other.

    Args:
        problems: such as "1-3".
        ended: problem -> seconds of those that have ended, now or earlier.
    """
    if not ended:
        return {}
    rest = sum(ended.values()) - START * len(ended)
    rate = max(0.0, rest / sum(SHARES.get(p, 100) for p in ended))
    return {p: START + rate * SHARES.get(p, 100) for p in problems}


@dataclass
class Progress:
    """The notebooks of a report, or training runs, while they run.

    Attributes:
        what: "notebooks" or "runs".
        total: how many there are.
        left: those that have not ended, in the order in which they begin.
        jobs: how many run at once.
        running: problem, or name of a run -> when it began.
        ended: problem, or name -> seconds that it took, now or, if it is reused, earlier.
    """

    what: str
    total: int
    left: list[str]
    jobs: int
    running: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def begin(self, name: str) -> None:
        """A notebook, or the training of its runs by another process, or a run has begun."""
        self.running.setdefault(name, time.monotonic())

    def end(self, name: str, seconds: float) -> None:
        """It has ended, after 0 seconds if it failed."""
        self.running.pop(name, None)
        if name in self.left:  # what is reused is not
            self.left.remove(name)
        self.ended |= {name: seconds} if seconds else {}

    def rows(self, status: Path) -> list[str]:
        """How far all are, and how long they still take, as far as that is known; what runs.

        Args:
            status: has a folder for each, in which its processes report how far they are.
        """
        now, left, running = time.monotonic(), [*self.left], dict(self.running)
        how_long = "time left not known yet"
        if seconds := expected(left, dict(self.ended)):
            rest = [max(0.0, seconds[p] - now + running.get(p, now)) for p in left]
            longest = max(sum(rest) / max(self.jobs, len(running)), *rest)
            how_long = f"about {tqdm.format_interval(longest)} left"
        done = f"{self.total - len(left)} of {self.total} {self.what}, {how_long}"
        return [done, *(f"{name} {reported(status / name)}".strip() for name in running)]


def reported(status: Path) -> str:
    """What processes have last reported, in a folder, of what takes them long (see `bars`)."""
    texts = []
    with suppress(OSError):
        texts = [path.read_text(encoding="utf-8") for path in status.iterdir() if path.is_file()]
    return " | ".join(filter(None, texts))


def say(text: str) -> None:
    """Print a line above the bars; several threads do."""
    with tqdm.external_write_mode():
        print(text, flush=True)


@contextmanager
def shown(now: Progress) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Meanwhile print a line now and then, or on a terminal have a table of what runs.

    Yields:
        A folder in which processes report how far they are (see `lines`), and what shows the table
        as it is now.
    """
    bars: list[tqdm] = []
    with lines("", lambda status: "; ".join(now.rows(status))) as status, ExitStack() as stack:

        def show() -> None:
            rows = now.rows(status)
            for place in range(len(bars), len(rows)):  # tqdm hides what a terminal has no room for
                bar = tqdm(bar_format="{desc}", position=place, leave=False, disable=None)
                bars.append(stack.enter_context(bar))
            for bar, row in zip_longest(bars, rows, fillvalue=""):
                bar.set_description_str(row)

        yield status, show


@contextmanager
def lines(otherwise: str, text: Callable[[Path], str] = reported) -> Iterator[Path]:
    """Meanwhile print a line now and then, in place of bars, unless there is a terminal.

    Args:
        otherwise: the line where `text` has none.
        text: a folder in which processes report how far they are -> the line.

    Yields:
        That folder.
    """
    began, over = time.monotonic(), threading.Event()

    def speak() -> None:
        while not over.wait(LINE_SECONDS):
            passed = tqdm.format_interval(time.monotonic() - began)
            print(f"[{passed}] {text(status) or otherwise}", flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        status = Path(folder)
        if sys.stdout.isatty() and sys.stderr.isatty():
            yield status
            return
        os.environ["DLCV_STATUS"] = folder  # which turns bars off
        if os.environ.get("RANK", "0") == "0":  # the first of the processes that train together
            threading.Thread(target=speak, daemon=True).start()
        try:
            yield status
        finally:
            over.set()
            del os.environ["DLCV_STATUS"]
