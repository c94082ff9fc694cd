"""Align a face: move its five landmarks to the places where face networks expect them.

Landmarks are (x, y) in pixels, in the order of the template: left eye, right eye, tip of the nose, left and right
corner of the mouth. Left and right are those of the image. The centre of the first pixel is (0, 0).
"""

import cv2
import numpy as np

TEMPLATE_SIZE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) float64, the landmarks of an aligned image of 112x112 pixels. Source: the alignment of InsightFace, which made
the published training and evaluation sets; OpenCV's FaceRecognizerSF has the same numbers."""

LARGEST = 32_767
"""Pixels; OpenCV's warp refuses images that are wider or higher."""


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find the rotation, uniform scale and shift from `source` to `target` by least squares, without a reflection.

    Args:
        source: (K, 2) float, K >= 2.
        target: (K, 2) float.

    Returns:
        (2, 3) float64 M with target ~ M[:, :2] @ source + M[:, 2].

    Raises:
        ValueError: shapes differ or are not (K, 2), a coordinate is not finite, or all points of `source` coincide.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", IEEE TPAMI
    1991. In two dimensions no SVD is needed. Let z and w be the points as complex numbers minus their means. A rotation
    with scale is then a complex factor c, which cannot reflect. sum |c z - w|^2 is least for
    c = sum(conj(z) w) / sum |z|^2.

    >>> similarity_transform([[0, 0], [1, 0]], [[5, 5], [5, 7]])  # a quarter turn, twice the size
    array([[ 0., -2.,  5.],
           [ 2.,  0.,  5.]])
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.ndim != 2 or source.shape[1] != 2 or len(source) < 2 or source.shape != target.shape:
        raise ValueError(f"expected two arrays of K >= 2 points, (K, 2), got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError(f"expected finite coordinates, got {source.tolist()} and {target.tolist()}")
    z, w = source @ (1, 1j), target @ (1, 1j)
    z_mean, w_mean = z.mean(), w.mean()
    spread = np.square(np.abs(z - z_mean)).sum()
    if spread <= (1e-9 * np.abs(z).max()) ** 2:  # the points coincide; the rest is the rounding of their mean
        raise ValueError(f"expected points that differ, got {len(source)} times {source[0].tolist()}")
    factor = np.vdot(z - z_mean, w - w_mean) / spread
    shift = w_mean - factor * z_mean
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


FARTHEST = 16
"""Pixels of the template, root mean square after the best transform. 687 faces that YuNet found in LFW lie 10.5 from it
at most; a face with left and right exchanged 22, with coordinates in another order 17."""


def check_face(landmarks: np.ndarray, width: int, height: int) -> None:
    """Raise a ValueError, which says what to do, for landmarks that are no face of an image of this size.

    Args:
        landmarks: (5, 2) float, pixels.
        width: of the image, pixels.
        height: of the image, pixels.
    """
    x, y = landmarks.mean(0)
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(
            f"landmarks lie around ({x:.0f}, {y:.0f}), outside of the image of {width}x{height}; expected its pixels"
        )
    transform = similarity_transform(landmarks, TEMPLATE)
    moved = landmarks @ transform[:, :2].T + transform[:, 2]
    distance = np.sqrt(np.square(moved - TEMPLATE).sum(1).mean())
    if distance > FARTHEST:
        raise ValueError(
            f"landmarks lie {distance:.0f} pixels from those of a face at best; expected x and y in turn of left eye, "
            "right eye, nose, left and right corner of the mouth, left and right as seen in the image"
        )


def align(image: np.ndarray, landmarks: np.ndarray, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """Rotate, scale and crop a face so that its landmarks lie on the template.

    Args:
        image: (H, W, 3) uint8, RGB.
        landmarks: (5, 2) float, pixels of `image`; they may lie outside of it.
        size: width and height of the result in pixels; the template is scaled with it.

    Returns:
        (3, size, size) uint8, RGB, contiguous; bilinear, and black beyond the edge of the image.

    Raises:
        ValueError: the image has another shape or dtype, or the landmarks are not finite, coincide, or lie far from any
            image.

    >>> photo = np.full((200, 300, 3), 90, np.uint8)
    >>> aligned = align(photo, landmarks=TEMPLATE + (100, 40))
    >>> aligned.shape, int(aligned.min()), int(aligned.max())
    ((3, 112, 112), 90, 90)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image of shape (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if max(image.shape) > LARGEST or not 1 <= size <= LARGEST:
        raise ValueError(f"expected 1 to {LARGEST} pixels in each direction, got {image.shape} to {size}x{size}")
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != TEMPLATE.shape or not (np.abs(landmarks) <= 2 * LARGEST).all():
        raise ValueError(f"expected five finite landmarks (x, y) in pixels, got {landmarks.tolist()}")
    transform = similarity_transform(landmarks, TEMPLATE * (size / TEMPLATE_SIZE))
    # bilinear with a black border: how InsightFace and OpenCV align too
    aligned = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR)
    return np.ascontiguousarray(aligned.transpose(2, 0, 1))
