"""`ijb`: figures on IJB-B or IJB-C."""

from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from common.backend import Backend
from common.datasets.alignment import align
from common.datasets.images import decode_photo
from common.evaluation.embedding import embed_images
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput
from common.evaluation.source import Source, open_source
from common.io.files import check_files, read_regular, write_json
from common.protocols import ijb
from common.protocols.identification import compare, pair_scores
from common.protocols.results import IjbEvaluation, ijb_record, ijb_text
from common.protocols.templates import Flip, Pooling, pool_templates, template_rows


@dataclass(frozen=True)
class Options:
    """Evaluate on IJB-B or IJB-C: 1:1, and 1:N with both galleries."""

    source: tyro.conf.Positional[Path]
    """A run folder, a checkpoint, an .onnx file, or an .npz file (`embeddings` and `mirrored`, a row an image)."""
    root: Path
    """Folder of the set: meta and loose_crop."""
    name: Literal["ijbb", "ijbc"] = "ijbc"
    flip: Flip = "sum"
    """How the embeddings of an image and of its mirror image are combined."""
    keep_norm: bool = True
    """Keep the length of each image's embedding; otherwise it is L2-normalised before images are pooled."""
    detector_score: bool = True
    """Multiply each image's embedding by the detector score of its face."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images embedded at a time."""
    out: Path | None = None
    """Also write the figures to this folder, as NAME.json."""
    onnx: tyro.conf.OmitArgPrefixes[OnnxInput] = AS_IT_IS


def run(backend: Backend, arguments: list[str]) -> int:
    """Evaluate on IJB-B or IJB-C and print the figures; status 1 if a file of the set is missing."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} ijb", args=arguments)
    root, name = options.root, options.name
    missing = ijb.missing_files(root, name)
    has_lists = not missing.keys() & {"probes", *ijb.GALLERIES[name]}
    if "pairs" in missing and not has_lists:
        raise FileNotFoundError("\n".join(missing.values()))

    # Every list is checked before the images are embedded, which takes hours.
    faces = ijb.read_faces(root, name)
    ids = np.unique(faces.template_ids)
    files = ijb.layout(root, name)
    pairs = None if "pairs" in missing else ijb.read_pairs(root, name)
    lists = ijb.read_search_lists(root, name) if has_lists else None
    for part, members in (lists or {}).items():
        template_rows(ids, members.templates, files[part][0].name)
    if pairs is not None:
        first, second = (template_rows(ids, side, files["pairs"][0].name) for side in pairs[:2])

    source = open_source(options.source, backend, options.device, options.onnx)
    embeddings, mirrored = _face_embeddings(source, options, faces)
    pooling = Pooling(options.flip if mirrored is not None else "none", options.keep_norm, options.detector_score)
    templates = pool_templates(
        embeddings, mirrored, faces.template_ids, faces.media_ids, faces.detector_scores, pooling
    )
    del embeddings, mirrored
    evaluation = IjbEvaluation(
        name=name,
        source=source.lines,
        pooling=Pooling(options.flip, options.keep_norm, options.detector_score),
        images=len(faces.names),
        templates=len(ids),
        zero_templates=templates.zeros,
        comparison=None if pairs is None else compare(pair_scores(templates.embeddings, first, second), pairs.issame),
        searches=None if lists is None else ijb.search_galleries(templates, lists),
    )
    print(ijb_text(evaluation))
    if options.out is not None:
        write_json(options.out / f"{name}.json", ijb_record(evaluation))
        print(f"\nfigures  {options.out / name}.json")
    for expected in missing.values():
        print(f"missing: {expected}")
    return 1 if missing else 0


def _face_embeddings(source: Source, options: Options, faces: ijb.Faces) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings of images and of mirror images; None for the latter if not needed, or combined with the former."""
    count, mirror = len(faces.names), options.flip != "none"
    if source.embed is None:
        embeddings = source.rows("embeddings", count)
        return embeddings, source.rows("mirrored", count, "--flip none") if mirror else None

    crops = options.root / "loose_crop"
    check_files([crops / name for name in faces.names], "the loose crops")

    def load(name: str, landmarks: np.ndarray) -> np.ndarray:
        return align(decode_photo(read_regular(crops / name), name), landmarks, source.image_size)

    images = (partial(load, *face) for face in zip(faces.names, faces.landmarks, strict=True))
    batches = embed_images(
        source.embed, faces.names, images, batch_size=options.batch_size, mirror=mirror, progress=options.name
    )
    embeddings = np.empty((0, 0), np.float32)
    for places, views in batches:
        # Both views become one array at once, so that one matrix is held, not two.
        rows = np.hstack(views) if options.flip == "concatenate" else reduce(np.add, views)
        if not embeddings.size:
            embeddings = np.empty((count, rows.shape[1]), np.float32)
        embeddings[places] = rows
    return embeddings, None
