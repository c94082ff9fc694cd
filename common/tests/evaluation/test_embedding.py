"""The one pipeline that embeds images: order, batches, mirror images, threads, and what it does with bad images."""

import threading

import numpy as np
import pytest

from common.datasets.images import BadImage
from common.evaluation.embedding import embed_images

COUNT, SIZE = 11, 4
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), np.uint8)
NAMES = [f"image {place}" for place in range(COUNT)]


def embed(images):
    assert images.flags.c_contiguous
    return images.reshape(len(images), -1)[:, :5].astype(np.float32)


class Reader:
    """Functions that return the images, and what happened: places by the thread that took or called them."""

    def __init__(self, bad=()):
        self.bad, self.taken, self.called = bad, [], set()

    def __iter__(self):
        for place in range(COUNT):
            self.taken.append((place, threading.get_ident()))
            yield lambda place=place: self.read(place)

    def read(self, place):
        self.called.add(threading.get_ident())
        if place in self.bad:
            raise BadImage(f"{NAMES[place]} is bad")
        return IMAGES[place]


@pytest.mark.parametrize("batch_size", [1, 4, COUNT, 100])
@pytest.mark.parametrize("mirror", [True, False])
def test_all_images_in_their_order(batch_size, mirror):
    reader = Reader()
    batches = list(embed_images(embed, NAMES, reader, batch_size=batch_size, mirror=mirror))
    assert [place for batch in batches for place in batch.places] == list(range(COUNT))
    assert max(len(batch.places) for batch in batches) == min(batch_size, COUNT)
    views = [np.concatenate(parts) for parts in zip(*(batch.views for batch in batches), strict=True)]
    for found, expected in zip(views, [IMAGES, IMAGES[..., ::-1]][: 1 + mirror], strict=True):
        assert np.array_equal(found, embed(np.ascontiguousarray(expected)))
    assert [place for place, _ in reader.taken] == list(range(COUNT))
    assert {thread for _, thread in reader.taken} == {threading.get_ident()}
    assert threading.get_ident() not in reader.called


def test_one_batch_is_read_ahead():
    reader = Reader()
    batches = embed_images(embed, NAMES, reader, batch_size=2)
    assert reader.taken == []
    for done in (2, 4, 6):
        next(batches)
        assert len(reader.taken) == done + 2
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_bad_images_stop_it_or_are_skipped(capsys):
    with pytest.raises(BadImage, match="image 3 is bad"):
        list(embed_images(embed, NAMES, Reader(bad=(3, 8)), batch_size=4))
    batches = list(embed_images(embed, NAMES, Reader(bad=(0, 1, 2, 3, 9)), batch_size=4, skip_bad=True))
    assert [batch.places for batch in batches] == [[4, 5, 6, 7], [8, 10]]
    assert np.array_equal(batches[1].views[0], embed(IMAGES[[8, 10]]))
    assert capsys.readouterr().out.count("skipped: image ") == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x[:-1], r"shape \(4, D\), float, got \(3, 5\) float32"),
        (lambda x: x.astype(int), "int64"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 1, np.nan, x), "image 2: its embedding is not finite"),
    ],
)
def test_bad_embeddings(wrong, message):
    batches = embed_images(lambda images: wrong(embed(images)), NAMES, Reader(bad=(0,)), batch_size=5, skip_bad=True)
    with pytest.raises(ValueError, match=message):
        list(batches)


def test_a_batch_size_below_one():
    with pytest.raises(ValueError, match="batch size of at least 1, got 0"):
        next(embed_images(embed, NAMES, Reader(), batch_size=0))
