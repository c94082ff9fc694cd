"""The truth for the backbones: float64 NumPy, forward and backward.

Each backbone is written as its paper gives it, with the dozen operations of `Tape`, whose gradients are checked against
central differences. Operations name each parameter with its kind and shape, so this file is also the reference for the
names, shapes and initial values in checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.weights.initialisation import Kind, ParameterSpec, draw_parameter

MOMENTUM = 0.1  # weight of a new batch in the running statistics
EPS = 1e-5
MOBILEFACENET_EPS, MOBILEFACENET_HEAD_EPS = 1e-3, 2e-5

IRESNET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
MOBILENET_WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)  # stride 2 where a width is new
IR_BLOCKS = {50: (3, 4, 14, 3), 101: (3, 13, 30, 3), 152: (3, 8, 36, 3)}


class Value:
    """An array and its gradient."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        self.grad = np.zeros_like(data)


@dataclass
class Tape:
    """Operations on values; `backward` goes through them in reverse.

    Args:
        arrays: parameters and running statistics by canonical name, without "backbone.". A missing one is drawn as the
            trainer draws it for `seed`, and added.
        training: whether BatchNorm uses the batch and updates its running statistics (in `arrays`).
        noise: relative size of a random error of every output and gradient; shows the effect of rounding.
        random: draws the noise.
    """

    arrays: dict[str, np.ndarray]
    training: bool = False
    seed: int = 0
    noise: float = 0.0
    random: np.random.Generator = field(default_factory=np.random.default_rng)
    parameters: dict[str, Value] = field(default_factory=dict)
    specs: dict[str, ParameterSpec] = field(default_factory=dict)
    taps: dict[str, np.ndarray] = field(default_factory=dict)  # outputs of named modules
    _steps: list[tuple[Value, Callable[[], None]]] = field(default_factory=list)

    def tap(self, name: str, x: Value) -> Value:
        self.taps[name] = x.data
        return x

    def largest(self) -> np.ndarray:
        """The largest absolute value of all outputs."""
        return np.max([np.abs(out.data).max() for out, _ in self._steps])

    def backward(self, output: Value, grad_output: np.ndarray) -> None:
        output.grad += grad_output
        for out, step in reversed(self._steps):
            self._disturb(out.grad)
            step()

    def parameter(self, name: str, kind: Kind, *shape: int) -> Value:
        return self.parameters.setdefault(name, Value(self._array(name, kind, *shape)))

    def conv(
        self, x: Value, name: str, width: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Value:
        """Convolution without bias; `groups` is 1 or the number of channels (depthwise)."""
        in_width = x.data.shape[1]
        weight = self.parameter(f"{name}.weight", "conv", width, in_width // groups, kernel, kernel)
        padded = np.pad(x.data, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = sliding_window_view(padded, (1, 1, kernel, kernel))[:, :, ::stride, ::stride, 0, 0]
        if groups == 1:
            out = Value(np.tensordot(windows, weight.data, ([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2))
        else:
            out = Value(np.einsum("nchwij,cij->nchw", windows, weight.data[:, 0]))

        def backward() -> None:
            grad_padded = np.zeros_like(padded)
            height, width_out = out.data.shape[2:]
            for i in range(kernel):
                for j in range(kernel):
                    at = np.s_[:, :, i : i + stride * height : stride, j : j + stride * width_out : stride]
                    if groups == 1:
                        weight.grad[:, :, i, j] += np.tensordot(out.grad, padded[at], ([0, 2, 3], [0, 2, 3]))
                        grad_padded[at] += np.tensordot(out.grad, weight.data[:, :, i, j], (1, 0)).transpose(0, 3, 1, 2)
                    else:
                        weight.grad[:, 0, i, j] += (out.grad * padded[at]).sum((0, 2, 3))
                        grad_padded[at] += out.grad * _per_channel(weight.data[:, 0, i, j], 4)
            inner = slice(padding, -padding or None)
            x.grad += grad_padded[:, :, inner, inner]

        return self._record(out, backward)

    def batch_norm(self, x: Value, name: str, eps: float = EPS, fixed_weight: bool = False) -> Value:
        """Training normalises by the biased variance of the batch; the running variance takes the unbiased one."""
        channels, dimensions = x.data.shape[1], x.data.ndim
        weight = self.parameter(f"{name}.weight", "bn_weight", channels)
        bias = self.parameter(f"{name}.bias", "bn_bias", channels)
        running_mean = self._array(f"{name}.running_mean", "bn_mean", channels)
        running_var = self._array(f"{name}.running_var", "bn_var", channels)
        axes = tuple(i for i in range(dimensions) if i != 1)
        count = x.data.size // channels
        mean, variance = running_mean, running_var
        training = self.training  # a backward that holds the tape would keep it, and gigabytes, alive
        if training:
            mean, variance = x.data.mean(axes), x.data.var(axes)
            self.arrays[f"{name}.running_mean"] = running_mean + MOMENTUM * (mean - running_mean)
            self.arrays[f"{name}.running_var"] = running_var + MOMENTUM * (variance * count / (count - 1) - running_var)
        inverse = _per_channel(1 / np.sqrt(variance + eps), dimensions)
        normalised = (x.data - _per_channel(mean, dimensions)) * inverse
        out = Value(normalised * _per_channel(weight.data, dimensions) + _per_channel(bias.data, dimensions))

        def backward() -> None:
            if not fixed_weight:
                weight.grad += (out.grad * normalised).sum(axes)
            bias.grad += out.grad.sum(axes)
            grad = out.grad * _per_channel(weight.data, dimensions)
            if training:
                means = grad.mean(axes, keepdims=True), (grad * normalised).mean(axes, keepdims=True)
                grad = grad - means[0] - normalised * means[1]
            x.grad += grad * inverse

        return self._record(out, backward)

    def prelu(self, x: Value, name: str) -> Value:
        slope = self.parameter(f"{name}.weight", "prelu", x.data.shape[1])
        negative = np.minimum(x.data, 0)
        out = Value(np.maximum(x.data, 0) + _per_channel(slope.data, 4) * negative)

        def backward() -> None:
            slope.grad += (out.grad * negative).sum((0, 2, 3))
            x.grad += out.grad * np.where(x.data > 0, 1, _per_channel(slope.data, 4))

        return self._record(out, backward)

    def linear(self, x: Value, name: str, width: int) -> Value:
        weight = self.parameter(f"{name}.weight", "linear", width, x.data.shape[1])
        bias = self.parameter(f"{name}.bias", "bias", width)
        out = Value(x.data @ weight.data.T + bias.data)

        def backward() -> None:
            weight.grad += out.grad.T @ x.data
            bias.grad += out.grad.sum(0)
            x.grad += out.grad @ weight.data

        return self._record(out, backward)

    def add(self, a: Value, b: Value) -> Value:
        out = Value(a.data + b.data)

        def backward() -> None:
            a.grad += out.grad
            b.grad += out.grad

        return self._record(out, backward)

    def subsample(self, x: Value, stride: int) -> Value:
        """Every stride-th pixel."""
        out = Value(x.data[:, :, ::stride, ::stride].copy())

        def backward() -> None:
            x.grad[:, :, ::stride, ::stride] += out.grad

        return self._record(out, backward)

    def flatten(self, x: Value) -> Value:
        out = Value(x.data.reshape(len(x.data), -1).copy())

        def backward() -> None:
            x.grad += out.grad.reshape(x.data.shape)

        return self._record(out, backward)

    def squeeze_excite(self, x: Value, name: str, reduction: int = 16) -> Value:
        """x * sigmoid(fc2(relu(fc1(mean of x over the map))))."""
        width = x.data.shape[1]
        pooled = Value(x.data.mean((2, 3), keepdims=True))

        def backward_pool() -> None:
            x.grad += pooled.grad / x.data[0, 0].size

        self._record(pooled, backward_pool)
        hidden = self.conv(pooled, f"{name}.fc1", width // reduction)
        active = Value(np.maximum(hidden.data, 0))

        def backward_relu() -> None:
            hidden.grad += active.grad * (hidden.data > 0)

        self._record(active, backward_relu)
        logit = self.conv(active, f"{name}.fc2", width)
        gate = 1 / (1 + np.exp(-logit.data))
        out = Value(x.data * gate)

        def backward_gate() -> None:
            x.grad += out.grad * gate
            logit.grad += (out.grad * x.data).sum((2, 3), keepdims=True) * gate * (1 - gate)

        return self._record(out, backward_gate)

    def _record(self, out: Value, backward: Callable[[], None]) -> Value:
        self._disturb(out.data)
        self._steps.append((out, backward))
        return out

    def _disturb(self, array: np.ndarray) -> None:
        if self.noise:
            array *= 1 + self.noise * self.random.choice([-1.0, 1.0], array.shape)

    def _array(self, name: str, kind: Kind, *shape: int) -> np.ndarray:
        self.specs[name] = ParameterSpec(kind, shape)
        if name not in self.arrays:
            self.arrays[name] = draw_parameter(f"backbone.{name}", self.specs[name], self.seed).astype(np.float64)
        return self.arrays[name]


def forward(tape: Tape, backbone: str, images: Value, embedding_size: int) -> Value:
    """Embeddings (N, D) of normalised images (N, 3, S, S), without dropout."""
    if backbone == "mobilefacenet":
        return _mobilefacenet(tape, images, embedding_size)
    if backbone == "mobilenet_v1":
        return _mobilenet_v1(tape, images, embedding_size)
    if backbone == "iresnet_small":
        return _iresnet(tape, images, (1, 1, 1, 1), (32, 64, 128, 256), embedding_size)
    family, depth = backbone.rstrip("0123456789"), int(backbone.lstrip("abcdefghijklmnopqrstuvwxyz_"))
    if family == "iresnet":
        return _iresnet(tape, images, IRESNET_BLOCKS[depth], (64, 128, 256, 512), embedding_size)
    return _ir(tape, images, IR_BLOCKS[depth], family == "ir_se", embedding_size)


def _iresnet(tape: Tape, x: Value, blocks: tuple[int, ...], widths: tuple[int, ...], embedding_size: int) -> Value:
    x = tape.conv(x, "conv1", widths[0], kernel=3, padding=1)
    x = tape.tap("prelu", tape.prelu(tape.batch_norm(x, "bn1"), "prelu"))
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        for number in range(count):
            name, stride = f"layer{stage}.{number}", 2 if number == 0 else 1
            shortcut = x
            if stride != 1 or x.data.shape[1] != width:
                shortcut = tape.conv(x, f"{name}.downsample.0", width, stride=stride)
                shortcut = tape.batch_norm(shortcut, f"{name}.downsample.1")
            inner = tape.conv(tape.batch_norm(x, f"{name}.bn1"), f"{name}.conv1", width, kernel=3, padding=1)
            inner = tape.prelu(tape.batch_norm(inner, f"{name}.bn2"), f"{name}.prelu")
            inner = tape.conv(inner, f"{name}.conv2", width, kernel=3, stride=stride, padding=1)
            x = tape.tap(name, tape.add(tape.batch_norm(inner, f"{name}.bn3"), shortcut))
    x = tape.flatten(tape.tap("bn2", tape.batch_norm(x, "bn2")))
    return tape.batch_norm(tape.linear(x, "fc", embedding_size), "features", fixed_weight=True)


def _ir(tape: Tape, x: Value, blocks: tuple[int, ...], squeeze_excite: bool, embedding_size: int) -> Value:
    x = tape.conv(x, "input_layer.0", 64, kernel=3, padding=1)
    x = tape.tap("input_layer", tape.prelu(tape.batch_norm(x, "input_layer.1"), "input_layer.2"))
    number = 0
    for count, width in zip(blocks, (64, 128, 256, 512), strict=True):
        for i in range(count):
            name, stride = f"body.{number}", 2 if i == 0 else 1
            number += 1
            if x.data.shape[1] == width:
                shortcut = x if stride == 1 else tape.subsample(x, stride)
            else:
                shortcut = tape.conv(x, f"{name}.shortcut_layer.0", width, stride=stride)
                shortcut = tape.batch_norm(shortcut, f"{name}.shortcut_layer.1")
            inner = tape.batch_norm(x, f"{name}.res_layer.0")
            inner = tape.prelu(
                tape.conv(inner, f"{name}.res_layer.1", width, kernel=3, padding=1), f"{name}.res_layer.2"
            )
            inner = tape.conv(inner, f"{name}.res_layer.3", width, kernel=3, stride=stride, padding=1)
            inner = tape.batch_norm(inner, f"{name}.res_layer.4")
            if squeeze_excite:
                inner = tape.squeeze_excite(inner, f"{name}.res_layer.5")
            x = tape.tap(name, tape.add(inner, shortcut))
    x = tape.linear(tape.flatten(tape.batch_norm(x, "output_layer.0")), "output_layer.3", embedding_size)
    return tape.batch_norm(x, "output_layer.4")


def _mobilefacenet(tape: Tape, x: Value, embedding_size: int) -> Value:
    unit = partial(_unit, tape)

    def bottleneck(x: Value, name: str, width: int, inside: int, stride: int = 1) -> Value:
        out = unit(x, f"{name}.conv_sep", inside)
        out = unit(out, f"{name}.conv_dw", inside, kernel=3, stride=stride, padding=1, groups=inside)
        out = unit(out, f"{name}.conv_proj", width, activation=False)
        return tape.tap(name, out if stride == 2 else tape.add(out, x))

    x = tape.tap("conv_1", unit(x, "conv_1", 64, kernel=3, stride=2, padding=1))
    x = tape.tap("conv_2_dw", unit(x, "conv_2_dw", 64, kernel=3, padding=1, groups=64))
    x = bottleneck(x, "dconv_23", 64, 128, stride=2)
    for i in range(4):
        x = bottleneck(x, f"res_3.model.block{i}", 64, 128)
    x = bottleneck(x, "dconv_34", 128, 256, stride=2)
    for i in range(6):
        x = bottleneck(x, f"res_4.model.block{i}", 128, 256)
    x = bottleneck(x, "dconv_45", 128, 512, stride=2)
    for i in range(2):
        x = bottleneck(x, f"res_5.model.block{i}", 128, 256)
    x = tape.tap("conv_6sep", unit(x, "conv_6sep", 512))
    x = unit(x, "conv_6dw7_7", 512, activation=False, kernel=x.data.shape[2], groups=512)
    x = tape.linear(tape.flatten(tape.tap("conv_6dw7_7", x)), "pre_fc1", embedding_size)
    return tape.batch_norm(x, "fc1", MOBILEFACENET_HEAD_EPS)


def _mobilenet_v1(tape: Tape, x: Value, embedding_size: int) -> Value:
    x = tape.tap("conv_1", _unit(tape, x, "conv_1", 32, kernel=3, padding=1))
    for number, width in enumerate(MOBILENET_WIDTHS, 2):
        here = x.data.shape[1]
        stride = 2 if width > here > 32 else 1
        x = _unit(tape, x, f"conv_{number}_dw", here, kernel=3, stride=stride, padding=1, groups=here)
        x = tape.tap(f"conv_{number}", _unit(tape, x, f"conv_{number}", width))
    x = tape.tap("bn1", tape.batch_norm(x, "bn1", MOBILEFACENET_HEAD_EPS))
    x = tape.linear(tape.flatten(x), "pre_fc1", embedding_size)
    return tape.batch_norm(x, "fc1", MOBILEFACENET_HEAD_EPS)


def _unit(tape: Tape, x: Value, name: str, width: int, activation: bool = True, **options: int) -> Value:
    x = tape.conv(x, f"{name}.conv2d", width, **options)
    x = tape.batch_norm(x, f"{name}.batchnorm", MOBILEFACENET_EPS)
    return tape.prelu(x, f"{name}.relu") if activation else x


def is_decayed(spec: ParameterSpec) -> bool:
    """Weight decay applies to all but BatchNorm's parameters and biases."""
    return spec.kind in ("conv", "linear", "prelu", "class_weight")


def is_trained(name: str, spec: ParameterSpec, backbone: str) -> bool:
    """All are but the running statistics, and the weight of iresnet's last BatchNorm, which stays 1."""
    return spec.kind not in ("bn_mean", "bn_var") and not (backbone.startswith("iresnet") and name == "features.weight")


def rounded(arrays: Mapping[str, np.ndarray], noise: float, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters as they are read in reduced precision: off by `noise`. Running statistics as they are."""
    return {
        name: array if ".running_" in name else array * (1 + noise * random.choice([-1.0, 1.0], array.shape))
        for name, array in arrays.items()
    }


def copy_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.array(array, np.float64) for name, array in arrays.items()}


def _per_channel(vector: np.ndarray, dimensions: int) -> np.ndarray:
    return vector.reshape((1, -1) + (1,) * (dimensions - 2))
