"""The worked examples of docs/ run as they are written, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block's language, the name of its file, and its text."""
FOUND = {
    "attribute": ("warm", lambda r: r["1-5"]["attribute"] == "Warm"),
    "domain": ("mydigits", lambda r: len(r["3-2"]["usps->mydigits"]["accuracy"]) == 2),
    "method": ("with-mcd", lambda r: has_everything_of_mcd(r)),
    "backbone": ("residual", lambda r: "Conv 1×1" in str(r["3-5"]["layers"])),
    "notebook": ("gain", lambda r: r["4-5"]["gain_by_digit"]["digit"] == list(range(10))),
}
"""Page -> its report, and what must be in that."""


def has_everything_of_mcd(results):
    """Accuracies, two claims for each pair, and what is measured of its features."""
    fourth, claims = results["4-1"], [row["claim"] for row in results["4-1"]["claims"]]
    assert len(fourth["usps->mnistm"]["mcd"]["accuracy"]) == 2
    assert sum(claim.startswith("MCD is more accurate") for claim in claims) == 6
    return "MCD" in results["4-2"]["measured_runs"]["method"]


def test_all_pages_are_in_the_index_and_lead_somewhere():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {f"{page}.md" for page in FOUND} <= pages
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


@pytest.mark.parametrize("page", FOUND)
def test_a_worked_example_runs_as_written(page, tmp_path):
    for name in ("dlcvlib", "notebooks", "params"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path}
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for language, name, block in BLOCK.findall(text):
        if language == "python":
            (tmp_path / name).write_text(block, encoding="utf-8")
            continue
        command = {"diff": ["git", "apply", "-"], "sh": ["bash", "-e"]}[language]
        how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, input=block, check=False, **how)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    folder, found = FOUND[page]
    report = tmp_path / folder
    assert found(json.loads((report / "results.json").read_text(encoding="utf-8")))
    assert (report / "report.pdf").is_file()
