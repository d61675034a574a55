"""Optimisers: each is one loop over parameters; g is the gradient, θ the parameters.

    SGD       v ← μ v + g               θ ← θ − η v     (Nesterov: θ ← θ − η (g + μ v))
    Adagrad   s ← s + g²                θ ← θ − η g / (√s + ε)
    RMSprop   s ← α s + (1 − α) g²      θ ← θ − η g / (√s + ε)
    Adam      m ← β₁ m + (1 − β₁) g
              v ← β₂ v + (1 − β₂) g²    θ ← θ − η/(1 − β₁ᵗ) m / (√(v/(1 − β₂ᵗ)) + ε)
    AdamW     θ ← θ − η λ θ, then Adam's step

Formulas and defaults are PyTorch's, checked over trajectories in the tests. An optimiser has the
last rows of the plan, one for each group of layers: `hyper_parameters` names their columns, its
fields first, then what its `begin_step` calculates once per step. The first is the learning rate:
where it follows a schedule, the engines write it before every step. What happens around an update
(clipping, averages, the decay of a layer) stands in `nn/steering.py`.

Source   Rumelhart, Hinton, Williams 1986; Nesterov 1983; Duchi, Hazan, Singer 2011; Tieleman,
         Hinton 2012; Kingma, Ba 2015; Loshchilov, Hutter 2019
"""

import math
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, TypeAlias

import numpy as np

from numbanet.backend.intrinsics import (
    const_like,
    float_attr,
    is_float32,
    set_float_attr,
    where_greater,
)
from numbanet.backend.jit import Kernel, inline, kernel
from numbanet.io.attributes import Description, instance
from numbanet.io.fields import Count, Flag, Real, check, shown
from numbanet.io.registry import lookup
from numbanet.nn import steering
from numbanet.nn.schedules import Rate, Schedule
from numbanet.nn.steering import STEERING
from numbanet.plan.columns import ATTRS, ROW_SIZE, STEP, Attrs, column_value, context
from numbanet.plan.op import Group

N_STATE = ROW_SIZE - 1
"""The column with the length of a state vector, in every optimiser's row; the engines write it."""
AROUND = "clip_value", "clip_norm", "accumulate", "average"
"""The fields of every optimiser that say what happens around its update."""
AVERAGES = "averaged_parameters"
"""The name of the state vector that holds the averages of the parameters."""


def hyper_parameters(kind: type, computed: str = ""):
    """Return the columns of an optimiser's row: its fields, then what `begin_step` calculates."""
    return Attrs(" ".join([*_own_fields(kind), computed]))


def _own_fields(kind) -> list[str]:
    """The names of the hyper-parameters that `update` reads."""
    return [f.name for f in fields(kind) if f.name not in AROUND]


@dataclass(frozen=True)
class _Plain(Real):
    """A hyper-parameter without a kind, in a user's optimiser: a number ≥ 0, or a bool."""

    least: float = 0

    def __call__(self, value, name, owner=""):
        return value if isinstance(value, bool) else super().__call__(value, name, owner)


Amount: TypeAlias = Annotated[float, Real(0)]
LearningRate: TypeAlias = Annotated[float | Schedule, Rate()]
Share: TypeAlias = Annotated[float, Real(0, below=1)]
Limit: TypeAlias = Annotated[float | None, Real(above=0, optional=True)]
PLAIN = _Plain()


