"""The geometry of a window that slides over a picture: one validated object for every convolution and pooling."""

from dataclasses import dataclass, replace
from typing import Any

from numbanet.backend.intrinsics import const_like, div_u32, num_threads, thread_rank
from numbanet.backend.jit import kernel
from numbanet.io.fields import Padding, Pair
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.base import size as numbers
from numbanet.plan.columns import ATTRS, N_IN, N_OUT, Op, X, Y


@dataclass(frozen=True)
class Window:
    """A window of `size` (height, width), with `stride`, `dilation` and `padding` (top, bottom, left, right), over a picture.

    picture (height, width, channels) · output (out_height, out_width)
    """

    picture: Shape
    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the picture with its padding."""
        top, bottom, left, right = self.padding
        return self.picture[0] + top + bottom, self.picture[1] + left + right

    @property
    def effective_size(self) -> tuple[int, int]:
        """Rows and columns from the first to the last that the window touches, dilation included."""
        return tuple((n - 1) * d + 1 for n, d in zip(self.size, self.dilation, strict=True))  # type: ignore[return-value]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output: the window's places; rows and columns left over at the end are dropped."""
        return tuple((n - r) // s + 1 for n, r, s in zip(self.padded, self.effective_size, self.stride, strict=True))  # type: ignore


def window(layer: str, picture: Shape, size, stride=1, padding: Any = "valid", dilation: Any = 1) -> Window:
    """A window over a picture (height, width, channels), checked.

    padding   "valid" none · "same" so much that stride 1 keeps the size (the odd one at the end) · a number for all sides ·
              (vertical, horizontal) · ((top, bottom), (left, right))
    Raises ValueError with both numbers where the window does not fit or a number makes no sense.
    """
    if len(picture) != 3:
        hint = ""
        if len(picture) == 2:
            hint = f"; give it a channel axis: input_shape={(*picture, 1)}"
        elif len(picture) == 1:
            hint = "; begin with pictures, input_shape=(height, width, channels), and put Flatten() after the last window"
        raise ValueError(f"{layer} expects a picture (height, width, channels), got {picture}{hint}")
    size, stride, dilation = (
        Pair().two(one, name, layer) for one, name in ((size, "size"), (stride, "stride"), (dilation, "dilation")))
    padding = Padding()(padding, "padding", layer)
    result = Window(picture, size, stride, dilation, _padding(layer, padding, picture, size, stride, dilation))
    # there is one place for the window whatever a stride beyond the picture is: a kernel's loops need not be as long
    short = (min(stride[0], result.padded[0] + 1), min(stride[1], result.padded[1] + 1))
    result = replace(result, stride=short)
    for axis, name in enumerate(("high", "wide")):
        if result.effective_size[axis] > result.padded[axis]:
            first = " (channels come last: is this picture channels first?)" if picture[0] in (1, 3) and picture[2] > 6 else ""
            raise ValueError(f"{layer}: a window {result.effective_size[axis]} {name} does not fit an input {result.padded[axis]} {name}, "
                             f"padding included; make it smaller or pad with padding='same'{first}")
    return result


def _padding(layer, padding, picture, size, stride, dilation) -> tuple[int, int, int, int]:
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        sides: list[int] = []
        for n, k, s, d in zip(picture, size, stride, dilation, strict=False):
            missing = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            sides += [missing // 2, missing - missing // 2]
        return sides[0], sides[1], sides[2], sides[3]
    first, second = padding if isinstance(padding, tuple) else (padding, padding)
    (top, bottom), (left, right) = (side if isinstance(side, tuple) else (side, side) for side in (first, second))
    return top, bottom, left, right


# --- the padding itself ---------------------------------------------------------------------------------------------------

HEIGHT, LINE, TOP, BEFORE, PADDED_LINE = range(ATTRS, ATTRS + 5)
"""Rows of the picture, numbers in one of them, rows above, numbers to its left, numbers in a padded row."""


def pad_ops(window) -> list[Op]:
    """The op that a window's padding needs, if any."""
    if not any(window.padding):
        return []
    (height, width, channels), (top, _, left, _) = window.picture, window.padding
    padded = (*window.padded, channels)
    return [Op("ZeroPadding2D", numbers(window.picture), numbers(padded), pad_forward, pad_backward,
               attrs=(height, width * channels, top, left * channels, padded[1] * channels))]


@kernel
def pad_forward(op, params, grads, acts, deltas, lo, hi):
    """Set the picture into zeros        acts[y] overwritten"""
    n_x, n_y, line, padded = op[N_IN], op[N_OUT], op[LINE], op[PADDED_LINE]
    for i in range(lo, hi):
        y = op[Y] + i * n_y
        for j in range(y, y + n_y):
            acts[j] = const_like(acts, 0)
        for h in range(op[HEIGHT]):
            x, y = op[X] + i * n_x + h * line, op[Y] + i * n_y + (h + op[TOP]) * padded + op[BEFORE]
            for j in range(line):
                acts[y + j] = acts[x + j]


@pad_forward.cuda
def pad_forward(op, params, grads, acts, deltas, lo, hi):
    n_x, n_y, line, padded = op[N_IN], op[N_OUT], op[LINE], op[PADDED_LINE]
    for e in range(thread_rank(), (hi - lo) * n_y, num_threads()):
        i = div_u32(e, n_y)
        h = div_u32(e - i * n_y, padded)
        j, h = e - i * n_y - h * padded - op[BEFORE], h - op[TOP]
        inside = 0 <= h < op[HEIGHT] and 0 <= j < line
        acts[op[Y] + lo * n_y + e] = acts[op[X] + (lo + i) * n_x + h * line + j] if inside else const_like(acts, 0)


@kernel
def pad_backward(op, params, grads, acts, deltas, lo, hi):
    """Cut the frame off        deltas[x] overwritten"""
    n_x, n_y, line, padded = op[N_IN], op[N_OUT], op[LINE], op[PADDED_LINE]
    for i in range(lo, hi):
        for h in range(op[HEIGHT]):
            x, y = op[X] + i * n_x + h * line, op[Y] + i * n_y + (h + op[TOP]) * padded + op[BEFORE]
            for j in range(line):
                deltas[x + j] = deltas[y + j]


@pad_backward.cuda
def pad_backward(op, params, grads, acts, deltas, lo, hi):
    n_x, n_y, line, padded = op[N_IN], op[N_OUT], op[LINE], op[PADDED_LINE]
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        h = div_u32(e - i * n_x, line)
        j = e - i * n_x - h * line
        deltas[op[X] + lo * n_x + e] = deltas[op[Y] + (lo + i) * n_y + (h + op[TOP]) * padded + op[BEFORE] + j]
