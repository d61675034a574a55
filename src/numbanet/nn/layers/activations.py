"""Activations: what a neuron makes of its weighted input, element by element.

    a = f(z)        da/dz written in terms of a, so that z need not be kept and a takes its place

    identity  a = z                     1
    step      a = 1 where z > 0, else 0   (0: predicts, cannot be trained)
    sigmoid   a = 1 / (1 + e⁻ᶻ)         a (1 − a)
    tanh      a = tanh z                1 − a²
    relu      a = max(z, 0)             1 where a > 0, else 0
    leaky     a = z where z > 0, else slope · z      1 where a > 0, else slope
    softmax   aⱼ = eᶻʲ / Σ eᶻ           a ∘ (da − Σ a da)

Source   Nielsen, Neural Networks and Deep Learning, chapters 1 and 3; Maas, Hannun, Ng 2013 (leaky ReLU)
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from numbanet.backend import elementary
from numbanet.backend.intrinsics import const_like, float_attr, lanes, load, num_threads, ptr_add, store, thread_rank, where_greater
from numbanet.backend.jit import Kernel, kernel
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import ATTRS, N_OUT, Op, Y


@dataclass(frozen=True, eq=False)
class Activation(Layer):
    """An elementwise activation. A new one names its two kernels, which work in place on the output slot.

    `monotone` says that it never falls, so that it may come before or after a maximum.
    """

    forward: ClassVar[Kernel]
    backward: ClassVar[Kernel | None] = None
    not_differentiable: ClassVar[str] = ""
    elementwise: ClassVar[bool] = True
    monotone: ClassVar[bool] = False

    @property
    def attrs(self) -> tuple:
        """Numbers for the columns from OWN on, such as a slope."""
        return ()

    def ops(self, shape: Shape) -> list[Op]:
        n, kind = size(shape), type(self)
        return [Op(kind.__name__, n, n, kind.forward, kind.backward, in_place=True, keeps_output=True, attrs=self.attrs,
                   not_differentiable=kind.not_differentiable)]


# --- sigmoid --------------------------------------------------------------------------------------------------------


@kernel
def sigmoid_forward(op, params, grads, acts, deltas, lo, hi):
    """a = 1 / (1 + e⁻ᶻ)        acts[y]   z becomes a"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        z = load(ptr_add(acts, i), end - i)
        store(ptr_add(acts, i), elementary.sigmoid(z), end - i)


@sigmoid_forward.cuda
def sigmoid_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        acts[i] = elementary.sigmoid(acts[i])


@kernel
def sigmoid_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da a (1 − a)        deltas[y]   da becomes dz"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        a, da = load(ptr_add(acts, i), end - i), load(ptr_add(deltas, i), end - i)
        store(ptr_add(deltas, i), da * a * (const_like(a, 1) - a), end - i)


@sigmoid_backward.cuda
def sigmoid_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        deltas[i] *= acts[i] * (const_like(acts, 1) - acts[i])


class Sigmoid(Activation):
    """The logistic function 1 / (1 + e⁻ᶻ), between 0 and 1."""

    forward, backward = sigmoid_forward, sigmoid_backward
    monotone = True


# --- tanh -----------------------------------------------------------------------------------------------------------


@kernel
def tanh_forward(op, params, grads, acts, deltas, lo, hi):
    """a = tanh z        acts[y]   z becomes a"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        z = load(ptr_add(acts, i), end - i)
        store(ptr_add(acts, i), elementary.tanh(z), end - i)


@tanh_forward.cuda
def tanh_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        acts[i] = elementary.tanh(acts[i])


@kernel
def tanh_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da (1 − a²)        deltas[y]   da becomes dz"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        a, da = load(ptr_add(acts, i), end - i), load(ptr_add(deltas, i), end - i)
        store(ptr_add(deltas, i), da * (const_like(a, 1) - a * a), end - i)


@tanh_backward.cuda
def tanh_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        deltas[i] *= const_like(acts, 1) - acts[i] * acts[i]


class Tanh(Activation):
    """The hyperbolic tangent, between −1 and 1."""

    forward, backward = tanh_forward, tanh_backward
    monotone = True


# --- relu and leaky relu --------------------------------------------------------------------------------------------


@kernel
def relu_forward(op, params, grads, acts, deltas, lo, hi):
    """a = max(z, 0)        acts[y]   z becomes a; NaN stays"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        z = load(ptr_add(acts, i), end - i)
        store(ptr_add(acts, i), where_greater(const_like(z, 0), z, const_like(z, 0), z), end - i)


@relu_forward.cuda
def relu_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        if acts[i] < const_like(acts, 0):
            acts[i] = const_like(acts, 0)


