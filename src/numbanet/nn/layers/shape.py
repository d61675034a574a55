"""Layers that change only the shape of a sample; they copy nothing and have no row in the plan."""

from dataclasses import dataclass
from typing import Annotated

from numbanet.io.fields import Counts
from numbanet.nn.layers.base import Layer, Shape, size


@dataclass(frozen=True, eq=False)
class Flatten(Layer):
    """See a sample of any shape as a vector, in C order."""

    def output_shape(self, shape: Shape) -> Shape:
        return (size(shape),)


@dataclass(frozen=True, eq=False)
class Reshape(Layer):
    """See a sample as `shape`, in C order: a vector of 784 as an image (28, 28, 1)."""

    shape: Annotated[tuple, Counts()] = ()

    def output_shape(self, shape: Shape) -> Shape:
        if size(self.shape) != size(shape) or min(self.shape, default=0) < 1:
            raise ValueError(
                f"Reshape to {self.shape} needs {size(self.shape)} elements, "
                f"the input {shape} has {size(shape)}"
            )
        return self.shape
