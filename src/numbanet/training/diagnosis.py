"""Why a training goes wrong: what its data, its optimiser and its last activation say.

It is asked only where a training diverges or does not learn, and looks at a sample of the data.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from numbanet.io.sparse import SparseRows
from numbanet.io.validation import has_missing
from numbanet.nn import losses
from numbanet.nn.layers.base import checks_inputs

SAMPLE_ROWS = 4096
"""Most rows that are looked at."""
SAMPLE_ELEMENTS = 1 << 22
"""Most elements that are looked at: of wide rows fewer are taken."""
LARGE = 10.0
"""Root mean square beyond which a column of inputs or targets is not scaled."""
UNEQUAL = 100.0
"""Columns whose ranges differ by more than this factor are on different scales. (Deviations would
count a pixel that seldom has ink.)"""
STUCK_EPOCHS, FEW_STEPS = 10, 100
"""Epochs and steps after which a training is looked at."""
STUCK_DROP = 0.05
"""A loss that drops by less than this fraction of the first epoch's hardly moves; where training
works, ten epochs drop it by a third or more, or the first one has done so already."""
CONSTANT_SHARE = 0.9
"""Below this fraction of a constant's loss a network has learned something, and may be done."""
LARGE_FACTOR = 10.0
"""A layer's factor of the learning rate beyond which it is named where training diverges."""
LARGE_DECAY = 0.1
"""The fraction of the parameters that a step's decay takes away, beyond which it is named."""
LOW_LIMIT = 0.01
"""Below this, clipping leaves hardly anything of a gradient."""
RATES = {"SGD": (0.01, 1.0)}
"""Lowest and highest usual learning rate by class of the optimiser; of others ADAPTIVE_RATES."""
ADAPTIVE_RATES = (1e-4, 0.03)
SCALING = {"Standardize", "Rescale", "BatchNorm", "LayerNorm"}
"""Layers that scale what follows them."""
STANDARDIZE = "begin the network with nn.Standardize()"
RANGES = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "ReLU": (0.0, np.inf)}
"""What a last activation can give."""


class NotLearningWarning(UserWarning):
    """The loss of a fresh network hardly moved in its first ten epochs."""


