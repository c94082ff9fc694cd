"""Evaluating an embedding on a set of image pairs."""

import hashlib
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from common.config import OnWrongSize
from common.datasets.images import decode_image
from common.datasets.pair_sets import PairSet
from common.evaluation.embedding import Embed, embed_images
from common.evaluation.verification import (
    VerificationResult,
    flip_sum_normalise,
    pair_distances,
    verify,
    verify_distances,
)

_PROTOCOL = (
    "L2-normalised; squared L2 distance, same if below the threshold; contiguous folds, per fold the first of the "
    "thresholds 0, 0.01 .. 3.99 that is best on the others"
)
PROTOCOL = f"embedding of the image + embedding of its mirror image, {_PROTOCOL}"
PROTOCOL_AS_GIVEN = f"embeddings as given, {_PROTOCOL}"

RAW_PIXELS = "raw_pixels"  # name of the baseline among the methods that were evaluated


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One embedding on one pair set."""

    name: str  # of the pair set
    result: VerificationResult  # the figures of the protocol
    xnorm: float  # mean L2 norm of the raw embeddings, of images and mirror images alike
    plain_threshold: float | None = None  # as result.threshold, without mirror images; None: not measured


def evaluate(
    embed: Embed,
    pair_set: PairSet,
    *,
    image_size: int,
    batch_size: int = 64,
    on_wrong_size: OnWrongSize = "fail",
    folds: int = 10,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
) -> Evaluation:
    """Verification figures of `embed` on a pair set.

    Args:
        embed: called with (n, 3, image_size, image_size) uint8 RGB, n <= batch_size, twice a batch: images, mirrored.
        pair_set: images 2i and 2i+1 are pair i.
        image_size: width and height, in pixels.
        batch_size: images in a call of `embed`.
        on_wrong_size: as for `decode_image`.
        folds: number of contiguous folds.
        fars: false accept rates to read the true accept rate at.

    Raises:
        BadImage: an image does not decode or has the wrong size; named.
        ValueError: fewer pairs than folds, or `embed` returned something other than finite (n, D) floats.

    Images are read here and decoded by a few threads, one batch ahead. An image of several pairs is embedded once, and
    its embedding is kept until its last pair has become a distance.
    """
    pairs = len(pair_set)
    issame = np.asarray(pair_set.issame)
    if issame.shape != (pairs,):
        raise ValueError(f"{pair_set.name}: expected issame of shape ({pairs},), got {issame.shape}")
    if pairs < folds:
        raise ValueError(f"{pair_set.name}: expected at least one pair a fold, got {pairs} pairs for {folds} folds")
    image_of, uses = _distinct_images(pair_set)
    distinct = list(uses)  # in the order of their first pair
    names, images = _decoded(pair_set, distinct, image_size, on_wrong_size)
    waiting: dict[int, np.ndarray] = {}  # (2, D): with the mirror image, and without
    distances, plain_distances = np.empty(pairs), np.empty(pairs)
    norms, zeros, done = 0.0, 0, 0
    for places, (raw, mirrored) in embed_images(embed, names, images, batch_size=batch_size, progress=pair_set.name):
        batch = [distinct[place] for place in places]
        norms += float((_norms(raw) + _norms(mirrored)) @ [uses[image] for image in batch])
        both = np.stack([flip_sum_normalise(raw, mirrored), flip_sum_normalise(raw, raw)], axis=1)
        waiting |= zip(batch, both, strict=True)
        while ready := _ready_pairs(image_of[2 * done : 2 * (done + batch_size)], waiting):
            ends = image_of[2 * done : 2 * (done + ready)]
            ready_rows = np.stack([waiting[image] for image in ends], axis=1)
            distances[done : done + ready], zero_rows = pair_distances(ready_rows[0])
            plain_distances[done : done + ready], _ = pair_distances(ready_rows[1])
            zeros += zero_rows
            for image in ends:
                uses[image] -= 1
                if not uses[image]:
                    del waiting[image]
            done += ready
    result = verify_distances(distances, issame, folds=folds, fars=fars, zero_embeddings=zeros)
    plain = verify_distances(plain_distances, issame, folds=folds, fars=()).threshold
    return Evaluation(pair_set.name, result, norms / (4 * pairs), plain)


def check_images(pair_set: PairSet, *, image_size: int, on_wrong_size: OnWrongSize = "fail") -> None:
    """Decode every image of a set, as `evaluate` will.

    Raises:
        BadImage: an image does not decode or has the wrong size; named.
    """
    names, images = _decoded(pair_set, range(2 * len(pair_set)), image_size, on_wrong_size)
    what = f"{pair_set.name}, to see that all decode"
    for _ in embed_images(_nothing, names, images, batch_size=64, mirror=False, progress=what):
        pass


def _nothing(images: np.ndarray) -> np.ndarray:
    return np.zeros((len(images), 1), np.float32)


def _decoded(
    pair_set: PairSet, chosen: Sequence[int], image_size: int, on_wrong_size: OnWrongSize
) -> tuple[list[str], Iterator[Callable[[], np.ndarray]]]:
    """What to call the chosen images, and what decodes each."""
    names = [f"{pair_set.name} image {image}" for image in chosen]
    images = (  # read by the thread that asks for the next one: a pair set need not be thread-safe
        partial(decode_image, pair_set.encoded(image), name, image_size, on_wrong_size)
        for image, name in zip(chosen, names, strict=True)
    )
    return names, images


def evaluate_embeddings(
    name: str, embeddings: np.ndarray, mirrored: np.ndarray | None, issame: np.ndarray
) -> Evaluation:
    """Verification figures of embeddings that were made elsewhere.

    Args:
        name: of the pair set.
        embeddings: (2P, D) float, in any scale; rows 2i and 2i+1 are pair i.
        mirrored: (2P, D) float, of the mirrored images, to be added; None: `embeddings` are taken as they are.
        issame: (P,) bool.

    Raises:
        ValueError: a wrong shape, dtype or count, fewer pairs than folds, or a row that is not finite; named.
    """
    views = [embeddings] if mirrored is None else [embeddings, mirrored]
    result = verify(flip_sum_normalise(views[0], views[-1]), issame)  # twice the same has the direction of once
    plain = None if mirrored is None else verify(flip_sum_normalise(embeddings, embeddings), issame, fars=()).threshold
    return Evaluation(name, result, float(np.mean([_norms(view) for view in views])), plain)


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The baseline that any network must beat: pixels as the embedding, each image's own mean subtracted.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        (N, 3 * H * W) float32.

    Unit vectors of plain pixels all point almost the same way, which leaves most of the thresholds unused; hence the
    mean. It gives 64.5 % on the 6,000 pairs of LFW (plain pixels: 64.2 %) and 84 % on ten people of ORL (plain: 86 %).
    Dividing by the image's contrast as well changes nothing: its mirror image has the same, and unit length follows.
    """
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels


def _distinct_images(pairs: PairSet) -> tuple[list[int], dict[int, int]]:
    """For each image the first one with the same bytes, and how often each of these is used."""
    firsts: dict[bytes, int] = {}
    image_of = []
    for i in range(2 * len(pairs)):
        digest = hashlib.blake2b(bytes(pairs.encoded(i)), digest_size=32).digest()
        image_of.append(firsts.setdefault(digest, i))
    return image_of, dict(Counter(image_of))


def _ready_pairs(images: Sequence[int], embedded: Container[int]) -> int:
    """How many pairs from the first on have both their images embedded."""
    missing = (i // 2 for i, image in enumerate(images) if image not in embedded)
    return next(missing, len(images) // 2)


def _norms(embeddings: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
