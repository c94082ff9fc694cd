"""`embed`: the embeddings of a folder of images."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from common.backend import Backend
from common.config import OnWrongSize
from common.datasets.images import decode_image
from common.datasets.training_sets import image_files
from common.evaluation.embedding import embed_images
from common.evaluation.source import open_source
from common.io.files import atomic_write


@dataclass(frozen=True)
class Options:
    """Write the embeddings of all images in a folder and its subfolders, in the order of their names."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx."""
    folder: tyro.conf.Positional[Path]
    """Folder of images, aligned like the images that the network was trained on."""
    out: Path
    """The .npz file to write: names (N,), embeddings (N, D) float32, raw, and with --mirror mirrored (N, D)."""
    mirror: bool = False
    """Also embed the mirror images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 64
    """Images at a time."""
    on_wrong_size: OnWrongSize | None = None
    """What to do with an image whose size is not that of the network's input. Default: as in the run, or fail."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with an image that does not decode: stop, or name it and skip it."""


def run(backend: Backend, arguments: list[str]) -> int:
    """Embed a folder of images and write the .npz file."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} embed", args=arguments)
    if options.out.suffix.lower() != ".npz":
        raise ValueError(f"--out: expected a file NAME.npz, got {options.out}")
    if options.out.exists():
        raise FileExistsError(f"{options.out}: is there already; delete it, or choose another name")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {options.batch_size}")
    paths = image_files(options.folder)
    source = open_source(options.source, backend, options.device)
    if source.embed is None:
        raise ValueError(f"{options.source}: expected a network, got embeddings")

    on_wrong_size = options.on_wrong_size or source.on_wrong_size

    def load(path: Path) -> np.ndarray:
        return decode_image(path.read_bytes(), str(path), source.image_size, on_wrong_size)

    names = [path.as_posix() for path in paths]
    batches = embed_images(
        source.embed,
        names,
        (partial(load, options.folder / path) for path in paths),
        batch_size=options.batch_size,
        mirror=options.mirror,
        skip_bad=options.on_bad_image == "skip",
        progress="embed",
    )
    kept: list[int] = []
    views: list[list[np.ndarray]] = []
    for batch in batches:
        kept += batch.places
        views.append(batch.views)
    if not kept:
        raise ValueError(f"{options.folder}: none of its {len(paths)} images decodes")
    arrays = {"embeddings": np.concatenate([view[0] for view in views])}
    if options.mirror:
        arrays["mirrored"] = np.concatenate([view[1] for view in views])
    with atomic_write(options.out) as file:
        np.savez(file, names=np.array([names[place] for place in kept]), **arrays)
    print(
        f"{source.description}\n{len(kept)} images, {len(paths) - len(kept)} skipped, "
        f"{arrays['embeddings'].shape[1]} numbers each: {options.out}"
    )
    return 0
