"""Imports between the library's modules point downwards only, through at most seven layers."""

import ast
from functools import cache

from conftest import ROOT

LAYERS = ["utils", "config", "data", "training", "methods", "evaluation", "plots", "report"]
"""From the lowest to the highest; above them are the command line and the notebooks."""
FLOORS = 7

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "dlcvlib").rglob("*.py")
}


@cache
def imports(module):
    """Modules of the library that a module imports anywhere, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return sorted(names & FILES.keys())


def layer(module):
    package = module.split(".")[1]
    return LAYERS.index(package) if package in LAYERS else len(LAYERS)


def longest(module, path=()):
    """The longest chain of imports from a module downwards."""
    assert module not in path, f"a cycle: {' > '.join([*path, module])}"
    below = [longest(name, (*path, module)) for name in imports(module)]
    return [module, *max(below, key=len, default=[])]


def test_imports_point_downwards():
    upwards = [
        f"{module} imports {name}"
        for module in FILES
        for name in imports(module)
        if layer(name) > layer(module)
    ]
    assert upwards == []


def test_there_are_few_layers_and_no_cycles():
    chain = max((longest(module) for module in FILES), key=len)
    assert len(chain) <= FLOORS, " > ".join(chain)
