"""`identify`: who in a folder of photos looks most like the face in a photo?"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from common.backend import Backend
from common.commands.photos import FaceOptions, ModelOptions, check_aligned, open_verdicts, photo_reader, read_face
from common.datasets.image_files import image_files
from common.datasets.training_sets import people_of_folders
from common.evaluation.embedding import embed_all
from common.evaluation.model import cosines
from common.io.text import text_table


@dataclass(frozen=True)
class Options:
    """Search a folder of photos for the face in a photo, and print the people who look most like it."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx."""
    photo: tyro.conf.Positional[Path]
    """The photo of the person who is searched for."""
    gallery: Path
    """Folder of photos: one folder a person, or a photo a person. The folder or the file has the person's name; where
    `convert` numbered the folders, its labels.txt has the names."""
    top: int = 5
    """Number of people to print."""
    aligned: bool = False
    """All photos are aligned faces of the size of the network's input, and need no detector."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a photo of the gallery that does not decode or shows no face: stop, or name it and skip it."""
    batch_size: int = 64
    """Images at a time."""
    faces: tyro.conf.OmitArgPrefixes[FaceOptions] = field(default_factory=FaceOptions)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(backend: Backend, arguments: list[str]) -> int:
    """Identify the person in a photo and print the nearest people."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} identify", args=arguments)
    check_aligned(options.faces, options.aligned)
    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, got {options.top}")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {options.batch_size}")
    listed = image_files(options.gallery)
    verdicts = open_verdicts(options.source, backend, options.model)
    read = photo_reader(verdicts.source, options.faces, options.model.on_wrong_size)
    photo = read(options.photo)
    paths = [path for path in listed if not (options.gallery / path).samefile(options.photo)]
    probe = verdicts.model.embed(photo.face.transpose(1, 2, 0)[None], mirror=options.model.mirror)[0]

    print(f"{verdicts.header}\n\n{options.photo}: {photo.note}")
    places, views = embed_all(
        verdicts.source.network,
        [str(options.gallery / path) for path in paths],
        [partial(read_face, read, options.gallery / path) for path in paths],
        batch_size=options.batch_size,
        mirror=options.model.mirror,
        skip_bad=options.on_bad_image == "skip",
        progress="gallery",
    )
    if not places:
        raise ValueError(f"--gallery: expected faces of other people in {options.gallery}, found none")
    found = cosines(sum(views[1:], views[0]), probe)

    people = people_of_folders(options.gallery)
    nearest: dict[str, tuple[float, Path]] = {}  # of each person the photo that is most alike
    for place in np.argsort(-found, kind="stable"):
        path = paths[places[place]]
        person = people.get(path.parts[0], path.parts[0]) if len(path.parts) > 1 else path.stem
        nearest.setdefault(person, (float(found[place]), path))
    rows = [
        [name, f"{cosine:.4f}", f"{2 - 2 * cosine:.4f}", verdicts.of(cosine), str(path)]
        for name, (cosine, path) in list(nearest.items())[: options.top]
    ]
    print(f"{options.gallery}: {len(places)} photos of {len(nearest)} people, {len(paths) - len(places)} skipped\n")
    print(text_table(["person", "cosine", "squared distance", "verdict", "photo"], rows))
    print(f"\nthreshold: {verdicts.about}")
    return 0
