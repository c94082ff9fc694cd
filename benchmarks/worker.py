"""python -m benchmarks.worker BACKEND CONFIG CLASSES: trains on one random batch, N steps for each line N of stdin.

Prints a JSON line when the first step is done, and one for each line that it reads: {"seconds": ...}.
"""

import importlib
import json
import os
import sys
import time

import numpy as np

from common import config as configuration


def main(arguments: list[str]) -> int:
    backend, config_text, num_classes = arguments
    # frameworks print what they compile: stdout is for the answers alone
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    config = configuration.from_json(json.loads(config_text))
    trainer = importlib.import_module(f"{backend}_impl.trainer").Trainer(config, int(num_classes))
    random = np.random.default_rng(0)
    size, batch_size = config.data.image_size, config.optimiser.batch_size
    images = random.integers(0, 256, (batch_size, 3, size, size), np.uint8)
    labels = random.integers(0, int(num_classes), batch_size)

    def train(steps: int) -> None:
        start = time.perf_counter()
        for _ in range(steps):
            trainer.train_step(images, labels, 0.01)
        trainer.metrics()  # waits for the device
        answers.write(json.dumps({"seconds": time.perf_counter() - start}) + "\n")

    train(1)
    for line in sys.stdin:
        train(int(line))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