@dataclass(frozen=True)
class Run:
    """A training: the network, its checked data, and how it is trained.

    x         inputs (samples, …)
    y         labels (samples,) or rows (samples, outputs)
    classes   whether y names classes
    start     the network's epoch when it began
    epochs    how many it was to take
    """

    network: Any
    x: np.ndarray | SparseRows
    y: np.ndarray
    classes: bool
    loss: Any
    optimizer: Any
    start: int
    epochs: int

    def rates(self, batches: int) -> np.ndarray | None:
        """The learning rates of the steps of the epoch to come, or None for a constant one."""
        return self._rates_of(self.network.epoch, batches)

    def _rates_of(self, epoch: int, batches: int) -> np.ndarray | None:
        return self.optimizer.rates(epoch, batches, self.start + self.epochs, self.schedule_state)

    @property
    def schedule_state(self) -> tuple:
        """What the schedule remembers of earlier epochs; () where there was another one before."""
        before = getattr(self.network.optimizer, "learning_rate", None)
        return self.network.schedule_state if before == self.optimizer.learning_rate else ()

    def _mean_rate(self) -> float:
        """The mean learning rate of the epochs so far, and of the one that is under way."""
        last = min(self.network.epoch, self.start + self.epochs - 1)
        rates = [self._rates_of(epoch, 1) for epoch in range(self.start, last + 1)]
        found = [float(rate[0]) for rate in rates if rate is not None]
        return sum(found) / len(found) if found else float(self.optimizer.learning_rate)

    def stuck(self, first: float, last: float) -> str | None:
        """What to say of a loss that went from `first` to `last`, None where it learned.

        Both are means over the samples, without penalties.
        """
        if first - last >= STUCK_DROP * first:
            return None
        constant = None
        if self.network.output_steps is None:
            constant = constant_loss(self.loss, self.y, self.network.output_shape[0])
        if constant is not None and last < CONSTANT_SHARE * constant:
            return None
        beside = "" if constant is None else f"; a constant prediction gives {constant:.3g}"
        return (
            f"the loss hardly moved in {self.network.epoch} epochs, from {first:.4g} to "
            f"{last:.4g}{beside}. {self.advice(diverged=False)}"
        )

    def advice(self, diverged: bool) -> str:
        """What to change, the likeliest first."""
        rate, unusual = self._of_rate(diverged)
        with np.errstate(over="ignore", invalid="ignore"):
            pairs = [*self.of_settings(diverged), *self.of_inputs(), *self.of_targets()]
            found = [f"{what}: {way}" for what, way in pairs]
        if diverged or unusual or not found:
            found.append(rate)
        if not diverged and self.network.optimizer_steps < FEW_STEPS:
            steps = self.network.optimizer_steps
            found.append(f"after only {steps} steps, train longer or in smaller batches")
        elif found == [rate] and not (diverged or unusual):
            found.append("or a larger network, or another seed; or x may say nothing about y")
        return f"What to do: {'; '.join(found)}"

    def of_settings(self, diverged: bool):
        """Yield what is unusual in the settings of layers and clipping, as pairs of texts."""
        rate, optimizer = self._mean_rate(), self.optimizer
        trained = [
            (k, built, built.learning_rate_factor)
            for k, built in enumerate(self.network.layers)
            if built.n_parameters and built.trainable
        ]
        for k, built, factor in trained:
            if diverged and factor > LARGE_FACTOR:
                yield (
                    f"layer {k} has a learning_rate_factor of {factor:g}",
                    f"lower network.layers[{k}].learning_rate_factor",
                )
            own = built.weight_decay is not None
            decay = built.weight_decay if own else getattr(optimizer, "weight_decay", 0)
            if rate * factor * decay > LARGE_DECAY:
                name = f"network.layers[{k}].weight_decay" if own else "that of the optimizer"
                yield (
                    f"a weight_decay of {decay:g} takes {rate * factor * decay:.3g} of layer {k}'s "
                    "parameters away in a step",
                    f"lower {name}",
                )
        if not diverged and trained and not any(factor for _, _, factor in trained):
            yield (
                "the learning_rate_factor of every layer that is trained is 0",
                "set network.layers[k].learning_rate_factor to 1",
            )
        for name in ("clip_norm", "clip_value"):
            limit = getattr(optimizer, name)
            if not diverged and limit is not None and limit < LOW_LIMIT:
                yield f"{name}={limit:g} leaves hardly anything of the gradient", f"raise {name}"

    def of_inputs(self):
        """Yield what is wrong with the inputs' scale, and what to do, as pairs of texts."""
        if self._scales_inputs():
            return
        x = _sample(self.x)
        low, high, rms = x.min(axis=0), x.max(axis=0), _rms(x)
        spread = high - low
        vectors, large = self.x.ndim == 2, int(rms.argmax())
        if rms[large] > LARGE and low.min() >= 0 and high.max() <= 255 and self._like_bytes():
            yield (
                f"x spans {_span(low.min(), high.max())}",
                "begin the network with nn.Rescale(1/255)",
            )
        elif rms[large] > LARGE:
            where = f"column {large} of x" if vectors and len(rms) > 1 else "x"
            span = _span(low[large], high[large]) if vectors else _span(low.min(), high.max())
            yield f"{where} spans {span}", STANDARDIZE
        elif vectors:
            wide, narrow = int(spread.argmax()), int(np.where(spread > 0, spread, np.inf).argmin())
            if spread[wide] > UNEQUAL * spread[narrow] > 0:
                yield (
                    f"column {wide} of x spans {_span(low[wide], high[wide])}, column {narrow} "
                    f"{_span(low[narrow], high[narrow])}",
                    STANDARDIZE,
                )

    def _like_bytes(self) -> bool:
        """Whether x may hold the bytes of images."""
        return self.x.dtype == np.uint8 or self.x.ndim > 2

    def _scales_inputs(self) -> bool:
        """Whether a layer scales the inputs before the first one that has parameters.

        A layer that checks its inputs itself, as one of indices, needs none.
        """
        for built in self.network.layers:
            if type(built.layer).__name__ in SCALING or checks_inputs(built.layer):
                return True
            if built.n_parameters:
                return False
        return False

    def of_targets(self):
        """Yield what is wrong with the targets' scale, and what to do, as pairs of texts."""
        if self.classes:
            return
        y = _sample(self.y)
        if self.network.scales_targets:
            if _rms(y).max() > LARGE:
                low, high = _span_of(self.network.unscale_targets(y))
                yield (
                    f"y spans {_span(low, high)}, far from the targets of the first fit, by which "
                    "they are scaled",
                    "network.initialize(), and fit again with scale_targets=True",
                )
            return
        low, high = _span_of(y)
        last = type(self.network.layers[-1].layer).__name__
        least, most = RANGES.get(last, (-np.inf, np.inf))
        if low < least or high > most:
            yield (
                f"y spans {_span(low, high)}, which the last activation, {last}, cannot reach",
                "leave the last layer without an activation",
            )
        if _rms(y).max() > LARGE:
            yield f"y spans {_span(low, high)}", "scale it: scale_targets=True"

    def _of_rate(self, diverged: bool) -> tuple[str, bool]:
        """What to do with the learning rate, and whether it is an unusual one."""
        kind, rate = type(self.optimizer).__name__, self._mean_rate()
        least, most = RATES.get(kind, ADAPTIVE_RATES)
        if diverged or rate > most:
            return f"lower the learning rate ({kind}'s is {rate:g})", rate > most
        if rate < least and kind == "SGD":
            return f"SGD's learning rate of {rate:g} is low: try optimizer='adam'", True
        if rate < least:
            return f"raise the learning rate ({kind}'s is {rate:g})", True
        return f"try another learning rate ({kind}'s is {rate:g})", False


