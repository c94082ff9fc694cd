"""Angles between training samples and prototypes during training: the inputs of the two sigmoids of SFace.

At each evaluation the log gets histograms of the angles of a fixed random selection of training images. If
`python -m data noise` made some labels wrong, samples with correct and with wrong labels have histograms of their own.
"""

from typing import Any

import numpy as np

from common.config import DataConfig, HeadConfig
from common.datasets.images import decode_image
from common.datasets.label_noise import read_labels
from common.datasets.training_sets import Dataset
from common.evaluation.evaluate import Embed

BINS = 90  # of 2 degrees


class AngleProbe:
    """A fixed random selection of training images, decoded once.

    Args:
        dataset: the training set; noise.csv beside it says which labels are wrong.
        data: its configuration.
        count: number of images; a small set, or damaged images that are skipped, give fewer.
        seed: of the selection.

    Raises:
        ValueError: an image is damaged, or noise.csv does not fit.
    """

    def __init__(self, dataset: Dataset, data: DataConfig, count: int, seed: int) -> None:
        known = None
        if (data.root / "noise.csv").is_file():
            known = read_labels(data.root, np.array([dataset.sample(i).label for i in range(len(dataset))]))
        images, kept = [], []
        for index in np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count]):
            try:
                sample = dataset.sample(int(index))
                images.append(decode_image(sample.encoded, sample.name, data.image_size, data.on_wrong_size))
                kept.append((int(index), sample.label))
            except ValueError:
                if data.on_bad_image == "fail":
                    raise
        drawn, self._labels = np.array(kept, np.int64).reshape(-1, 2).T
        self._images = np.stack(images) if images else np.empty((0, 3, data.image_size, data.image_size), np.uint8)
        self._is_wrong = np.zeros(len(drawn), bool) if known is None else known.is_wrong[drawn]
        self._original = self._labels if known is None else known.original[drawn]

    def record(self, embed: Embed, class_weight: np.ndarray, step: int, batch_size: int = 64) -> dict[str, Any]:
        """A record for log.jsonl: counts in `BINS` equal bins from 0 to pi, for correct and for wrong labels.

        Args:
            embed: of the network in evaluation mode.
            class_weight: (C, D), the prototypes.
            step: number of optimiser steps done.
            batch_size: images in one call of `embed`.

        "own" counts the angle to the prototype of the label, "others" the angles to all other prototypes. "true", for
        wrong labels only, counts the angle to the prototype of the person in the image, if that person has one.
        """
        counts = {
            group: {name: np.zeros(BINS, np.int64) for name in names}
            for group, names in (("correct", ("own", "others")), ("wrong", ("own", "others", "true")))
        }
        prototypes = _unit(class_weight)
        for start in range(0, len(self._labels), batch_size):
            batch = slice(start, start + batch_size)
            theta = np.arccos(np.clip(_unit(embed(self._images[batch])) @ prototypes.T, -1, 1))
            labels, original = self._labels[batch], self._original[batch]
            rows = np.arange(len(labels))
            is_own = np.zeros(theta.shape, bool)
            is_own[rows, labels] = True
            for group, chosen in (("correct", ~self._is_wrong[batch]), ("wrong", self._is_wrong[batch])):
                counts[group]["own"] += _histogram(theta[rows[chosen], labels[chosen]])
                counts[group]["others"] += _histogram(theta[chosen][~is_own[chosen]])
            known = self._is_wrong[batch] & (original >= 0)
            counts["wrong"]["true"] += _histogram(theta[rows[known], original[known]])
        plain = {group: {name: c.tolist() for name, c in of.items()} for group, of in counts.items()}
        return {"kind": "angles", "step": step, **plain}


def intra_weight(theta: np.ndarray, head: HeadConfig) -> np.ndarray:
    """r_intra of SFace at angles of any shape, radians."""
    return head.scale * _sigmoid(head.intra_slope * (theta - head.intra_center))


def inter_weight(theta: np.ndarray, head: HeadConfig) -> np.ndarray:
    """r_inter of SFace at angles of any shape, radians."""
    return head.scale * _sigmoid(-head.inter_slope * (theta - head.inter_center))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _histogram(theta: np.ndarray) -> np.ndarray:
    return np.histogram(theta, BINS, (0, np.pi))[0]
