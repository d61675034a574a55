"""Schedules: learning rates that change from step to step.

    optimizer = nn.Adam(nn.schedules.Cosine(0.002))

A schedule is a function of time, counted in epochs since the network was initialised: step k of B
in epoch e (from 0) is at time e + k / B. The rates of an epoch are computed before it; the steps
read them inside compiled code. A resumed training goes on where it stopped; only a schedule that
ends with the fit (`epochs=None`) depends on how many epochs that fit was given.

    StepDecay         rate · factor^⌊t / every⌋
    Exponential       rate · factor^t
    Cosine            final + (rate − final) (1 + cos(π t / T)) / 2        until t = T, then final
    OneCycle          along half a cosine from rate / 25 up to rate, along another down to almost 0
    WarmUp            min(1, t′ / epochs) · then(t)    t′ is the end of the step, so no step is 0
    Function          what a function returns for t, or for the number of the step
    ReduceOnPlateau   rate · factor^n                  n grows where a metric does not improve

What a schedule remembers of the metrics, such as n, is a state (a tuple) that the network keeps and
saves. The schedule itself never changes.

Source   Loshchilov, Hutter 2017 (cosine); Smith, Topin 2018 (one cycle, in PyTorch's form); Goyal
         et al. 2017 (warm-up); Nielsen, Neural Networks and Deep Learning, chapter 3 (halving)
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Annotated, ClassVar

import numpy as np

from numbanet.io.fields import By, Choice, Count, Kind, Real, Text, check, shown
from numbanet.nn.metrics import MODE, monitored


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes with time. A new one overrides `values`.

    One that depends on the metrics overrides `observe` too, names the kinds of what it remembers in
    `state_kinds`, and uses it in `scaled` and `has_ended`. At first the state is ().
    """

    state_kinds: ClassVar[tuple[Kind, ...]] = ()

    def __post_init__(self):
        check(self)

    def values(self, t: np.ndarray, step: float, end: float) -> np.ndarray:
        """Return the rates (n,) of steps that begin at times t (n,), in epochs.

        step   how long a step lasts, in epochs
        end    when this fit ends
        """
        raise NotImplementedError

    def duration(self, end: float) -> float:
        """Return the time in epochs after which nothing is learned any more; infinity: never.

        end   when this fit ends
        """
        return inf

    def observe(self, state: tuple, logs: dict[str, float]) -> tuple:
        """Return the state after an epoch with these metrics.

        Raises ValueError for a metric that is not among them.
        """
        return state

    def scaled(self, rates: np.ndarray, state: tuple) -> np.ndarray:
        """Return the rates of `values` in this state."""
        return rates

    def has_ended(self, state: tuple) -> bool:
        """Whether training ends in this state."""
        return False

    def check_state(self, state) -> None:
        """ValueError for what is no state of this schedule."""
        if not isinstance(state, tuple) or len(state) not in (0, len(self.state_kinds)):
            raise ValueError(f"schedule_state {shown(state)} is none of {type(self).__name__}")
        for kind, value in zip(self.state_kinds, state, strict=False):
            kind(value, "schedule_state")

    def epoch(self, number: int, batches: int, end: float, state: tuple = ()) -> np.ndarray:
        """Return the rates (batches,), float64, of epoch `number`, from 0.

        Raises ValueError where one is negative or not finite.
        """
        t = number + np.arange(batches) / batches
        rates = np.broadcast_to(self.values(t, 1 / batches, end), t.shape).astype(np.float64)
        rates = np.ascontiguousarray(self.scaled(rates, state))
        wrong = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
        if len(wrong):
            raise ValueError(
                f"{self} gives a learning rate of {rates[wrong[0]]} at epoch {t[wrong[0]]:.6g}; "
                "rates must be finite and at least 0"
            )
        return rates


Amount = Annotated[float, Real(0)]
Epochs = Annotated[float, Real(above=0)]


@dataclass(frozen=True)
class StepDecay(Schedule):
    """The rate times `factor` after `every` epochs, again and again."""

    rate: Amount
    every: Epochs
    factor: Amount = 0.1

    def values(self, t, step, end):
        return self.rate * self.factor ** np.floor(t / self.every + 1e-9)


@dataclass(frozen=True)
class Exponential(Schedule):
    """The rate times `factor` in every epoch, a little in each step."""

    rate: Amount
    factor: Amount

    def values(self, t, step, end):
        return self.rate * self.factor**t