@dataclass(frozen=True)
class Optimizer(Description):
    """An optimiser: its hyper-parameters are its fields, `update` its kernel.

    `state_names` names the state vectors that it keeps, each with a value per parameter; they
    follow one another in `state`. A new one names `update(op, params, grads, state, _, lo, hi)`
    and, if something is to be calculated once per step, `begin_step` with the same arguments.

    Every optimiser takes, by name:
    clip_value   the largest element of a gradient; larger ones are clipped
    clip_norm    the largest Euclidean norm of the whole gradient, penalties included; a longer
                 gradient is scaled to it
    accumulate   batches whose mean gradient makes one update; the rest at the end of an epoch
                 makes one, too
    average      decay of the exponential moving averages of all parameters, taken after every
                 update: `network.averaged()`; 0 for none
    """

    after_change = "pass it to the next fit, which keeps the state of an optimiser of its class"
    instead: ClassVar[dict[str, str]] = {
        "clipnorm": "clip_norm clips the norm of the whole gradient, not of each array",
        "use_ema": "average=0.999 is the decay of the averages",
        "weight_decay": "network.layers[k].weight_decay is that of a layer; AdamW decays all",
        "amsgrad": "there is Adam without it, and AdamW",
    }

    learning_rate: LearningRate
    update: ClassVar[Kernel]
    begin_step: ClassVar[Kernel | None] = None
    state_names: ClassVar[tuple[str, ...]] = ()
    clip_value: Limit = field(default=None, kw_only=True)
    clip_norm: Limit = field(default=None, kw_only=True)
    accumulate: Annotated[int, Count(1)] = field(default=1, kw_only=True)
    average: Share = field(default=0.0, kw_only=True)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.__repr__ = Optimizer.__repr__  # instead of a dataclass's

    def __repr__(self):
        own = {name: getattr(self, name) for name in _own_fields(self)}
        shown = (f"{name}={value!r}" for name, value in (own | self.around).items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self):
        check(self, PLAIN)
        if self.clip_value is not None and self.clip_norm is not None:
            kind = type(self).__name__
            raise ValueError(f"{kind}: pass clip_value or clip_norm, not both")

    @property
    def around(self) -> dict[str, float]:
        """What is asked for around its update: the fields of AROUND that are not default."""
        values = ((name, getattr(self, name)) for name in AROUND)
        return {name: value for name, value in values if value != getattr(Optimizer, name)}

    @property
    def keeps_gradients(self) -> bool:
        """Whether an update needs all gradients at once, or those of several batches."""
        return self.clip_norm is not None or self.accumulate > 1

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names of all state vectors: those of `update`, then the averages if there are any."""
        return (*self.state_names, AVERAGES) if self.average else tuple(self.state_names)

    def updates(self, done: int, batches: int) -> int:
        """How many updates `done` batches make, counted on through epochs of so many batches.

        The last batch of an epoch ends an update.
        """
        epochs, rest = divmod(done, batches)
        return epochs * -(-batches // self.accumulate) + rest // self.accumulate

    def initial_state(self, parameters: np.ndarray) -> np.ndarray:
        """The state before the first step: zeros, and the parameters as their own averages."""
        zeros = np.zeros(len(self.state_names) * parameters.size, parameters.dtype)
        return np.concatenate([zeros, parameters]) if self.average else zeros

    def kernels(self, group: Group) -> dict[int, Kernel]:
        """The kernels of the row for a group of layers, by column."""
        clips = self.clip_value is not None or self.keeps_gradients
        found = {
            steering.BEGIN_STEP: self.begin_step,
            steering.CLIP: steering.clip if clips else None,
            steering.DECAY: steering.decay if group.weight_decay else None,
            steering.UPDATE: self.update,
            steering.AVERAGE: steering.average if self.average else None,
        }
        return {column: kernel for column, kernel in found.items() if kernel is not None}

    def write_rows(self, rows: np.ndarray, groups: list[Group], n_params: int) -> None:
        """Write the hyper-parameters into an optimiser's rows (threads, groups, ROW_SIZE)."""
        for k, group in enumerate(groups):
            columns: dict[int, int | float] = {
                N_STATE: n_params,
                STEERING.gradient_factor: 1.0,
                STEERING.rate_factor: float(group.rate_factor),
                STEERING.clip_value: float(self.clip_value or math.inf),
                STEERING.clip_norm: float(self.clip_norm or math.inf),
                STEERING.weight_decay: float(group.weight_decay or 0),
                STEERING.average: float(self.average),
                STEERING.averages: len(self.state_names) * n_params,
            }
            columns |= dict(enumerate(self._hyper_parameters(group), ATTRS))
            for column, value in columns.items():
                rows[:, k, column] = column_value(value)

    def _hyper_parameters(self, group: Group) -> list[float]:
        """The values of its columns; 0 for a learning rate that is written in every step."""
        values = {name: getattr(self, name) for name in _own_fields(self)}
        if isinstance(self.learning_rate, Schedule):
            values["learning_rate"] = 0.0
        values["learning_rate"] *= group.rate_factor
        if group.weight_decay is not None and "weight_decay" in values:
            values["weight_decay"] = 0.0  # the group's takes its place
        return [float(value) for value in values.values()]

    @property
    def schedule(self) -> Schedule | None:
        """The learning rate where it is a schedule, else None."""
        return self.learning_rate if isinstance(self.learning_rate, Schedule) else None

    def rates(self, epoch: int, batches: int, end: float, state: tuple = ()) -> np.ndarray | None:
        """The learning rate of every step of an epoch, or None where it is constant.

        state   what the schedule remembers of the epochs before
        """
        return self.schedule.epoch(epoch, batches, end, state) if self.schedule else None


