"""Losses: a value per sample from outputs a and targets y, and its derivative (BP1).

    quadratic              ½ Σⱼ (a − y)²                                   da = a − y
    mean_squared_error     1/m Σⱼ (a − y)²                                 da = 2 (a − y) / m
    mean_absolute_error    1/m Σⱼ |a − y|                                  da = sign(a − y) / m
    huber                  1/m Σⱼ ½ r² where |r| ≤ δ, else δ (|r| − δ/2)   da = clip(r, ±δ) / m
    quantile               1/m Σⱼ (1 − τ) r where r > 0, else − τ r         da = (1 − τ, − τ) / m
    poisson                Σⱼ a − y + y log (y / a)                        dz = a − y
    binary_cross_entropy   − Σⱼ y log a + (1 − y) log (1 − a)              dz = a − y
    cross_entropy          − Σⱼ y log a                                    dz = a − y

j runs over the m outputs, and r = a − y; the loss of a batch is the mean over its samples, weighted
where samples have weights (`weights_ops`). Where every step of a sequence has a target, the loss of
a sample is the mean over its steps (`steps_ops`), and a sample weighs as much as it has steps.

The cross-entropies and the Poisson loss are fused with the last activation in training, a sigmoid
(binary), a softmax or an exponential: they work on z (the logits), so they neither overflow nor
lose digits where a is near 0 or 1.

Source   Nielsen, Neural Networks and Deep Learning, chapters 1 to 3; Huber 1964; Koenker, Bassett
         1978 (quantiles)
"""

from dataclasses import dataclass, fields
from math import inf
from typing import Annotated, Any, ClassVar

import numpy as np

from numbanet.backend import elementary
from numbanet.backend.intrinsics import (
    as_pointer,
    const_like,
    float_attr,
    lanes,
    load,
    local_array,
    num_threads,
    ptr_add,
    splat,
    store,
    thread_rank,
    transpose,
    where_equal,
    where_greater,
)
from numbanet.backend.jit import Kernel, inline, kernel, specialize
from numbanet.io.attributes import Description, instance
from numbanet.io.fields import Real, Reals, check, shown
from numbanet.io.registry import lookup
from numbanet.plan.builtin_ops import copy_forward
from numbanet.plan.columns import (
    AUX,
    N_IN,
    N_OUT,
    SAMPLES,
    WEIGHTS,
    Attrs,
    X,
    Y,
    context,
    sample_index,
    sequence_length,
)
from numbanet.plan.op import Op

LOGITS = (
    "the cross-entropies work on logits by themselves: end the network with activation='softmax' "
    "and loss='cross_entropy', or 'sigmoid' and 'binary_cross_entropy'"
)
"""What to use instead of a loss of logits."""
NO_LOGIT = -1e4
"""A logit z whose eᶻ and sigmoid are exactly 0."""
PANEL = 1024
"""Elements of the classes of as many samples as a register has lanes, where they are transposed:
a register then holds one class of each sample. With more classes, loops over them are long."""


verb: Any = None
"""In the template: a kernel of a loss."""


def _over_time(op, params, grads, acts, deltas, lo, hi):
    """The same for every step of samples lo ≤ i < hi, as if it were a sample."""
    verb(op, params, grads, acts, deltas, lo * op[N_OUT], hi * op[N_OUT])


def _make_over_time(one: Kernel) -> Kernel:
    """The kernel of a loss whose op has as many outputs as a sample has steps."""
    name, module = f"{one.__name__}_over_time", one.function.__module__
    made = kernel(
        specialize(_over_time, name, module, verb=inline(one.function)),
        independent=one.independent,
    )
    if one.cuda_kernel is not None:
        made.cuda(specialize(_over_time, name, module, verb=inline(one.cuda_kernel)))
    return made


