"""`compare`: do photos show one person?"""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from common.backend import PREFIX, Backend
from common.commands.photos import (
    SAME,
    FaceOptions,
    ModelOptions,
    Photo,
    Verdicts,
    check_aligned,
    open_verdicts,
    photo_reader,
)
from common.datasets.images import encode_image
from common.evaluation.model import cosines
from common.io.text import text_table
from common.reports.page import Block, Cards, Gallery, Heading, Paragraph, Picture, Table, html_page, write_text


@dataclass(frozen=True)
class Options:
    """Compare the faces in photos: cosine, squared distance, and whether they are of one person."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx."""
    photos: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PHOTO PHOTO [PHOTO ...]")]
    """Two photos or more, of any size."""
    aligned: bool = False
    """The photos are aligned faces of the size of the network's input, and need no detector."""
    html: Path | None = None
    """Also write a page with the aligned faces to this file, NAME.html."""
    faces: tyro.conf.OmitArgPrefixes[FaceOptions] = field(default_factory=FaceOptions)
    model: tyro.conf.OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)


def run(backend: Backend, arguments: list[str]) -> int:
    """Compare photos and print what was found."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} compare", args=arguments)
    _check(options)
    verdicts = open_verdicts(options.source, backend, options.model)
    read = photo_reader(verdicts.source, options.faces, options.model.on_wrong_size)
    photos = [read(path) for path in options.photos]
    images = np.stack([photo.face.transpose(1, 2, 0) for photo in photos])
    embeddings = verdicts.model.embed(images, mirror=options.model.mirror)
    found = cosines(embeddings, embeddings)

    names = [str(path) for path in options.photos]
    notes = "\n".join(f"{name}: {photo.note}" for name, photo in zip(names, photos, strict=True))
    print(f"{verdicts.header}\n\n{notes}\n")
    if len(names) == 2:
        for name, value in _pair(found[0, 1], verdicts).items():
            print(f"{name:<18}{value}")
        print(f"{'threshold':<18}{verdicts.about}")
    else:
        print(f"{text_table(*_matrix(names, found, verdicts))}\n\n{_legend(verdicts)}")
    if options.html is not None:
        write_text(options.html, html_page("compared photos", _page(names, photos, found, verdicts)))
        print(f"\n{options.html}")
    return 0


def _check(options: Options) -> None:
    """Raise a ValueError for options that do not fit, before the network is opened."""
    folders = [path for path in options.photos if path.is_dir()]
    if folders:
        raise ValueError(
            f"{folders[0]}: expected a photo, got a folder; `identify` searches a folder of photos, and "
            f"python -m {PREFIX}common compare compares runs"
        )
    if len(options.photos) < 2:
        raise ValueError(f"expected two photos or more after SOURCE, got {len(options.photos)}")
    check_aligned(options.faces, options.aligned)
    if options.html is not None and options.html.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--html: expected a file NAME.html, got {options.html}")


def _pair(cosine: float, verdicts: Verdicts) -> dict[str, str]:
    return {
        "cosine": f"{cosine:.4f}",
        "squared distance": f"{2 - 2 * cosine:.4f}",
        "verdict": verdicts.of(cosine),
    }


def _matrix(names: list[str], found: np.ndarray, verdicts: Verdicts) -> tuple[list[str], list[list[str]]]:
    """Cosines; a star marks one person."""
    rows = []
    for place, name in enumerate(names):
        cells = [f"{value:.4f}{'*' if verdicts.of(value) == SAME else ' '}" for value in found[place]]
        cells[place] = ""
        rows.append([f"{place + 1} {name}", *cells])
    return ["cosine", *(f"{place + 1} " for place in range(len(names)))], rows


def _legend(verdicts: Verdicts) -> str:
    return f"threshold: {verdicts.about}" + ("" if verdicts.threshold is None else f"\n*: {SAME}")


def _page(names: list[str], photos: list[Photo], found: np.ndarray, verdicts: Verdicts) -> list[Block]:
    pictures = [
        Picture(f"face-{place}", f"{place}: {Path(name).name}, {photo.note}", encode_image(photo.face, ".jpg"))
        for place, (name, photo) in enumerate(zip(names, photos, strict=True), 1)
    ]
    blocks: list[Block] = [Heading(1, "Compared photos"), Gallery(pictures)]
    if len(names) == 2:
        blocks += [Cards(_pair(found[0, 1], verdicts)), Paragraph(f"threshold: {verdicts.about}")]
    else:
        pairs = combinations(range(len(names)), 2)
        nearest = sorted(pairs, key=lambda pair: -found[pair])
        rows = [[f"{a + 1} and {b + 1}", *_pair(found[a, b], verdicts).values()] for a, b in nearest]
        blocks += [
            Heading(2, "All pairs, nearest first"),
            Table(["photos", "cosine", "squared distance", "verdict"], rows),
            Heading(2, "Cosines"),
            Table(*_matrix(names, found, verdicts)),
            Paragraph(_legend(verdicts)),
        ]
    return [*blocks, *map(Paragraph, verdicts.header.splitlines())]
