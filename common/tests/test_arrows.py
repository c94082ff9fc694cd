"""Which way imports point, where a tool that reads source cannot see it: in a running interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("torch", "mxnet", "jittor")


def loaded(imports: list[str], wanted: tuple[str, ...]) -> str:
    code = f"import sys, {', '.join(imports)}; print([name for name in {wanted!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def modules(package: str) -> list[str]:
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    left_out = (".tests", ".backends", "__init__", "__main__")  # backends: the adapters, one framework each
    return [name for name in names if not any(part in name for part in left_out)]


@pytest.mark.parametrize("package", ["benchmarks", "common", "data", "parity_tests"])
def test_importing_everything_loads_no_framework(package):
    assert loaded(modules(package), FRAMEWORKS) == "[]"


def test_the_command_line_starts_with_nothing_installed():
    """`info` must be able to say what is missing, so until then nothing but the standard library may be imported."""
    assert (
        loaded(["common.commands.main", "common.commands.info"], ("numpy", "cv2", "tyro", "tqdm", *FRAMEWORKS)) == "[]"
    )
