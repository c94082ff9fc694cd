"""IJB and MegaFace in small: the official layouts with generated "faces", for tests and for a dry run of the commands.

The layouts are described in docs/protocols.md. Nothing is learnt from the figures; that they come out is the point.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import tqdm

from common.datasets.alignment import TEMPLATE, TEMPLATE_SIZE
from common.datasets.images import encode_image
from common.protocols.ijb import GALLERIES, layout
from common.protocols.megaface import PROBE_LIST, distractor_list
from data.output import new_folder
from data.synthetic import face

SUBJECTS, STRANGERS = 2, 3  # people of other numbers than those of data.synthetic
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
    """A set in the layout of IJB-B or IJB-C: one gallery template a subject, half of them in each gallery, and probes.

    Args:
        out: folder to write: meta and loose_crop.
        name: of the set.
        subjects: people, at least 4.
        probes: probe templates of each.
        size: width and height of a face in its loose crop, pixels.
        seed: of everything.
        overwrite: replace `out`.
    """
    for what, value, least in (("subjects", subjects, 4), ("probes", probes, 1), ("size", size, 16)):
        if value < least:
            raise ValueError(f"{what}: expected at least {least}, got {value}")
    random = np.random.default_rng([seed, subjects, probes])
    whose = [template % subjects for template in range(subjects * (1 + probes))]  # of each the first is the gallery's
    medium = 0
    media_lines: list[str] = []
    face_lines: list[str] = []
    rows: dict[int, list[str]] = {}  # of the 1:N lists, by template
    with new_folder(out, overwrite) as folder:
        (folder / "loose_crop").mkdir()
        for template, subject in enumerate(whose, 1):
            for _ in range(random.integers(1, 4)):  # media: stills, and videos of up to 4 frames
                medium += 1
                for _ in range(random.choice([1, 1, 2, 4])):
                    image = f"{len(media_lines) + 1}.jpg"
                    crop, points = _loose_crop(face(SUBJECTS, subject, len(media_lines), size, seed), random)
                    (folder / "loose_crop" / image).write_bytes(encode_image(crop, ".jpg"))
                    numbers = " ".join(f"{value:.3f}" for value in points.ravel())
                    media_lines.append(f"{image} {template} {medium}")
                    face_lines.append(f"{image} {numbers} {random.uniform(0.5, 1):.3f}")
                    rows.setdefault(template, []).append(f"{template},{subject},img/{image}")
        files = {part: folder / path.relative_to(out) for part, (path, _) in layout(out, name).items()}
        _write_lines(files["media"], media_lines)
        _write_lines(files["faces"], face_lines)
        gallery, searched = range(1, subjects + 1), range(subjects + 1, len(whose) + 1)
        pairs = [f"{g} {p} {int(whose[g - 1] == whose[p - 1])}" for p in searched for g in gallery]
        _write_lines(files["pairs"], pairs)
        half = subjects // 2
        lists = {"probes": searched, GALLERIES[name][0]: gallery[:half], GALLERIES[name][1]: gallery[half:]}
        for part, members in lists.items():
            _write_lines(files[part], ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *(row for t in members for row in rows[t])])
    print(f"{len(media_lines)} images, {len(whose)} templates of {subjects} people, {len(pairs)} pairs")
    return out


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
    """A set in the layout of MegaFace and its devkit: aligned photos of people, and of strangers.

    Args:
        out: folder to write.
        people: who are searched for.
        photos: of each of them, at least 2.
        distractors: photos of strangers.
        noisy: of both kinds, photos that the lists of noisy faces name; fewer than `photos` and than `distractors`.
        size: width and height, pixels.
        seed: of everything.
        overwrite: replace `out`.
    """
    for what, value, least in (("people", people, 1), ("photos", photos, 2), ("distractors", distractors, 1)):
        if value < least:
            raise ValueError(f"{what}: expected at least {least}, got {value}")
    if not 0 <= noisy < min(photos, distractors) or size < 16:
        raise ValueError(f"expected 0 <= noisy < photos and distractors, and size >= 16, got {noisy} and {size}")
    names = [f"Person_{person}" for person in range(people) for _ in range(photos)]
    faces = [f"{name}/{name}_{number % photos}.png" for number, name in enumerate(names)]
    others = [f"{i // 100:03d}/{i // 10:07d}@N00/{i}_0.jpg" for i in range(distractors)]
    with new_folder(out, overwrite) as folder:
        for i, path in enumerate(tqdm.tqdm(faces, desc="facescrub", unit="images", disable=None)):
            image = face(SUBJECTS, i // photos, i % photos, size, seed)
            _write(folder / "facescrub_images" / path, encode_image(image))
        for i, path in enumerate(tqdm.tqdm(others, desc="megaface", unit="images", disable=None)):
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
    """The face somewhere in a larger image, (3, H, W) uint8, and (5, 2) landmarks in its pixels."""
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
