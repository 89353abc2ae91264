"""Where a process's time goes, by kind of work."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_seconds: Counter[str] = Counter()
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
        add({work: spent - _within.pop()})
        if _within:
            _within[-1] += spent


def add(seconds: Mapping[str, float]) -> None:
    """Count seconds by kind of work, this process's or another's."""
    _seconds.update(seconds)


def so_far() -> dict[str, float]:
    """Seconds by kind of work since the start or the last `take`."""
    return dict(_seconds)


def take() -> dict[str, float]:
    """The same, and start again from zero."""
    taken = so_far()
    _seconds.clear()
    return taken