@inline
def _normal(x):
    """x, and 0 where it is subnormal.

    Rounding keeps a mean that decays above 0 for ever, and arithmetic with subnormal numbers takes
    several times as long.
    """
    least = (
        const_like(x, 1.17549435e-38) if is_float32(x) else const_like(x, 2.2250738585072014e-308)
    )
    return where_greater(least, abs(x), const_like(x, 0), x)


# --- SGD --------------------------------------------------------------------------------------


@kernel(independent=True)
def sgd(op, params, grads, state, _, lo, hi):
    """θ ← θ − η g"""
    lr = const_like(params, float_attr(op, SGD_ROW.learning_rate))
    for i in range(lo, hi):
        params[i] -= lr * grads[i]


@kernel(independent=True)
def sgd_momentum(op, params, grads, state, _, lo, hi):
    """v ← μ v + g, θ ← θ − η v"""
    lr = const_like(params, float_attr(op, SGD_ROW.learning_rate))
    momentum = const_like(params, float_attr(op, SGD_ROW.momentum))
    for i in range(lo, hi):
        state[i] = _normal(momentum * state[i] + grads[i])
        params[i] -= lr * state[i]


@kernel(independent=True)
def sgd_nesterov(op, params, grads, state, _, lo, hi):
    """v ← μ v + g, θ ← θ − η (g + μ v)"""
    lr = const_like(params, float_attr(op, SGD_ROW.learning_rate))
    momentum = const_like(params, float_attr(op, SGD_ROW.momentum))
    for i in range(lo, hi):
        state[i] = _normal(momentum * state[i] + grads[i])
        params[i] -= lr * (grads[i] + momentum * state[i])


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and Nesterov's look ahead if asked for."""

    learning_rate: LearningRate = 1e-3
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


SGD_ROW = hyper_parameters(SGD)


# --- Adagrad ----------------------------------------------------------------------------------


@kernel(independent=True)
def adagrad(op, params, grads, state, _, lo, hi):
    """s ← s + g², θ ← θ − η g / (√s + ε)"""
    lr = const_like(params, float_attr(op, ADAGRAD.learning_rate))
    eps = const_like(params, float_attr(op, ADAGRAD.epsilon))
    for i in range(lo, hi):
        g = grads[i]
        state[i] += g * g
        params[i] -= lr * g / (math.sqrt(state[i]) + eps)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """A step per parameter that shrinks with the sum of its squared gradients."""

    learning_rate: LearningRate = 1e-2
    epsilon: Amount = 1e-10
    update = adagrad
    state_names = ("squares",)


ADAGRAD = hyper_parameters(Adagrad)


# --- RMSprop ----------------------------------------------------------------------------------


@kernel(independent=True)
def rmsprop(op, params, grads, state, _, lo, hi):
    """s ← α s + (1 − α) g², v ← μ v + g / (√s + ε), θ ← θ − η v"""
    lr = const_like(params, float_attr(op, RMSPROP.learning_rate))
    alpha = const_like(params, float_attr(op, RMSPROP.alpha))
    one_minus_alpha = const_like(params, 1 - float_attr(op, RMSPROP.alpha))
    eps = const_like(params, float_attr(op, RMSPROP.epsilon))
    momentum = const_like(params, float_attr(op, RMSPROP.momentum))
    n = op[N_STATE]
    for i in range(lo, hi):
        g = grads[i]
        squares = _normal(alpha * state[i] + one_minus_alpha * (g * g))
        step = _normal(momentum * state[n + i] + g / (math.sqrt(squares) + eps))
        state[i] = squares
        state[n + i] = step
        params[i] -= lr * step


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """A step per parameter scaled by a running mean of its squared gradients; optional momentum."""

    learning_rate: LearningRate = 1e-2
    alpha: Share = 0.99
    epsilon: Amount = 1e-8
    momentum: Share = 0.0
    update = rmsprop
    state_names = ("squares", "velocity")


