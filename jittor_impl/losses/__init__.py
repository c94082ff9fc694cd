"""The loss heads in Jittor: a folder that can be copied into any package as it is.

>>> sorted(HEADS)
['arcface', 'cosface', 'normalised-softmax', 'sface', 'softmax', 'sphereface']
"""

from .margin_heads import ArcFaceHead, CosFaceHead, NormalisedSoftmaxHead, SoftmaxHead, SphereFaceHead
from .margin_heads import MarginHead as MarginHead
from .margin_heads import MarginResult as MarginResult
from .sface import SFaceHead
from .sface import SFaceResult as SFaceResult
from .sface import sface_loss as sface_loss

# Heads by the names of a configuration. A head's keyword arguments are the settings that it takes from there.
HEADS = {
    "sface": SFaceHead,
    "softmax": SoftmaxHead,
    "normalised-softmax": NormalisedSoftmaxHead,
    "cosface": CosFaceHead,
    "arcface": ArcFaceHead,
    "sphereface": SphereFaceHead,
}
