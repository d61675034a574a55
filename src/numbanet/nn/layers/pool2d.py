"""Pooling: the values of a window become one, channel by channel.

    MaxPool2D   y = max x               dx = dy at the first of the largest
    AvgPool2D   y = mean x              dx = dy / n
    LpPool2D    y = (Σ |x|ᵖ)^(1/p)      dx = dy sign(x) |x / y|^(p−1)       (p = 2: L2 pooling)

    x (height, width, channels) · y (out_height, out_width, channels)
An edge that a window cannot fill is dropped: a 5×5 image pooled by 2 becomes 2×2. Padding counts in
none of them.

Source   Nielsen, Neural Networks and Deep Learning, chapter 6
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.backend.elementary import maximum, power
from numbanet.backend.intrinsics import (
    const_like,
    div_u32,
    float_attr,
    lanes,
    load,
    num_threads,
    ptr_add,
    splat,
    store,
    thread_rank,
    where_equal,
    where_greater,
)
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Padding, Pair, Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.nn.layers.window import window
from numbanet.plan.columns import N_IN, N_OUT, TANGENTS, Attrs, X, Y, context
from numbanet.plan.op import Op

GEOMETRY = Attrs(
    "height width channels out_height out_width size_h size_w stride_row stride_col top left power"
)
"""Sizes of input, output and window, padding above and to the left, and the p of LpPool2D."""


@dataclass(frozen=True, eq=False)
class Pool2D(Layer):
    """A pooling window of `size`, moved by `stride` (by default its size)."""

    size: Annotated[Any, Pair()] = 2
    stride: Annotated[Any, Pair(optional=True)] = None
    padding: Annotated[Any, Padding()] = "valid"

    def _window(self, shape: Shape):
        name, stride = type(self).__name__, self.size if self.stride is None else self.stride
        view = window(name, shape, self.size, stride, self.padding)
        (size_h, size_w), (top, bottom, left, right) = view.size, view.padding
        if max(top, bottom) >= size_h or max(left, right) >= size_w:
            raise ValueError(
                f"{name}: padding {view.padding} is as large as the window {view.size}, so a "
                "window would hold nothing; pad less"
            )
        return view

    def output_shape(self, shape: Shape) -> Shape:
        return (*self._window(shape).output, shape[2])

    def _op(self, shape: Shape, forward, backward, tangent=None, second=None, power=0.0) -> Op:
        view = self._window(shape)
        return Op(
            type(self).__name__,
            size(shape),
            size(self.output_shape(shape)),
            forward,
            backward,
            attrs=GEOMETRY.pack(
                height=shape[0],
                width=shape[1],
                channels=shape[2],
                out_height=view.output[0],
                out_width=view.output[1],
                size_h=view.size[0],
                size_w=view.size[1],
                stride_row=view.stride[0],
                stride_col=view.stride[1],
                top=view.padding[0],
                left=view.padding[2],
                power=float(power),
            ),
            linear=tangent is None,
            tangent=tangent,
            second_backward=second,
            keeps_output=tangent is not None,
        )


# --- which inputs a window covers, and which windows cover an input -------------------------------


@inline
def _row_range(op, out_row):
    """The first and past-the-last row that the windows of an output row cover."""
    start = out_row * op[GEOMETRY.stride_row] - op[GEOMETRY.top]
    return max(start, 0), min(start + op[GEOMETRY.size_h], op[GEOMETRY.height])


@inline
def _col_range(op, out_col):
    """The first and past-the-last column that the windows of an output column cover."""
    start = out_col * op[GEOMETRY.stride_col] - op[GEOMETRY.left]
    return max(start, 0), min(start + op[GEOMETRY.size_w], op[GEOMETRY.width])


@inline
def _out_row_range(op, row):
    """The first and past-the-last output row whose windows cover a row of the image."""
    stride, position = op[GEOMETRY.stride_row], row + op[GEOMETRY.top]
    first = div_u32(max(position - op[GEOMETRY.size_h], -stride) + stride, stride)
    return first, min(div_u32(position, stride) + 1, op[GEOMETRY.out_height])


@inline
def _out_col_range(op, col):
    """The first and past-the-last output column whose windows cover a column of the image."""
    stride, position = op[GEOMETRY.stride_col], col + op[GEOMETRY.left]
    first = div_u32(max(position - op[GEOMETRY.size_w], -stride) + stride, stride)
    return first, min(div_u32(position, stride) + 1, op[GEOMETRY.out_width])


@inline
def _locate_output(op, lo, e):
    """(offset of the channel in the input image, output row, output column) of output e.

    e is counted from sample lo.
    """
    i = div_u32(e, op[N_OUT])
    pixel = div_u32(e - i * op[N_OUT], op[GEOMETRY.channels])
    out_row = div_u32(pixel, op[GEOMETRY.out_width])
    c = e - i * op[N_OUT] - pixel * op[GEOMETRY.channels]
    return op[X] + (lo + i) * op[N_IN] + c, out_row, pixel - out_row * op[GEOMETRY.out_width]


@inline
def _locate_input(op, lo, e):
    """(offsets of the channel in the input and output image, row, column) of input e.

    e is counted from sample lo.
    """
    i = div_u32(e, op[N_IN])
    pixel = div_u32(e - i * op[N_IN], op[GEOMETRY.channels])
    row, c = div_u32(pixel, op[GEOMETRY.width]), e - i * op[N_IN] - pixel * op[GEOMETRY.channels]
    x, y = op[X] + (lo + i) * op[N_IN] + c, op[Y] + (lo + i) * op[N_OUT] + c
    return x, y, row, pixel - row * op[GEOMETRY.width]


@inline
def _clear(op, deltas, i):
    """Set deltas[x] of sample i to zero."""
    x = op[X] + i * op[N_IN]
    for j in range(x, x + op[N_IN]):
        deltas[j] = const_like(deltas, 0)


# --- max ------------------------------------------------------------------------------------------


class MaxPool2D(Pool2D):
    """The largest of each window."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, max_forward, max_backward, max_tangent)]

    def pools_channels_first(self, shape: Shape) -> bool:
        """Whether conv2d_channels_first can do it: 2×2 windows side by side."""
        view = self._window(shape)
        return view.size == view.stride == (2, 2) and not any(view.padding)


