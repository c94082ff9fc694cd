"""Turn published names into canonical ones. Those of PyTorch and Jittor need no table: they are the canonical names.

iresnet18 ... 200   deepinsight/insightface recognition/arcface_torch; its MXNet r18, 34, 50, 100 and zhongyy/SFace's
ir, ir_se           zhongyy/SFace (IR_50, IR_101), liubingyuu/jittorface, ZhaoJ9014/face.evoLVe
mobilefacenet       zhongyy/SFace and liubingyuu/jittorface (MobileFaceNet), insightface's MXNet y1; that of
                    arcface_torch is another network
mobilenet_v1        OpenCV's SFace, as ONNX
"""

import re
from collections.abc import Callable, Collection, Iterable

Replacement = str | Callable[[re.Match[str]], str]

# insightface's MXNet networks: fresnet of input 1, unit 3, output E; and fmobilefacenet, whose names
# OpenCV's SFace has too
_FRESNET: tuple[tuple[str, Replacement], ...] = (
    (r"conv0", "conv1"),
    (r"bn0", "bn1"),
    (r"relu0", "prelu"),
    (r"stage(\d+)_unit(\d+)_(bn[123]|conv[12])", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.{m[3]}"),
    (r"stage(\d+)_unit(\d+)_relu1", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.prelu"),
    (r"stage(\d+)_unit(\d+)_conv1sc", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.downsample.0"),
    (r"stage(\d+)_unit(\d+)_sc", lambda m: f"layer{m[1]}.{int(m[2]) - 1}.downsample.1"),
    (r"bn1", "bn2"),
    (r"pre_fc1", "fc"),
    (r"fc1", "features"),
)
_MOBILE: tuple[tuple[str, Replacement], ...] = (
    (r"(res_\d)_block(\d+)_(conv_\w+)_(conv2d|batchnorm|relu)", r"\1.model.block\2.\3.\4"),
    (r"(dconv_\d+)_(conv_\w+)_(conv2d|batchnorm|relu)", r"\1.\2.\3"),
    (r"(conv_\w+)_(conv2d|batchnorm|relu)", r"\1.\2"),
    (r"(bn1|pre_fc1|fc1)", r"\1"),
)
_MXNET_PARTS = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",  # of a BatchNorm, or the slopes of a PReLU
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm, which ignores it when its momentum is fixed
PROTOTYPES = "fc7_weight"  # (C, D), of the head, in checkpoints of MXNet's training


def from_pytorch(names: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Map canonical to published names, without BatchNorm's counters.

    A prefix that the wanted names share, as "module." of DataParallel, "_orig_mod." of torch.compile and "model." of
    Lightning, is left out, and so are the names without it.

    Args:
        names: published names.
        wanted: canonical names of the network.

    Raises:
        ValueError: the network stands there twice, under two prefixes.

    >>> from_pytorch(["module.fc.bias", "module.bn1.num_batches_tracked", "head.weight"], wanted=["fc.bias"])
    {'fc.bias': 'module.fc.bias'}
    """
    names = {name for name in names if not name.endswith(COUNTER)}
    fitting = {prefix: sum(prefix + name in names for name in wanted) for prefix in _prefixes(names, wanted)}
    best = [prefix for prefix, count in fitting.items() if count == max(fitting.values())]
    if len(best) > 1:
        raise ValueError(
            f"the network stands there {len(best)} times, under {', '.join(sorted(best))}; save one of them alone"
        )
    (prefix,) = best or [""]
    return {name.removeprefix(prefix): name for name in sorted(names) if name.startswith(prefix)}


def _prefixes(names: Iterable[str], wanted: Collection[str]) -> set[str]:
    """What stands before the network's last parameter: "", or something that ends with a dot."""
    last = next(reversed([*wanted]), "")
    found = {name.removesuffix(last) for name in names if name.endswith(last)}
    return {prefix for prefix in found if not prefix or prefix.endswith(".")}


def from_mxnet(names: Iterable[str], mobile: bool) -> dict[str, str]:
    """Map canonical to published names, which may start with "arg:" or "aux:"; prototypes are left out.

    Args:
        names: published names; unknown ones stay as they are.
        mobile: the names are of a MobileFaceNet or MobileNet v1 instead of an r network.

    >>> from_mxnet(["arg:bn0_gamma", "arg:fc7_weight"], mobile=False)
    {'bn1.weight': 'arg:bn0_gamma'}
    """
    found = {}
    for published in names:
        name = published.removeprefix("arg:").removeprefix("aux:")
        if name != PROTOTYPES:
            match = re.fullmatch(rf"(.+?)_({'|'.join(_MXNET_PARTS)})", name)
            layer = mxnet_layer(match[1], mobile) if match else None
            found[f"{layer}.{_MXNET_PARTS[match[2]]}" if match and layer else name] = published
    return found


def mxnet_layer(name: str, mobile: bool) -> str | None:
    """Find the canonical name of a layer; None for an unknown one."""
    for pattern, replacement in _MOBILE if mobile else _FRESNET:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None
