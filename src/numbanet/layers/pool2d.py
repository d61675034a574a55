"""Pooling: a window's numbers become one, channel by channel.

    MaxPool2D   y = max x                       dx = dy at the first of the largest
    AvgPool2D   y = mean x                      dx = dy / n
    LpPool2D    y = (Σ |x|ᵖ)^(1/p)              dx = dy sign(x) |x / y|^(p−1)        (p = 2: the L2 pooling of the book)

    x (height, width, channels) · y (out_height, out_width, channels)
An edge that a window cannot fill is dropped: a 5×5 picture pooled by 2 becomes 2×2. Padding counts in none of them.

Source   Nielsen, Neural Networks and Deep Learning, chapter 6
"""

from dataclasses import dataclass
from typing import Any

from numbanet._jit import inline, kernel
from numbanet._math import largest
from numbanet._simd import at, lanes, like, load, real, store, where_equal
from numbanet.layers.base import Layer, Shape, size
from numbanet.layers.window import window
from numbanet.plan import N_X, N_Y, OWN, Op, X, Y

HEIGHT, WIDTH_IN, CHANNELS, OUT_HEIGHT, OUT_WIDTH, ROWS, COLUMNS, STRIDE_V, STRIDE_H, TOP, LEFT, POWER = range(OWN, OWN + 12)
"""Sizes of input, output and window, padding above and to the left, and p as a real."""


@dataclass(frozen=True, eq=False)
class _Pool2D(Layer):
    """A pooling window of `size`, moved by `stride` (by default its size)."""

    size: Any = 2
    stride: Any = None
    padding: Any = "valid"

    def _window(self, shape: Shape):
        stride = self.size if self.stride is None else self.stride
        result = window(type(self).__name__, shape, self.size, stride, self.padding)
        if any(p >= n for p, n in zip(result.padding, (result.size[0],) * 2 + (result.size[1],) * 2, strict=True)):
            raise ValueError(f"{type(self).__name__}: padding {result.padding} is as large as the window {result.size}, so a "
                             "window would hold nothing; pad less")
        return result

    def output_shape(self, shape: Shape) -> Shape:
        return (*self._window(shape).output, shape[2])

    def _own(self, shape: Shape) -> tuple:
        view = self._window(shape)
        return (*shape, *view.output, *view.size, *view.stride, view.padding[0], view.padding[2])

    def _op(self, shape: Shape, forward, backward, power: float = 0.0) -> Op:
        return Op(type(self).__name__, size(shape), size(self.output_shape(shape)), forward, backward,
                  own=(*self._own(shape), power), keeps_output=backward is not mean_backward)


@inline
def _span(place, step, before, window, end):
    """The first and past-the-last position that a window at `place` covers inside the picture."""
    start = place * step - before
    return max(start, 0), min(start + window, end)


@inline
def _clear(op, deltas, i):
    """Start deltas[x] of sample i at zero."""
    x = op[X] + i * op[N_X]
    for j in range(x, x + op[N_X]):
        deltas[j] = like(deltas, 0)


# --- max ----------------------------------------------------------------------------------------------------------------


class MaxPool2D(_Pool2D):
    """The largest of each window."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, max_forward, max_backward)]

    def pools_planes(self, shape: Shape) -> bool:
        """Whether it can read planes (planar.py): 2×2 windows side by side."""
        view = self._window(shape)
        return view.size == view.stride == (2, 2) and not any(view.padding)


@inline
def _is_pair(op):
    """Whether the window is the usual one: 2 by 2, each number in one window, none of it outside."""
    return op[ROWS] == 2 and op[COLUMNS] == 2 and op[STRIDE_V] == 2 and op[STRIDE_H] == 2 and op[TOP] == 0 and op[LEFT] == 0 and (
        2 * op[OUT_HEIGHT] <= op[HEIGHT] and 2 * op[OUT_WIDTH] <= op[WIDTH_IN])


@kernel
def max_forward(op, params, grads, acts, deltas, lo, hi):
    """y = max x over each window        acts[y] overwritten"""
    c, line, width, pair = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS], lanes(acts), _is_pair(op)
    out_width, step = op[OUT_WIDTH], op[STRIDE_H] * op[CHANNELS]
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            y = at(acts, op[Y] + i * op[N_Y] + h * out_width * c)
            top, bottom = _span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            x = at(acts, op[X] + i * op[N_X] + top * line)
            for k in range(0, c, width):
                n = min(width, c - k)
                if pair:
                    for w in range(out_width):
                        here = at(x, w * step + k)
                        upper = largest(load(here, n), load(at(here, c), n))
                        lower = largest(load(at(here, line), n), load(at(here, line + c), n))
                        store(at(y, w * c + k), largest(upper, lower), n)
                else:
                    for w in range(out_width):
                        left, right = _span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                        most = load(at(x, left * c + k), n)
                        for r in range(bottom - top):
                            for s in range(left, right):
                                most = largest(most, load(at(x, r * line + s * c + k), n))
                        store(at(y, w * c + k), most, n)


@kernel
def max_backward(op, params, grads, acts, deltas, lo, hi):
    """Give dy to the first of the largest        deltas[x] overwritten"""
    c, line, width, pair = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS], lanes(acts), _is_pair(op)
    out_width, step = op[OUT_WIDTH], op[STRIDE_H] * op[CHANNELS]
    zero = like(load(acts, 0), 0)
    for i in range(lo, hi):
        if not (pair and 2 * op[OUT_HEIGHT] == op[HEIGHT] and 2 * op[OUT_WIDTH] == op[WIDTH_IN]):
            _clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            y = op[Y] + i * op[N_Y] + h * out_width * c
            top, bottom = _span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            x = op[X] + i * op[N_X] + top * line
            for k in range(0, c, width):
                n = min(width, c - k)
                if pair:
                    for w in range(out_width):
                        most, rest = load(at(acts, y + w * c + k), n), load(at(deltas, y + w * c + k), n)
                        for part in range(4):
                            place = x + w * step + k + (part >> 1) * line + (part & 1) * c
                            here = load(at(acts, place), n)
                            store(at(deltas, place), where_equal(here, most, rest, zero), n)
                            rest = where_equal(here, most, zero, rest)
                else:
                    for w in range(out_width):
                        left, right = _span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                        most, rest = load(at(acts, y + w * c + k), n), load(at(deltas, y + w * c + k), n)
                        for r in range(bottom - top):
                            for s in range(left, right):
                                place = x + r * line + s * c + k
                                here = load(at(acts, place), n)
                                given = where_equal(here, most, rest, zero)
                                store(at(deltas, place), load(at(deltas, place), n) + given, n)
                                rest = where_equal(here, most, zero, rest)


# --- mean ---------------------------------------------------------------------------------------------------------------


class AvgPool2D(_Pool2D):
    """The mean of each window."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, mean_forward, mean_backward)]


