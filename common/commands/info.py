"""`info`: what is installed, what is missing, and the command that installs it.

Until it knows that nothing is missing, it imports the standard library only.
"""

import argparse
import json
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from common import __version__
from common.backend import Backend, how_to_install

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
        ValueError: a line is neither a comment, `-r FILE` nor `NAME==VERSION`, perhaps for some versions of Python.
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


def describe(backend: Backend) -> dict[str, Any]:
    """Versions, and if no package is missing: the device, backbones and recipes. JSON values."""
    listed = packages(REQUIREMENTS / f"{backend.name}.txt")
    facts: dict[str, Any] = {
        "sface": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package.name: {"expected": package.needed, "found": package.found} for package in listed},
        "install": None if all(package.fits for package in listed) else how_to_install(backend.name),
    }
    if all(package.found is not None for package in listed):
        from common.recipes import RECIPES

        runtime = backend.module("runtime")
        facts |= {
            "framework": runtime.describe(runtime.resolve_device("auto")),
            "backbones": list(backend.module("backbones").BACKBONES),
            "recipes": list(RECIPES),
        }
    return facts


def page(facts: Mapping[str, Any]) -> str:
    """What `describe` gives, for the user."""
    lines = [f"sface {facts['sface']}, Python {facts['python']} on {facts['platform']}", ""]
    for name, package in facts["packages"].items():
        fits = Package(name, package["expected"], package["found"]).fits
        remark = "" if fits else f"   expected {package['expected']}"
        lines.append(f"  {name:<24} {package['found'] or 'missing':<14}{remark}")
    if facts["install"]:
        lines += ["", f"Install what is missing: {facts['install']}"]
    if "framework" in facts:
        lines += ["", *(f"  {name:<24} {value}" for name, value in facts["framework"].items()), ""]
        lines += [f"Backbones: {', '.join(facts['backbones'])}", f"Recipes:   {', '.join(facts['recipes'])}"]
    return "\n".join(lines)


def run(backend: Backend, arguments: list[str]) -> int:
    """Print the page, or with --json the facts; status 1 if a package is missing."""
    parser = argparse.ArgumentParser(
        f"python -m {backend.package} info", description="Print versions, device, backbones and recipes."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args(arguments).json
    facts = describe(backend)
    print(json.dumps(facts, indent=2) if as_json else page(facts))
    return 0 if "framework" in facts else 1
