"""How fast layers learn: gradients, weights and updates, layer by layer and epoch by epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from numbanet.io.attributes import KnownArguments
from numbanet.io.tables import Table
from numbanet.network.insight.layerwise import checked, layer_name, spaced
from numbanet.training.callbacks import Callback

SPEED_BATCH, SPEED_BATCHES = 32, 8
"""Gradients are those of at most so many mini-batches of so many samples."""


@dataclass(frozen=True, eq=False)
class Speeds:
    """How fast every layer with parameters would learn, for a loss and samples.

    layers      (layers,) their numbers, as in `summary`
    names       their names
    gradient    (layers,) the norm of the gradient by the layer's parameters, the root of the mean
                square over mini-batches: at a minimum the batches' gradients cancel, and their
                size still says how much of the error reaches a layer. NaN for a frozen layer
    weight      (layers,) the norm of the parameters
    """

    layers: np.ndarray
    names: tuple[str, ...]
    gradient: np.ndarray
    weight: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """The gradient's norm in units of the parameters' (layers,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.gradient / self.weight

    def table(self) -> Table:
        """Return one line for each layer, and the ratio of the first layer to the last."""
        relative = self.relative
        lines = zip(self.names, self.gradient, self.weight, relative, strict=True)
        rows = [(name, *(f"{one:.3g}" for one in figures)) for name, *figures in lines]
        head = ("layer", "gradient", "weights", "relative")
        ratio = ("first : last", "", "", f"{relative[0] / relative[-1]:.3g}")
        return Table([head, *rows, ratio], left=1)

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _trained(network) -> list[int]:
    """The numbers of the layers with parameters; ValueError where there is none."""
    found = [k for k, built in enumerate(network.layers) if built.n_parameters]
    if not found:
        raise ValueError("the network has no parameters, so no layer of it learns")
    return found


def _norms(network, vector) -> np.ndarray:
    """The norm of each layer's part of a vector of all parameters (layers,), float64."""
    built = [network.layers[k] for k in _trained(network)]
    parts = [vector[one.offset : one.offset + one.n_parameters] for one in built]
    return np.array([np.linalg.norm(part.astype(np.float64)) for part in parts])


def batches(x, y) -> list[tuple[np.ndarray, np.ndarray]]:
    """At most SPEED_BATCHES mini-batches of equal size, each spread evenly over the samples."""
    chosen = spaced(len(x), SPEED_BATCH * SPEED_BATCHES)
    n = max(1, len(chosen) // SPEED_BATCH)
    rows = chosen[: len(chosen) // n * n].reshape(-1, n)
    return [(x[rows[:, k]], y[rows[:, k]]) for k in range(n)]


def speeds(network, x, y, loss=None) -> Speeds:
    """Measure how fast each layer would learn from x and y, as in the next steps of training.

    loss   by default the one that belongs to the last activation
    At most 8 mini-batches of 32 samples, evenly spaced, are taken. Raises ValueError for data that
    do not fit.
    """
    chosen, layers = network.resolve_loss(loss), _trained(network)
    x, y, _ = checked(network, x, y, chosen)
    squares = [
        _norms(network, network.gradient(*batch, chosen, training=True)) ** 2
        for batch in batches(x, y)
    ]
    gradient = np.sqrt(np.mean(squares, axis=0))
    gradient[[not network.layers[k].trainable for k in layers]] = np.nan
    names = tuple(layer_name(network, k) for k in layers)
    return Speeds(np.array(layers), names, gradient, _norms(network, network.parameters))


class LearningSpeed(KnownArguments, Callback):
    """Record how fast each layer learns: before the first epoch and after every one.

        speed = nn.diagnostics.LearningSpeed(x[:256], y[:256])
        network.fit(x, y, epochs=20, callbacks=speed)

    x, y, loss   as in `speeds`; the same loss as in fit
    Then, for the layers with parameters (`layers` their numbers, `names`):

    epochs     (n,) how many epochs the network had been trained
    gradient   (n, layers) norms as in Speeds
    weight     (n, layers) norms of the parameters
    update     (n, layers) norms of their change since the line before; NaN in the first
    """

    def __init__(self, x, y, loss=None):
        self.data = x, y, loss
        self.layers: np.ndarray = np.zeros(0, np.int64)
        self.names: tuple[str, ...] = ()
        self._lines: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self._before: np.ndarray | None = None

    @property
    def epochs(self) -> np.ndarray:
        return np.array([line[0] for line in self._lines], np.int64)

    @property
    def gradient(self) -> np.ndarray:
        return self._column(1)

    @property
    def weight(self) -> np.ndarray:
        return self._column(2)

    @property
    def update(self) -> np.ndarray:
        return self._column(3)

    def _column(self, k: int) -> np.ndarray:
        return np.array([line[k] for line in self._lines]).reshape(-1, len(self.layers))

    def on_fit_begin(self, network):
        if not self._lines or self._lines[-1][0] != network.epoch:
            self._record(network)

    def on_epoch_end(self, epoch, logs, network):
        self._record(network)

    def _record(self, network) -> None:
        found = speeds(network, *self.data)
        if len(self.layers) and found.names != self.names:
            raise ValueError(
                f"LearningSpeed has recorded a network of {', '.join(self.names)}; "
                "make another for this one"
            )
        self.layers, self.names = found.layers, found.names
        update = np.full(len(self.layers), np.nan)
        if self._before is not None:
            update = _norms(network, network.parameters - self._before)
        self._before = network.parameters.copy()
        self._lines.append((network.epoch, found.gradient, found.weight, update))


# --- learning curves --------------------------------------------------------------------------

OVERFIT_RISE = 0.1
"""A validation loss this part above its lowest has risen: one of a good training wavers by less."""
UNDERFIT_SHARE = 0.9
"""A loss above this part of a constant prediction's has learned next to nothing."""
STILL_FALLING = 0.005
"""A loss that falls by more than this part in an epoch, over the last fifth, is not at its end."""


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """What the losses of a training say.

    training     (epochs,) the training loss
    validation   (epochs,) the validation loss, or empty
    best         the epoch, from 1, with the lowest validation loss (without one, training loss)
    verdict      "diverged", "overfitting", "underfitting", "still learning" or "good"
    reason       the figures behind it, and what to try
    """

    training: np.ndarray
    validation: np.ndarray
    best: int
    verdict: str
    reason: str

    def __str__(self):
        return f"{self.verdict}: {self.reason}"


def learning_curve(history: Any, constant: float | None = None) -> LearningCurve:
    """Name what a history shows: divergence, over- or underfitting, a training too short, or none.

    history    what fit returned, or its dict; with validation losses overfitting can be seen
    constant   the loss of the best constant prediction, if underfitting is to be judged by it
               (`constant_loss`); else by the drop since the first epoch
    Diverged: a loss is not finite. Overfitting: the validation loss has risen by more than a tenth
    since its lowest while the training loss fell. Underfitting: the training loss is above 0.9 of
    a constant's. Still learning: the last fifth of the epochs lowered the loss by over 0.5 % an
    epoch.
    Raises ValueError for a history without an epoch.
    """
    series = getattr(history, "history", history)
    training = np.asarray(series.get("loss", ()), np.float64)
    validation = np.asarray(series.get("val_loss", ()), np.float64)
    if not len(training):
        raise ValueError("the history has no epochs; train with epochs=1 or more")
    watched = validation if len(validation) else training
    best, last = int(np.where(np.isfinite(watched), watched, np.inf).argmin()), len(watched) - 1
    for name, values in (("loss", training), ("validation loss", validation)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            reason = (
                f"{name} {values[wrong[0]]} in epoch {wrong[0] + 1}: lower the learning rate, "
                "scale the inputs, or look for what is not finite in the data"
            )
            return LearningCurve(training, validation, best + 1, "diverged", reason)
    start = training[0] if constant is None else constant
    tail = max(1, len(watched) // 5)
    drop = 1 - (watched[-1] / watched[-1 - tail]) ** (1 / tail) if len(watched) > tail else 1.0
    verdict, reason = "good", f"loss {training[-1]:.3g}"
    if len(validation):
        reason += f", validation loss {validation[-1]:.3g}, lowest {watched[best]:.3g}"
    if len(validation) and training[-1] < training[best]:
        if watched[last] > (1 + OVERFIT_RISE) * watched[best]:
            verdict = "overfitting"
            reason += (
                f" in epoch {best + 1}: stop there (EarlyStopping), or use more data, a penalty, "
                "Dropout or a smaller network"
            )
    if verdict == "good" and drop > STILL_FALLING:
        verdict, reason = "still learning", f"{reason}, still falling: train for more epochs"
    elif verdict == "good" and training[-1] > UNDERFIT_SHARE * start:
        verdict = "underfitting"
        reason += (
            f", hardly below {start:.3g}: use a larger network, another learning rate or scaled "
            "inputs; or x says little about y"
        )
    return LearningCurve(training, validation, best + 1, verdict, reason)
