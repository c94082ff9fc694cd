"""The backbones without a framework: their layers in order, by canonical name.

Each function below describes a backbone of the backends by calls of `Layers`. `Layers` itself only works out shapes,
so it knows what a checkpoint must hold; `common.weights.onnx_export` writes a graph with the same calls.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

EPS = 1e-5
MOBILEFACENET_EPS, MOBILEFACENET_HEAD_EPS = 1e-3, 2e-5
REDUCTION = 16  # squeeze-excite: channels to hidden units
WIDTHS = (64, 128, 256, 512)

IRESNET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
MOBILENET_BLOCKS = (  # width and stride of each
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    *((1024, 2), (1024, 1)),
)
IR_BLOCKS = {50: (3, 4, 14, 3), 101: (3, 13, 30, 3), 152: (3, 8, 36, 3)}


class Map(NamedTuple):
    """Output of a layer: its name in a graph, and its shape (N, channels, size, size), or (N, channels) for size 0."""

    name: str
    channels: int
    size: int = 0


class Layers:
    """Layers of a network; shapes only."""

    def __init__(self) -> None:
        # by canonical name, in the order of the calls: shapes of parameters and running statistics, eps of BatchNorms
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.eps: dict[str, float] = {}

    def parameter(self, name: str, *shape: int) -> str:
        """Ask for a parameter; returns its name in the graph."""
        self.shapes[name] = shape
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of ONNX; returns the name of its output."""
        return ""

    def conv(
        self, x: Map, name: str, width: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Map:
        """Convolution without bias."""
        weight = self.parameter(f"{name}.weight", width, x.channels // groups, kernel, kernel)
        out = self.node(
            "Conv", x.name, weight, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4, group=groups
        )
        return Map(out, width, (x.size + 2 * padding - kernel) // stride + 1)

    def batch_norm(self, x: Map, name: str, eps: float = EPS) -> Map:
        """Batch normalisation by the running statistics."""
        self.eps[name] = eps
        parts = [self.parameter(f"{name}.{part}", x.channels) for part in BATCH_NORM_PARTS]
        return x._replace(name=self.node("BatchNormalization", x.name, *parts, epsilon=eps))

    def prelu(self, x: Map, name: str) -> Map:
        return x._replace(name=self.node("PRelu", x.name, self.parameter(f"{name}.weight", x.channels)))

    def linear(self, x: Map, name: str, width: int) -> Map:
        """Linear layer with bias on the flattened input."""
        weight = self.parameter(f"{name}.weight", width, x.channels * max(x.size, 1) ** 2)
        flat = self.node("Flatten", x.name)
        return Map(self.node("Gemm", flat, weight, self.parameter(f"{name}.bias", width), transB=1), width)

    def add(self, a: Map, b: Map) -> Map:
        return a._replace(name=self.node("Add", a.name, b.name))

    def subsample(self, x: Map, stride: int) -> Map:
        """Keep every stride-th pixel."""
        out = self.node("MaxPool", x.name, kernel_shape=[1, 1], strides=[stride] * 2)
        return Map(out, x.channels, -(-x.size // stride))

    def squeeze_excite(self, x: Map, name: str) -> Map:
        """x * sigmoid(fc2(relu(fc1(mean of x over the map))))."""
        pooled = Map(self.node("GlobalAveragePool", x.name), x.channels, 1)
        hidden = self.conv(pooled, f"{name}.fc1", x.channels // REDUCTION)
        hidden = hidden._replace(name=self.node("Relu", hidden.name))
        gate = self.node("Sigmoid", self.conv(hidden, f"{name}.fc2", x.channels).name)
        return x._replace(name=self.node("Mul", x.name, gate))


BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")  # in ONNX's order


def iresnet(layers: Layers, x: Map, embedding_size: int, blocks: tuple[int, ...], widths: tuple[int, ...]) -> Map:
    """See `pytorch_impl/backbones/iresnet.py`."""
    x = layers.conv(x, "conv1", widths[0], kernel=3, padding=1)
    x = layers.prelu(layers.batch_norm(x, "bn1"), "prelu")
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        for number in range(count):
            name, stride = f"layer{stage}.{number}", 2 if number == 0 else 1
            inner = layers.conv(layers.batch_norm(x, f"{name}.bn1"), f"{name}.conv1", width, kernel=3, padding=1)
            inner = layers.prelu(layers.batch_norm(inner, f"{name}.bn2"), f"{name}.prelu")
            inner = layers.conv(inner, f"{name}.conv2", width, kernel=3, stride=stride, padding=1)
            inner = layers.batch_norm(inner, f"{name}.bn3")
            if number == 0:
                x = layers.batch_norm(
                    layers.conv(x, f"{name}.downsample.0", width, stride=stride), f"{name}.downsample.1"
                )
            x = layers.add(inner, x)
    return layers.batch_norm(layers.linear(layers.batch_norm(x, "bn2"), "fc", embedding_size), "features")


def ir(layers: Layers, x: Map, embedding_size: int, blocks: tuple[int, ...], squeeze_excite: bool) -> Map:
    """See `pytorch_impl/backbones/ir.py`."""
    x = layers.conv(x, "input_layer.0", WIDTHS[0], kernel=3, padding=1)
    x = layers.prelu(layers.batch_norm(x, "input_layer.1"), "input_layer.2")
    strides = [2 if i == 0 else 1 for count in blocks for i in range(count)]
    widths = [width for count, width in zip(blocks, WIDTHS, strict=True) for _ in range(count)]
    for number, (stride, width) in enumerate(zip(strides, widths, strict=True)):
        name = f"body.{number}"
        inner = layers.batch_norm(x, f"{name}.res_layer.0")
        inner = layers.prelu(
            layers.conv(inner, f"{name}.res_layer.1", width, kernel=3, padding=1), f"{name}.res_layer.2"
        )
        inner = layers.conv(inner, f"{name}.res_layer.3", width, kernel=3, stride=stride, padding=1)
        inner = layers.batch_norm(inner, f"{name}.res_layer.4")
        if squeeze_excite:
            inner = layers.squeeze_excite(inner, f"{name}.res_layer.5")
        if x.channels != width:
            x = layers.conv(x, f"{name}.shortcut_layer.0", width, stride=stride)
            x = layers.batch_norm(x, f"{name}.shortcut_layer.1")
        elif stride != 1:
            x = layers.subsample(x, stride)
        x = layers.add(inner, x)
    x = layers.linear(layers.batch_norm(x, "output_layer.0"), "output_layer.3", embedding_size)
    return layers.batch_norm(x, "output_layer.4")


def mobilefacenet(layers: Layers, x: Map, embedding_size: int) -> Map:
    """See `pytorch_impl/backbones/mobilefacenet.py`."""
    unit = partial(_unit, layers)

    def bottleneck(x: Map, name: str, width: int, inside: int, stride: int = 1) -> Map:
        out = unit(x, f"{name}.conv_sep", inside)
        out = unit(out, f"{name}.conv_dw", inside, kernel=3, stride=stride, padding=1, groups=inside)
        out = unit(out, f"{name}.conv_proj", width, activation=False)
        return out if stride == 2 else layers.add(out, x)

    x = unit(x, "conv_1", 64, kernel=3, stride=2, padding=1)
    x = unit(x, "conv_2_dw", 64, kernel=3, padding=1, groups=64)
    x = bottleneck(x, "dconv_23", 64, 128, stride=2)
    for i in range(4):
        x = bottleneck(x, f"res_3.model.block{i}", 64, 128)
    x = bottleneck(x, "dconv_34", 128, 256, stride=2)
    for i in range(6):
        x = bottleneck(x, f"res_4.model.block{i}", 128, 256)
    x = bottleneck(x, "dconv_45", 128, 512, stride=2)
    for i in range(2):
        x = bottleneck(x, f"res_5.model.block{i}", 128, 256)
    x = unit(x, "conv_6sep", 512)
    x = unit(x, "conv_6dw7_7", 512, activation=False, kernel=x.size, groups=512)
    return layers.batch_norm(layers.linear(x, "pre_fc1", embedding_size), "fc1", MOBILEFACENET_HEAD_EPS)


def mobilenet_v1(layers: Layers, x: Map, embedding_size: int) -> Map:
    """See `pytorch_impl/backbones/mobilenet_v1.py`."""
    x = _unit(layers, x, "conv_1", 32, kernel=3, padding=1)
    for number, (width, stride) in enumerate(MOBILENET_BLOCKS, 2):
        x = _unit(layers, x, f"conv_{number}_dw", x.channels, kernel=3, stride=stride, padding=1, groups=x.channels)
        x = _unit(layers, x, f"conv_{number}", width)
    x = layers.batch_norm(x, "bn1", MOBILEFACENET_HEAD_EPS)
    return layers.batch_norm(layers.linear(x, "pre_fc1", embedding_size), "fc1", MOBILEFACENET_HEAD_EPS)


def _unit(layers: Layers, x: Map, name: str, width: int, activation: bool = True, **options: int) -> Map:
    """Convolution, BN and PReLU of the MobileNets."""
    x = layers.conv(x, f"{name}.conv2d", width, **options)
    x = layers.batch_norm(x, f"{name}.batchnorm", MOBILEFACENET_EPS)
    return layers.prelu(x, f"{name}.relu") if activation else x


BACKBONES: dict[str, Callable[[Layers, Map, int], Map]] = {
    "iresnet_small": partial(iresnet, blocks=(1, 1, 1, 1), widths=(32, 64, 128, 256)),
    **{f"iresnet{depth}": partial(iresnet, blocks=blocks, widths=WIDTHS) for depth, blocks in IRESNET_BLOCKS.items()},
    **{f"ir{depth}": partial(ir, blocks=blocks, squeeze_excite=False) for depth, blocks in IR_BLOCKS.items()},
    **{f"ir_se{depth}": partial(ir, blocks=blocks, squeeze_excite=True) for depth, blocks in IR_BLOCKS.items()},
    "mobilefacenet": mobilefacenet,
    "mobilenet_v1": mobilenet_v1,
}


def build(layers: Layers, backbone: str, images: Map, embedding_size: int) -> Map:
    """Describe a backbone by calls of `layers`, from normalised images (N, 3, S, S) to embeddings (N, D).

    Raises:
        ValueError: there is no such backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {backbone!r}")
    return BACKBONES[backbone](layers, images, embedding_size)


def layout(backbone: str, embedding_size: int = 512, image_size: int = 112) -> Layers:
    """Work out names and shapes of a backbone's parameters; the first is the weight of the first convolution.

    Raises:
        ValueError: there is no such backbone, or a number is out of range.

    >>> shapes = layout("mobilefacenet", embedding_size=128).shapes
    >>> len(shapes), shapes["conv_1.conv2d.weight"], shapes["pre_fc1.weight"]
    (284, (64, 3, 3, 3), (128, 512))
    """
    if embedding_size < 1 or image_size < 16:
        raise ValueError(
            f"expected an embedding size of at least 1 and images of at least 16 pixels, "
            f"got {embedding_size} and {image_size}"
        )
    layers = Layers()
    build(layers, backbone, Map("images", 3, image_size), embedding_size)
    return layers
