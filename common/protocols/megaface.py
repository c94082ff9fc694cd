"""MegaFace's files: the devkit's lists and feature files, and the lists of noisy faces (docs/protocols.md)."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from common.io.files import is_inside, read_json, read_regular
from common.io.rows import cells, each_row

PROBE_LIST = "facescrub_features_list.json"
FEATURES_AT_ONCE = 8192
_HEADER = struct.Struct("<4i")  # of an OpenCV matrix: rows, columns, bytes of a row, type
_FLOAT = 5  # CV_32FC1
_LARGEST = 2**20  # dimensions
_MOST_LIST_BYTES = 2**28  # 268 for each path of the largest list, a million


@dataclass(frozen=True)
class ProbeList:
    """Photos of FaceScrub."""

    paths: tuple[str, ...]  # P paths relative to the folder of the photos, as in "Adam_Brody/Adam_Brody_277.png"
    subjects: tuple[str, ...]  # P ids, who is on each


def distractor_list(size: int, number: int = 1) -> str:
    """File name of the list of `size` distractors, set `number`."""
    return f"megaface_features_list.json_{size}_{number}"


def read_probe_list(path: Path) -> ProbeList:
    """Read `{"id": [...], "path": [...]}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such JSON, an empty list, lists of different length, a path twice, or one out of the folder.
    """
    record = read_json(path, '{"id": [...], "path": [...]}', _MOST_LIST_BYTES)
    paths, ids = _paths(path, record), record.get("id")
    if len(set(paths)) < len(paths):
        raise ValueError(f"{path}: expected different photos, got {len(paths) - len(set(paths))} of them twice")
    if not isinstance(ids, list) or len(ids) != len(paths) or not all(isinstance(i, str | int) for i in ids):
        count = len(ids) if isinstance(ids, list) else "none"
        raise ValueError(f'{path}: expected an "id", a string or a number, for each of {len(paths)} paths, got {count}')
    return ProbeList(paths, tuple(str(i) for i in ids))


def read_distractor_list(path: Path) -> tuple[str, ...]:
    """Read `{"path": [...]}`: paths as in "363/36395777@N00/2457198_0.jpg". Raises as `read_probe_list`."""
    return _paths(path, read_json(path, '{"path": [...]}', _MOST_LIST_BYTES))


def read_noisy(path: Path) -> frozenset[str]:
    """Read a list of noisy faces, facescrub_noises.txt or megaface_noises.txt of insightface.

    A line a face; lines that start with # are comments; where a line has several columns, separated by tabs,
    semicolons or commas, the second one names the face. FaceScrub's are file names without folder, MegaFace's paths of
    three parts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not text.
    """
    rows = each_row(path, "a list that names a noisy face a line")
    columns = [cells(line, "\t;,") for _, line in rows if not line.lstrip('"').startswith("#")]
    return frozenset(line[1] if len(line) > 1 else line[0] for line in columns)


def noisy_probes(probes: ProbeList, noisy: frozenset[str]) -> np.ndarray:
    """(P,) bool, which photos are on the list, by their file name."""
    return np.array([PurePosixPath(path).name in noisy for path in probes.paths], bool)


def noisy_distractors(paths: Sequence[str], noisy: frozenset[str]) -> np.ndarray:
    """(N,) bool, which distractors are on the list, by the last three parts of their path."""
    return np.array(["/".join(PurePosixPath(path).parts[-3:]) in noisy for path in paths], bool)


def centres_for_noisy(embeddings: np.ndarray, subjects: Sequence[str], noisy: np.ndarray, seed: int = 0) -> np.ndarray:
    """Embeddings of probes with each noisy one replaced by the centre of its person, as insightface does.

    Args:
        embeddings: (P, D) float, L2-normalised.
        subjects: P ids.
        noisy: (P,) bool.
        seed: of the noise.

    Returns:
        (P, D) float32: in noisy rows the sum of the person's other, clean embeddings, plus uniform noise from -0.001 to
        0.001, L2-normalised.

    Raises:
        ValueError: a person all of whose photos are noisy.

    Source: insightface's remove_noises.py. It makes a hard mate an easy one, so that figures rise; published figures
    with the "refined" lists are computed so.
    """
    replaced = np.array(embeddings, np.float32)
    random = np.random.default_rng(seed)
    people = np.asarray(subjects)
    for row in np.flatnonzero(noisy):
        clean = (people == people[row]) & ~noisy
        if not clean.any():
            raise ValueError(f"expected a clean photo of each person, got none of {str(people[row])!r}")
        centre = np.sum(embeddings[clean], axis=0) + random.uniform(-0.001, 0.001, embeddings.shape[1])
        replaced[row] = centre / np.linalg.norm(centre)
    return replaced


def read_feature(path: Path) -> np.ndarray:
    """Read a feature file of the devkit: an OpenCV matrix of N rows and 1 column.

    Returns:
        (N,) float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another shape or type, a size that does not fit the header, or values that are not finite.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; it should hold the feature of an image")
    size = path.stat().st_size
    if not _HEADER.size < size <= _HEADER.size + 4 * _LARGEST:
        raise ValueError(f"{path}: expected a header of 16 bytes and 1 to {_LARGEST} float32, got {size} bytes")
    content = read_regular(path)
    rows, columns, stride, kind = _HEADER.unpack_from(content)
    if (columns, stride, kind) != (1, 4, _FLOAT) or _HEADER.size + 4 * rows != len(content):
        raise ValueError(
            f"{path}: expected a header of N rows, 1 column, 4 bytes a row, type {_FLOAT} (float32), with N float32 "
            f"after it, got {rows}, {columns}, {stride}, {kind} with {len(content) - _HEADER.size} bytes after it"
        )
    feature = np.frombuffer(content, "<f4", offset=_HEADER.size)
    if not np.isfinite(feature).all():
        raise ValueError(f"{path}: expected finite numbers")
    return feature


def feature_blocks(root: Path, paths: Sequence[str], suffix: str) -> Iterator[np.ndarray]:
    """The features root/PATH + suffix, in blocks of (n, D) float32, L2-normalised.

    Raises:
        FileNotFoundError, ValueError: as `read_feature`, or a feature of another length than the first.
    """
    dimension = 0
    for start in range(0, len(paths), FEATURES_AT_ONCE):
        features = []
        for relative in paths[start : start + FEATURES_AT_ONCE]:
            path = root / f"{relative}{suffix}"
            feature = read_feature(path)
            dimension = dimension or len(feature)
            if len(feature) != dimension:
                raise ValueError(f"{path}: expected {dimension} numbers, as in the first feature, got {len(feature)}")
            features.append(feature)
        yield unit_rows(np.stack(features))


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """(N, D) float32, L2-normalised; zero rows stay zero."""
    embeddings = np.asarray(embeddings, np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    return (embeddings / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)


def _paths(path: Path, record: dict[str, Any]) -> tuple[str, ...]:
    paths = record.get("path")
    if not isinstance(paths, list) or not paths or not all(isinstance(p, str) and p for p in paths):
        raise ValueError(f'{path}: expected "path", a list of paths, not empty')
    for relative in paths:
        if not is_inside(relative):
            raise ValueError(f"{path}: expected paths inside the folder of images, got {relative!r}")
    return tuple(paths)
