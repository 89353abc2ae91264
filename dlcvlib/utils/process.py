"""Work in a process of its own, and output that outlives its readers."""

import io
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from dlcvlib.utils import stopwatch
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.parent import end_with_parent


def run_in_subprocess(function: str, *arguments: Any, **options: Any) -> Any:
    """What a module's function returns or raises, run in a process of its own.

    The memory that it takes is free again at its end; its time by kind of work counts here (see
    `stopwatch`).

    Args:
        function: such as "package.module:name"; this process need not import the module.
        arguments: what it is called with.
        options: the same, by name.

    Raises:
        UserError: if the process is killed.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        try:
            value, seconds = pool.submit(_call, function, *arguments, **options).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process that ran {function!r} ended without an answer (killed, perhaps for "
                "its memory); run the same command again to continue"
            ) from None
    stopwatch.seconds.update(seconds)
    return value


def _call(function: str, *arguments: Any, **options: Any) -> tuple[Any, dict[str, float]]:
    outlive_readers()
    return pkgutil.resolve_name(function)(*arguments, **options), stopwatch.take()


class _Lasting(io.FileIO):
    """A file whose writes never fail; what cannot be written is dropped."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlive_readers() -> None:
    """Have this process go on when nobody reads what it prints any more, as after `| head -1`.

    What the stream's encoding lacks is printed as "?".
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream and not stream.isatty():
            raw = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
            lasting = io.TextIOWrapper(raw, stream.encoding, "replace", line_buffering=True)
            setattr(sys, name, lasting)