@dataclass(frozen=True)
class Loss(Description):
    """A loss. A new one names its kernels, which both read the outputs at acts[X + i N_IN …] and
    the targets at acts[AUX + i N_IN …]:

    `forward`           writes acts[Y + i]
    `backward`          overwrites deltas[X + i N_IN …], with the factor 1 / samples, because the
                        loss of a batch is a mean
    `fused_activation`  the name of the last activation that the kernels replace (they see z
                        instead of a), or "" (they see a)
    `target_range`      the least and the largest target
    `neutral`           an output that has loss 0 and derivative 0 where the target is 0: it takes
                        the place of outputs without a target. None: all targets are needed

    Of `forward` and `backward` those for the steps of sequences are made: there a sample of the
    kernels is a step.
    """

    instead: ClassVar[dict[str, str]] = {"from_logits": LOGITS}

    forward: ClassVar[Kernel]
    backward: ClassVar[Kernel]
    fused_activation: ClassVar[str] = ""
    target_range: ClassVar[tuple[float, float]] = (-inf, inf)
    neutral: ClassVar[float | None] = None
    forward_over_time: ClassVar[Kernel]
    backward_over_time: ClassVar[Kernel]

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        for name in ("forward", "backward"):
            if isinstance(vars(cls).get(name), Kernel):
                setattr(cls, f"{name}_over_time", _make_over_time(vars(cls)[name]))

    def __post_init__(self):
        check(self)

    @property
    def attrs(self) -> tuple:
        """The values of the columns from ATTRS on: the loss's fields as floats, in their order."""
        return tuple(float(getattr(self, f.name)) for f in fields(self))

    def check_outputs(self, n_outputs: int) -> None:
        """ValueError for a number of outputs that the loss cannot have; here none."""

    def op(self, n_outputs: int, targets: Op, steps: int | None = None) -> Op:
        """Return the row of the plan; with `steps`, that of a sequence of n_outputs in each."""
        kind = type(self)
        verbs = kind.forward, kind.backward
        if steps is not None:
            verbs = kind.forward_over_time, kind.backward_over_time
        return Op(kind.__name__, n_outputs, steps or 1, *verbs, aux=targets, attrs=self.attrs)


# --- quadratic and mean squared ---------------------------------------------------------------


@kernel(independent=True)
def quadratic_forward(op, params, grads, acts, deltas, lo, hi):
    """½ Σ (a − y)²"""
    n = op[N_IN]
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        total = const_like(acts, 0)
        for j in range(n):
            r = acts[a + j] - acts[y + j]
            total += r * r
        acts[op[Y] + i] = const_like(acts, 0.5) * total


@kernel(independent=True)
def quadratic_backward(op, params, grads, acts, deltas, lo, hi):
    """da = (a − y) / samples"""
    n, a, y = op[N_IN], op[X], op[AUX]
    scale = const_like(acts, 1 / context(op, SAMPLES))
    for k in range(lo * n, hi * n):
        deltas[a + k] = scale * (acts[a + k] - acts[y + k])


class Quadratic(Loss):
    """½ Σ (a − y)², the quadratic cost."""

    forward, backward, neutral = quadratic_forward, quadratic_backward, 0.0


@kernel(independent=True)
def mean_squared_forward(op, params, grads, acts, deltas, lo, hi):
    """1/m Σ (a − y)²"""
    n = op[N_IN]
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        total = const_like(acts, 0)
        for j in range(n):
            r = acts[a + j] - acts[y + j]
            total += r * r
        acts[op[Y] + i] = total / const_like(acts, n)


@kernel(independent=True)
def mean_squared_backward(op, params, grads, acts, deltas, lo, hi):
    """da = 2 (a − y) / (m samples)"""
    n, a, y = op[N_IN], op[X], op[AUX]
    scale = const_like(acts, 2 / (n * context(op, SAMPLES)))
    for k in range(lo * n, hi * n):
        deltas[a + k] = scale * (acts[a + k] - acts[y + k])


