"""Pooling: a window's numbers become one, channel by channel.

    MaxPool2D   y = max x         dx = dy at the first of the largest
    AvgPool2D   y = mean x        dx = dy / n

    x (height, width, channels) · y (out_height, out_width, channels)
An edge that a window cannot fill is dropped: a 5×5 picture pooled by 2 becomes 2×2. Padding counts in neither.

Source   Nielsen, Neural Networks and Deep Learning, chapter 6
"""

from numbanet.backend.elementary import maximum
from numbanet.backend.intrinsics import const_like, lanes, load, num_threads, ptr_add, store, thread_rank, where_equal
from numbanet.backend.jit import inline, kernel
from numbanet.nn.layers.base import Layer, Shape
from numbanet.nn.layers.pool_geometry import (
    CHANNELS,
    COLUMNS,
    HEIGHT,
    LEFT,
    OUT_HEIGHT,
    OUT_WIDTH,
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
from numbanet.nn.layers.window import window
from numbanet.plan.columns import N_IN, N_OUT, X, Y
from numbanet.plan.op import Op

# --- max ----------------------------------------------------------------------------------------------------------------


class MaxPool2D(Pool2D):
    """The largest of each window."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, max_forward, max_backward)]

    def pools_channels_first(self, shape: Shape) -> bool:
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
            y = ptr_add(acts, op[Y] + i * op[N_OUT] + h * out_width * c)
            top, bottom = input_range(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            x = ptr_add(acts, op[X] + i * op[N_IN] + top * line)
            for k in range(0, c, width):
                n = min(width, c - k)
                if pair:
                    for w in range(out_width):
                        here = ptr_add(x, w * step + k)
                        upper = maximum(load(here, n), load(ptr_add(here, c), n))
                        lower = maximum(load(ptr_add(here, line), n), load(ptr_add(here, line + c), n))
                        store(ptr_add(y, w * c + k), maximum(upper, lower), n)
                else:
                    for w in range(out_width):
                        left, right = input_range(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                        most = load(ptr_add(x, left * c + k), n)
                        for r in range(bottom - top):
                            for s in range(left, right):
                                most = maximum(most, load(ptr_add(x, r * line + s * c + k), n))
                        store(ptr_add(y, w * c + k), most, n)


@max_forward.cuda
def max_forward(op, params, grads, acts, deltas, lo, hi):
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        x, top, bottom, left, right = receptive_field(op, lo, e)
        most = acts[x + (top * op[WIDTH_IN] + left) * op[CHANNELS]]
        for h in range(top, bottom):
            for w in range(left, right):
                most = maximum(most, acts[x + (h * op[WIDTH_IN] + w) * op[CHANNELS]])
        acts[op[Y] + lo * op[N_OUT] + e] = most


@kernel
def max_backward(op, params, grads, acts, deltas, lo, hi):
    """Give dy to the first of the largest        deltas[x] overwritten"""
    c, line, width, pair = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS], lanes(acts), _is_pair(op)
    out_width, step = op[OUT_WIDTH], op[STRIDE_H] * op[CHANNELS]
    zero = const_like(load(acts, 0), 0)
    for i in range(lo, hi):
        if not (pair and 2 * op[OUT_HEIGHT] == op[HEIGHT] and 2 * op[OUT_WIDTH] == op[WIDTH_IN]):
            clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            y = op[Y] + i * op[N_OUT] + h * out_width * c
            top, bottom = input_range(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            x = op[X] + i * op[N_IN] + top * line
            for k in range(0, c, width):
                n = min(width, c - k)
                if pair:
                    for w in range(out_width):
                        most, rest = load(ptr_add(acts, y + w * c + k), n), load(ptr_add(deltas, y + w * c + k), n)
                        for part in range(4):
                            place = x + w * step + k + (part >> 1) * line + (part & 1) * c
                            here = load(ptr_add(acts, place), n)
                            store(ptr_add(deltas, place), where_equal(here, most, rest, zero), n)
                            rest = where_equal(here, most, zero, rest)
                else:
                    for w in range(out_width):
                        left, right = input_range(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                        most, rest = load(ptr_add(acts, y + w * c + k), n), load(ptr_add(deltas, y + w * c + k), n)
                        for r in range(bottom - top):
                            for s in range(left, right):
                                place = x + r * line + s * c + k
                                here = load(ptr_add(acts, place), n)
                                given = where_equal(here, most, rest, zero)
                                store(ptr_add(deltas, place), load(ptr_add(deltas, place), n) + given, n)
                                rest = where_equal(here, most, zero, rest)


@max_backward.cuda
def max_backward(op, params, grads, acts, deltas, lo, hi):
    c, width = op[CHANNELS], op[WIDTH_IN]
    for e in range(thread_rank(), (hi - lo) * op[N_IN], num_threads()):
        x, y, h, w, first, last, begin, end = output_range(op, lo, e)
        here, given = acts[x + (h * width + w) * c], const_like(deltas, 0)
        for v in range(first, last):
            for u in range(begin, end):
                most = acts[y + (v * op[OUT_WIDTH] + u) * c]
                found = here == most
                top, bottom = input_range(v, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
                left, right = input_range(u, op[STRIDE_H], op[LEFT], op[COLUMNS], width)
                for r in range(top, h + 1):
                    for s in range(left, w if r == h else right):
                        found = found and acts[x + (r * width + s) * c] != most
                given += deltas[y + (v * op[OUT_WIDTH] + u) * c] if found else const_like(deltas, 0)
        deltas[op[X] + lo * op[N_IN] + e] = given


# --- mean ---------------------------------------------------------------------------------------------------------------


class AvgPool2D(Pool2D):
    """The mean of each window."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, mean_forward, mean_backward, keeps_output=False)]


@kernel
def mean_forward(op, params, grads, acts, deltas, lo, hi):
    """y = mean x over each window        acts[y] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    for i in range(lo, hi):
        for h in range(op[OUT_HEIGHT]):
            top, bottom = input_range(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = input_range(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_OUT] + (h * op[OUT_WIDTH] + w) * c
                share = const_like(acts, 1 / ((bottom - top) * (right - left)))
                for k in range(c):
                    acts[y + k] = const_like(acts, 0)
                for r in range(top, bottom):
                    for s in range(left, right):
                        x = op[X] + i * op[N_IN] + r * line + s * c
                        for k in range(c):
                            acts[y + k] += share * acts[x + k]


@mean_forward.cuda
def mean_forward(op, params, grads, acts, deltas, lo, hi):
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        x, top, bottom, left, right = receptive_field(op, lo, e)
        total = const_like(acts, 0)
        for h in range(top, bottom):
            for w in range(left, right):
                total += acts[x + (h * op[WIDTH_IN] + w) * op[CHANNELS]]
        acts[op[Y] + lo * op[N_OUT] + e] = total / const_like(acts, (bottom - top) * (right - left))


@kernel
def mean_backward(op, params, grads, acts, deltas, lo, hi):
    """Give every number of a window its share of dy        deltas[x] overwritten"""
    c, line = op[CHANNELS], op[WIDTH_IN] * op[CHANNELS]
    for i in range(lo, hi):
        clear(op, deltas, i)
        for h in range(op[OUT_HEIGHT]):
            top, bottom = input_range(h, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for w in range(op[OUT_WIDTH]):
                left, right = input_range(w, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                y = op[Y] + i * op[N_OUT] + (h * op[OUT_WIDTH] + w) * c
                share = const_like(acts, 1 / ((bottom - top) * (right - left)))
                for r in range(top, bottom):
                    for s in range(left, right):
                        x = op[X] + i * op[N_IN] + r * line + s * c
                        for k in range(c):
                            deltas[x + k] += share * deltas[y + k]


@mean_backward.cuda
def mean_backward(op, params, grads, acts, deltas, lo, hi):
    for e in range(thread_rank(), (hi - lo) * op[N_IN], num_threads()):
        x, y, h, w, first, last, begin, end = output_range(op, lo, e)
        given = const_like(deltas, 0)
        for v in range(first, last):
            top, bottom = input_range(v, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
            for u in range(begin, end):
                left, right = input_range(u, op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
                share = const_like(deltas, (bottom - top) * (right - left))
                given += deltas[y + (v * op[OUT_WIDTH] + u) * op[CHANNELS]] / share
        deltas[op[X] + lo * op[N_IN] + e] = given


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
