"""IResNet, the residual network of ArcFace (arXiv:1801.07698) and of SFace's large models, in Jittor.

    stem      conv3x3, BN, PReLU
    4 stages  the first block of each has stride 2
      block   BN, conv3x3, BN, PReLU, conv3x3 (stride), BN; plus the shortcut: the input, or conv1x1 (stride), BN of it
    head      BN, flatten, dropout, linear, BN with weight 1

Parameter names and layouts are those of insightface's recognition/arcface_torch, so its weights load. The file needs
Jittor and _layers.py only; the two can be copied into another project.
"""

from collections.abc import Sequence

import jittor as jt
from jittor import Var, nn

from jittor_impl.backbones._layers import BatchNorm, PReLU

EPS = 1e-5

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}  # depth: blocks of each stage


class IResNet(nn.Module):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        blocks: blocks of each of the four stages.
        widths: channels of each stage; the stem has those of the first.
        embedding_size: D.
        image_size: S, pixels, at least 16.
        dropout: share of the features that are dropped before the linear layer, in training only.

    Raises:
        ValueError: image_size is below 16, or `execute` gets images of another shape.

    Jittor draws the initial weights; the trainer replaces them by those of the project.
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

        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = BatchNorm(widths[0], eps=EPS)
        self.prelu = PReLU(widths[0])

        self.layer1 = _stage(widths[0], widths[0], blocks[0])
        self.layer2 = _stage(widths[0], widths[1], blocks[1])
        self.layer3 = _stage(widths[1], widths[2], blocks[2])
        self.layer4 = _stage(widths[2], widths[3], blocks[3])

        self.bn2 = BatchNorm(widths[3], eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[3] * last_size**2, embedding_size)
        self.features = BatchNorm(embedding_size, eps=EPS)
        self.features.weight.stop_grad()  # stays 1: the loss ignores the scale of an embedding

    def execute(self, images: Var) -> Var:
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}"
            )
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(jt.flatten(self.bn2(x), 1))
        return self.features(self.fc(x))


class Block(nn.Module):
    """Residual block: (N, in_width, S, S) to (N, width, S / stride, S / stride)."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm(in_width, eps=EPS)
        self.conv1 = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width, eps=EPS)
        self.prelu = PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = BatchNorm(width, eps=EPS)
        if stride == 1 and in_width == width:
            self.downsample = None
        else:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), BatchNorm(width, eps=EPS)
            )

    def execute(self, x: Var) -> Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


def _stage(in_width: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(in_width, width, stride=2), *[Block(width, width, stride=1) for _ in range(blocks - 1)])