class MeanSquaredError(Loss):
    """1/m Σ (a − y)², the mean over the m outputs."""

    forward, backward, neutral = mean_squared_forward, mean_squared_backward, 0.0


# --- mean absolute and Huber ------------------------------------------------------------------


@kernel(independent=True)
def mean_absolute_forward(op, params, grads, acts, deltas, lo, hi):
    """1/m Σ |a − y|"""
    n = op[N_IN]
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        total = const_like(acts, 0)
        for j in range(n):
            total += abs(acts[a + j] - acts[y + j])
        acts[op[Y] + i] = total / const_like(acts, n)


@kernel(independent=True)
def mean_absolute_backward(op, params, grads, acts, deltas, lo, hi):
    """da = sign(a − y) / (m samples), 0 where a = y"""
    n = op[N_IN]
    scale, zero = const_like(acts, 1 / (n * context(op, SAMPLES))), const_like(acts, 0)
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        for j in range(n):
            r = acts[a + j] - acts[y + j]
            deltas[a + j] = scale if r > zero else (-scale if r < zero else r)


class MeanAbsoluteError(Loss):
    """1/m Σ |a − y|, the mean over the m outputs."""

    forward, backward, neutral = mean_absolute_forward, mean_absolute_backward, 0.0


HUBER = Attrs("delta")


@kernel(independent=True)
def huber_forward(op, params, grads, acts, deltas, lo, hi):
    """1/m Σ of ½ r² where |r| ≤ δ, else δ (|r| − δ/2)"""
    n, delta, half = op[N_IN], const_like(acts, float_attr(op, HUBER.delta)), const_like(acts, 0.5)
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        total = const_like(acts, 0)
        for j in range(n):
            r = abs(acts[a + j] - acts[y + j])
            total += delta * (r - half * delta) if r > delta else half * r * r
        acts[op[Y] + i] = total / const_like(acts, n)


@kernel(independent=True)
def huber_backward(op, params, grads, acts, deltas, lo, hi):
    """da = clip(a − y, ±δ) / (m samples)"""
    n, delta = op[N_IN], const_like(acts, float_attr(op, HUBER.delta))
    scale = const_like(acts, 1 / (n * context(op, SAMPLES)))
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        for j in range(n):
            r = acts[a + j] - acts[y + j]
            r = delta if r > delta else r
            deltas[a + j] = scale * (-delta if r < -delta else r)


@dataclass(frozen=True)
class Huber(Loss):
    """Quadratic for errors up to `delta`, linear beyond: the force of an outlier is bounded."""

    delta: Annotated[float, Real(above=0, says="{owner} needs a positive {name}, got {got}")] = 1.0
    forward, backward, neutral = huber_forward, huber_backward, 0.0


# --- quantiles --------------------------------------------------------------------------------

QUANTILE = Attrs("n_levels first_level")
"""How many levels there are, and the column of the first."""


@kernel(independent=True)
def quantile_forward(op, params, grads, acts, deltas, lo, hi):
    """1/m Σ of (1 − τ) (a − y) where a > y, else τ (y − a)"""
    n, levels, zero = op[N_IN], op[QUANTILE.n_levels], const_like(acts, 0)
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        total = zero
        for first in range(0, n, levels):
            for k in range(levels):
                level = float_attr(op, QUANTILE.first_level + k)
                r = acts[a + first + k] - acts[y + first + k]
                total += r * const_like(acts, 1 - level if r > zero else -level)
        acts[op[Y] + i] = total / const_like(acts, n)


