"""Conv1D and pooling over sequences: (length, channels) is an image (1, length, channels).

    z[t, o] = b[o] + Σ_s Σ_c a[t·stride + s·dilation, c] · K[s, c, o]

    a (length, c_in) · K (kernel_size, c_in / groups, filters) · b (filters)
    z (out_length, filters)

The elements lie in memory as those of the image do, so a layer here has a shape rule and no
kernels: it lowers to the ops of the two-dimensional layer. So this file imports other layers.

Source   Waibel et al. 1989 (time-delay networks); Dumoulin, Visin 2016 (geometry)
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from numbanet.io.fields import Count, Flag, Padding
from numbanet.nn.initializers import INITIALIZER
from numbanet.nn.layers.base import ACTIVATION, Layer, Shape
from numbanet.nn.layers.conv2d import Conv2D
from numbanet.nn.layers.pool2d import AvgPool2D, GlobalAvgPool2D, GlobalMaxPool2D, MaxPool2D
from numbanet.nn.regularizers import PENALTY
from numbanet.plan.op import Op


def _sides(padding) -> Any:
    """The padding of an image of height 1 for "valid", "same", an integer or (left, right)."""
    if isinstance(padding, str):
        return padding
    return (0, 0), padding if isinstance(padding, tuple) else (padding, padding)


def _image_shape(layer: str, shape: Shape, size: int, padding, dilation: int = 1) -> Shape:
    """The shape of a sequence as that of an image.

    ValueError for another shape, or where the window is longer than the padded sequence.
    """
    if len(shape) != 2:
        hint = f"; give it a channel axis: input_shape={(*shape, 1)}" if len(shape) == 1 else ""
        raise ValueError(f"{layer} expects a sequence (length, channels), got {shape}{hint}")
    sides = _sides(padding)
    padded = shape[0] + (0 if isinstance(sides, str) else sum(sides[1]))
    effective_size = (size - 1) * dilation + 1
    if padding != "same" and effective_size > padded:
        raise ValueError(
            f"{layer}: a window {effective_size} long does not fit an input {padded} long, padding "
            "included; make it smaller or pad with padding='same'"
        )
    return (1, *shape)


@dataclass(frozen=True, eq=False)
class Conv1D(Layer):
    """A convolution with `filters` kernels of `kernel_size`, followed by `activation`.

    kernel_size, stride, dilation   integers
    padding       of zeros: "valid", "same", an integer or (left, right)
    groups        channels are split into that many groups that do not see each other; c_in groups
                  make a depthwise convolution
    activation, initializer, bias_initializer, penalty, bias   as in Dense
    Input (length, c_in), channels last; output (out_length, filters). Raises ValueError for a
    window that does not fit.
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

    def _image_shape(self, shape: Shape) -> Shape:
        return _image_shape("Conv1D", shape, self.kernel_size, self.padding, self.dilation)

    @property
    def _flat(self) -> Conv2D:
        """The same convolution over images of height 1."""
        return Conv2D(
            self.filters,
            kernel_size=(1, self.kernel_size),
            stride=(1, self.stride),
            padding=_sides(self.padding),
            dilation=(1, self.dilation),
            groups=self.groups,
            initializer=self.initializer,
            bias_initializer=self.bias_initializer,
            bias=self.bias,
        )

    def output_shape(self, shape: Shape) -> Shape:
        in_shape = self._image_shape(shape)
        for name, channels in (("input channels", shape[1]), ("filters", self.filters)):
            if channels % self.groups:
                raise ValueError(
                    f"Conv1D: {self.groups} groups do not divide {channels} {name}; "
                    "choose a divisor of both"
                )
        return self._flat.output_shape(in_shape)[1:]

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        shapes = self._flat.parameters(self._image_shape(shape))
        return {**shapes, "weights": shapes["weights"][1:]}

    def initializers(self, next_activation) -> dict:
        return self._flat.initializers(next_activation)

    def ops(self, shape: Shape) -> list[Op]:
        return self._flat.ops(self._image_shape(shape))


@dataclass(frozen=True, eq=False)
class _Pool1D(Layer):
    """A pooling window of `size`, moved by `stride` (by default its size).

    Padding is as in Conv1D, and never counted.
    """

    size: Annotated[int, Count()] = 2
    stride: Annotated[int | None, Count(optional=True)] = None
    padding: Annotated[Any, Padding(1)] = "valid"
    kind: ClassVar[type]

    def __post_init__(self):
        super().__post_init__()
        sides = _sides(self.padding)
        if not isinstance(sides, str) and max(sides[1]) >= self.size:
            raise ValueError(
                f"{type(self).__name__}: padding {self.padding} is as large as the window "
                f"{self.size}, so a window would hold nothing; pad less"
            )

    def _image_shape(self, shape: Shape) -> Shape:
        return _image_shape(type(self).__name__, shape, self.size, self.padding)

    @property
    def _flat(self) -> Layer:
        """The same pooling over images of height 1."""
        stride = self.size if self.stride is None else self.stride
        return self.kind((1, self.size), (1, stride), _sides(self.padding))

    def output_shape(self, shape: Shape) -> Shape:
        return self._flat.output_shape(self._image_shape(shape))[1:]

    def ops(self, shape: Shape) -> list[Op]:
        return self._flat.ops(self._image_shape(shape))


class MaxPool1D(_Pool1D):
    """The largest of each window: (length, channels) → (out_length, channels)."""

    kind = MaxPool2D


class AvgPool1D(_Pool1D):
    """The mean of each window: (length, channels) → (out_length, channels)."""

    kind = AvgPool2D


class _GlobalPool1D(Layer):
    """A pooling window as long as the sequence; the output is a vector of channels."""

    kind: ClassVar[type]

    def output_shape(self, shape: Shape) -> Shape:
        return _image_shape(type(self).__name__, shape, 1, "valid")[2:]

    def ops(self, shape: Shape) -> list[Op]:
        return self.kind().ops((1, *shape))


class GlobalMaxPool1D(_GlobalPool1D):
    """The largest of every channel: (length, channels) → (channels,)."""

    kind = GlobalMaxPool2D


class GlobalAvgPool1D(_GlobalPool1D):
    """The mean of every channel: (length, channels) → (channels,)."""

    kind = GlobalAvgPool2D
