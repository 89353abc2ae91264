"""Progress bars, which a log has in words."""

import os
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from tqdm import tqdm as plain
from tqdm.auto import tqdm

WORDS = "{desc} {percentage:.0f}%, {rate_fmt}, {remaining} left"


class _Reported(plain):
    """A bar in a file of this process, in the folder that DLCV_STATUS names (see `progress`)."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        place = Path(os.environ["DLCV_STATUS"], str(os.getpid()))

        def write(text: str) -> None:
            with suppress(OSError):
                place.write_text(text, encoding="utf-8")

        return write


def bar(*arguments: Any, **options: Any) -> plain:
    """A bar of tqdm that leaves nothing behind."""
    if os.environ.get("DLCV_STATUS"):
        return _Reported(*arguments, **options, leave=False, bar_format=WORDS, file=StringIO())
    return tqdm(*arguments, **options, leave=False)
