"""IResNet, the residual network of ArcFace (arXiv:1801.07698) and of SFace's large models, in MXNet.

    stem      conv3x3, BN, PReLU
    4 stages  the first block of each has stride 2
      block   BN, conv3x3, BN, PReLU, conv3x3 (stride), BN; plus the shortcut: the input, or conv1x1 (stride), BN of it
    head      BN, flatten, dropout, linear, BN with weight 1

Attribute names and layouts are those of insightface's recognition/arcface_torch. The file needs MXNet and _layers.py
only; the two can be copied into another project.
"""

from collections.abc import Sequence
from typing import Any

from mxnet import gluon
from mxnet.gluon import nn
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol

from mxnet_impl.backbones._layers import BatchNorm1D, PReLU

EPS = 1e-5

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}  # depth: blocks of each stage


class IResNet(gluon.HybridBlock):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        blocks: blocks of each of the four stages.
        widths: channels of each stage; the stem has those of the first.
        embedding_size: D.
        image_size: S, pixels, at least 16.
        dropout: share of the features that are dropped before the linear layer, in training only.

    Raises:
        ValueError: image_size is below 16, or `forward` gets images of another shape.

    MXNet draws the initial weights; the trainer replaces them by those of the project.
    """

    def __init__(
        self,
        blocks: Sequence[int] = BLOCKS[50],
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"image_size: expected at least 16, got {image_size}")
        self.image_size = image_size
        last_size = -(-image_size // 16)  # four strides of 2; each rounds up

        self.conv1 = nn.Conv2D(widths[0], 3, padding=1, use_bias=False, in_channels=3)
        self.bn1 = nn.BatchNorm(epsilon=EPS, in_channels=widths[0])
        self.prelu = PReLU(widths[0])

        self.layer1 = _stage(widths[0], widths[0], blocks[0])
        self.layer2 = _stage(widths[0], widths[1], blocks[1])
        self.layer3 = _stage(widths[1], widths[2], blocks[2])
        self.layer4 = _stage(widths[2], widths[3], blocks[3])

        self.bn2 = nn.BatchNorm(epsilon=EPS, in_channels=widths[3])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Dense(embedding_size, in_units=widths[3] * last_size**2)
        self.features = BatchNorm1D(epsilon=EPS, in_channels=embedding_size)
        self.features.gamma.grad_req = "null"  # stays 1: the loss ignores the scale of an embedding

    def forward(self, images: NDArray | Symbol) -> NDArray | Symbol:
        if isinstance(images, NDArray) and images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {images.shape}")
        return super().forward(images)

    def hybrid_forward(self, F: Any, images: Symbol) -> Symbol:
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(F.flatten(self.bn2(x)))
        return self.features(self.fc(x))


class Block(gluon.HybridBlock):
    """Residual block: (N, in_width, S, S) to (N, width, S / stride, S / stride)."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm(epsilon=EPS, in_channels=in_width)
        self.conv1 = nn.Conv2D(width, 3, padding=1, use_bias=False, in_channels=in_width)
        self.bn2 = nn.BatchNorm(epsilon=EPS, in_channels=width)
        self.prelu = PReLU(width)
        self.conv2 = nn.Conv2D(width, 3, stride, padding=1, use_bias=False, in_channels=width)
        self.bn3 = nn.BatchNorm(epsilon=EPS, in_channels=width)
        if stride == 1 and in_width == width:
            self.downsample = None
        else:
            self.downsample = nn.HybridSequential()
            self.downsample.add(
                nn.Conv2D(width, 1, stride, use_bias=False, in_channels=in_width),
                nn.BatchNorm(epsilon=EPS, in_channels=width),
            )

    def hybrid_forward(self, F: Any, x: Symbol) -> Symbol:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


def _stage(in_width: int, width: int, blocks: int) -> nn.HybridSequential:
    stage = nn.HybridSequential()
    stage.add(Block(in_width, width, stride=2), *[Block(width, width, stride=1) for _ in range(blocks - 1)])
    return stage