@kernel(independent=True)
def quantile_backward(op, params, grads, acts, deltas, lo, hi):
    """da = (1 − τ) / (m samples) where a > y, − τ / (m samples) where a < y, 0 where a = y"""
    n, levels, zero = op[N_IN], op[QUANTILE.n_levels], const_like(acts, 0)
    scale = 1 / (n * context(op, SAMPLES))
    for i in range(lo, hi):
        a, y = op[X] + i * n, op[AUX] + i * n
        for first in range(0, n, levels):
            for k in range(levels):
                level = float_attr(op, QUANTILE.first_level + k)
                above, below = (
                    const_like(acts, scale * (1 - level)),
                    const_like(acts, -scale * level),
                )
                r = acts[a + first + k] - acts[y + first + k]
                deltas[a + first + k] = above if r > zero else (below if r < zero else r)


@dataclass(frozen=True)
class Quantile(Loss):
    """The quantile loss, or pinball loss: output j learns the value below which y lies in a
    fraction `levels[j]` of the cases.

    levels   one level, or several, each above 0 and below 1. Of several, an output for each: three
             outputs of levels (0.1, 0.5, 0.9) are a median in an interval of 80 %. More targets
             have their levels one after another
    Targets are as many as outputs: each is repeated for its levels. Raises ValueError where the
    outputs are no multiple of the levels.
    """

    levels: Annotated[
        Any, Reals(Real(above=0, below=1, says="{label} must be above 0 and below 1, got {got}"))
    ] = (0.5,)
    forward, backward, neutral = quantile_forward, quantile_backward, 0.0

    @property
    def attrs(self) -> tuple:
        first, *others = (float(level) for level in self.levels)
        return (*QUANTILE.pack(n_levels=len(self.levels), first_level=first), *others)

    def check_outputs(self, n_outputs: int) -> None:
        if n_outputs % len(self.levels):
            raise ValueError(
                f"Quantile has {len(self.levels)} levels and the network {n_outputs} outputs; "
                "give it one for every level of every target, and the targets as often"
            )


# --- cross-entropies --------------------------------------------------------------------------


@kernel(independent=True)
def binary_cross_entropy_forward(op, params, grads, acts, deltas, lo, hi):
    """Σ log(1 + eᶻ) − y z, which equals − Σ y log a + (1 − y) log(1 − a)"""
    n = op[N_IN]
    for i in range(lo, hi):
        z, y = op[X] + i * n, op[AUX] + i * n
        total = const_like(acts, 0)
        for j in range(n):
            total += elementary.softplus(acts[z + j]) - acts[y + j] * acts[z + j]
        acts[op[Y] + i] = total