@inline
def _is_two_by_two(op):
    """Whether the window is the usual one: 2 × 2, each input in one window, none outside."""
    window = op[GEOMETRY.size_h] == 2 and op[GEOMETRY.size_w] == 2
    stride = op[GEOMETRY.stride_row] == 2 and op[GEOMETRY.stride_col] == 2
    inside = op[GEOMETRY.top] == 0 and op[GEOMETRY.left] == 0
    inside = inside and 2 * op[GEOMETRY.out_height] <= op[GEOMETRY.height]
    return window and stride and inside and 2 * op[GEOMETRY.out_width] <= op[GEOMETRY.width]


@kernel
def max_forward(op, params, grads, acts, deltas, lo, hi):
    """y = max x over each window        acts[y] overwritten"""
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    two_by_two = _is_two_by_two(op)
    row_stride, simd_width = op[GEOMETRY.width] * channels, lanes(acts)
    step = op[GEOMETRY.stride_col] * channels
    for i in range(lo, hi):
        for out_row in range(op[GEOMETRY.out_height]):
            y = ptr_add(acts, op[Y] + i * op[N_OUT] + out_row * out_width * channels)
            top, bottom = _row_range(op, out_row)
            x = ptr_add(acts, op[X] + i * op[N_IN] + top * row_stride)
            for c in range(0, channels, simd_width):
                n = min(simd_width, channels - c)
                if two_by_two:
                    for out_col in range(out_width):
                        upper = ptr_add(x, out_col * step + c)
                        lower = ptr_add(upper, row_stride)
                        upper_max = maximum(load(upper, n), load(ptr_add(upper, channels), n))
                        lower_max = maximum(load(lower, n), load(ptr_add(lower, channels), n))
                        store(ptr_add(y, out_col * channels + c), maximum(upper_max, lower_max), n)
                else:
                    for out_col in range(out_width):
                        left, right = _col_range(op, out_col)
                        max_value = load(ptr_add(x, left * channels + c), n)
                        for r in range(bottom - top):
                            for col in range(left, right):
                                value = load(ptr_add(x, r * row_stride + col * channels + c), n)
                                max_value = maximum(max_value, value)
                        store(ptr_add(y, out_col * channels + c), max_value, n)


