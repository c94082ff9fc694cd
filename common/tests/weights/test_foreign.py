"""Published weights of every format are read; hostile, damaged and wrong files are refused, and nothing runs."""

import collections
import os
import pickle
import struct
import tracemalloc
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.tests.foreign_files import (
    Hostile,
    Tensor,
    fresnet,
    weights,
    write_jittor,
    write_mxnet,
    write_onnx,
    write_safetensors,
    write_symbol,
    write_torch,
    write_torch_legacy,
)
from common.weights.foreign.arrays import are_sizes, is_shape
from common.weights.foreign.convert import convert

OURS = Fraction(1, 128)
WEIGHTS = weights()
HUGE = 3 * 2**30


def converted(path, backbone="iresnet_small", scale=OURS, **options):
    return convert(path, backbone, image_size=16, pixel_scale=scale, **options)


def assert_is(found, expected=WEIGHTS):
    assert found.arrays.keys() == expected.keys()
    for name, array in found.arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name].astype(np.float32), err_msg=name)


# PyTorch


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_zip_of_pytorch(tmp_path, protocol):
    assert_is(converted(write_torch(tmp_path / "a.pth", WEIGHTS, protocol)))


def test_the_legacy_format_of_pytorch(tmp_path):
    found = converted(write_torch_legacy(tmp_path / "a.pth", {"state_dict": WEIGHTS, "optimizer": {"m": np.ones(3)}}))
    assert_is(found)
    assert found.notes[0] == f"PyTorch (legacy format): {len(WEIGHTS)} arrays of iresnet_small, 4-d"


@pytest.mark.parametrize("write", [write_torch, write_torch_legacy])
def test_state_dicts_within_dicts(tmp_path, write):
    """The weights are the dict that fits; counters and other entries stay out."""
    counted = {f"module.{name}": array for name, array in WEIGHTS.items()}
    counted["module.bn1.num_batches_tracked"] = np.array(5)
    value = {"epoch": 3, "head": {"weight": np.ones((5, 4), np.float32)}, "model": collections.OrderedDict(counted)}
    found = converted(write(tmp_path / "a.pth", value))
    assert_is(found)
    assert not any("left out" in note for note in found.notes)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_single(tmp_path, dtype):
    cast = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    assert_is(converted(write_torch(tmp_path / "a.pth", cast)), cast)


