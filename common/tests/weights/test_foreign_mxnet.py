"""Published weights of MXNet: a .params file and the symbol beside it."""

import json
import struct

import numpy as np
import pytest

from common.tests.foreign_files import fresnet, mxnet_array, weights, write_mxnet, write_symbol, write_torch
from common.tests.published_networks import fmobilefacenet_name
from common.tests.weights.test_foreign import OURS, WEIGHTS, assert_is, converted, mxnet_files


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_params_of_mxnet(tmp_path, version):
    """The symbol has eps 2e-5, we 1e-5: the running variances get the difference. fix_gamma makes a weight 1."""
    expected = dict(WEIGHTS)
    for name, array in WEIGHTS.items():
        if name.endswith("running_var"):
            expected[name] = (array.astype(np.float64) + 1e-5).astype(np.float32)
    expected["features.weight"] = np.ones(4, np.float32)
    found = converted(mxnet_files(tmp_path, version=version), scale=None)
    assert_is(found, expected)
    assert "pixel scale 1/128, as ours" in found.notes
    assert "1 BatchNorms have fix_gamma: their weights are 1" in found.notes
    assert any("another eps" in note for note in found.notes)
    assert any("biased" in note for note in found.notes)


def test_a_mobilefacenet_of_mxnet(tmp_path):
    """Its symbol does not say the defaults: eps 1e-3, the same as ours, and a fixed gamma."""
    arrays = weights("mobilefacenet")
    path = write_mxnet(tmp_path / "y1-0000.params", fresnet(arrays, fmobilefacenet_name))
    nodes = [
        {"op": "BatchNorm", "name": f"{layer}_batchnorm", "attrs": {"fix_gamma": "False"}}
        for layer in sorted({fmobilefacenet_name(n).rpartition("_batchnorm_")[0] for n in arrays if "batchnorm" in n})
    ]
    nodes.append({"op": "BatchNorm", "name": "fc1", "attr": {"eps": "2e-05"}})
    (tmp_path / "y1-symbol.json").write_text(json.dumps({"nodes": nodes}))
    assert_is(converted(path, "mobilefacenet"), arrays | {"fc1.weight": np.ones(4, np.float32)})


def test_prototypes_and_half_precision_of_mxnet(tmp_path):
    half = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    write_symbol(tmp_path / "r-symbol.json", eps="1e-05", fix_gamma="False")
    extra = {"arg:fc7_weight": np.ones((5, 4), np.float32)}
    found = converted(write_mxnet(tmp_path / "r-0001.params", fresnet(half) | extra))
    assert_is(found, half)
    assert "left out: arg:fc7_weight" in found.notes


@pytest.mark.parametrize(
    ("symbol", "scale", "message"),
    [
        ({"scale": "0.078125"}, OURS, "pixel-scale: 0.0078125 was given, but the graph of .* says 0.078125"),
        ({"scale": None}, None, "pixel-scale: expected a number"),
        ({"mean": "128"}, None, "subtracts 127.5 from its pixels, got 128.0"),
        ({"eps": "nan"}, None, "expected a network of MXNet in JSON"),
        ({"eps": "-1"}, None, "running_var: expected variances"),
        ({"backbone": "mobilefacenet"}, None, "has no BatchNorm for bn1"),
    ],
)
def test_symbols_that_do_not_fit(tmp_path, symbol, scale, message):
    with pytest.raises(ValueError, match=message):
        converted(mxnet_files(tmp_path, **symbol), scale=scale)


def test_a_symbol_elsewhere_or_nowhere(tmp_path):
    path = mxnet_files(tmp_path)
    (tmp_path / "r-symbol.json").rename(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match=r"r-symbol.json: expected the network's symbol .* --symbol"):
        converted(path)
    assert converted(path, symbol=tmp_path / "other.json").embedding_size == 4
    with pytest.raises(ValueError, match="symbol: expected none for a file of PyTorch"):
        converted(write_torch(tmp_path / "a.pth", WEIGHTS), symbol=tmp_path / "other.json")
    for content in ("[]", '{"nodes": 3}', '{"nodes": [{"op": "BatchNorm"}]}', "[" * 100_000, "{"):
        (tmp_path / "r-symbol.json").write_text(content)
        with pytest.raises(ValueError, match="expected a network of MXNet"):
            converted(path)


def params(arrays: bytes, count=1, names=(b"x",)) -> bytes:
    named = b"".join(struct.pack("<Q", len(name)) + name for name in names)
    return struct.pack("<QQQ", 0x112, 0, count) + arrays + struct.pack("<Q", len(names)) + named


ONE = mxnet_array(np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (params(ONE, count=2**60), "is cut short: 1152921504606846976 entries"),
        (params(ONE, names=[b"x", b"y"]), "a name of its own for each array"),
        (params(ONE * 2, count=2, names=[b"x", b"x"]), "a name of its own for each array"),
        (params(ONE) + b"more", "4 bytes too many"),
        (params(ONE, names=[b"\xff"]), "not UTF-8"),
        (params(ONE.replace(struct.pack("<q", 2), struct.pack("<q", 2**40))), "is cut short"),
        (params(ONE.replace(struct.pack("<q", 2), struct.pack("<q", -2))), r"the sizes of an array, got \(-2,\)"),
        (params(struct.pack("<Ii", 0xF993FAC9, 1) + ONE[8:]), "dense arrays, got a sparse one"),
        (params(b"\xff" * 60), "expected an array at byte"),
        (params(ONE[:-12] + struct.pack("<i", 99) + ONE[-8:]), "expected a dtype among"),
        (struct.pack("<QQ", 0x112, 1), "MXNet's list of arrays"),
    ],
)
def test_params_that_are_damaged(tmp_path, content, message):
    path = tmp_path / "r-0001.params"
    path.write_bytes(content)
    write_symbol(tmp_path / "r-symbol.json")
    with pytest.raises(ValueError, match=message):
        converted(path)
