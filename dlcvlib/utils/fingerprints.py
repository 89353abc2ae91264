"""Fingerprints of what decides a result: source code without comments, parameters, versions."""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
_LOADED = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
"""This package as it was when it was loaded: a file that is edited under a running kernel is not
what that trains with."""


def _text(path: Path) -> str:
    return _LOADED.get(path) or path.read_text(encoding="utf-8")


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Hex digests of Python sources that comments, docstrings and layout do not change.

    Returns:
        By name: "methods/vae" for a module of this package, the file's name for any other.
    """
    return {_name(path): _code_hash(_text(path)) for path in sorted(paths)}


def module_hashes(names: Iterable[str]) -> dict[str, str]:
    """`hashes` of modules of this package, by name, such as "methods/vae"."""
    return hashes(PACKAGE / f"{name}.py" for name in names)


def import_hashes(*entries: Path) -> dict[str, str]:
    """`hashes` of some files and of all modules of this package that they import."""
    return hashes({*entries}.union(*(imported(_text(entry)) for entry in entries)))


def _name(path: Path) -> str:
    inside = path.is_relative_to(PACKAGE)
    return path.relative_to(PACKAGE).with_suffix("").as_posix() if inside else path.name


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


@cache
def _code_hash(source: str) -> str:
    code = ast.unparse(_WithoutDocstrings().visit(ast.parse(source)))
    return hashlib.sha256(code.encode()).hexdigest()


@cache
def imported(source: str) -> frozenset[Path]:
    """Modules of this package that a piece of code imports, directly or through others."""
    direct = imports(source)
    return direct.union(*(imported(_text(path)) for path in direct))


@cache
def imports(source: str) -> frozenset[Path]:
    """Modules of this package that a piece of code imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", "")
            for alias in node.names:
                # What is imported is a module, or something in one.
                path = PACKAGE.parent.joinpath(*f"{module}.{alias.name}".split("."))
                found |= {path.with_suffix(".py"), path.parent.with_suffix(".py")}
    return frozenset(found & _LOADED.keys())


def json_hash(value: Mapping[str, Any]) -> str:
    """Hex digest of a JSON-able mapping, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package name."""
    return {name: version(name) for name in packages}
