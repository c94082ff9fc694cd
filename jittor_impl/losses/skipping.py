"""A pass that computes only the entries whose push matters, on the CPU: part of the streamed form of SFace.

Two operators in C++ (`skipping.cc`) go over a block, their loops shared by the threads. The first computes the cosines
and lists the active entries, those from `least_cosine` on. Jittor computes r_inter of these. The second adds them to
the gradients. A block with many active entries is multiplied densely there too.

Matrix products are oneDNN's; in float64, or without oneDNN, they are plain loops. A thread's share of the work is fixed
and no sum depends on the number of threads (except oneDNN's own in a dense block, perhaps).
"""

import functools
from pathlib import Path

import jittor as jt
from jittor import Var

from .dense import DensePass
from .sface import NORM_FLOOR, Rescaling

# Above this share of active entries a block is multiplied densely. An estimate from timings with one thread, N 256, D
# 512: an active entry of a list took 0.6 to 1.9 us, any entry of a dense block 0.09 us.
_DENSE_SHARE = 0.06


class SkippingPass(DensePass):
    """Sums and gradients without the entries below `least_cosine`, except in blocks with many others."""

    def __init__(
        self,
        embeddings: Var,
        class_weight: Var,
        labels: Var,
        factors: Var,
        rescaling: Rescaling,
        *,
        least_cosine: float,
        with_gradients: bool = True,
    ) -> None:
        super().__init__(embeddings, class_weight, labels, factors, rescaling, with_gradients=with_gradients)
        self.least_cosine = least_cosine

    def run(self, block_size: int) -> None:
        """The operators write to some of their inputs, in place; each has run before the next is noted down."""
        batch_size, num_classes = len(self.labels), self.class_weight.shape[0]
        dtype, block_size = self.class_weight.dtype, min(block_size, num_classes)
        header = _loops(bool(jt.compile_extern.use_mkl))
        x, turned = self.unit_embeddings, self.unit_embeddings.transpose().clone()
        class_weight, labels = self.class_weight, self.labels.int32()
        self.grad_class_weight = jt.empty(class_weight.shape if self.with_gradients else (1, 1), dtype)
        nearest_other = jt.full((batch_size,), -4, dtype)
        added_to = self.grad_class_weight, self.grad_unit_embeddings, self.inter_losses

        for first in range(0, num_classes, block_size):
            size = min(block_size, num_classes - first)
            data = {"first": first, "least": self.least_cosine, "dense_share": _DENSE_SHARE}
            data["with_gradients"] = int(self.with_gradients)
            cosines, samples, counts, norms = jt.code(
                [(-size * batch_size,), (size * batch_size,), (size,), (size,)],
                [dtype, "int32", "int32", dtype],
                [turned, class_weight, labels, self.cosine_sum, nearest_other, self.grad_class_weight],
                cpu_header=header,
                cpu_src="""
            const int64_t first = data["first"], d = in0_shape0, n = in0_shape1;
            out0->set_shape({screen(out2_shape0, first, n, d, data["least"], data["dense_share"], in0_p,
                in1_p + first * d, in2_p, out3_p, out0_p, out1_p, out2_p, in3_p, in4_p,
                data["with_gradients"] ? in5_p + first * d : nullptr)});
            """,
                data=data,
            )
            cosines.sync()  # only now its length is known; and what runs late would be in memory all at once
            # of an empty list Jittor would compile each of the operators apart, whenever a run first meets one
            r_inter = self.rescaling.push(jt.arccos(cosines.clamp(-1, 1))) if len(cosines) else cosines
            entries = norms, cosines, samples, counts, r_inter, self.target_cosines, self.r_intra, self.factors
            done = jt.code(
                (1,),
                "int32",
                [x, class_weight, labels, *entries, *added_to],
                cpu_header=header,
                cpu_src="""
            const int64_t first = data["first"], n = in0_shape0, d = in0_shape1, size = in3_shape0;
            auto grad = data["with_gradients"] ? in11_p + first * d : nullptr;
            push(in7_shape0 == size * n, size, n, d, in0_p, in1_p + first * d, in3_p, in4_p, in5_p, in6_p, in7_p,
                in10_p, grad, in12_p, in13_p);
            if (grad)
                pull(size, first, n, d, in0_p, in1_p + first * d, in2_p, in3_p, in8_p, in9_p, in10_p, grad, in12_p);
            """,
                data=data,
            )
            done.sync()
        self.cosine_sum = self.cosine_sum - self.target_cosines.sum()
        self.nearer_others = 1 - (nearest_other <= self.target_cosines).cast(dtype)


@functools.cache
def _loops(onednn: bool) -> str:
    loops = Path(__file__).with_suffix(".cc").read_text("utf-8")
    return f"#define ONEDNN {int(onednn)}\n#define NORM_FLOOR {NORM_FLOOR!r}\n{loops}"
