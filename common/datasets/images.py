"""Decode, check and encode images. Inside this project every image is RGB, uint8, channels first."""

import struct

import cv2
import numpy as np

from common.config import OnWrongSize

MOST_PIXELS = 2**26
PNG = b"\x89PNG\r\n\x1a\n"


class BadImage(ValueError):
    """An image does not decode or has the wrong size. The message names it."""


def decode_image(
    encoded: bytes | np.ndarray,
    name: str,
    size: int,
    on_wrong_size: OnWrongSize = "fail",
    *,
    mirror: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decode JPEG, PNG, PGM or any other format that OpenCV reads.

    Args:
        encoded: the bytes of the file, or a uint8 array (n,) of them.
        name: the image's name in error messages, for example "train.rec key 17".
        size: expected width and height, in pixels.
        on_wrong_size: "fail", or "resize" (area average to shrink, linear to enlarge).
        mirror: exchange left and right.
        out: (3, size, size) uint8, contiguous, to write to; None: a new array.

    Returns:
        `out`: (3, size, size) uint8, RGB, contiguous.

    Raises:
        BadImage: the image does not decode, or has another size and `on_wrong_size` is "fail".

    >>> red = np.zeros((3, 16, 16), np.uint8)
    >>> red[0] = 255
    >>> decoded = decode_image(encode_image(red), "red.png", size=16)
    >>> decoded.shape, np.array_equal(decoded, red)
    ((3, 16, 16), True)
    >>> decode_image(encode_image(red), "red.png", size=112)
    Traceback (most recent call last):
        ...
    common.datasets.images.BadImage: red.png: expected 112x112 pixels, got 16x16; align the images to that size, or \
resize them on reading with --on-wrong-size resize (train: --data.on-wrong-size resize)
    """
    bgr = _decode(encoded, name)
    if bgr.shape[:2] != (size, size):
        if on_wrong_size == "fail":
            height, width = bgr.shape[:2]
            raise BadImage(
                f"{name}: expected {size}x{size} pixels, got {width}x{height}; align the images to that size, "
                "or resize them on reading with --on-wrong-size resize (train: --data.on-wrong-size resize)"
            )
        shrinks = min(bgr.shape[:2]) >= size
        bgr = cv2.resize(bgr, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if mirror:
        cv2.flip(bgr, 1, bgr)
    if out is None:
        out = np.empty((3, size, size), np.uint8)
    cv2.split(bgr, [out[2], out[1], out[0]])  # ten times as fast as copying a transposed view in NumPy
    return out


def decode_photo(encoded: bytes | np.ndarray, name: str) -> np.ndarray:
    """Decode an image of any size for detection and alignment: (H, W, 3) uint8, RGB, contiguous.

    Raises:
        BadImage: it does not decode; named `name`.
    """
    return np.ascontiguousarray(_decode(encoded, name)[:, :, ::-1])


def encode_image(image: np.ndarray, extension: str = ".png") -> bytes:
    """Encode (3, H, W) uint8 RGB as PNG (lossless), or as JPEG of quality 95 with extension ".jpg".

    An image without colour is stored as grey: less than half of the bytes, and the same when decoded.
    """
    is_grey = (image[0] == image[1]).all() and (image[0] == image[2]).all()
    pixels = image[0] if is_grey else np.ascontiguousarray(image.transpose(1, 2, 0)[:, :, ::-1])
    return cv2.imencode(extension, pixels)[1].tobytes()


def _decode(encoded: bytes | np.ndarray, name: str) -> np.ndarray:
    """(H, W, 3) uint8, BGR."""
    buffer = encoded if isinstance(encoded, np.ndarray) else np.frombuffer(encoded, np.uint8)
    _check_png(buffer, name)
    try:
        bgr = cv2.imdecode(buffer, cv2.IMREAD_COLOR) if buffer.size else None
    except cv2.error as error:
        raise BadImage(f"{name}: does not decode as an image ({str(error).strip()})") from None
    if bgr is None:
        raise BadImage(f"{name}: {buffer.size} bytes do not decode as an image")
    return bgr


def _check_png(buffer: np.ndarray, name: str) -> None:
    """Raise `BadImage` if a PNG claims more than it holds: OpenCV takes memory for a chunk before it reads it.

    The number of pixels is OpenCV's to check, but not where it was imported before this package.
    """
    if bytes(buffer[: len(PNG)]) != PNG:
        return
    place, size = len(PNG), len(buffer)
    while place + 8 <= size:
        length, kind = struct.unpack(">I4s", bytes(buffer[place : place + 8]))
        if length > size - place - 8:
            raise BadImage(f"{name}: {kind!r} claims {length} bytes, the image ends after {size - place - 8}")
        if kind == b"IHDR" and length >= 8:
            width, height = struct.unpack(">II", bytes(buffer[place + 8 : place + 16]))
            if width * height > MOST_PIXELS:
                raise BadImage(f"{name}: expected at most {MOST_PIXELS} pixels, got {width}x{height}")
        place += 12 + length
