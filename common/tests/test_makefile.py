"""make finds an interpreter that fits, or says how to get one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
# It is of another version, and says what it is asked to make.
PYTHON = f"""#!/bin/sh
if [ "$1" = -c ]; then exec {sys.executable} -c "import sys; sys.version_info = (3, {{minor}}, 0); $2"; fi
echo made "$(basename $0)" "$@"
"""


@pytest.fixture
def make(tmp_path):
    """`make .venv/bin/python` where there are interpreters of these names, and perhaps uv."""

    def run(names: dict[str, int], *arguments: str) -> str:
        for name, minor in names.items():
            (tmp_path / name).write_text(PYTHON.format(minor=minor))
            (tmp_path / name).chmod(0o755)
        for tool in ("sh", "bash", "basename", "echo", "mkdir", "rm"):
            (tmp_path / tool).symlink_to(shutil.which(tool))
        command = [shutil.which("make"), "-f", MAKEFILE, ".venv/bin/python", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize(
    ("names", "arguments", "expected"),
    [
        ({"python3": 11, "python3.12": 12}, [], "made python3 -m venv .venv"),
        ({"python3": 13, "python3.12": 12}, [], "made python3.12 -m venv .venv"),
        ({"python3": 14}, [], "made python3 -m venv .venv"),
        ({"python3": 14, "python3.11": 11}, ["BACKEND=mxnet"], "made python3.11 -m venv .venv"),
        ({"python3": 14, "uv": 0}, ["BACKEND=mxnet"], "made uv venv --seed --python 3.12 .venv"),
        ({"python3": 14, "python3.12": 12}, ["PYTHON=python3"], "made python3 -m venv .venv"),
        ({"python3": 14}, ["BACKEND=jittor"], "Python 3.11 to 3.12 with venv is needed"),
        ({"python3": 15}, [], "Python 3.11 to 3.14 with venv is needed"),
        ({"python3": 12, "python3.10": 10}, ["PYTHON=python3.10"], "To get one: apt install"),
    ],
)
def test_the_interpreter(make, names, arguments, expected):
    assert expected in make(names, *arguments)


def test_an_environment_that_uv_cannot_finish_is_not_left(make, tmp_path):
    """uv may make it, and then lack the network to put pip into it."""
    (tmp_path / "uv").write_text("#!/bin/sh\nmkdir -p .venv/bin\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    assert "To get one: apt install" in make({"python3": 14}, "BACKEND=mxnet")
    assert not (tmp_path / ".venv").exists()
