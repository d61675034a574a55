"""ZeroPadding2D: a border of zeros around an image.

    y[h + top, w + left, c] = x[h, w, c], else 0

x (height, width, channels) · y (top + height + bottom, left + width + right, channels)
"""

from dataclasses import dataclass
from typing import Annotated, Any

from numbanet.io.fields import Padding
from numbanet.nn.layers.base import Layer, Shape
from numbanet.nn.layers.window import pad_ops, window
from numbanet.plan.op import Op


@dataclass(frozen=True, eq=False)
class ZeroPadding2D(Layer):
    """Zeros around an image.

    padding   an integer, (vertical, horizontal) or ((top, bottom), (left, right))
    """

    padding: Annotated[Any, Padding()] = 1

    def _window(self, shape: Shape):
        return window("ZeroPadding2D", shape, 1, padding=self.padding)

    def output_shape(self, shape: Shape) -> Shape:
        return (*self._window(shape).padded, shape[2])

    def ops(self, shape: Shape) -> list[Op]:
        return pad_ops(self._window(shape))
