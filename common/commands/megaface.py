"""`megaface`: identification among MegaFace's distractors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from common.backend import Backend
from common.datasets.images import decode_image
from common.evaluation.embedding import embed_images
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput
from common.evaluation.source import open_source
from common.evaluation.verification import flip_sum_normalise
from common.io.files import check_files, read_regular, write_json
from common.protocols import megaface as files
from common.protocols.distractors import search_among_distractors
from common.protocols.results import MegafaceEvaluation, megaface_record, megaface_text

ROWS_AT_ONCE = 8192

Part = Literal["facescrub", "megaface"]
Blocks = Callable[[Part, Sequence[str], np.ndarray], Iterator[np.ndarray]]
"""Which photos, the paths on their list, (n,) places in it -> blocks of (n, D) float32, L2-normalised."""


@dataclass(frozen=True)
class Options:
    """Identify FaceScrub's photos among MegaFace's distractors."""

    source: tyro.conf.Positional[Path]
    """A run folder, a checkpoint, an .onnx file, a folder of the devkit's feature files (facescrub and megaface), or an
    .npz file (`facescrub` and `megaface`, also `facescrub_mirrored` and `megaface_mirrored`, a row an image)."""
    root: Path
    """Folder with facescrub_images and megaface_images, aligned, facescrub_noises.txt and megaface_noises.txt."""
    lists: Path | None = None
    """Folder of the devkit's lists. Default: ROOT/devkit/templatelists."""
    size: int = 1_000_000
    """Number of distractors on the list to take."""
    number: int = 1
    """Which list of that size."""
    noisy: Literal["remove", "centre", "keep"] = "remove"
    """Noisy faces: remove them, replace noisy probes by their person's centre as insightface does, or keep them."""
    suffix: str = ".bin"
    """What follows an image's path in the name of its feature file, as in _r100.bin."""
    flip: bool = True
    """Add the embedding of the mirror image."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images embedded at a time."""
    out: Path | None = None
    """Also write the figures to this folder, as megaface-SIZE-NUMBER.json."""
    onnx: tyro.conf.OmitArgPrefixes[OnnxInput] = AS_IT_IS


def run(backend: Backend, arguments: list[str]) -> int:
    """Evaluate on MegaFace and print the figures; a file that is missing is an error."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} megaface", args=arguments)
    lists = options.lists or options.root / "devkit" / "templatelists"
    probes = files.read_probe_list(lists / files.PROBE_LIST)
    distractors = files.read_distractor_list(lists / files.distractor_list(options.size, options.number))
    noisy_probes, noisy_distractors = _noisy(options, probes, distractors)
    kept = np.flatnonzero(~noisy_probes) if options.noisy == "remove" else np.arange(len(probes.paths))
    strangers = np.flatnonzero(~noisy_distractors)
    if not kept.size or not strangers.size:
        raise ValueError(f"expected clean probes and distractors, got {kept.size} and {strangers.size}; see --noisy")

    description, blocks = _megaface_source(backend, options)
    embeddings = np.concatenate(list(blocks("facescrub", probes.paths, kept)))
    if options.noisy == "centre":
        embeddings = files.centres_for_noisy(embeddings, probes.subjects, noisy_probes)
    found = search_among_distractors(
        embeddings, np.array(probes.subjects)[kept], blocks("megaface", distractors, strangers), len(strangers)
    )

    evaluation = MegafaceEvaluation(
        size=options.size,
        number=options.number,
        source=description,
        flip=None if _is_feature_folder(options.source) else options.flip,
        noisy=options.noisy,
        noisy_probes=int(noisy_probes.sum()),
        noisy_distractors=int(noisy_distractors.sum()),
        found=found,
    )
    print(megaface_text(evaluation))
    if options.out is not None:
        path = options.out / f"megaface-{options.size}-{options.number}.json"
        write_json(path, megaface_record(evaluation))
        print(f"\nfigures  {path}")
    return 0


def _noisy(options: Options, probes: files.ProbeList, distractors: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    if options.noisy == "keep":
        return np.zeros(len(probes.paths), bool), np.zeros(len(distractors), bool)
    faces = files.read_noisy(options.root / "facescrub_noises.txt")
    others = files.read_noisy(options.root / "megaface_noises.txt")
    return files.noisy_probes(probes, faces), files.noisy_distractors(distractors, others)


def _megaface_source(backend: Backend, options: Options) -> tuple[str, Blocks]:
    folder = options.source
    if _is_feature_folder(folder):

        def stored(part: Part, paths: Sequence[str], places: np.ndarray) -> Iterator[np.ndarray]:
            listed = [paths[i] for i in places]
            check_files([folder / part / f"{path}{options.suffix}" for path in listed], "the feature files")
            return files.feature_blocks(folder / part, listed, options.suffix)

        return f"feature files of {folder}", stored

    source = open_source(folder, backend, options.device, options.onnx)
    embed = source.embed
    if embed is None:

        def given(part: Part, paths: Sequence[str], places: np.ndarray) -> Iterator[np.ndarray]:
            raw = source.rows(part, len(paths))
            mirrored = source.rows(f"{part}_mirrored", len(paths), "--no-flip") if options.flip else raw
            for start in range(0, len(places), ROWS_AT_ONCE):
                rows = places[start : start + ROWS_AT_ONCE]
                yield flip_sum_normalise(raw[rows], mirrored[rows])

        return source.lines, given

    def embedded(part: Part, paths: Sequence[str], places: np.ndarray) -> Iterator[np.ndarray]:
        images = options.root / f"{part}_images"
        listed = [paths[i] for i in places]
        check_files([images / path for path in listed], "the images")

        def load(path: str) -> np.ndarray:
            return decode_image(read_regular(images / path), path, source.image_size)

        loads = (partial(load, path) for path in listed)
        for _, views in embed_images(embed, listed, loads, batch_size=options.batch_size, mirror=options.flip):
            yield flip_sum_normalise(views[0], views[-1])

    return source.lines, embedded


def _is_feature_folder(path: Path) -> bool:
    return all((path / part).is_dir() for part in ("facescrub", "megaface"))
