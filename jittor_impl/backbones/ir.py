"""IR and IR-SE, the residual networks of face.evoLVe and of SFace's PyTorch and Jittor models, in Jittor.

    stem      conv3x3, BN, PReLU
    4 stages  the first block of each has stride 2
      block   BN, conv3x3, PReLU, conv3x3 (stride), BN, in IR-SE squeeze-excite; plus the shortcut: if the
              width changes, conv1x1 (stride) and BN of the input, else every stride-th pixel of it
    head      BN, dropout, flatten, linear, BN

Parameter names and layouts are those of face.evoLVe and zhongyy/SFace, so their weights load. The file needs Jittor and
_layers.py only; the two can be copied into another project.
"""

from collections.abc import Sequence

from jittor import Var, nn

from jittor_impl.backbones._layers import BatchNorm, PReLU

EPS = 1e-5
REDUCTION = 16  # squeeze-excite: channels to hidden units

BLOCKS = {50: (3, 4, 14, 3), 101: (3, 13, 30, 3), 152: (3, 8, 36, 3)}  # depth: blocks of each stage


class IR(nn.Module):
    """Images (N, 3, S, S) float, normalised, to raw embeddings (N, D).

    Args:
        blocks: blocks of each of the four stages.
        widths: channels of each stage; the stem has those of the first.
        squeeze_excite: IR-SE instead of IR.
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

        self.input_layer = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), BatchNorm(widths[0], eps=EPS), PReLU(widths[0])
        )
        self.body = nn.Sequential(
            *_stage(widths[0], widths[0], blocks[0], squeeze_excite),
            *_stage(widths[0], widths[1], blocks[1], squeeze_excite),
            *_stage(widths[1], widths[2], blocks[2], squeeze_excite),
            *_stage(widths[2], widths[3], blocks[3], squeeze_excite),
        )
        self.output_layer = nn.Sequential(
            BatchNorm(widths[3], eps=EPS),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(widths[3] * last_size**2, embedding_size),
            BatchNorm(embedding_size, eps=EPS),
        )

    def execute(self, images: Var) -> Var:
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"images: expected (N, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}"
            )
        return self.output_layer(self.body(self.input_layer(images)))


class Block(nn.Module):
    """Residual block: (N, in_width, S, S) to (N, width, S / stride, S / stride)."""

    def __init__(self, in_width: int, width: int, stride: int, squeeze_excite: bool) -> None:
        super().__init__()
        if in_width != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), BatchNorm(width, eps=EPS)
            )
        elif stride != 1:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Identity()
        self.res_layer = nn.Sequential(
            BatchNorm(in_width, eps=EPS),
            nn.Conv2d(in_width, width, 3, padding=1, bias=False),
            PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            BatchNorm(width, eps=EPS),
            *([SqueezeExcite(width)] if squeeze_excite else []),
        )

    def execute(self, x: Var) -> Var:
        return self.res_layer(x) + self.shortcut_layer(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by a factor in 0..1, computed from the means of all channels (arXiv:1709.01507)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(width, width // REDUCTION, 1, bias=False)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(width // REDUCTION, width, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def execute(self, x: Var) -> Var:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(self.avg_pool(x)))))


def _stage(in_width: int, width: int, blocks: int, squeeze_excite: bool) -> list[Block]:
    first = Block(in_width, width, 2, squeeze_excite)
    return [first, *[Block(width, width, 1, squeeze_excite) for _ in range(blocks - 1)]]
