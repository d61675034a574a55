"""Optimisers: each is one loop over a range of the flat vector, g the gradient and θ the parameters.

    SGD       v ← μ v + g                                     θ ← θ − η v     (Nesterov: θ ← θ − η (g + μ v))
    Adagrad   s ← s + g²                                      θ ← θ − η g / (√s + ε)
    RMSprop   s ← α s + (1 − α) g²                            θ ← θ − η g / (√s + ε)
    Adam      m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²   θ ← θ − η/(1 − β₁ᵗ) m / (√(v/(1 − β₂ᵗ)) + ε)
    AdamW     θ ← θ − η λ θ, then Adam's step

Formulas and defaults are PyTorch's, checked over trajectories in the tests. Hyper-parameters stand in the last row of the plan
as reals; `vectors` names the state each optimiser keeps, one number per parameter.

Source   Rumelhart, Hinton, Williams 1986; Nesterov 1983; Duchi, Hazan, Singer 2011; Tieleman, Hinton 2012; Kingma, Ba 2015;
         Loshchilov, Hutter 2019
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, TypeAlias

from numbanet.backend.intrinsics import const_like, float_attr, set_float_attr
from numbanet.backend.jit import Kernel, kernel
from numbanet.io.fields import Flag, Real, check, shown
from numbanet.io.registry import lookup
from numbanet.plan.columns import ATTRS, PARTIAL_STRIDE, STEP, context

RATE, SECOND, THIRD, FOURTH, FIFTH = range(ATTRS, ATTRS + 5)
"""The hyper-parameters, in the order of the fields, the learning rate first. COUNT in that row is the length of a state vector."""
READY, READY_TOO = ATTRS + 8, ATTRS + 9
"""What `prepare` works out once per step."""


@dataclass(frozen=True)
class _Plain(Real):
    """A hyper-parameter without a kind, in an optimiser of the user's: a number of at least 0, or a truth value."""

    least: float = 0

    def __call__(self, value, name, owner=""):
        return value if isinstance(value, bool) else super().__call__(value, name, owner)


Amount: TypeAlias = Annotated[float, Real(0)]
Share: TypeAlias = Annotated[float, Real(0, below=1)]
PLAIN = _Plain()


@dataclass(frozen=True)
class Optimizer:
    """An optimiser: its hyper-parameters are its fields, `update` its kernel, `vectors` its state.

    A new one names `update(op, params, grads, state, _, lo, hi)` and, if something is to be computed once per step,
    `prepare` with the same arguments.
    """

    learning_rate: Amount
    update: ClassVar[Kernel]
    begin_step: ClassVar[Kernel | None] = None
    state_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check(self, PLAIN)

    @property
    def attrs(self) -> tuple[float, ...]:
        return tuple(float(getattr(self, f.name)) for f in fields(self))


@kernel(independent=True)
def sgd(op, params, grads, state, _, lo, hi):
    """θ ← θ − η g"""
    rate = const_like(params, float_attr(op, RATE))
    for i in range(lo, hi):
        params[i] -= rate * grads[i]


@kernel(independent=True)
def sgd_momentum(op, params, grads, state, _, lo, hi):
    """v ← μ v + g, θ ← θ − η v"""
    rate, momentum = const_like(params, float_attr(op, RATE)), const_like(params, float_attr(op, SECOND))
    for i in range(lo, hi):
        state[i] = momentum * state[i] + grads[i]
        params[i] -= rate * state[i]


@kernel(independent=True)
def sgd_nesterov(op, params, grads, state, _, lo, hi):
    """v ← μ v + g, θ ← θ − η (g + μ v)"""
    rate, momentum = const_like(params, float_attr(op, RATE)), const_like(params, float_attr(op, SECOND))
    for i in range(lo, hi):
        state[i] = momentum * state[i] + grads[i]
        params[i] -= rate * (grads[i] + momentum * state[i])


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's look ahead if asked for."""

    learning_rate: Amount = 1e-3
    momentum: Share = 0.0
    nesterov: Annotated[bool, Flag()] = False

    def __post_init__(self):
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0")

    @property
    def update(self):
        return sgd_nesterov if self.nesterov else sgd_momentum if self.momentum else sgd

    @property
    def state_names(self):
        return ("velocity",) if self.momentum else ()


