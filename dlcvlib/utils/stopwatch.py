"""Where a process's time goes, by kind of work."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

seconds: Counter[str] = Counter()
"""By kind of work, since the start or the last `take`; others' may be added."""
_within: list[float] = []
"""What was timed inside of each block that is open now, in seconds."""


@contextmanager
def timed(work: str) -> Iterator[None]:
    """Count the time of a block as this kind of work; what is timed inside counts only there."""
    started = time.monotonic()
    _within.append(0.0)
    try:
        yield
    finally:
        spent = time.monotonic() - started
        seconds[work] += spent - _within.pop()
        if _within:
            _within[-1] += spent


def take() -> dict[str, float]:
    """The seconds so far, which start again from zero."""
    taken = dict(seconds)
    seconds.clear()
    return taken
