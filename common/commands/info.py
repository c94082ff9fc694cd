"""`info`: what is installed, what is missing, and the command that installs it.

Until it knows that nothing is missing, it imports the standard library only.
"""

import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from common.backend import Backend

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


@dataclass(frozen=True)
class Package:
    """A line of a requirements file beside what is installed."""

    name: str
    needed: str
    found: str | None

    @property
    def fits(self) -> bool:
        # a build tag such as +cpu or +cu130 is the same version
        return self.found is not None and self.found.split("+")[0] == self.needed


def packages(requirements: Path) -> list[Package]:
    """The pinned packages of a requirements file and of those that it includes, in order, for this Python.

    Raises:
        ValueError: a line is neither a comment, `-r FILE` nor `NAME==VERSION`, perhaps for Python below or from a version.
    """
    found: dict[str, Package] = {}
    for number, text in enumerate(requirements.read_text("utf-8").splitlines(), 1):
        line = text.split("#")[0].strip()
        if not line:
            continue
        if line.startswith("-r "):
            found |= {package.name: package for package in packages(requirements.parent / line[3:].strip())}
            continue
        pin = re.fullmatch(r"""([\w.-]+)==([\w.]+)(?:; python_version (<|>=) "3\.(\d+)")?""", line)
        if pin is None:
            raise ValueError(f"{requirements} line {number}: expected NAME==VERSION, got {line!r}")
        name, needed, limit, minor = pin.groups()
        if limit and (sys.version_info < (3, int(minor))) != (limit == "<"):
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        found[name] = Package(name, needed, version)
    return list(found.values())


def describe(backend: str) -> tuple[str, bool]:
    """A page for the user: Python, machine and packages of a backend; and whether all packages are there."""
    requirements = REQUIREMENTS / f"{backend}.txt"
    listed = packages(requirements)
    lines = [f"Python {platform.python_version()} on {platform.platform()}", ""]
    for package in listed:
        remark = "" if package.fits else f"   expected {package.needed}"
        lines.append(f"  {package.name:<24} {package.found or 'missing':<14}{remark}")
    if not all(package.fits for package in listed):
        lines += ["", f"Install what is missing: pip install -r {requirements.parent.name}/{requirements.name}"]
    return "\n".join(lines), all(package.found is not None for package in listed)


def run(backend: Backend, arguments: list[str]) -> int:
    """Print the page; status 1 if a package is missing."""
    page, complete = describe(backend.name)
    print(page)
    if not complete:
        return 1
    from common.recipes import RECIPES

    runtime = backend.module("runtime")
    print()
    for name, value in runtime.describe(runtime.resolve_device("auto")).items():
        print(f"  {name:<24} {value}")
    print(f"\nBackbones: {', '.join(backend.module('backbones').BACKBONES)}")
    print(f"Recipes:   {', '.join(RECIPES)}")
    return 0
