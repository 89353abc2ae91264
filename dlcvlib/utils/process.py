"""Work in a process of its own, which gives back at its end all the memory that it took."""

import contextlib
import os
import pkgutil
import signal
import threading
import traceback
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a Linux container (cgroup v2): microseconds of processor time in so many of the clock's."""


def cores() -> int:
    """Processors that this process may use, as many as its container's share of time is worth."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit: "max"
        quota, period = QUOTA.read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


def apart(function: str, *arguments: Any, **options: Any) -> Any:
    """What a module's function returns or raises, from a process of its own.

    Its time by kind of work counts here (`dlcvlib.stopwatch`).

    Args:
        function: such as "package.module:name"; this process need not import the module.
        arguments: what it is called with.
        options: the same, by name.

    Raises:
        UserError: if the process is killed.
    """
    # Not a pool, which after an interrupt of us alone would wait for the work's end.
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments, options))
    process.start()
    sender.close()
    try:
        good, value, seconds = receiver.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"a process that was asked for {function!r} ended with status "
            f"{process.exitcode} and no answer (killed for its memory, if the status is -9); "
            "run the same command again to go on"
        ) from None
    except KeyboardInterrupt:
        os.kill(process.pid, signal.SIGINT)  # Ctrl-C reaches it too, a signal to us alone does not
        raise
    finally:
        process.join()
    stopwatch.add(seconds)
    if not good:
        raise value
    return value


def end_with_parent() -> None:
    """End this process as soon as the one that has started it has ended, in whatever way.

    A pool's worker would wait for ever; other work would go on without its parent's locks.
    """

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _send(
    pipe: Connection,
    function: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    end_with_parent()
    try:
        good, value = True, pkgutil.resolve_name(function)(*arguments, **options)
    except BaseException as error:
        error.add_note(f"In a process apart:\n{traceback.format_exc()}")
        good, value = False, error
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        pipe.send((good, value, stopwatch.so_far()))
