"""Activations: elementwise functions of the weighted input.

    a = f(z)        da/dz written in terms of a, so that z need not be kept and a takes its place

    identity  a = z                     1
    step      a = 1 where z > 0, else 0   (0: predicts, cannot be trained)
    sigmoid   a = 1 / (1 + e⁻ᶻ)         a (1 − a)
    tanh      a = tanh z                1 − a²
    relu      a = max(z, 0)             1 where a > 0, else 0
    leaky     a = z where z > 0, else slope · z      1 where a > 0, else slope
    exp       a = eᶻ                    a
    softmax   aⱼ = eᶻʲ / Σ eᶻ           a ∘ (da − Σ a da)

The mathematics of one element stands in the class, as `value` and `vjp`, and for second derivatives
`second`, the derivative of `vjp` by a. All Jacobians are symmetric, so that the tangent of a is
what `vjp` makes of the tangent of z: `tangent` is `backward`. The CPU kernels on vector
registers, the CUDA kernels and the loops over single neurons (per_neuron.py) are made from it.

Source   Nielsen, Neural Networks and Deep Learning, chapters 1 and 3; Maas, Hannun, Ng 2013
         (leaky ReLU)
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from numbanet.backend import elementary
from numbanet.backend.intrinsics import (
    const_like,
    float_attr,
    lanes,
    load,
    num_threads,
    ptr_add,
    store,
    thread_rank,
    where_greater,
)
from numbanet.backend.jit import Kernel, inline, kernel, specialize
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import N_OUT, TANGENTS, Attrs, Y, context
from numbanet.plan.op import Op

SLOPE = Attrs("slope")
"""The one attribute that an elementwise activation may have."""
SOFTMAX = Attrs("classes")
"""Elements that sum to 1: those of a vector, or of a step of a sequence."""


# --- kernels from the mathematics of one element ----------------------------------------------

value: Any = None
"""In the templates: a = value(z, slope), for a scalar or a vector register."""
vjp: Any = None
"""In the templates: dz = vjp(a, da, slope), the vector-Jacobian product."""
second: Any = None
"""In the templates: ∂vjp(a, da, slope) / ∂a."""


def _forward(op, params, grads, acts, deltas, lo, hi):
    """a = value(z)        acts[y]   z becomes a"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        z = load(ptr_add(acts, i), end - i)
        store(ptr_add(acts, i), value(z, const_like(z, float_attr(op, SLOPE.slope))), end - i)


def _forward_cuda(op, params, grads, acts, deltas, lo, hi):
    slope = const_like(acts, float_attr(op, SLOPE.slope))
    first, end = op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]
    for i in range(first + thread_rank(), end, num_threads()):
        acts[i] = value(acts[i], slope)


