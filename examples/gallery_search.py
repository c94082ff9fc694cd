"""Who in a folder of photos looks most like the faces in others? The gallery is aligned and embedded once.

python -m examples.gallery_search RUN yunet.onnx GALLERY photo.jpg another.jpg
"""

import sys
from pathlib import Path

import numpy as np

from common.datasets.detection import Detector
from pytorch_impl import load


class Gallery:
    def __init__(self, source: Path, detector: Path, folder: Path) -> None:
        self.model, self.detector = load(source), Detector(detector)
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
        self.embeddings = self.embed(self.paths)

    def embed(self, photos: list[Path]) -> np.ndarray:
        return self.model.embed(np.stack([self.model.align(photo, detector=self.detector) for photo in photos]))

    def nearest(self, photo: Path, count: int = 3) -> list[tuple[Path, float]]:
        """Paths and cosines of the photos that are most alike, the best first."""
        cosines = self.model.similarity(self.embeddings, self.embed([photo])[0])
        return [(self.paths[place], float(cosines[place])) for place in np.argsort(-cosines)[:count]]


if __name__ == "__main__":
    gallery = Gallery(*map(Path, sys.argv[1:4]))
    for photo in sys.argv[4:]:
        print(photo, *(f"{path} {cosine:.4f}" for path, cosine in gallery.nearest(Path(photo))), sep="\n    ")
