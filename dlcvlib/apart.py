"""Work in a process of its own, which gives back at its end all the memory that it took."""

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from dlcvlib import stopwatch
from dlcvlib.errors import UserError


def apart(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What a module's function returns or raises, from a process of its own.

    Its time by kind of work counts here (`dlcvlib.stopwatch`).

    Raises:
        UserError: if the process is killed.
    """
    # Not a pool, whose worker waits for ever once we are killed: this process comes to its end.
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
            f"a process that was asked for {function.__name__!r} ended with status "
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


def _send(
    pipe: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    try:
        good, value = True, function(*arguments, **options)
    except BaseException as error:
        error.add_note(f"In a process apart:\n{traceback.format_exc()}")
        good, value = False, error
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        pipe.send((good, value, stopwatch.so_far()))
