"""`compile`: training compiles nothing after it; by commands whose operators go to a folder each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.synthetic import make_synthetic
from jittor_impl.runtime import jt

ROOT = Path(__file__).parents[2]
CACHE = Path(jt.flags.cache_path)
KEPT = CACHE / "kept-by-tests"

PROGRAM = """
import sys
from common.backend import Backend
from common.commands.main import main
from jittor_impl.__main__ import COMMANDS
from jittor_impl.runtime import jt

_, jt.flags.cache_path, jt.flags.python_path, *arguments = sys.argv
sys.exit(main(Backend("jittor"), arguments, COMMANDS))
"""


@pytest.fixture
def used(tmp_path):
    """Runs a command; returns its output and its operators' keys. What was compiled before is copied."""
    compiler = tmp_path / "compiler"
    KEPT.mkdir(exist_ok=True)
    compiler.write_text(f"""#!/bin/sh
for library; do :; done  # the last argument
name="${{library##*/}}"
cp "{CACHE}/jit/$name" "$library" 2> /dev/null && exit
cp "{KEPT}/$name" "$library" 2> /dev/null && exit
{jt.flags.python_path} "$@" || exit
cp "$library" "{KEPT}/$$" && mv "{KEPT}/$$" "{KEPT}/$name"
""")
    compiler.chmod(0o755)

    def run(*arguments: str) -> tuple[str, set[str]]:
        folder = tmp_path / arguments[0]
        for part in ("jit", "obj_files"):
            (folder / part).mkdir(parents=True)
        command = [sys.executable, "-c", PROGRAM, str(folder), str(compiler), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout, {key.name for key in (folder / "jit").glob("*.key")}

    return run


def test_training_compiles_nothing_after_it(used, tmp_path):
    data = make_synthetic(tmp_path / "set", classes=10, images=4, size=16, pairs=20)
    recipe = ["lfw-small", "--data.root", str(data), "--data.evaluate-on", "synthetic", "--data.image-size", "16"]
    recipe += ["--model.embedding-size", "8", "--optimiser.batch-size", "8", "--device", "cpu"]
    output, compiled = used("compile", *recipe)
    assert f"{len(compiled)} operators compiled in " in output
    assert f"cache  {tmp_path}/compile\n" in output
    _, trained = used(
        "train", *recipe, "--optimiser.max-steps", "5", "--angle-images", "16", "--out", f"{tmp_path}/run"
    )
    assert len(trained) > 60
    assert trained <= compiled