RMSPROP = hyper_parameters(RMSprop)


# --- Adam and AdamW ---------------------------------------------------------------------------


@kernel(independent=True)
def adam_begin_step(op, params, grads, state, _, lo, hi):
    """η / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ) for step t"""
    t = float(context(op, STEP))
    beta1, beta2 = float_attr(op, ADAM.beta_1), float_attr(op, ADAM.beta_2)
    set_float_attr(op, ADAM.lr_corrected, float_attr(op, ADAM.learning_rate) / (1 - beta1**t))
    set_float_attr(op, ADAM.v_correction, 1 / math.sqrt(1 - beta2**t))


@kernel(independent=True)
def adam(op, params, grads, state, _, lo, hi):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g²

    θ ← (1 − η λ) θ − η/(1 − β₁ᵗ) m / (√v / √(1 − β₂ᵗ) + ε)
    """
    lr = const_like(params, float_attr(op, ADAM.lr_corrected))
    v_correction = const_like(params, float_attr(op, ADAM.v_correction))
    beta1 = const_like(params, float_attr(op, ADAM.beta_1))
    beta2 = const_like(params, float_attr(op, ADAM.beta_2))
    one_minus_beta1 = const_like(params, 1 - float_attr(op, ADAM.beta_1))
    one_minus_beta2 = const_like(params, 1 - float_attr(op, ADAM.beta_2))
    eps = const_like(params, float_attr(op, ADAM.epsilon))
    weight_decay = float_attr(op, ADAM.learning_rate) * float_attr(op, ADAM.weight_decay)
    decay, n = const_like(params, 1 - weight_decay), op[N_STATE]
    for i in range(lo, hi):
        g = grads[i]
        m = _normal(beta1 * state[i] + one_minus_beta1 * g)
        v = _normal(beta2 * state[n + i] + one_minus_beta2 * (g * g))
        state[i] = m
        state[n + i] = v
        params[i] = decay * params[i] - lr * m / (math.sqrt(v) * v_correction + eps)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Running means of the gradient and of its square, corrected for their start at zero."""

    learning_rate: LearningRate = 1e-3
    beta_1: Share = 0.9
    beta_2: Share = 0.999
    epsilon: Amount = 1e-8
    update, begin_step = adam, adam_begin_step
    state_names = ("mean", "squares")


@kernel(independent=True)
def epsilon_hat_begin_step(op, params, grads, state, _, lo, hi):
    """η √(1 − β₂ᵗ) / (1 − β₁ᵗ) for step t"""
    t = float(context(op, STEP))
    beta1, beta2 = float_attr(op, ADAM.beta_1), float_attr(op, ADAM.beta_2)
    corrected = float_attr(op, ADAM.learning_rate) * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    set_float_attr(op, ADAM.lr_corrected, corrected)
    set_float_attr(op, ADAM.v_correction, 1.0)


@dataclass(frozen=True)
class AdamEpsilonHat(Adam):
    """Adam with ε beside √v as it is, not corrected for its start at zero, as scikit-learn has it.

    θ ← θ − η √(1 − β₂ᵗ) / (1 − β₁ᵗ) m / (√v + ε): the form at the end of section 2 of the source.
    """

    begin_step = epsilon_hat_begin_step


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay that is decoupled from the gradient, on every parameter."""

    weight_decay: Amount = 1e-2


ADAM = hyper_parameters(AdamW, "lr_corrected v_correction")
"""Adam has the same row, with a weight decay of 0."""


NAMES = {"sgd": SGD, "adagrad": Adagrad, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}


def optimizer(given) -> Optimizer:
    """The optimiser for a name, an Optimizer or a class of optimisers."""
    if isinstance(given, str):
        return lookup("optimizer", given, NAMES)()
    given = instance(given, Optimizer)
    if isinstance(given, Optimizer):
        return given
    raise TypeError(f"an optimizer is a name or an Optimizer, not {shown(given)}")