@max_forward.cuda
def max_forward(op, params, grads, acts, deltas, lo, hi):
    channels, width = op[GEOMETRY.channels], op[GEOMETRY.width]
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        x, out_row, out_col = _locate_output(op, lo, e)
        (top, bottom), (left, right) = _row_range(op, out_row), _col_range(op, out_col)
        max_value = acts[x + (top * width + left) * channels]
        for row in range(top, bottom):
            for col in range(left, right):
                max_value = maximum(max_value, acts[x + (row * width + col) * channels])
        acts[op[Y] + lo * op[N_OUT] + e] = max_value


@kernel
def max_backward(op, params, grads, acts, deltas, lo, hi):
    """Give dy to the first of the largest        deltas[x] overwritten

    dy_left is dy until the largest is found, then zero.
    """
    channels, out_width = op[GEOMETRY.channels], op[GEOMETRY.out_width]
    two_by_two = _is_two_by_two(op)
    row_stride, simd_width, zero = op[GEOMETRY.width] * channels, lanes(acts), splat(acts, 0)
    step = op[GEOMETRY.stride_col] * channels
    covers_all = 2 * op[GEOMETRY.out_height] == op[GEOMETRY.height]
    covers_all = two_by_two and covers_all and 2 * out_width == op[GEOMETRY.width]
    for i in range(lo, hi):
        if not covers_all:
            _clear(op, deltas, i)
        for out_row in range(op[GEOMETRY.out_height]):
            y = op[Y] + i * op[N_OUT] + out_row * out_width * channels
            top, bottom = _row_range(op, out_row)
            x = op[X] + i * op[N_IN] + top * row_stride
            for out_col in range(out_width):
                left, right = _col_range(op, out_col)
                for c in range(0, channels, simd_width):
                    n = channels - c
                    out = y + out_col * channels + c
                    max_value = load(ptr_add(acts, out), n)
                    dy_left = load(ptr_add(deltas, out), n)
                    if two_by_two:
                        for tap in range(4):
                            pixel = (tap >> 1) * row_stride + (tap & 1) * channels
                            j = x + out_col * step + pixel + c
                            value = load(ptr_add(acts, j), n)
                            dx = where_equal(value, max_value, dy_left, zero)
                            store(ptr_add(deltas, j), dx, n)
                            dy_left = where_equal(value, max_value, zero, dy_left)
                    else:
                        for r in range(bottom - top):
                            for col in range(left, right):
                                j = x + r * row_stride + col * channels + c
                                value, dx = load(ptr_add(acts, j), n), load(ptr_add(deltas, j), n)
                                dx_here = where_equal(value, max_value, dy_left, zero)
                                store(ptr_add(deltas, j), dx + dx_here, n)
                                dy_left = where_equal(value, max_value, zero, dy_left)


@max_backward.cuda
def max_backward(op, params, grads, acts, deltas, lo, hi):
    channels, width, out_width = op[GEOMETRY.channels], op[GEOMETRY.width], op[GEOMETRY.out_width]
    for e in range(thread_rank(), (hi - lo) * op[N_IN], num_threads()):
        x, y, row, col = _locate_input(op, lo, e)
        first_row, last_row = _out_row_range(op, row)
        first_col, last_col = _out_col_range(op, col)
        value, dx = acts[x + (row * width + col) * channels], const_like(deltas, 0)
        for out_row in range(first_row, last_row):
            for out_col in range(first_col, last_col):
                out = y + (out_row * out_width + out_col) * channels
                found = value == acts[out]
                top, _ = _row_range(op, out_row)
                left, right = _col_range(op, out_col)
                for r in range(top, row + 1):
                    for s in range(left, col if r == row else right):
                        found = found and acts[x + (r * width + s) * channels] != acts[out]
                dx += deltas[out] if found else const_like(deltas, 0)
        deltas[op[X] + lo * op[N_IN] + e] = dx


