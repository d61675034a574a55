"""Callbacks: what the user runs between epochs."""

import math
from collections.abc import Iterable

from numbanet.io.attributes import KnownArguments
from numbanet.io.fields import shown


class Callback:
    """Called around training. Override what you need.

    A plain function (epoch, logs, network) is taken as an `on_epoch_end`. `logs` is a dict of this
    epoch's metrics. A true result of `on_epoch_end` stops the training after this epoch.
    """

    def on_fit_begin(self, network) -> None:
        """Called before the first epoch."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float], network) -> bool | None:
        """Called after every epoch; epochs are counted from 1 since the network was initialised."""

    def on_fit_end(self, network) -> None:
        """Called after the last epoch, also when training was stopped."""


class _Function(Callback):
    def __init__(self, function):
        self._function = function

    def on_epoch_end(self, epoch, logs, network):
        return self._function(epoch, logs, network)


def as_callbacks(given) -> list[Callback]:
    """The Callbacks for None, a Callback, a function, or a list of them."""
    if given is None:
        return []
    several = isinstance(given, Iterable) and not isinstance(given, Callback)
    return [_as_callback(one) for one in (given if several else [given])]


def _as_callback(given) -> Callback:
    if isinstance(given, type) and issubclass(given, Callback):
        raise TypeError(f"{given.__name__} is a class; pass {given.__name__}()")
    if isinstance(given, Callback):
        return given
    if callable(given):
        return _Function(given)
    raise TypeError(
        f"a callback is a Callback or a function (epoch, logs, network), not {shown(given)}"
    )


class EarlyStopping(KnownArguments, Callback):
    """Stop when `monitor` has not improved for `patience` epochs, and restore the best parameters.

    Metrics whose name ends in "accuracy" or "r2" improve upwards, all others downwards.
    """

    def __init__(self, monitor: str = "val_loss", patience: int = 10, restore_best: bool = True):
        self.monitor, self.patience, self.restore_best = monitor, patience, restore_best
        self.sign = -1 if monitor.endswith(("accuracy", "r2")) else 1

    def on_fit_begin(self, network):
        self.best, self.since, self.parameters = math.inf, 0, None

    def on_epoch_end(self, epoch, logs, network):
        if self.monitor not in logs:
            hint = "; pass validation_data" if self.monitor.startswith("val_") else ""
            raise ValueError(
                f"EarlyStopping: no metric {self.monitor!r} to watch, "
                f"there are {', '.join(logs)}{hint}"
            )
        value = self.sign * logs[self.monitor]
        if value < self.best:
            self.best, self.since = value, 0
            self.parameters = network.memory.copy() if self.restore_best else None
        else:
            self.since += 1
        return self.since >= self.patience

    def on_fit_end(self, network):
        if self.parameters is not None:
            network.memory[:] = self.parameters
