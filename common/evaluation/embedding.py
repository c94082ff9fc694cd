"""Embedding a long list of images, batch by batch: images are read by a few threads, one batch ahead of the network."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from common.evaluation.evaluate import Embed


def embed_in_batches(
    embed: Embed, load: Callable[[int], np.ndarray], names: Sequence[str], *, batch_size: int, mirror: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Embeddings of images 0 .. len(names) - 1, in their order.

    Args:
        embed: called with (n, 3, S, S) uint8 RGB, n <= batch_size.
        load: reads image i, (3, S, S) uint8 RGB; called by several threads.
        names: what to call the images in errors.
        batch_size: images in a call of `embed`.
        mirror: embed the mirror images as well.

    Yields:
        (n, D) float32, raw, and the same of the mirror images or None.

    Raises:
        ValueError: a batch size below 1, or `embed` returned something other than finite (n, D) floats.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "read") as pool:

        def submit(start: int) -> list[Future[np.ndarray]]:
            return [pool.submit(load, i) for i in range(start, min(start + batch_size, len(names)))]

        ahead = submit(0)
        try:
            for start in range(0, len(names), batch_size):
                current, ahead = ahead, submit(start + batch_size)
                images = np.stack([future.result() for future in current])
                batch = names[start : start + batch_size]
                raw = _embedded(embed, images, batch)
                mirrored = _embedded(embed, np.ascontiguousarray(images[..., ::-1]), batch) if mirror else None
                yield raw, mirrored
        finally:
            for future in ahead:
                future.cancel()


def _embedded(embed: Embed, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    embeddings = np.asarray(embed(images))
    if embeddings.ndim != 2 or len(embeddings) != len(images) or not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(f"expected embeddings ({len(images)}, D), float, got {embeddings.shape} {embeddings.dtype}")
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{names[int(np.argmin(finite))]}: its embedding is not finite; "
            "the network has diverged, or its weights are damaged"
        )
    return embeddings.astype(np.float32, copy=False)