@kernel(independent=True)
def binary_cross_entropy_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = (sigmoid(z) − y) / samples"""
    n = op[N_IN]
    scale = const_like(acts, 1 / context(op, SAMPLES))
    for i in range(lo, hi):
        z, y = op[X] + i * n, op[AUX] + i * n
        for j in range(n):
            deltas[z + j] = scale * (elementary.sigmoid(acts[z + j]) - acts[y + j])


class BinaryCrossEntropy(Loss):
    """− Σ y log a + (1 − y) log(1 − a), each output a probability of its own, after a sigmoid."""

    forward, backward = binary_cross_entropy_forward, binary_cross_entropy_backward
    fused_activation, target_range, neutral = "Sigmoid", (0, 1), NO_LOGIT


@inline
def _largest(acts, z, n):
    """The largest of n elements of acts."""
    z_max = acts[z]
    for j in range(z, z + n):
        z_max = acts[j] if acts[j] > z_max else z_max
    return z_max


@inline
def _cross_entropy(op, acts, i):
    """The loss of sample i."""
    n = op[N_IN]
    z, y = op[X] + i * n, op[AUX] + i * n
    z_max = _largest(acts, z, n)
    total, y_sum, dot = const_like(acts, 0), const_like(acts, 0), const_like(acts, 0)
    for j in range(n):
        total += elementary.exp(acts[z + j] - z_max)
        y_sum += acts[y + j]
        dot += acts[y + j] * (acts[z + j] - z_max)
    acts[op[Y] + i] = y_sum * elementary.log(total) - dot


@inline
def _transpose_classes(op, acts, i, m, a, y):
    """Outputs and targets of samples i … i + m − 1 into panels with a register for each class."""
    n, width = op[N_IN], lanes(acts)
    transpose(m, n, ptr_add(acts, op[X] + i * n), n, a, width)
    transpose(m, n, ptr_add(acts, op[AUX] + i * n), n, y, width)


@inline
def _largest_in_lanes(z, n):
    """The largest of n registers, lane by lane."""
    width = lanes(z)
    z_max = load(z, width)
    for j in range(1, n):
        z_max = elementary.maximum(z_max, load(ptr_add(z, j * width), width))
    return z_max


@kernel
def cross_entropy_forward(op, params, grads, acts, deltas, lo, hi):
    """Σ y (log Σ eᶻ − z), which equals − Σ y log a"""
    n, width, zero = op[N_IN], lanes(acts), splat(acts, 0)
    z, y = local_array(acts, PANEL), local_array(acts, PANEL)
    if n * width > PANEL:
        for i in range(lo, hi):
            _cross_entropy(op, acts, i)
        return
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        _transpose_classes(op, acts, i, m, z, y)
        z_max, total, y_sum, dot = _largest_in_lanes(z, n), zero, zero, zero
        for j in range(0, n * width, width):
            y_j, z_j = load(ptr_add(y, j), width), load(ptr_add(z, j), width) - z_max
            total, y_sum, dot = total + elementary.exp(z_j), y_sum + y_j, dot + y_j * z_j
        store(ptr_add(acts, op[Y] + i), y_sum * elementary.log(total) - dot, m)


@cross_entropy_forward.cuda
def cross_entropy_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo + thread_rank(), hi, num_threads()):
        _cross_entropy(op, acts, i)


@inline
def _cross_entropy_derivative(op, acts, deltas, i):
    """That of sample i."""
    n = op[N_IN]
    scale = const_like(acts, 1 / context(op, SAMPLES))
    z, y = op[X] + i * n, op[AUX] + i * n
    z_max = _largest(acts, z, n)
    total, y_sum = const_like(acts, 0), const_like(acts, 0)
    for j in range(n):
        deltas[z + j] = elementary.exp(acts[z + j] - z_max)
        total += deltas[z + j]
        y_sum += acts[y + j]
    for j in range(n):
        deltas[z + j] = scale * (deltas[z + j] * y_sum / total - acts[y + j])


@kernel
def cross_entropy_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = (softmax(z) Σ y − y) / samples"""
    n, width, zero = op[N_IN], lanes(acts), splat(acts, 0)
    scale = splat(acts, 1 / context(op, SAMPLES))
    z, y = local_array(acts, PANEL), local_array(acts, PANEL)
    if n * width > PANEL:
        for i in range(lo, hi):
            _cross_entropy_derivative(op, acts, deltas, i)
        return
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        _transpose_classes(op, acts, i, m, z, y)
        z_max, total, y_sum = _largest_in_lanes(z, n), zero, zero
        for j in range(0, n * width, width):
            power = elementary.exp(load(ptr_add(z, j), width) - z_max)
            store(ptr_add(z, j), power, width)
            total, y_sum = total + power, y_sum + load(ptr_add(y, j), width)
        share = y_sum / total
        for j in range(0, n * width, width):
            y_j, power = load(ptr_add(y, j), width), load(ptr_add(z, j), width)
            store(ptr_add(z, j), scale * (power * share - y_j), width)
        transpose(n, m, z, width, ptr_add(deltas, op[X] + i * n), n)


@cross_entropy_backward.cuda
def cross_entropy_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo + thread_rank(), hi, num_threads()):
        _cross_entropy_derivative(op, acts, deltas, i)


class CrossEntropy(Loss):
    """− Σ y log a for exclusive classes, after a softmax.

    Targets are labels or rows of probabilities.
    """

    forward, backward = cross_entropy_forward, cross_entropy_backward
    fused_activation, target_range = "Softmax", (0, 1)


