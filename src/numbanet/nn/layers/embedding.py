"""Embedding: a vector of parameters for every index, such as a word or a letter.

    y[t] = E[x[t]]        x (steps) · E (vocabulary, size) · y (steps, size)
    dE[v] = Σ dy[t] over all t with x[t] = v

Indices arrive as numbers, as all inputs do. The gradient is taken by rows of E.

Source   Bengio et al. 2003
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from numbanet.backend.intrinsics import const_like, div_u32, num_threads, thread_rank
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Count, shown
from numbanet.io.sparse import SparseRows
from numbanet.nn.initializers import INITIALIZER
from numbanet.nn.layers.base import Layer, Shape
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.columns import N_IN, N_OUT, SAMPLES, Attrs, W, X, Y, context
from numbanet.plan.op import Op

TABLE = Attrs("vocabulary size")
PIECE = 4096
"""Samples whose indices are checked at once."""
MAX_VOCABULARY = 1 << 24
"""Up to here float32 holds every integer."""


@dataclass(frozen=True, eq=False)
class Embedding(Layer):
    """A trained vector of `size` elements for each of the indices 0 … vocabulary − 1.

    initializer   of the table (vocabulary, size), by default N(0, 1)
    penalty       L1(…), L2(…) or a list of them
    Input (steps,) of integers, output (steps, size). It must be the first layer. Training,
    prediction and evaluation raise ValueError for an index outside; compiled() takes the nearest
    one inside.
    """

    vocabulary: Annotated[int, Count(1, MAX_VOCABULARY)]
    size: Annotated[int, Count()]
    initializer: Annotated[Any, INITIALIZER] = "normal"
    penalty: Annotated[Any, PENALTY] = None

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"Embedding expects indices (steps,), got an input of shape {shape}")
        return (*shape, self.size)

    def check_inputs(self, x, name: str) -> None:
        if isinstance(x, SparseRows):
            raise TypeError(f"{name} is sparse, and Embedding reads indices; pass {name}.toarray()")
        for start in range(0, len(x), PIECE):
            piece = x[start : start + PIECE]
            inside = (piece >= 0) & (piece < self.vocabulary) & (piece == np.floor(piece))
            if not inside.all():
                first = np.argwhere(~inside)[0]
                place = [start + int(first[0]), *map(int, first[1:])]
                raise ValueError(
                    f"{name} has {shown(piece[tuple(first)].item())} at {place}; Embedding takes "
                    f"integers from 0 to {self.vocabulary - 1}: number the words from 0, or give "
                    "it a larger vocabulary"
                )

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weights": (self.vocabulary, self.size)}

    def initializers(self, next_activation) -> dict:
        return {"weights": self.initializer}

    def ops(self, shape: Shape) -> list[Op]:
        return [
            Op(
                "Embedding",
                shape[0],
                shape[0] * self.size,
                forward,
                gradient=gradient,
                linear=True,
                tangent=tangent,
                param_rows=self.vocabulary,
                param_cols=self.size,
                n_weights=self.vocabulary * self.size,
                weight_reuse=0,  # nothing is multiplied
                attrs=TABLE.pack(vocabulary=self.vocabulary, size=self.size),
                not_differentiable="Embedding reads indices, so nothing before it can be trained; "
                "put it first",
            )
        ]


@inline
def _row(op, value):
    """The row of E for an input, the nearest one if there is none; 0 for NaN."""
    first, last = const_like(value, 0), const_like(value, op[TABLE.vocabulary] - 1)
    inside = value if value > first else first
    return int(inside if inside < last else last)


@kernel(independent=True)
def forward(op, params, grads, acts, deltas, lo, hi):
    """y[t] = E[x[t]]        acts[y] overwritten"""
    steps, size = op[N_IN], op[TABLE.size]
    for t in range(lo * steps, hi * steps):
        e, y = op[W] + _row(op, acts[op[X] + t]) * size, op[Y] + t * size
        for j in range(size):
            acts[y + j] = params[e + j]


@kernel
def gradient(op, params, grads, acts, deltas, lo, hi):
    """dE[v] = Σ dy[t] with x[t] = v, over the whole batch, for rows lo ≤ v < hi"""
    steps, size = op[N_IN], op[TABLE.size]
    for k in range(op[W] + lo * size, op[W] + hi * size):
        grads[k] = const_like(grads, 0)
    for t in range(context(op, SAMPLES) * steps):
        row = _row(op, acts[op[X] + t])
        if lo <= row < hi:
            e, y = op[W] + row * size, op[Y] + t * size
            for j in range(size):
                grads[e + j] += deltas[y + j]


@gradient.cuda
def gradient(op, params, grads, acts, deltas, lo, hi):
    steps, size = op[N_IN], op[TABLE.size]
    for k in range(lo * size + thread_rank(), hi * size, num_threads()):
        row, total = div_u32(k, size), const_like(grads, 0)
        for t in range(context(op, SAMPLES) * steps):
            if _row(op, acts[op[X] + t]) == row:
                total += deltas[op[Y] + t * size + k - row * size]
        grads[op[W] + k] = total


@kernel(independent=True)
def tangent(op, params, grads, acts, deltas, lo, hi):
    """ẏ = 0: an index does not change        deltas[y] overwritten"""
    for i in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]):
        deltas[i] = const_like(deltas, 0)
