"""Weights from ONNX models: the released SFace's layout, our own exports, and models that are damaged or hostile."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from common.evaluation.agreement import check_agreement
from common.tests.foreign_files import weights, write_released
from common.weights.foreign.convert import convert
from common.weights.onnx_export import export_onnx


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("quantised", [True, False])
def test_the_released_layout(tmp_path, quantised):
    """Names, blocks of integers, slopes (C, 1, 1) and the normalisation of pixels are read from the file."""
    path = tmp_path / "sface.onnx"
    expected = write_released(path, quantised)
    found = convert(path, "mobilenet_v1", image_size=16)
    assert_same(found.arrays, expected)
    assert found.notes == [f"ONNX: {len(expected)} arrays of mobilenet_v1, 4-d", "pixel scale 1/128, as ours"]
    assert check_agreement(path, found.arrays, "mobilenet_v1", 4, 16) < 1e-5


def test_our_own_exports(tmp_path):
    expected = weights("iresnet_small")
    export_onnx(tmp_path / "a.onnx", expected, backbone="iresnet_small", embedding_size=4, image_size=16)
    assert_same(convert(tmp_path / "a.onnx", "iresnet_small", image_size=16).arrays, expected)


def test_a_graph_that_computes_something_else(tmp_path):
    """The names and shapes fit, the calculation does not."""
    path = tmp_path / "sface.onnx"
    arrays = write_released(path)
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "PRelu").op_type = "Mul"
    onnx.save(model, path)
    with pytest.raises(
        ValueError, match="its graph is not that of mobilenet_v1: with the same weights, embeddings differ"
    ):
        check_agreement(path, arrays, "mobilenet_v1", 4, 16)


QUANTIZED, SCALES, SHAPE = (f"conv_3_conv2d_weight_{part}" for part in ("quantized", "scales", "shape"))


def tensor(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def replace(model, name, array):
    tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))


def elsewhere(model):
    tensor(model, QUANTIZED).data_location = onnx.TensorProto.EXTERNAL
    tensor(model, QUANTIZED).external_data.add(key="location", value="/etc/passwd")


def dequantise(model):
    return next(node for node in model.graph.node if node.input[0] == QUANTIZED)


def attribute(model, name, value):
    next(one for one in dequantise(model).attribute if one.name == name).i = value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (elsewhere, f"all weights in the file, '{QUANTIZED}' lies in another one"),
        (lambda m: tensor(m, QUANTIZED).dims.__setitem__(0, 2**40), "numbers for .*, found 8192"),
        (lambda m: tensor(m, QUANTIZED).dims.__setitem__(0, -128), r"got int8 \(-128, 64\)"),
        (lambda m: setattr(tensor(m, QUANTIZED), "raw_data", b"x" * 99), r"expected 8192 numbers .*, found 99"),
        (lambda m: setattr(tensor(m, SCALES), "data_type", 77), "expected float32, got another type"),
        (
            lambda m: setattr(tensor(m, SCALES), "name", "lost"),
            f"expected '{SCALES}' among its initializers, found none",
        ),
        (lambda m: replace(m, SCALES, np.ones((128, 2), np.float32)), r"expected scales \(128, 1\)"),
        (lambda m: replace(m, SHAPE, np.array([128, 64, 1, 2])), r"of \(128, 64\)'s size, got \(128, 64, 1, 2\)"),
        (lambda m: replace(m, SHAPE, np.array([-1, 64, 1, 1])), r"got \(-1, 64, 1, 1\)"),
        (lambda m: attribute(m, "axis", 2), r"expected an axis of \(128, 64\), got 2"),
        (lambda m: attribute(m, "block_size", -1), r"expected an axis of \(128, 64\), got 1 by -1"),
        (lambda m: setattr(dequantise(m), "op_type", "Sin"), "expected a weight .* among its initializers, found none"),
        (lambda m: replace(m, "normalise.mean", np.float32([128])), "subtracts 127.5 from its pixels, got 128.0"),
        (lambda m: attribute(m, "block_size", 2**40), None),  # one block, which needs no more memory
    ],
)
def test_damaged_models(tmp_path, damage, message):
    path = tmp_path / "sface.onnx"
    write_released(path)
    model = onnx.load(path)
    damage(model)
    path.write_bytes(model.SerializeToString())
    if message is None:
        convert(path, "mobilenet_v1", image_size=16)
        return
    with pytest.raises(ValueError, match=message):
        convert(path, "mobilenet_v1", image_size=16)