@kernel(independent=True)
def adagrad(op, params, grads, state, _, lo, hi):
    """s ← s + g², θ ← θ − η g / (√s + ε)"""
    rate, tiny = const_like(params, float_attr(op, RATE)), const_like(params, float_attr(op, SECOND))
    for i in range(lo, hi):
        g = grads[i]
        state[i] += g * g
        params[i] -= rate * g / (math.sqrt(state[i]) + tiny)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """A step per parameter that shrinks with the sum of its squared gradients."""

    learning_rate: Amount = 1e-2
    epsilon: Amount = 1e-10
    update = adagrad
    state_names = ("squares",)


@kernel(independent=True)
def rmsprop(op, params, grads, state, _, lo, hi):
    """s ← α s + (1 − α) g², v ← μ v + g / (√s + ε), θ ← θ − η v"""
    rate, keep, tiny = const_like(params, float_attr(op, RATE)), const_like(params, float_attr(op, SECOND)), const_like(params, float_attr(op, THIRD))
    momentum, rest, n = const_like(params, float_attr(op, FOURTH)), const_like(params, 1 - float_attr(op, SECOND)), op[PARTIAL_STRIDE]
    for i in range(lo, hi):
        g = grads[i]
        state[i] = keep * state[i] + rest * (g * g)
        step = momentum * state[n + i] + g / (math.sqrt(state[i]) + tiny)
        state[n + i] = step
        params[i] -= rate * step


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """A step per parameter scaled by a running mean of its squared gradients, with momentum if asked for."""

    learning_rate: Amount = 1e-2
    alpha: Share = 0.99
    epsilon: Amount = 1e-8
    momentum: Share = 0.0
    update = rmsprop
    state_names = ("squares", "velocity")


@kernel(independent=True)
def adam_begin_step(op, params, grads, state, _, lo, hi):
    """η / (1 − β₁ᵗ) and √(1 − β₂ᵗ) for step t"""
    t = float(context(op, STEP))
    set_float_attr(op, READY, float_attr(op, RATE) / (1 - float_attr(op, SECOND) ** t))
    set_float_attr(op, READY_TOO, 1 / math.sqrt(1 - float_attr(op, THIRD) ** t))


@kernel(independent=True)
def adam(op, params, grads, state, _, lo, hi):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², θ ← (1 − η λ) θ − η' m / (√v / √(1 − β₂ᵗ) + ε)"""
    rate, scale, tiny = const_like(params, float_attr(op, READY)), const_like(params, float_attr(op, READY_TOO)), const_like(params, float_attr(op, FOURTH))
    first, second = const_like(params, float_attr(op, SECOND)), const_like(params, float_attr(op, THIRD))
    first_rest, second_rest = const_like(params, 1 - float_attr(op, SECOND)), const_like(params, 1 - float_attr(op, THIRD))
    keep, n = const_like(params, 1 - float_attr(op, RATE) * float_attr(op, FIFTH)), op[PARTIAL_STRIDE]
    for i in range(lo, hi):
        g = grads[i]
        m = first * state[i] + first_rest * g
        v = second * state[n + i] + second_rest * (g * g)
        state[i] = m
        state[n + i] = v
        params[i] = keep * params[i] - rate * m / (math.sqrt(v) * scale + tiny)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Running means of the gradient and of its square, corrected for their start at zero."""

    learning_rate: Amount = 1e-3
    beta_1: Share = 0.9
    beta_2: Share = 0.999
    epsilon: Amount = 1e-8
    update, begin_step = adam, adam_begin_step
    state_names = ("mean", "squares")


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay apart from the gradient, on every parameter."""

    weight_decay: Amount = 1e-2


NAMES = {"sgd": SGD, "adagrad": Adagrad, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}


def optimizer(given) -> Optimizer:
    """The optimiser for a name or an Optimizer."""
    if isinstance(given, str):
        return lookup("optimizer", given, NAMES)()
    if isinstance(given, type) and issubclass(given, Optimizer):
        return given()  # type: ignore[call-arg]
    if isinstance(given, Optimizer):
        return given
    raise TypeError(f"an optimizer is a name or an Optimizer, not {shown(given)}")
