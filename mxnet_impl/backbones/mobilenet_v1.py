"""MobileNet v1 (arXiv:1704.04861), width 1, in the form of the SFace that OpenCV released, in MXNet.

    conv_1                            conv3x3 (stride 1) to 32
    conv_2_dw, conv_2 ... conv_14_dw, conv_14
                                      13 times depthwise 3x3 (with the stride), then conv1x1; widths in BLOCKS
    bn1; dropout; pre_fc1, fc1        BN; linear over the whole map; BN

BN and PReLU follow each convolution.

Attribute names are those of the released file, with dots. The file needs MXNet, mobilefacenet.py and _layers.py
only; the three can be copied into another project.
"""

from typing import Any

from mxnet import gluon
from mxnet.gluon import nn
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol

from mxnet_impl.backbones._layers import BatchNorm1D
from mxnet_impl.backbones.mobilefacenet import HEAD_EPS, conv_unit

BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    *((1024, 2), (1024, 1)),
)  # width and stride of each


class MobileNetV1(gluon.HybridBlock):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        embedding_size: D.
        image_size: S, pixels, at least 16.
        dropout: share of the features that are dropped before the linear layer, in training only.

    Raises:
        ValueError: image_size is below 16, or `forward` gets images of another shape.

    MXNet draws the initial weights; the trainer replaces them by those of the project.
    """

    def __init__(self, *, embedding_size: int = 512, image_size: int = 112, dropout: float = 0.4) -> None:
        super().__init__()
        if image_size < 16:
            raise ValueError(f"image_size: expected at least 16, got {image_size}")
        self.image_size = image_size
        last_size = -(-image_size // 16)  # four strides of 2; each rounds up

        self.conv_1 = conv_unit(3, 32, kernel=3, padding=1)
        in_width = 32
        for number, (width, stride) in enumerate(BLOCKS, 2):
            depthwise = conv_unit(in_width, in_width, kernel=3, stride=stride, padding=1, groups=in_width)
            setattr(self, f"conv_{number}_dw", depthwise)
            setattr(self, f"conv_{number}", conv_unit(in_width, width))
            in_width = width
        self.bn1 = nn.BatchNorm(epsilon=HEAD_EPS, in_channels=in_width)
        self.dropout = nn.Dropout(dropout)
        self.pre_fc1 = nn.Dense(embedding_size, in_units=in_width * last_size**2)
        self.fc1 = BatchNorm1D(epsilon=HEAD_EPS, in_channels=embedding_size)

    def forward(self, images: NDArray | Symbol) -> NDArray | Symbol:
        if isinstance(images, NDArray) and images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {images.shape}")
        return super().forward(images)

    def hybrid_forward(self, F: Any, images: Symbol) -> Symbol:
        x = self.conv_1(images)
        for number in range(2, len(BLOCKS) + 2):
            x = getattr(self, f"conv_{number}")(getattr(self, f"conv_{number}_dw")(x))
        x = self.dropout(F.flatten(self.bn1(x)))
        return self.fc1(self.pre_fc1(x))
