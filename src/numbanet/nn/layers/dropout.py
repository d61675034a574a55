"""Dropout: in training every number is left out with probability `rate`; the others are scaled up to make good for it.

    y = m ∘ x / (1 − rate)        m = 0 with probability rate, else 1;  dx = m ∘ dy / (1 − rate)

The mask is a function of seed, epoch, sample and place (random.py), so a run does not depend on threads and can be repeated.
In prediction the layer does nothing.

Source   Srivastava et al. 2014; Nielsen, Neural Networks and Deep Learning, chapter 3
"""

from dataclasses import dataclass
from typing import Annotated

from numbanet.backend.intrinsics import (
    const_like,
    div_u32,
    float_attr,
    fold_in,
    lanes,
    load,
    num_threads,
    ptr_add,
    store,
    thread_rank,
    uniform,
    uniform_scalar,
    where_greater,
)
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import ATTRS, EPOCH, INDEX, N_OUT, SEED, Op, Y, context, sample_index


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """Leave out inputs of the next layer with probability `rate`, 0 ≤ rate < 1, in training only."""

    rate: Annotated[float, Real(0, below=1)] = 0.5

    def ops(self, shape: Shape) -> list[Op]:
        if self.rate == 0:
            return []
        return [Op("Dropout", size(shape), size(shape), forward, backward, in_place=True, attrs=(float(self.rate),))]

    def inference_ops(self, shape: Shape) -> list[Op]:
        return []


@inline
def _mask(op, memory, lo, hi):
    """memory[y] = m ∘ memory[y] / (1 − rate), for samples lo ≤ i < hi"""
    n, width = op[N_OUT], lanes(memory)
    rate = float_attr(op, ATTRS)
    for i in range(lo, hi):
        key = fold_in(fold_in(fold_in(context(op, SEED), context(op, EPOCH)), sample_index(op, i)), op[INDEX])
        y = ptr_add(memory, op[Y] + i * n)
        for k in range(0, n, width):
            x = load(ptr_add(y, k), n - k)
            out = where_greater(const_like(x, rate), uniform(memory, key, k), const_like(x, 0), x * const_like(x, 1 / (1 - rate)))
            store(ptr_add(y, k), out, n - k)


@inline
def _mask_alone(op, memory, lo, hi):
    """The same, number by number."""
    n, rate = op[N_OUT], float_attr(op, ATTRS)
    limit, scale, zero = const_like(memory, rate), const_like(memory, 1 / (1 - rate)), const_like(memory, 0)
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        i = div_u32(e, n)
        key = fold_in(fold_in(fold_in(context(op, SEED), context(op, EPOCH)), sample_index(op, lo + i)), op[INDEX])
        y = op[Y] + lo * n + e
        memory[y] = zero if limit > const_like(memory, uniform_scalar(key, e - i * n)) else memory[y] * scale


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Leave numbers out        acts[y] in place"""
    _mask(op, acts, lo, hi)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    _mask_alone(op, acts, lo, hi)


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Leave out the deltas of the same numbers        deltas[y] in place"""
    _mask(op, deltas, lo, hi)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    _mask_alone(op, deltas, lo, hi)
