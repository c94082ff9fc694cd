"""Batches are pure functions of seed, epoch and position, from any start, with any number of ranks or threads."""

import threading

import numpy as np
import pytest

from common.datasets.images import BadImage, encode_image
from common.datasets.loader import Loader, epoch_flips, epoch_order
from common.datasets.training_sets import Sample


class Images:
    """Sample i is an image with the value i at the left and 200 at the right; `broken` ones do not decode."""

    num_classes = 7

    def __init__(self, count: int = 23, size: int = 16, broken: frozenset[int] = frozenset()) -> None:
        self.count, self.size, self.broken = count, size, broken
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int) -> Sample:
        self.threads.add(threading.get_ident())
        image = np.full((3, self.size, self.size), 200, np.uint8)
        image[:, :, : self.size // 2] = index
        return Sample(b"broken" if index in self.broken else encode_image(image), index % 7, f"image {index}")


def batches(dataset, first=0, last=10, batch_size=5, **options):
    loader = Loader(dataset, batch_size, seed=3, image_size=16, **options)
    return list(loader.batches(first, last))


def indices(batch) -> list[int]:
    """The samples of a batch, and whether each is flipped."""
    return [int(min(image[0, 0, 0], image[0, 0, -1])) for image in batch.images]


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.images == b.images).all()
        assert (a.labels == b.labels).all()


def test_an_epoch_is_a_permutation_without_its_rest():
    epoch = batches(Images(), 0, 4)
    seen = [index for batch in epoch for index in indices(batch)]
    assert len(seen) == len(set(seen)) == 20
    assert seen == epoch_order(3, 0, 23)[:20].tolist()
    assert [label for batch in epoch for label in batch.labels] == [index % 7 for index in seen]


def test_epochs_and_seeds_differ():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert (epoch_order(1, 0, 50) != epoch_order(0, 1, 50)).any()


def test_the_order_never_changes():
    """Order and flips must never change: every published run depends on them."""
    assert epoch_order(0, 0, 8).tolist() == [3, 6, 4, 0, 7, 5, 2, 1]
    assert epoch_flips(0, 0, 8).tolist() == [False, True, False, False, True, False, True, True]


def test_flips_mirror_half_of_the_images():
    flips = epoch_flips(3, 0, 23)
    plain, flipped = batches(Images(), 0, 4, flip=False), batches(Images(), 0, 4)
    for position in range(20):
        a = plain[position // 5].images[position % 5]
        b = flipped[position // 5].images[position % 5]
        assert (b == (a[:, :, ::-1] if flips[position] else a)).all()
    assert 0.45 < epoch_flips(0, 0, 10_000).mean() < 0.55


@pytest.mark.parametrize("first", [1, 3, 4, 9])
def test_a_start_in_the_middle(first):
    assert_same(batches(Images(), first, 10), batches(Images(), 0, 10)[first:])


@pytest.mark.parametrize("workers", [1, 2, 5, 16])
@pytest.mark.parametrize("prefetch_mib", [1, 256])
def test_threads_and_prefetch_do_not_matter(workers, prefetch_mib):
    assert_same(batches(Images(), workers=workers, prefetch_mib=prefetch_mib), batches(Images(), workers=1))


def test_no_thread_outlives_the_loader():
    before = threading.active_count()
    dataset = Images()
    iterator = Loader(dataset, 5, seed=0, image_size=16, workers=4).batches(0, 100)
    next(iterator)
    iterator.close()
    assert threading.active_count() == before
    assert threading.get_ident() not in dataset.threads


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_the_batches_of_one(ranks):
    whole = batches(Images(), batch_size=4)
    shares = [batches(Images(), batch_size=4, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step, batch in enumerate(whole):
        assert (np.concatenate([share[step].images for share in shares]) == batch.images).all()
        assert (np.concatenate([share[step].labels for share in shares]) == batch.labels).all()


def test_memory_for_prefetch_is_bounded():
    """A batch of 32 images of 112x112 has 1.1 MiB; 4 MiB hold 3 batches ahead of the one in use."""
    loader = Loader(Images(count=200, size=112), 32, seed=0, image_size=112, prefetch_mib=4, workers=2)
    submitted = []
    original = loader._submit
    loader._submit = lambda pool, step: submitted.append(step) or original(pool, step)
    iterator = loader.batches(0, 1000)
    next(iterator)
    assert submitted == [0, 1, 2, 3]
    next(iterator)
    assert submitted == [0, 1, 2, 3, 4]
    iterator.close()


def test_small_images_are_not_decoded_by_the_thousand():
    loader = Loader(Images(count=200), 5, seed=0, image_size=16)
    submitted = []
    original = loader._submit
    loader._submit = lambda pool, step: submitted.append(step) or original(pool, step)
    iterator = loader.batches(0, 1000)
    next(iterator)
    assert submitted == list(range(33))
    iterator.close()


def test_a_bad_image_stops_or_is_skipped():
    order = epoch_order(3, 0, 23)
    broken = frozenset({int(order[2]), int(order[7]), int(order[8])})
    with pytest.raises(BadImage, match=rf"image {order[2]}: .*on-bad-image skip"):
        batches(Images(broken=broken), 0, 1)
    skipped = batches(Images(broken=broken), 0, 2, on_bad_image="skip")
    assert [batch.skipped for batch in skipped] == [1, 3]
    assert indices(skipped[0]) == [order[0], order[1], order[3], order[3], order[4]]
    assert indices(skipped[1]) == [order[5], order[6], order[9], order[9], order[9]]
    assert_same(skipped, batches(Images(broken=broken), 0, 2, on_bad_image="skip", workers=5))


def test_when_no_image_decodes():
    with pytest.raises(BadImage, match="none of the 23 images"):
        batches(Images(broken=frozenset(range(23))), 0, 1, on_bad_image="skip")


def test_a_wrong_size_is_named_or_resized():
    with pytest.raises(BadImage, match="expected 16x16 pixels, got 32x32"):
        batches(Images(size=32), 0, 1)
    assert batches(Images(size=32), 0, 1, on_wrong_size="resize")[0].images.shape == (5, 3, 16, 16)


def test_bad_arguments():
    with pytest.raises(ValueError, match="batch_size: expected at most the 23 images of the set, got 24"):
        batches(Images(), batch_size=24)
    with pytest.raises(ValueError, match="got 0/2"):
        batches(Images(), ranks=2)
