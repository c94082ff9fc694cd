"""Split a set of faces: most people to train on, and pairs of the others, whom training never sees, to test on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.datasets.images import decode_photo
from common.datasets.training_sets import open_dataset, write_people, write_records
from common.io.files import file_stem, write_json
from common.io.progress import tracked
from data.faces import all_and_sampled_pairs, write_pairs
from data.output import check_at_least, new_folder

FEWEST_PAIRS = 20  # ten folds with a pair of each kind


def make_split(
    source: Path,
    out: Path,
    people: int = 10,
    pairs: int = 900,
    seed: int = 0,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw people of a set to test on; the others become a training set, and pairs of the drawn ones NAME.bin.

    Labels count the people who are trained on. split.json lists the labels that the others had in `source`.

    Args:
        source: folder of the set: record file, image list or image folders, as it is found.
        out: folder to write.
        people: number of people to test on, drawn from those with two images or more.
        pairs: number of pairs, half of them of one person; fewer if these people have fewer.
        seed: seed of the draws.
        name: of the evaluation set; none: the name of `out`.
        overwrite: replace `out`.
    """
    check_at_least(("--people", people, 2), ("--pairs", pairs, FEWEST_PAIRS), ("--seed", seed, 0))
    name = file_stem(out.name if name is None else name)
    dataset = open_dataset(source)
    images: dict[str, list[str]] = {}
    for index in tracked(range(len(dataset)), "read labels", "images"):
        images.setdefault(str(dataset.sample(index).label), []).append(str(index))
    images = {label: images[label] for label in sorted(images, key=int)}
    several = [label for label, places in images.items() if len(places) > 1]
    possible = max(0, min(len(several), len(images) - 2))
    if people > possible:
        raise ValueError(
            f"--people: expected at most {possible}, got {people}; {source} has {len(several)} people with two "
            f"images or more, and two of its {len(images)} people must remain to train on"
        )
    drawn = np.random.default_rng([seed, people]).choice(len(several), people, replace=False)
    unseen = [several[place] for place in sorted(drawn)]
    first = dataset.sample(int(images[unseen[0]][0]))
    size = decode_photo(first.encoded, first.name).shape[0]
    for place in (place for label in unseen for place in images[label]):
        sample = dataset.sample(int(place))
        decode_photo(sample.encoded, sample.name)  # a damaged image of a pair would stop each evaluation

    def read(place: str) -> bytes:
        return dataset.sample(int(place)).encoded

    with new_folder(out, overwrite) as folder:
        write_split(folder, name, images, unseen, read, size=size, seed=seed, most=pairs)
        record = {"source": str(source), "seed": seed, "set": name, "unseen": [int(label) for label in unseen]}
        if dataset.people:
            write_people(folder, [dataset.people[int(label)] for label in images if label not in unseen])
            record["unseen_people"] = [dataset.people[int(label)] for label in unseen]
        write_json(folder / "split.json", record)
    return out


def write_split(
    folder: Path,
    name: str,
    people: Mapping[str, list[str]],
    unseen: Sequence[str],
    read: Callable[[str], bytes],
    *,
    size: int,
    seed: int = 0,
    most: int | None = None,
) -> None:
    """Write a record file of all people but the unseen ones, and folder/NAME.bin with pairs of these.

    Args:
        folder: to write to.
        name: of the evaluation set.
        people: names of the images of each person.
        unseen: the people to test on.
        read: returns the encoded image of a name.
        size: width and height of the images in pixels.
        seed: seed of the pairs.
        most: number of pairs, at most; none: all of one person, and as many of two.

    Raises:
        ValueError: the unseen people have too few pairs.
    """
    trained = [images for person, images in people.items() if person not in unseen]
    pairs = all_and_sampled_pairs({person: people[person] for person in unseen}, seed, most)
    if len(pairs) < FEWEST_PAIRS:
        raise ValueError(f"expected people with {FEWEST_PAIRS} pairs to test on, found {len(pairs)}; take more people")
    labelled = ((read(image), label) for label, images in enumerate(trained) for image in images)
    count = write_records(folder, labelled, len(trained), size)
    write_pairs(folder / f"{name}.bin", pairs, read)
    fewer = f" (not {most}: there are no more)" if most and len(pairs) < most - 1 else ""
    print(f"{count} images of {len(trained)} people to train, {len(pairs)} pairs{fewer} of {len(unseen)} others")
