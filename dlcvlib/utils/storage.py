"""Files that are written whole or not at all, and read only if they are what was written.

A file is written in a temporary folder beside its place, flushed to the disk and moved. A
tensor file carries a JSON `meta` in its safetensors header; whoever refers to a file by its
`sha256` notices a flipped byte or a missing end. Nothing here unpickles.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from dlcvlib.utils import fingerprints
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "content_sha256"
TEMPORARY = ".tmp-"
"""Prefix of every temporary folder, so that what a kill leaves behind can be swept."""


class DamagedFileError(Exception):
    """A file is not what was written; whoever reads it makes it again."""


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_dir(path: Path) -> Path:
    """Create a folder that can be written to.

    Raises:
        UserError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=TEMPORARY):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {path} ({error.strerror}): "
            "make it writable, or choose another folder (runs_dir, --out)"
        ) from error
    return path


def sweep(folder: Path, stem: str = "") -> None:
    """Remove what a killed process left in `folder` on its way to files whose names begin so."""
    for path in folder.glob(f"{TEMPORARY}{stem}*"):
        shutil.rmtree(path, ignore_errors=True)


# --- writing ----------------------------------------------------------------------------------


def write(path: Path, fill: Callable[[Path], object], size: int) -> None:
    """Have `fill` write a temporary file, then put it at `path` in one step.

    Args:
        path: where the file belongs.
        fill: writes it.
        size: about how many bytes that takes, for the message.

    Raises:
        UserError: if the disk is full or the folder cannot be written; `path` is then as it was.
    """
    folder, prefix = make_dir(path.parent), f"{TEMPORARY}{path.stem}-"
    with _writing(path, size), tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as name:
        temporary = Path(name) / path.name
        fill(temporary)
        with temporary.open("r+b") as file:  # Windows cannot flush what is open for reading
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    """Turn the errors of writing a file of about `size` bytes into one that says what it needs."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free / 1e6
        raise UserError(
            f"cannot write {path} ({getattr(error, 'strerror', None) or error}): it needs "
            f"{max(size / 1e6, 1e-3):,.3f} MB, and {free:,.3f} MB are free there; make room, or "
            "choose another folder (runs_dir, --out)"
        ) from error


def write_pieces(
    path: Path, size: int, piece_size: int, piece: Callable[[int], tuple[bytes | memoryview, Any]]
) -> tuple[str, list[Any]]:
    """Write a file that may be larger than the memory, and continue one whose writer was killed.

    It grows in a temporary folder, where each finished piece has a record with its content hash.

    Args:
        path: where the file belongs; the caller holds a lock on it.
        size: of the whole file, in bytes.
        piece_size: bytes of each piece, of which the last may have fewer.
        piece: called with the number of each piece that is missing or damaged, in order; returns
            its bytes and a JSON-able value to keep with it.

    Returns:
        The file's sha256, and the value of each piece.

    Raises:
        UserError: as `write`; at once if the disk has less space than is missing.
    """
    folder = make_dir(path.parent / f"{TEMPORARY}{path.name}")
    growing, digest, values = folder / path.name, hashlib.sha256(), []
    with _writing(path, size):
        growing.touch()
        with growing.open("r+b") as file:
            if size - growing.stat().st_size > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for number in range(math.ceil(size / piece_size)):
                data, record = file.read(piece_size), folder / f"{number}.json"
                known = sealed(record) or {"sha256": ""}
                if hashlib.sha256(data).hexdigest() != known["sha256"]:
                    data, value = piece(number)
                    file.seek(number * piece_size)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    known = {"sha256": hashlib.sha256(data).hexdigest(), "value": value}
                    write_sealed(record, known)
                digest.update(data)
                values.append(known["value"])
        growing.replace(path)
    sweep(path.parent, path.name)
    return digest.hexdigest(), values


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file whole or not at all (see `write`)."""
    write(path, lambda temporary: temporary.write_bytes(data), len(data))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (see `write`)."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that carries its own content hash, for files that no other file vouches for."""
    plain = json.loads(json.dumps(value))  # as it will be read: lists for tuples, text for keys
    write_json(path, plain | {SEAL: fingerprints.json_hash(plain)})


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able `meta` as one safetensors file."""
    from safetensors.torch import save_file

    # safetensors stores row-major data only; a channels_last weight is contiguous in its own order.
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in flat.values())
    write(path, lambda temporary: save_file(flat, temporary, {"meta": json.dumps(meta)}), size)


# --- reading ----------------------------------------------------------------------------------


def sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, or None if it is not whole; the file is left as it is."""
    with suppress(OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop(SEAL) == fingerprints.json_hash(value):
            return value
    return None


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        DamagedFileError: if it is missing, or not what was written; it is then set aside.
    """
    if (value := sealed(path)) is None:
        raise _set_aside(path, "damaged")
    return value


def read_tensors(path: Path, digest: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        DamagedFileError: as `check`, and if the file is no safetensors file of `write_tensors`.
    """
    check(path, digest)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(file.metadata()["meta"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _set_aside(path, f"refused ({error})") from None


def check(path: Path, digest: str) -> None:
    """Check that a file is what was written.

    Raises:
        DamagedFileError: if it is missing or its sha256 is not `digest`; it is then set aside.
    """
    with suppress(FileNotFoundError, IsADirectoryError):
        if sha256(path) == digest:
            return
    raise _set_aside(path, "damaged (its content hash is not the recorded one)")


def _set_aside(path: Path, what: str) -> DamagedFileError:
    """Add ".damaged" to a file's name: nobody takes it for whole, and anybody can inspect it."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except FileNotFoundError:
        return DamagedFileError(f"{path} is missing")
    return DamagedFileError(f"{path} is {what} and set aside as {aside.name}")


# --- made once --------------------------------------------------------------------------------


def cached(
    path: Path,
    make: Callable[[], tuple[dict[str, "Tensor"], dict[str, Any]]],
    check_others: Callable[[dict[str, Any]], None] = lambda meta: None,
) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors and meta that are made once and then read.

    Beside the tensor file lies a JSON pointer, written last, that holds its content hash: what is
    damaged is named and made again. Other processes that request the same wait.

    Args:
        path: of the tensor file; its name covers all that decides the content.
        make: called if there is nothing whole.
        check_others: given the meta, raises `DamagedFileError` if other files that were made along
            with this one are not whole.
    """
    pointer = path.with_suffix(".json")
    with exclusive_lock(make_dir(path.parent) / path.stem, "made"):
        if pointer.is_file():
            try:
                tensors, meta = read_tensors(path, read_sealed(pointer)["sha256"])
                check_others(meta)
                return tensors, meta
            except DamagedFileError as error:
                print(f"{error}; making it again")
        sweep(path.parent, f"{path.stem}-")
        tensors, meta = make()
        write_tensors(path, tensors, meta)
        write_sealed(pointer, {"sha256": sha256(path)})
        return tensors, meta


@contextmanager
def exclusive_lock(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock on `path`; a second process waits, and says for whom.

    The lock is the operating system's, so that it ends with its holder.

    Args:
        path: what is made; `<path>.lock` and `<path>.holder` lie beside it.
        doing: what is done to it, such as "trained".
    """
    lock, holder = FileLock(f"{path}.lock"), path.with_name(f"{path.name}.holder")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        who = (holder.read_text("utf-8") if holder.exists() else "") or "another process"
        # Not to the standard output, which a notebook would show on its page.
        print(f"{path} is being {doing} by {who}; waiting for it", file=sys.stderr, flush=True)
        with timed("waiting for another process"):
            held = lock.acquire()
    with held:
        with suppress(OSError):  # without it the others wait for "another process"
            holder.write_text(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}", "utf-8")
        yield