@dataclass(frozen=True)
class Cosine(Schedule):
    """From `rate` down to `final` along half a cosine, in `epochs`, by default until fit ends."""

    rate: Amount
    final: Amount = 0.0
    epochs: Annotated[float | None, Real(above=0, optional=True)] = None

    def values(self, t, step, end):
        part = np.minimum(t / (self.epochs or end), 1)
        return self.final + (self.rate - self.final) * (1 + np.cos(np.pi * part)) / 2


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to `rate` and down again, each along half a cosine, in `epochs`, or until fit ends.

    rise            the fraction of the time in which the rate rises
    start_divisor   it begins at rate / start_divisor
    end_divisor     and ends at rate / start_divisor / end_divisor, in the last step of all
    These are the rates of PyTorch's OneCycleLR.
    """

    rate: Amount
    epochs: Annotated[float | None, Real(above=0, optional=True)] = None
    rise: Annotated[float, Real(above=0, below=1)] = 0.3
    start_divisor: Annotated[float, Real(above=0)] = 25.0
    end_divisor: Annotated[float, Real(above=0)] = 1e4

    def values(self, t, step, end):
        total = self.epochs or end
        top, last = self.rise * total - step, total - step
        start = self.rate / self.start_divisor
        rising = np.clip(t / top, 0, 1) if top > 0 else np.ones_like(t)
        falling = np.clip((t - top) / (last - top), 0, 1)
        up = self.rate + (start - self.rate) * (1 + np.cos(np.pi * rising)) / 2
        final = start / self.end_divisor
        down = final + (self.rate - final) * (1 + np.cos(np.pi * falling)) / 2
        return np.where(t <= top, up, down)

    def duration(self, end):
        return self.epochs or end


def _is_callable(given) -> None:
    if not callable(given):
        raise TypeError(f"a function of time is needed, got {shown(given)}")


@dataclass(frozen=True)
class Function(Schedule):
    """The rate that `function` returns: a number for each step.

    of   "epoch": it is called with the time in epochs, a float; "step": with the number of the step
         since the network was initialised, an int, where every epoch has as many

    A file holds the name of a function, not its code: `load(path, custom={"name": function})`. One
    without a name of its own at the top of a module, such as a lambda, cannot be saved.
    """

    function: Annotated[Callable[[float], float], By(_is_callable)]
    of: Annotated[str, Choice(("epoch", "step"))] = "epoch"

    def values(self, t, step, end):
        times = np.rint(t / step).astype(np.int64) if self.of == "step" else t
        return [self._rate(one) for one in times.tolist()]

    def _rate(self, time: float) -> float:
        rate = self.function(time)
        try:
            return float(rate)
        except (TypeError, ValueError):
            raise TypeError(
                f"{self} returned {shown(rate)} at {self.of} {time:.6g}; a rate is a number"
            ) from None


@dataclass(frozen=True)
class Rate(Real):
    """The kind of a field for a learning rate: a number of at least 0, or a schedule.

    stateful   whether that schedule may depend on the metrics
    """

    least: float = 0
    stateful: bool = True
    says: str = "{label} must be a finite number{range}, or a schedule, got {got}"

    def __call__(self, value, name, owner=""):
        if not isinstance(value, Schedule):
            if callable(value) and not isinstance(value, type):
                hint = "; a function goes in as nn.schedules.Function(…)"
                raise self.refuse(
                    value, name, owner, self.says.replace("{range}", " of at least 0") + hint
                )
            return super().__call__(value, name, owner)
        if value.state_kinds and not self.stateful:
            kind = type(value).__name__
            way = f"the other way round, {kind}({{owner}}(…)), can"
            if owner == kind:
                way = "give it a number, or a schedule of time such as Cosine"
            message = f"{{label}} cannot be a {kind}; {way}"
            raise self.refuse(value, name, owner, message)
        return value


def _values(given: float | Schedule, t: np.ndarray, step: float, end: float):
    """The rates of a field of the kind Rate."""
    return given.values(t, step, end) if isinstance(given, Schedule) else given


def _duration(given: float | Schedule, end: float) -> float:
    """The duration of a field of the kind Rate."""
    return given.duration(end) if isinstance(given, Schedule) else inf


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise linearly over the first `epochs`, then follow `then`, a rate or another schedule."""

    then: Annotated[float | Schedule, Rate(stateful=False)]
    epochs: Epochs = 1.0

    def values(self, t, step, end):
        return np.minimum((t + step) / self.epochs, 1) * np.asarray(
            _values(self.then, t, step, end)
        )

    def duration(self, end):
        return _duration(self.then, end)


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """`rate` times `factor` each time that a metric has not improved for `patience` epochs.

    rate        a number, or another schedule, whose rates are multiplied
    monitor     the metric; `mode` and `min_delta` are those of EarlyStopping
    least       no rate is reduced to less
    stop_at     training ends where the reductions have come down to this fraction, factorⁿ, also
                where `least` keeps the rate higher; 0: never

    Nielsen's halving: ReduceOnPlateau(0.5, "val_accuracy", factor=0.5, stop_at=1 / 128). The state
    is how often the rate was reduced, the best value (negative where it improves upwards) or None,
    and the epochs since then.
    """

    rate: Annotated[float | Schedule, Rate(stateful=False)]
    monitor: Annotated[str, Text()] = "val_loss"
    factor: Annotated[float, Real(above=0, below=1)] = 0.1
    patience: Annotated[int, Count(1)] = 10
    mode: Annotated[str, MODE] = "auto"
    min_delta: Amount = 0.0
    least: Amount = 0.0
    stop_at: Annotated[float, Real(0, below=1)] = 0.0
    state_kinds = Count(0), Real(optional=True), Count(0)

    def values(self, t, step, end):
        return _values(self.rate, t, step, end)

    def duration(self, end):
        return _duration(self.rate, end)

    def observe(self, state, logs):
        reductions, best, since = state or (0, None, 0)
        value = monitored("ReduceOnPlateau", self.monitor, self.mode, logs)
        if value < (inf if best is None else best - self.min_delta):
            return reductions, float(value), 0
        if since + 1 < self.patience:
            return reductions, best, since + 1
        return reductions + 1, best, 0

    def scaled(self, rates, state):
        reduced = rates * self._reduction(state)
        return np.maximum(reduced, np.minimum(rates, self.least))

    def has_ended(self, state):
        return self._reduction(state) <= self.stop_at * (1 + 1e-9)

    def _reduction(self, state) -> float:
        return self.factor ** state[0] if state else 1.0
