"""Dropout: in training values are dropped with probability `rate`; scaling the others compensates.

    y = m ∘ x / (1 − rate)        m = 0 with probability rate, else 1;  dx = m ∘ dy / (1 − rate)

The mask is a function of seed, epoch, sample and position (intrinsics/random.py), so a run does not
depend on threads and can be repeated. In prediction the layer does nothing.

With inverted=False the factor stands in prediction instead: y = m ∘ x in training, (1 − rate) x in
prediction. The function is the same for weights (1 − rate) times as large, its training is not: the
gradient of those weights is 1 / (1 − rate) times, a step's relative size 1 / (1 − rate)² times that
of the other form.

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
from numbanet.io.fields import Flag, Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import EPOCH, INDEX, N_OUT, SEED, Attrs, Y, context, sample_number
from numbanet.plan.op import Op

DROPOUT = Attrs("rate scale")


@dataclass(frozen=True, eq=False)
class Dropout(Layer):
    """Drop inputs of the next layer with probability `rate`, 0 ≤ rate < 1, in training only.

    inverted   True: what is kept is divided by 1 − rate in training. False: it is not, and in
               prediction all inputs are multiplied by 1 − rate, as in Srivastava et al.
    """

    rate: Annotated[float, Real(0, below=1)] = 0.5
    inverted: Annotated[bool, Flag()] = True

    def ops(self, shape: Shape) -> list[Op]:
        if self.rate == 0:
            return []
        scale = 1 / (1 - self.rate) if self.inverted else 1.0
        n, attrs = size(shape), DROPOUT.pack(rate=float(self.rate), scale=scale)
        return [Op("Dropout", n, n, forward, backward, in_place=True, attrs=attrs)]

    def inference_ops(self, shape: Shape) -> list[Op]:
        if self.inverted or self.rate == 0:
            return []
        n, attrs = size(shape), DROPOUT.pack(rate=float(self.rate), scale=1 - self.rate)
        verbs = mean_forward, mean_backward
        return [Op("Dropout", n, n, *verbs, linear=True, in_place=True, attrs=attrs)]


@inline
def _sample_key(op, i):
    """The key of the random numbers for sample i of the batch."""
    key = fold_in(fold_in(context(op, SEED), context(op, EPOCH)), sample_number(op, i))
    return fold_in(key, op[INDEX])


@inline
def _apply_mask(op, memory, lo, hi):
    """memory[y] = scale · m ∘ memory[y], for samples lo ≤ i < hi"""
    n, width, rate = op[N_OUT], lanes(memory), float_attr(op, DROPOUT.rate)
    scale = float_attr(op, DROPOUT.scale)
    for i in range(lo, hi):
        key, y = _sample_key(op, i), ptr_add(memory, op[Y] + i * n)
        for k in range(0, n, width):
            x = load(ptr_add(y, k), n - k)
            kept = x * const_like(x, scale)
            out = where_greater(
                const_like(x, rate), uniform(memory, key, k), const_like(x, 0), kept
            )
            store(ptr_add(y, k), out, n - k)


@inline
def _apply_mask_cuda(op, memory, lo, hi):
    """The same, an element for each thread."""
    n, rate = op[N_OUT], float_attr(op, DROPOUT.rate)
    limit, zero = const_like(memory, rate), const_like(memory, 0)
    scale = const_like(memory, float_attr(op, DROPOUT.scale))
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


# --- prediction, where nothing is dropped: the mean over all masks ----------------------------


@inline
def _scale(op, memory, lo, hi):
    """memory[y] = scale · memory[y], for samples lo ≤ i < hi"""
    scale = const_like(memory, float_attr(op, DROPOUT.scale))
    for i in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]):
        memory[i] *= scale


@kernel(independent=True)
def mean_forward(op, params, grads, acts, deltas, lo, hi):
    """y = (1 − rate) x        acts[y] in place"""
    _scale(op, acts, lo, hi)


@kernel(independent=True)
def mean_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = (1 − rate) dy        deltas[y] in place"""
    _scale(op, deltas, lo, hi)