@kernel
def mean_forward(op, params, grads, acts, deltas, lo, hi):
    """y = mean x over each window        acts[y] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            top, bottom = _span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = _span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_Y] + (h * op[OUT_WIDTH] + w) * c
                share = like(acts, 1 / ((bottom - top) * (right - left)))
                for k in range(c):
                    acts[y + k] = like(acts, 0)
                for r in range(top, bottom):
                    for s in range(left, right):
                        x = op[X] + i * op[N_X] + r * line + s * c
                        for k in range(c):
                            acts[y + k] += share * acts[x + k]


@kernel
def mean_backward(op, params, grads, acts, deltas, lo, hi):
    """Give every number of a window its share of dy        deltas[x] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    for i in range(lo, hi):
        _clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            top, bottom = _span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = _span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_Y] + (h * op[OUT_WIDTH] + w) * c
                share = like(acts, 1 / ((bottom - top) * (right - left)))
                for r in range(top, bottom):
                    for s in range(left, right):
                        x = op[X] + i * op[N_X] + r * line + s * c
                        for k in range(c):
                            deltas[x + k] += share * deltas[y + k]


# --- Lp -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LpPool2D(_Pool2D):
    """The p-norm of each window, p ≥ 1; p = 2 is the root of the sum of squares."""

    p: float = 2.0

    def __post_init__(self):
        if not 1 <= self.p < float("inf"):
            raise ValueError(f"LpPool2D needs a p of at least 1, got {self.p!r}")

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, norm_forward, norm_backward, float(self.p))]


@kernel
def norm_forward(op, params, grads, acts, deltas, lo, hi):
    """y = (Σ |x|ᵖ)^(1/p) over each window        acts[y] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    p = like(acts, real(op, POWER))
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            top, bottom = _span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = _span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_Y] + (h * op[OUT_WIDTH] + w) * c
                for k in range(c):
                    total = like(acts, 0)
                    for r in range(top, bottom):
                        for s in range(left, right):
                            x = acts[op[X] + i * op[N_X] + r * line + s * c + k]
                            total += x * x if p == like(acts, 2) else abs(x) ** p
                    acts[y + k] = total ** (like(acts, 1) / p)


@kernel
def norm_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy sign(x) |x / y|^(p−1), 0 where y is        deltas[x] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    zero, one, p = like(acts, 0), like(acts, 1), like(acts, real(op, POWER))
    for i in range(lo, hi):
        _clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            top, bottom = _span(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = _span(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_Y] + (h * op[OUT_WIDTH] + w) * c
                for k in range(c):
                    if acts[y + k] > zero:
                        for r in range(top, bottom):
                            for s in range(left, right):
                                j = op[X] + i * op[N_X] + r * line + s * c + k
                                share = (abs(acts[j]) / acts[y + k]) ** (p - one)
                                deltas[j] += deltas[y + k] * (share if acts[j] > zero else (-share if acts[j] < zero else zero))


# --- the whole picture --------------------------------------------------------------------------------------------------


class _Global(Layer):
    """A pooling window as large as the picture; the output is a vector of channels."""

    kind: type

    def output_shape(self, shape: Shape) -> Shape:
        return (window(type(self).__name__, shape, shape[:2] if len(shape) == 3 else 1).picture[2],)

    def ops(self, shape: Shape) -> list[Op]:
        return self.kind(shape[:2]).ops(shape)


class GlobalAvgPool2D(_Global):
    """The mean of every channel: (height, width, channels) → (channels,)."""

    kind = AvgPool2D


class GlobalMaxPool2D(_Global):
    """The largest of every channel: (height, width, channels) → (channels,)."""

    kind = MaxPool2D