@kernel(independent=True)
def max_tangent(op, params, grads, acts, deltas, lo, hi):
    """ẏ = ẋ of the first of the largest        deltas[y] overwritten"""
    channels, width = op[GEOMETRY.channels], op[GEOMETRY.width]
    for e in range((hi - lo) * op[N_OUT]):
        x, out_row, out_col = _locate_output(op, lo, e)
        (top, bottom), (left, right) = _row_range(op, out_row), _col_range(op, out_col)
        first = x + (top * width + left) * channels
        for row in range(top, bottom):
            for col in range(left, right):
                place = x + (row * width + col) * channels
                if acts[place] > acts[first]:
                    first = place
        deltas[op[Y] + lo * op[N_OUT] + e] = deltas[first]


# --- mean -----------------------------------------------------------------------------------------


class AvgPool2D(Pool2D):
    """The mean of each window."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, mean_forward, mean_backward)]


@kernel
def mean_forward(op, params, grads, acts, deltas, lo, hi):
    """y = mean x over each window        acts[y] overwritten"""
    channels, row_stride = op[GEOMETRY.channels], op[GEOMETRY.width] * op[GEOMETRY.channels]
    for i in range(lo, hi):
        for out_row in range(op[GEOMETRY.out_height]):
            top, bottom = _row_range(op, out_row)
            for out_col in range(op[GEOMETRY.out_width]):
                left, right = _col_range(op, out_col)
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                y = op[Y] + i * op[N_OUT] + pixel * channels
                scale = const_like(acts, 1 / ((bottom - top) * (right - left)))
                for c in range(channels):
                    acts[y + c] = const_like(acts, 0)
                for row in range(top, bottom):
                    for col in range(left, right):
                        x = op[X] + i * op[N_IN] + row * row_stride + col * channels
                        for c in range(channels):
                            acts[y + c] += scale * acts[x + c]


@mean_forward.cuda
def mean_forward(op, params, grads, acts, deltas, lo, hi):
    channels, width = op[GEOMETRY.channels], op[GEOMETRY.width]
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        x, out_row, out_col = _locate_output(op, lo, e)
        (top, bottom), (left, right) = _row_range(op, out_row), _col_range(op, out_col)
        total = const_like(acts, 0)
        for row in range(top, bottom):
            for col in range(left, right):
                total += acts[x + (row * width + col) * channels]
        n = const_like(acts, (bottom - top) * (right - left))
        acts[op[Y] + lo * op[N_OUT] + e] = total / n


@kernel
def mean_backward(op, params, grads, acts, deltas, lo, hi):
    """Give every element of a window the same part of dy        deltas[x] overwritten"""
    channels, row_stride = op[GEOMETRY.channels], op[GEOMETRY.width] * op[GEOMETRY.channels]
    for i in range(lo, hi):
        _clear(op, deltas, i)
        for out_row in range(op[GEOMETRY.out_height]):
            top, bottom = _row_range(op, out_row)
            for out_col in range(op[GEOMETRY.out_width]):
                left, right = _col_range(op, out_col)
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                y = op[Y] + i * op[N_OUT] + pixel * channels
                scale = const_like(acts, 1 / ((bottom - top) * (right - left)))
                for row in range(top, bottom):
                    for col in range(left, right):
                        x = op[X] + i * op[N_IN] + row * row_stride + col * channels
                        for c in range(channels):
                            deltas[x + c] += scale * deltas[y + c]


@mean_backward.cuda
def mean_backward(op, params, grads, acts, deltas, lo, hi):
    for e in range(thread_rank(), (hi - lo) * op[N_IN], num_threads()):
        _, y, row, col = _locate_input(op, lo, e)
        first_row, last_row = _out_row_range(op, row)
        first_col, last_col = _out_col_range(op, col)
        dx = const_like(deltas, 0)
        for out_row in range(first_row, last_row):
            top, bottom = _row_range(op, out_row)
            for out_col in range(first_col, last_col):
                left, right = _col_range(op, out_col)
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                n = const_like(deltas, (bottom - top) * (right - left))
                dx += deltas[y + pixel * op[GEOMETRY.channels]] / n
        deltas[op[X] + lo * op[N_IN] + e] = dx


# --- the p-norm -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LpPool2D(Pool2D):
    """The p-norm of each window, p ≥ 1; p = 2 is the root of the sum of squares."""

    p: Annotated[float, Real(1)] = 2.0

    def ops(self, shape: Shape) -> list[Op]:
        second = lp_second_backward if self.p >= 2 else None  # infinite at 0 for 1 < p < 2
        return [self._op(shape, lp_forward, lp_backward, lp_tangent, second, self.p)]


@inline
def _lp_slope(x, y, p):
    """dy/dx = sign(x) |x / y|^(p−1) for y > 0"""
    zero, slope = const_like(x, 0), power(abs(x) / y, p - 1)
    return where_greater(x, zero, slope, where_greater(zero, x, zero - slope, zero))


@kernel
def lp_forward(op, params, grads, acts, deltas, lo, hi):
    """y = (Σ |x|ᵖ)^(1/p) over each window        acts[y] overwritten"""
    channels, row_stride = op[GEOMETRY.channels], op[GEOMETRY.width] * op[GEOMETRY.channels]
    p, simd_width = float_attr(op, GEOMETRY.power), lanes(acts)
    for i in range(lo, hi):
        x = ptr_add(acts, op[X] + i * op[N_IN])
        for out_row in range(op[GEOMETRY.out_height]):
            top, bottom = _row_range(op, out_row)
            for out_col in range(op[GEOMETRY.out_width]):
                left, right = _col_range(op, out_col)
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                y = ptr_add(acts, op[Y] + i * op[N_OUT] + pixel * channels)
                for c in range(0, channels, simd_width):
                    n, total = channels - c, splat(acts, 0)
                    for row in range(top, bottom):
                        for col in range(left, right):
                            j = row * row_stride + col * channels + c
                            total = total + power(abs(load(ptr_add(x, j), n)), p)
                    store(ptr_add(y, c), power(total, 1 / p), n)


@lp_forward.cuda
def lp_forward(op, params, grads, acts, deltas, lo, hi):
    channels, width = op[GEOMETRY.channels], op[GEOMETRY.width]
    p = float_attr(op, GEOMETRY.power)
    for e in range(thread_rank(), (hi - lo) * op[N_OUT], num_threads()):
        x, out_row, out_col = _locate_output(op, lo, e)
        (top, bottom), (left, right) = _row_range(op, out_row), _col_range(op, out_col)
        total = const_like(acts, 0)
        for row in range(top, bottom):
            for col in range(left, right):
                total += power(abs(acts[x + (row * width + col) * channels]), p)
        acts[op[Y] + lo * op[N_OUT] + e] = power(total, 1 / p)


@kernel
def lp_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy sign(x) |x / y|^(p−1), 0 where y is        deltas[x] overwritten"""
    channels, row_stride = op[GEOMETRY.channels], op[GEOMETRY.width] * op[GEOMETRY.channels]
    p, simd_width = float_attr(op, GEOMETRY.power), lanes(acts)
    zero, one = splat(acts, 0), splat(acts, 1)
    for i in range(lo, hi):
        _clear(op, deltas, i)
        x = op[X] + i * op[N_IN]
        for out_row in range(op[GEOMETRY.out_height]):
            top, bottom = _row_range(op, out_row)
            for out_col in range(op[GEOMETRY.out_width]):
                left, right = _col_range(op, out_col)
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                y = op[Y] + i * op[N_OUT] + pixel * channels
                for c in range(0, channels, simd_width):
                    n, y_here = channels - c, load(ptr_add(acts, y + c), channels - c)
                    dy = where_greater(y_here, zero, load(ptr_add(deltas, y + c), n), zero)
                    y_here = where_greater(y_here, zero, y_here, one)
                    for row in range(top, bottom):
                        for col in range(left, right):
                            j = x + row * row_stride + col * channels + c
                            slope = _lp_slope(load(ptr_add(acts, j), n), y_here, p)
                            dx = load(ptr_add(deltas, j), n) + dy * slope
                            store(ptr_add(deltas, j), dx, n)


