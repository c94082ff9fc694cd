"""Runs that fail in their middle: what they say, that no step is lost, and that the same command goes on."""

import dataclasses
import errno
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from common.backend import Backend
from common.commands.main import main
from common.datasets.loader import epoch_order
from common.datasets.training_sets import open_dataset
from common.tests.numpy_trainer import NumpyTrainer
from common.tests.training.test_loop import StopAt, configured, faces, losses, run
from common.training import loop
from common.training.failures import Diverged
from common.training.loop import fit
from common.training.run_log import RunLog, read_log
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
    "Jittor, CPU": RuntimeError("Traceback:\n[Reason]: could not create a memory object\x1b[m"),
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
    line = line.strip().removesuffix("\x1b[m")
    assert said.startswith(f"error: out of memory ({line}); the last checkpoint stands, {last}; free memory")
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
        rf"error: .*{os.strerror(number)}.*; the last checkpoint stands, {last}; "
        "make room there, or make it writable, and start the same command again to go on\n",
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


@pytest.mark.parametrize("break_at", [1, 9, 30])
def test_a_loss_that_is_not_finite_stops_the_run(faces, tmp_path, break_at):
    config = configured(faces, log_every=4)
    with pytest.raises(Diverged, match=f"the loss of step {break_at} is not finite") as error:
        run(config, tmp_path, break_at=break_at)
    good = latest_checkpoint(tmp_path)
    if break_at == 1:
        assert good is None
        assert "no checkpoint had been saved" in str(error.value)
    else:
        assert checkpoint.step_of(good) < break_at
        assert str(good) in str(error.value)
    if (tmp_path / "log.jsonl").exists():
        assert all(r["step"] < break_at for r in read_log(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("name", ["weight", "velocity"])
@pytest.mark.parametrize(("step", "stopped"), [(1, True), (7, False), (9, True), (21, False), (30, False)])
def test_an_array_that_is_not_finite_is_not_saved(faces, tmp_path, name, step, stopped):
    """At a save, at the end and at a stop, with a finite loss. A run goes on from the last good checkpoint."""
    config = configured(faces)

    def damage():
        getattr(trainer, name)[2, 5] = np.nan
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = StopAt(config, 6, step=step, action=damage)
    canonical = {"weight": "head.class_weight", "velocity": "momentum.head.class_weight"}[name]
    with pytest.raises(Diverged, match=f"after step {step} {canonical} holds NaN .*--optimiser.clip-norm") as error:
        fit(trainer, open_dataset(faces), config, tmp_path)
    good = latest_checkpoint(tmp_path)
    assert (good and checkpoint.step_of(good)) == {1: None, 7: None, 9: 7, 21: 14, 30: 28}[step]
    assert (f"the last good checkpoint is {good};" if good else "no checkpoint had been saved") in str(error.value)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    run(config, tmp_path)
    run(config, tmp_path / "unbroken")
    assert losses(tmp_path) == losses(tmp_path / "unbroken")


def test_all_ranks_stop_at_what_rank_0_cannot_save(faces, tmp_path):
    config = configured(faces)
    trainer = NumpyTrainer(config, 6)
    trainer.ranks = SimpleNamespace(rank=1, count=2, total=lambda number: 2 * (number + (trainer.steps == 7)))
    with pytest.raises(Diverged, match=r"after step 7 momentum\.head\.class_weight holds NaN"):
        fit(trainer, open_dataset(faces), config, tmp_path)


class Pair:
    """One of two ranks, each of which is a thread; a rank that waits for the other in vain fails."""

    count, numbers, meeting = 2, [0, 0], threading.Barrier(2, timeout=10)

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def total(self, number: float) -> float:
        self.numbers[self.rank] = number
        self.meeting.wait()
        found = sum(self.numbers)
        self.meeting.wait()
        return found


@pytest.mark.parametrize("bad", ["weights", "image"])
def test_several_ranks_save_or_diverge_where_an_evaluation_fails(faces, tmp_path, bad):
    """Rank 0 alone evaluates; a checkpoint needs all ranks."""

    class Failing(NumpyTrainer):
        def embed(self, images):
            failed = self.steps == 10 and self.ranks.rank == 0
            return super().embed(images) * (np.nan if failed else 1)

        def train_step(self, *arguments):
            super().train_step(*arguments)
            if bad == "weights" and self.steps == 10:
                self.weight[2, 5] = np.nan

    def failure(rank: int) -> BaseException | None:
        trainer = Failing(config, 6)
        trainer.ranks = Pair(rank)
        try:
            fit(trainer, open_dataset(faces), config, tmp_path)
        except (ValueError, ArithmeticError, threading.BrokenBarrierError) as error:
            Pair.meeting.abort()
            return error

    config = configured(faces)
    Pair.meeting.reset()
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(failure, (0, 1)))
    steps = [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "checkpoints")]
    if bad == "weights":
        expected = f"after step 10 head.class_weight holds NaN .* checkpoint is {latest_checkpoint(tmp_path)};"
        assert all(isinstance(error, Diverged) and re.match(expected, str(error)) for error in found), found
        assert steps == [7]
    else:
        assert "its embedding is not finite" in str(found[0])
        assert steps == [7, 10]


def test_bad_data_loses_nothing(faces, tmp_path):
    """An image is whole when it is read first, and broken in the second epoch, where step 11 wants it."""
    config = configured(faces)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=1))  # reads in order
    unlucky = int(epoch_order(0, 1, 48)[4 * 8 + 3])

    class Breaking:
        num_classes, fingerprint = 6, ""

        def __init__(self) -> None:
            self.good, self.reads = open_dataset(faces), 0

        def __len__(self) -> int:
            return len(self.good)

        def sample(self, index):
            self.reads += index == unlucky
            sample = self.good.sample(index)
            return sample._replace(encoded=b"broken") if index == unlucky and self.reads > 1 else sample

    with pytest.raises(ValueError, match="do not decode"):
        fit(NumpyTrainer(config, 6), Breaking(), config, tmp_path / "run")
    assert latest_checkpoint(tmp_path / "run").name == "step-00000010"
    run(config, tmp_path / "run")
    run(config, tmp_path / "unbroken")
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


def test_a_disk_full_while_saving_loses_nothing(faces, tmp_path, monkeypatch):
    config = configured(faces)
    original = checkpoint.save_file

    def full_at_step_14(arrays, path):
        if "step-00000014" in str(path):
            raise OSError(28, "No space left on device")
        original(arrays, path)

    monkeypatch.setattr(checkpoint, "save_file", full_at_step_14)
    with pytest.raises(OSError, match="No space left"):
        run(config, tmp_path)
    assert checkpoint.load_checkpoint(latest_checkpoint(tmp_path)).step == 10
    assert not list((tmp_path / "checkpoints").glob(".*"))
    monkeypatch.undo()
    run(config, tmp_path)
    run(config, tmp_path / "unbroken")
    assert losses(tmp_path) == losses(tmp_path / "unbroken")


def test_an_evaluation_that_fails_loses_nothing(faces, tmp_path, monkeypatch):
    """A set that was whole at the start and is read in vain after 10 steps: they are saved, and the run can go on."""

    def shrunk(*_: object, **__: object) -> None:
        raise ValueError("synthetic.bin has shrunk")

    monkeypatch.setattr("common.training.loop.evaluate", shrunk)
    with pytest.raises(ValueError, match="has shrunk"):
        run(configured(faces), tmp_path / "run")
    assert latest_checkpoint(tmp_path / "run").name == "step-00000010"
    monkeypatch.undo()
    run(configured(faces), tmp_path / "run")
    run(configured(faces), tmp_path / "unbroken")
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
