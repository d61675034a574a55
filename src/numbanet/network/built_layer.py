"""Built layers: a layer's description with its shapes and its views of the flat memory."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from numbanet.io import arrays
from numbanet.io.attributes import instance, unknown_attribute
from numbanet.io.fields import Flag, Kind, Real, check, fits, shown
from numbanet.io.tables import Table
from numbanet.nn.layers import (
    Activation,
    BatchNorm,
    Bidirectional,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LayerNorm,
    Rescale,
    Standardize,
    activation,
    conv2d_channels_first,
)
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.nn.layers.recurrent import Recurrent
from numbanet.nn.regularizers import penalties
from numbanet.plan.op import DEFAULT_GROUP, Group, Op, change_ops

RECURRENT = Recurrent, Bidirectional
STEP_BY_STEP = (*RECURRENT, Embedding, Dense, Activation, Dropout, LayerNorm, Rescale)
"""Layers before which a sequence may be padded: what they give for a step does not depend on what
follows the last one, and a recurrent layer after them sees no padding."""
MAX_LAYERS = 10_000
"""Layers that are still built and lowered within seconds."""

SETTINGS: dict[str, Kind] = {
    "trainable": Flag(),
    "learning_rate_factor": Real(0),
    "weight_decay": Real(0, optional=True),
}
"""What may be set for a layer of a network, from the next fit on."""


class Views(dict):
    """Views of the flat memory by name: their elements are written, they are not replaced."""

    def __setitem__(self, name, value):
        raise TypeError(
            f"write into the array: layer.{name} = values, or layer.{name}[...] = values"
        )


class BuiltLayer:
    """A layer in a network: its description, shapes, and views of its parameters by name.

    offset     where its parameters begin in the flat memory
    trainable  False for a frozen layer: training leaves its parameters and buffers as they are, and
               a BatchNorm uses its running means
    learning_rate_factor  what the optimiser's learning rate is multiplied by for this layer
    weight_decay  decay of its parameters beside the gradient, θ ← θ − η λ θ before every update, as
               that of AdamW, whose own it replaces; None for that of the optimiser

    `built.weights = array` writes into the flat memory: an array of the same shape, or one number
    for all. Raises ValueError for another shape, TypeError for what is not real numbers,
    AttributeError for a name that is neither a parameter nor a buffer.
    """

    layer: Layer
    offset: int
    input_shape: Shape
    output_shape: Shape
    shapes: dict[str, Shape]
    buffer_shapes: dict[str, Shape]
    n_parameters: int
    n_buffers: int
    parameters: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    trainable: bool
    learning_rate_factor: float
    weight_decay: float | None

    def __init__(self, layer: Layer, input_shape: Shape, output_shape: Shape, offset: int):
        self.layer, self.offset = layer, offset
        self.input_shape, self.output_shape = input_shape, output_shape
        self.shapes, self.buffer_shapes = layer.parameters(input_shape), layer.buffers(input_shape)
        self.n_parameters = sum(size(shape) for shape in self.shapes.values())
        self.n_buffers = sum(size(shape) for shape in self.buffer_shapes.values())
        self.parameters, self.buffers = Views(), Views()
        self.trainable, self.learning_rate_factor, self.weight_decay = True, 1.0, None

    @property
    def group(self) -> Group:
        """What the optimiser does otherwise for its parameters."""
        return Group(float(self.learning_rate_factor), self.weight_decay)

    def copy_settings(self, other: "BuiltLayer") -> None:
        """Take over what is set for a layer of another network."""
        for name in SETTINGS:
            setattr(self, name, getattr(other, name))

    def bind(self, memory: np.ndarray, buffers: int) -> None:
        """Take views of the flat memory; the buffers begin at element `buffers`."""
        self.parameters = Views(parameter_views(memory, self.offset, self.shapes))
        self.buffers = Views(parameter_views(memory, buffers, self.buffer_shapes))

    def __getattr__(self, name: str):
        for views in (self.__dict__.get("parameters", {}), self.__dict__.get("buffers", {})):
            if name in views:
                return views[name]
        if name.startswith("__") or "layer" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value):
        views = {**self.__dict__.get("parameters", {}), **self.__dict__.get("buffers", {})}
        if name in ("parameters", "buffers") and not isinstance(value, Views):
            raise TypeError(f"{name} are views of network.parameters; write into their arrays")
        if name in views:
            values, shape = arrays.as_numbers(value, name), views[name].shape
            if values.shape not in (shape, ()):
                raise ValueError(
                    f"{type(self.layer).__name__}: {name} has shape {shape}, got an array of shape "
                    f"{values.shape}"
                )
            views[name][...] = values
        elif name in SETTINGS:
            super().__setattr__(name, SETTINGS[name](value, name, type(self.layer).__name__))
        elif name in inspect.get_annotations(BuiltLayer):
            super().__setattr__(name, value)
        elif hasattr(self.layer, name):
            raise AttributeError(
                f"{type(self.layer).__name__}: {name} belongs to the layer's description, which "
                "cannot change; build another network"
            )
        else:
            raise unknown_attribute(self.layer, name, {*views, *SETTINGS})

    def __getstate__(self):
        return {
            **self.__dict__,
            "parameters": Views(),
            "buffers": Views(),
        }  # views; `bind` gives new ones

    def __repr__(self):
        return f"{type(self.layer).__name__} {self.input_shape} → {self.output_shape}"


def parameter_views(memory: np.ndarray, start: int, shapes: dict[str, Shape]) -> dict:
    """Views of a flat memory by name, one after the other from element `start`."""
    views = {}
    for name, shape in shapes.items():
        views[name] = memory[start : start + size(shape)].reshape(shape)
        start += size(shape)
    return views


def build_layers(specs, input_shape: Shape) -> list[BuiltLayer]:
    """Make activations separate layers and give every layer its shapes and its offset.

    Raises TypeError for what is not a layer, ValueError for more than MAX_LAYERS, or where a layer
    does not fit the one before it, with its number and name.
    """
    if len(specs) > MAX_LAYERS:
        raise ValueError(f"a network has at most {MAX_LAYERS:,} layers, got {len(specs):,}")
    expanded: list[Layer] = []
    for layer in specs:
        layer = instance(layer, Layer)
        if not isinstance(layer, Layer):
            raise TypeError(f"a layer was expected at place {len(expanded)}, got {shown(layer)}")
        check(layer)  # a subclass may have its own __post_init__
        expanded.append(layer)
        next_layer = activation(layer.following_activation())
        if not isinstance(next_layer, Identity):
            expanded.append(next_layer)
    if not expanded:
        raise ValueError("a network needs at least one layer")
    result, shape, offset = [], input_shape, 0
    for i, layer in enumerate(expanded):
        try:
            if shape == input_shape and hasattr(layer, "_window"):
                _check_channels_last(shape)
            output_shape = layer.output_shape(shape)
        except ValueError as error:
            raise ValueError(f"layer {i} ({type(layer).__name__}): {error}") from None
        result.append(BuiltLayer(layer, shape, output_shape, offset))
        shape, offset = output_shape, offset + result[-1].n_parameters
    return result


def initializers(layers: list[BuiltLayer]):
    """Yield each layer with the initialisers that it gives its parameters, by name."""
    following = [built.layer for built in layers[1:]]
    for built, next_layer in zip(layers, [*following, None], strict=True):
        yield built, built.layer.initializers(next_layer)


def check_first(layers: list[BuiltLayer]) -> None:
    """ValueError for an Embedding that is not the first layer."""
    for k, built in enumerate(layers[1:], 1):
        if isinstance(built.layer, Embedding):
            before = type(layers[k - 1].layer).__name__
            raise ValueError(
                f"layer {k} (Embedding) reads indices and stands behind {before}; make it the "
                "first layer"
            )


def check_takes_lengths(layers: list[BuiltLayer]) -> None:
    """ValueError for layers that would learn from what follows the last step of a sequence."""
    recurrent = [k for k, built in enumerate(layers) if isinstance(built.layer, RECURRENT)]
    if not recurrent:
        raise ValueError("lengths are for recurrent layers, and the network has none; drop them")
    last = recurrent[-1]
    to_end = len(layers[-1].output_shape) == 2  # every step has outputs
    behind = layers[last + 1 : last + 2] if len(layers[last].output_shape) == 2 else []
    checked = range(len(layers) if to_end else last)
    wrong = [
        *((k, layers[k]) for k in checked if not isinstance(layers[k].layer, STEP_BY_STEP)),
        *((last + 1, b) for b in behind if not (to_end or isinstance(b.layer, Flatten))),
    ]
    for k in recurrent:
        layer: Any = layers[k].layer
        one = layer.layer if isinstance(layer, Bidirectional) else layer
        if one.initial_state == "trained" and (one is not layer or one.reverse):
            raise ValueError(
                f"layer {k} ({type(layer).__name__}) begins at the end with a trained state, which "
                "padding would separate from the last step; take initial_state='zeros' with lengths"
            )
    for k, built in wrong:
        raise ValueError(
            f"layer {k} ({type(built.layer).__name__}) does not know lengths, so padding would "
            "count; use layers that treat every step alone, and a last recurrent layer that "
            "returns its last state"
        )


def _check_channels_last(shape: Shape) -> None:
    """ValueError for the shape of a square image with its 1 or 3 channels first."""
    if len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2] >= 8:
        raise ValueError(
            f"an input of {shape} looks like an image with channels first; channels come last "
            f"here: input_shape={(*shape[1:], shape[0])}, and x.transpose(0, 2, 3, 1)"
        )


def layer_ops(layers: list[BuiltLayer], penalty, samples, batches, training, fuse=True) -> list[Op]:
    """The ops of these layers, with the penalties of each scaled for a training set.

    `penalty` applies to layers that have none. Where possible and with `fuse`, the first layer with
    parameters is fused with those after it, which leaves the inputs without a gradient.
    """
    result: list[Op] = []
    first_trained = next((k for k, built in enumerate(layers) if built.n_parameters), None)
    k = 0
    while k < len(layers):
        built, n_fused = layers[k], 0
        ops: list[Op] = []
        if fuse and k == first_trained:
            pairs = [(later.layer, later.input_shape) for later in layers[k:]]
            n_fused, ops = conv2d_channels_first.fuse(pairs)
        if not n_fused:
            n_fused = 1
            as_trained = training and (built.trainable or not built.n_parameters)
            lower = built.layer.ops if as_trained else built.layer.inference_ops
            ops = lower(built.input_shape)
        _check_ops(layers[k : k + n_fused], ops)
        strengths = _penalty_strengths(built, penalty, samples, batches)
        group = built.group if training else DEFAULT_GROUP
        frozen = training and not built.trainable
        result += change_ops(ops, partial(_settled, strengths, group, frozen))
        k += n_fused
    return result


def step_ops(layers: list[BuiltLayer]) -> list[Op]:
    """The ops of one step of a sequence, whose state the caller keeps.

    Raises ValueError for a layer that needs other steps than those before, and for no recurrent
    layer.
    """
    if not any(isinstance(built.layer, RECURRENT) for built in layers):
        raise ValueError(
            "the network has no recurrent layer, so a step depends on none before it; call predict"
        )
    ops, shape = [], (1, *layers[0].input_shape[1:])
    for k, built in enumerate(layers):
        layer, alone = built.layer, (*STEP_BY_STEP, BatchNorm, Standardize)
        both = isinstance(layer, Bidirectional)
        if both or (isinstance(layer, Recurrent) and layer.reverse):
            way = "; take a layer that begins with the first step"
            reason = f"begins with the last step, which is not there yet{way}"
        elif isinstance(layer, alone) or (isinstance(layer, Flatten) and len(shape) == 1):
            reason = ""
        else:
            reason = "needs more than one step at a time"
        if reason:
            raise ValueError(
                f"layer {k} ({type(layer).__name__}) {reason}; predict takes whole sequences"
            )
        lower = layer.step_ops if isinstance(layer, Recurrent) else layer.inference_ops
        ops += lower(shape)
        shape = layer.output_shape(shape)
    return ops


def _settled(penalties, group: Group, frozen: bool, op: Op) -> Op:
    """The op with what is set for its layer."""
    op = replace(op, penalties=penalties) if op.n_weights and op.penalties != penalties else op
    op = replace(op, group=group) if op.n_params and group != DEFAULT_GROUP else op
    return _frozen(op) if frozen else op


def _frozen(op: Op) -> Op:
    """The op without a gradient for its parameters."""
    return replace(op, frozen=True, gradient=None, accumulate_gradient=None, statistics=None)


def _check_ops(layers: list[BuiltLayer], ops: list[Op]) -> None:
    """ValueError where the ops have not as many parameters and buffers as their layers say."""
    declared = [
        sum(built.n_parameters for built in layers),
        sum(built.n_buffers for built in layers),
    ]
    lowered = [sum(op.n_params for op in ops), sum(op.buffers for op in ops)]
    for what, n_declared, n_lowered in zip(
        ("parameters", "buffers"), declared, lowered, strict=True
    ):
        if n_declared != n_lowered:
            raise ValueError(
                f"{type(layers[0].layer).__name__} says that it has {n_declared} {what}, its ops "
                f"have {n_lowered}; make `{what}` and `ops` agree"
            )


def check_size(layers: list[BuiltLayer], ops: list[Op], dtype: np.dtype) -> None:
    """ValueError where the parameters or one sample's activations would not fit into memory.

    The parameters count together with the float64 values that one of them is drawn from.
    """
    drawn = max((size(shape) for built in layers for shape in built.shapes.values()), default=0)
    count = sum(built.n_parameters + built.n_buffers for built in layers)
    fits(count, count * dtype.itemsize + drawn * 8, "the network's parameters")
    elements = sum(op.n_in + op.n_out + op.scratch for op in ops)
    fits(elements, elements * dtype.itemsize, "one sample's activations")


def _penalty_strengths(built: BuiltLayer, penalty, samples, batches) -> tuple[float, ...]:
    """The sums of the L1 and of the L2 strengths of a layer."""
    chosen = penalties(getattr(built.layer, "penalty", None)) or penalty
    return tuple(
        float(sum(p.scaled(samples, batches) for p in chosen if p.power == power))
        for power in (1, 2)
    )


def summary(layers: list[BuiltLayer], dtype: np.dtype) -> Table:
    """A table: number and kind of each layer, output shape, parameters, bytes."""
    rows = [("layer", "output", "parameters", "bytes")]
    for k, built in enumerate(layers):
        n = built.n_parameters
        name, shape = f"{k} {type(built.layer).__name__}", str(built.output_shape)
        if n and not built.trainable:
            name += ", frozen"
        rows.append((name, shape, f"{n:,}", f"{n * dtype.itemsize:,}"))
    total = sum(built.n_parameters for built in layers)
    rows.append(("total", "", f"{total:,}", f"{total * dtype.itemsize:,}"))
    return Table(rows, left=2)