# --- Poisson ----------------------------------------------------------------------------------


@kernel(independent=True)
def poisson_forward(op, params, grads, acts, deltas, lo, hi):
    """Σ eᶻ − y + y (log y − z), where y log y is 0 for y = 0"""
    n, zero = op[N_IN], const_like(acts, 0)
    for i in range(lo, hi):
        z, y = op[X] + i * n, op[AUX] + i * n
        total = zero
        for j in range(n):
            count = acts[y + j]
            total += elementary.exp(acts[z + j]) - count
            if count > zero:
                total += count * (elementary.log(count) - acts[z + j])
        acts[op[Y] + i] = total


@kernel(independent=True)
def poisson_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = (eᶻ − y) / samples"""
    n = op[N_IN]
    scale = const_like(acts, 1 / context(op, SAMPLES))
    for i in range(lo, hi):
        z, y = op[X] + i * n, op[AUX] + i * n
        for j in range(n):
            deltas[z + j] = scale * (elementary.exp(acts[z + j]) - acts[y + j])


class Poisson(Loss):
    """Σ a − y + y log (y / a), half the Poisson deviance, for counts and rates y ≥ 0, after exp."""

    forward, backward = poisson_forward, poisson_backward
    fused_activation, target_range, neutral = "Exp", (0, inf), NO_LOGIT


NAMES = {
    "quadratic": Quadratic,
    "mean_squared_error": MeanSquaredError,
    "mean_absolute_error": MeanAbsoluteError,
    "huber": Huber,
    "quantile": Quantile,
    "binary_cross_entropy": BinaryCrossEntropy,
    "cross_entropy": CrossEntropy,
    "poisson": Poisson,
}


SYNONYMS = {
    "mse": "mean_squared_error",
    "mse_loss": "mean_squared_error",
    "squared_error": "mean_squared_error",
    "mae": "mean_absolute_error",
    "absolute_error": "mean_absolute_error",
    "l1_loss": "mean_absolute_error",
    "huber_loss": "huber",
    "smooth_l1_loss": "huber",
    "quantile_loss": "quantile",
    "pinball": "quantile",
    "pinball_loss": "quantile",
    "bce": "binary_cross_entropy",
    "bce_loss": "binary_cross_entropy",
    "categorical_cross_entropy": "cross_entropy",
    "sparse_categorical_cross_entropy": "cross_entropy",
    "cross_entropy_loss": "cross_entropy",
    "log_loss": "cross_entropy",
}
"""Names in other libraries."""


def loss(given) -> Loss:
    """The loss for a name, a Loss or a class of losses."""
    if isinstance(given, str):
        if "logits" in given.lower():
            raise ValueError(f"unknown loss {given!r}; {LOGITS}")
        return lookup("loss", given, NAMES, SYNONYMS)()
    given = instance(given, Loss)
    if isinstance(given, Loss):
        return given
    raise TypeError(f"a loss is a name or a Loss, not {shown(given)}")


# --- missing targets --------------------------------------------------------------------------

MISSING = Attrs("neutral")


@kernel(independent=True)
def hide_missing(op, params, grads, acts, deltas, lo, hi):
    """acts[y] = acts[x]; where the target is NaN, it becomes 0 and the output neutral."""
    n, neutral = op[N_IN], const_like(acts, float_attr(op, MISSING.neutral))
    for i in range(lo, hi):
        x, y, target = op[X] + i * n, op[Y] + i * n, op[AUX] + i * n
        for j in range(n):
            missing = acts[target + j] != acts[target + j]
            acts[y + j] = neutral if missing else acts[x + j]
            acts[target + j] = const_like(acts, 0) if missing else acts[target + j]


@kernel(independent=True)
def hide_missing_backward(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y], which is 0 where the target is missing"""
    n = op[N_IN]
    for j in range(lo * n, hi * n):
        deltas[op[X] + j] = deltas[op[Y] + j]


