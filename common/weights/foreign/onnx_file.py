"""ONNX models: the weights in their graph, and what it says of BatchNorms and pixels.

A weight is an initializer, or integers that become one: DequantizeLinear(quantized, scale, zero_point), with one
scale, one for each row of an axis, or one for each block of `block_size` rows; a Reshape may follow. Integers called
NAME_quantized are the weight NAME, as OpenCV Zoo's tools write it. Weights that lie in other files are refused.

Format: https://github.com/onnx/onnx/blob/main/docs/IR.md and, of DequantizeLinear, docs/Operators.md.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from common.weights.foreign.arrays import BatchNormFacts, ForeignArray, ForeignFile, Symbol, is_shape

START = b"\x08"  # field 1, a number: ir_version
DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
}
WITH_WEIGHTS = ("Conv", "Gemm", "BatchNormalization", "PRelu")
QUANTIZED = "_quantized"


def open_model(path: Path, data: bytes) -> ForeignFile:
    """Open a model; raises a ValueError if it is damaged, or has weights that are stored in another way."""
    try:
        graph = onnx.ModelProto.FromString(data).graph
    except DecodeError as error:
        raise ValueError(f"{path}: expected an ONNX model ({error})") from None
    reader = _Graph(path, graph)
    return ForeignFile("ONNX", [reader.weights()], reader.symbol())


class _Graph:
    """The graph of a model; `path` is for messages."""

    def __init__(self, path: Path, graph: onnx.GraphProto) -> None:
        self.path, self.graph = path, graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.made_by = {output: node for node in graph.node for output in node.output}

    def weights(self) -> dict[str, ForeignArray]:
        """The parameters of its layers by name."""
        found: dict[str, ForeignArray] = {}
        for node in self.graph.node:
            if node.op_type in WITH_WEIGHTS:
                for name in node.input[1:]:
                    published, array = self._weight(name)
                    if node.op_type == "PRelu" and array.shape[1:] == (1, 1):
                        array = _reshaped(array, array.shape[:1])
                    found[published] = array
        return found

    def symbol(self) -> Symbol:
        batch_norms = {
            _layer(node.input[1]): BatchNormFacts(_shortest(_attribute(node, "epsilon", 1e-5)), fix_gamma=False)
            for node in self.graph.node
            if node.op_type == "BatchNormalization" and len(node.input) == 5
        }
        mean, scale = self._pixels()
        return Symbol(batch_norms, mean, scale)

    def _weight(self, name: str) -> tuple[str, ForeignArray]:
        """The published name of a layer's input, and its array."""
        if name in self.tensors:
            return name, self._tensor(name)
        node = self.made_by.get(name)
        if node is not None and node.op_type == "Reshape" and len(node.input) == 2:
            published, array = self._weight(node.input[0])
            shape = tuple(int(size) for size in self._tensor(node.input[1], "int64").read().ravel())
            if not is_shape(shape) or math.prod(shape) != math.prod(array.shape):
                raise ValueError(f"{self.path}: {published}: expected a shape of {array.shape}'s size, got {shape}")
            return published, _reshaped(array, shape)
        if node is not None and node.op_type == "DequantizeLinear" and 2 <= len(node.input) <= 3:
            return node.input[0].removesuffix(QUANTIZED), self._dequantized(node)
        raise ValueError(f"{self.path}: expected a weight {name!r} among its initializers, found none")

    def _dequantized(self, node: onnx.NodeProto) -> ForeignArray:
        values = self._tensor(node.input[0], "int8", "uint8")
        scale = self._tensor(node.input[1], "float32")
        zero = self._tensor(node.input[2], "int8", "uint8") if len(node.input) == 3 else None
        axis, block = int(_attribute(node, "axis", 1)), int(_attribute(node, "block_size", 0))
        rank = len(values.shape)
        axis += rank if axis < 0 else 0
        if math.prod(scale.shape) == 1:
            expected: tuple[int, ...] = scale.shape
        elif not 0 <= axis < rank or block < 0:
            raise ValueError(f"{self.path}: {node.input[0]}: expected an axis of {values.shape}, got {axis} by {block}")
        elif block:
            expected = (*values.shape[:axis], -(-values.shape[axis] // block), *values.shape[axis + 1 :])
        else:
            expected = values.shape[axis : axis + 1]
        if scale.shape != expected or (zero is not None and zero.shape != expected):
            raise ValueError(
                f"{self.path}: {node.input[0]}: expected scales {expected} for {values.shape}, axis {axis}, blocks of "
                f"{block}, got {scale.shape}"
            )

        def read() -> np.ndarray:
            spread = partial(_spread, shape=values.shape, axis=axis, block=block)
            offset = 0 if zero is None else spread(zero.read().astype(np.int32))
            return (values.read().astype(np.int32) - offset).astype(np.float32) * spread(scale.read())

        return ForeignArray(values.shape, "float32", read)

    def _tensor(self, name: str, *dtypes: str) -> ForeignArray:
        """An initializer, checked against the bytes that are there."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise ValueError(f"{self.path}: expected {name!r} among its initializers, found none")
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(f"{self.path}: expected all weights in the file, {name!r} lies in another one")
        shape, dtype = tuple(tensor.dims), DTYPES.get(tensor.data_type, "another type")
        if not is_shape(shape) or dtype not in (dtypes or DTYPES.values()):
            raise ValueError(
                f"{self.path}: {name}: expected {' or '.join(dtypes or DTYPES.values())}, got {dtype} {shape}"
            )
        held = len(tensor.raw_data) // np.dtype(dtype).itemsize or _numbers(tensor)
        if held != math.prod(shape):
            raise ValueError(f"{self.path}: {name}: expected {math.prod(shape)} numbers for {shape}, found {held}")
        return ForeignArray(shape, dtype, lambda: np.array(numpy_helper.to_array(tensor)))

    def _pixels(self) -> tuple[float | None, float | None]:
        """What the graph subtracts from its input and multiplies it with; None where it begins otherwise."""
        steps = list(self._first_steps())
        match steps:
            case [("Sub", mean), ("Mul", scale), *_]:
                return mean, scale
            case [("Sub", mean), ("Div", divisor), *_] if divisor:
                return mean, float(1 / Fraction(divisor))
        return None, None

    def _first_steps(self) -> Iterator[tuple[str, float]]:
        """Operators with one number that follow the input one by one."""
        read = {name for node in self.graph.node for name in node.input}
        inputs = [one.name for one in self.graph.input if one.name in read and one.name not in self.tensors]
        value = inputs[0] if len(inputs) == 1 else ""
        for node in self.graph.node:  # in the order of the calculation, as ONNX demands
            if node.op_type in ("Sub", "Mul", "Div") and len(node.input) == 2 and node.input[0] == value:
                if node.input[1] not in self.tensors:
                    return
                number = self._tensor(node.input[1]).read()
                if number.size != 1:
                    return
                yield node.op_type, float(number.ravel()[0])
                value = node.output[0]


def _numbers(tensor: TensorProto) -> int:
    return len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))


def _spread(numbers: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Scales or zero points as they stand for an array of `shape`."""
    if numbers.size == 1:
        return numbers.ravel()[0]
    if block:
        return numbers.take(np.arange(shape[axis]) // block, axis)
    return numbers.reshape([-1 if place == axis else 1 for place in range(len(shape))])


def _reshaped(array: ForeignArray, shape: tuple[int, ...]) -> ForeignArray:
    return ForeignArray(shape, array.dtype, lambda: array.read().reshape(shape))


def _layer(weight: str) -> str:
    """The layer of a BatchNorm's weight, as its file names it."""
    return weight.removesuffix("_gamma").removesuffix(".weight")


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    if found is None:
        return default
    return found.i if found.type == onnx.AttributeProto.INT else found.f


def _shortest(number: float) -> float:
    """The decimal number that a float32 stands for: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(number)))
