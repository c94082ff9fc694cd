"""The pages say what is there: links, paths and commands."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOLDERS = ["docs", "requirements", *(path.parent.name for path in ROOT.glob("*/__init__.py"))]

# One process for all, since most of a start is imports.
START_EACH = """
import runpy, sys
for line in sys.stdin:
    module, *command = line.split()
    sys.argv = ["-m", *command, "--help"]  # as Python has it while it looks for the module
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    if status:
        sys.exit(f"python -m {line.strip()}: {status}")
"""


def text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)}|\*_impl)/[^`\s]*)`", prose(page)):
        pattern = re.sub("[A-Z]{2,}", "*", path.rstrip("/"))  # NAME stands for any name
        assert list(ROOT.glob(pattern)), f"{page}: {path}"


def test_the_map_has_every_room():
    rooms = {path.parent.name for path in ROOT.glob("common/*/*.py")} - {"tests"}
    listed = re.findall(r"^      (\w+)/ ", text("README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(rooms)


@pytest.mark.framework
def test_commands_start():
    pattern = re.compile(r"python -m (?:(parity_tests)|(pytorch_impl|common|data|benchmarks) +([a-z][a-z-]+))\b")
    pages = set(PAGES) - {
        "CHANGELOG.md",
        "docs/extending.md",
    }  # these name commands that are gone, or yet to be written
    commands = {" ".join(filter(None, found)) for page in pages for found in pattern.findall(text(page))}
    assert commands >= {"pytorch_impl train", "common report", "data align", "benchmarks step", "parity_tests"}
    done = subprocess.run(
        [sys.executable, "-c", START_EACH],
        cwd=ROOT,
        input="\n".join(sorted(commands)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.framework
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_code_of_the_readme_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```$", text("README.md"), re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
