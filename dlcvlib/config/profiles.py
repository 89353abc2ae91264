"""A chapter's parameters as command lines and notebooks hold them.

Every notebook's `parameters` cell holds the values of `quick`.
"""

import json
from collections.abc import Iterable
from typing import Any

import yaml

from dlcvlib.config import paths
from dlcvlib.config.schema import CHAPTERS, load
from dlcvlib.utils.errors import UserError


def parse_assignments(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`vae.kld_weight=0.5` -> {"vae": {"kld_weight": 0.5}}; the value is read as YAML.

    Raises:
        UserError: if an assignment has another form or names an unknown chapter.
    """
    changes: dict[str, dict[str, Any]] = {chapter: {} for chapter in CHAPTERS}
    for assignment in assignments:
        try:
            target, value = assignment.split("=", 1)
            chapter, name = target.strip().split(".", 1)
            changes[chapter][name] = yaml.safe_load(value)
        except (ValueError, KeyError, yaml.YAMLError):
            raise UserError(
                f"--set {assignment}: expected CHAPTER.NAME=VALUE, such as vae.kld_weight=0.5, "
                f"with a chapter of {', '.join(CHAPTERS)} and a value in YAML"
            ) from None
    return changes


def parameters_cell(chapter: str) -> str:
    """Source of the `parameters` cell of a chapter's notebooks: the values of `quick`."""
    lines = []
    for name, value in load("quick", chapter).model_dump().items():
        meaning = CHAPTERS[chapter].model_fields[name].description
        literal = json.dumps(value) if isinstance(value, str | list) else repr(value)
        lines.append(f"{name}: {type(value).__name__} = {literal}  # {meaning}")
    return "\n".join(lines)


def write_parameters_cells(chapter: str) -> int:
    """Put `parameters_cell` into the chapter's notebooks; the number of notebooks."""
    import nbformat

    files = list(paths.NOTEBOOKS.glob(f"{list(CHAPTERS).index(chapter) + 1}-*.ipynb"))
    for path in files:
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = parameters_cell(chapter)
        nbformat.write(notebook, path)
    return len(files)
