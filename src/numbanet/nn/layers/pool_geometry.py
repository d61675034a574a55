"""What poolings share: the sizes in their rows, what a window covers, and which windows cover a place."""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.backend.intrinsics import const_like, div_u32
from numbanet.backend.jit import inline
from numbanet.io.fields import Padding, Pair
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.nn.layers.window import window
from numbanet.plan.columns import ATTRS, N_IN, N_OUT, Op, X, Y

HEIGHT, WIDTH_IN, CHANNELS, OUT_HEIGHT, OUT_WIDTH, ROWS, COLUMNS, STRIDE_V, STRIDE_H, TOP, LEFT, POWER = range(ATTRS, ATTRS + 12)
"""Sizes of input, output and window, padding above and to the left, and p as a real."""


@dataclass(frozen=True, eq=False)
class Pool2D(Layer):
    """A pooling window of `size`, moved by `stride` (by default its size)."""

    size: Annotated[Any, Pair()] = 2
    stride: Annotated[Any, Pair(optional=True)] = None
    padding: Annotated[Any, Padding()] = "valid"

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

    def _op(self, shape: Shape, forward, backward, power: float = 0.0, keeps_output: bool = True) -> Op:
        return Op(type(self).__name__, size(shape), size(self.output_shape(shape)), forward, backward,
                  attrs=(*self._own(shape), power), keeps_output=keeps_output)


@inline
def clear(op, deltas, i):
    """Start deltas[x] of sample i at zero."""
    x = op[X] + i * op[N_IN]
    for j in range(x, x + op[N_IN]):
        deltas[j] = const_like(deltas, 0)


@inline
def input_range(place, step, before, window, end):
    """The first and past-the-last position that a window at `place` covers inside the picture."""
    start = place * step - before
    return max(start, 0), min(start + window, end)


@inline
def receptive_field(op, lo, e):
    """For output e, counted from sample lo: its channel's place in the picture, and the rows and columns that it covers."""
    i = div_u32(e, op[N_OUT])
    pixel = div_u32(e - i * op[N_OUT], op[CHANNELS])
    v = div_u32(pixel, op[OUT_WIDTH])
    top, bottom = input_range(v, op[STRIDE_V], op[TOP], op[ROWS], op[HEIGHT])
    left, right = input_range(pixel - v * op[OUT_WIDTH], op[STRIDE_H], op[LEFT], op[COLUMNS], op[WIDTH_IN])
    return op[X] + (lo + i) * op[N_IN] + e - i * op[N_OUT] - pixel * op[CHANNELS], top, bottom, left, right


@inline
def output_range(op, lo, e):
    """For input e, counted from sample lo: its channel's places in input and output, its own, and the windows that cover it."""
    i = div_u32(e, op[N_IN])
    pixel = div_u32(e - i * op[N_IN], op[CHANNELS])
    c, h = e - i * op[N_IN] - pixel * op[CHANNELS], div_u32(pixel, op[WIDTH_IN])
    w = pixel - h * op[WIDTH_IN]
    first, last = covering_outputs(h + op[TOP], op[STRIDE_V], op[ROWS], op[OUT_HEIGHT])
    begin, end = covering_outputs(w + op[LEFT], op[STRIDE_H], op[COLUMNS], op[OUT_WIDTH])
    return op[X] + (lo + i) * op[N_IN] + c, op[Y] + (lo + i) * op[N_OUT] + c, h, w, first, last, begin, end


@inline
def covering_outputs(place, step, window, count):
    """The first and past-the-last window that covers a place in the padded picture."""
    return div_u32(max(place - window, -step) + step, step), min(div_u32(place, step) + 1, count)
