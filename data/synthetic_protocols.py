"""Small sets in the official layouts of IJB and MegaFace, with generated "faces", to test and to try the commands.

docs/protocols.md describes the layouts. The figures of these sets say nothing about a model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from common.datasets.alignment import TEMPLATE, TEMPLATE_SIZE
from common.datasets.images import encode_image
from common.io.progress import tracked
from common.protocols.ijb import GALLERIES, layout
from common.protocols.megaface import PROBE_LIST, distractor_list
from data.output import check_at_least, new_folder
from data.synthetic import face

SUBJECTS, STRANGERS = 2, 3  # other people than those of data.synthetic, which has 0 and 1
MARGIN = 0.25  # around a face in its loose crop, as a share of the face


def make_ijb_synthetic(
    out: Path,
    name: Literal["ijbb", "ijbc"] = "ijbc",
    subjects: int = 8,
    probes: int = 3,
    size: int = 64,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Make a set in the layout of IJB-B or IJB-C: a gallery template a subject, half of them in each gallery; probes.

    Args:
        out: folder to write: meta and loose_crop.
        name: the set whose layout is taken.
        subjects: people, at least 4.
        probes: probe templates of each subject.
        size: width and height of a face in its loose crop, pixels.
        seed: seed of all random numbers.
        overwrite: replace `out`.
    """
    check_at_least(("subjects", subjects, 4), ("probes", probes, 1), ("size", size, 16))
    random = np.random.default_rng([seed, subjects, probes])
    whose = [template % subjects for template in range(subjects * (1 + probes))]  # a subject's first is in a gallery
    images: list[_Image] = []
    with new_folder(out, overwrite) as folder:
        (folder / "loose_crop").mkdir()
        medium = 0
        for template, subject in enumerate(whose, 1):
            for _ in range(random.integers(1, 4)):  # media: stills, and videos of up to 4 frames
                medium += 1
                for _ in range(random.choice([1, 1, 2, 4])):
                    image = f"{len(images) + 1}.jpg"
                    crop, points = _loose_crop(face(SUBJECTS, subject, len(images), size, seed), random)
                    (folder / "loose_crop" / image).write_bytes(encode_image(crop, ".jpg"))
                    images.append(_Image(image, template, subject, medium, points, random.uniform(0.5, 1)))
        gallery, searched = range(1, subjects + 1), range(subjects + 1, len(whose) + 1)
        pairs = [f"{g} {p} {int(whose[g - 1] == whose[p - 1])}" for p in searched for g in gallery]
        first, second = GALLERIES[name][:2]
        lists = {"probes": searched, first: gallery[: subjects // 2], second: gallery[subjects // 2 :]}
        files = {part: folder / path.relative_to(out) for part, (path, _) in layout(out, name).items()}
        _write_meta(files, images, pairs, lists)
    print(f"{len(images)} images, {len(whose)} templates of {subjects} people, {len(pairs)} pairs")
    return out


class _Image(NamedTuple):
    name: str
    template: int
    subject: int
    medium: int
    landmarks: np.ndarray  # (5, 2)
    score: float


def _write_meta(
    files: Mapping[str, Path], images: Sequence[_Image], pairs: Iterable[str], lists: Mapping[str, Iterable[int]]
) -> None:
    """Write the lists of media, faces and pairs, and the 1:N lists, which are given by their templates."""
    _write_lines(files["media"], (f"{i.name} {i.template} {i.medium}" for i in images))
    numbers = [" ".join(f"{value:.3f}" for value in (*image.landmarks.ravel(), image.score)) for image in images]
    _write_lines(files["faces"], (f"{image.name} {line}" for image, line in zip(images, numbers, strict=True)))
    _write_lines(files["pairs"], pairs)
    rows: dict[int, list[str]] = {}
    for i in images:
        rows.setdefault(i.template, []).append(f"{i.template},{i.subject},img/{i.name}")
    for part, templates in lists.items():
        _write_lines(files[part], ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *(row for t in templates for row in rows[t])])


def make_megaface_synthetic(
    out: Path,
    people: int = 5,
    photos: int = 4,
    distractors: int = 100,
    noisy: int = 2,
    size: int = 112,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Make a set in the layout of MegaFace and its devkit: aligned photos of people, and of strangers.

    Args:
        out: folder to write.
        people: people who are searched for.
        photos: photos of each of them, at least 2.
        distractors: photos of strangers.
        noisy: photos of each kind in the lists of noisy faces; fewer than `photos` and than `distractors`.
        size: width and height, pixels.
        seed: seed of all random numbers.
        overwrite: replace `out`.
    """
    check_at_least(("people", people, 1), ("photos", photos, 2), ("distractors", distractors, 1))
    if not 0 <= noisy < min(photos, distractors) or size < 16:
        raise ValueError(f"expected 0 <= noisy < photos and distractors, and size >= 16, got {noisy} and {size}")
    names = [f"Person_{person}" for person in range(people) for _ in range(photos)]
    faces = [f"{name}/{name}_{number % photos}.png" for number, name in enumerate(names)]
    others = [f"{i // 100:03d}/{i // 10:07d}@N00/{i}_0.jpg" for i in range(distractors)]
    with new_folder(out, overwrite) as folder:
        for i, path in enumerate(tracked(faces, "facescrub", "images")):
            image = face(SUBJECTS, i // photos, i % photos, size, seed)
            _write(folder / "facescrub_images" / path, encode_image(image))
        for i, path in enumerate(tracked(others, "megaface", "images")):
            _write(folder / "megaface_images" / path, encode_image(face(STRANGERS, i, 0, size, seed), ".jpg"))
        lists = folder / "devkit" / "templatelists"
        _write(lists / PROBE_LIST, json.dumps({"id": names, "path": faces}).encode())
        _write(lists / distractor_list(distractors), json.dumps({"path": others}).encode())
        comment = ["# noisy faces"]
        _write_lines(folder / "facescrub_noises.txt", comment + [Path(path).name for path in faces[:noisy]])
        _write_lines(folder / "megaface_noises.txt", comment + [f"{i}\t{p}" for i, p in enumerate(others[:noisy])])
    print(f"{len(faces)} photos of {people} people, {distractors} distractors (--size {distractors})")
    return out


def _loose_crop(image: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Put a face somewhere in a larger image; returns this, (3, H, W) uint8, and the landmarks (5, 2) in its pixels."""
    size = image.shape[1]
    margin = int(MARGIN * size)
    crop = np.full((3, size + 2 * margin, size + 2 * margin), 127, np.uint8)
    left, top = random.integers(0, 2 * margin + 1, 2)
    crop[:, top : top + size, left : left + size] = image
    return crop, TEMPLATE * (size / TEMPLATE_SIZE) + [left, top]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    _write(path, "".join(f"{line}\n" for line in lines).encode())
