"""The backbones by name. Each maps images (N, 3, S, S) float, normalised, to raw embeddings (N, D)."""

from collections.abc import Callable
from functools import partial

from mxnet import gluon

from mxnet_impl.backbones import ir, iresnet
from mxnet_impl.backbones.ir import IR
from mxnet_impl.backbones.iresnet import IResNet
from mxnet_impl.backbones.mobilefacenet import MobileFaceNet
from mxnet_impl.backbones.mobilenet_v1 import MobileNetV1

BACKBONES: dict[str, Callable[..., gluon.HybridBlock]] = {
    "iresnet_small": partial(IResNet, (1, 1, 1, 1), (32, 64, 128, 256)),  # the project's own, for trials on a CPU
    **{f"iresnet{depth}": partial(IResNet, blocks) for depth, blocks in iresnet.BLOCKS.items()},
    **{f"ir{depth}": partial(IR, blocks) for depth, blocks in ir.BLOCKS.items()},
    **{f"ir_se{depth}": partial(IR, blocks, squeeze_excite=True) for depth, blocks in ir.BLOCKS.items()},
    "mobilefacenet": MobileFaceNet,
    "mobilenet_v1": MobileNetV1,
}


def create_backbone(
    name: str, embedding_size: int = 512, image_size: int = 112, dropout: float | None = None
) -> gluon.HybridBlock:
    """Make a backbone; its `initialize()` draws the initial weights of MXNet.

    Args:
        name: one of `BACKBONES`.
        embedding_size: D, numbers in an embedding.
        image_size: S, pixels, at least 16.
        dropout: share of the features that are dropped before the last linear layer, in training only; None: the
            default of the family (0.4 iresnet and mobilenet_v1, 0.5 ir, 0 mobilefacenet).

    Raises:
        ValueError: there is no such backbone, or a number is out of range.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {name!r}")
    if embedding_size < 1:
        raise ValueError(f"embedding_size: expected at least 1, got {embedding_size}")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected at least 0 and below 1, got {dropout}")
    options = {} if dropout is None else {"dropout": dropout}
    return BACKBONES[name](embedding_size=embedding_size, image_size=image_size, **options)