def filled(y: np.ndarray) -> np.ndarray:
    """Targets with the mean of their column in the place of missing ones."""
    if not has_missing(y):
        return y
    known = ~np.isnan(y)
    mean = np.where(known, y, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, y, mean)


def constant_loss(loss, y: np.ndarray, outputs: int) -> float | None:
    """The mean loss of the best constant prediction, None for a loss of the user's own."""
    rows = _sample(y)
    if y.ndim == 1:
        rows = (rows == np.arange(outputs)).astype(np.float64)
    kind, mean = type(loss), rows.mean(axis=0)
    if kind is losses.CrossEntropy:
        return float(mean.sum() * _log(mean.sum()) - (mean * _log(mean)).sum())
    if kind is losses.BinaryCrossEntropy:
        return float(-(mean * _log(mean) + (1 - mean) * _log(1 - mean)).sum())
    if kind is losses.MeanAbsoluteError:
        return float(abs(rows - np.median(rows, axis=0)).mean())
    if kind is losses.Huber:
        constants = mean if loss.delta > _rms(rows - mean).max() else np.median(rows, axis=0)
        r = abs(rows - constants)
        return float(np.where(r > loss.delta, loss.delta * (r - loss.delta / 2), r * r / 2).mean())
    if kind is losses.Quantile:
        levels = np.resize(loss.levels, outputs)
        r = rows - [np.quantile(column, at) for column, at in zip(rows.T, levels, strict=True)]
        return float(np.maximum(levels * r, (levels - 1) * r).mean())
    if kind is losses.Poisson:
        return float((rows * (_log(rows) - _log(mean))).mean(axis=0).sum())
    if kind in (losses.MeanSquaredError, losses.Quadratic):
        variance = rows.var(axis=0)
        return float(variance.mean() if kind is losses.MeanSquaredError else variance.sum() / 2)
    return None


def _log(p):
    return np.log(np.where(p > 0, p, 1.0))


def _sample(array: np.ndarray | SparseRows) -> np.ndarray:
    """Some rows of an array, evenly spaced, as a matrix of float64."""
    width = max(1, math.prod(array.shape[1:]))
    rows = min(SAMPLE_ROWS, max(1, SAMPLE_ELEMENTS // width))
    chosen = slice(None, None, -(-len(array) // rows))
    some = array.dense(chosen) if isinstance(array, SparseRows) else array[chosen]
    return some.reshape(len(some), -1).astype(np.float64)


def _rms(columns: np.ndarray) -> np.ndarray:
    """The root mean square of each column."""
    return np.sqrt((columns * columns).mean(axis=0))


def _span_of(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _span(low: float, high: float) -> str:
    return f"{low:,.4g} … {high:,.4g}"