@kernel
def relu_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da where a > 0, else 0        deltas[y]   da becomes dz"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        a, da = load(ptr_add(acts, i), end - i), load(ptr_add(deltas, i), end - i)
        store(ptr_add(deltas, i), where_greater(a, const_like(a, 0), da, const_like(a, 0)), end - i)


@relu_backward.cuda
def relu_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        if not acts[i] > const_like(acts, 0):
            deltas[i] = const_like(acts, 0)


class ReLU(Activation):
    """The rectifier max(z, 0)."""

    forward, backward = relu_forward, relu_backward
    monotone = True


@kernel
def leaky_relu_forward(op, params, grads, acts, deltas, lo, hi):
    """a = z where z > 0, else slope z        acts[y]   z becomes a"""
    slope = float_attr(op, ATTRS)
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        z = load(ptr_add(acts, i), end - i)
        store(ptr_add(acts, i), where_greater(z, const_like(z, 0), z, const_like(z, slope) * z), end - i)


@leaky_relu_forward.cuda
def leaky_relu_forward(op, params, grads, acts, deltas, lo, hi):
    slope = const_like(acts, float_attr(op, ATTRS))
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        if not acts[i] > const_like(acts, 0):
            acts[i] *= slope


@kernel
def leaky_relu_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da where a > 0, else slope da        deltas[y]   da becomes dz"""
    slope = float_attr(op, ATTRS)
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        a, da = load(ptr_add(acts, i), end - i), load(ptr_add(deltas, i), end - i)
        store(ptr_add(deltas, i), where_greater(a, const_like(a, 0), da, const_like(a, slope) * da), end - i)


@leaky_relu_backward.cuda
def leaky_relu_backward(op, params, grads, acts, deltas, lo, hi):
    slope = const_like(acts, float_attr(op, ATTRS))
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        if not acts[i] > const_like(acts, 0):
            deltas[i] *= slope


@dataclass(frozen=True, eq=False)
class LeakyReLU(Activation):
    """A rectifier that lets `slope` times the negative part through (0 ≤ slope)."""

    slope: Annotated[float, Real(0, says="{owner} needs a {name} of at least 0, got {got}")] = 0.01
    forward, backward = leaky_relu_forward, leaky_relu_backward
    monotone = True

    @property
    def attrs(self):
        return (float(self.slope),)


# --- identity and step ----------------------------------------------------------------------------------------------


class Identity(Activation):
    """The weighted input itself."""

    def ops(self, shape: Shape) -> list[Op]:
        return []


@kernel
def step_forward(op, params, grads, acts, deltas, lo, hi):
    """a = 1 where z > 0, else 0        acts[y]   z becomes a"""
    width, end = lanes(acts), op[Y] + hi * op[N_OUT]
    for i in range(op[Y] + lo * op[N_OUT], end, width):
        z = load(ptr_add(acts, i), end - i)
        store(ptr_add(acts, i), where_greater(z, const_like(z, 0), const_like(z, 1), const_like(z, 0)), end - i)


@step_forward.cuda
def step_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT] + thread_rank(), op[Y] + hi * op[N_OUT], num_threads()):
        acts[i] = const_like(acts, 1) if acts[i] > const_like(acts, 0) else const_like(acts, 0)


class Step(Activation):
    """The perceptron's step: 1 where z > 0, else 0. It predicts; it cannot be trained through."""

    forward = step_forward
    not_differentiable = ("a step cannot be trained: its derivative is zero, so no error passes through it; "
                       "train with sigmoid and predict with step, or set the weights yourself")


# --- softmax --------------------------------------------------------------------------------------------------------


@kernel(independent=True)
def softmax_forward(op, params, grads, acts, deltas, lo, hi):
    """aⱼ = e^(zⱼ − max z) / Σ e^(z − max z), sample by sample        acts[y]   z becomes a"""
    n = op[N_OUT]
    for i in range(lo, hi):
        y = op[Y] + i * n
        top = acts[y]
        for j in range(y, y + n):
            z = acts[j]
            top = z if z > top else top
        total = const_like(top, 0)
        for j in range(y, y + n):
            acts[j] = elementary.exp(acts[j] - top)
            total += acts[j]
        for j in range(y, y + n):
            acts[j] /= total


@kernel(independent=True)
def softmax_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = a (da − Σ a da), sample by sample        deltas[y]   da becomes dz"""
    n = op[N_OUT]
    for i in range(lo, hi):
        y = op[Y] + i * n
        mean = const_like(acts, 0)
        for j in range(y, y + n):
            mean += acts[j] * deltas[j]
        for j in range(y, y + n):
            deltas[j] = acts[j] * (deltas[j] - mean)


class Softmax(Activation):
    """Outputs that are positive and sum to 1: the probabilities of exclusive classes. Expects a vector."""

    forward, backward = softmax_forward, softmax_backward
    elementwise = False

    def output_shape(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"Softmax expects a vector, got {shape}; put Flatten() before it")
        return shape
