"""Evaluating a made-up network on made-up pairs: figures and memory."""

import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from common.datasets.images import BadImage, encode_image
from common.evaluation.evaluate import evaluate, raw_pixels
from common.evaluation.verification import flip_sum_normalise, verify

SIZE = 16


class FakePairs:
    """Pairs of noise images; the images of a "same" pair share most of their pixels."""

    def __init__(self, pairs=33, seed=0):
        rng = np.random.default_rng(seed)
        self.name = "fake"
        self.pairs = pairs
        self.issame = rng.random(pairs) < 0.5
        images = rng.integers(0, 256, (pairs, 2, 3, SIZE, SIZE), dtype=np.uint8)
        images[self.issame, 1, :, 5:] = images[self.issame, 0, :, 5:]
        self.images = images.reshape(2 * pairs, 3, SIZE, SIZE)
        self.files = [encode_image(image) for image in self.images]
        self.threads = set()

    def __len__(self):
        return self.pairs

    def encoded(self, i):
        self.threads.add(threading.get_ident())
        return self.files[i]


def embed(images):
    """Not symmetric under mirroring, and not normalised."""
    weight = np.random.default_rng(7).normal(size=(3 * SIZE * SIZE, 24)).astype(np.float32)
    return (images.reshape(len(images), -1).astype(np.float32) - 127.5) @ weight / 100


@pytest.mark.parametrize("batch_size", [2, 5, 16, 66, 1000])
def test_evaluate_is_the_protocol_on_all_images(batch_size):
    pairs = FakePairs()
    sizes = []

    def watched(images):
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        sizes.append(len(images))
        return embed(images)

    evaluation = evaluate(watched, pairs, image_size=SIZE, batch_size=batch_size)
    raw, mirrored = embed(pairs.images), embed(np.ascontiguousarray(pairs.images[:, :, :, ::-1]))
    expected = verify(flip_sum_normalise(raw, mirrored), pairs.issame)
    assert evaluation.name == "fake"
    assert evaluation.result.distances == pytest.approx(expected.distances, abs=1e-5)
    assert (evaluation.result.accuracy, evaluation.result.std) == (expected.accuracy, expected.std)
    without_mirror = verify(flip_sum_normalise(raw, raw), pairs.issame)
    assert evaluation.plain_threshold == without_mirror.threshold != expected.threshold
    norms = np.linalg.norm(np.concatenate([raw, mirrored]), axis=1)
    assert evaluation.xnorm == pytest.approx(norms.mean(), rel=1e-5)
    assert max(sizes) <= batch_size
    assert sum(sizes) == 4 * len(pairs)
    assert pairs.threads == {threading.get_ident()}  # a pair set need not be thread-safe


def test_an_image_of_several_pairs_is_embedded_once():
    pairs = FakePairs(40)
    order = np.random.default_rng(1).integers(0, 30, 80)  # 30 images, each in a few pairs, in no order
    pairs.images, pairs.files = pairs.images[order], [pairs.files[i] for i in order]
    sizes = []

    def watched(images):
        sizes.append(len(images))
        return embed(images)

    evaluation = evaluate(watched, pairs, image_size=SIZE, batch_size=8)
    assert sum(sizes) == 2 * len(set(order))
    raw, mirrored = embed(pairs.images), embed(np.ascontiguousarray(pairs.images[:, :, :, ::-1]))
    expected = verify(flip_sum_normalise(raw, mirrored), pairs.issame)
    assert evaluation.result.distances == pytest.approx(expected.distances, abs=1e-5)
    norms = np.linalg.norm(np.concatenate([raw, mirrored]), axis=1)
    assert evaluation.xnorm == pytest.approx(norms.mean(), rel=1e-5)


def test_folds_and_fars_are_passed_on():
    evaluation = evaluate(embed, FakePairs(), image_size=SIZE, folds=3, fars=(0.5,))
    assert len(evaluation.result.fold_accuracies) == 3
    assert list(evaluation.result.tar) == [0.5]


