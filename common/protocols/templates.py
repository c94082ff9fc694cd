"""Templates: sets of images of one person, pooled to one embedding each, as IJB-B and IJB-C compare them.

images -> media (a still, or all frames of one video) -> template. The arithmetic, dtypes and order of sums are those of
insightface's evaluation (recognition/_evaluation_/ijb and recognition/arcface_torch/eval_ijbc.py), so that scores equal
its scores to the last bit; docs/protocols.md states them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.io.progress import tracked

Flip = Literal["sum", "concatenate", "none"]


@dataclass(frozen=True)
class Pooling:
    """How an image's embedding is prepared before it is pooled; the defaults are those of published figures.

    Attributes:
        flip: of the embeddings of the image and of its mirror image, the sum ("F2" in insightface's comments), both
            side by side ("F1"), or the image's alone.
        keep_norm: keep the length of the embedding, so that a blurred face counts less; False: L2-normalise it.
        detector_score: multiply by the score of the face detector, so that a doubtful face counts less.
    """

    flip: Flip = "sum"
    keep_norm: bool = True
    detector_score: bool = True


@dataclass(frozen=True, eq=False)
class Templates:
    """Pooled embeddings."""

    ids: np.ndarray  # (T,) int64, increasing
    embeddings: np.ndarray  # (T, D) float64, L2-normalised; exactly zero if the pooled embedding is

    @property
    def zeros(self) -> int:
        """How many embeddings are zero vectors: above 0, the network has collapsed."""
        return int((~self.embeddings.any(axis=1)).sum())


def template_rows(ids: np.ndarray, wanted: np.ndarray, source: str) -> np.ndarray:
    """Where the ids `wanted`, (n,) int, lie in `ids`, (T,) int, increasing: (n,) int32.

    Raises:
        ValueError: one is not there; `source` is the file that asks for it.
    """
    wanted = np.asarray(wanted)
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1).astype(np.int32)
    missing = wanted[ids[rows] != wanted]
    if missing.size:
        raise ValueError(
            f"{source}: expected templates that have images, got template {missing[0]}, which has none "
            f"({len(np.unique(missing))} such templates)"
        )
    return rows


def image_embeddings(
    embeddings: np.ndarray, mirrored: np.ndarray | None, detector_scores: np.ndarray, pooling: Pooling
) -> np.ndarray:
    """The embeddings that are pooled.

    Args:
        embeddings: (N, D) float, raw, of images.
        mirrored: (N, D) float, raw, of their mirror images; needed unless `pooling.flip` is "none".
        detector_scores: (N,) float; used if `pooling.detector_score`.
        pooling: the switches.

    Returns:
        (N, D), or (N, 2 D) for concatenated halves. A zero vector stays zero when lengths are not kept.
    """
    features = embeddings
    if pooling.flip != "none":
        if mirrored is None:
            raise ValueError("expected embeddings of the mirror images as well, got none; give them or --flip none")
        features = embeddings + mirrored if pooling.flip == "sum" else np.hstack([embeddings, mirrored])
    if not pooling.keep_norm:
        norms = np.sqrt(np.sum(features**2, -1, keepdims=True))
        features = features / np.where(norms > 0, norms, 1)
    if pooling.detector_score:
        features = features * detector_scores[:, np.newaxis].astype(features.dtype)
    return features


def pool_templates(
    embeddings: np.ndarray,
    mirrored: np.ndarray | None,
    template_ids: np.ndarray,
    media_ids: np.ndarray,
    detector_scores: np.ndarray,
    pooling: Pooling | None = None,
) -> Templates:
    """Pool images to templates: the mean over the images of a medium, the sum over media, L2-normalised.

    Args:
        embeddings: (N, D) float, raw, of images.
        mirrored: (N, D) float, raw, of their mirror images; None with `flip="none"`.
        template_ids: (N,) int, the template that each image belongs to.
        media_ids: (N,) int, its medium; ids are compared within a template only.
        detector_scores: (N,) float.
        pooling: the switches; None for the defaults.

    Raises:
        ValueError: no image, shapes that do not fit, or a value that is not finite (the image is named).

    Besides input and result, the memory of one template's images is used. Sums run over images in their order and over
    media in the order of their ids, in the dtype of `embeddings`; float32 results depend on this order.
    """
    from sklearn.preprocessing import normalize  # its import takes a second, which every command would wait

    pooling = pooling or Pooling()
    _check(embeddings, mirrored, template_ids, media_ids, detector_scores)
    order = np.lexsort((media_ids, template_ids))  # stable: images of a medium keep their order
    ids, starts = np.unique(template_ids[order], return_index=True)
    width = embeddings.shape[1] * (2 if pooling.flip == "concatenate" else 1)
    pooled = np.zeros((len(ids), width))
    ends = np.append(starts[1:], len(order))
    spans = tracked(zip(starts, ends, strict=True), "pooling", "templates", len(ids))
    for template, (start, end) in enumerate(spans):
        images = order[start:end]
        halves = None if mirrored is None else mirrored[images]
        features = image_embeddings(embeddings[images], halves, detector_scores[images], pooling)
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"image {images[np.argmin(finite)]} (from 0) of template {ids[template]}: its embedding is not finite; "
                "the network has diverged, or the file is damaged"
            )
        _, media = np.unique(media_ids[images], return_index=True)
        pooled[template] = np.sum([part.mean(axis=0) for part in np.split(features, media[1:])], axis=0)
    return Templates(ids.astype(np.int64), normalize(pooled, copy=False))


def _check(
    embeddings: np.ndarray,
    mirrored: np.ndarray | None,
    template_ids: np.ndarray,
    media_ids: np.ndarray,
    detector_scores: np.ndarray,
) -> None:
    if embeddings.ndim != 2 or not embeddings.size or not np.issubdtype(embeddings.dtype, np.floating):
        raise ValueError(f"expected embeddings of shape (N, D), float, got {embeddings.shape} {embeddings.dtype}")
    if mirrored is not None and (mirrored.shape, mirrored.dtype) != (embeddings.shape, embeddings.dtype):
        raise ValueError(
            f"expected mirrored embeddings as the others, {embeddings.shape} {embeddings.dtype}, "
            f"got {mirrored.shape} {mirrored.dtype}"
        )
    for name, values in (("template", template_ids), ("medium", media_ids), ("detector score", detector_scores)):
        if values.shape != (len(embeddings),):
            raise ValueError(f"expected a {name} for each of {len(embeddings)} images, got {values.shape}")
