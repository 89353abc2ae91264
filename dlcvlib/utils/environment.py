"""Does an environment have what pyproject.toml asks for, and is it what constraints.txt pins?

Run as a script (`python dlcvlib/utils/environment.py [extra]`), it exits with 1 and prints what is
missing. It imports nothing of this package, so that any Python can run it.
"""

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYTHON = ".".join(map(str, sys.version_info[:3]))


def missing(extra: str = "") -> list[str]:
    """The requirements of pyproject.toml, and of one of its extras, that are not met."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [f"python{project['requires-python']}", *project["dependencies"]]
    extras = project.get("optional-dependencies", {})
    for name in extras[extra] if extra else ():
        own = name.removeprefix("dlcvlib[").removesuffix("]")  # an extra that is part of this one
        required += extras.get(own, [name])
    return [str(requirement) for requirement, _ in _unmet(required)]


def deviations() -> list[str]:
    """Installed versions that are not the ones last tested: "name 1.2 (tested with ==1.1)"."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    # A package that is not installed belongs to an extra.
    return [f"{p.name} {has} (tested with {p.specifier})" for p, has in _unmet(pins) if has]


def _unmet(requirements: Iterable[str]) -> Iterator[tuple["Requirement", str]]:
    """Requirements that are not met, each with the version that is installed, "" if none is."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requirements):
        try:
            installed = PYTHON if requirement.name == "python" else version(requirement.name)
        except PackageNotFoundError:
            installed = ""
        if not installed or not requirement.specifier.contains(installed, prereleases=True):
            yield requirement, installed


if __name__ == "__main__":
    if unmet := missing(*sys.argv[1:2]):
        sys.exit("missing: " + ", ".join(unmet))