def test_a_damaged_image_is_named_and_ends_the_evaluation():
    pairs = FakePairs()
    pairs.files[41] = b"not an image"
    with pytest.raises(BadImage, match="fake image 41"):
        evaluate(embed, pairs, image_size=SIZE, batch_size=8)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_another_size_fails_or_is_resized():
    with pytest.raises(BadImage, match="fake image 0: expected 8x8 pixels, got 16x16"):
        evaluate(raw_pixels, FakePairs(), image_size=8)
    evaluation = evaluate(raw_pixels, FakePairs(), image_size=8, on_wrong_size="resize")
    assert evaluation.result.accuracy > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x[:-1], r"shape \(8, D\), float, got \(7, 24\)"),
        (lambda x: x.ravel(), r"shape \(8, D\), float, got \(192,\)"),
        (lambda x: x.astype(np.int64), "int64"),
        (lambda x: np.where(np.arange(8)[:, None] == 3, math.nan, x), "fake image 3: its embedding is not finite"),
    ],
)
def test_a_bad_embedding_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda images: wrong(embed(images)), FakePairs(), image_size=SIZE, batch_size=8)


def test_the_image_with_the_bad_embedding_is_counted_over_batches():
    calls = iter(range(100))

    def diverging(images):
        embeddings = embed(images)
        if next(calls) == 5:  # the mirror images of the third batch
            embeddings[2] = math.inf
        return embeddings

    with pytest.raises(ValueError, match="fake image 18"):
        evaluate(diverging, FakePairs(), image_size=SIZE, batch_size=8)


def test_impossible_sets_fail_before_any_work():
    def never(images):
        raise AssertionError("called")

    with pytest.raises(ValueError, match="9 pairs for 10 folds"):
        evaluate(never, FakePairs(9), image_size=SIZE)
    with pytest.raises(ValueError, match="batch size of at least 1"):
        evaluate(never, FakePairs(), image_size=SIZE, batch_size=0)
    pairs = FakePairs()
    pairs.issame = pairs.issame[:-1]
    with pytest.raises(ValueError, match=r"issame of shape \(33,\), got \(32,\)"):
        evaluate(never, pairs, image_size=SIZE)


MEMORY = """
import resource, sys
import numpy as np
from common.evaluation.evaluate import evaluate, raw_pixels
from common.datasets.images import encode_image

class Pairs:
    name = "big"
    def __init__(self, pairs):
        self.issame = np.arange(pairs) % 2 == 0
        image = np.arange(3 * 112 * 112).reshape(3, 112, 112) // 150
        self.files = [encode_image((image + k).astype(np.uint8), ".jpg") for k in range(8)]
    def __len__(self): return len(self.issame)
    def encoded(self, i): return self.files[i * i % 8]

def embed(images): return images.reshape(len(images), -1)[:, 7000:7512].astype(np.float32) + 1

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

evaluate(embed, Pairs(100), image_size=112)
before = peak()
evaluate(embed, Pairs(6000), image_size=112)
middle = peak()
evaluate(raw_pixels, Pairs(700), image_size=112)  # 210 MB, were the embeddings kept
print(middle - before, peak() - middle)
"""


def test_six_thousand_pairs_take_little_memory():
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", MEMORY]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True)
    network, pixels = map(float, result.stdout.split())
    assert network < 60  # MB; the limit is 200
    assert pixels < 150


# ---- raw pixels ----


def test_raw_pixels_have_no_mean():
    images = FakePairs().images
    embeddings = raw_pixels(images)
    assert embeddings.shape == (66, 3 * SIZE * SIZE)
    assert embeddings.dtype == np.float32
    assert np.abs(embeddings.mean(axis=1)).max() < 1e-3
    flat = images[5].astype(float).ravel()
    assert embeddings[5] == pytest.approx(flat - flat.mean(), abs=1e-3)


def test_raw_pixels_separate_the_fake_pairs():
    assert evaluate(raw_pixels, FakePairs(), image_size=SIZE).result.accuracy > 0.9


def test_images_without_contrast_are_counted_not_fatal():
    pairs = FakePairs()
    pairs.files[4] = encode_image(np.full((3, SIZE, SIZE), 128, np.uint8))
    assert evaluate(raw_pixels, pairs, image_size=SIZE).result.zero_embeddings == 1