def missing_op(loss: Loss, n_outputs: int, targets: Op) -> Op:
    """The op before a loss with a neutral output, which hides the outputs without a target."""
    assert loss.neutral is not None
    return Op(
        "Missing",
        n_outputs,
        n_outputs,
        hide_missing,
        hide_missing_backward,
        aux=targets,
        attrs=MISSING.pack(neutral=float(loss.neutral)),
    )


# --- sample weights ---------------------------------------------------------------------------


@inline
def _weight(op, acts, i):
    """The weight of sample i of the batch."""
    weights = as_pointer(context(op, WEIGHTS), np.float64)
    return const_like(acts, weights[sample_index(op, i)])


@kernel(independent=True)
def weigh_deltas(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y] times the sample's weight"""
    n = op[N_IN]
    for i in range(lo, hi):
        weight = _weight(op, acts, i)
        for j in range(i * n, i * n + n):
            deltas[op[X] + j] = weight * deltas[op[Y] + j]


@kernel(independent=True)
def weigh_losses(op, params, grads, acts, deltas, lo, hi):
    """The loss of a sample, acts[Y + i], times its weight"""
    for i in range(lo, hi):
        acts[op[Y] + i] *= _weight(op, acts, i)


def weights_ops(n_outputs: int) -> tuple[Op, Op]:
    """The ops before and after any loss that multiply its gradient and its value by weights."""
    before = Op("Weights", n_outputs, n_outputs, copy_forward, weigh_deltas)
    return before, Op("WeighLosses", 0, 1, weigh_losses, in_place=True)


# --- sequences of targets ---------------------------------------------------------------------

STEPS = Attrs("steps weighted")
"""
steps      of a sample
weighted   1 where WEIGHTS holds a weight for every step, instead of one for every sample
"""


@inline
def _step_weight(op, acts, i, steps, s):
    """The weight of step s of sample i of the batch."""
    weights = as_pointer(context(op, WEIGHTS), np.float64)
    return const_like(acts, weights[sample_index(op, i) * steps + s])


