"""MobileNet v1 (arXiv:1704.04861), width 1, in the form of the SFace that OpenCV released, in Jittor.

    conv_1                            conv3x3 (stride 1) to 32
    conv_2_dw, conv_2 ... conv_14_dw, conv_14
                                      13 times depthwise 3x3 (with the stride), then conv1x1; widths in BLOCKS
    bn1; dropout; pre_fc1, fc1        BN; linear over the whole map; BN

BN and PReLU follow each convolution.

Parameter names are those of the released file, with dots. The file needs Jittor, mobilefacenet.py and _layers.py
only; the three can be copied into another project.
"""

import jittor as jt
from jittor import Var, nn

from jittor_impl.backbones._layers import BatchNorm
from jittor_impl.backbones.mobilefacenet import HEAD_EPS, conv_unit

BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    *((1024, 2), (1024, 1)),
)  # width and stride of each


class MobileNetV1(nn.Module):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        embedding_size: D.
        image_size: S, pixels, at least 16.
        dropout: share of the features that are dropped before the linear layer, in training only.

    Raises:
        ValueError: image_size is below 16, or `execute` gets images of another shape.

    Jittor draws the initial weights; the trainer replaces them by those of the project.
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
        self.bn1 = BatchNorm(in_width, eps=HEAD_EPS)
        self.dropout = nn.Dropout(dropout)
        self.pre_fc1 = nn.Linear(in_width * last_size**2, embedding_size)
        self.fc1 = BatchNorm(embedding_size, eps=HEAD_EPS)

    def execute(self, images: Var) -> Var:
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}"
            )
        x = self.conv_1(images)
        for number in range(2, len(BLOCKS) + 2):
            x = getattr(self, f"conv_{number}")(getattr(self, f"conv_{number}_dw")(x))
        x = self.dropout(jt.flatten(self.bn1(x), 1))
        return self.fc1(self.pre_fc1(x))
