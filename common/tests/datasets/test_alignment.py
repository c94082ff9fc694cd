"""Alignment against known transforms, against a search, and on images whose pixels are known."""

import re

import cv2
import numpy as np
import pytest

from common.datasets.alignment import TEMPLATE, align, check_face, similarity_transform


def moved(points, scale, degrees, shift):
    """`points` turned (from x to y), scaled and shifted."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + shift


def mapped(transform, points):
    return points @ transform[:, :2].T + transform[:, 2]


@pytest.mark.parametrize(("scale", "degrees"), [(1, 0), (2.5, 30), (0.2, -90), (7, 179), (1e-3, 45)])
def test_a_known_transform_is_found(scale, degrees):
    source = np.random.default_rng(0).uniform(0, 300, (6, 2))
    target = moved(source, scale, degrees, (120, -45))
    transform = similarity_transform(source, target)
    assert mapped(transform, source) == pytest.approx(target, abs=1e-9)
    assert np.linalg.det(transform[:, :2]) == pytest.approx(scale**2)


def test_two_points_decide_it():
    transform = similarity_transform(np.array([[0, 0], [1, 0]]), np.array([[5, 5], [5, 7]]))
    assert transform == pytest.approx(np.array([[0, -2, 5], [2, 0, 5]]))


def test_no_other_similarity_is_nearer():
    """A similarity is linear in its four numbers, so a general least-squares solver gives the truth."""
    random = np.random.default_rng(1)
    for _ in range(20):
        source, target = random.normal(size=(2, 5, 2)) * 50 + 100
        x, y = source.T
        one, zero = np.ones(5), np.zeros(5)
        design = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
        (a, b, u, v), *_ = np.linalg.lstsq(design, target.T.ravel(), rcond=None)
        assert similarity_transform(source, target) == pytest.approx(np.array([[a, -b, u], [b, a, v]]), abs=1e-8)


def test_a_mirrored_face_is_not_reflected():
    transform = similarity_transform(TEMPLATE * (-1, 1), TEMPLATE)
    assert np.linalg.det(transform[:, :2]) > 0


def test_opencv_finds_the_same():
    """OpenCV's estimate is robust and in float32: it is the same only if all points agree."""
    source = np.random.default_rng(2).uniform(0, 200, (5, 2))
    target = moved(source, 0.7, 20, (10, 30))
    found, _ = cv2.estimateAffinePartial2D(source, target)
    assert similarity_transform(source, target) == pytest.approx(found, abs=1e-3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((5, 2), 31.7), "points that differ, got 5 times"),
        (np.where(np.arange(10).reshape(5, 2) == 4, np.nan, TEMPLATE), "expected finite coordinates"),
        (TEMPLATE[:4], r"\(4, 2\) and \(5, 2\)"),
        (TEMPLATE.T, r"\(2, 5\)"),
    ],
)
def test_points_without_a_transform(source, message):
    with pytest.raises(ValueError, match=message):
        similarity_transform(source, TEMPLATE)


def dots(landmarks, shape=(240, 320)):
    """A black image with a soft dot at each landmark, each dot in another colour."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros((*shape, 3))
    for number, (u, v) in enumerate(landmarks):
        colour = [(255, 40, 40), (40, 255, 40), (40, 40, 255), (255, 255, 40), (255, 40, 255)][number]
        image += np.exp(-((x - u) ** 2 + (y - v) ** 2) / 18)[..., None] * colour
    return image.clip(0, 255).astype(np.uint8)


def brightest(image, colour):
    """The place of a dot: the centre of mass of its colour, (3,) of 0 and 1."""
    mask = np.asarray(colour)[:, None, None]
    weight = np.where(mask == 1, image, 255 - image.astype(int)).min(axis=0).astype(float)
    weight[weight < 128] = 0
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]
    return (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()


COLOURS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)]


@pytest.mark.parametrize("size", [112, 224])
def test_landmarks_come_to_lie_on_the_template(size):
    """A wrong order of channels, or y before x, would put a dot in another colour or place."""
    landmarks = moved(TEMPLATE, 1.3, 25, (90, -10))
    aligned = align(dots(landmarks), landmarks.astype(np.float32), size)
    assert (aligned.shape, aligned.dtype, aligned.flags.c_contiguous) == ((3, size, size), np.uint8, True)
    for colour, place in zip(COLOURS, TEMPLATE * size / 112, strict=True):
        assert brightest(aligned, colour) == pytest.approx(place, abs=0.5)


def test_landmarks_on_the_template_change_nothing():
    """The same pixels: their centres are whole numbers, without a shift of half a pixel."""
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    assert np.array_equal(align(image, TEMPLATE), image.transpose(2, 0, 1))


def test_the_template_is_the_published_one():
    """The template is that of the older 96x112 images (SphereFace, CASIA alignment), 8 pixels further right."""
    narrow = [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    assert pytest.approx(np.add(narrow, (8, 0)), abs=1e-9) == TEMPLATE


def test_beyond_the_image_is_black():
    image = np.full((112, 112, 3), 200, np.uint8)
    aligned = align(image, TEMPLATE - (20, 0))
    assert (aligned[:, :, :20] == 0).all()
    assert (aligned[:, :, 21:] == 200).all()


@pytest.mark.parametrize(
    ("image", "landmarks", "size", "message"),
    [
        (np.zeros((112, 112), np.uint8), TEMPLATE, 112, r"shape \(H, W, 3\) uint8, got \(112, 112\)"),
        (np.zeros((3, 112, 112), np.uint8), TEMPLATE, 112, r"got \(3, 112, 112\)"),
        (np.zeros((112, 112, 3), np.float32), TEMPLATE, 112, "got .* float32"),
        (np.zeros((0, 112, 3), np.uint8), TEMPLATE, 112, r"got \(0, 112, 3\)"),
        (np.zeros((40_000, 2, 3), np.uint8), TEMPLATE, 112, "1 to 32767 pixels"),
        (np.zeros((112, 112, 3), np.uint8), TEMPLATE, 0, "to 0x0"),
        (np.zeros((112, 112, 3), np.uint8), TEMPLATE[:, ::-1].T, 112, "five finite landmarks"),
        (np.zeros((112, 112, 3), np.uint8), TEMPLATE * np.inf, 112, "five finite landmarks"),
        (np.zeros((112, 112, 3), np.uint8), TEMPLATE * np.nan, 112, "five finite landmarks"),
        (np.zeros((112, 112, 3), np.uint8), TEMPLATE * 1e300, 112, "five finite landmarks"),
        (np.zeros((112, 112, 3), np.uint8), TEMPLATE * 0 + 5, 112, "points that differ"),
    ],
)
def test_what_cannot_be_aligned(image, landmarks, size, message):
    with pytest.raises(ValueError, match=message):
        align(image, landmarks, size)


RIGHT = np.array([[44, 50], [84, 50], [64, 75], [48, 100], [80, 100]], float)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (10 * RIGHT, "lie around (640, 750), outside of the image of 128x128"),
        (RIGHT.T.reshape(5, 2), "lie 17 pixels from those of a face"),  # x1..x5 y1..y5
        (RIGHT[[1, 0, 2, 4, 3]], "lie 22 pixels from those of a face"),
    ],
)
def test_landmarks_that_are_no_face_are_named(landmarks, message):
    check_face(RIGHT, 128, 128)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_face(landmarks, 128, 128)
