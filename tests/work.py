"""Functions for `run_in_subprocess` to run in tests; nothing here is slow to import."""

import os
import signal

from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError


def refuse(word):
    raise UserError(f"no {word}")


def spend(work):
    with stopwatch.timed(work):
        return os.getpid()


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def begin(path):
    path.open("w").close()  # waits until the other end of the pipe is opened
    signal.pause()
