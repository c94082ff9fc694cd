"""`compile`: what it lists is what a run compiles, and what it compiles Jittor takes for its own."""

from pathlib import Path

from common.commands.main import main
from common.commands.train import parse_recipe
from common.recipes import RECIPES
from jittor_impl import compiling
from jittor_impl.__main__ import COMMANDS
from jittor_impl.runtime import jt
from jittor_impl.tests.conftest import BACKEND

CACHE = Path(jt.flags.cache_path)
SMALL = ["lfw-small", "--data.image-size", "16", "--model.embedding-size", "8", "--optimiser.batch-size", "6"]
SMALL += ["--device", "cpu"]


def test_what_is_listed_is_what_a_run_compiles(tmp_path):
    config = parse_recipe(BACKEND, "compile", RECIPES, SMALL)
    compiling._train_and_embed(BACKEND, config, config.optimiser.batch_size)
    (tmp_path / "jit").mkdir()
    with compiling._listed(SMALL, tmp_path) as operators:
        listed = {path.name: key.replace(f"{tmp_path}/", f"{CACHE}/") for path, key in operators}
    assert len(listed) > 60
    for name, key in listed.items():
        assert (CACHE / "jit" / name).read_text("utf-8") == key
        assert (tmp_path / "jit" / name.replace(".so.key", ".cc")).exists()


def test_a_key_is_written_if_its_command_succeeds(tmp_path):
    (tmp_path / "obj_files").mkdir()
    keys = {tmp_path / "whole": "touch made\n# of", tmp_path / "failed": "false\n# of"}
    compiling._compile(iter(keys.items()), tmp_path)
    assert (tmp_path / "obj_files" / "made").exists()
    assert (tmp_path / "whole").read_text() == "touch made\n# of"
    assert not (tmp_path / "failed").exists()


def test_the_command(capsys):
    assert main(BACKEND, ["compile", *SMALL], COMMANDS) == 0
    output = capsys.readouterr().out
    assert " operators compiled in " in output
    assert f"cache  {CACHE}\n" in output
    assert main(BACKEND, ["--help"], COMMANDS) == 0
    assert "  compile   Compile Jittor" in capsys.readouterr().out
    assert main(BACKEND, ["compile"], COMMANDS) == 0
    assert capsys.readouterr().out == f"cache  {CACHE}\n"