@kernel(independent=True)
def average_deltas(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y] divided by the steps of the sample, 0 behind the last of them

    Of steps that have weights it is deltas[y] times the step's weight.
    """
    n, steps = op[N_IN], op[STEPS.steps]
    for i in range(lo, hi):
        if op[STEPS.weighted]:
            for s in range(steps):
                weight, first = _step_weight(op, deltas, i, steps, s), i * n + n // steps * s
                for j in range(first, first + n // steps):
                    deltas[op[X] + j] = weight * deltas[op[Y] + j]
            continue
        length = sequence_length(op, i, steps)
        factor, end = const_like(deltas, 1 / length), i * n + n // steps * length
        for j in range(i * n, i * n + n):
            deltas[op[X] + j] = factor * deltas[op[Y] + j] if j < end else const_like(deltas, 0)


@kernel(independent=True)
def average_losses(op, params, grads, acts, deltas, lo, hi):
    """acts[Y + i] = the mean of the losses of the steps of sample i, or their weighted sum"""
    steps = op[STEPS.steps]
    for i in range(lo, hi):
        if op[STEPS.weighted]:
            weighted_sum = const_like(acts, 0)
            for s in range(steps):
                weight = _step_weight(op, acts, i, steps, s)
                weighted_sum += weight * acts[op[AUX] + i * steps + s]
            acts[op[Y] + i] = weighted_sum
            continue
        length, total = sequence_length(op, i, steps), const_like(acts, 0)
        for s in range(op[AUX] + i * steps, op[AUX] + i * steps + length):
            total += acts[s]
        acts[op[Y] + i] = total / const_like(acts, length)


def steps_ops(n_outputs: int, steps: int, loss_op: Op, weighted: bool = False) -> tuple[Op, Op]:
    """The ops before and after the loss of every step that make a mean over the steps of it.

    weighted   whether the steps have weights: then it is a weighted sum
    """
    attrs = STEPS.pack(steps=steps, weighted=int(weighted))
    before = Op("AverageSteps", n_outputs, n_outputs, copy_forward, average_deltas, attrs=attrs)
    return before, Op("AverageLosses", 0, 1, average_losses, aux=loss_op, attrs=attrs)


# --- correct answers --------------------------------------------------------------------------

CORRECT = Attrs("threshold steps weighted")


@inline
def _mark_correct(op, acts, i):
    """What sample i has to its credit; see count_correct."""
    steps, threshold = op[CORRECT.steps], const_like(acts, float_attr(op, CORRECT.threshold))
    n, each = op[N_IN] // steps, op[CORRECT.weighted] != 0
    weight = const_like(acts, 1)
    if context(op, WEIGHTS) and not each:
        weight = _weight(op, acts, i)
    length, count = sequence_length(op, i, steps) if steps > 1 else 1, 0
    total = const_like(acts, 0)
    for s in range(length):
        a, y = op[X] + i * op[N_IN] + s * n, op[AUX] + i * op[N_IN] + s * n
        best = right = 0
        for j in range(1, n):
            best = j if acts[a + j] > acts[a + best] else best
            right = j if acts[y + j] > acts[y + right] else right
        same = best == right
        if n == 1:
            same = (acts[a] > threshold) == (acts[y] > const_like(acts, 0.5))
        count += 1 if same else 0
        if each and same:
            total += _step_weight(op, acts, i, steps, s)
    share = const_like(acts, count) / const_like(acts, length)
    acts[op[Y] + i] = total if each else weight * share


@inline
def _argmax_in_lanes(rows, n):
    """Which of n registers is the largest, the first where several are, lane by lane."""
    width, place = lanes(rows), splat(rows, 0)
    top = load(rows, width)
    for j in range(1, n):
        value = load(ptr_add(rows, j * width), width)
        place = where_greater(value, top, splat(rows, j), place)
        top = elementary.maximum(top, value)
    return place


@kernel
def count_correct(op, params, grads, acts, deltas, lo, hi):
    """acts[Y + i] = the sample's weight, or 1, times the share of its steps with a correct answer.

    Of steps that have weights it is the sum of the weights of those with a correct answer. The
    largest output is that of the class, or the one output is on the target's side. A sample that is
    no sequence is one step.
    """
    n, width, zero, one = op[N_IN], lanes(acts), splat(acts, 0), splat(acts, 1)
    a, y = local_array(acts, PANEL), local_array(acts, PANEL)
    by_step = op[CORRECT.steps] > 1 or op[CORRECT.weighted] != 0
    if by_step or n == 1 or n * width > PANEL:
        for i in range(lo, hi):
            _mark_correct(op, acts, i)
        return
    for i in range(lo, hi, width):
        m = min(width, hi - i)
        _transpose_classes(op, acts, i, m, a, y)
        same = where_equal(_argmax_in_lanes(a, n), _argmax_in_lanes(y, n), one, zero)
        store(ptr_add(acts, op[Y] + i), same, m)
    if context(op, WEIGHTS):
        for i in range(lo, hi):
            acts[op[Y] + i] *= _weight(op, acts, i)


@count_correct.cuda
def count_correct(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo + thread_rank(), hi, num_threads()):
        _mark_correct(op, acts, i)


def correct_op(
    n_outputs: int, targets: Op, threshold: float, steps: int = 1, weighted: bool = False
) -> Op:
    """The op that marks the correct answers; a single output is compared with `threshold`.

    weighted   whether the steps have weights
    """
    return Op(
        "Correct",
        n_outputs,
        1,
        count_correct,
        side_output=True,
        aux=targets,
        attrs=CORRECT.pack(threshold=float(threshold), steps=steps, weighted=int(weighted)),
    )
