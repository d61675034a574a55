"""PerNeuron: an activation of its own for every neuron of a vector; and `activation`, which finds one by what it is given."""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated

from numbanet.backend import elementary
from numbanet.backend.intrinsics import const_like, float_attr
from numbanet.backend.jit import inline, kernel
from numbanet.io.registry import lookup
from numbanet.nn.layers.activations import Activation, Identity, LeakyReLU, ReLU, Sigmoid, Softmax, Step, Tanh
from numbanet.nn.layers.base import ACTIVATIONS, Layer, Shape
from numbanet.plan.columns import ATTRS, N_OUT, Op, Y

_CODES = {Identity: 0, Sigmoid: 1, Tanh: 2, ReLU: 3, LeakyReLU: 4, Step: 5}


@inline
def _value(kind, slope, z):
    zero = const_like(z, 0)
    if kind == 1:
        return elementary.sigmoid(z)
    if kind == 2:
        return elementary.tanh(z)
    if kind == 3:
        return zero if z < zero else z
    if kind == 4:
        return z if z > zero else slope * z
    if kind == 5:
        return const_like(z, 1) if z > zero else zero
    return z


@inline
def _derivative(kind, slope, a):
    one, zero = const_like(a, 1), const_like(a, 0)
    if kind == 1:
        return a * (one - a)
    if kind == 2:
        return one - a * a
    if kind == 3:
        return one if a > zero else zero
    if kind == 4:
        return one if a > zero else slope
    return one


@kernel(independent=True)
def per_neuron_forward(op, params, grads, acts, deltas, lo, hi):
    """a = fⱼ(z) for neuron j        acts[y]   z becomes a"""
    n = op[N_OUT]
    for i in range(lo, hi):
        first = 0
        for run in range(op[ATTRS]):
            kind, last, slope = op[ATTRS + 1 + 3 * run], op[ATTRS + 2 + 3 * run], const_like(acts, float_attr(op, ATTRS + 3 + 3 * run))
            for j in range(op[Y] + i * n + first, op[Y] + i * n + last):
                acts[j] = _value(kind, slope, acts[j])
            first = last


@kernel(independent=True)
def per_neuron_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da fⱼ'(z) for neuron j        deltas[y]   da becomes dz"""
    n = op[N_OUT]
    for i in range(lo, hi):
        first = 0
        for run in range(op[ATTRS]):
            kind, last, slope = op[ATTRS + 1 + 3 * run], op[ATTRS + 2 + 3 * run], const_like(acts, float_attr(op, ATTRS + 3 + 3 * run))
            for j in range(op[Y] + i * n + first, op[Y] + i * n + last):
                deltas[j] *= _derivative(kind, slope, acts[j])
            first = last


@dataclass(frozen=True, eq=False)
class PerNeuron(Activation):
    """An activation of its own for every neuron of a vector: `PerNeuron(["relu", "relu", "tanh"])`.

    Neighbours with the same activation are worked on together. Softmax needs the whole layer and cannot stand in the list.
    """

    activations: Annotated[tuple, ACTIVATIONS] = field(default=())
    elementwise = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "activations", tuple(activation(one) for one in self.activations))
        for one in self.activations:
            if type(one) not in _CODES:
                raise ValueError(f"{type(one).__name__} works on a whole layer and cannot be given to a single neuron")

    def output_shape(self, shape: Shape) -> Shape:
        if shape != (len(self.activations),):
            raise ValueError(f"a list of {len(self.activations)} activations does not fit an output of shape {shape}")
        return shape

    def ops(self, shape: Shape) -> list[Op]:
        runs, last = [], 0
        for (kind, slope), same in groupby((_CODES[type(a)], float(getattr(a, "slope", 0))) for a in self.activations):
            last += len(list(same))
            runs += [kind, last, slope]
        stepped = any(isinstance(a, Step) for a in self.activations)
        return [Op("PerNeuron", shape[0], shape[0], per_neuron_forward, None if stepped else per_neuron_backward, in_place=True,
                   keeps_output=True, attrs=(len(runs) // 3, *runs), not_differentiable=Step.not_differentiable)]


NAMES = {"identity": Identity, "linear": Identity, "step": Step, "sigmoid": Sigmoid, "tanh": Tanh, "relu": ReLU,
         "leaky_relu": LeakyReLU, "softmax": Softmax}


def activation(given) -> Layer:
    """The activation layer for a name, a layer, None (identity), or a list with one for each neuron."""
    if given is None:
        return Identity()
    if isinstance(given, str):
        return lookup("activation", given, NAMES)()
    if isinstance(given, (list, tuple)):
        each = [activation(one) for one in given]
        if each and all(type(one) is type(each[0]) and one.config() == each[0].config() for one in each):
            return each[0] if not isinstance(each[0], Softmax) else PerNeuron(tuple(each))
        return PerNeuron(tuple(each))
    if isinstance(given, type) and issubclass(given, Layer):
        return given()
    if isinstance(given, Layer):
        return given
    raise TypeError(f"an activation is a name, a layer or a list of them, not {given!r}")
