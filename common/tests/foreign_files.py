"""Write files as PyTorch, Jittor, MXNet and ONNX do, without these; the tests of the backends use real ones."""

import collections
import hashlib
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from contextlib import contextmanager
from unittest import mock

import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from common.tests.published_networks import fmobilefacenet_name, fresnet_name
from common.weights.architectures import BATCH_NORM_PARTS, layout
from common.weights.onnx_export import export_onnx

KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def weights(backbone="iresnet_small", embedding_size=4, image_size=16, seed=0):
    """Random arrays of a backbone; running variances positive."""
    random = np.random.default_rng(seed)
    shapes = layout(backbone, embedding_size, image_size).shapes
    return {name: (random.random(shape) + 0.1).astype(np.float32) for name, shape in shapes.items()}


class Hostile:
    """Its pickle asks for a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Tensor:
    """Pickled as torch.save pickles a tensor: a call with a storage outside the pickle."""

    def __init__(self, array, **changes):
        self.array = np.ascontiguousarray(array)
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        facts = {"offset": 0, "shape": self.array.shape, "strides": strides, "count": self.array.size}
        self.facts = {**facts, "key": None, "view": (), **changes}

    def __reduce__(self):
        f = self.facts
        arguments = (Storage(self), f["offset"], f["shape"], f["strides"], False, collections.OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


class Storage:
    def __init__(self, tensor):
        self.tensor = tensor


@contextmanager
def modules(**contents):
    """Put modules with functions and classes of these names in place, where pickle looks them up."""
    made = {}
    for name, members in contents.items():
        made[name.replace("__", "._")] = module = types.ModuleType(name)
        for member in members:
            function = type(member, (), {})
            function.__module__ = name.replace("__", "._")
            setattr(module, member, function)
    with mock.patch.dict(sys.modules, made):
        yield


def _torch():
    return modules(torch=KINDS.values(), torch__utils=["_rebuild_tensor_v2", "_rebuild_parameter"])


def _dump(value, protocol, storages, legacy):
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, Storage):
                return None
            array, facts = item.tensor.array, item.tensor.facts
            key = facts["key"] or str(len(storages))
            storages[key] = array
            kind = getattr(sys.modules["torch"], KINDS[str(array.dtype)])
            return ("storage", kind, key, "cuda:0", facts["count"], *((None,) if legacy else ()), *facts["view"])

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensors(value):
    """Replace arrays by tensors, also in dicts of dicts."""
    if isinstance(value, dict):
        return type(value)((key, tensors(item)) for key, item in value.items())
    return Tensor(value) if isinstance(value, np.ndarray) else value


def write_torch(path, value, protocol=2, compression=zipfile.ZIP_STORED, changes=()):
    """Write as torch.save; `changes` are (name in the zip, bytes) to write instead."""
    storages = {}
    with _torch():
        content = _dump(tensors(value), protocol, storages, legacy=False)
    files = {"archive/data.pkl": content, "archive/byteorder": b"little", "archive/version": b"3\n"}
    files |= {f"archive/data/{key}": array.tobytes() for key, array in storages.items()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {**files, **dict(changes)}.items():
            if content is not None:
                file.writestr(name, content)
    return path


def write_torch_legacy(path, value, magic=0x1950A86A20F9469CFC6C, little=True):
    """Write as torch.save before PyTorch 1.6."""
    storages = {}
    with _torch():
        content = _dump(tensors(value), 2, storages, legacy=True)
    sizes = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (magic, 1001, sizes))
    keys = sorted(storages)
    body = b"".join(struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in keys)
    path.write_bytes(head + content + pickle.dumps(keys, 2) + body)
    return path


def write_jittor(path, value, protocol=4, trailer=True):
    """Write as jittor.save: each array is a call of jittor.Var."""

    class Var:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            return sys.modules["jittor"].Var, (self.array,)

    with modules(jittor=["Var"]):
        content = pickle.dumps({k: Var(v) if isinstance(v, np.ndarray) else v for k, v in value.items()}, protocol)
    path.write_bytes(content + (hashlib.sha1(content).digest() + b"HCAJSLHD" if trailer else b""))
    return path


FLAGS = {"float32": 0, "float64": 1, "float16": 2}


def mxnet_array(array, version=2):
    """Encode one array in version 0 (oldest) to 3."""
    shape = array.shape
    if version == 0:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        head = struct.pack("<I", 0xF993FAC7 + version) + (b"" if version == 1 else struct.pack("<i", 0))
        head += struct.pack(f"<I{len(shape)}q", len(shape), *shape)
    return head + struct.pack("<iii", 2, 0, FLAGS[str(array.dtype)]) + array.tobytes()


def write_mxnet(path, arrays, version=2):
    """Write as mxnet.nd.save."""
    body = b"".join(mxnet_array(array, version) for array in arrays.values())
    names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in arrays)
    counts = struct.pack("<Q", len(arrays))
    path.write_bytes(struct.pack("<QQ", 0x112, 0) + counts + body + counts + names)
    return path


def fresnet(arrays, rename=fresnet_name):
    """Replace canonical names by those of insightface's MXNet networks, with "arg:" and "aux:"."""
    return {("aux:" if ".running_" in name else "arg:") + rename(name): a for name, a in arrays.items()}


