"""RecordIO byte by byte as the format is described, split records, and every kind of damage."""

import os
import pickle
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets.records import MAGIC, MAGIC_BYTES, RecordReader, RecordWriter


def write(path, images):
    with RecordWriter(path) as writer:
        for key, image in enumerate(images):
            writer.write_image(key, key % 3, image)


def by_hand(payload: bytes, cflag: int = 0) -> bytes:
    return struct.pack("<II", 0xCED7230A, cflag << 29 | len(payload)) + payload + bytes(-len(payload) % 4)


def header(flag: int = 0, label: float = 5.0, id: int = 0) -> bytes:
    return struct.pack("<IfQQ", flag, label, id, 0)


def test_bytes_are_those_of_the_format(tmp_path):
    write(tmp_path / "a.rec", [b"JPEG!"])
    assert (tmp_path / "a.rec").read_bytes() == by_hand(struct.pack("<IfQQ", 0, 0.0, 0, 0) + b"JPEG!")
    assert (tmp_path / "a.idx").read_text() == "0\t0\n"


def test_reads_what_others_write(tmp_path):
    path = tmp_path / "a.rec"
    image = b"abc" + MAGIC_BYTES  # inside the payload, but not at a multiple of 4: stays whole
    two_labels = header(2) + struct.pack("<2f", 7, 8) + b"xyz"
    head, tail = header() + b"1234", b"5678" + b"9"
    split = by_hand(head, 1) + by_hand(b"mid.", 2) + by_hand(tail, 3)
    path.write_bytes(by_hand(header() + image) + by_hand(two_labels) + split)
    reader = RecordReader(path)
    assert len(reader) == 3
    assert reader.read(0) == (0, (5.0,), image)
    assert reader.read(1) == (2, (7.0, 8.0), b"xyz")
    assert reader.read(2).image == b"1234" + MAGIC_BYTES + b"mid." + MAGIC_BYTES + b"56789"


@given(st.lists(st.lists(st.sampled_from([MAGIC_BYTES, b"a", b"bcde", MAGIC_BYTES[:2]]), max_size=12).map(b"".join)))
@settings(max_examples=60, deadline=None)
def test_round_trip_with_magic_anywhere(tmp_path_factory, images):
    path = tmp_path_factory.mktemp("records") / "a.rec"
    images = [*images, b"last"]
    write(path, images)
    indexed = RecordReader(path)
    path.with_suffix(".idx").unlink()
    scanned = RecordReader(path)
    for reader in (indexed, scanned):
        assert [reader.read(key).image for key in range(len(images))] == images


def test_keys_in_any_order(tmp_path):
    path = tmp_path / "a.rec"
    write(path, [b"zero", b"one", b"two"])
    lines = path.with_suffix(".idx").read_text().splitlines()
    path.with_suffix(".idx").write_text("\n".join([lines[2].replace("2\t", "9\t"), lines[0]]))
    reader = RecordReader(path)
    assert reader.read(9).image == b"two"
    assert reader.read(0).image == b"zero"
    assert reader.keys.tolist() == [0, 9]
    with pytest.raises(KeyError, match="no record has key 1"):
        reader.read(1)


@pytest.mark.parametrize(
    ("ids", "keys"), [([1, 2, 0], [1, 2, 0]), ([7, MAGIC], [7, MAGIC]), ([5, 5, 5], [0, 1, 2]), ([0, 2**63], [0, 1])]
)
def test_without_an_index_the_ids_are_the_keys(tmp_path, ids, keys):
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:  # for its cut at the magic, in the header here
        for id in ids:
            writer._write(0, header(id=id) + b"image %d" % id)
    path.with_suffix(".idx").unlink()
    reader = RecordReader(path)
    assert reader.keys.tolist() == sorted(keys)
    assert [reader.read(key).image for key in keys] == [b"image %d" % id for id in ids]


