"""IR and IR-SE, the residual networks of face.evoLVe and of SFace's PyTorch and Jittor models, in MXNet.

    stem      conv3x3, BN, PReLU
    4 stages  the first block of each has stride 2
      block   BN, conv3x3, PReLU, conv3x3 (stride), BN, in IR-SE squeeze-excite; plus the shortcut: if the
              width changes, conv1x1 (stride) and BN of the input, else every stride-th pixel of it
    head      BN, dropout, flatten, linear, BN

Attribute names and layouts are those of face.evoLVe and zhongyy/SFace. The file needs MXNet and _layers.py only; the
two can be copied into another project.
"""

from collections.abc import Sequence
from typing import Any

from mxnet import gluon
from mxnet.gluon import nn
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol

from mxnet_impl.backbones._layers import BatchNorm1D, PReLU, spread

EPS = 1e-5
REDUCTION = 16  # squeeze-excite: channels to hidden units

BLOCKS = {50: (3, 4, 14, 3), 101: (3, 13, 30, 3), 152: (3, 8, 36, 3)}  # depth: blocks of each stage


class IR(gluon.HybridBlock):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        blocks: blocks of each of the four stages.
        widths: channels of each stage; the stem has those of the first.
        squeeze_excite: IR-SE instead of IR.
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
        squeeze_excite: bool = False,
        embedding_size: int = 512,
        image_size: int = 112,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"image_size: expected at least 16, got {image_size}")
        self.image_size = image_size
        last_size = -(-image_size // 16)  # four strides of 2; each rounds up

        self.input_layer = _sequential(
            nn.Conv2D(widths[0], 3, padding=1, use_bias=False, in_channels=3),
            nn.BatchNorm(epsilon=EPS, in_channels=widths[0]),
            PReLU(widths[0]),
        )
        self.body = _sequential(
            *_stage(widths[0], widths[0], blocks[0], squeeze_excite),
            *_stage(widths[0], widths[1], blocks[1], squeeze_excite),
            *_stage(widths[1], widths[2], blocks[2], squeeze_excite),
            *_stage(widths[2], widths[3], blocks[3], squeeze_excite),
        )
        self.output_layer = _sequential(
            nn.BatchNorm(epsilon=EPS, in_channels=widths[3]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Dense(embedding_size, in_units=widths[3] * last_size**2),
            BatchNorm1D(epsilon=EPS, in_channels=embedding_size),
        )

    def forward(self, images: NDArray | Symbol) -> NDArray | Symbol:
        if isinstance(images, NDArray) and images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {images.shape}")
        return super().forward(images)

    def hybrid_forward(self, F: Any, images: Symbol) -> Symbol:
        return self.output_layer(self.body(self.input_layer(images)))


class Block(gluon.HybridBlock):
    """Residual block: (N, in_width, S, S) to (N, width, S / stride, S / stride)."""

    def __init__(self, in_width: int, width: int, stride: int, squeeze_excite: bool) -> None:
        super().__init__()
        if in_width != width:
            self.shortcut_layer = _sequential(
                nn.Conv2D(width, 1, stride, use_bias=False, in_channels=in_width),
                nn.BatchNorm(epsilon=EPS, in_channels=width),
            )
        elif stride != 1:
            self.shortcut_layer = nn.MaxPool2D(1, stride)
        else:
            self.shortcut_layer = nn.HybridLambda("identity")
        self.res_layer = _sequential(
            nn.BatchNorm(epsilon=EPS, in_channels=in_width),
            nn.Conv2D(width, 3, padding=1, use_bias=False, in_channels=in_width),
            PReLU(width),
            nn.Conv2D(width, 3, stride, padding=1, use_bias=False, in_channels=width),
            nn.BatchNorm(epsilon=EPS, in_channels=width),
            *([SqueezeExcite(width)] if squeeze_excite else []),
        )

    def hybrid_forward(self, F: Any, x: Symbol) -> Symbol:
        return self.res_layer(x) + self.shortcut_layer(x)


class SqueezeExcite(gluon.HybridBlock):
    """Scales each channel by a factor in 0..1, computed from the means of all channels (arXiv:1709.01507)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.avg_pool = nn.GlobalAvgPool2D()
        self.fc1 = nn.Conv2D(width // REDUCTION, 1, use_bias=False, in_channels=width)
        self.relu = nn.Activation("relu")
        self.fc2 = nn.Conv2D(width, 1, use_bias=False, in_channels=width // REDUCTION)
        self.sigmoid = nn.Activation("sigmoid")

    def hybrid_forward(self, F: Any, x: Symbol) -> Symbol:
        gates = self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))
        return x * spread(F, F.flatten(gates), x)


def _stage(in_width: int, width: int, blocks: int, squeeze_excite: bool) -> list[Block]:
    first = Block(in_width, width, 2, squeeze_excite)
    return [first, *[Block(width, width, 1, squeeze_excite) for _ in range(blocks - 1)]]


def _sequential(*layers: gluon.HybridBlock) -> nn.HybridSequential:
    sequential = nn.HybridSequential()
    sequential.add(*layers)
    return sequential
