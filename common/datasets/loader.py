"""One loader for every backend: the same uint8 batches in the same order, bit by bit.

Order and flips are pure functions of (seed, epoch, position). So a run that starts at any step, on any number of ranks,
sees the same images as an unbroken run on one rank. Threads decode, as OpenCV releases the interpreter lock; no process
is forked.
"""

import collections
import concurrent.futures
from collections.abc import Generator
from typing import Literal, NamedTuple

import cv2
import numpy as np

from common.config import OnWrongSize
from common.datasets.images import BadImage, decode_image
from common.datasets.training_sets import Dataset

MOST_AHEAD = 32  # batches; more would only delay the first steps
ORDER, FLIPS = 0, 1  # two independent streams of random numbers


class Batch(NamedTuple):
    """The images of one training step."""

    images: np.ndarray  # (N, 3, S, S) uint8, RGB
    labels: np.ndarray  # (N,) int64
    skipped: int  # images that did not decode; the next ones of the epoch replace them


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Draw the sample index at each position of an epoch: (count,) int64, a permutation of 0 .. count - 1.

    >>> epoch_order(seed=0, epoch=0, count=6)
    array([4, 0, 3, 5, 2, 1])
    """
    return _stream(seed, epoch, ORDER).permutation(count)


def epoch_flips(seed: int, epoch: int, count: int) -> np.ndarray:
    """Draw whether the image at each position of an epoch is mirrored: (count,) bool, true with probability 1/2."""
    return _stream(seed, epoch, FLIPS).random(count) < 0.5


class Loader:
    """Batches of a dataset from any step on.

    Args:
        dataset: training samples.
        batch_size: images a step over all ranks; an incomplete last batch of an epoch is left out.
        seed: seed of order and flips.
        image_size: width and height, pixels.
        flip: mirror half of the images.
        on_wrong_size: as in `DataConfig`.
        on_bad_image: as in `DataConfig`.
        workers: decoding threads.
        prefetch_mib: memory for batches that are decoded ahead, MiB. At least one and at most MOST_AHEAD batches are.
        rank: this rank gets the rank-th contiguous share of every batch.
        ranks: number of ranks.

    Attributes:
        steps_per_epoch: complete batches of an epoch.

    Raises:
        ValueError: there are fewer samples than a batch needs, or `ranks` does not divide `batch_size`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from common.datasets.images import encode_image
    >>> from common.datasets.training_sets import open_dataset, write_records
    >>> root = Path(tempfile.mkdtemp())
    >>> black = encode_image(np.zeros((3, 16, 16), np.uint8))
    >>> _ = write_records(root, [(black, label) for label in range(5)], num_classes=5, size=16)
    >>> loader = Loader(open_dataset(root), batch_size=2, seed=0, image_size=16)
    >>> [batch.images.shape for batch in loader.batches(0, loader.steps_per_epoch)]
    [(2, 3, 16, 16), (2, 3, 16, 16)]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        image_size: int = 112,
        flip: bool = True,
        on_wrong_size: OnWrongSize = "fail",
        on_bad_image: Literal["fail", "skip"] = "fail",
        workers: int = 2,
        prefetch_mib: int = 256,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if len(dataset) < batch_size:
            raise ValueError(
                f"optimiser.batch_size: expected at most the {len(dataset)} images of the set, got {batch_size}"
            )
        if not 0 <= rank < ranks or batch_size % ranks:
            raise ValueError(
                f"expected rank below ranks and ranks to divide batch_size {batch_size}, got {rank}/{ranks}"
            )
        self.steps_per_epoch = len(dataset) // batch_size
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._image_size = image_size
        self._flip = flip
        self._on_wrong_size: OnWrongSize = on_wrong_size
        self._skip = on_bad_image == "skip"
        self._workers = workers
        self._rank, self._share = rank, batch_size // ranks
        batch_bytes = self._share * 3 * image_size**2
        self._ahead = min(max(1, prefetch_mib * 2**20 // batch_bytes), MOST_AHEAD)
        self._plan_cache: tuple[int, np.ndarray, np.ndarray] | None = None

    def batches(self, first_step: int, last_step: int) -> Generator[Batch]:
        """Yield the batches of steps first_step .. last_step - 1, counted from the start of training.

        Raises:
            BadImage: an image does not decode or has the wrong size, and `on_bad_image` is "fail"; named.
            ValueError: a record is damaged, or a label is out of range; named.
        """
        previous_threads = cv2.getNumThreads()
        cv2.setNumThreads(0)  # the threads of the pool decode in parallel already
        pool = concurrent.futures.ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        waiting: collections.deque[_Pending] = collections.deque()
        try:
            for step in range(first_step, last_step):
                while len(waiting) <= self._ahead and step + len(waiting) < last_step:
                    waiting.append(self._submit(pool, step + len(waiting)))
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            cv2.setNumThreads(previous_threads)

    def _submit(self, pool: concurrent.futures.Executor, step: int) -> "_Pending":
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self._batch_size + self._rank * self._share
        order, flips = self._plan(epoch)
        mine = slice(first, first + self._share)
        indices = order[mine].tolist()
        mirrored = flips[mine].tolist() if self._flip else [False] * self._share
        images = np.empty((self._share, 3, self._image_size, self._image_size), np.uint8)
        labels = np.empty(self._share, np.int64)

        def fill(rows: range) -> int:
            skipped = 0
            for row in rows:
                index, tries = indices[row], 0
                while not self._decode(index, mirrored[row], images[row], labels[row : row + 1]):
                    tries += 1
                    if tries == len(order):
                        raise BadImage(f"none of the {len(order)} images of the set decodes")
                    index = int(order[(first + row + tries) % len(order)])
                skipped += tries
            return skipped

        chunk = -(-self._share // self._workers)
        rows = [range(start, min(start + chunk, self._share)) for start in range(0, self._share, chunk)]
        return _Pending(images, labels, [pool.submit(fill, part) for part in rows])

    def _decode(self, index: int, mirror: bool, image: np.ndarray, label: np.ndarray) -> bool:
        """Decode a sample to its place in a batch; False: it does not decode and is skipped."""
        sample = self._dataset.sample(index)
        try:
            decode_image(sample.encoded, sample.name, self._image_size, self._on_wrong_size, mirror=mirror, out=image)
        except BadImage as error:
            if not self._skip:
                raise BadImage(f"{error} (--data.on-bad-image skip goes on without such images)") from None
            return False
        label[0] = sample.label
        return True

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._plan_cache is None or self._plan_cache[0] != epoch:
            count = len(self._dataset)
            order, flips = epoch_order(self._seed, epoch, count), epoch_flips(self._seed, epoch, count)
            self._plan_cache = (epoch, order, flips)
        return self._plan_cache[1:]


class _Pending(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    parts: list[concurrent.futures.Future[int]]

    def result(self) -> Batch:
        skipped = sum(part.result() for part in self.parts)
        return Batch(self.images, self.labels, skipped)


def _stream(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, purpose])))