def test_views_of_a_storage(tmp_path):
    """Strides and offsets, as channels-last weights and parameters in one flat buffer have them."""
    stem = WEIGHTS["conv1.weight"]
    last = np.ascontiguousarray(stem.transpose(0, 2, 3, 1))
    buffer = np.concatenate([np.zeros(7, np.float32), last.ravel(), np.zeros(3, np.float32)])
    view = Tensor(buffer, offset=7, shape=stem.shape, strides=(27, 1, 9, 3))
    assert_is(converted(write_torch(tmp_path / "a.pth", WEIGHTS | {"conv1.weight": view})))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 31}, r"shape \(32,\) in a storage of 31"),
        ({"offset": 1}, r"shape \(32,\) in a storage of 32"),
        ({"strides": (2,)}, r"shape \(32,\) in a storage of 32"),
        ({"shape": (10**12,), "strides": (0,)}, r"shape \(1000000000000,\) in a storage of 32"),
        ({"shape": (-32,), "strides": (-1,)}, "no sizes"),
        ({"strides": (1, 1)}, "no sizes"),
        ({"shape": (32.0,)}, "no sizes"),
        ({"shape": (2**70,)}, "no sizes"),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "no sizes"),
        ({"shape": (2**200,)}, "a number of more than 128 bits"),
        ({"count": 10**15}, "bn1.weight: expected|expected 4000000000000000 bytes"),
        ({"key": "../../etc/passwd"}, None),
        ({"view": (None, None)}, "without a storage"),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path, changes, message):
    path = write_torch(tmp_path / "a.pth", WEIGHTS | {"bn1.weight": Tensor(WEIGHTS["bn1.weight"], **changes)})
    if message is None:  # a name inside the zip is a name and no path
        assert_is(converted(path))
        return
    with pytest.raises(ValueError, match=message):
        converted(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archive/data.pkl": None}, "one folder that holds data.pkl"),
        ({"other/data.pkl": b"."}, "one folder that holds data.pkl"),
        ({"archive/byteorder": b"big"}, "little-endian"),
        ({"archive/data/0": None}, "expected a file 'archive/data/0' in it, found none"),
        ({"archive/data/0": b"123"}, "bytes in 'archive/data/0', got 3"),
    ],
)
def test_zips_that_are_not_whole(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        converted(write_torch(tmp_path / "a.pth", WEIGHTS, changes=changes.items()))


def test_a_zip_that_lost_a_byte(tmp_path):
    path = write_torch(tmp_path / "a.pth", WEIGHTS)
    content = path.read_bytes()
    path.write_bytes(content[:100] + content[101:])
    with pytest.raises(ValueError, match=r"a\.pth: is a damaged zip file"):
        converted(path)


def test_a_zip_whose_names_are_not_utf8(tmp_path):
    path = write_torch(tmp_path / "a.pth", WEIGHTS, changes={"archive/ä": b""}.items())
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xce\xce"))
    with pytest.raises(ValueError, match=r"a\.pth: is a damaged zip file"):
        converted(path)


def test_a_shape_whose_size_numpy_cannot_count_is_none():
    assert is_shape((0, 2**40))
    assert not is_shape((2**40, 2**40, 0))
    assert are_sizes((2**40, 2**40)), "strides"


def test_what_unpacks_to_more_than_it_takes_is_refused(tmp_path):
    path = write_torch(tmp_path / "a.pth", WEIGHTS, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="neither compressed nor encrypted"):
        converted(path)


@pytest.mark.parametrize(
    ("count", "sizes", "message"),
    [
        (HUGE // 4, struct.pack("<II", HUGE, HUGE), f"is cut short: {HUGE} bytes expected"),
        (WEIGHTS["bn1.weight"].size, struct.pack("<I", HUGE), f"is damaged: {HUGE} bytes hold the "),
    ],
    ids=["both", "packed"],
)
def test_a_storage_that_claims_more_than_the_file_takes_no_memory(tmp_path, count, sizes, message):
    """Both sizes in the zip's directory say 3 GiB, and so does the pickle; or only the packed size says so."""
    huge = Tensor(WEIGHTS["bn1.weight"], count=count, key="huge")
    path = write_torch(tmp_path / "a.pth", WEIGHTS | {"bn1.weight": huge})
    content = bytearray(path.read_bytes())
    name = content.rindex(b"archive/data/huge")
    content[name - 26 : name - 26 + len(sizes)] = sizes
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            converted(path)
        assert tracemalloc.get_traced_memory()[1] < 5e7
    finally:
        tracemalloc.stop()


def test_legacy_files_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="big-endian"):
        converted(write_torch_legacy(tmp_path / "a.pth", WEIGHTS, little=False))
    path = write_torch_legacy(tmp_path / "a.pth", WEIGHTS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="the end of the file in the storage"):
        converted(path)


# Jittor


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("trailer", [True, False])
def test_a_pickle_of_jittor(tmp_path, protocol, trailer):
    found = converted(write_jittor(tmp_path / "a.pkl", WEIGHTS, protocol, trailer))
    assert_is(found)
    assert any("biased" in note for note in found.notes) == trailer


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_numpy_arrays(tmp_path, protocol):
    """Other byte orders, memory orders and precisions."""
    odd = WEIGHTS | {
        "conv1.weight": np.asfortranarray(WEIGHTS["conv1.weight"]),
        "bn1.weight": WEIGHTS["bn1.weight"].astype(">f4"),
        "bn1.bias": WEIGHTS["bn1.bias"].astype(np.float64),
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"net": {f"module.{name}": array for name, array in odd.items()}}, protocol))
    assert_is(converted(path))


def test_a_wrong_hash_of_jittor(tmp_path):
    path = write_jittor(tmp_path / "a.pkl", WEIGHTS)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="its hash does not match"):
        converted(path)


def test_arrays_without_their_bytes(tmp_path):
    content = pickle.dumps({"bn1.weight": np.ones(300, np.float32)}, 4)
    assert content.count(b"M,\x01\x85") == 1
    path = tmp_path / "a.pkl"
    path.write_bytes(content.replace(b"M,\x01\x85", b"M-\x01\x85"))
    with pytest.raises(ValueError, match="found 1200 bytes for an array of 1204"):
        converted(path)
    path.write_bytes(content + b"more")
    with pytest.raises(ValueError, match="4 bytes behind the pickle"):
        converted(path)


# All formats


def mxnet_files(folder, arrays=WEIGHTS, version=2, **symbol):
    write_symbol(folder / "r-symbol.json", **symbol)
    return write_mxnet(folder / "r-0001.params", fresnet(arrays), version)


