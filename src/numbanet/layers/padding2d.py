"""ZeroPadding2D: a frame of zeros around a picture.

    y[h + top, w + left, c] = x[h, w, c], else 0        x (height, width, channels)
"""

from dataclasses import dataclass
from typing import Any

from numbanet._jit import kernel
from numbanet._simd import like
from numbanet.layers.base import Layer, Shape, size
from numbanet.layers.window import window
from numbanet.plan import N_X, N_Y, OWN, Op, X, Y

HEIGHT, LINE, TOP, BEFORE, PADDED_LINE = range(OWN, OWN + 5)
"""Rows of the picture, numbers in one of them, rows above, numbers to its left, numbers in a padded row."""


@dataclass(frozen=True, eq=False)
class ZeroPadding2D(Layer):
    """Zeros around a picture: `padding` is a number, (vertical, horizontal) or ((top, bottom), (left, right))."""

    padding: Any = 1

    def _window(self, shape: Shape):
        return window("ZeroPadding2D", shape, 1, padding=self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        return (*self._window(shape).padded, shape[2])

    def ops(self, shape: Shape) -> list[Op]:
        return pad(self._window(shape))


def pad(window) -> list[Op]:
    """The op that a window's padding needs, if any."""
    if not any(window.padding):
        return []
    (height, width, channels), (top, _, left, _) = window.picture, window.padding
    padded = (*window.padded, channels)
    return [Op("ZeroPadding2D", size(window.picture), size(padded), forward, backward,
               own=(height, width * channels, top, left * channels, padded[1] * channels))]


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """Set the picture into zeros        acts[y] overwritten"""
    n_x, n_y, line, padded = op[N_X], op[N_Y], op[LINE], op[PADDED_LINE]
    for i in range(lo, hi):
        y = op[Y] + i * n_y
        for j in range(y, y + n_y):
            acts[j] = like(acts, 0)
        for h in range(op[HEIGHT]):
            x, y = op[X] + i * n_x + h * line, op[Y] + i * n_y + (h + op[TOP]) * padded + op[BEFORE]
            for j in range(line):
                acts[y + j] = acts[x + j]


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """Cut the frame off        deltas[x] overwritten"""
    n_x, n_y, line, padded = op[N_X], op[N_Y], op[LINE], op[PADDED_LINE]
    for i in range(lo, hi):
        for h in range(op[HEIGHT]):
            x, y = op[X] + i * n_x + h * line, op[Y] + i * n_y + (h + op[TOP]) * padded + op[BEFORE]
            for j in range(line):
                deltas[x + j] = deltas[y + j]
