"""The worked examples of docs/extending.md, applied to a copy of the project and run."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text("utf-8")
SECTIONS = {
    title: re.findall(r"^```(python|diff|sh)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
EXAMPLES = [title for title, blocks in SECTIONS.items() if blocks]
PACKAGES = ("common", "data", "parity_tests", "pytorch_impl")


@pytest.fixture
def project(tmp_path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    return tmp_path


def apply(diff: str, project: Path) -> None:
    """Apply a diff without line numbers; the old lines of each hunk must stand in their file once."""
    for path, hunks in re.findall(r"^--- (\S+)\n\+\+\+ \1\n(.*?)(?=^--- |\Z)", diff, re.MULTILINE | re.DOTALL):
        text = (project / path).read_text("utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            lines = [line or " " for line in hunk.splitlines()]
            old, new = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
            assert text.count(old) == 1, f"{path}: expected these lines once, found {text.count(old)}:\n{old}"
            text = text.replace(old, new)
        (project / path).write_text(text, "utf-8")


def follow(blocks: list[tuple[str, str]], project: Path) -> None:
    """Do what the blocks of a section say, in their order."""
    for language, block in blocks:
        first = block.splitlines()[0]
        if language == "diff":
            apply(block, project)
        elif first.startswith("# try it"):
            run(["bash", "-e", "-c", block] if language == "sh" else [sys.executable, "-c", block], project)
        else:
            path = project / first.removeprefix("# ")
            assert path.parent.is_dir(), f"expected the path of a new file in the first line, got {first!r}"
            assert not path.exists(), f"{path} is no new file"
            path.write_text(block, "utf-8")


def run(command: list[str], project: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=project, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_every_example_is_tried():
    assert len(EXAMPLES) == 6
    for title in EXAMPLES:
        assert any(block.startswith("# try it") for _, block in SECTIONS[title]), title


@pytest.mark.framework
@pytest.mark.parametrize("title", EXAMPLES)
def test_the_example_works(title, project):
    blocks = SECTIONS[title]
    if any("pytorch_impl" in block for _, block in blocks) and find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    follow(blocks, project)


def test_a_step_that_is_wrong_is_found(project):
    """Each hunk matters: without the last one, or with another anchor, the example fails."""
    blocks = SECTIONS["A learning-rate schedule"]
    without = [(language, block[: block.rindex("@@\n")] if language == "diff" else block) for language, block in blocks]
    with pytest.raises(AssertionError, match="AssertionError"):
        follow(without, project)
    elsewhere = [(language, block.replace("@@\n ", "@@\n x", 1)) for language, block in blocks]
    with pytest.raises(AssertionError, match="expected these lines once, found 0"):
        follow(elsewhere, project)
