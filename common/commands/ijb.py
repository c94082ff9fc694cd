"""What `ijb` and `megaface` do, for any backend."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from common.datasets.alignment import align
from common.datasets.images import decode_image, decode_photo
from common.evaluation.embedding import embed_in_batches
from common.evaluation.source import Source, open_source
from common.evaluation.verification import flip_sum_normalise
from common.io.files import write_json
from common.protocols import ijb as ijb_files
from common.protocols import megaface as megaface_files
from common.protocols.distractors import search_among_distractors
from common.protocols.identification import compare, pair_scores
from common.protocols.results import (
    IjbEvaluation,
    MegafaceEvaluation,
    ijb_record,
    ijb_text,
    megaface_record,
    megaface_text,
)
from common.protocols.templates import Flip, Pooling, pool_templates, template_rows

if TYPE_CHECKING:
    from common.backend import Backend

IMAGE_SIZE = 112  # pixels, where the source does not say
ROWS_AT_ONCE = 8192

Part = Literal["facescrub", "megaface"]
Blocks = Callable[[Part, Sequence[str], np.ndarray], Iterator[np.ndarray]]
"""Which photos, the paths on their list, (n,) places in it -> blocks of (n, D) float32, L2-normalised."""


@dataclass(frozen=True)
class IjbOptions:
    """Evaluate on IJB-B or IJB-C: 1:1, and 1:N with both galleries."""

    source: tyro.conf.Positional[Path]
    """A run folder, a checkpoint, an .onnx file, or an .npz file (`embeddings` and `mirrored`, a row an image)."""
    root: Path
    """Folder of the set: meta and loose_crop."""
    name: Literal["ijbb", "ijbc"] = "ijbc"
    flip: Flip = "sum"
    """What is made of the embeddings of an image and of its mirror image."""
    keep_norm: bool = True
    """Keep the length of an image's embedding; without, it is L2-normalised before images are pooled."""
    detector_score: bool = True
    """Multiply an image's embedding by the score of its face."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images embedded at a time."""
    out: Path | None = None
    """Also write the figures to this folder, as NAME.json."""


def ijb(backend: "Backend", arguments: list[str]) -> bool:
    """Evaluate on IJB-B or IJB-C and print the figures; whether every file of the set was there."""
    options = tyro.cli(IjbOptions, prog=f"python -m {backend.package} ijb", args=arguments)
    root, name = options.root, options.name
    missing = ijb_files.missing_files(root, name)
    has_lists = not missing.keys() & {"probes", *ijb_files.GALLERIES[name]}
    if "pairs" in missing and not has_lists:
        raise FileNotFoundError("\n".join(missing.values()))

    # Every list is checked before the images are embedded, which takes hours.
    faces = ijb_files.read_faces(root, name)
    ids = np.unique(faces.template_ids)
    files = ijb_files.layout(root, name)
    pairs = None if "pairs" in missing else ijb_files.read_pairs(root, name)
    lists = ijb_files.read_search_lists(root, name) if has_lists else None
    for part, members in (lists or {}).items():
        template_rows(ids, members.templates, files[part][0].name)
    if pairs is not None:
        first, second = (template_rows(ids, side, files["pairs"][0].name) for side in pairs[:2])

    source = open_source(options.source, backend, options.device)
    embeddings, mirrored = _face_embeddings(source, options, faces)
    pooling = Pooling(options.flip if mirrored is not None else "none", options.keep_norm, options.detector_score)
    templates = pool_templates(
        embeddings, mirrored, faces.template_ids, faces.media_ids, faces.detector_scores, pooling
    )
    del embeddings, mirrored
    evaluation = IjbEvaluation(
        name=name,
        source=source.description,
        pooling=Pooling(options.flip, options.keep_norm, options.detector_score),
        images=len(faces.names),
        templates=len(ids),
        zero_templates=templates.zeros,
        comparison=None if pairs is None else compare(pair_scores(templates.embeddings, first, second), pairs.issame),
        searches=None if lists is None else ijb_files.search_galleries(templates, lists),
    )
    print(ijb_text(evaluation))
    if options.out is not None:
        _save(options.out / f"{name}.json", ijb_record(evaluation))
    for expected in missing.values():
        print(f"missing: {expected}")
    return not missing


@dataclass(frozen=True)
class MegafaceOptions:
    """Identify FaceScrub's photos among MegaFace's distractors."""

    source: tyro.conf.Positional[Path]
    """A run folder, a checkpoint, an .onnx file, a folder of the devkit's feature files (facescrub and megaface), or an
    .npz file (`facescrub` and `megaface`, also `facescrub_mirrored` and `megaface_mirrored`, a row an image)."""
    root: Path
    """Folder with facescrub_images and megaface_images, aligned, facescrub_noises.txt and megaface_noises.txt."""
    lists: Path | None = None
    """Folder of the devkit's lists; none: ROOT/devkit/templatelists."""
    size: int = 1_000_000
    """Number of distractors on the list to take."""
    number: int = 1
    """Which list of that size."""
    noisy: Literal["remove", "centre", "keep"] = "remove"
    """Noisy faces: left out, or a noisy probe replaced by the centre of its person as insightface does, or kept."""
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


