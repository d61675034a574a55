"""PerNeuron, an activation of its own for every neuron; `activation` finds one by name."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any

from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import inline, kernel, specialize
from numbanet.io.attributes import instance
from numbanet.io.fields import shown
from numbanet.io.registry import lookup
from numbanet.nn.layers.activations import (
    Activation,
    Exp,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Step,
    Tanh,
)
from numbanet.nn.layers.base import ACTIVATIONS, Layer, Shape
from numbanet.plan.columns import N_OUT, TANGENTS, Attrs, Y, context
from numbanet.plan.op import Op

ELEMENTWISE = (Identity, Sigmoid, Tanh, ReLU, LeakyReLU, Step, Exp)
"""The activations that a single neuron may have; `code` is the index in this list."""

SEGMENTS = Attrs("n_segments first")
"""How many segments of neurons with the same activation there are, and the columns of the first."""
SEGMENT = Attrs("code end slope", first=0)
"""Columns of a segment, from its first: the activation, the neuron after its last, the slope."""


# --- one function that chooses by code --------------------------------------------------------

CODE = 0
value: Any = None
vjp: Any = None
second: Any = None
others: Any = None


def _value(code, slope, z):
    if code == CODE:
        return value(z, slope)
    return others(code, slope, z)


def _derivative(code, slope, a):
    if code == CODE:
        return vjp(a, const_like(a, 1), slope)
    return others(code, slope, a)


def _second_derivative(code, slope, a):
    if code == CODE:
        return second(a, const_like(a, 1), slope)
    return others(code, slope, a)


@inline
def value_by_code(code, slope, z):
    """a = f(z) for the activation of that code; the identity for any other."""
    return z


@inline
def derivative_by_code(code, slope, a):
    """f'(z), in terms of a, for the activation of that code; 1 for any other."""
    return const_like(a, 1)


@inline
def second_by_code(code, slope, a):
    """The derivative of f'(z) by a for the activation of that code; 0 for any other."""
    return const_like(a, 0)


for _code, _kind in enumerate(ELEMENTWISE):
    if "value" in vars(_kind):
        value_by_code = inline(
            specialize(
                _value, f"value_{_code}", CODE=_code, value=_kind.value, others=value_by_code
            )
        )
    if "vjp" in vars(_kind):
        derivative_by_code = inline(
            specialize(
                _derivative, f"vjp_{_code}", CODE=_code, vjp=_kind.vjp, others=derivative_by_code
            )
        )
    if "second" in vars(_kind):
        second_by_code = inline(
            specialize(
                _second_derivative,
                f"second_{_code}",
                CODE=_code,
                second=_kind.second,
                others=second_by_code,
            )
        )


# --- the layer --------------------------------------------------------------------------------


@kernel(independent=True)
def per_neuron_forward(op, params, grads, acts, deltas, lo, hi):
    """a = fⱼ(z) for neuron j        acts[y]   z becomes a"""
    n = op[N_OUT]
    for i in range(lo, hi):
        first = 0
        for k in range(op[SEGMENTS.n_segments]):
            segment = SEGMENTS.first + len(SEGMENT) * k
            code, end = op[segment + SEGMENT.code], op[segment + SEGMENT.end]
            slope = const_like(acts, float_attr(op, segment + SEGMENT.slope))
            for j in range(op[Y] + i * n + first, op[Y] + i * n + end):
                acts[j] = value_by_code(code, slope, acts[j])
            first = end


@kernel(independent=True)
def per_neuron_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da fⱼ'(z) for neuron j        deltas[y]   da becomes dz"""
    n = op[N_OUT]
    for i in range(lo, hi):
        first = 0
        for k in range(op[SEGMENTS.n_segments]):
            segment = SEGMENTS.first + len(SEGMENT) * k
            code, end = op[segment + SEGMENT.code], op[segment + SEGMENT.end]
            slope = const_like(acts, float_attr(op, segment + SEGMENT.slope))
            for j in range(op[Y] + i * n + first, op[Y] + i * n + end):
                deltas[j] *= derivative_by_code(code, slope, acts[j])
            first = end


