"""Fingerprints of what decides a result: source code without comments, parameters, versions."""

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

PACKAGE = Path(__file__).parents[1]
_LOADED = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
"""This package as it was when it was loaded: a file that is edited under a running kernel is not
what that trains with."""


def _text(path: Path) -> str:
    return _LOADED.get(path) or path.read_text(encoding="utf-8")


def source_hash(paths: Iterable[Path]) -> str:
    """Hex digest of Python sources that comments, docstrings and layout do not change."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\n{_code(_text(path))}\n".encode())
    return digest.hexdigest()


@functools.cache
def _code(source: str) -> str:
    """A module without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_bare_string(line)] or [ast.Pass()]
    return ast.unparse(tree)


def _is_bare_string(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def module_hashes(names: Iterable[str]) -> dict[str, str]:
    """`source_hash` of modules of this package, by name, such as "methods/vae"."""
    return hashes(PACKAGE / f"{name}.py" for name in names)


def imported(source: str) -> list[Path]:
    """Modules of this package that a piece of code imports, directly or through others, sorted."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        new = _imports(waiting.pop()) - found
        found |= new
        waiting += map(_text, new)
    return sorted(found)


def import_hashes(*entries: Path) -> dict[str, str]:
    """`source_hash` of some files and of all modules of this package that they import.

    Returns:
        By name: "methods/vae" for a module of this package, the file's name for any other.
    """
    return hashes({*entries, *(path for entry in entries for path in imported(_text(entry)))})


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """`source_hash` of each file, by name as in `import_hashes`."""
    return {_name(path): source_hash([path]) for path in sorted(paths)}


def _name(path: Path) -> str:
    inside = path.is_relative_to(PACKAGE)
    return path.relative_to(PACKAGE).with_suffix("").as_posix() if inside else path.name


@functools.cache
def _imports(source: str) -> frozenset[Path]:
    """Modules of this package that a piece of code names in its import statements."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    own = (name.split(".")[1:] for name in names if name.startswith(f"{PACKAGE.name}."))
    paths = (PACKAGE.joinpath(*parts).with_suffix(".py") for parts in own)
    return frozenset(path for path in paths if path.is_file())


def json_hash(value: Mapping[str, Any]) -> str:
    """Hex digest of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def arrays_hash(arrays: "Iterable[np.ndarray]") -> str:
    """Hex digest of the content and the shapes of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package name."""
    return {name: version(name) for name in packages}
