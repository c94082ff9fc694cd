"""Build wheels and sdists (PEP 517) whose packages all stand under one name, `sface`.

A clone has `common`, `data`, `pytorch_impl` ... at its top. Installed, these names would collide with those of others.
So a wheel holds `sface/common` ..., and lines that import a package or show its command say `sface.common`; setuptools
does the rest. A wheel requires what `requirements/` lists: common.txt always, each other file as an extra of its name.
"""

import contextlib
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import build_meta

ROOT = Path(__file__).parents[1]
NAME = "sface"
PACKAGES = ("common", "data", "jittor_impl", "mxnet_impl", "parity_tests", "pytorch_impl")
FILES = ("LICENSE", "README.md", "pyproject.toml")
SDIST_ONLY = (
    *("benchmarks", "build_backend", "docs", "examples", "Makefile"),
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml"),
)

_FIRST = f"({'|'.join(PACKAGES)})"
_REWRITTEN = (  # also in the examples of docstrings
    (rf"^( *(?:>>> )?from ){_FIRST}\b(?=[.\w]* import )", rf"\1{NAME}.\2"),
    (rf"^( *(?:>>> )?import ){_FIRST}\b(?=[.\w]* as )", rf"\1{NAME}.\2"),
    (rf"^( *(?:>>> )?)import {_FIRST}$", rf"\1from {NAME} import \2"),
    (rf"\b(python -m ){_FIRST}\b", rf"\1{NAME}.\2"),
)
_INIT = f'''"""SFace: {NAME}.pytorch_impl, {NAME}.mxnet_impl and {NAME}.jittor_impl, and what they share."""

from {NAME}.common import __version__ as __version__
'''


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    with _staged():
        return build_meta.build_wheel(str(Path(wheel_directory).absolute()), config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    with _staged():
        return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """The clone's files as they are, and PKG-INFO."""
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder) / prepare_metadata_for_build_wheel(folder)
        base = metadata.name.removesuffix(".dist-info")
        with tarfile.open(Path(sdist_directory) / f"{base}.tar.gz", "w:gz") as archive:
            archive.add(metadata / "METADATA", f"{base}/PKG-INFO", filter=_entry)
            for name in (*PACKAGES, *FILES, *SDIST_ONLY, "requirements"):
                archive.add(ROOT / name, f"{base}/{name}", filter=_entry)
    return f"{base}.tar.gz"


def under_one_name(text: str) -> str:
    """The text of a module of the clone, as it stands in a wheel."""
    for pattern, replacement in _REWRITTEN:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


def requirements(path: Path) -> list[str]:
    """The lines of a requirements file and of those that it includes, without comments."""
    found: list[str] = []
    for text in path.read_text("utf-8").splitlines():
        line = text.split("#")[0].strip()
        if line:
            found += requirements(path.parent / line[3:].strip()) if line.startswith("-r ") else [line]
    return list(dict.fromkeys(found))


@contextlib.contextmanager
def _staged() -> Iterator[None]:
    """Work in a temporary folder that setuptools can build, so that nothing is left in the clone."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        for name in (*PACKAGES, "requirements"):  # `info` reads the latter
            shutil.copytree(ROOT / name, stage / NAME / name, ignore=shutil.ignore_patterns("tests", "__pycache__"))
        for path in stage.rglob("*.py"):
            path.write_text(under_one_name(path.read_text("utf-8")), "utf-8")
        (stage / NAME / "__init__.py").write_text(_INIT, "utf-8")
        (stage / NAME / "py.typed").touch()
        for name in FILES:
            shutil.copy(ROOT / name, stage)
        (stage / "setup.py").write_text(f"import setuptools\nsetuptools.setup(**{_settings(stage)!r})\n", "utf-8")
        with contextlib.chdir(stage):
            yield


def _settings(stage: Path) -> dict[str, Any]:
    """What pyproject.toml leaves to setup.py."""
    folders = [path.parent.relative_to(stage) for path in (stage / NAME).rglob("*") if path.is_file()]
    always = requirements(ROOT / "requirements" / "common.txt")
    extras = {path.stem: requirements(path) for path in sorted((ROOT / "requirements").glob("*.txt"))}
    return {
        "packages": sorted({".".join(folder.parts) for folder in folders}),
        "package_data": {"": ["*"]},
        "install_requires": always,
        "extras_require": {
            name: [x for x in lines if x not in always] for name, lines in extras.items() if name != "common"
        },
    }


def _entry(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if Path(entry.name).name == "__pycache__" else entry
