"""Reading .npz files: right ones, damaged ones and hostile ones."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common.io.npz import read_arrays


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "embeddings": np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "issame": np.array([True, False, True]),
        "names": np.array(["a.png", "ü/b.png"]),
        "none": np.empty((0, 5)),
        "one": np.array(7),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_arrays(tmp_path / "a.npz")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(found[name], array)


def npz(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_a_pickle_is_not_followed(tmp_path):
    path = npz(tmp_path / "a.npz", "embeddings.npy", npy(np.array([print], object)))
    with pytest.raises(ValueError, match="cannot read embeddings .*Python objects"):
        read_arrays(path)


def test_damaged_files(tmp_path):
    whole = npy(np.ones((40, 8), np.float32))
    header = whole[:128]
    for content, message in (
        (whole[:-4], r"1276 bytes in place of 1280 for float32 \(40, 8\)"),
        (whole + b"x", "1281 bytes in place of 1280"),
        (header.replace(b"(40, 8)", b"(4000000, 8)").replace(b" " * 5, b"", 1), "in place of 128000000"),
        (b"\x93NUMPY\x03\x00" + whole[8:], r"version \(3, 0\)"),
        (b"no array", "cannot read embeddings"),
        (header.replace(b"(40, 8)", b"(-1, 8)"), "cannot read embeddings"),
        (b"", "cannot read embeddings"),
    ):
        with pytest.raises(ValueError, match=message):
            read_arrays(npz(tmp_path / "a.npz", "embeddings.npy", content))
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="cannot read it"):
        read_arrays(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", embeddings=np.random.default_rng(0).random((50, 8)))
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[300:340] = bytes(40)
    (tmp_path / "b.npz").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read embeddings"):
        read_arrays(tmp_path / "b.npz")


def test_a_bomb_is_not_unpacked(tmp_path):
    """50 MB of zeros in 50 kB; refused before a byte is unpacked."""
    path = npz(tmp_path / "a.npz", "embeddings.npy", npy(np.zeros(6_000_000)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="that unpacks to 48000128"):
        read_arrays(path)


def test_many_small_bombs_are_one(tmp_path):
    """Each of 200 arrays stays below the room that one array has."""
    np.savez_compressed(tmp_path / "a.npz", **{f"a{i}": np.zeros(2**17 - 32) for i in range(200)})
    with pytest.raises(ValueError, match=r"a file of \d+ bytes that unpacks to 2\d{8}"):
        read_arrays(tmp_path / "a.npz")
    assert read_arrays(tmp_path / "a.npz", ["a7"])["a7"].size == 2**17 - 32


def test_only_what_is_asked_for_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", good=np.ones(2), pickled=np.array([print], object))
    assert list(read_arrays(tmp_path / "a.npz", ("good",))) == ["good"]
    with pytest.raises(ValueError, match=r"a\.npz: cannot read other \(no such array, found good, pickled\)"):
        read_arrays(tmp_path / "a.npz", ("good", "other"))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.npz: expected an \.npz file, found none"):
        read_arrays(tmp_path / "a.npz")


def test_sizes_in_the_directory_are_not_believed(tmp_path):
    """The directory claims 2 GB, stored and unpacked alike; the header fits the claim."""
    length = 2**31 - 128 - 256
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},), }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    path = npz(tmp_path / "a.npz", "embeddings.npy", content)
    claimed = (len(content) + length).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(2 * len(content).to_bytes(4, "little"), 2 * claimed))
    with pytest.raises(
        ValueError, match=r"a\.npz: cannot read it \(its arrays claim \d{10} bytes of a file of \d{3}\)"
    ):
        read_arrays(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packers(tmp_path, method):
    path = npz(tmp_path / "a.npz", "embeddings.npy", npy(np.ones(4)), method)
    with pytest.raises(ValueError, match=f"cannot read embeddings .*method {method}"):
        read_arrays(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }",  # a trillion elements of no size
        "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 10000000000000000000000000), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1.5,), }",
        "{'descr': '<f8', 'fortran_order': False}",
        "{[]: 1}",
        "(" * 5000,
        "-" * 5000 + "1",
        "[" * 90 + "]" * 90,
        "\0",
    ],
)
def test_hostile_headers(tmp_path, header):
    line = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'a.npz'}: cannot read embeddings (")):
        read_arrays(npz(tmp_path / "a.npz", "embeddings.npy", content))
