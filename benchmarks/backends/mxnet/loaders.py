"""MXNet's ImageRecordIter, which `python -m benchmarks loader` measures the project's loader against."""

from collections.abc import Callable
from pathlib import Path

import mxnet as mx

from common.datasets.records import RecordWriter
from common.datasets.training_sets import open_dataset, samples


def open_loader(name: str, root: Path, image_size: int, batch_size: int, workers: int) -> Callable[[], int]:
    """A function that reads an epoch, shuffled, with random flips, and returns its number of images.

    Args:
        name: "ImageRecordIter".
        root: folder of a record file. A copy without InsightFace's header records, which the iterator does not know,
            is written there.
        image_size: width and height of its images.
        batch_size: images in a batch.
        workers: threads to ask for; MXNet takes at most half of the cores less one, and at least one.
    """
    with RecordWriter(root / f"{name}.rec") as writer:
        for key, sample in enumerate(samples(open_dataset(root))):
            writer.write_image(key, sample.label, sample.encoded)
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(root / f"{name}.rec"),
        path_imgidx=str(root / f"{name}.idx"),
        data_shape=(3, image_size, image_size),
        batch_size=batch_size,
        shuffle=True,
        rand_mirror=True,
        preprocess_threads=workers,
    )

    def epoch() -> int:
        iterator.reset()
        count = sum(batch_size - batch.pad for batch in iterator)
        mx.nd.waitall()
        return count

    return epoch
