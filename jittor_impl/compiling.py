"""`compile`: Jittor's core and the operators of a recipe, so that training and CI need not wait for them.

Jittor compiles an operator when it first runs it, one after the other: its threads crash, and its lock is one for the
whole graph. So here a first run only says which there are: in another process, each is compiled to one that does
nothing. Their sources are meanwhile compiled on all cores. A second run, on few images, compiles what the first missed.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.backend import Backend
from common.commands.train import parse_recipe
from common.config import RunConfig
from common.datasets.training_sets import open_dataset
from common.recipes import RECIPES
from common.reports.published import ROWS
from jittor_impl import cache
from jittor_impl.runtime import jt

CLASSES = 1000  # of a training set that is neither there nor published


def run(backend: Backend, arguments: list[str]) -> int:
    """Compile the operators of a recipe; without arguments, Jittor alone, which the import of this package did."""
    folder = Path(jt.flags.cache_path)
    if arguments:
        config = parse_recipe(backend, "compile", RECIPES, arguments)
        backend.check(config)
        start, before = time.monotonic(), len(_keys(folder))
        with _listed(arguments, folder) as operators:
            _compile(operators, folder)
        listed = len(_keys(folder))
        _train_and_embed(backend, config, 2 * config.optimiser.accumulate)
        compiled, rest = len(_keys(folder)) - before, len(_keys(folder)) - listed
        seconds = time.monotonic() - start
        print(f"{compiled} operators compiled in {seconds:.0f} s, {rest} of them one by one; {before} were there")
    print(f"cache  {folder}")
    return 0


def _train_and_embed(backend: Backend, config: RunConfig, images: int) -> None:
    """Two steps of training, a checkpoint and an evaluation, on random images; nothing is written."""
    try:
        classes = open_dataset(config.data.root, config.data.kind).num_classes
    except (OSError, ValueError):
        classes = ROWS[config.name].training_set.classes if config.name in ROWS else CLASSES
    trainer = backend.create_trainer(config, classes)
    random, size = np.random.default_rng(0), config.data.image_size
    pixels = random.integers(0, 256, (images, 3, size, size), np.uint8)
    for _ in range(2):
        trainer.train_step(pixels, random.integers(0, classes, images), 1e-3)
        trainer.metrics()
    trainer.first_bad_step()
    trainer.state()
    trainer.embed(pixels)


@contextlib.contextmanager
def _listed(arguments: list[str], folder: Path) -> Iterator[Iterator[tuple[Path, str]]]:
    """What the recipe needs and the cache lacks: paths and contents of operators' keys, as they are found."""
    with tempfile.TemporaryDirectory(prefix="sface-operators-") as name:
        trial = Path(name)
        for part in ("jit", "obj_files", "tmp"):
            (trial / part).mkdir()
        command = [sys.executable, "-m", __spec__.name, name, *arguments]
        with (trial / "log").open("w") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _missing(child, trial, folder)
        finally:
            child.kill()
            child.wait()


def _list(folder: Path, arguments: list[str]) -> None:
    """Run a recipe whose operators do nothing, and leave their sources and keys in `folder`."""
    backend = Backend("jittor")
    config = parse_recipe(backend, "compile", RECIPES, arguments)
    jt.flags.cache_path, jt.flags.disable_lock = str(folder), 1
    jt.flags.python_path = str(_stand_in(folder))
    _train_and_embed(backend, config, config.optimiser.batch_size)


def _stand_in(folder: Path) -> Path:
    """A program in place of the Python that Jittor starts to compile an operator; one word, as keys count words."""
    program = folder / "python"
    script = Path(__file__).with_name("empty_operator.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{script}" "$@"\n', "utf-8")
    program.chmod(0o755)
    return program


def _keys(folder: Path) -> list[Path]:
    """Keys of operators, the oldest first."""
    return sorted((folder / "jit").glob("*.key"), key=lambda path: path.stat().st_mtime_ns)


def _missing(child: subprocess.Popen[bytes], trial: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """The keys that a child writes into `trial`, as they are to be in `folder`, until it ends."""
    done, ended = 0, False
    while not ended:
        time.sleep(0.1)
        ended = child.poll() is not None
        keys = _keys(trial)[: None if ended else -1]  # the last one may yet be written
        for path in keys[done:]:
            key = path.read_text("utf-8").replace(f"{trial}/python", jt.flags.python_path)
            key = key.replace(f"{trial}/", f"{folder}/")
            there = folder / "jit" / path.name
            if not there.exists() or there.read_text("utf-8") != key:
                shutil.copy(path.with_suffix("").with_suffix(".cc"), folder / "jit")
                yield there, key
        done = len(keys)


def _compile(operators: Iterator[tuple[Path, str]], folder: Path) -> None:
    """Run the commands of keys in a process a core, while other processes that compile wait."""
    progress, done = cache.Progress("Compiling operators", 0), 0

    def compile_one(path: Path, key: str) -> None:
        nonlocal done
        command = key.partition("\n")[0]
        if subprocess.run(command, shell=True, cwd=folder / "obj_files", capture_output=True).returncode == 0:
            path.write_text(key, "utf-8")
        progress.update(done)
        done += 1

    with _lock(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            for path, key in operators:
                progress.total += 1
                pool.submit(compile_one, path, key)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """What Jittor holds while it compiles operators."""
    from jittor_utils import lock

    with Path(lock.lock_path).open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    _list(Path(sys.argv[1]), sys.argv[2:])
