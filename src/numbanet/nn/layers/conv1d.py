"""Conv1D and pooling over sequences: a sequence (length, channels) is a picture (1, length, channels).

    z[t, o] = b[o] + Σ_s Σ_c a[t·stride + s·dilation, c] · K[s, c, o]

    a (length, c_in) · K (kernel_size, c_in / groups, filters) · b (filters) · z (out_length, filters)

The numbers lie in memory as those of the picture do, so a layer here has a shape rule and no kernels: it lowers to the ops of its
two-dimensional kin. That is why this file alone imports other layers.

Source   Waibel et al. 1989 (time-delay networks); Dumoulin, Visin 2016 (geometry)
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from numbanet.io.fields import Count, Flag, Padding
from numbanet.nn.initializers import INITIALIZER
from numbanet.nn.layers.base import ACTIVATION, Layer, Shape
from numbanet.nn.layers.conv2d import Conv2D
from numbanet.nn.layers.pool2d import AvgPool2D, MaxPool2D
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.columns import Op


def _sides(padding) -> Any:
    """The padding of a picture of height 1 for "valid", "same", a number or (left, right)."""
    if isinstance(padding, str):
        return padding
    return (0, 0), padding if isinstance(padding, tuple) else (padding, padding)


def _picture(layer: str, shape: Shape, size: int, padding, dilation: int = 1) -> Shape:
    """The sequence's shape as a picture's; ValueError for another shape, or a window that is longer than the padded sequence."""
    if len(shape) != 2:
        hint = f"; give it a channel axis: input_shape={(*shape, 1)}" if len(shape) == 1 else ""
        raise ValueError(f"{layer} expects a sequence (length, channels), got {shape}{hint}")
    sides = _sides(padding)
    padded = shape[0] + (0 if isinstance(sides, str) else sum(sides[1]))
    reach = (size - 1) * dilation + 1
    if padding != "same" and reach > padded:
        raise ValueError(f"{layer}: a window {reach} long does not fit an input {padded} long, padding included; make it smaller "
                         "or pad with padding='same'")
    return (1, *shape)


@dataclass(frozen=True, eq=False)
class Conv1D(Layer):
    """A convolution with `filters` kernels of `kernel_size` over sequences, channels last, followed by `activation`.

    kernel_size, stride, dilation   whole numbers
    padding       "valid", "same", a number or (left, right), of zeros
    groups        channels are split into that many groups that do not see each other; c_in of them is a depthwise convolution
    activation, initializer, bias_initializer, penalty, bias   as in Dense
    Input (length, c_in), output (out_length, filters). Raises ValueError for a window that does not fit.
    """

    filters: Annotated[int, Count()]
    kernel_size: Annotated[int, Count()]
    stride: Annotated[int, Count()] = 1
    padding: Annotated[Any, Padding(1)] = "valid"
    dilation: Annotated[int, Count()] = 1
    groups: Annotated[int, Count()] = 1
    activation: Annotated[Any, ACTIVATION] = None
    initializer: Annotated[Any, INITIALIZER] = None
    bias_initializer: Annotated[Any, INITIALIZER] = "zeros"
    penalty: Annotated[Any, PENALTY] = None
    bias: Annotated[bool, Flag()] = True

    def _picture(self, shape: Shape) -> Shape:
        return _picture("Conv1D", shape, self.kernel_size, self.padding, self.dilation)

    @property
    def _flat(self) -> Conv2D:
        """The same convolution over pictures of height 1."""
        return Conv2D(self.filters, (1, self.kernel_size), (1, self.stride), _sides(self.padding), (1, self.dilation),
                      self.groups, initializer=self.initializer, bias_initializer=self.bias_initializer, bias=self.bias)

    def output_shape(self, shape: Shape) -> Shape:
        picture = self._picture(shape)
        for name, channels in (("input channels", shape[1]), ("filters", self.filters)):
            if channels % self.groups:
                raise ValueError(f"Conv1D: {self.groups} groups do not divide {channels} {name}; choose a divisor of both")
        return self._flat.output_shape(picture)[1:]

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        shapes = self._flat.parameters(self._picture(shape))
        return {**shapes, "weights": shapes["weights"][1:]}

    def initializers(self, following) -> dict:
        return self._flat.initializers(following)

    def ops(self, shape: Shape) -> list[Op]:
        return self._flat.ops(self._picture(shape))


@dataclass(frozen=True, eq=False)
class _Pool1D(Layer):
    """A pooling window of `size`, moved by `stride` (by default its size); padding as in Conv1D, and never counted."""

    size: Annotated[int, Count()] = 2
    stride: Annotated[int | None, Count(optional=True)] = None
    padding: Annotated[Any, Padding(1)] = "valid"
    kind: ClassVar[type]

    def __post_init__(self):
        super().__post_init__()
        sides = _sides(self.padding)
        if not isinstance(sides, str) and max(sides[1]) >= self.size:
            raise ValueError(f"{type(self).__name__}: padding {self.padding} is as large as the window {self.size}, so a window "
                             "would hold nothing; pad less")

    def _picture(self, shape: Shape) -> Shape:
        return _picture(type(self).__name__, shape, self.size, self.padding)

    @property
    def _flat(self) -> Layer:
        """The same pooling over pictures of height 1."""
        stride = self.size if self.stride is None else self.stride
        return self.kind((1, self.size), (1, stride), _sides(self.padding))

    def output_shape(self, shape: Shape) -> Shape:
        return self._flat.output_shape(self._picture(shape))[1:]

    def ops(self, shape: Shape) -> list[Op]:
        return self._flat.ops(self._picture(shape))


class MaxPool1D(_Pool1D):
    """The largest of each window: (length, channels) → (out_length, channels)."""

    kind = MaxPool2D


class AvgPool1D(_Pool1D):
    """The mean of each window: (length, channels) → (out_length, channels)."""

    kind = AvgPool2D
