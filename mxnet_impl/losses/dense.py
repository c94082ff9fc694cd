"""A pass over blocks of classes that computes every entry: part of the streamed form of SFace (`streamed.py`)."""

from mxnet import nd
from mxnet.ndarray import NDArray

from .sface import NORM_FLOOR, Reduction, Rescaling, SFaceResult, normalise, reduced


class DensePass:
    """Sums and gradients, added up block by block by `run`; the host does not wait. Arguments as of `streamed`.

    Without `with_gradients` only the losses and metrics are computed.
    """

    def __init__(
        self,
        embeddings: NDArray,
        class_weight: NDArray,
        labels: NDArray,
        factors: NDArray,
        rescaling: Rescaling,
        *,
        with_gradients: bool = True,
    ) -> None:
        self.class_weight, self.labels, self.factors, self.rescaling = class_weight, labels, factors, rescaling
        self.with_gradients = with_gradients
        self.unit_embeddings, self.embedding_norms = normalise(embeddings)
        own_prototypes, _ = normalise(nd.take(class_weight, labels))
        self.target_cosines = nd.sum(self.unit_embeddings * own_prototypes, axis=1).clip(-1, 1)
        self.r_intra = rescaling.pull(nd.arccos(self.target_cosines))
        self.inter_losses = nd.zeros_like(self.target_cosines)  # each sample's
        self.cosine_sum = nd.zeros(1, embeddings.context, embeddings.dtype)
        self.nearest_other = nd.ones_like(self.target_cosines) * -2
        if with_gradients:
            self.grad_unit_embeddings = nd.zeros_like(embeddings)
            self.grad_class_weight = nd.empty(class_weight.shape, class_weight.context, class_weight.dtype)

    def run(self, block_size: int) -> None:
        num_classes = len(self.class_weight)
        for first in range(0, num_classes, block_size):
            last = min(first + block_size, num_classes)
            unit_prototypes, norms = normalise(self.class_weight[first:last])
            cosines = nd.dot(self.unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
            is_target = nd.one_hot(self.labels - first, last - first, dtype=cosines.dtype)
            r_inter = self.rescaling.push(nd.arccos(cosines)) * (1 - is_target)

            self.inter_losses = self.inter_losses + nd.sum(r_inter * cosines, axis=1)
            if self.with_gradients:
                g = (r_inter - is_target * self.r_intra.expand_dims(1)) * self.factors.expand_dims(1)
                self.grad_unit_embeddings += nd.dot(g, unit_prototypes)
                self.grad_class_weight[first:last] = through_normalisation(
                    nd.dot(g, self.unit_embeddings, transpose_a=True), unit_prototypes, norms
                )

            self.cosine_sum = self.cosine_sum + nd.sum(cosines * (1 - is_target))
            highest = nd.max(cosines - 4 * is_target, axis=1)  # no cosine is below -1
            self.nearest_other = nd.maximum(self.nearest_other, highest)

    def result(self, reduction: Reduction) -> SFaceResult:
        batch_size, num_classes = len(self.labels), len(self.class_weight)
        intra_loss = reduced(-self.r_intra * self.target_cosines, self.factors, reduction)
        inter_loss = reduced(self.inter_losses, self.factors, reduction)
        return SFaceResult(
            loss=intra_loss + inter_loss,
            intra_loss=intra_loss,
            inter_loss=inter_loss,
            target_cosine=nd.mean(self.target_cosines),
            other_cosine=self.cosine_sum / (batch_size * (num_classes - 1)),
            accuracy=nd.mean(self.target_cosines >= self.nearest_other),
            target_cosines=self.target_cosines,
        )

    def gradients(self) -> tuple[NDArray, NDArray]:
        """Those of embeddings and class_weight."""
        embeddings = self.unit_embeddings, self.embedding_norms
        return through_normalisation(self.grad_unit_embeddings, *embeddings), self.grad_class_weight


def through_normalisation(grad_unit: NDArray, unit: NDArray, norms: NDArray) -> NDArray:
    """Gradient for v from that for v / max(||v||, NORM_FLOOR); at the floor that is a plain division."""
    radial = (grad_unit * unit).sum(axis=1, keepdims=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms
