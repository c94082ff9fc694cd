"""`compile`: Jittor and the operators of a recipe, so that training and CI need not wait for them."""

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from common.backend import Backend
from common.commands.train import parse_recipe
from common.config import RunConfig
from common.datasets.training_sets import open_dataset
from common.ranks import Stopped
from common.recipes import RECIPES
from common.reports.published import ROWS
from jittor_impl import cache
from jittor_impl.runtime import jt

CLASSES = 1000  # of a training set that is neither there nor published
# Jittor makes operators of their own for the constants 0, 1 and 2: the number of a step, or of images.
STEPS = IMAGES = 3


def run(backend: Backend, arguments: list[str]) -> int:
    """Compile the operators of a recipe; without arguments, Jittor alone, which the import of this package did."""
    if arguments:
        config = parse_recipe(backend, "compile", RECIPES, arguments)
        backend.check(config)
        start, before = time.monotonic(), _compiled()
        try:
            with _progress():
                _train_and_embed(backend, config)
        except KeyboardInterrupt:
            raise Stopped("stopped; the same command goes on from there") from None
        print(f"{_compiled() - before} operators compiled in {time.monotonic() - start:.0f} s; {before} were there")
    print(f"cache  {jt.flags.cache_path}")
    return 0


def _train_and_embed(backend: Backend, config: RunConfig) -> None:
    """Some steps of training, a checkpoint and an evaluation, on a few random images; nothing is written."""
    try:
        classes = open_dataset(config.data.root, config.data.kind).num_classes
    except (OSError, ValueError):
        classes = ROWS[config.name].training_set.classes if config.name in ROWS else CLASSES
    trainer = backend.create_trainer(config, classes)
    parts, size = config.optimiser.accumulate, config.data.image_size
    images = parts * min(IMAGES, config.optimiser.batch_size // parts)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, 3, size, size), np.uint8)
    for _ in range(STEPS):
        trainer.train_step(pixels, random.integers(0, classes, images), config.optimiser.learning_rate)
        trainer.metrics()
    trainer.first_bad_step()
    trainer.state()
    trainer.embed(pixels)


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """Show how many operators are compiled, from another process: Jittor lets no other thread of this one run."""
    processes = multiprocessing.get_context("fork")
    done = processes.Event()
    watcher = processes.Process(target=_watch, args=(done,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(done: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    progress, before, parent = cache.Progress("Compiling operators"), _compiled(), multiprocessing.parent_process()
    while not done.wait(0.5) and parent and parent.is_alive():
        progress.update(_compiled() - before - 1)


def _compiled() -> int:
    """The number of operators in the cache."""
    return sum(1 for _ in Path(jt.flags.cache_path, "jit").glob("*.key"))
