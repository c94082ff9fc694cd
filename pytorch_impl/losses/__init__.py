"""The loss heads in PyTorch: a folder that can be copied into any package as it is.

>>> sorted(HEADS)
['arcface', 'cosface', 'normalised-softmax', 'sface', 'softmax', 'sphereface']
"""

from .margin_heads import (
    ArcFaceHead,
    CosFaceHead,
    MarginHead,
    MarginResult,
    NormalisedSoftmaxHead,
    SoftmaxHead,
    SphereFaceHead,
)
from .sface import SFaceHead, SFaceResult, Shard, sface_loss

# Heads by the names of a configuration. A head's keyword arguments are the settings that it takes from there.
HEADS = {
    "sface": SFaceHead,
    "softmax": SoftmaxHead,
    "normalised-softmax": NormalisedSoftmaxHead,
    "cosface": CosFaceHead,
    "arcface": ArcFaceHead,
    "sphereface": SphereFaceHead,
}

__all__ = [
    "HEADS",
    "ArcFaceHead",
    "CosFaceHead",
    "MarginHead",
    "MarginResult",
    "NormalisedSoftmaxHead",
    "SFaceHead",
    "SFaceResult",
    "Shard",
    "SoftmaxHead",
    "SphereFaceHead",
    "sface_loss",
]