def test_threads_and_processes(tmp_path):
    path = tmp_path / "a.rec"
    images = [bytes([i]) * (i + 1) for i in range(200)]
    write(path, images)
    reader = pickle.loads(pickle.dumps(RecordReader(path)))
    wrong = []

    def read_all(seed):
        for key in np.random.default_rng(seed).permutation(200):
            if reader.read(int(key)).image != images[key]:
                wrong.append(key)

    threads = [threading.Thread(target=read_all, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_appears_when_writing_fails(tmp_path):
    path = tmp_path / "a.rec"
    write(path, [b"old"])
    with pytest.raises(RuntimeError), RecordWriter(path) as writer:
        writer.write_image(0, 0, b"new")
        raise RuntimeError
    assert RecordReader(path).read(0).image == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.idx", "a.rec"]


def test_every_truncation_is_found(tmp_path):
    """With the index, the cut record is named. Without it, each cut is found unless it lies between two records."""
    path = tmp_path / "a.rec"
    write(path, [b"first", b"second " + MAGIC_BYTES, b"last"])  # the last ends without padding
    content = path.read_bytes()
    index = path.with_suffix(".idx").read_bytes()
    ends = {int(line.split(b"\t")[1]) for line in index.splitlines()} | {len(content)}
    for length in range(1, len(content)):
        path.write_bytes(content[:length])
        path.with_suffix(".idx").write_bytes(index)
        with pytest.raises(ValueError, match=r"a\.(rec|idx)"):
            [RecordReader(path).read(key) for key in range(3)]
        path.with_suffix(".idx").unlink()
        padded_end = {end - pad for end in ends for pad in range(4)}
        if length not in padded_end:
            with pytest.raises(ValueError, match=r"a\.rec"):
                RecordReader(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"garbage!", "expected the magic 0xced7230a"),
        (by_hand(header())[:6], "the file ends at byte 6"),
        (struct.pack("<II", 0xCED7230A, 2**29 - 1) + b"x", "expected 536870911 bytes, the file ends after 1"),
        (struct.pack("<II", 0xCED7230A, 5 << 29), "expected a part number 0 to 3, got 5"),
        (by_hand(b"short"), "expected a header of 24 bytes, got 5"),
        (by_hand(header(2**31)), "expected 2147483648 labels, got a record of 24 bytes"),
        (by_hand(header(), 3), "out of turn"),
        (by_hand(header(), 1) + by_hand(header(), 0), "out of turn"),
        (by_hand(header(), 1), "the file ends"),
    ],
)
def test_damage_says_where(tmp_path, content, message):
    path = tmp_path / "a.rec"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RecordReader(path).read(0)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "expected 0 lines"),
        ("0\tx\n", "expected lines of key, tab, offset"),
        ("0 0\n", "expected lines of key, tab, offset"),
        ("0\t0\t0\n", "expected 1 lines of key, tab, offset"),
        ("0\t-4\n", "line 1: offset -4 is not inside a.rec"),
        ("0\t0\n1\t4000\n", "line 2: offset 4000 is not inside a.rec"),
        ("0\t0\n0\t0\n", "each once"),
        ("0\t99999999999999999999\n", "line 1: offset .* is not inside a.rec|int64 at row 0"),  # NumPy 1.26 | 2
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")  # NumPy warns of the empty file that is refused
def test_a_bad_index_says_where(tmp_path, index, message):
    path = tmp_path / "a.rec"
    path.write_bytes(by_hand(header() + b"image"))
    path.with_suffix(".idx").write_text(index)
    with pytest.raises(ValueError, match=message):
        RecordReader(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.rec: expected a record file"):
        RecordReader(tmp_path / "a.rec")


@given(st.binary(max_size=80), st.binary(max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_file_crashes_the_reader(tmp_path_factory, content, index):
    path = tmp_path_factory.mktemp("fuzz") / "a.rec"
    path.write_bytes(by_hand(header()) + content)
    try:
        reader = RecordReader(path)
        [reader.read(int(key)) for key in reader.keys]
    except ValueError:
        pass


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    path = tmp_path / "a.rec"
    write(path, [b"first", b"x" * 5000])
    reader = RecordReader(path)
    with path.open("r+b") as file:
        file.truncate(200)
    assert reader.read(0).image == b"first"
    with pytest.raises(ValueError, match=r"a.rec key 1, byte 40: expected 5024 bytes, got 152: the file has shrunk"):
        reader.read(1)


def test_a_record_longer_than_one_read(tmp_path):
    path = tmp_path / "a.rec"
    image = np.random.default_rng(0).bytes(3 * 2**20)
    write(path, [b"first", image, b"last"])
    reader = RecordReader(path)
    assert [reader.read(key).image for key in range(3)] == [b"first", image, b"last"]


def test_records_stay_out_of_the_memory_of_the_process(tmp_path):
    """Reading 32 MiB of records must not add to the memory of the process; a memory map would."""
    path = tmp_path / "a.rec"
    write(path, [bytes(2**16)] * 512)
    code = """
import re, sys
from pathlib import Path
from common.datasets.records import RecordReader
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
reader = RecordReader(Path(sys.argv[1]))
before = resident()
for key in range(512):
    reader.read(key)
print(resident() - before)
"""
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 4096  # KiB


def test_the_file_is_closed_with_its_reader(tmp_path):
    path = tmp_path / "a.rec"
    write(path, [b"first"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    readers = [RecordReader(path) for _ in range(5)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 5
    readers.clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("byte", range(4))
def test_a_usual_record_without_its_magic(tmp_path, byte):
    path = tmp_path / "a.rec"
    write(path, [bytes(100), bytes(100)])
    content = bytearray(path.read_bytes())
    second = 8 + 24 + 100
    content[second + byte] ^= 1
    path.write_bytes(content)
    assert RecordReader(path).read(0).image == bytes(100)
    with pytest.raises(ValueError, match=rf"key 1, byte {second}: expected the magic"):
        RecordReader(path).read(1)


def test_a_record_of_very_many_parts_is_read_in_time(tmp_path, monkeypatch):
    """The parts are read one by one, and not each with what the record should hold."""
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        writer.write_image(0, 0, MAGIC_BYTES * 20_000)
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: read.append(len(data := pread(*arguments))) or data)
    assert RecordReader(path).read(0).image == MAGIC_BYTES * 20_000
    assert sum(read) < 5 * path.stat().st_size