def write_symbol(path, backbone="iresnet_small", scale="0.0078125", mean="127.5", **changes):
    """Write a -symbol.json with the BatchNorms of a fresnet: eps 2e-5, and fix_gamma on the last."""
    nodes = [{"op": "null", "name": "data", "inputs": []}]
    nodes += [{"op": "_minus_scalar", "name": "_minusscalar0", "attrs": {"scalar": mean}}] if mean else []
    nodes += [{"op": "_mul_scalar", "name": "_mulscalar0", "attrs": {"scalar": scale}}] if scale else []
    for layer in layout(backbone, 4, 16).eps:
        name = fresnet_name(f"{layer}.weight").removesuffix("_gamma")
        attributes = {"eps": "2e-05", "fix_gamma": str(name == "fc1"), **changes}
        nodes.append({"op": "BatchNorm", "name": name, "attrs": attributes})
    path.write_text(json.dumps({"nodes": nodes}))
    return path


def write_safetensors(path, arrays):
    safetensors.numpy.save_file(arrays, path)
    return path


def write_onnx(path, arrays):
    """A graph that names each array: no calculation, but what a reader of weights looks at."""
    layers = [name.removesuffix(".running_mean") for name in arrays if name.endswith(".running_mean")]
    nodes = [
        helper.make_node("BatchNormalization", ["x", *(f"{layer}.{part}" for part in BATCH_NORM_PARTS)], [layer])
        for layer in layers
    ]
    nodes = [node for node in nodes if set(node.input[1:]) <= arrays.keys()]
    known = {name for node in nodes for name in node.input}
    nodes.append(helper.make_node("Conv", ["x", *(name for name in arrays if name not in known)], ["y"]))
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [image], [], tensors)), path)
    return path


def write_released(path, quantised=True, seed=0):
    """OpenCV's released SFace, but of 4-d embeddings of 16 pixels and with random weights; returns these.

    Names are MXNet's. Quantised, weights are blocks of integers, and the graph lists the replaced ones as inputs.
    """
    random = np.random.default_rng(seed)
    arrays = {
        name: random.normal(0, np.sqrt(2 / np.prod(a.shape[1:])), a.shape).astype(np.float32) if a.ndim > 1 else a
        for name, a in weights("mobilenet_v1", seed=seed).items()
    }
    integers = {
        name: random.integers(-128, 128, (len(a), a[0].size), np.int8) for name, a in arrays.items() if a.ndim > 1
    }
    scales = {}
    for name, whole in integers.items() if quantised else ():
        block = min(64, whole.shape[1])
        scales[name] = random.uniform(0.5, 1.5, (len(whole), -(-whole.shape[1] // block))).astype(np.float32)
        scales[name] *= np.float32(np.sqrt(2 / whole.shape[1]) / 74)
        spread = np.repeat(scales[name], block, axis=1)[:, : whole.shape[1]]
        arrays[name] = ((whole.astype(np.int32) - 3).astype(np.float32) * spread).reshape(arrays[name].shape)
    export_onnx(path, arrays, backbone="mobilenet_v1", embedding_size=4, image_size=16, opset=21)
    model = onnx.load(path)
    del model.metadata_props[:]
    graph, before = model.graph, []
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tensors["normalise.scale"].CopyFrom(numpy_helper.from_array(np.float32([1 / 128]), "normalise.scale"))
    graph.node[1].op_type = "Mul"
    for name, scale in scales.items():
        published = fmobilefacenet_name(name)
        parts = {"quantized": integers[name], "scales": scale, "zero_point": np.full(scale.shape, 3, np.int8)}
        parts["shape"] = np.array(arrays[name].shape, np.int64)
        graph.initializer.extend(numpy_helper.from_array(array, f"{published}_{part}") for part, array in parts.items())
        inputs = [f"{published}_{part}" for part in ("quantized", "scales", "zero_point")]
        block = min(64, integers[name].shape[1])
        before.append(helper.make_node("DequantizeLinear", inputs, [f"{name} whole"], axis=1, block_size=block))
        before.append(helper.make_node("Reshape", [f"{name} whole", f"{published}_shape"], [f"{name} shaped"]))
        graph.initializer.remove(tensors[name])
        graph.input.append(helper.make_tensor_value_info(published, TensorProto.FLOAT, arrays[name].shape))
    for node in graph.node:
        node.input[:] = [
            f"{name} shaped" if name in scales else fmobilefacenet_name(name) if name in arrays else name
            for name in node.input
        ]
    for tensor in graph.initializer:
        tensor.name = fmobilefacenet_name(tensor.name) if tensor.name in arrays else tensor.name
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return arrays
