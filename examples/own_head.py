"""A head of one's own in the project's trainer, in PyTorch: SFace that also keeps embeddings at one length.

    python -m examples.own_head train orl-demo

A head is a module with `class_weight` (C, D) whose call returns a named tuple: `loss` is differentiated, the rest is
logged. Here it takes the place of "sface"; a name of its own takes two more lines, see docs/extending.md.
"""

import sys

from common.backend import Backend
from common.commands.main import main
from pytorch_impl.losses import HEADS, SFaceHead, SFaceResult

LENGTH, STRENGTH = 10.0, 0.01


class OneLengthHead(SFaceHead):
    def forward(self, embeddings, labels, sample_weight=None) -> SFaceResult:
        result = super().forward(embeddings, labels, sample_weight)
        return result._replace(loss=result.loss + STRENGTH * (embeddings.norm(dim=1) - LENGTH).square().mean())


if __name__ == "__main__":
    HEADS["sface"] = OneLengthHead
    sys.exit(main(Backend("pytorch"), sys.argv[1:]))