WRITERS = {
    "zip": lambda folder, arrays: write_torch(folder / "a.pth", arrays),
    "legacy": lambda folder, arrays: write_torch_legacy(folder / "a.pth", arrays),
    "jittor": lambda folder, arrays: write_jittor(folder / "a.pkl", arrays),
    "mxnet": lambda folder, arrays: mxnet_files(folder, arrays, eps="1e-05", fix_gamma="False"),
    "safetensors": lambda folder, arrays: write_safetensors(folder / "a.safetensors", arrays),
    "onnx": lambda folder, arrays: write_onnx(folder / "a.onnx", arrays),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_another_pixel_scale_goes_into_the_first_convolution(tmp_path, kind):
    symbol = {"scale": None} if kind == "mxnet" else {}
    path = WRITERS[kind](tmp_path, WEIGHTS)
    if symbol:
        path = mxnet_files(tmp_path, eps="1e-05", fix_gamma="False", **symbol)
    found = converted(path, scale=Fraction("0.078125"))
    assert_is(found, WEIGHTS | {"conv1.weight": WEIGHTS["conv1.weight"] * np.float32(10)})
    assert "pixel scale 0.078125, ours is 1/128: conv1.weight is multiplied by 10" in found.notes
    with pytest.raises(ValueError, match="expected a positive number, got -1"):
        converted(path, scale=Fraction(-1))


def test_a_pixel_scale_must_be_given_where_the_file_does_not_say_it(tmp_path):
    with pytest.raises(ValueError, match=r"1/127.5 in arcface_torch, 0.078125 in the PyTorch and Jittor code of SFace"):
        converted(write_torch(tmp_path / "a.pth", WEIGHTS), scale=None)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn1.bias": None}, "bn1.bias: missing"),
        ({"layer9.0.bn1.bias": np.ones(3, np.float32)}, "unexpected"),
        ({"conv1.weight": np.ones((32, 3, 5, 5), np.float32)}, r"conv1.weight: expected \(32, 3, 3, 3\) of floating"),
        ({"bn1.bias": np.full(32, np.nan, np.float32)}, "bn1.bias: holds NaN or infinity"),
        ({"bn1.bias": np.full(32, 1e300)}, "bn1.bias: holds NaN or infinity"),
        ({"bn1.running_var": np.full(32, -1, np.float32)}, "bn1.running_var: expected variances"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_weights_of_another_network(tmp_path, kind, change, message):
    arrays = {name: array for name, array in (WEIGHTS | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        converted(WRITERS[kind](tmp_path, arrays))


def test_the_network_that_the_names_are_of_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"fit iresnet18: layer1.1.bn1.weight: missing;.*those of iresnet_small"):
        converted(write_torch(tmp_path / "a.pth", WEIGHTS), "iresnet18")
    with pytest.raises(ValueError, match=r"backbone: expected one of .*mobilenet_v1, got 'vgg'"):
        converted(tmp_path / "a.pth", "vgg")


def test_whole_numbers_are_no_weights(tmp_path):
    whole = WEIGHTS | {"bn1.bias": np.ones(32, np.int64)}
    with pytest.raises(ValueError, match=r"bn1.bias: expected \(32,\) of floating point, got int64 \(32,\)"):
        converted(write_torch(tmp_path / "a.pth", whole))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_truncation_is_found(tmp_path, kind):
    small = {name: array for name, array in WEIGHTS.items() if array.size < 100}
    path = WRITERS[kind](tmp_path, small)
    content = path.read_bytes()
    for length in [*range(0, 400, 7), *range(400, len(content) - 30, 797), *range(len(content) - 30, len(content))]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=path.name):
            converted(path)


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_crashes_the_reader(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp() / kind
    folder.mkdir(exist_ok=True)
    path = WRITERS[kind](folder, {name: array for name, array in WEIGHTS.items() if array.size < 100})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.raises(ValueError):
        converted(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "jittor"])
@pytest.mark.parametrize("place", ["alone", "value", "argument"])
def test_a_hostile_pickle_runs_nothing(tmp_path, kind, place):
    proof = tmp_path / "it ran"
    bomb = Hostile(os.mkdir, str(proof))
    value = {"alone": {"x": bomb}, "value": WEIGHTS | {"x": bomb}, "argument": {"x": Hostile(np.dtype, bomb)}}[place]
    path = WRITERS[kind](tmp_path, value)
    with pytest.raises(ValueError, match=r"found a call of '\w+\.mkdir'; nothing in it was executed"):
        converted(path)
    assert not proof.exists()
    if kind == "jittor" and place == "alone":
        pickle.loads(path.read_bytes())
        assert proof.exists(), "the bomb must be a real one"


def test_nested_without_end(tmp_path):
    """Deep nesting must not give a RecursionError, and a cycle no endless loop."""
    deep = b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b")R."
    cycle = b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u."
    for content in (deep, cycle):
        path = tmp_path / "a.pkl"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.pkl"):
            converted(path)


@pytest.mark.parametrize("content", [b"", b"short", b"GIF89a" + bytes(100), pickle.dumps([1, 2, 3] * 9)])
def test_files_of_no_known_format(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth: expected"):
        converted(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file of weights"):
        converted(tmp_path / "a.pth")