@kernel(independent=True)
def per_neuron_second_backward(op, params, grads, acts, deltas, lo, hi):
    """ḋz += ȧ da ∂fⱼ'(z)/∂a for neuron j        tangents of deltas[y] added to"""
    n, tangents = op[N_OUT], context(op, TANGENTS)
    for i in range(lo, hi):
        first = 0
        for k in range(op[SEGMENTS.n_segments]):
            segment = SEGMENTS.first + len(SEGMENT) * k
            code, end = op[segment + SEGMENT.code], op[segment + SEGMENT.end]
            slope = const_like(acts, float_attr(op, segment + SEGMENT.slope))
            for j in range(op[Y] + i * n + first, op[Y] + i * n + end):
                change = acts[tangents + j] * second_by_code(code, slope, acts[j])
                deltas[tangents + j] += deltas[j] * change
            first = end


@dataclass(frozen=True, eq=False)
class PerNeuron(Activation):
    """An activation of its own for every neuron of a vector: `PerNeuron(["relu", "relu", "tanh"])`.

    Neighbours with the same activation form a segment. Softmax needs the whole layer and cannot
    stand in the list.
    """

    activations: Annotated[tuple, ACTIVATIONS] = field(default=())
    elementwise = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "activations", tuple(activation(one) for one in self.activations))
        for one in self.activations:
            if type(one) not in ELEMENTWISE:
                raise ValueError(
                    f"{type(one).__name__} works on a whole layer and cannot be given to a "
                    "single neuron"
                )

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (len(self.activations),):
            raise ValueError(
                f"a list of {len(self.activations)} activations does not fit an output of "
                f"shape {shape}"
            )
        return shape

    def ops(self, shape: Shape) -> list[Op]:
        n, end, segments = len(self.activations), 0, []
        neurons = [
            (ELEMENTWISE.index(type(a)), *(a.attrs(shape) or (0.0,))) for a in self.activations
        ]
        for (code, slope), same in groupby(neurons):
            end += len(list(same))
            segments.append(SEGMENT.pack(code=code, end=end, slope=slope))
        trainable = not any(isinstance(a, Step) for a in self.activations)
        backward = per_neuron_backward if trainable else None
        smooth = all(type(a).second_backward or isinstance(a, Identity) for a in self.activations)
        return [
            Op(
                "PerNeuron",
                n,
                n,
                per_neuron_forward,
                backward,
                tangent=backward,
                second_backward=per_neuron_second_backward if smooth else None,
                in_place=True,
                keeps_output=True,
                attrs=(len(segments), *(value for segment in segments for value in segment)),
                not_differentiable=Step.not_differentiable,
            )
        ]


NAMES = {
    "identity": Identity,
    "step": Step,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "exp": Exp,
    "softmax": Softmax,
}
SYNONYMS = {
    "linear": "identity",
    "logistic": "sigmoid",
    "heaviside": "step",
    "lrelu": "leaky_relu",
    "exponential": "exp",
}
"""Names in other libraries."""


def activation(given) -> Layer:
    """Return the activation for a name, a layer, None (identity), or a list with one per neuron."""
    if given is None:
        return Identity()
    if isinstance(given, str):
        return lookup("activation", given, NAMES, SYNONYMS)()
    if isinstance(given, (list, tuple)):
        each = [activation(one) for one in given]
        if each and all(
            type(one) is type(each[0]) and one.config() == each[0].config() for one in each
        ):
            return each[0] if not isinstance(each[0], Softmax) else PerNeuron(tuple(each))
        return PerNeuron(tuple(each))
    given = instance(given, Layer)
    if isinstance(given, Layer):
        return given
    raise TypeError(f"an activation is a name, a layer or a list of them, not {shown(given)}")
