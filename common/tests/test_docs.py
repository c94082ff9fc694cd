"""The pages say what is there: links, paths and commands."""

import os
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


# What the page takes for granted, small: a run that was evaluated, photos, a detector, a data set and a foreign model.
BEFORE = """
import cv2, shutil
import numpy as np
from pathlib import Path
from common.backend import Backend
from common.commands.main import main
from common.tests.onnx_models import write_model
from common.tests.yellow_faces import SquareDetector, squares
from data.synthetic import make_synthetic

root = make_synthetic(Path("datasets/mine"), classes=4, images=5, pairs=20)
shutil.copy(root / "synthetic.bin", root / "lfw.bin")
small = "--data.image-size 32 --data.on-wrong-size resize --optimiser.max-steps 1 --optimiser.batch-size 4 --device cpu"
command = f"train lfw-small --data.root {root} --data.evaluate-on lfw --out runs/mine {small}"
assert main(Backend("pytorch"), command.split()) == 0
cv2.FaceDetectorYN = type("FaceDetectorYN", (), {"create": SquareDetector})
for name in ("yunet.onnx", "ann.jpg", "bob.jpg"):
    Path(name).write_bytes(squares((20, 30, 60)))
Path("aligned").mkdir()
cv2.imwrite("aligned/1.png", np.zeros((16, 16, 3), np.uint8))
write_model(Path("foreign.onnx"), np.ones((768, 8)))
"""


@pytest.mark.framework
@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_code_of_the_page_on_python_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", text("docs/python.md"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    checks = "assert same.shape == () and cosines.shape == (1, 1) and 0.5 < result.accuracy < 1"
    blocks.insert(3, checks)  # `result` is another one after the last block
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([BEFORE, *blocks])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
