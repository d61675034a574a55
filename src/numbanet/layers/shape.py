"""Layers that change only how the numbers of a sample are counted; they move nothing and have no row in the plan."""

from dataclasses import dataclass

from numbanet.layers.base import Layer, Shape, size


@dataclass(frozen=True, eq=False)
class Flatten(Layer):
    """See a sample of any shape as a vector, in C order."""

    def output_shape(self, shape: Shape) -> Shape:
        return (size(shape),)
