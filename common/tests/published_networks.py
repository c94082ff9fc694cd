"""Every name in the published state dicts of the backbones, with its shape: written from the published layouts."""

import itertools
import re

STAGES = (64, 128, 256, 512)
DEPTHS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet152": (3, 8, 36, 3),
    "iresnet200": (6, 26, 60, 6),
    "ir50": (3, 4, 14, 3),
    "ir101": (3, 13, 30, 3),
    "ir152": (3, 8, 36, 3),
    "ir_se50": (3, 4, 14, 3),
    "ir_se101": (3, 13, 30, 3),
    "ir_se152": (3, 8, 36, 3),
}


def conv(name, width, in_width, kernel=1):
    return {f"{name}.weight": (width, in_width, kernel, kernel)}


def bn(name, width):
    parts = {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
    return parts | {f"{name}.num_batches_tracked": ()}


def prelu(name, width):
    return {f"{name}.weight": (width,)}


def linear(name, width, in_width):
    return {f"{name}.weight": (width, in_width), f"{name}.bias": (width,)}


def iresnet_shapes(blocks):
    shapes = conv("conv1", 64, 3, 3) | bn("bn1", 64) | prelu("prelu", 64)
    in_width = 64
    for stage, (count, width) in enumerate(zip(blocks, STAGES, strict=True), 1):
        for i in range(count):
            here = f"layer{stage}.{i}"
            shapes |= bn(f"{here}.bn1", in_width) | conv(f"{here}.conv1", width, in_width, 3)
            shapes |= bn(f"{here}.bn2", width) | prelu(f"{here}.prelu", width)
            shapes |= conv(f"{here}.conv2", width, width, 3) | bn(f"{here}.bn3", width)
            if i == 0:
                shapes |= conv(f"{here}.downsample.0", width, in_width) | bn(f"{here}.downsample.1", width)
            in_width = width
    return shapes | bn("bn2", 512) | linear("fc", 512, 25088) | bn("features", 512)


def ir_shapes(blocks, squeeze_excite):
    shapes = conv("input_layer.0", 64, 3, 3) | bn("input_layer.1", 64) | prelu("input_layer.2", 64)
    widths = [width for count, width in zip(blocks, STAGES, strict=True) for _ in range(count)]
    for i, (in_width, width) in enumerate(zip([64, *widths], widths, strict=False)):
        res = f"body.{i}.res_layer"
        shapes |= bn(f"{res}.0", in_width) | conv(f"{res}.1", width, in_width, 3) | prelu(f"{res}.2", width)
        shapes |= conv(f"{res}.3", width, width, 3) | bn(f"{res}.4", width)
        if squeeze_excite:
            shapes |= conv(f"{res}.5.fc1", width // 16, width) | conv(f"{res}.5.fc2", width, width // 16)
        if in_width != width:
            shapes |= conv(f"body.{i}.shortcut_layer.0", width, in_width) | bn(f"body.{i}.shortcut_layer.1", width)
    return shapes | bn("output_layer.0", 512) | linear("output_layer.3", 512, 25088) | bn("output_layer.4", 512)


def layer(name, width, in_width, kernel=1, activation=True):
    shapes = conv(f"{name}.conv2d", width, in_width, kernel) | bn(f"{name}.batchnorm", width)
    return shapes | (prelu(f"{name}.relu", width) if activation else {})


def mobilenet_v1_shapes():
    """Of the ONNX file that OpenCV released, but for 512-d embeddings."""
    widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
    shapes = layer("conv_1", 32, 3, 3)
    for number, (in_width, width) in enumerate(itertools.pairwise(widths), 2):
        shapes |= layer(f"conv_{number}_dw", in_width, 1, 3) | layer(f"conv_{number}", width, in_width)
    return shapes | bn("bn1", 1024) | linear("pre_fc1", 512, 50176) | bn("fc1", 512)


def mobilefacenet_shapes():
    def bottleneck(name, width, in_width, inside):
        shapes = layer(f"{name}.conv_sep", inside, in_width) | layer(f"{name}.conv_dw", inside, 1, 3)
        return shapes | layer(f"{name}.conv_proj", width, inside, activation=False)

    shapes = layer("conv_1", 64, 3, 3) | layer("conv_2_dw", 64, 1, 3)
    for stage, (in_width, width, inside, count, residual_inside) in {
        ("dconv_23", "res_3"): (64, 64, 128, 4, 128),
        ("dconv_34", "res_4"): (64, 128, 256, 6, 256),
        ("dconv_45", "res_5"): (128, 128, 512, 2, 256),
    }.items():
        shapes |= bottleneck(stage[0], width, in_width, inside)
        for i in range(count):
            shapes |= bottleneck(f"{stage[1]}.model.block{i}", width, width, residual_inside)
    shapes |= layer("conv_6sep", 512, 128) | layer("conv_6dw7_7", 512, 1, 7, activation=False)
    return shapes | linear("pre_fc1", 512, 512) | bn("fc1", 512)


def published_shapes(name):
    """Every name in a published state dict of 512-d embeddings at 112 pixels, with its shape."""
    if name == "mobilefacenet":
        return mobilefacenet_shapes()
    if name == "mobilenet_v1":
        return mobilenet_v1_shapes()
    if name.startswith("iresnet"):
        return iresnet_shapes(DEPTHS[name])
    return ir_shapes(DEPTHS[name], name.startswith("ir_se"))


def fresnet_name(canonical):
    """The name in insightface's fresnet (unit 3, output E), from what the network's parts are, not from our table."""
    layer, _, part = canonical.rpartition(".")
    where = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", layer)
    unit, layer = (f"stage{where[1]}_unit{int(where[2]) + 1}_", where[3]) if where else ("", layer)
    names = {"conv1": "conv0", "bn1": "bn0", "prelu": "relu0", "bn2": "bn1", "fc": "pre_fc1", "features": "fc1"}
    if unit:
        names = {"prelu": "relu1", "downsample.0": "conv1sc", "downsample.1": "sc"}
    published = names.get(layer, layer)
    is_norm = re.match("bn|sc|fc1|relu", published)
    parts = {"weight": "gamma" if is_norm else "weight", "bias": "beta" if is_norm else "bias"}
    return f"{unit}{published}_" + parts.get(part, part.replace("running", "moving"))


def fmobilefacenet_name(canonical):
    """The name in insightface's fmobilefacenet and in OpenCV's SFace."""
    layer, _, part = canonical.rpartition(".")
    layer = layer.replace(".model.", "_").replace(".", "_")
    is_norm = layer.endswith(("batchnorm", "relu")) or layer in ("bn1", "fc1")
    parts = {"weight": "gamma" if is_norm else "weight", "bias": "beta" if is_norm else "bias"}
    return f"{layer}_" + parts.get(part, part.replace("running", "moving"))
