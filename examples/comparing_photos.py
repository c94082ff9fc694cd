"""Do two photos show one person?

    python -m examples.comparing_photos RUN SET yunet.onnx ann.jpg bob.jpg

SET is a set of pairs on which RUN was evaluated: its threshold decides. MODEL.onnx may stand for RUN, if
`python -m pytorch_impl evaluate MODEL.onnx --out FOLDER` has measured one: `load(source, figures=FOLDER)`.
"""

import sys
from pathlib import Path

import numpy as np

from pytorch_impl import load


def compare(source: Path, name: str, detector: Path, first: Path, second: Path) -> tuple[float, bool]:
    """Cosine of the two faces, and whether it is above the threshold."""
    model = load(source)
    faces = [model.align(photo, detector=detector) for photo in (first, second)]
    one, other = model.embed(np.stack(faces))
    cosine = float(model.similarity(one, other))
    return cosine, cosine > model.threshold(name).cosine


if __name__ == "__main__":
    cosine, same = compare(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:6]))
    print(f"cosine {cosine:.4f}: {'one person' if same else 'two people'}")
