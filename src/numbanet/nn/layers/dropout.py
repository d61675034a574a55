"""Dropout: in training values are dropped with probability `rate`; scaling the others compensates.

    y = m ∘ x / (1 − rate)        m = 0 with probability rate, else 1;  dx = m ∘ dy / (1 − rate)

The mask is a function of seed, epoch, sample and position (intrinsics/random.py), so a run does not
depend on threads and can be repeated. In prediction the layer does nothing.

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
from numbanet.plan.columns import EPOCH, INDEX, N_OUT, SEED, Attrs, Y, context, sample_index
from numbanet.plan.op import Op

DROPOUT = Attrs("rate")


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """Drop inputs of the next layer with probability `rate`, 0 ≤ rate < 1, in training only."""

    rate: Annotated[float, Real(0, below=1)] = 0.5

    def ops(self, shape: Shape) -> list[Op]:
        if self.rate == 0:
            return []
        n, attrs = size(shape), DROPOUT.pack(rate=float(self.rate))
        return [Op("Dropout", n, n, forward, backward, in_place=True, attrs=attrs)]

    def inference_ops(self, shape: Shape) -> list[Op]:
        return []


@inline
def _sample_key(op, i):
    """The key of the random numbers for sample i of the batch."""
    key = fold_in(fold_in(context(op, SEED), context(op, EPOCH)), sample_index(op, i))
    return fold_in(key, op[INDEX])


@inline
def _apply_mask(op, memory, lo, hi):
    """memory[y] = m ∘ memory[y] / (1 − rate), for samples lo ≤ i < hi"""
    n, width, rate = op[N_OUT], lanes(memory), float_attr(op, DROPOUT.rate)
    for i in range(lo, hi):
        key, y = _sample_key(op, i), ptr_add(memory, op[Y] + i * n)
        for k in range(0, n, width):
            x = load(ptr_add(y, k), n - k)
            kept = x * const_like(x, 1 / (1 - rate))
            out = where_greater(
                const_like(x, rate), uniform(memory, key, k), const_like(x, 0), kept
            )
            store(ptr_add(y, k), out, n - k)


@inline
def _apply_mask_cuda(op, memory, lo, hi):
    """The same, an element for each thread."""
    n, rate = op[N_OUT], float_attr(op, DROPOUT.rate)
    limit, zero = const_like(memory, rate), const_like(memory, 0)
    scale = const_like(memory, 1 / (1 - rate))
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        i = div_u32(e, n)
        drawn = const_like(memory, uniform_scalar(_sample_key(op, lo + i), e - i * n))
        y = op[Y] + lo * n + e
        memory[y] = zero if limit > drawn else memory[y] * scale


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Drop values        acts[y] in place"""
    _apply_mask(op, acts, lo, hi)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    _apply_mask_cuda(op, acts, lo, hi)


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Drop the derivatives by the same values        deltas[y] in place"""
    _apply_mask(op, deltas, lo, hi)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    _apply_mask_cuda(op, deltas, lo, hi)
