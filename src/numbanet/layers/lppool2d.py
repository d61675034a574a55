"""LpPool2D: the p-norm of a window, channel by channel.

    y = (Σ |x|ᵖ)^(1/p)        dx = dy sign(x) |x / y|^(p−1)        (p = 2: the L2 pooling of the book)

    x (height, width, channels) · y (out_height, out_width, channels)

Source   Nielsen, Neural Networks and Deep Learning, chapter 6
"""

from dataclasses import dataclass
from typing import Annotated

from numbanet._jit import kernel
from numbanet._simd import like, real, thread, threads
from numbanet.fields import Real
from numbanet.layers.base import Shape
from numbanet.layers.pooling import (
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
    span,
    window_of,
    windows_over,
)
from numbanet.plan import N_X, N_Y, Op, X, Y


@dataclass(frozen=True, eq=False)
class LpPool2D(Pool2D):
    """The p-norm of each window, p ≥ 1; p = 2 is the root of the sum of squares."""

    p: Annotated[float, Real(1)] = 2.0

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, norm_forward, norm_backward, float(self.p))]


@kernel
def norm_forward(op, params, grads, acts, deltas, lo, hi):
    """y = (Σ |x|ᵖ)^(1/p) over each window        acts[y] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    p = like(acts, real(op, POWER))
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            top, bottom = span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_Y] + (h * op[OUT_WIDTH] + w) * c
                for k in range(c):
                    total = like(acts, 0)
                    for r in range(top, bottom):
                        for s in range(left, right):
                            x = acts[op[X] + i * op[N_X] + r * line + s * c + k]
                            total += x * x if p == like(acts, 2) else abs(x) ** p
                    acts[y + k] = total ** (like(acts, 1) / p)


@norm_forward.cuda
def norm_forward(op, params, grads, acts, deltas, lo, hi):
    p = like(acts, real(op, POWER))
    for e in range(thread(), (hi - lo) * op[N_Y], threads()):
        x, top, bottom, left, right = window_of(op, lo, e)
        total = like(acts, 0)
        for h in range(top, bottom):
            for w in range(left, right):
                a = acts[x + (h * op[WIDTH_IN] + w) * op[CHANNELS]]
                total += a * a if p == like(acts, 2) else abs(a) ** p
        acts[op[Y] + lo * op[N_Y] + e] = total ** (like(acts, 1) / p)


@kernel
def norm_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy sign(x) |x / y|^(p−1), 0 where y is        deltas[x] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    zero, one, p = like(acts, 0), like(acts, 1), like(acts, real(op, POWER))
    for i in range(lo, hi):
        clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            top, bottom = span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_Y] + (h * op[OUT_WIDTH] + w) * c
                for k in range(c):
                    if acts[y + k] > zero:
                        for r in range(top, bottom):
                            for s in range(left, right):
                                j = op[X] + i * op[N_X] + r * line + s * c + k
                                share = (abs(acts[j]) / acts[y + k]) ** (p - one)
                                deltas[j] += deltas[y + k] * (share if acts[j] > zero else (-share if acts[j] < zero else zero))


@norm_backward.cuda
def norm_backward(op, params, grads, acts, deltas, lo, hi):
    p, zero = like(acts, real(op, POWER)), like(acts, 0)
    for e in range(thread(), (hi - lo) * op[N_X], threads()):
        x, y, h, w, first, last, begin, end = windows_over(op, lo, e)
        a, given = acts[x + (h * op[WIDTH_IN] + w) * op[CHANNELS]], zero
        for v in range(first, last):
            for u in range(begin, end):
                place = y + (v * op[OUT_WIDTH] + u) * op[CHANNELS]
                if acts[place] > zero:
                    share = (abs(a) / acts[place]) ** (p - like(acts, 1))
                    given += deltas[place] * (share if a > zero else (-share if a < zero else zero))
        deltas[op[X] + lo * op[N_X] + e] = given
