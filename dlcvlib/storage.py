"""Files that are written whole or not at all, and read only if they are what was written.

A file is written beside its place under a temporary name, flushed to the disk and renamed. A
tensor file carries a JSON `meta` in its safetensors header; whoever refers to a file by its
`sha256` notices a flipped byte or a cut tail. Nothing here unpickles.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dlcvlib.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".tmp-"
"""Prefix of every temporary name, so that leftovers of a kill can be swept."""


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
        with tempfile.TemporaryFile(dir=path, prefix=TEMPORARY):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {path} ({error.strerror}): "
            "make it writable, or choose another folder (runs_dir, --out)"
        ) from error
    return path


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that a killed process left in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a temporary file, then put it at `path` in one step.

    Raises:
        UserError: if the disk is full or the folder cannot be written; `path` is then as it was.
    """
    handle, name = tempfile.mkstemp(dir=make_dir(path.parent), prefix=TEMPORARY, suffix=path.suffix)
    temporary = Path(name)
    os.close(handle)
    try:
        fill(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): free some space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (see `write`)."""
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a binary file whole or not at all (see `write`)."""
    write(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], meta: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able `meta` as one safetensors file."""
    from safetensors.torch import save_file

    # safetensors stores row-major data only; a channels_last weight is contiguous in its own order.
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"meta": json.dumps(meta)}
    write(path, lambda temporary: save_file(flat, temporary, metadata=header))


def read_tensors(path: Path, digest: str) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        DamagedFileError: if the file is missing or its sha256 is not `digest`.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise DamagedFileError(f"{path} is missing")
    if sha256(path) != digest:
        raise DamagedFileError(f"{path} is damaged: its content hash is not the recorded one")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["meta"])


def kept(
    path: Path, make: Callable[[], tuple[Mapping[str, "Tensor"], Mapping[str, Any]]]
) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors and meta that are made once and then read.

    Beside the tensor file lies a JSON pointer, written last, that holds its content hash: what is
    damaged is named and made again. Who else wants the same waits.

    Args:
        path: of the tensor file; its name covers all that decides the content.
        make: called if there is nothing whole.
    """
    pointer = path.with_suffix(".json")
    with _sole(make_dir(path.parent), path.stem):
        if pointer.is_file():
            try:
                digest = json.loads(pointer.read_text(encoding="utf-8"))["sha256"]
                return read_tensors(path, digest)
            except DamagedFileError as error:
                print(f"{error}; making it again")
            except (OSError, ValueError, KeyError, TypeError):
                print(f"{pointer} is damaged; making {path.name} again")
            pointer.unlink(missing_ok=True)
        tensors, meta = make()
        write_tensors(path, tensors, meta)
        write_json(pointer, {"sha256": sha256(path)})
        return dict(tensors), dict(meta)


@contextmanager
def _sole(folder: Path, stem: str) -> Iterator[None]:
    """Hold the lock of one kept file; the operating system's, so that it dies with its holder."""
    lock = FileLock(folder / f"{stem}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is making {folder / stem}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class DamagedFileError(Exception):
    """A file that is not what was written; whoever reads it makes it again."""
