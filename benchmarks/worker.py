"""python -m benchmarks.worker BACKEND KIND SETTINGS: measures one kind of work in one framework.

Reads a number a line, does so much work, waits for the device, and writes a JSON line: {"seconds", "cpu_seconds", and
what else the kind of work has to say}. The first line, unasked, is on what it runs.
"""

import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from common.backend import Backend, Trainer
from common.config import RunConfig
from common.datasets.loader import Loader
from common.datasets.pair_sets import open_pair_set
from common.datasets.training_sets import open_dataset
from common.evaluation.evaluate import evaluate

Work = Callable[[int], dict[str, Any]]
RATE = 1e-6  # a batch that is learned by heart has gradients so small that processors slow down on them


def main(arguments: list[str]) -> int:
    backend, kind, text = arguments
    # frameworks print what they compile: stdout is for the answers alone
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    start = time.perf_counter()
    settings = json.loads(text)
    config = configuration.from_json(settings["config"])
    work, facts = KINDS[kind](backend, config, settings)
    work(1)
    answers.write(json.dumps({"facts": facts, "seconds": time.perf_counter() - start}) + "\n")
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        said = work(int(line))
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        answers.write(json.dumps({**said, **spent}) + "\n")
    return 0


def random_batch(backend: str, config: RunConfig, settings: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """Training steps of the trainer on one random batch."""
    trainer = _trainer(backend, config, settings)
    images, labels = _batch(config, settings)

    def work(steps: int) -> dict[str, Any]:
        for _ in range(steps):
            trainer.train_step(images, labels, RATE)
        trainer.metrics()  # waits for the device
        return {}

    return work, trainer.describe()


def training(backend: str, config: RunConfig, settings: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """The work of `common.training.loop.fit` between two evaluations: loader, step, metrics of logged steps."""
    trainer = _trainer(backend, config, settings)
    dataset = open_dataset(config.data.root, config.data.kind)
    loader = Loader(
        dataset,
        config.optimiser.batch_size,
        seed=config.seed,
        image_size=config.data.image_size,
        flip=config.data.flip,
        on_wrong_size=config.data.on_wrong_size,
        workers=config.data.workers,
        prefetch_mib=config.data.prefetch_mib,
    )
    batches = loader.batches(0, sys.maxsize)
    steps_done = itertools.count(1)
    waits = importlib.import_module(f"benchmarks.backends.{backend}.bare").waits

    def steps_of(number: int) -> None:
        for _ in range(number):
            batch = next(batches)
            trainer.train_step(batch.images, batch.labels, RATE)
            if next(steps_done) % config.log_every == 0:
                trainer.first_bad_step()
                trainer.metrics()

    def work(steps: int) -> dict[str, Any]:
        if steps < 0:  # count what makes the host wait in as many steps, none of them logged
            seen: list[str] = []
            with waits(seen):
                for _ in range(-steps):
                    batch = next(batches)
                    trainer.train_step(batch.images, batch.labels, RATE)
            return {"waits": seen}
        steps_of(steps)
        trainer.metrics()
        return {}

    return work, trainer.describe()


def bare(backend: str, config: RunConfig, settings: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """The framework's own training loop: the same network and loss on a batch that lies on the device."""
    loop = _bare(backend, config, settings)

    def work(steps: int) -> dict[str, Any]:
        for _ in range(steps):
            loop.step()
        loop.wait()
        return {}

    return work, {}


def evaluation(backend: str, config: RunConfig, settings: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """Evaluations of a set of pairs, from its file to its figures."""
    trainer = _trainer(backend, config, settings)
    path = Path(settings["pairs"])

    def work(times: int) -> dict[str, Any]:
        for _ in range(times):
            evaluate(
                trainer.embed,
                open_pair_set(path),
                image_size=config.data.image_size,
                batch_size=settings["batch_size"],
                progress=False,
            )
        return {}

    return work, trainer.describe()


def forward(backend: str, config: RunConfig, settings: dict[str, Any]) -> tuple[Work, dict[str, Any]]:
    """The framework's own forward passes of a batch that lies on the device, in evaluation mode."""
    loop = _bare(backend, config, settings)

    def work(batches: int) -> dict[str, Any]:
        for _ in range(batches):
            loop.forward()
        loop.wait()
        return {}

    return work, {}


KINDS = {
    "random_batch": random_batch,
    "training": training,
    "bare": bare,
    "evaluation": evaluation,
    "forward": forward,
}


def _trainer(backend: str, config: RunConfig, settings: dict[str, Any]) -> Trainer:
    return Backend(backend).create_trainer(config, settings["classes"])


def _bare(backend: str, config: RunConfig, settings: dict[str, Any]) -> Any:
    images, labels = _batch(config, settings)
    module = importlib.import_module(f"benchmarks.backends.{backend}.bare")
    return module.Bare(config, settings["classes"], images, labels, RATE)


def _batch(config: RunConfig, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    size, batch_size = config.data.image_size, settings.get("batch_size", config.optimiser.batch_size)
    return random.integers(0, 256, (batch_size, 3, size, size), np.uint8), random.integers(
        0, settings["classes"], batch_size
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
