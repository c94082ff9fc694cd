"""python -m benchmarks.worker BACKEND KIND SETTINGS: measures one kind of work in one framework.

SETTINGS is JSON; `KINDS` lists the kinds. The worker prepares the work, does one unit of it, and prints a JSON line
{"facts", "seconds"}: what the kind says of itself, and the time this took. Then it reads numbers, one a line. For each
it does this much work, waits for the device, and prints a JSON line with "seconds", "cpu_seconds" and whatever else
the kind measured.
"""

import functools
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

from benchmarks import scale
from benchmarks.head import work as head
from common import config as configuration
from common.backend import Backend, Trainer
from common.config import RunConfig
from common.datasets.loader import Loader
from common.datasets.pair_sets import open_pair_set
from common.datasets.training_sets import open_dataset
from common.evaluation.evaluate import evaluate
from common.training.loop import Stopped, fit

Settings = dict[str, Any]
Work = Callable[[int], dict[str, Any]]
Kind = Callable[[str, Settings], tuple[Work, Settings]]
RATE = 1e-6  # a batch that is learned by heart has gradients so small that processors slow down on them
INSTALL = {  # what a loader may lack
    "torch": "pip install -r requirements/pytorch.txt",
    "mxnet": "pip install -r requirements/mxnet.txt",
    "PIL": "pip install pillow",
}


def main(arguments: list[str]) -> int:
    backend, kind, text = arguments
    # frameworks print what they compile: stdout is for the answers alone
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    start = time.perf_counter()
    work, facts = KINDS[kind](backend, json.loads(text))
    work(1)
    answers.write(json.dumps({"facts": facts, "seconds": time.perf_counter() - start}) + "\n")
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        said = work(int(line))
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        answers.write(json.dumps({**said, **spent}) + "\n")
    return 0


def training(backend: str, settings: Settings) -> tuple[Work, Settings]:
    """Steps as `common.training.loop.fit` makes them between two evaluations: loader, step, metrics of logged steps.

    A negative number asks for the waits: that many steps, none of them logged, and what made the host wait in them.
    """
    config, trainer = _trainer(backend, settings)
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

    def step() -> None:
        batch = next(batches)
        trainer.train_step(batch.images, batch.labels, RATE)

    def work(steps: int) -> dict[str, Any]:
        if steps < 0:
            seen: list[str] = []
            with waits(seen):
                for _ in range(-steps):
                    step()
            return {"waits": seen}
        for _ in range(steps):
            step()
            if next(steps_done) % config.log_every == 0:
                trainer.first_bad_step()
                trainer.metrics()
        trainer.metrics()  # waits for the device
        return {}

    return work, trainer.describe()


def bare(backend: str, settings: Settings, method: str) -> tuple[Work, Settings]:
    """The framework's own loop, with the same network and loss on one batch on the device.

    `method` is "step", of training, or "forward", a forward pass in evaluation mode.
    """
    config = configuration.from_json(settings["config"])
    random = np.random.default_rng(0)
    size, batch_size = config.data.image_size, settings.get("batch_size", config.optimiser.batch_size)
    images = random.integers(0, 256, (batch_size, 3, size, size), np.uint8)
    labels = random.integers(0, settings["classes"], batch_size)
    module = importlib.import_module(f"benchmarks.backends.{backend}.bare")
    loop = module.Bare(config, settings["classes"], images, labels, RATE)
    once = getattr(loop, method)

    def work(times: int) -> dict[str, Any]:
        for _ in range(times):
            once()
        loop.wait()
        return {}

    return work, {}


def evaluation(backend: str, settings: Settings) -> tuple[Work, Settings]:
    """Evaluations of a set of pairs, from its file to its figures."""
    config, trainer = _trainer(backend, settings)
    path, sizes = Path(settings["pairs"]), {"image_size": config.data.image_size, "batch_size": settings["batch_size"]}

    def work(times: int) -> dict[str, Any]:
        for _ in range(times):
            evaluate(trainer.embed, open_pair_set(path), **sizes)
        return {}

    return work, trainer.describe()


def loader(backend: str, settings: Settings) -> tuple[Work, Settings]:
    """Epochs of a record file through a loader; where a package is missing, the facts say how to install it."""
    try:
        module = importlib.import_module(f"benchmarks.backends.{backend}.loaders")
        sizes = [settings[name] for name in ("size", "batch_size", "workers")]
        epoch = module.open_loader(settings["name"], Path(settings["root"]), *sizes)
    except ModuleNotFoundError as error:
        if error.name not in INSTALL:
            raise
        return _nothing, {"missing": f"{error.name} is not installed; install with {INSTALL[error.name]}"}
    return lambda epochs: {"images": sum(epoch() for _ in range(epochs))}, {}


def run(backend: str, settings: Settings) -> Settings:
    """Train or resume the run of a configuration; ends the process with 130 if it was interrupted."""
    config = configuration.from_json(settings["config"])
    assert config.out is not None
    dataset = open_dataset(config.data.root, config.data.kind)
    trainer = Backend(backend).create_trainer(config, dataset.num_classes)
    try:
        fit(trainer, dataset, config, config.out)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(130) from None
    return {}


def once(measure: Callable[[str, Settings], Settings]) -> Kind:
    """A kind of work that is done when the process starts; its results are the facts."""
    return lambda backend, settings: (_nothing, measure(backend, settings))


KINDS: dict[str, Kind] = {
    "training": training,
    "bare": functools.partial(bare, method="step"),
    "evaluation": evaluation,
    "forward": functools.partial(bare, method="forward"),
    "loader": loader,
    "head": once(head.times),
    "head memory": once(head.memory),
    "rank": once(scale.measure_rank),
    "ranks": once(scale.measure_ranks),
    "run": once(run),
}


def _nothing(_amount: int) -> dict[str, Any]:
    return {}


def _trainer(backend: str, settings: Settings) -> tuple[RunConfig, Trainer]:
    config = configuration.from_json(settings["config"])
    return config, Backend(backend).create_trainer(config, settings["classes"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
