"""python -m common.tests.rank_job BACKEND JOBS.json: training of a tiny network, as one of several ranks or alone.

JOBS.json is a list of {"config", "classes", "steps", "out", and "load", a file of an earlier job to go on from}. Each
OUT.npz holds the trainer's state after the last of the steps and, as "metrics.NAME", the metrics of all of them.
"middle" is a step after which the state goes to OUT-middle.npz too.
"""

import json
import sys
from pathlib import Path

import numpy as np

from common import config as configuration
from common.backend import Backend

RATE = 0.01


def main(backend: str, path: str) -> None:
    for job in json.loads(Path(path).read_text("utf-8")):
        run(Backend(backend), **job)


def run(
    backend: Backend,
    config: dict,
    classes: int,
    steps: list[int],
    out: str,
    load: str | None = None,
    middle: int | None = None,
) -> None:
    """Steps first to last - 1 on random images, from the state in the file `load`."""
    checked = configuration.from_json(config)
    trainer = backend.create_trainer(checked, classes)
    ranks = trainer.ranks
    if load is not None:
        saved = dict(np.load(load))
        trainer.load_state({name: saved[name] for name in saved if not name.startswith("metrics.")}, steps[0])
    batch_size, size = checked.optimiser.batch_size, checked.data.image_size
    share = batch_size // ranks.count
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    metrics = []
    for step in range(*steps):
        random = np.random.default_rng(step)
        images = random.integers(0, 256, (batch_size, 3, size, size), np.uint8)
        labels = random.integers(0, classes - 1, batch_size)  # the last class is in no batch
        trainer.train_step(images[mine], labels[mine], RATE)
        metrics.append(trainer.metrics())
        if step + 1 in (middle, steps[1]):
            state, prototypes = trainer.state(), trainer.prototypes()
            rows = {f"metrics.{name}": np.array([row[name] for row in metrics]) for name in metrics[0]}
            if ranks.rank == 0:
                assert np.array_equal(prototypes, state["head.class_weight"]), "all rows, wherever they are kept"
                np.savez(out if step + 1 == steps[1] else out.replace(".npz", "-middle.npz"), **state, **rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
