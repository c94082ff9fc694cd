"""The project's loader, and bare decoding: what `python -m benchmarks loader` measures without a framework."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from common.datasets.loader import Loader
from common.datasets.training_sets import open_dataset, samples
from common.io import memory


def open_loader(name: str, root: Path, image_size: int, batch_size: int, workers: int) -> Callable[[], int]:
    """A function that reads an epoch and returns its number of images.

    Args:
        name: "loader", or "decode": `cv2.imdecode` alone, of all files in memory, without batches or flips.
        root: folder of a record file.
        image_size: width and height of its images.
        batch_size: images in a batch.
        workers: threads.
    """
    memory.keep_freed_memory()  # as the trainers do
    dataset = open_dataset(root)
    loader = Loader(dataset, batch_size, seed=0, image_size=image_size, workers=workers)
    if name == "loader":
        return lambda: sum(len(batch.images) for batch in loader.batches(0, loader.steps_per_epoch))
    files = [sample.encoded for sample in samples(dataset)]

    def decode(part: list[bytes]) -> None:
        for file in part:
            cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)

    def epoch() -> int:
        part = max(1, batch_size // workers)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(decode, (files[start : start + part] for start in range(0, len(files), part))))
        return len(files)

    return epoch
