"""python -m benchmarks.noise.worker BACKEND CONFIG: trains one run of the study, or goes on with it."""

import json
import sys

from common import config as configuration
from common.backend import Backend
from common.datasets.training_sets import open_dataset
from common.training.loop import Stopped, fit


def main(arguments: list[str]) -> int:
    name, text = arguments
    config = configuration.from_json(json.loads(text))
    assert config.out is not None
    dataset = open_dataset(config.data.root, config.data.kind)
    trainer = Backend(name).create_trainer(config, dataset.num_classes)
    try:
        fit(trainer, dataset, config, config.out)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
