"""A pass over blocks of classes that computes every entry: part of the streamed form of SFace (`streamed.py`)."""

import jittor as jt
from jittor import Var, nn

from .sface import NORM_FLOOR, Reduction, Rescaling, SFaceResult, nearer_others, normalise, number, reduced, row_sums


class DensePass:
    """Sums and gradients, added up block by block by `run`. The arguments are those of `streamed`.

    Without `with_gradients` only the losses and metrics are computed.
    """

    def __init__(
        self,
        embeddings: Var,
        class_weight: Var,
        labels: Var,
        factors: Var,
        rescaling: Rescaling,
        *,
        with_gradients: bool = True,
    ) -> None:
        self.class_weight, self.labels, self.factors = (v.detach() for v in (class_weight, labels, factors))
        self.rescaling, self.with_gradients = rescaling, with_gradients
        self.unit_embeddings, self.embedding_norms = normalise(embeddings.detach())
        own_prototypes, _ = normalise(self.class_weight[self.labels])
        self.target_cosines = (self.unit_embeddings * own_prototypes).sum(1).clamp(-1, 1)
        self.r_intra = rescaling.pull(jt.arccos(self.target_cosines))
        self.inter_losses = jt.zeros((len(labels),), class_weight.dtype)  # each sample's
        self.cosine_sum = jt.zeros((1,), class_weight.dtype)
        self.nearer_others = jt.zeros((len(labels),), class_weight.dtype)  # 0: a sample's own prototype is nearest
        self.grad_unit_embeddings = jt.zeros_like(self.unit_embeddings)

    def run(self, block_size: int) -> None:
        num_classes = self.class_weight.shape[0]
        gradients, cosine_sums = [], jt.zeros_like(self.target_cosines)
        for first in range(0, num_classes, block_size):
            last = min(first + block_size, num_classes)
            unit_prototypes, norms = normalise(self.class_weight[first:last])
            cosines = nn.matmul_transpose(self.unit_embeddings, unit_prototypes).clamp(-1, 1)
            is_target = (self.labels.unsqueeze(1) == jt.arange(first, last)).cast(cosines.dtype)
            r_inter = self.rescaling.push(jt.arccos(cosines)) * (1 - is_target)

            if self.with_gradients:
                g = (r_inter - is_target * self.r_intra.unsqueeze(1)) * self.factors.unsqueeze(1)
                self.grad_unit_embeddings = self.grad_unit_embeddings + jt.matmul(g, unit_prototypes)
                grad_unit_prototypes = _transposed_product(g, self.unit_embeddings)
                gradients.append(through_normalisation(grad_unit_prototypes, unit_prototypes, norms))

            self.inter_losses = self.inter_losses + row_sums(r_inter * cosines)
            cosine_sums = cosine_sums + row_sums(cosines * (1 - is_target))
            self.nearer_others = self.nearer_others + nearer_others(cosines, self.target_cosines, is_target)
            # execution is lazy: without this, all blocks would be in memory at once
            jt.sync([self.inter_losses, cosine_sums, self.nearer_others, self.grad_unit_embeddings, *gradients[-1:]])
        self.cosine_sum = cosine_sums.sum()
        if self.with_gradients:
            self.grad_class_weight = jt.concat(gradients)

    def result(self, reduction: Reduction) -> SFaceResult:
        batch_size, num_classes = len(self.labels), self.class_weight.shape[0]
        intra_loss = reduced(-self.r_intra * self.target_cosines, self.factors, reduction)
        inter_loss = reduced(self.inter_losses, self.factors, reduction)
        return SFaceResult(
            loss=intra_loss + inter_loss,
            intra_loss=intra_loss,
            inter_loss=inter_loss,
            target_cosine=self.target_cosines.mean(),
            other_cosine=self.cosine_sum / number(batch_size * (num_classes - 1), self.cosine_sum),
            accuracy=(self.nearer_others == 0).cast(self.nearer_others.dtype).mean(),
            target_cosines=self.target_cosines,
        )

    def gradients(self) -> tuple[Var, Var]:
        """Those of embeddings and class_weight."""
        embeddings = self.unit_embeddings, self.embedding_norms
        return through_normalisation(self.grad_unit_embeddings, *embeddings), self.grad_class_weight


def through_normalisation(grad_unit: Var, unit: Var, norms: Var) -> Var:
    """Gradient for v from that for v / max(||v||, NORM_FLOOR); at the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdims=True) * (norms > number(NORM_FLOOR, norms))
    return (grad_unit - radial * unit) / norms


def _transposed_product(a: Var, b: Var) -> Var:
    """a' b, which Jittor recognises as a product of matrices; a transpose of its own would run on the host."""
    shape = [*a.shape, b.shape[1]]
    return (a.broadcast(shape, [2]) * b.broadcast(shape, [1])).sum(0)
