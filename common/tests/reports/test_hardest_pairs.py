"""Which pairs are the hardest, and what their pictures show."""

import cv2
import numpy as np
import pytest

from common.datasets.images import BadImage, encode_image
from common.datasets.pair_sets import open_pair_set, write_pair_set
from common.evaluation.verification import verify_distances
from common.reports.hardest_pairs import GAP, SIDE, hardest_pairs, pair_picture


def test_nearest_impostors_and_farthest_genuine():
    distances = np.array([0.1, 1.9, 0.9, 0.4, 1.2, 1.0, 0.3, 2.0, 0.2, 0.4])
    issame = np.arange(10) % 2 == 0
    impostors, genuine = hardest_pairs(verify_distances(distances, issame), 3)
    assert impostors.tolist() == [3, 9, 5]  # of equals the first comes first
    assert genuine.tolist() == [4, 2, 6]


def test_fewer_pairs_than_asked_for():
    result = verify_distances(np.linspace(0, 1, 12), np.arange(12) < 11)
    impostors, genuine = hardest_pairs(result, 20)
    assert impostors.tolist() == [11]
    assert genuine.tolist() == list(range(10, -1, -1))


def test_a_picture_is_both_images_in_their_colours(tmp_path):
    """Red to the left, green to the right, whatever their sizes; pair 1, not pair 0."""
    colours = [(0, 0, 255), (0, 0, 255), (255, 0, 0), (0, 255, 0)]
    images = [
        encode_image(np.full((3, 60, 60), 1, np.uint8) * np.reshape(c, (3, 1, 1)).astype(np.uint8)) for c in colours
    ]
    write_pair_set(tmp_path / "set.bin", images, [True, False])
    picture = cv2.imdecode(np.frombuffer(pair_picture(open_pair_set(tmp_path / "set.bin"), 1), np.uint8), 1).astype(int)
    assert picture.shape == (SIDE, 2 * SIDE + GAP, 3)
    assert picture[SIDE // 2, SIDE // 2] == pytest.approx((0, 0, 255), abs=6)  # BGR; JPEG
    assert picture[SIDE // 2, SIDE // 2 + SIDE + GAP] == pytest.approx((0, 255, 0), abs=6)


def test_an_image_that_does_not_decode_is_named(tmp_path):
    write_pair_set(tmp_path / "set.bin", [encode_image(np.zeros((3, 9, 9), np.uint8)), b"broken"], [True])
    with pytest.raises(BadImage, match="set image 1: 6 bytes do not decode"):
        pair_picture(open_pair_set(tmp_path / "set.bin"), 0)
