"""One loader for every backend: the same uint8 batches, in the same order, to the bit.

Order and flips are pure functions of (seed, epoch, position), so a run can start at any step of any epoch, on any
number of ranks, and see what an unbroken run on one rank sees. Threads decode (OpenCV lets go of the interpreter lock);
no process is forked.
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

MOST_AHEAD = 32  # batches; more would only keep the processor from the first steps
ORDER, FLIPS = 0, 1  # streams of random numbers, independent of each other


class Batch(NamedTuple):
    """What a training step sees."""

    images: np.ndarray  # (N, 3, S, S) uint8, RGB
    labels: np.ndarray  # (N,) int64
    skipped: int  # images that did not decode and were replaced by the next of the epoch


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Sample index at each position of an epoch: a permutation of 0..count-1, int64."""
    return _stream(seed, epoch, ORDER).permutation(count)


def epoch_flips(seed: int, epoch: int, count: int) -> np.ndarray:
    """Whether the image at each position of an epoch is mirrored, (count,) bool, true with probability one half."""
    return _stream(seed, epoch, FLIPS).random(count) < 0.5


class Loader:
    """Batches of a dataset from any step on.

    Args:
        dataset: training samples.
        batch_size: images a step over all ranks; the last, incomplete batch of an epoch is left out.
        seed: of order and flips.
        image_size: width and height, pixels.
        flip: mirror half of the images.
        on_wrong_size, on_bad_image: as in `DataConfig`.
        workers: decoding threads.
        prefetch_mib: bound on the memory of batches decoded ahead; one is always decoded ahead, and never more than
            MOST_AHEAD.
        rank, ranks: this rank gets the rank-th contiguous share of every batch.

    Raises:
        ValueError: fewer samples than a batch, or ranks do not divide the batch.
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
        """Batches of the steps first_step .. last_step - 1, counted from the start of training.

        Raises:
            BadImage: an image does not decode or has the wrong size (and is not to be skipped); named.
            ValueError: a damaged record, or a label out of range; named.
        """
        previous_threads = cv2.getNumThreads()
        cv2.setNumThreads(0)  # the pool is the parallelism
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
        """Decode a sample to its place in a batch; False: it is to be skipped."""
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