def _backward(op, params, grads, acts, deltas, lo, hi):
    """dz = vjp(a, da)        deltas[y]   da becomes dz"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        a, da = load(ptr_add(acts, i), end - i), load(ptr_add(deltas, i), end - i)
        dz = vjp(a, da, const_like(a, float_attr(op, SLOPE.slope)))
        store(ptr_add(deltas, i), dz, end - i)


def _backward_cuda(op, params, grads, acts, deltas, lo, hi):
    slope = const_like(acts, float_attr(op, SLOPE.slope))
    first, end = op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]
    for i in range(first + thread_rank(), end, num_threads()):
        deltas[i] = vjp(acts[i], deltas[i], slope)


def _second_backward(op, params, grads, acts, deltas, lo, hi):
    """ḋz += ȧ second(a, da)        tangents of deltas[y] added to"""
    tangents, slope = context(op, TANGENTS), const_like(acts, float_attr(op, SLOPE.slope))
    for i in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]):
        deltas[tangents + i] += acts[tangents + i] * second(acts[i], deltas[i], slope)


def _make_kernel(name, module, cpu, cuda, **names) -> Kernel:
    """A kernel for CPU and GPU from two templates."""
    made = kernel(specialize(cpu, name, module, **names))
    return made.cuda(specialize(cuda, name, module, **names))


# --- activations ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Activation(Layer):
    """An activation. A new one that works element by element says what it does with one:

        value(z, slope)      a, from z
        vjp(a, da, slope)    dz, from a and da; without it the activation cannot be trained
        second(a, da, slope) the derivative of vjp by a; without it there is no `hvp`

    All are static methods on a scalar or on a vector register, which has + − · /,
    abs, `where_greater` and the functions of `elementary`. `slope` is the activation's field of
    that name, 0 if it has none. Any other activation names its two kernels, `forward` and
    `backward`, which work in place on the output slot, and if it has them `tangent` and
    `second_backward`, as an Op does.

    `monotone` says that it never falls, so that it may come before or after a maximum.
    """

    value: ClassVar[Any]
    vjp: ClassVar[Any]
    forward: ClassVar[Kernel]
    second: ClassVar[Any]
    backward: ClassVar[Kernel | None] = None
    tangent: ClassVar[Kernel | None] = None
    second_backward: ClassVar[Kernel | None] = None
    not_differentiable: ClassVar[str] = ""
    elementwise: ClassVar[bool] = True
    monotone: ClassVar[bool] = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        own: dict[str, Any] = {}
        for name in ("value", "vjp", "second"):
            if name in vars(cls):
                function = vars(cls)[name]
                own[name] = inline(getattr(function, "__func__", function))
                setattr(cls, name, staticmethod(own[name]))
        stem, module = cls.__name__.lower(), cls.__module__
        if "value" in own:
            cls.forward = _make_kernel(
                f"{stem}_forward", module, _forward, _forward_cuda, value=own["value"]
            )
        if "vjp" in own:
            cls.tangent = cls.backward = _make_kernel(
                f"{stem}_backward", module, _backward, _backward_cuda, vjp=own["vjp"]
            )
            cls.second_backward = None  # the one inherited belongs to another vjp
        if "second" in own:
            template = specialize(
                _second_backward, f"{stem}_second_backward", module, second=own["second"]
            )
            cls.second_backward = kernel(template, independent=True)

    def attrs(self, shape: Shape) -> tuple:
        """Return values for the columns from ATTRS on: the slope, if the activation has one."""
        return SLOPE.pack(slope=float(self.slope)) if hasattr(self, "slope") else ()

    def ops(self, shape: Shape) -> list[Op]:
        n, kind = size(shape), type(self)
        return [
            Op(
                kind.__name__,
                n,
                n,
                kind.forward,
                kind.backward,
                tangent=kind.tangent,
                second_backward=kind.second_backward,
                in_place=True,
                keeps_output=True,
                attrs=self.attrs(shape),
                not_differentiable=kind.not_differentiable,
            )
        ]


class Identity(Activation):
    """The weighted input itself."""

    def ops(self, shape: Shape) -> list[Op]:
        return []


class Sigmoid(Activation):
    """The logistic function 1 / (1 + e⁻ᶻ), between 0 and 1."""

    monotone = True

    @staticmethod
    def value(z, slope):
        return elementary.sigmoid(z)

    @staticmethod
    def vjp(a, da, slope):
        return da * a * (const_like(a, 1) - a)

    @staticmethod
    def second(a, da, slope):
        return da * (const_like(a, 1) - a - a)


class Tanh(Activation):
    """The hyperbolic tangent, between −1 and 1."""

    monotone = True

    @staticmethod
    def value(z, slope):
        return elementary.tanh(z)

    @staticmethod
    def vjp(a, da, slope):
        return da * (const_like(a, 1) - a * a)

    @staticmethod
    def second(a, da, slope):
        return const_like(a, -2) * a * da


class ReLU(Activation):
    """The rectifier max(z, 0); NaN stays."""

    monotone = True

    @staticmethod
    def value(z, slope):
        zero = const_like(z, 0)
        return where_greater(zero, z, zero, z)

    @staticmethod
    def vjp(a, da, slope):
        zero = const_like(a, 0)
        return where_greater(a, zero, da, zero)


@dataclass(frozen=True, eq=False)
class LeakyReLU(Activation):
    """A rectifier with `slope` times the negative part (0 ≤ slope)."""

    slope: Annotated[float, Real(0, says="{owner} needs a {name} of at least 0, got {got}")] = 0.01
    monotone = True

    @staticmethod
    def value(z, slope):
        return where_greater(z, const_like(z, 0), z, slope * z)

    @staticmethod
    def vjp(a, da, slope):
        return where_greater(a, const_like(a, 0), da, slope * da)


class Exp(Activation):
    """The exponential eᶻ, above 0: a rate or a count, as the Poisson loss has it."""

    monotone = True

    @staticmethod
    def value(z, slope):
        return elementary.exp(z)

    @staticmethod
    def vjp(a, da, slope):
        return da * a

    @staticmethod
    def second(a, da, slope):
        return da


class Step(Activation):
    """The perceptron's step: 1 where z > 0, else 0. It predicts; it cannot be trained through."""

    not_differentiable = (
        "a step cannot be trained: its derivative is zero, so no error passes through it; "
        "train with sigmoid and predict with step, or set the weights yourself"
    )

    @staticmethod
    def value(z, slope):
        return where_greater(z, const_like(z, 0), const_like(z, 1), const_like(z, 0))


