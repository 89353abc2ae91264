"""Imports between the library's modules point downwards only, through at most eight layers."""

from graphlib import TopologicalSorter

from dlcvlib.utils.fingerprints import PACKAGE, imports

LAYERS = ["utils", "config", "data", "training", "methods", "evaluation", "plots", "report"]
"""From the lowest to the highest; above them are the command line and the notebooks."""
FLOORS = 8
IMPORTS = {path: imports(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}


def layer(path):
    name = path.relative_to(PACKAGE).parts[0]
    return LAYERS.index(name) if name in LAYERS else len(LAYERS)


def test_imports_point_downwards():
    pairs = [(module, name) for module, names in IMPORTS.items() for name in names]
    assert [f"{a} imports {b}" for a, b in pairs if layer(b) > layer(a)] == []
    relative = [path for path in IMPORTS if "from ." in path.read_text(encoding="utf-8")]
    assert relative == []  # `imports` does not see them


def test_there_are_few_layers_and_no_cycles():
    height = {}
    for module in TopologicalSorter(IMPORTS).static_order():  # a cycle is an error that names it
        height[module] = 1 + max((height[name] for name in IMPORTS[module]), default=0)
    assert 1 < max(height.values()) <= FLOORS
