"""The hardest pairs of an evaluation, as pictures."""

import cv2
import numpy as np

from common.datasets.images import decode_image
from common.datasets.pair_sets import PairSet
from common.evaluation.verification import VerificationResult

SIDE = 80  # of a face in a picture, pixels
GAP = 4


def hardest_pairs(result: VerificationResult, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the nearest different pairs and of the farthest same pairs, hardest first; at most `most` of each."""
    order = np.argsort(result.distances, kind="stable")
    impostors = order[~result.issame[order]][:most]
    genuine = order[result.issame[order]][::-1][:most]
    return impostors, genuine


def pair_picture(pair_set: PairSet, pair: int) -> bytes:
    """Both images of a pair side by side, as a JPEG of about 4 kB.

    Raises:
        BadImage: an image does not decode; named.
    """
    faces = [
        decode_image(pair_set.encoded(image), f"{pair_set.name} image {image}", SIDE, "resize")
        for image in (2 * pair, 2 * pair + 1)
    ]
    canvas = np.full((SIDE, 2 * SIDE + GAP, 3), 255, np.uint8)
    canvas[:, :SIDE] = faces[0].transpose(1, 2, 0)
    canvas[:, -SIDE:] = faces[1].transpose(1, 2, 0)
    return cv2.imencode(".jpg", canvas[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
