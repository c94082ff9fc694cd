"""A run whose last checkpoint is damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from common.backend import Backend
from common.commands.train import parse_recipe
from common.config import RunConfig
from common.recipes import RECIPES
from common.tests.training.test_loop import configured, faces, losses, run
from common.training.resume import find_checkpoint
from common.weights.checkpoint import STATE, WEIGHTS, DamagedCheckpoint, checkpoints, step_of

__all__ = ["faces"]


@pytest.fixture
def short(faces) -> RunConfig:
    """Leaves the checkpoints 14 and 15; `configured(faces)` goes on to step 30."""
    config = configured(faces, evaluate_every=1000)
    return dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, max_steps=15))


def damage(path: Path) -> None:
    (path / WEIGHTS).write_bytes(b"damaged")


def steps(folder: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(folder / "checkpoints")]


def forget_progress(path: Path) -> None:
    state = json.loads((path / STATE).read_text())
    del state["progress"]
    (path / STATE).write_text(json.dumps(state))


@pytest.mark.parametrize("spoil", [damage, forget_progress, lambda path: (path / STATE).unlink()])
@pytest.mark.parametrize("by_path", [False, True])
def test_a_run_goes_on_from_the_one_before(faces, short, tmp_path, capsys, spoil, by_path):
    config = configured(faces)
    run(short, tmp_path)
    before, last = checkpoints(tmp_path / "checkpoints")
    spoil(last)
    content = {path.name: path.read_bytes() for path in last.iterdir()}
    with pytest.raises(DamagedCheckpoint) as error:
        run(config, tmp_path)
    assert str(error.value).startswith(str(last))
    assert f"the one before it that is whole is {before}: --resume-from 14 goes on from there" in str(error.value)
    assert steps(tmp_path) == [14, 15]

    named = dataclasses.replace(config, resume_from=str(before) if by_path else "14")
    assert run(named, tmp_path).steps == 30
    aside = last.with_name("step-00000015.aside")
    assert f"kept aside, as the run goes on from step 14: {aside}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == content
    run(config, tmp_path / "unbroken")
    assert losses(tmp_path) == losses(tmp_path / "unbroken")

    assert run(named, tmp_path).rates == [], "the same command goes on from what is whole"
    assert "not needed, the last checkpoint, step 30, is whole" in capsys.readouterr().out


def test_the_same_step_may_be_damaged_again(faces, short, tmp_path):
    run(short, tmp_path)
    again = dataclasses.replace(short, resume_from="14")
    for _ in range(2):
        damage(tmp_path / "checkpoints" / "step-00000015")
        assert run(again, tmp_path).steps == 15
    assert {path.name for path in tmp_path.glob("checkpoints/*.aside*")} == {
        "step-00000015.aside",
        "step-00000015.aside2",
    }


def test_an_older_one_may_be_damaged_too(short, tmp_path):
    run(short, tmp_path)
    before, last = checkpoints(tmp_path / "checkpoints")
    oldest = shutil.copytree(before, before.with_name("step-00000003"))
    damage(last)
    damage(before)
    for named in (None, "14"):
        with pytest.raises(DamagedCheckpoint, match=f"that is whole is {oldest}: --resume-from 3 goes on"):
            find_checkpoint(tmp_path, named)
    for path in checkpoints(tmp_path / "checkpoints"):
        damage(path)
    with pytest.raises(DamagedCheckpoint, match=r"no older one is whole: train anew in another folder with --out"):
        find_checkpoint(tmp_path, None)


@pytest.mark.parametrize("named", ["13", "/elsewhere/step-00000014", ""])
def test_what_is_named_is_a_checkpoint_of_the_run(short, tmp_path, named):
    run(short, tmp_path)
    damage(checkpoints(tmp_path / "checkpoints")[-1])
    with pytest.raises(ValueError, match=rf"--resume-from: expected a checkpoint .* 14, 15 or its path, got \'{named}"):
        run(dataclasses.replace(short, resume_from=named), tmp_path)
    assert steps(tmp_path) == [14, 15]


def test_the_option():
    assert parse_recipe(Backend("numpy"), "train", RECIPES, ["lfw-small", "--resume-from", "14"]).resume_from == "14"
