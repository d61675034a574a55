"""Layers at their places in a network: shapes, and views of their numbers in the flat memory."""

from dataclasses import replace

import numpy as np

from numbanet.io.fields import check, fits, shown
from numbanet.nn.layers import Identity, activation, conv2d_channels_first
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.nn.regularizers import penalties
from numbanet.plan.columns import Op


class BuiltLayer:
    """A layer at its place in a network: its description, shapes, and views of its parameters by name."""

    def __init__(self, layer: Layer, input_shape: Shape, output_shape: Shape, offset: int):
        self.layer, self.input_shape, self.output_shape, self.offset = layer, input_shape, output_shape, offset
        self.shapes, self.buffer_shapes = layer.parameters(input_shape), layer.buffers(input_shape)
        self.count = sum(size(shape) for shape in self.shapes.values())
        self.parameters: dict[str, np.ndarray] = {}
        self.buffers: dict[str, np.ndarray] = {}

    def __getattr__(self, name: str):
        for parts in (self.__dict__.get("parameters", {}), self.__dict__.get("buffers", {})):
            if name in parts:
                return parts[name]
        if name.startswith("__") or "layer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value):
        for parts in (self.__dict__.get("parameters", {}), self.__dict__.get("buffers", {})):
            if name in parts:
                parts[name][...] = value
                return
        super().__setattr__(name, value)

    def __repr__(self):
        return f"{type(self.layer).__name__} {self.input_shape} → {self.output_shape}"


def parameter_views(memory: np.ndarray, start: int, shapes: dict[str, Shape]) -> dict[str, np.ndarray]:
    """Views of a flat memory by name, one behind the other."""
    parameter_views = {}
    for name, shape in shapes.items():
        parameter_views[name] = memory[start : start + size(shape)].reshape(shape)
        start += size(shape)
    return parameter_views


def build_layers(description, input_shape: Shape) -> list[BuiltLayer]:
    """Expand activations into layers of their own and give every layer its shapes and its part of the flat vector.

    Raises TypeError for what is not a layer, ValueError where a layer does not fit the one before it, with its number and name.
    """
    expanded: list[Layer] = []
    for layer in description:
        if isinstance(layer, type) and issubclass(layer, Layer):
            layer = layer()
        if not isinstance(layer, Layer):
            raise TypeError(f"a layer was expected at place {len(expanded)}, got {shown(layer)}")
        check(layer)  # a subclass may have its own __post_init__
        expanded.append(layer)
        following = activation(getattr(layer, "activation", None))
        if not isinstance(following, Identity):
            expanded.append(following)
    if not expanded:
        raise ValueError("a network needs at least one layer")
    result, shape, offset = [], input_shape, 0
    for i, layer in enumerate(expanded):
        try:
            if shape == input_shape and hasattr(layer, "_window"):
                _channels_last(shape)
            after = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"layer {i} ({type(layer).__name__}): {error}") from None
        result.append(BuiltLayer(layer, shape, after, offset))
        shape, offset = after, offset + result[-1].count
    return result


def _channels_last(shape: Shape) -> None:
    """ValueError for the shape of a square picture with its 1 or 3 channels first."""
    if len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2] >= 8:
        raise ValueError(f"an input of {shape} looks like a picture with channels first; channels come last here: "
                         f"input_shape={(*shape[1:], shape[0])}, and x.transpose(0, 2, 3, 1)")


def layer_ops(layers: list[BuiltLayer], penalty, samples: int, batches: int, training: bool) -> list[Op]:
    """The ops of these layers, with the penalties of each (or else `penalty`) scaled for a training set."""
    result: list[Op] = []
    trained, k = next((k for k, placed in enumerate(layers) if placed.count), None), 0
    while k < len(layers):
        taken, ops = conv2d_channels_first.fuse([(placed.layer, placed.input_shape) for placed in layers[k:]]) if k == trained else (0, [])
        placed = layers[k]
        if not taken:
            taken, ops = 1, (placed.layer.ops if training else placed.layer.inference_ops)(placed.input_shape)
        own = penalties(getattr(placed.layer, "penalty", None)) or penalty
        strengths = tuple(float(sum(p.scaled(samples, batches) for p in own if p.power == power)) for power in (1, 2))
        result += [replace(op, penalties=strengths) if op.n_weights else op for op in ops]
        k += taken
    return result


def check_size(layers: list[BuiltLayer], ops: list[Op], dtype: np.dtype) -> None:
    """ValueError where the parameters, with the numbers that they are drawn from, or one sample's activations fit no memory."""
    drawn = max((size(shape) for placed in layers for shape in placed.shapes.values()), default=0)
    count = sum(placed.count + sum(size(shape) for shape in placed.buffer_shapes.values()) for placed in layers)
    fits(count, count * dtype.itemsize + drawn * 8, "the network's parameters")
    elements = sum(op.n_in + op.n_out + op.scratch for op in ops)
    fits(elements, elements * dtype.itemsize, "one sample's activations")


def summary(layers: list[BuiltLayer], dtype: np.dtype) -> str:
    """A table: layer, output shape, parameters, bytes."""
    layer_ops = [("layer", "output", "parameters", "bytes")]
    total = sum(placed.count for placed in layers)
    for placed in layers:
        size_ = f"{placed.count * dtype.itemsize:,}"
        layer_ops.append((type(placed.layer).__name__, str(placed.output_shape), f"{placed.count:,}", size_))
    layer_ops.append(("total", "", f"{total:,}", f"{total * dtype.itemsize:,}"))
    widths = [max(len(row[k]) for row in layer_ops) for k in range(4)]
    lines = ["  ".join(cell.ljust(w) if k < 2 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True)))
             for row in layer_ops]
    rule = "─" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
