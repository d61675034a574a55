"""LpPool2D: the p-norm of a window, channel by channel.

    y = (Σ |x|ᵖ)^(1/p)        dx = dy sign(x) |x / y|^(p−1)        (p = 2: the L2 pooling of the book)

    x (height, width, channels) · y (out_height, out_width, channels)

Source   Nielsen, Neural Networks and Deep Learning, chapter 6
"""

from dataclasses import dataclass
from typing import Annotated

from numbanet.backend.intrinsics import const_like, float_attr, num_threads, thread_rank
from numbanet.backend.jit import kernel
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.pool_geometry import (
    CHANNELS,
    COLUMNS,
    HEIGHT,
    LEFT,
    OUT_HEIGHT,
    OUT_WIDTH,
    POWER,
    ROWS,
    STRIDE_H,
    STRIDE_V,
    TOP,
    WIDTH_IN,
    Pool2D,
    clear,
    input_range,
    output_range,
    receptive_field,
)
from numbanet.plan.columns import N_IN, N_OUT, Op, X, Y


@dataclass(frozen=True, eq=False)
class LpPool2D(Pool2D):
    """The p-norm of each window, p ≥ 1; p = 2 is the root of the sum of squares."""

    p: Annotated[float, Real(1)] = 2.0

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, lp_forward, lp_backward, float(self.p))]


@kernel
def lp_forward(op, params, grads, acts, deltas, lo, hi):
    """y = (Σ |x|ᵖ)^(1/p) over each window        acts[y] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    p = const_like(acts, float_attr(op, POWER))
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            top, bottom = input_range(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = input_range(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_OUT] + (h * op[OUT_WIDTH] + w) * c
                for k in range(c):
                    total = const_like(acts, 0)
                    for r in range(top, bottom):
                        for s in range(left, right):
                            x = acts[op[X] + i * op[N_IN] + r * line + s * c + k]
                            total += x * x if p == const_like(acts, 2) else abs(x) ** p
                    acts[y + k] = total ** (const_like(acts, 1) / p)


@lp_forward.cuda
def lp_forward(op, params, grads, acts, deltas, lo, hi):
    p = const_like(acts, float_attr(op, POWER))
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        x, top, bottom, left, right = receptive_field(op, lo, e)
        total = const_like(acts, 0)
        for h in range(top, bottom):
            for w in range(left, right):
                a = acts[x + (h * op[WIDTH_IN] + w) * op[CHANNELS]]
                total += a * a if p == const_like(acts, 2) else abs(a) ** p
        acts[op[Y] + lo * op[N_OUT] + e] = total ** (const_like(acts, 1) / p)


@kernel
def lp_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy sign(x) |x / y|^(p−1), 0 where y is        deltas[x] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    zero, one, p = const_like(acts, 0), const_like(acts, 1), const_like(acts, float_attr(op, POWER))
    for i in range(lo, hi):
        clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            top, bottom = input_range(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = input_range(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_OUT] + (h * op[OUT_WIDTH] + w) * c
                for k in range(c):
                    if acts[y + k] > zero:
                        for r in range(top, bottom):
                            for s in range(left, right):
                                j = op[X] + i * op[N_IN] + r * line + s * c + k
                                share = (abs(acts[j]) / acts[y + k]) ** (p - one)
                                deltas[j] += deltas[y + k] * (share if acts[j] > zero else (-share if acts[j] < zero else zero))


@lp_backward.cuda
def lp_backward(op, params, grads, acts, deltas, lo, hi):
    p, zero = const_like(acts, float_attr(op, POWER)), const_like(acts, 0)
    for e in range(thread_rank(), (hi - lo) * op[N_IN], num_threads()):
        x, y, h, w, first, last, begin, end = output_range(op, lo, e)
        a, given = acts[x + (h * op[WIDTH_IN] + w) * op[CHANNELS]], zero
        for v in range(first, last):
            for u in range(begin, end):
                place = y + (v * op[OUT_WIDTH] + u) * op[CHANNELS]
                if acts[place] > zero:
                    share = (abs(a) / acts[place]) ** (p - const_like(acts, 1))
                    given += deltas[place] * (share if a > zero else (-share if a < zero else zero))
        deltas[op[X] + lo * op[N_IN] + e] = given
