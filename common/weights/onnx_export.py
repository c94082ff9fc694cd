"""Write a backbone's weights as an ONNX model from the arrays of a checkpoint, without a framework.

    images (N, 3, S, S) float32, 0..255  ->  (images - 127.5) / 128  ->  backbone  ->  embeddings (N, D) float32, raw

N is dynamic. The model computes the same as `Trainer.embed`; BatchNorm uses its running statistics. Its metadata name
the network and the order of colours. Format: https://github.com/onnx/onnx/blob/main/docs/IR.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from common.io.files import atomic_write
from common.weights.architectures import Layers, Map, build, layout
from common.weights.checkpoint import check_arrays

Colours = Literal["rgb", "bgr"]
FIRST_OPSET = 11  # the oldest that this is tested with
DEFAULT_OPSET = 17


def export_onnx(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    backbone: str,
    embedding_size: int,
    image_size: int,
    colours: Colours = "rgb",
    opset: int = DEFAULT_OPSET,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model, atomically.

    Args:
        path: the file to write.
        arrays: parameters and running statistics of the backbone by canonical name, float32 or float64.
        backbone: one of `common.weights.architectures.BACKBONES`.
        embedding_size: D.
        image_size: S, pixels.
        colours: order of the channels that the model takes. The weights expect RGB; for "bgr" the input channels of
            the first convolution are swapped, which changes no result.
        opset: version of ONNX's operators.
        metadata: further facts to write into the model.

    Raises:
        ValueError: there is no such backbone, opset or order of colours, or the arrays are not those of the backbone.
        OSError: the file cannot be written.
    """
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise ValueError(f"opset: expected {FIRST_OPSET} to {newest}, got {opset}")
    if colours not in get_args(Colours):
        raise ValueError(f"colours: expected rgb or bgr, got {colours!r}")
    shapes = layout(backbone, embedding_size, image_size).shapes
    arrays = {name: _single(array) for name, array in arrays.items()}
    check_arrays({name: ("float32", shape) for name, shape in shapes.items()}, arrays)
    if colours == "bgr":
        stem = next(iter(shapes))
        arrays[stem] = arrays[stem][:, ::-1]

    graph = OnnxLayers(arrays)
    normalised = graph.node("Sub", "images", graph.constant("normalise.mean", 127.5))
    normalised = graph.node("Div", normalised, graph.constant("normalise.scale", 128.0))
    embeddings = build(graph, backbone, Map(normalised, 3, image_size), embedding_size)
    graph.nodes.append(helper.make_node("Identity", [embeddings.name], ["embeddings"]))

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            backbone,
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, image_size, image_size])],
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["N", embedding_size])],
            graph.initializers,
        ),
        producer_name="sface",
        opset_imports=[helper.make_opsetid("", opset)],
    )
    # the oldest version, so that older programs read the model
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)
    facts = {"backbone": backbone, "embedding_size": embedding_size, "image_size": image_size, "colours": colours}
    helper.set_model_props(model, {name: str(value) for name, value in {**facts, **(metadata or {})}.items()})
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as file:
        file.write(model.SerializeToString())


class OnnxLayers(Layers):
    """The layers of a network as nodes of an ONNX graph; its initializers have the canonical names."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._arrays = arrays

    def parameter(self, name: str, *shape: int) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(self._arrays[name]), name))
        return super().parameter(name, *shape)

    def constant(self, name: str, value: float) -> str:
        self.initializers.append(numpy_helper.from_array(np.float32(value).reshape(1), name))
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def prelu(self, x: Map, name: str) -> Map:
        slopes = self._arrays[f"{name}.weight"].reshape(-1, 1, 1)  # ONNX broadcasts from the right
        self.initializers.append(numpy_helper.from_array(slopes, f"{name}.weight"))
        return x._replace(name=self.node("PRelu", x.name, f"{name}.weight"))


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array
