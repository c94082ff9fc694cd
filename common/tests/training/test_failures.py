"""Runs that fail in their middle for want of memory or disk: what they say, and that the same command goes on."""

import dataclasses
import errno
import os
import re

import pytest

from common.backend import Backend
from common.commands.main import main
from common.tests.numpy_trainer import NumpyTrainer
from common.tests.training.test_loop import configured, faces, losses, run
from common.training import loop
from common.training.run_log import RunLog
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint

__all__ = ["faces"]

OUT_OF_MEMORY = {
    "Python": MemoryError(),
    "NumPy": MemoryError("Unable to allocate 7.11 PiB for an array with shape (1000000000000000,)"),
    "PyTorch, CUDA": RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 10 GiB\nand more"),
    "PyTorch, CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 12"),
    "MXNet, CPU": RuntimeError("Traceback (most recent call last):\n  x.h, line 74\nFailed to allocate CPU Memory"),
    "MXNet, CUDA": RuntimeError("Traceback:\n  Check failed: e == cudaSuccess: cudaMalloc retry failed: out of memory"),
    "C++": RuntimeError("std::bad_alloc"),
}


@pytest.fixture
def train(faces, tmp_path, monkeypatch, capsys):
    """`train` of 30 steps with checkpoints at 7, 10, 14 and so on, of a trainer; returns status and stderr."""
    config = configured(faces, out=tmp_path)
    monkeypatch.setattr("common.commands.train.parse_recipe", lambda *_: config)
    monkeypatch.setattr("common.commands.train._report", lambda *_: None)

    def train(trainer: NumpyTrainer | None = None) -> tuple[int, str]:
        made = trainer or NumpyTrainer(config, 6)
        monkeypatch.setattr(Backend, "create_trainer", lambda *_: made)
        return main(Backend("numpy"), ["train", "lfw-small"]), capsys.readouterr().err

    return train


def check_that_it_goes_on(train, faces, tmp_path) -> None:
    assert train() == (0, "")
    run(configured(faces), tmp_path / "unbroken")
    assert losses(tmp_path) == losses(tmp_path / "unbroken")


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_out_of_memory(train, faces, tmp_path, error):
    class Greedy(NumpyTrainer):
        def train_step(self, *arguments):
            if self.steps == 12:
                raise error
            super().train_step(*arguments)

    status, said = train(Greedy(configured(faces), 6))
    assert status == 1
    line = (str(error) or "MemoryError").splitlines()[-1 if "MXNet" in str(error) or "Trace" in str(error) else 0]
    last = tmp_path / "checkpoints" / "step-00000010"
    assert said.startswith(f"error: out of memory ({line.strip()}); the last checkpoint stands, {last}; free memory")
    assert "a smaller --optimiser.batch-size" in said
    assert said.count("\n") == 1
    check_that_it_goes_on(train, faces, tmp_path)


def test_another_error_of_a_framework_keeps_its_traceback(train, faces):
    class Broken(NumpyTrainer):
        def train_step(self, *arguments):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(Broken(configured(faces), 6))


def test_out_of_memory_before_the_first_step(train, monkeypatch):
    """Where the trainer is made; and other commands have another option."""
    monkeypatch.setattr("common.commands.train.open_dataset", lambda *_: (_ for _ in ()).throw(MemoryError("1 PiB")))
    assert train() == (1, "error: out of memory (1 PiB); try a smaller --optimiser.batch-size\n")
    monkeypatch.setattr("common.commands.evaluate.run", lambda *_: (_ for _ in ()).throw(MemoryError("1 PiB")))
    assert main(Backend("numpy"), ["evaluate"]) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("what", ["checkpoint", "log", "evaluation"])
def test_a_disk_that_takes_no_more(train, faces, tmp_path, monkeypatch, what, number):
    """From step 13 on; 14 is saved, 20 evaluated."""
    trainer = NumpyTrainer(configured(faces), 6)

    def until_then(write):
        def wrapped(*arguments):
            if trainer.steps > 12:
                raise OSError(number, os.strerror(number), "/disk/file")
            return write(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        if what == "checkpoint":
            patch.setattr(checkpoint, "save_file", until_then(checkpoint.save_file))
        elif what == "log":
            patch.setattr(RunLog, "write", until_then(RunLog.write))
        else:
            patch.setattr(loop, "save_evaluation", until_then(loop.save_evaluation))
        status, said = train(trainer)
    assert status == 1
    last = tmp_path / "checkpoints" / f"step-000000{20 if what == 'evaluation' else 10}"
    assert latest_checkpoint(tmp_path) == last
    assert re.fullmatch(
        rf"error: .*{os.strerror(number)}.*; the last checkpoint stands, {last}; make room there, and start the same "
        "command again to go on\n",
        said,
    )
    check_that_it_goes_on(train, faces, tmp_path)


def test_a_lock_that_cannot_be_removed_hides_no_error(train, faces, tmp_path, monkeypatch):
    """As on a file system that became read-only."""

    class Full(NumpyTrainer):
        def state(self):
            monkeypatch.setattr("pathlib.Path.unlink", refuse)
            raise MemoryError

    def refuse(*_, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    assert "no checkpoint had been saved" in train(Full(dataclasses.replace(configured(faces)), 6))[1]