@lp_backward.cuda
def lp_backward(op, params, grads, acts, deltas, lo, hi):
    zero, p = const_like(acts, 0), float_attr(op, GEOMETRY.power)
    for e in range(thread_rank(), (hi - lo) * op[N_IN], num_threads()):
        x, y, row, col = _locate_input(op, lo, e)
        first_row, last_row = _out_row_range(op, row)
        first_col, last_col = _out_col_range(op, col)
        value, dx = acts[x + (row * op[GEOMETRY.width] + col) * op[GEOMETRY.channels]], zero
        for out_row in range(first_row, last_row):
            for out_col in range(first_col, last_col):
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                out = y + pixel * op[GEOMETRY.channels]
                if acts[out] > zero:
                    dx += deltas[out] * _lp_slope(value, acts[out], p)
        deltas[op[X] + lo * op[N_IN] + e] = dx


@kernel(independent=True)
def lp_tangent(op, params, grads, acts, deltas, lo, hi):
    """ẏ = Σ ẋ sign(x) |x / y|^(p−1), 0 where y is        deltas[y] overwritten"""
    channels, width = op[GEOMETRY.channels], op[GEOMETRY.width]
    p, zero = float_attr(op, GEOMETRY.power), const_like(acts, 0)
    for e in range((hi - lo) * op[N_OUT]):
        x, out_row, out_col = _locate_output(op, lo, e)
        (top, bottom), (left, right) = _row_range(op, out_row), _col_range(op, out_col)
        y, total = op[Y] + lo * op[N_OUT] + e, zero
        for row in range(top, bottom):
            for col in range(left, right):
                place = x + (row * width + col) * channels
                if acts[y] > zero:
                    total += deltas[place] * _lp_slope(acts[place], acts[y], p)
        deltas[y] = total


