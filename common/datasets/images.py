"""Decoding, checking and encoding of images. Every image inside this project is RGB, uint8, channels first."""

import os

os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))  # a few bytes can claim gigapixels; read at import

import cv2
import numpy as np

from common.config import OnWrongSize


class BadImage(ValueError):
    """An image that does not decode or has the wrong size. The message names it."""


def decode_image(
    encoded: bytes | np.ndarray,
    name: str,
    size: int,
    on_wrong_size: OnWrongSize = "fail",
    *,
    mirror: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decode JPEG, PNG, PGM or whatever else OpenCV reads.

    Args:
        encoded: the file's bytes, or the same as a uint8 array of one dimension.
        name: what to call the image in errors, for example "train.rec key 17".
        size: expected width and height, in pixels.
        on_wrong_size: "fail", or "resize" (area average when shrinking, linear when growing).
        mirror: left and right change places.
        out: (3, size, size) uint8, contiguous, to write to; None: a new array.

    Returns:
        `out`: (3, size, size) uint8, RGB, contiguous.

    Raises:
        BadImage: it does not decode, or has another size and `on_wrong_size` is "fail".
    """
    bgr = _decode(encoded, name)
    if bgr.shape[:2] != (size, size):
        if on_wrong_size == "fail":
            height, width = bgr.shape[:2]
            raise BadImage(
                f"{name}: expected {size}x{size} pixels, got {width}x{height}; align the images to that size, "
                "or resize them on reading with --data.on-wrong-size resize"
            )
        shrinks = min(bgr.shape[:2]) >= size
        bgr = cv2.resize(bgr, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if mirror:
        cv2.flip(bgr, 1, bgr)
    if out is None:
        out = np.empty((3, size, size), np.uint8)
    cv2.split(bgr, [out[2], out[1], out[0]])  # a tenth of the time of NumPy's copy of a transposed view
    return out


def decode_photo(encoded: bytes | np.ndarray, name: str) -> np.ndarray:
    """As `decode_image`, but of any size and as detection and alignment want it: (H, W, 3) uint8, RGB, contiguous."""
    return np.ascontiguousarray(_decode(encoded, name)[:, :, ::-1])


def encode_image(image: np.ndarray, extension: str = ".png") -> bytes:
    """Encode (3, H, W) uint8 RGB as PNG (lossless) or, with extension ".jpg", as JPEG of quality 95.

    An image without colour is stored as grey, in less than half of the bytes; it decodes to the same.
    """
    is_grey = (image[0] == image[1]).all() and (image[0] == image[2]).all()
    pixels = image[0] if is_grey else np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])
    return cv2.imencode(extension, pixels)[1].tobytes()


def _decode(encoded: bytes | np.ndarray, name: str) -> np.ndarray:
    """(H, W, 3) uint8, BGR."""
    buffer = encoded if isinstance(encoded, np.ndarray) else np.frombuffer(encoded, np.uint8)
    try:
        bgr = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if buffer.size else None
    except cv2.error as error:
        raise BadImage(f"{name}: does not decode as an image ({str(error).strip()})") from None
    if bgr is None:
        raise BadImage(f"{name}: {buffer.size} bytes do not decode as an image")
    return bgr
