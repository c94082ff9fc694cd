"""Cosines by products of 8-bit integers, with a proved bound on their error: part of `skipping.py`.

A unit vector is rounded to integers q, x^ = step q + d_x, and so is w^. Products of integers are exact, so the error of
a cosine is at most |d_x| + |d_w| + |d_x| |d_w|. |d_x| is computed for each embedding. For the many prototypes the bound
|d_w| <= step sqrt(D) / 2 is used.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST = 127  # integer
_DIMENSIONS = range(2, 2**17)  # torch._int_mm is wrong for one; with more, a sum of products might not fit in 32 bits
_CHUNK = 16  # neighbouring prototypes; a search looks at the largest value of a chunk first


class Screened(NamedTuple):
    """A block of prototypes: cos[i, j] is within errors[i] of steps[i] products[j, i]."""

    products: Tensor  # (B, N) int32; the next block overwrites them
    steps: Tensor  # (N,) float32
    errors: Tensor  # (N,) float32
    prototype_sum: Tensor  # (D,) float32, sum of the unit prototypes, which are not rounded for it


class Screen:
    """Rounded cosines of unit_embeddings, float32 (N, D), with blocks of prototypes."""

    def __init__(self, unit_embeddings: Tensor) -> None:
        dimensions = unit_embeddings.shape[1]
        largest = unit_embeddings.abs().amax(1, keepdim=True).clamp_min(dimensions**-0.5)  # unless it is a zero vector
        self._steps = largest / _LARGEST
        integers = (unit_embeddings / self._steps).round_()
        self._errors = torch.linalg.vector_norm(unit_embeddings - integers * self._steps, dim=1)
        self._integers = integers.to(torch.int8)
        self._step = 2 / (_LARGEST * math.sqrt(dimensions))  # one for all prototypes; it grows as needed
        self._sum_error = dimensions * 2**-23  # twice that of a float32 product of unit vectors
        self._rooms: dict[torch.dtype, Tensor] = {}

    def cosines(self, weight: Tensor, inverse_norms: Tensor) -> Screened | None:
        """Cosines with the rows of weight (B, D), given 1 / norms (B,); None if there is a NaN."""
        scaled = self._scaled(weight, inverse_norms)
        if scaled is None:
            return None
        parts = scaled.view(math.gcd(_CHUNK, len(scaled)), -1, scaled.shape[1])  # so that threads do not share a row
        prototype_sum = parts.sum(1).sum(0) * self._step
        integers = self._room(torch.int8, *weight.shape).copy_(scaled.round_())
        error = self._step * math.sqrt(weight.shape[1]) / 2
        # prototypes are on the left, where each thread has its own; the other way round it took 1.6 times as long on
        # processors without a common cache
        products = self._room(torch.int32, len(weight), len(self._integers))
        return Screened(
            products=torch._int_mm(integers, self._integers.T, out=products),
            steps=self._steps[:, 0] * self._step,
            errors=self._errors * (1 + error) + (error + self._sum_error),
            prototype_sum=prototype_sum,
        )

    def _scaled(self, weight: Tensor, inverse_norms: Tensor) -> Tensor | None:
        scaled = self._room(torch.float32, *weight.shape)
        torch.mul(weight, (inverse_norms / self._step)[:, None], out=scaled)
        lowest, highest = torch.aminmax(scaled)
        largest = max(-lowest.item(), highest.item())
        if math.isnan(largest):
            return None
        if largest > _LARGEST:
            self._step *= 1.1 * largest / _LARGEST
            return self._scaled(weight, inverse_norms)
        return scaled

    def _room(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """The same memory for every block, so that it stays in the cache."""
        size = math.prod(shape)
        if dtype not in self._rooms or len(self._rooms[dtype]) < size:
            self._rooms[dtype] = torch.empty(size, dtype=dtype, device=self._integers.device)
        return self._rooms[dtype][:size].view(shape)


def can_screen(embeddings: Tensor) -> bool:
    """Whether screening is possible, and faster than float32 products on this processor."""
    found = torch.cpu.get_capabilities()
    is_fast = bool(found.get("avx512_vnni") or found.get("avx_vnni") or found.get("amx_int8"))
    return is_fast and embeddings.dtype == torch.float32 and embeddings.shape[1] in _DIMENSIONS


def in_chunks(products: Tensor) -> tuple[Tensor, Tensor]:
    """Products (B, N) as chunks of neighbouring rows (B / k, k, N), and the largest of each chunk (B / k, N)."""
    chunks = products.view(-1, math.gcd(_CHUNK, len(products)), products.shape[1])
    return chunks, chunks.amax(1)


def not_below(chunks: Tensor, largest: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Columns, rising, and rows of the entries that reach `least` (N,) of their column; looks into few chunks."""
    columns, groups = (least[:, None] <= largest.T).nonzero().unbind(1)
    found, places = (chunks[groups, :, columns] >= least[columns, None]).nonzero().unbind(1)
    return columns.index_select(0, found), groups.index_select(0, found) * chunks.shape[1] + places


def dots_at(rows: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left[rows[e]] . right[columns[e]] for entries e in the order of their rows; copies neither matrix."""
    starts = torch.searchsorted(rows, torch.arange(len(left) + 1, device=rows.device))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")  # once a process
        entries = torch.sparse_csr_tensor(
            starts, columns, left.new_zeros(len(rows)), (len(left), len(right)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(entries, left, right.T, beta=0.0).values()