def megaface(backend: "Backend", arguments: list[str]) -> None:
    """Evaluate on MegaFace and print the figures; a file that is missing is an error."""
    options = tyro.cli(MegafaceOptions, prog=f"python -m {backend.package} megaface", args=arguments)
    lists = options.lists or options.root / "devkit" / "templatelists"
    probes = megaface_files.read_probe_list(lists / megaface_files.PROBE_LIST)
    distractors = megaface_files.read_distractor_list(
        lists / megaface_files.distractor_list(options.size, options.number)
    )
    noisy_probes, noisy_distractors = _noisy(options, probes, distractors)
    kept = np.flatnonzero(~noisy_probes) if options.noisy == "remove" else np.arange(len(probes.paths))
    strangers = np.flatnonzero(~noisy_distractors)
    if not kept.size or not strangers.size:
        raise ValueError(f"expected clean probes and distractors, got {kept.size} and {strangers.size}; see --noisy")

    description, blocks = _megaface_source(backend, options)
    embeddings = np.concatenate(list(blocks("facescrub", probes.paths, kept)))
    if options.noisy == "centre":
        embeddings = megaface_files.centres_for_noisy(embeddings, probes.subjects, noisy_probes)
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
        _save(options.out / f"megaface-{options.size}-{options.number}.json", megaface_record(evaluation))


def _face_embeddings(
    source: Source, options: IjbOptions, faces: ijb_files.Faces
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings of images and of mirror images; None where the latter are not needed or are in the former already."""
    count, mirror = len(faces.names), options.flip != "none"
    if source.embed is None:
        embeddings = _rows(source.arrays, "embeddings", count)
        return embeddings, _rows(source.arrays, "mirrored", count) if mirror else None

    crops = options.root / "loose_crop"
    _check_files([crops / name for name in faces.names], "the loose crops")
    size = source.image_size or IMAGE_SIZE

    def load(i: int) -> np.ndarray:
        name = faces.names[i]
        return align(decode_photo((crops / name).read_bytes(), name), faces.landmarks[i], size)

    batches = embed_in_batches(source.embed, load, faces.names, batch_size=options.batch_size, mirror=mirror)
    embeddings, done = np.empty((0, 0), np.float32), 0
    with tqdm(total=count, desc=options.name, unit="images", leave=False, disable=None) as bar:
        for raw, mirrored in batches:
            if mirrored is not None:  # at once, so that one matrix is held, not two
                raw = raw + mirrored if options.flip == "sum" else np.hstack([raw, mirrored])
            if not done:
                embeddings = np.empty((count, raw.shape[1]), np.float32)
            embeddings[done : done + len(raw)] = raw
            done += len(raw)
            bar.update(len(raw))
    return embeddings, None


def _noisy(
    options: MegafaceOptions, probes: megaface_files.ProbeList, distractors: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    if options.noisy == "keep":
        return np.zeros(len(probes.paths), bool), np.zeros(len(distractors), bool)
    faces = megaface_files.read_noisy(options.root / "facescrub_noises.txt")
    others = megaface_files.read_noisy(options.root / "megaface_noises.txt")
    return megaface_files.noisy_probes(probes, faces), megaface_files.noisy_distractors(distractors, others)


def _megaface_source(backend: "Backend", options: MegafaceOptions) -> tuple[str, Blocks]:
    folder = options.source
    if _is_feature_folder(folder):

        def stored(part: Part, paths: Sequence[str], places: np.ndarray) -> Iterator[np.ndarray]:
            listed = [paths[i] for i in places]
            _check_files([folder / part / f"{path}{options.suffix}" for path in listed], "the feature files")
            return megaface_files.feature_blocks(folder / part, listed, options.suffix)

        return f"feature files of {folder}", stored

    source = open_source(folder, backend, options.device)
    embed = source.embed
    if embed is None:

        def given(part: Part, paths: Sequence[str], places: np.ndarray) -> Iterator[np.ndarray]:
            raw = _rows(source.arrays, part, len(paths))
            mirrored = _rows(source.arrays, f"{part}_mirrored", len(paths)) if options.flip else raw
            for start in range(0, len(places), ROWS_AT_ONCE):
                rows = places[start : start + ROWS_AT_ONCE]
                yield flip_sum_normalise(raw[rows], mirrored[rows])

        return source.description, given

    def embedded(part: Part, paths: Sequence[str], places: np.ndarray) -> Iterator[np.ndarray]:
        images = options.root / f"{part}_images"
        listed = [paths[i] for i in places]
        _check_files([images / path for path in listed], "the images")
        size = source.image_size or IMAGE_SIZE

        def load(i: int) -> np.ndarray:
            return decode_image((images / listed[i]).read_bytes(), listed[i], size)

        batches = embed_in_batches(embed, load, listed, batch_size=options.batch_size, mirror=options.flip)
        for raw, mirrored in batches:
            yield flip_sum_normalise(raw, raw if mirrored is None else mirrored)

    return source.description, embedded


def _is_feature_folder(path: Path) -> bool:
    return all((path / part).is_dir() for part in ("facescrub", "megaface"))


def _rows(arrays: Any, name: str, count: int) -> np.ndarray:
    if name not in arrays:
        hint = (
            "; without embeddings of mirror images, say so with --flip none or --no-flip" if "mirrored" in name else ""
        )
        raise ValueError(f"expected an array {name!r} in the .npz file, got {', '.join(arrays) or 'none'}{hint}")
    array = arrays[name]
    if array.ndim != 2 or len(array) != count or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"expected {name!r} of shape ({count}, D), float, got {array.shape} {array.dtype}")
    return array


def _check_files(paths: Sequence[Path], what: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: is missing, as are {len(missing) - 1} others of {what} on the list")


def _save(path: Path, record: dict[str, Any]) -> None:
    write_json(path, record)
    print(f"\nfigures  {path}")
