"""Embedding a long list of images in batches: a few threads read and decode one batch ahead of the network."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from common.datasets.images import BadImage
from common.io.progress import ProgressBar, say

Embed = Callable[[np.ndarray], np.ndarray]
"""(N, 3, S, S) uint8 RGB -> (N, D) float, raw embeddings."""


class Embedded(NamedTuple):
    """A batch of embeddings."""

    places: list[int]  # which of the images, counted from 0, in their order; n of them
    views: list[np.ndarray]  # the embeddings of the images, (n, D), and with `mirror` also those of their mirror images


def embed_images(
    embed: Embed,
    names: Sequence[str],
    images: Iterable[Callable[[], np.ndarray]],
    *,
    batch_size: int,
    mirror: bool = True,
    skip_bad: bool = False,
    progress: str | None = None,
) -> Iterator[Embedded]:
    """Embed images in batches, in their order.

    Args:
        embed: called with (n, 3, S, S) uint8 RGB, n <= batch_size; with `mirror` twice a batch: images, mirror images.
        names: what to call the images in errors.
        images: a function for each name, which returns the image, (3, S, S) uint8 RGB. The iterable is advanced in the
            calling thread; the functions are called by several threads.
        batch_size: images in a call of `embed`.
        mirror: embed the mirror images as well.
        skip_bad: name images that do not decode on stdout, and leave them out.
        progress: what `common.io.progress` calls it; None: show none.

    Raises:
        BadImage: an image does not decode, or has the wrong size; the first one is named.
        ValueError: a batch size below 1, or `embed` returned something other than finite (n, D) floats.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    waiting = iter(images)
    bar = ProgressBar(progress or "", "images", len(names), shown=progress is not None)
    with bar, ThreadPoolExecutor(min(4, os.cpu_count() or 1), "decode") as pool:

        def submit() -> list[Future[np.ndarray | BadImage]]:
            return [pool.submit(_image_or_problem, image) for image in islice(waiting, batch_size)]

        ahead = submit()
        try:
            for start in range(0, len(names), batch_size):
                current, ahead = ahead, submit()
                good = {}
                for place, future in enumerate(current, start):
                    image = future.result()
                    if not isinstance(image, BadImage):
                        good[place] = image
                    elif skip_bad:
                        say(f"skipped: {image}")
                    else:
                        raise image
                if good:
                    places, batch = list(good), np.stack(list(good.values()))
                    called = [names[place] for place in places]
                    views = [_embedded(embed, batch, called)]
                    if mirror:
                        views.append(_embedded(embed, np.ascontiguousarray(batch[..., ::-1]), called))
                    yield Embedded(places, views)
                bar.update(len(current))
        finally:
            for future in ahead:
                future.cancel()


def embed_all(
    embed: Embed, names: Sequence[str], images: Iterable[Callable[[], np.ndarray]], **options: Any
) -> Embedded:
    """All batches of `embed_images` as one; with `skip_bad`, it may have no places and no views."""
    batches = list(embed_images(embed, names, images, **options))
    views = [np.concatenate(parts) for parts in zip(*(batch.views for batch in batches), strict=True)]
    return Embedded([place for batch in batches for place in batch.places], views)


def _image_or_problem(image: Callable[[], np.ndarray]) -> np.ndarray | BadImage:
    try:
        return image()
    except BadImage as problem:
        return problem


def _embedded(embed: Embed, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    embeddings = np.asarray(embed(images))
    if embeddings.ndim != 2 or len(embeddings) != len(images) or not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(
            f"expected embeddings of shape ({len(images)}, D), float, got {embeddings.shape} {embeddings.dtype}"
        )
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{names[int(np.argmin(finite))]}: its embedding is not finite; "
            "the network has diverged, or its weights are damaged"
        )
    return embeddings
