"""`embed`: the embeddings of a photo, or of a folder of images."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from common.backend import Backend
from common.commands.photos import FaceOptions, photo_reader, read_face
from common.config import OnWrongSize
from common.datasets.image_files import image_files
from common.evaluation.embedding import embed_all
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput
from common.evaluation.source import open_source
from common.io.files import atomic_write


@dataclass(frozen=True)
class Options:
    """Write the embeddings of a photo, or of all images in a folder and its subfolders in the order of their names."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx."""
    images: tyro.conf.Positional[Path]
    """A photo, or a folder of images; without --detector aligned like those that the network was trained on."""
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
    """What to do with an image that does not decode or shows no face: stop, or name it and skip it."""
    faces: tyro.conf.OmitArgPrefixes[FaceOptions] = field(default_factory=FaceOptions)
    onnx: tyro.conf.OmitArgPrefixes[OnnxInput] = AS_IT_IS


def run(backend: Backend, arguments: list[str]) -> int:
    """Embed images and write the .npz file."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} embed", args=arguments)
    if options.out.suffix.lower() != ".npz":
        raise ValueError(f"--out: expected a file NAME.npz, got {options.out}")
    if options.out.exists():
        raise FileExistsError(f"{options.out}: is there already; delete it, or choose another name")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {options.batch_size}")
    if not options.images.exists():
        raise FileNotFoundError(f"{options.images}: expected a photo or a folder of images, found none")
    root = options.images if options.images.is_dir() else options.images.parent
    paths = image_files(root) if options.images.is_dir() else [Path(options.images.name)]
    source = open_source(options.source, backend, options.device, options.onnx)
    embed = source.network
    read = photo_reader(source, options.faces, options.on_wrong_size)
    names = [path.as_posix() for path in paths]
    places, views = embed_all(
        embed,
        names,
        [partial(read_face, read, root / path) for path in paths],
        batch_size=options.batch_size,
        mirror=options.mirror,
        skip_bad=options.on_bad_image == "skip",
        progress="embed",
    )
    if not places:
        raise ValueError(f"{options.images}: none of its {len(paths)} images decodes and shows a face")
    arrays = {"embeddings": views[0]}
    if options.mirror:
        arrays["mirrored"] = views[1]
    with atomic_write(options.out) as file:
        np.savez(file, names=np.array([names[place] for place in places]), **arrays)
    print(
        f"{source.lines}\n{len(places)} images, {len(paths) - len(places)} skipped, "
        f"{arrays['embeddings'].shape[1]} numbers each: {options.out}"
    )
    return 0