@kernel(independent=True)
def lp_second_backward(op, params, grads, acts, deltas, lo, hi):
    """ḋx += dy (p − 1) / y (|x / y|^(p−2) ẋ − sign(x) |x / y|^(p−1) ẏ), for y > 0 and p ≥ 2

    tangents of deltas[x] added to
    """
    channels, width, tangents = op[GEOMETRY.channels], op[GEOMETRY.width], context(op, TANGENTS)
    p = float_attr(op, GEOMETRY.power)
    for e in range((hi - lo) * op[N_OUT]):
        x, out_row, out_col = _locate_output(op, lo, e)
        (top, bottom), (left, right) = _row_range(op, out_row), _col_range(op, out_col)
        out = op[Y] + lo * op[N_OUT] + e
        y, y_tangent = acts[out], acts[tangents + out]
        for row in range(top, bottom):
            for col in range(left, right):
                place = x + (row * width + col) * channels
                if y > const_like(y, 0):
                    change = power(abs(acts[place]) / y, p - 2) * acts[tangents + place]
                    change -= _lp_slope(acts[place], y, p) * y_tangent
                    deltas[tangents + place] += deltas[out] * const_like(y, p - 1) / y * change


# --- the whole image ------------------------------------------------------------------------------


class _Global(Layer):
    """A pooling window as large as the image; the output is a vector of channels."""

    kind: type

    def output_shape(self, shape: Shape) -> Shape:
        size = shape[:2] if len(shape) == 3 else 1  # another shape is refused by its length
        return (window(type(self).__name__, shape, size).in_shape[2],)

    def ops(self, shape: Shape) -> list[Op]:
        return self.kind(shape[:2]).ops(shape)


class GlobalAvgPool2D(_Global):
    """The mean of every channel: (height, width, channels) → (channels,)."""

    kind = AvgPool2D


class GlobalMaxPool2D(_Global):
    """The largest of every channel: (height, width, channels) → (channels,)."""

    kind = MaxPool2D
