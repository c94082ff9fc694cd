"""MobileFaceNet (arXiv:1804.07573) in the form of SFace's PyTorch and Jittor code, in MXNet.

    conv_1      conv3x3 (stride 2) to 64          res_4     6 bottlenecks, 128 wide, 256 inside, with shortcuts
    conv_2_dw   depthwise 3x3                     dconv_45  bottleneck (stride 2), 512 inside
    dconv_23    bottleneck (stride 2), 128 inside res_5     2 bottlenecks, 256 inside, with shortcuts
    res_3       4 of 64, 128 inside, shortcuts    conv_6sep, conv_6dw7_7  conv1x1 to 512; depthwise over the whole map
    dconv_34    bottleneck (stride 2) to 128      pre_fc1, fc1            linear; BN

A bottleneck is conv1x1, depthwise 3x3, conv1x1. BN and PReLU follow each convolution; BN alone follows the last one of
a bottleneck and of the network.

Attribute names and layouts are those of zhongyy/SFace. The file needs MXNet and _layers.py only; the two can be copied
into another project.
"""

from typing import Any

from mxnet import gluon
from mxnet.gluon import nn
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol

from mxnet_impl.backbones._layers import BatchNorm1D, PReLU

EPS = 1e-3
HEAD_EPS = 2e-5


class MobileFaceNet(gluon.HybridBlock):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        embedding_size: D.
        image_size: S, pixels, at least 16; the last depthwise convolution covers the whole last map.
        dropout: share of the features that are dropped before the linear layer, in training only.

    Raises:
        ValueError: image_size is below 16, or `forward` gets images of another shape.

    MXNet draws the initial weights; the trainer replaces them by those of the project.
    """

    def __init__(self, *, embedding_size: int = 512, image_size: int = 112, dropout: float = 0.0) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"image_size: expected at least 16, got {image_size}")
        self.image_size = image_size
        last_size = -(-image_size // 16)  # four strides of 2; each rounds up

        self.conv_1 = conv_unit(3, 64, kernel=3, stride=2, padding=1)
        self.conv_2_dw = conv_unit(64, 64, kernel=3, padding=1, groups=64)
        self.dconv_23 = Bottleneck(64, 64, inside=128, stride=2)
        self.res_3 = _residual(64, inside=128, blocks=4)
        self.dconv_34 = Bottleneck(64, 128, inside=256, stride=2)
        self.res_4 = _residual(128, inside=256, blocks=6)
        self.dconv_45 = Bottleneck(128, 128, inside=512, stride=2)
        self.res_5 = _residual(128, inside=256, blocks=2)
        self.conv_6sep = conv_unit(128, 512)
        self.conv_6dw7_7 = conv_unit(512, 512, kernel=last_size, groups=512, activation=False)
        self.dropout = nn.Dropout(dropout)
        self.pre_fc1 = nn.Dense(embedding_size, in_units=512)
        self.fc1 = BatchNorm1D(epsilon=HEAD_EPS, in_channels=embedding_size)

    def forward(self, images: NDArray | Symbol) -> NDArray | Symbol:
        if isinstance(images, NDArray) and images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {images.shape}")
        return super().forward(images)

    def hybrid_forward(self, F: Any, images: Symbol) -> Symbol:
        x = self.conv_2_dw(self.conv_1(images))
        x = self.res_3(self.dconv_23(x))
        x = self.res_4(self.dconv_34(x))
        x = self.res_5(self.dconv_45(x))
        x = self.conv_6dw7_7(self.conv_6sep(x))
        x = self.dropout(F.flatten(x))
        return self.fc1(self.pre_fc1(x))


class Bottleneck(gluon.HybridBlock):
    """(N, in_width, S, S) to (N, width, S / stride, S / stride) with `inside` channels in between."""

    def __init__(self, in_width: int, width: int, inside: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.conv_sep = conv_unit(in_width, inside)
        self.conv_dw = conv_unit(inside, inside, kernel=3, stride=stride, padding=1, groups=inside)
        self.conv_proj = conv_unit(inside, width, activation=False)
        self.residual = residual

    def hybrid_forward(self, F: Any, x: Symbol) -> Symbol:
        out = self.conv_proj(self.conv_dw(self.conv_sep(x)))
        return out + x if self.residual else out


def conv_unit(
    in_width: int,
    width: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    activation: bool = True,
) -> gluon.HybridBlock:
    """Convolution, BN and, unless `activation` is false, PReLU."""
    layers = {
        "conv2d": nn.Conv2D(width, kernel, stride, padding, groups=groups, use_bias=False, in_channels=in_width),
        "batchnorm": nn.BatchNorm(epsilon=EPS, in_channels=width),
    }
    if activation:
        layers["relu"] = PReLU(width)  # the published name
    return _sequential(layers)


def _residual(width: int, inside: int, blocks: int) -> nn.HybridSequential:
    model = _sequential({f"block{i}": Bottleneck(width, width, inside, residual=True) for i in range(blocks)})
    return _sequential({"model": model})


def _sequential(layers: dict[str, gluon.HybridBlock]) -> nn.HybridSequential:
    sequential = nn.HybridSequential()
    for name, layer in layers.items():
        sequential.register_child(layer, name)
    return sequential
