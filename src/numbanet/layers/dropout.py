"""Dropout: in training every number is left out with probability `rate`; the others are scaled up to make good for it.

    y = m ∘ x / (1 − rate)        m = 0 with probability rate, else 1;  dx = m ∘ dy / (1 − rate)

The mask is a function of seed, epoch, sample and place (random.py), so a run does not depend on threads and can be repeated.
In prediction the layer does nothing.

Source   Srivastava et al. 2014; Nielsen, Neural Networks and Deep Learning, chapter 3
"""

from dataclasses import dataclass
from typing import Annotated

from numbanet._jit import inline, kernel
from numbanet._simd import at, chance, lanes, like, load, mixed, quotient, real, store, thread, threads, uniform, where_greater
from numbanet.fields import Real
from numbanet.layers.base import Layer, Shape, size
from numbanet.plan import EPOCH, INDEX, N_Y, OWN, SEED, Op, Y, clock, sample_index


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """Leave out inputs of the next layer with probability `rate`, 0 ≤ rate < 1, in training only."""

    rate: Annotated[float, Real(0, below=1)] = 0.5

    def ops(self, shape: Shape) -> list[Op]:
        if self.rate == 0:
            return []
        return [Op("Dropout", size(shape), size(shape), forward, backward, in_place=True, own=(float(self.rate),))]

    def prediction_ops(self, shape: Shape) -> list[Op]:
        return []


@inline
def _mask(op, memory, lo, hi):
    """memory[y] = m ∘ memory[y] / (1 − rate), for samples lo ≤ i < hi"""
    n, width = op[N_Y], lanes(memory)
    rate = real(op, OWN)
    for i in range(lo, hi):
        key = mixed(mixed(mixed(clock(op, SEED), clock(op, EPOCH)), sample_index(op, i)), op[INDEX])
        y = at(memory, op[Y] + i * n)
        for k in range(0, n, width):
            x = load(at(y, k), n - k)
            out = where_greater(like(x, rate), uniform(memory, key, k), like(x, 0), x * like(x, 1 / (1 - rate)))
            store(at(y, k), out, n - k)


@inline
def _mask_alone(op, memory, lo, hi):
    """The same, number by number."""
    n, rate = op[N_Y], real(op, OWN)
    limit, scale, zero = like(memory, rate), like(memory, 1 / (1 - rate)), like(memory, 0)
    for e in range(thread(), (hi - lo) * n, threads()):
        i = quotient(e, n)
        key = mixed(mixed(mixed(clock(op, SEED), clock(op, EPOCH)), sample_index(op, lo + i)), op[INDEX])
        y = op[Y] + lo * n + e
        memory[y] = zero if limit > like(memory, chance(key, e - i * n)) else memory[y] * scale


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
