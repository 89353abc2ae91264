"""The stopwatch, with a clock that the test controls."""

import contextlib
import time

import pytest

from dlcvlib.utils import stopwatch
from dlcvlib.utils.stopwatch import timed


@pytest.fixture
def clock(monkeypatch):
    """Call it with the seconds that should pass."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stopwatch.take()

    def passes(seconds):
        now[0] += seconds

    return passes


def test_inner_work_counts_once(clock):
    with timed("training"):
        clock(3)
        with timed("evaluation"):
            clock(1)
            with timed("t-SNE"):
                clock(5)
        with timed("evaluation"):
            clock(1)
        clock(4)
    assert stopwatch.take() == {"training": 7, "evaluation": 2, "t-SNE": 5}


def test_an_error_is_timed_too(clock):
    with contextlib.suppress(ValueError), timed("data"):
        clock(2)
        raise ValueError
    with timed("data"):
        clock(1)
    assert stopwatch.so_far() == {"data": 3}
    assert stopwatch.take() == {"data": 3}
    assert stopwatch.take() == {}