# --- softmax ----------------------------------------------------------------------------------


@kernel(independent=True)
def softmax_forward(op, params, grads, acts, deltas, lo, hi):
    """aⱼ = e^(zⱼ − max z) / Σ e^(z − max z), step by step        acts[y]   z becomes a"""
    n = op[SOFTMAX.classes]
    for y in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], n):
        z_max = acts[y]
        for j in range(y, y + n):
            z = acts[j]
            z_max = z if z > z_max else z_max
        total = const_like(z_max, 0)
        for j in range(y, y + n):
            acts[j] = elementary.exp(acts[j] - z_max)
            total += acts[j]
        for j in range(y, y + n):
            acts[j] /= total


@kernel(independent=True)
def softmax_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = a (da − Σ a da), step by step        deltas[y]   da becomes dz"""
    n = op[SOFTMAX.classes]
    for y in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], n):
        mean = const_like(acts, 0)
        for j in range(y, y + n):
            mean += acts[j] * deltas[j]
        for j in range(y, y + n):
            deltas[j] = acts[j] * (deltas[j] - mean)


@kernel(independent=True)
def softmax_second_backward(op, params, grads, acts, deltas, lo, hi):
    """ḋz += ȧ (da − Σ a da) − a Σ ȧ da, step by step        tangents of deltas[y] added to"""
    n, tangents = op[SOFTMAX.classes], context(op, TANGENTS)
    for y in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], n):
        mean, slope = const_like(acts, 0), const_like(acts, 0)
        for j in range(y, y + n):
            mean += acts[j] * deltas[j]
            slope += acts[tangents + j] * deltas[j]
        for j in range(y, y + n):
            deltas[tangents + j] += acts[tangents + j] * (deltas[j] - mean) - acts[j] * slope


class Softmax(Activation):
    """Outputs that are positive and sum to 1: the probabilities of exclusive classes.

    Expects a vector of at least two; of a sequence (steps, channels) every step is one.
    """

    forward, backward, tangent = softmax_forward, softmax_backward, softmax_backward
    second_backward = softmax_second_backward
    elementwise = False

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) not in (1, 2):
            raise ValueError(
                f"Softmax expects a vector or a sequence (steps, channels), got {shape}; put "
                "Flatten() before it"
            )
        if shape[-1] == 1:
            raise ValueError(
                "Softmax of a single output is always 1, so nothing could be learnt; use sigmoid, "
                "or one output for each class"
            )
        return shape

    def attrs(self, shape: Shape) -> tuple:
        return SOFTMAX.pack(classes=shape[-1])
