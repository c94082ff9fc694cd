"""Evaluation sets of every known writer are read; hostile and damaged ones are refused, and nothing runs."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets.pair_sets import find_pair_sets, open_pair_set, write_pair_set
from common.tests.foreign_files import Hostile

IMAGES = [b"\xff\xd8 first", b"second \x00\xfe\xff" * 40, b"3", b"x" * 70_000]
ISSAME = [True, False]


def opened(path, content: bytes):
    path.write_bytes(content)
    return open_pair_set(path)


def assert_is_the_set(pairs):
    assert [bytes(pairs.encoded(i)) for i in range(4)] == IMAGES
    assert pairs.issame.tolist() == ISSAME
    assert pairs.issame.dtype == bool


def test_written_sets_are_ordinary_pickles(tmp_path):
    path = tmp_path / "mine.bin"
    write_pair_set(path, iter(IMAGES), iter(ISSAME))
    assert pickle.loads(path.read_bytes(), encoding="bytes") == (IMAGES, ISSAME)
    assert_is_the_set(open_pair_set(path))
    assert open_pair_set(path).name == "mine"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("outer", [tuple, list])
@pytest.mark.parametrize(
    "images", [IMAGES, [np.frombuffer(image, np.uint8).copy() for image in IMAGES]], ids=["bytes", "arrays"]
)
@pytest.mark.parametrize(
    "issame",
    [
        *(ISSAME, [1, 0], (True, False), [np.bool_(True), np.bool_(False)], [np.int64(1), np.uint8(0)]),
        *(np.array(ISSAME), np.array([1, 0]), np.array([1, 0], np.int8)),
    ],
    ids=["bool", "int", "tuple", "numpy", "numpy int", "array", "array int64", "array int8"],
)
def test_python_3_pickles(tmp_path, protocol, outer, images, issame):
    assert_is_the_set(opened(tmp_path / "a.bin", pickle.dumps(outer([images, issame]), protocol)))


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1)])
def test_images_as_old_opencv_gives_them(tmp_path, shape):
    images = [np.frombuffer(image, np.uint8).reshape(shape) for image in IMAGES]
    assert_is_the_set(opened(tmp_path / "a.bin", pickle.dumps((tuple(images), ISSAME))))


@pytest.mark.parametrize("issame", [np.array([2, 0]), [np.int64(-1), 0], np.array([0.5, 0]), "no"])
def test_flags_that_say_nothing(tmp_path, issame):
    with pytest.raises(ValueError, match=r"a.bin: expected a pickle .* in place of same or not"):
        opened(tmp_path / "a.bin", pickle.dumps((IMAGES, issame)))


def python_2_string(value: bytes) -> bytes:
    if len(value) < 256:
        return b"U" + bytes([len(value)]) + value
    return b"T" + struct.pack("<i", len(value)) + value


def test_python_2_pickles(tmp_path):
    """Protocol 2 as Python 2 writes it: str for bytes, memo entries, and a batch of items."""
    images = b"".join(python_2_string(image) + b"q" + bytes([i + 1]) for i, image in enumerate(IMAGES))
    content = b"\x80\x02]q\x00(" + images + b"e]q\x09(\x88\x89e\x86q\x0a."
    assert pickle.loads(content, encoding="bytes") == (IMAGES, ISSAME)
    assert_is_the_set(opened(tmp_path / "a.bin", content))


def test_repeated_images_come_from_the_memo(tmp_path):
    image = b"the same object"
    pairs = opened(tmp_path / "a.bin", pickle.dumps(([image, image], [True])))
    assert pairs.encoded(0) == pairs.encoded(1) == image


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["alone", "image", "flag", "argument"])
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol, place):
    proof = tmp_path / "it ran"
    bomb = Hostile(os.mkdir, str(proof))
    value = {
        "alone": bomb,
        "image": ([bomb, b""], [True]),
        "flag": ([b"", b""], [bomb]),
        "argument": ([Hostile(np.frombuffer, bomb), b""], [True]),
    }[place]
    content = pickle.dumps(value, protocol)
    with pytest.raises(ValueError, match="nothing in it was executed"):
        opened(tmp_path / "a.bin", content)
    assert not proof.exists()
    pickle.loads(content) if place == "alone" else None
    assert proof.exists() == (place == "alone"), "the bomb must be a real one"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (([b"one"], [True]), "2 images a pair, got 1 images for 1 pairs"),
        (([b"one", b"two", b"three"], [True]), "got 3 images for 1 pairs"),
        (([], []), "got 0 images for 0 pairs"),
        (([b"one", b"two"], [2]), "in place of same or not"),
        (([b"one", b"two"], ["yes"]), "in place of same or not"),
        (([b"one", 3], [True]), "neither bytes nor a one-dimensional uint8 array"),
        (([b"one", np.zeros(3)], [True]), "neither bytes nor a one-dimensional uint8 array"),
        (([b"one", np.zeros((3, 3), np.uint8)], [True]), "neither bytes nor a one-dimensional uint8 array"),
        ({"images": [], "issame": []}, "something else than two lists"),
        ({b"a set"}, "the instruction EMPTY_SET"),
        ("a string", "something else than two lists"),
    ],
)
def test_other_contents_are_named(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path / "a.bin", pickle.dumps(value, 4))


def test_every_truncation_is_found(tmp_path):
    content = pickle.dumps(([b"one", np.frombuffer(b"two", np.uint8).copy()], [True]), 2)
    for length in range(len(content)):
        with pytest.raises(ValueError, match="a.bin"):
            opened(tmp_path / "a.bin", content[:length])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_file_crashes_the_reader(tmp_path_factory, data):
    content = bytearray(pickle.dumps(([b"one", np.frombuffer(b"two", np.uint8).copy()], [np.bool_(True)]), 4))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content += data.draw(st.binary(max_size=20))
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    try:
        pairs = opened(path, bytes(content))
        [pairs.encoded(i) for i in range(2)]
    except ValueError:
        pass


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.bin: expected an evaluation set"):
        open_pair_set(tmp_path / "a.bin")
    with pytest.raises(ValueError, match="is empty"):
        opened(tmp_path / "a.bin", b"")


def test_a_wrong_count_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="got 3 images for 2 pairs"):
        write_pair_set(tmp_path / "a.bin", IMAGES[:3], ISSAME)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_images(tmp_path):
    path = tmp_path / "large.bin"
    image = bytes(20_000)
    tracemalloc.start()
    try:
        write_pair_set(path, (image for _ in range(3000)), [True] * 1500)
        pairs = open_pair_set(path)
        read = sum(len(pairs.encoded(i)) for i in range(3000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read == 3000 * 20_000
    assert peak < 5e6, f"{peak} bytes for a file of {path.stat().st_size}"


def test_a_missing_set_is_reported(tmp_path):
    write_pair_set(tmp_path / "mine.bin", IMAGES * 5, ISSAME * 5)
    found, missing = find_pair_sets(tmp_path, ["lfw", "mine", "cfp_fp", "lfw"])
    assert list(found) == ["mine"]
    assert found["mine"].issame.tolist() == ISSAME * 5
    assert missing == ["lfw", "cfp_fp"]
    assert find_pair_sets(tmp_path / "absent", ["lfw"]) == ({}, ["lfw"])


def test_too_few_pairs_for_the_folds_are_said_at_once(tmp_path):
    write_pair_set(tmp_path / "nine.bin", [b"x"] * 18, [True] * 9)
    with pytest.raises(ValueError, match=r"nine.bin: expected at least 10 pairs, one a fold, got 9"):
        find_pair_sets(tmp_path, ["nine"])


def test_the_name_of_a_set_is_no_path(tmp_path):
    with pytest.raises(ValueError, match="part of a file name, got '../mine'"):
        find_pair_sets(tmp_path, ["../mine"])
