"""Label noise: a copy of a training set with wrong labels, and a record of the changes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from common.datasets.images import decode_image, decode_photo
from common.datasets.label_noise import CHANGES, SUMMARY, Change, write_changes
from common.datasets.training_sets import Dataset, open_dataset, samples, write_people, write_records
from common.io.files import require_file, write_json
from common.weights.checkpoint import load_checkpoint
from data.output import new_folder

Kind = Literal["uniform", "similar", "outsiders"]


class _Planned(NamedTuple):
    sample: int  # index in the source
    label: int
    outsider: int | None  # index of the outsider whose image replaces the original


def make_noise(
    source: Path,
    out: Path,
    share: float,
    kind: Kind = "uniform",
    seed: int = 0,
    prototypes: Path | None = None,
    outsiders: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Copy a training set and make a share of its samples wrong. Evaluation sets are copied unchanged.

    noise.json holds the options; noise.csv lists each changed sample with its place in the copy.

    Args:
        source: the training set, in any layout that `train` reads.
        out: folder to write.
        share: share of the samples that are changed, 0 to 1; the seed chooses them.
        kind: uniform: any other label, all equally likely. similar: the label of the class with the nearest prototype.
            outsiders: the label stays, and the image of a person outside the set replaces the original.
        seed: seed of all random numbers.
        prototypes: for similar: a checkpoint trained on `source` (step-...).
        outsiders: for outsiders: a set of other people, in any layout; each of its images is used once at most.
        overwrite: replace `out`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    for name, given, needed_by in (("prototypes", prototypes, "similar"), ("outsiders", outsiders, "outsiders")):
        if (given is None) == (kind == needed_by):
            needed = "needed by" if given is None else "only for"
            raise ValueError(f"{name}: {needed} kind {needed_by}, got kind {kind}")
    dataset = open_dataset(source)
    labels = np.array([sample.label for sample in samples(dataset)])
    strangers = None if outsiders is None else open_dataset(outsiders)
    nearest = None if prototypes is None else nearest_class(_prototypes(prototypes, dataset.num_classes))
    changed = plan(labels, dataset.num_classes, share, kind, seed, nearest, 0 if strangers is None else len(strangers))
    after = [changed.get(i, _Planned(i, int(label), None)) for i, label in enumerate(labels)]
    after.sort(key=lambda planned: (planned.label, planned.sample))  # record files keep a class together

    with new_folder(out, overwrite) as folder:
        size = image_size(dataset)
        write_records(folder, _images(after, dataset, strangers, size), dataset.num_classes, size)
        changes = (
            Change(place, planned.label, int(labels[planned.sample]), planned.sample, planned.outsider)
            for place, planned in enumerate(after)
            if planned.sample in changed
        )
        write_changes(folder / CHANGES, changes)
        write_people(folder, dataset.people)
        asked = {"source": str(source), "share": share, "kind": kind, "seed": seed}
        write_json(folder / SUMMARY, {**asked, "images": len(labels), "changed": len(changed)})
        for pairs in sorted(source.glob("*.bin")):
            require_file(pairs, "an evaluation set")
            shutil.copyfile(pairs, folder / pairs.name)
    print(f"{len(changed)} of {len(labels)} samples changed ({kind})")
    return out


def plan(
    labels: np.ndarray,
    num_classes: int,
    share: float,
    kind: Kind,
    seed: int,
    nearest: np.ndarray | None = None,
    strangers: int = 0,
) -> dict[int, _Planned]:
    """Choose the samples to change; returns them by index.

    Args:
        labels: (M,) int.
        num_classes: C.
        share: as in `make_noise`.
        kind: as in `make_noise`.
        seed: as in `make_noise`.
        nearest: (C,) int, for "similar": the most similar other class of each class.
        strangers: for "outsiders": number of images to draw from.

    Raises:
        ValueError: there is one class only, or there are too few outsiders.
    """
    if num_classes < 2:
        raise ValueError(f"expected at least 2 classes to confuse, got {num_classes}")
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(len(labels), round(share * len(labels)), replace=False))
    if kind == "outsiders":
        if strangers < len(chosen):
            raise ValueError(f"outsiders: expected at least {len(chosen)} images, got {strangers}")
        taken = random.choice(strangers, len(chosen), replace=False)
        return {int(i): _Planned(int(i), int(labels[i]), int(t)) for i, t in zip(chosen, taken, strict=True)}
    if nearest is None:
        wrong = (labels[chosen] + random.integers(1, num_classes, len(chosen))) % num_classes
    else:
        wrong = nearest[labels[chosen]]
    return {int(i): _Planned(int(i), int(label), None) for i, label in zip(chosen, wrong, strict=True)}


def nearest_class(class_weight: np.ndarray, block: int = 1024) -> np.ndarray:
    """Find for each class the other class whose prototype is nearest by angle.

    Args:
        class_weight: (C, D) float, one prototype a class.
        block: rows that are compared at once; bounds the memory.

    Returns:
        (C,) int64.
    """
    unit = class_weight / np.maximum(np.linalg.norm(class_weight, axis=1, keepdims=True), 1e-12)
    nearest = np.empty(len(unit), np.int64)
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        nearest[start : start + block] = cosines.argmax(1)
    return nearest


def _prototypes(path: Path, num_classes: int) -> np.ndarray:
    class_weight = load_checkpoint(path).arrays.get("head.class_weight")
    if class_weight is None or class_weight.ndim != 2 or len(class_weight) != num_classes:
        found = "none" if class_weight is None else f"{class_weight.shape}"
        raise ValueError(f"{path}: expected {num_classes} prototypes, as the set has classes, got {found}")
    return class_weight


def image_size(dataset: Dataset) -> int:
    """Measure the width, which must be the height, of a set's first image, in pixels.

    Raises:
        ValueError: the image does not decode or is not square; named.
    """
    first = dataset.sample(0)
    height, width, _ = decode_photo(first.encoded, first.name).shape
    if height != width:
        raise ValueError(f"{first.name}: expected a square image, got {width}x{height} pixels; align the set first")
    return height


def _images(
    after: list[_Planned], dataset: Dataset, strangers: Dataset | None, size: int
) -> Iterator[tuple[bytes, int]]:
    for planned in after:
        if planned.outsider is None or strangers is None:
            yield dataset.sample(planned.sample).encoded, planned.label
        else:
            outsider = strangers.sample(planned.outsider)
            decode_image(outsider.encoded, outsider.name, size)  # an image of another size would stop the training
            yield outsider.encoded, planned.label
