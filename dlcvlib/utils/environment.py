"""Does an environment have what pyproject.toml asks for, and is it what constraints.txt pins?

Run as a script (`python dlcvlib/utils/environment.py [extra]`), it exits with 1 and prints what is
missing. It imports nothing of this package, so that any Python can run it.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing(extra: str = "") -> list[str]:
    """The requirements of pyproject.toml, and of one of its extras, that are not met."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    unmet = []
    if python_version() not in SpecifierSet(project["requires-python"]):
        unmet.append(f"python{project['requires-python']}")
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    for requirement in map(Requirement, wanted):
        try:
            met = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            met = False
        if not met:
            unmet.append(str(requirement))
    return unmet


def python_version() -> str:
    """Such as "3.11.7"."""
    return ".".join(map(str, sys.version_info[:3]))


def deviations() -> list[str]:
    """Installed versions that are not the ones last tested: "name 1.2 (tested with 1.1)"."""
    from packaging.requirements import Requirement

    found = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pin = Requirement(line)
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        if not pin.specifier.contains(installed, prereleases=True):
            found.append(f"{pin.name} {installed} (tested with {pin.specifier})")
    return found


if __name__ == "__main__":
    if unmet := missing(*sys.argv[1:2]):
        sys.exit("missing: " + ", ".join(unmet))
