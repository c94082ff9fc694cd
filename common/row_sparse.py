"""SGD for prototypes, few of which have a gradient: rows at rest stay as they are until somebody needs them (NumPy).

The rule of a row with momentum m, weight decay d and rate r is v = m v + (g + d w), w = w - r v. Without a gradient it
is linear, and K steps of it are one product with a 2x2 matrix, whatever the rates were:

    (v, w) <- A_K ... A_1 (v, w)    with  A = [[m, d], [-r m, 1 - r d]]

Until momentum has died down such a row still turns, and the next forward pass has to know where it points. After that v
is parallel to w and the row only changes its length, which no cosine sees: it rests. Then it is left alone, and its K
steps are made up for when it has a gradient again, or when the weights are read. The one thing that is not exact: a row
is said to rest when all the turning it has ahead is less than the machine epsilon, in radians.
"""

from collections.abc import Iterator

import numpy as np

_MOVES = -1
_LOOK_EVERY = 16  # steps between looks at which rows have come to rest, which cost as much as a step
_MOST_STEPS = 2**14  # without catching up: a step multiplies a matrix for each look
_CHUNK_BYTES = 2**20  # of one matrix: so much of all of them stays in a core's cache


class RowSparseSGD:
    """One SGD step after the other for a matrix of which few rows have a gradient.

    Args:
        num_rows: C.
        momentum: m, in [0, 1).
        weight_decay: d, at least 0.
    """

    def __init__(self, num_rows: int, *, momentum: float, weight_decay: float) -> None:
        self.momentum = momentum
        self.weight_decay = weight_decay
        self._rests_since = np.empty(num_rows, np.int64)  # index into the products; _MOVES
        self.forget()

    def forget(self) -> None:
        """Start anew, with weights and momentum that were set from outside."""
        self._rests_since.fill(_MOVES)
        self._products = np.empty((0, 2, 2))  # of the matrices of all steps since each look
        self._steps = 0
        self._largest_rate = 0.0

    @property
    def num_moving(self) -> int:
        """Rows that each step still updates."""
        return int((self._rests_since == _MOVES).sum())

    def step(self, weight: np.ndarray, buffer: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        """Update, in place, the rows that move.

        Args:
            weight: w, (C, D) float32 or float64; rows at rest have the direction that they should have, no more.
            buffer: v, like it.
            gradient: g, like it, of a loss that sees only the directions of rows.
            learning_rate: r of this step.
        """
        pushed = _nonzero_rows(gradient)
        woken = np.flatnonzero(pushed & (self._rests_since != _MOVES))
        growth = np.ones(len(weight), weight.dtype)
        growth[woken] = self._make_up(weight, buffer, woken)
        self._rests_since[woken] = _MOVES

        moving = np.flatnonzero(self._rests_since == _MOVES)
        for rows in _chunks(moving, weight):
            w, v = weight[rows], buffer[rows]
            v *= self.momentum
            v += self.weight_decay * w
            # a gradient through normalisation is inversely proportional to the length, which was not the stored one
            v += gradient[rows] / growth[rows, None]
            w -= learning_rate * v
            weight[rows], buffer[rows] = w, v

        self._steps += 1
        self._largest_rate = max(self._largest_rate, learning_rate)
        matrix = [
            [self.momentum, self.weight_decay],
            [-learning_rate * self.momentum, 1 - learning_rate * self.weight_decay],
        ]
        self._products = np.array(matrix) @ self._products
        if self._steps == _MOST_STEPS:
            self.catch_up(weight, buffer)
        elif self._steps % _LOOK_EVERY == 0:
            self._let_rest(weight, buffer, moving)

    def catch_up(self, weight: np.ndarray, buffer: np.ndarray) -> None:
        """Bring all rows to what the dense rule would have made of them, in place.

        From here on a run goes on as one that starts from these arrays does: no row is known to rest.
        """
        self._make_up(weight, buffer, np.flatnonzero(self._rests_since != _MOVES))
        self.forget()

    def _make_up(self, weight: np.ndarray, buffer: np.ndarray, resting: np.ndarray) -> np.ndarray:
        """The steps that rows missed; returns how many times as long each has become."""
        growth = np.ones(len(resting), weight.dtype)
        done = 0
        for rows in _chunks(resting, weight):
            w, v = weight[rows], buffer[rows]
            (vv, vw), (wv, ww) = self._products[self._rests_since[rows]].astype(weight.dtype).transpose(1, 2, 0)
            now = wv[:, None] * v + ww[:, None] * w
            weight[rows], buffer[rows] = now, vv[:, None] * v + vw[:, None] * w
            growth[done : done + len(rows)] = np.sqrt(_dots(now, now) / _dots(w, w))
            done += len(rows)
        return growth

    def _let_rest(self, weight: np.ndarray, buffer: np.ndarray, candidates: np.ndarray) -> None:
        self._products = np.concatenate([self._products, np.eye(2)[None]])
        reach = self._largest_rate * self.momentum / (1 - self.momentum)  # of v, over all steps to come
        for rows in _chunks(candidates, weight):
            w, v = weight[rows], buffer[rows]
            squares = _dots(w, w)
            with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros never rests
                v -= (_dots(v, w) / squares)[:, None] * w
            rests = reach * np.sqrt(_dots(v, v)) <= np.finfo(weight.dtype).eps * np.sqrt(squares)
            self._rests_since[rows[rests & (squares > 0)]] = len(self._products) - 1


def _chunks(rows: np.ndarray, like: np.ndarray) -> Iterator[np.ndarray]:
    size = max(1, _CHUNK_BYTES // like[0].nbytes)
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _nonzero_rows(matrix: np.ndarray) -> np.ndarray:
    """(C,) bool, by the bits: four times as fast as comparing; NaN counts, and so does -0."""
    return np.bitwise_or.reduce(matrix.view(f"i{matrix.itemsize}"), axis=1) != 0


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)
