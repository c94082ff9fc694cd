"""Pooling against the same in plain loops, to the last bit; cases worked out on paper; bad input."""

import itertools

import numpy as np
import pytest

from common.protocols.templates import Pooling, image_embeddings, pool_templates, template_rows

ALL_SWITCHES = [
    Pooling(*switches) for switches in itertools.product(["sum", "concatenate", "none"], [True, False], [True, False])
]


def slow_pool(embeddings, mirrored, template_ids, media_ids, scores, pooling):
    """From the definition, one image at a time, float32 until the template is complete."""
    pooled = {}
    for template in sorted(set(template_ids)):
        total = None
        for medium in sorted({m for t, m in zip(template_ids, media_ids, strict=True) if t == template}):
            frames = [i for i in range(len(embeddings)) if (template_ids[i], media_ids[i]) == (template, medium)]
            mean = None
            for i in frames:
                image = embeddings[i]
                if pooling.flip == "sum":
                    image = image + mirrored[i]
                if pooling.flip == "concatenate":
                    image = np.concatenate([image, mirrored[i]])
                if not pooling.keep_norm:
                    image = image / np.sqrt(np.sum(image * image))
                if pooling.detector_score:
                    image = image * scores[i]
                mean = image if mean is None else mean + image
            mean = mean / np.float32(len(frames))
            total = mean if total is None else total + mean
        total = total.astype(np.float64)
        pooled[int(template)] = total / np.sqrt(np.sum(total * total))
    return pooled


def some_images(seed, images=60, dimension=24):
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(images, dimension)).astype(np.float32),
        random.normal(size=(images, dimension)).astype(np.float32),
        random.choice([3, 4, 9, 1_000_000], images),  # templates of about 15 images
        random.integers(0, 6, images),  # media, with the same ids in each template
        random.uniform(0.1, 1, images).astype(np.float32),
    )


@pytest.mark.parametrize("pooling", ALL_SWITCHES, ids=str)
def test_equals_the_loops_to_the_last_bit(pooling):
    images = some_images(0)
    templates = pool_templates(*images, pooling)
    slow = slow_pool(*images, pooling)
    assert templates.ids.tolist() == list(slow)
    assert templates.embeddings.dtype == np.float64
    # The norm of the last step is summed in another order by scikit-learn: a last bit of float64.
    np.testing.assert_allclose(templates.embeddings, list(slow.values()), rtol=4e-16, atol=0)


def test_the_defaults_are_those_of_published_figures():
    images = some_images(1)
    by_default, stated = pool_templates(*images), pool_templates(*images, Pooling("sum", True, True))
    assert np.array_equal(by_default.embeddings, stated.embeddings)


def test_frames_are_averaged_and_media_are_added():
    """A still of (3, 0) and a video of (0, 2) and (0, 6): (3, 0) + (0, 4), and not (3, 0) + (0, 8)."""
    embeddings = np.array([[0, 2], [3, 0], [0, 6]], np.float32)
    templates = pool_templates(
        embeddings, None, np.array([7, 7, 7]), np.array([5, 1, 5]), np.ones(3), Pooling(flip="none")
    )
    assert templates.ids.tolist() == [7]
    assert templates.embeddings.tolist() == [[0.6, 0.8]]


def test_one_image_is_its_own_template():
    embeddings = np.array([[3, 4], [0, -2]], np.float32)
    templates = pool_templates(embeddings, embeddings, np.array([2, 1]), np.array([0, 0]), np.full(2, 0.5))
    assert templates.ids.tolist() == [1, 2]
    assert templates.embeddings.tolist() == [[0, -1], [0.6, 0.8]]


def test_an_image_that_is_hardly_a_face_counts_for_less():
    embeddings = np.eye(2)
    where = np.array([1, 1]), np.array([1, 2]), np.array([0.8, 0.6])
    assert pool_templates(embeddings, None, *where, Pooling(flip="none")).embeddings == pytest.approx(
        np.array([[0.8, 0.6]])
    )
    ignored = pool_templates(embeddings, None, *where, Pooling(flip="none", detector_score=False))
    assert ignored.embeddings == pytest.approx(np.array([[0.5**0.5, 0.5**0.5]]))


def test_zero_vectors_stay_zero_and_are_counted():
    embeddings = np.array([[0, 0], [1, 1], [-1, -1]], np.float32)
    kept = Pooling(flip="none", keep_norm=False)
    templates = pool_templates(embeddings, None, np.array([1, 2, 2]), np.array([0, 1, 2]), np.ones(3), kept)
    assert templates.embeddings.tolist() == [[0, 0], [0, 0]]
    assert templates.zeros == 2
    assert pool_templates(*some_images(2)).zeros == 0


def test_the_order_of_images_of_a_medium_is_kept_but_templates_may_lie_anywhere():
    images = some_images(3)
    by_template = np.argsort(images[2], kind="stable")
    sorted_first = pool_templates(*(values[by_template] for values in images))
    assert np.array_equal(sorted_first.embeddings, pool_templates(*images).embeddings)


def test_template_rows():
    ids = np.array([2, 5, 9])
    assert template_rows(ids, np.array([9, 2, 2, 5]), "pairs.txt").tolist() == [2, 0, 0, 1]
    for missing in (1, 4, 10):
        with pytest.raises(ValueError, match=rf"pairs.txt: expected .* got template {missing}, .*1 such"):
            template_rows(ids, np.array([2, missing, missing]), "pairs.txt")


def test_a_value_that_is_not_finite_is_named():
    images = some_images(4)
    for which in (0, 1, 4):
        damaged = [values.copy() for values in images]
        damaged[which][17] = np.nan
        with pytest.raises(ValueError, match=f"image 17 .* of template {images[2][17]}: .*not finite"):
            pool_templates(*damaged)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((60, 24), int), "float, got"),
        (0, np.zeros((0, 24), np.float32), "expected embeddings"),
        (1, np.zeros((60, 23), np.float32), "mirrored embeddings as the others"),
        (1, np.zeros((60, 24)), "mirrored embeddings as the others"),
        (1, None, "got none; give them or --flip none"),
        (2, np.zeros(59, int), "a template for each of 60 images"),
        (3, np.zeros(59, int), "a medium for each of 60 images"),
        (4, np.zeros(61), "a detector score for each of 60 images"),
    ],
)
def test_bad_input(position, value, message):
    images = list(some_images(5))
    images[position] = value
    with pytest.raises(ValueError, match=message):
        pool_templates(*images)


def test_switches_of_an_image_by_hand():
    one, mirror, score = np.array([[1.0, 2.0]]), np.array([[2.0, 2.0]]), np.array([0.5])
    assert image_embeddings(one, mirror, score, Pooling()).tolist() == [[1.5, 2]]
    assert image_embeddings(one, mirror, score, Pooling(keep_norm=False)).tolist() == [[0.3, 0.4]]
    assert image_embeddings(one, mirror, score, Pooling("concatenate")).tolist() == [[0.5, 1, 1, 1]]
    assert image_embeddings(one, None, score, Pooling("none", detector_score=False)).tolist() == [[1, 2]]
