"""How far a report's notebooks are, how long they still take, and lines that say so in a log."""

import os
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Time between two lines in a log."""
QUICK = {
    "1": (311, 11, 42, 23, 16, 330),
    "2": (194, 20, 342, 14),
    "3": (210, 19, 12, 30, 123, 194),
    "4": (1060, 368, 123, 449),
}
"""Seconds of each chapter's notebooks in a new `quick` report on two cores; since they are mostly
training, any report takes them roughly in these proportions."""
START = 8.0
"""Seconds of a notebook that trains nothing, in any report: kernel, imports, figures."""
SHARES = defaultdict(lambda: 100.0)  # of a notebook that has been added
SHARES |= {f"{c}-{n}": s for c, each in QUICK.items() for n, s in enumerate(each, 1)}
Times = Mapping[str, float]
"""Problem -> seconds."""
LEFT = re.compile(r"([\d:]+) left$")
"""The end of what a kernel reports of its training (see `training.loop`)."""


def expected(problems: Iterable[str], last: Times, least: Times, ended: Times) -> Times:
    """Seconds that each notebook takes, from first to last; none while nothing is known of any.

    One that was run here before takes what it took then, changed as those that have been run again.
    Any other takes `START`, and its share of the rest, in proportion to all whose time is known, or
    else to the slowest of those that run.

    Args:
        problems: such as "1-3".
        last: of those that were run here before, by then.
        least: of those that run, at least.
        ended: of those that have ended now.
    """
    then, now, yet = ({p: max(s - START, 1.0) for p, s in x.items()} for x in (last, ended, least))
    again = now.keys() & then.keys()
    change = sum(now[p] for p in again) / sum(then[p] for p in again) if again else 1.0
    if known := then | now:
        rate = sum(known.values()) / sum(SHARES[p] for p in known)
    else:
        rate = max((seconds / SHARES[p] for p, seconds in yet.items()), default=0.0)
    beyond = {p: change * then[p] if p in then else rate * SHARES[p] for p in problems}
    return {p: START + seconds for p, seconds in beyond.items()} if rate else {}


@dataclass
class Progress:
    """The notebooks of a report while they run.

    Attributes:
        total: how many there are.
        left: problems of those that have not ended, in the order in which they begin.
        last: how long those took that were run here before with these parameters.
        jobs: how many run at once.
        running: problem -> when it began.
        ended: problem -> seconds that it took.
    """

    total: int
    left: list[str]
    last: Times
    jobs: int
    running: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)

    def end(self, problem: str, seconds: float) -> None:
        """A notebook has ended, after 0 seconds if it failed."""
        if self.running.pop(problem, None) is not None:  # what is reused does not run
            self.left.remove(problem)
            self.ended |= {problem: seconds} if seconds else {}

    def line(self, status: Path) -> str:
        """What runs, how far, and how long all will still take, as far as that is known.

        Args:
            status: has a folder for each problem, in which its kernel reports its training.
        """
        now, left, running = time.monotonic(), [*self.left], dict(self.running)
        elapsed = {problem: now - began for problem, began in running.items()}
        texts = {problem: training(status / problem) for problem in running}
        more = {problem: seconds_left(text) for problem, text in texts.items() if text}
        least = {problem: elapsed[problem] + seconds for problem, seconds in more.items()}
        how_long = "time left not known yet"
        if seconds := expected(left, self.last, least, dict(self.ended)):
            rest = [max(seconds[p] - elapsed.get(p, 0.0), more.get(p, 0.0)) for p in left]
            known = "about" if self.ended or self.last else "at least"
            how_long = f"{known} {tqdm.format_interval(max(sum(rest) / self.jobs, *rest))} left"
        what = ", ".join(f"{p} ({text})" if text else p for p, text in texts.items())
        done = f"{self.total - len(left)} of {self.total} notebooks, {how_long}"
        return f"{done}: {what}" if what else done


def training(status: Path) -> str:
    """What processes have last reported, in a folder, of the runs that they train."""
    texts = []
    with suppress(OSError):
        texts = [path.read_text(encoding="utf-8") for path in status.iterdir() if path.is_file()]
    return " | ".join(text for text in texts if text and " 100%" not in text)


def seconds_left(text: str) -> float:
    """Of a run, as `training` says it; 0 if it does not."""
    found = LEFT.search(text)
    parts = found[1].split(":") if found else []
    return float(sum(int(part) * 60**i for i, part in enumerate(reversed(parts))))


@contextmanager
def lines(text: Callable[[Path], str], seconds: float = LINE_SECONDS) -> Iterator[Path]:
    """Meanwhile print a line at these intervals, in place of bars, unless there is a terminal.

    Args:
        text: a folder in which processes report their training -> the line.
        seconds: between two lines.

    Yields:
        That folder.
    """
    began = time.monotonic()

    def speak() -> float:
        print(f"[{tqdm.format_interval(time.monotonic() - began)}] {text(status)}", flush=True)
        return seconds

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        status = Path(folder)
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            os.environ["DLCV_STATUS"] = folder  # which turns bars off
            stack.callback(os.environ.pop, "DLCV_STATUS")
            if os.environ.get("RANK", "0") == "0":  # the first of the processes that train together
                stack.enter_context(meanwhile(speak, seconds))
        yield status


@contextmanager
def meanwhile(action: Callable[[], float], seconds: float) -> Iterator[None]:
    """Repeat an action in a thread, first after these seconds, then after those that it returns."""
    over = threading.Event()

    def repeat() -> None:
        pause = seconds
        while not over.wait(pause):
            pause = action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join()  # unless this was interrupted
