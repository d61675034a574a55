"""The geometry of a window that slides over an image, for every convolution and pooling."""

from dataclasses import dataclass, replace
from typing import Any

from numbanet.backend.intrinsics import const_like, div_u32, num_threads, thread_rank
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Padding, Pair
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.base import size as size_of
from numbanet.plan.columns import N_IN, N_OUT, Attrs, X, Y
from numbanet.plan.op import Op


@dataclass(frozen=True)
class Window:
    """A window of `size` (height, width) that slides over an image.

    in_shape (height, width, channels) · output (out_height, out_width)
    stride and dilation (rows, columns) · padding (top, bottom, left, right)
    """

    in_shape: Shape
    size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the image with its padding."""
        top, bottom, left, right = self.padding
        return self.in_shape[0] + top + bottom, self.in_shape[1] + left + right

    @property
    def effective_size(self) -> tuple[int, int]:
        """Height and width from the first to the last pixel that it touches, dilation included."""
        height, width = ((n - 1) * d + 1 for n, d in zip(self.size, self.dilation, strict=True))
        return height, width

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output; rows and columns left over at the end are dropped."""
        sizes = zip(self.padded, self.effective_size, self.stride, strict=True)
        height, width = ((n - k) // s + 1 for n, k, s in sizes)
        return height, width


def window(
    layer: str, in_shape: Shape, size, stride=1, padding: Any = "valid", dilation: Any = 1
) -> Window:
    """A window over an image (height, width, channels), checked.

    padding   "valid" none · "same" so much that stride 1 keeps the size (the odd one at the end) ·
              an integer for all sides · (vertical, horizontal) · ((top, bottom), (left, right))
    Raises ValueError with both sizes where the window does not fit, or for a wrong argument.
    """
    if len(in_shape) != 3:
        hint = ""
        if len(in_shape) == 2:
            hint = f"; give it a channel axis: input_shape={(*in_shape, 1)}"
        elif len(in_shape) == 1:
            hint = (
                "; begin with images, input_shape=(height, width, channels), and put Flatten() "
                "after the last window"
            )
        raise ValueError(
            f"{layer} expects an image (height, width, channels), got {in_shape}{hint}"
        )
    size, stride, dilation = (
        Pair().two(value, name, layer)
        for value, name in ((size, "size"), (stride, "stride"), (dilation, "dilation"))
    )
    padding = Padding()(padding, "padding", layer)
    sides = _padding(padding, in_shape, size, stride, dilation)
    result = Window(in_shape, size, stride, dilation, sides)
    # beyond the image any stride leaves one position: it is cut so that kernels' loops stay short
    short = (min(stride[0], result.padded[0] + 1), min(stride[1], result.padded[1] + 1))
    result = replace(result, stride=short)
    for axis, name in enumerate(("high", "wide")):
        effective, padded = result.effective_size[axis], result.padded[axis]
        if effective > padded:
            channels_first = in_shape[0] in (1, 3) and in_shape[2] > 6
            hint = " (channels come last: is this image channels first?)" if channels_first else ""
            raise ValueError(
                f"{layer}: a window {effective} {name} does not fit an input {padded} {name}, "
                f"padding included; make it smaller or pad with padding='same'{hint}"
            )
    return result


def _padding(padding, in_shape, size, stride, dilation) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a checked `padding`."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        sides: list[int] = []
        for n, k, s, d in zip(in_shape, size, stride, dilation, strict=False):
            missing = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            sides += [missing // 2, missing - missing // 2]
        return sides[0], sides[1], sides[2], sides[3]
    vertical, horizontal = padding if isinstance(padding, tuple) else (padding, padding)
    (top, bottom), (left, right) = (
        side if isinstance(side, tuple) else (side, side) for side in (vertical, horizontal)
    )
    return top, bottom, left, right


# --- the padding itself ---------------------------------------------------------------------------

PADDING = Attrs("height row_stride top left_elements padded_row_stride")
"""Rows and elements per row; rows above, elements to the left; elements per padded row."""


def pad_ops(view: Window) -> list[Op]:
    """The op that a window's padding needs, if any."""
    if not any(view.padding):
        return []
    (height, width, channels), (top, _, left, _) = view.in_shape, view.padding
    padded = (*view.padded, channels)
    attrs = PADDING.pack(
        height=height,
        row_stride=width * channels,
        top=top,
        left_elements=left * channels,
        padded_row_stride=padded[1] * channels,
    )
    n_in, n_out = size_of(view.in_shape), size_of(padded)
    verbs = pad_forward, pad_backward
    return [Op("ZeroPadding2D", n_in, n_out, *verbs, linear=True, attrs=attrs)]


@inline
def _padded_row(op, i, row):
    """Offset, in the padded image of sample i, of the first element of a row of the image."""
    y = op[Y] + i * op[N_OUT] + op[PADDING.left_elements]
    return y + (row + op[PADDING.top]) * op[PADDING.padded_row_stride]


@kernel
def pad_forward(op, params, grads, acts, deltas, lo, hi):
    """Pad the image with zeros        acts[y] overwritten"""
    n_x, n_y, row_stride = op[N_IN], op[N_OUT], op[PADDING.row_stride]
    for i in range(lo, hi):
        y = op[Y] + i * n_y
        for j in range(y, y + n_y):
            acts[j] = const_like(acts, 0)
        for row in range(op[PADDING.height]):
            x, y = op[X] + i * n_x + row * row_stride, _padded_row(op, i, row)
            for j in range(row_stride):
                acts[y + j] = acts[x + j]


@pad_forward.cuda
def pad_forward(op, params, grads, acts, deltas, lo, hi):
    n_x, n_y, row_stride = op[N_IN], op[N_OUT], op[PADDING.row_stride]
    for e in range(thread_rank(), (hi - lo) * n_y, num_threads()):
        i = div_u32(e, n_y)
        padded_row = div_u32(e - i * n_y, op[PADDING.padded_row_stride])
        j = e - i * n_y - padded_row * op[PADDING.padded_row_stride] - op[PADDING.left_elements]
        row = padded_row - op[PADDING.top]
        inside = 0 <= row < op[PADDING.height] and 0 <= j < row_stride
        x = op[X] + (lo + i) * n_x + row * row_stride + j
        acts[op[Y] + lo * n_y + e] = acts[x] if inside else const_like(acts, 0)


@kernel
def pad_backward(op, params, grads, acts, deltas, lo, hi):
    """Crop the padding        deltas[x] overwritten"""
    n_x, row_stride = op[N_IN], op[PADDING.row_stride]
    for i in range(lo, hi):
        for row in range(op[PADDING.height]):
            x, y = op[X] + i * n_x + row * row_stride, _padded_row(op, i, row)
            for j in range(row_stride):
                deltas[x + j] = deltas[y + j]


@pad_backward.cuda
def pad_backward(op, params, grads, acts, deltas, lo, hi):
    n_x, row_stride = op[N_IN], op[PADDING.row_stride]
    for e in range(thread_rank(), (hi - lo) * n_x, num_threads()):
        i = div_u32(e, n_x)
        row = div_u32(e - i * n_x, row_stride)
        j = e - i * n_x - row * row_stride
        deltas[op[X] + lo * n_x + e] = deltas[_padded_row(op, lo + i, row) + j]
