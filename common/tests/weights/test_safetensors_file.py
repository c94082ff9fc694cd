"""safetensors: what the library writes is read, bfloat16 too; a header that lies is refused."""

import json
import struct
from fractions import Fraction

import numpy as np
import pytest

from common.tests.foreign_files import weights, write_safetensors
from common.weights.foreign.convert import convert

WEIGHTS = weights()


def converted(path):
    return convert(path, "iresnet_small", image_size=16, pixel_scale=Fraction(1, 128))


def write(path, header, body=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + body)
    return path


def test_what_the_library_writes(tmp_path):
    found = converted(
        write_safetensors(tmp_path / "a.bin", {f"model.{name}": array for name, array in WEIGHTS.items()})
    )
    assert found.notes[0] == f"safetensors: {len(WEIGHTS)} arrays of iresnet_small, 4-d"
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_bfloat16(tmp_path):
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in WEIGHTS.items():
        part = (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        offsets = [len(body), len(body) + len(part)]
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": offsets}
        body += part
    found = converted(write(tmp_path / "a.safetensors", header, body))
    for name, array in WEIGHTS.items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=2**-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F4"}, "expected a known dtype, shape and two data_offsets"),
        ({"dtype": None}, "expected a known dtype"),
        ({"shape": [2, -1]}, "expected a known dtype, shape"),
        ({"shape": "ab"}, "expected a known dtype, shape"),
        ({"shape": [2**62, 4]}, "expected a known dtype, shape"),
        ({"shape": [2**57, 4]}, r"bytes for \(144115188075855872, 4\), got 0 to 8 of 8"),
        ({"data_offsets": [0]}, "two data_offsets"),
        ({"data_offsets": [-8, 0]}, "two data_offsets"),
        ({"data_offsets": [8, 16]}, "expected 8 bytes .* got 8 to 16 of 8"),
    ],
)
def test_headers_that_lie(tmp_path, change, message):
    facts = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **change}
    with pytest.raises(ValueError, match=message):
        converted(write(tmp_path / "a.safetensors", {"x": facts}, bytes(8)))


@pytest.mark.parametrize("header", [b"{" * 40, b"{" + b'"a":[' * 100_000, b'{"a": \xff}', b'{"a": 3}'])
def test_headers_that_are_none(tmp_path, header):
    with pytest.raises(ValueError, match=r"a\.safetensors: (expected a header in JSON|a: expected a known dtype)"):
        converted(write(tmp_path / "a.safetensors", header))


def test_arrays_that_share_their_bytes(tmp_path):
    """A small file could stand for any number of large arrays."""
    facts = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with pytest.raises(ValueError, match=r"a\.safetensors: its arrays claim 16 bytes of 8; they overlap"):
        converted(write(tmp_path / "a.safetensors", {"x": facts, "y": facts}, bytes(8)))
