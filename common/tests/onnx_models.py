"""Small ONNX models of every kind that `evaluate` may meet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_model(
    path: Path,
    weight: np.ndarray,
    *,
    shape: Sequence[Any] = ("N", 3, 16, 16),
    dtype: int = TensorProto.FLOAT,
    metadata: Mapping[str, str] | None = None,
    extra_inputs: Sequence[str] = (),
    used_input: bool = False,
    outputs: int = 1,
    offset: np.ndarray | None = None,
    begins_with: Sequence[str] = (),
) -> Path:
    """path.onnx: (N, 3, S, S) pixels, flattened, times `weight` (3 * S * S, D), plus `offset` (D,).

    Args:
        extra_inputs: names of inputs that nothing reads.
        used_input: one more input, which is added to the result.
        outputs: how many there are; all but the first are the negative of the result.
        begins_with: operators before all others; those with two operands take the number 2 as well.
    """
    nodes, last = [], "data"
    if dtype != TensorProto.FLOAT:
        nodes, last = [helper.make_node("Cast", ["data"], ["float"], to=TensorProto.FLOAT)], "float"
    for place, name in enumerate(begins_with):
        operands = [last, "two"] if name in ("Sub", "Mul") else [last]
        nodes.append(helper.make_node(name, operands, [last := f"begun{place}"]))
    nodes.append(helper.make_node("Flatten", [last], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "weight"], ["y"]))
    if used_input or offset is not None:
        nodes.append(helper.make_node("Add", ["y", "offset"], ["out0"]))
    else:
        nodes.append(helper.make_node("Identity", ["y"], ["out0"]))
    nodes += [helper.make_node("Neg", ["out0"], [f"out{i}"]) for i in range(1, outputs)]
    inputs = [helper.make_tensor_value_info("data", dtype, shape)]
    names = [*extra_inputs, *(["offset"] if used_input else [])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, weight.shape[1]]) for name in names]
    graph = helper.make_graph(
        nodes,
        "model",
        inputs,
        [
            helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, [shape[0], weight.shape[1]])
            for i in range(outputs)
        ],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in (("weight", weight), ("offset", offset), ("two", np.array([2.0])))
            if array is not None
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.save(model, path)
    return path
