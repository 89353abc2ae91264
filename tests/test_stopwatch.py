"""The stopwatch, with a clock that the test controls."""

import contextlib
import time

from dlcvlib.utils import stopwatch
from dlcvlib.utils.stopwatch import timed


def test_inner_work_counts_once_and_errors_count_too(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stopwatch.take()
    with timed("training"):
        now[0] += 3
        with timed("evaluation"):
            now[0] += 1
            with timed("t-SNE"):
                now[0] += 5
        with contextlib.suppress(ValueError), timed("evaluation"):
            now[0] += 1
            raise ValueError
        now[0] += 4
    assert stopwatch.take() == {"training": 7, "evaluation": 2, "t-SNE": 5}
    assert stopwatch.take() == {}
