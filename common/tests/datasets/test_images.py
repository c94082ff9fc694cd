"""Decoding: channel order, sizes, and errors that name the image."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from common.datasets.images import BadImage, decode_image, decode_photo, encode_image


def coloured(size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, size, size), np.uint8)


def test_png_round_trip_is_exact():
    image = coloured()
    assert (decode_image(encode_image(image), "image", 32) == image).all()


def test_channels_are_red_green_blue():
    bgr = np.zeros((16, 16, 3), np.uint8)
    bgr[:, :, 2] = 255  # OpenCV's red
    decoded = decode_image(cv2.imencode(".png", bgr)[1], "image", 16)
    assert decoded[:, 0, 0].tolist() == [255, 0, 0]


def test_grey_becomes_three_channels():
    encoded = cv2.imencode(".pgm", np.full((16, 16), 7, np.uint8))[1].tobytes()
    assert (decode_image(encoded, "image", 16) == np.full((3, 16, 16), 7)).all()


def test_a_photo_has_any_size_and_its_channels_last():
    image = np.zeros((5, 7, 3), np.uint8)
    image[..., 0] = 200  # red
    assert (decode_photo(cv2.imencode(".png", image[..., ::-1])[1].tobytes(), "photo") == image).all()
    with pytest.raises(BadImage, match="photo: 8 bytes do not decode"):
        decode_photo(b"no image", "photo")


def test_an_image_without_colour_is_stored_as_grey():
    grey = np.repeat(coloured()[:1], 3, axis=0)
    encoded = encode_image(grey)
    assert (decode_image(encoded, "image", 32) == grey).all()
    assert len(encoded) < 0.5 * len(encode_image(coloured()))
    almost = grey.copy()
    almost[2, 5, 5] ^= 1
    assert (decode_image(encode_image(almost), "image", 32) == almost).all()


@pytest.mark.parametrize("encoded", [b"", b"no image", encode_image(coloured())[:20]])
def test_garbage_is_named(encoded):
    with pytest.raises(BadImage, match=r"^train.rec key 17: "):
        decode_image(encoded, "train.rec key 17", 32)


def test_wrong_size_is_named_or_resized():
    encoded = encode_image(coloured(64))
    with pytest.raises(BadImage, match="face: expected 32x32 pixels, got 64x64"):
        decode_image(encoded, "face", 32)
    shrunk = decode_image(encoded, "face", 32, "resize")
    means = coloured(64).reshape(3, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(shrunk - means).max() <= 1  # area average, rounded
    assert decode_image(encoded, "face", 96, "resize").shape == (3, 96, 96)


def test_an_image_that_claims_gigapixels_is_refused():
    """A PNG header of 60,000 x 60,000 in a few bytes must not allocate 10 GB."""
    encoded = bytearray(encode_image(coloured()))
    encoded[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage, match="bomb"):
        decode_image(bytes(encoded), "bomb", 32)


def test_a_png_whose_chunk_claims_gigabytes_is_refused():
    """OpenCV would take 4 GB for it before it reads."""
    encoded = encode_image(coloured())
    place = encoded.index(b"IDAT") - 4
    bomb = encoded[:place] + (2**32 - 20).to_bytes(4, "big") + encoded[place + 4 :]
    with pytest.raises(BadImage, match=r"bomb: b'IDAT' claims 4294967276 bytes, the image ends after \d+"):
        decode_image(bomb, "bomb", 32)


def test_the_limit_of_pixels_is_in_force_whatever_is_imported_first():
    """Also of other formats than PNG, whose header is not looked at here."""
    program = """
import os, common, cv2, numpy
pixels = numpy.zeros((64, 64), numpy.uint8)
bomb = cv2.imencode(".bmp", pixels)[1]
bomb[18:26] = numpy.frombuffer((9000).to_bytes(4, "little") * 2, numpy.uint8)
from common.datasets.images import BadImage, decode_photo
try:
    decode_photo(bomb, "bomb")
except BadImage as error:
    assert "CV_IO_MAX_IMAGE_PIXELS" in str(error), error
else:
    raise SystemExit("it was decoded")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_mirrored_and_into_an_array():
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
    batch = np.zeros((2, 3, 16, 16), np.uint8)
    given = decode_image(encode_image(image), "one", 16, mirror=True, out=batch[1])
    assert given is not None
    assert np.array_equal(batch[1], image[:, :, ::-1])
    assert not batch[0].any()
    assert np.array_equal(decode_image(encode_image(image), "one", 16), image)
