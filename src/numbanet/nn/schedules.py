"""Schedules: learning rates that change from step to step.

    optimizer = nn.Adam(nn.schedules.Cosine(0.002))

A schedule is a function of time, counted in epochs since the network was initialised: step k of B
in epoch e (from 0) is at time e + k / B. The rates of an epoch are computed before it; the steps
read them inside compiled code. A resumed training goes on where it stopped; only a schedule that
ends with the fit (`epochs=None`) depends on how many epochs that fit was given.

    StepDecay     rate · factor^⌊t / every⌋
    Exponential   rate · factor^t
    Cosine        final + (rate − final) (1 + cos(π t / T)) / 2        until t = T, then final
    WarmUp        min(1, t′ / epochs) · then(t)        t′ is the end of the step, so no step is 0

Source   Loshchilov, Hutter 2017 (cosine); Goyal et al. 2017 (warm-up)
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from numbanet.io.fields import Real, check


@dataclass(frozen=True)
class Schedule:
    """A learning rate that changes with time. A new one overrides `values`."""

    def __post_init__(self):
        check(self)

    def values(self, t: np.ndarray, step: float, end: float) -> np.ndarray:
        """Return the rates (n,) of steps that begin at times t (n,), in epochs.

        step   how long a step lasts, in epochs
        end    when this fit ends
        """
        raise NotImplementedError

    def epoch(self, number: int, batches: int, end: float) -> np.ndarray:
        """Return the rates (batches,), float64, of epoch `number`, from 0.

        Raises ValueError where one is negative or not finite.
        """
        t = number + np.arange(batches) / batches
        rates = np.ascontiguousarray(np.broadcast_to(self.values(t, 1 / batches, end), t.shape))
        rates = rates.astype(np.float64)
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
class Rate(Real):
    """The kind of a field for a learning rate: a number of at least 0, or a schedule."""

    least: float = 0
    says: str = "{label} must be a finite number{range}, or a schedule, got {got}"

    def __call__(self, value, name, owner=""):
        return value if isinstance(value, Schedule) else super().__call__(value, name, owner)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Rise linearly over the first `epochs`, then follow `then`, a rate or another schedule."""

    then: Annotated[float | Schedule, Rate()]
    epochs: Epochs = 1.0

    def values(self, t, step, end):
        then = self.then.values(t, step, end) if isinstance(self.then, Schedule) else self.then
        return np.minimum((t + step) / self.epochs, 1) * then
