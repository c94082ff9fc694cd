"""What pip installs: one name, `sface`, which works beside a user's own `common.py` and `data/`."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from common import __version__

ROOT = Path(__file__).parents[2]
NEEDS_PYTORCH = pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
OURS = "common|data|parity_tests|benchmarks|examples|pytorch_impl|mxnet_impl|jittor_impl"

BESIDE = """
import torch, common, data, my_losses
from sface import __version__
from sface.pytorch_impl import losses

assert common.MINE and data.MINE and __version__ == {version!r}
vectors, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
heads = [package.SFaceHead(8, 3) for package in (losses, my_losses)]
heads[1].load_state_dict(heads[0].state_dict())
ours, copied = (head(vectors, labels).loss for head in heads)
assert ours == copied != 0
"""


def run(*command: object, cwd: Path, path: Path | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the wheel of the sdist, installed."""
    folder = tmp_path_factory.mktemp("build")
    run("-c", f"import one_name; one_name.build_sdist({str(folder)!r})", cwd=ROOT / "build_backend")
    sdist = folder / f"sface-{__version__}.tar.gz"
    run("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", sdist, "-w", folder, cwd=folder)
    wheel = folder / f"sface-{__version__}-py3-none-any.whl"
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


@pytest.fixture
def users(tmp_path, site) -> Path:
    """A folder with files of a user's whose names are ours, and a copy of our losses."""
    (tmp_path / "data").mkdir()
    for file in ("common.py", "data/__init__.py"):
        (tmp_path / file).write_text("MINE = True\n")
    shutil.copytree(site / "sface" / "pytorch_impl" / "losses", tmp_path / "my_losses")
    return tmp_path


def test_one_name_is_installed_with_all_files(site):
    assert {path.name for path in site.iterdir()} == {"sface", f"sface-{__version__}.dist-info"}
    ours = [path for folder in OURS.split("|") for path in (ROOT / folder).rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT) for path in ours if not {"tests", "__pycache__"} & set(path.parts)}
    expected = {path for path in expected if path.parts[0] not in ("benchmarks", "examples")}
    files = {path.relative_to(site / "sface") for path in site.rglob("sface/**/*.*") if path.suffix != ".pyc"}
    assert expected == {path for path in files if path.parts[0] in OURS.split("|")}
    assert {Path("py.typed"), Path("requirements/pytorch.txt")} <= files


def test_modules_name_each_other_as_installed(site):
    for path in site.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                for name in [] if getattr(node, "level", 0) else names:
                    assert not re.match(rf"({OURS})\b", name), f"{path}: {name}"
                    file = site / name.replace(".", "/")
                    assert not name.startswith("sface") or file.is_dir() or file.with_suffix(".py").is_file(), name
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                at_run_time = rf"-m ({OURS})\b|^(common|\w+_impl|parity_tests)\.[\w.]+$|^\w+_impl$"
                assert not re.search(at_run_time, node.value), f"{path}: {node.value}"


def test_extras_are_those_of_the_requirements(site):
    metadata = (site / f"sface-{__version__}.dist-info" / "METADATA").read_text("utf-8")
    extras = {path.stem for path in (ROOT / "requirements").glob("*.txt")} - {"common"}
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == extras
    required = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert 'numpy==1.26.4; python_version < "3.13"' in required
    assert 'torch==2.13.0; extra == "all"' in required


@pytest.mark.framework
@NEEDS_PYTORCH
def test_the_loss_works_beside_a_users_files(site, users):
    run("-c", BESIDE.format(version=__version__), cwd=users, path=site)


@pytest.mark.framework
@NEEDS_PYTORCH
def test_the_commands_work_beside_a_users_files(site, users):
    def sface(package: str, *arguments: object) -> str:
        return run("-m", f"sface.{package}", *arguments, cwd=users, path=site)

    assert json.loads(sface("pytorch_impl", "info", "--json"))["sface"] == __version__
    sface("data", "synthetic", "--out", "faces", "--classes", 4, "--images", 3, "--size", 32, "--pairs", 10)
    small = ("--data.image-size", 32, "--optimiser.max-steps", 2, "--optimiser.batch-size", 4)
    trained = sface(
        "pytorch_impl", "train", "orl-demo", "--data.root", "faces", "--out", "run", "--device", "cpu", *small
    )
    assert "2 steps in" in trained
    assert (users / "run" / "report.html").is_file()
    assert "python -m sface.common COMMAND" in sface("common", "--help")
    assert "comparisons hold; covered: pytorch" in sface("parity_tests", "--backends", "pytorch", "--levels", 1)
