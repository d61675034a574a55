"""Callbacks: what the user runs around a training, its epochs and its steps."""

import importlib
import inspect
import json
import math
import os
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numbanet.io.attributes import KnownArguments
from numbanet.io.fields import Count, Flag, Real, shown
from numbanet.nn.metrics import MODE, UNDEFINED, monitored
from numbanet.training.averages import restore, snapshot

EVERY_STEPS, EVERY_SECONDS = Count(1, optional=True), Real(above=0, optional=True)
CHECKPOINT = "epoch-{epoch:06}.safetensors"
"""The name of a Checkpoint's file after an epoch."""
STEP_CHECKPOINT = "epoch-{epoch:06}-{batches:09}.safetensors"
"""That of one within an epoch, after so many of its batches; by name it comes before the first."""


def _check_takes(function, count: int, what: str) -> None:
    """TypeError for a function that cannot be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
    except ValueError:
        pass  # a function that does not say what it takes


class Callback:
    """Called around a training, its epochs and its steps. Override what you need.

    A plain function (epoch, logs, network) is taken as an `on_epoch_end`.

    every_steps     `on_step_end` is called after every so many steps (updates) of a fit; None: not
                    by steps
    every_seconds   and, between native calls, when so many seconds have passed since the last time
    logs            the metrics of the epoch, by name; what is added to those of `on_epoch_end` is
                    seen by the callbacks after this one, and kept in the history

    Callbacks are called in the order in which they are given, `on_fit_end` in the opposite one. One
    may use the network, save it, write its parameters and stop the training. It may not train,
    initialise, adapt or move it: RuntimeError. An error in a callback ends the training and is
    raised by fit: the network stands after its last whole step, `on_fit_end` is called for every
    callback whose `on_fit_begin` has returned, and the next fit begins the epoch anew.
    """

    every_steps: int | None = 1
    every_seconds: float | None = None

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in known:
                raise TypeError(
                    f"{cls.__name__}: nothing calls {name}; a Callback has {', '.join(known)}"
                )
            if name.startswith("on_") and inspect.isfunction(vars(cls)[name]):
                expected = inspect.signature(getattr(Callback, name))
                what = f"{cls.__name__}.{name} takes {expected}"
                _check_takes(vars(cls)[name], len(expected.parameters), what)

    def on_fit_begin(self, network) -> None:
        """Called before the first epoch."""

    def on_epoch_begin(self, epoch: int, network) -> None:
        """Called before every epoch; they are counted from 1 since the network was initialised."""

    def on_step_end(self, step: int, logs: dict[str, float], network) -> bool | None:
        """Called after steps of a fit, which are counted from 1.

        logs are the means over the epoch's samples so far. A true result ends the training at once;
        the epoch that was begun does not count.
        """

    def on_epoch_end(self, epoch: int, logs: dict[str, float], network) -> bool | None:
        """Called after every epoch. A true result stops the training after this epoch."""

    def on_fit_end(self, network) -> None:
        """Called after the last epoch, also when training was stopped or failed."""

    def reason(self) -> str:
        """Return why it ended a training, for the log."""
        return type(self).__name__

    def called_at_steps(self) -> bool:
        """Whether `on_step_end` is called at all; ValueError for a wrong interval."""
        steps = EVERY_STEPS(self.every_steps, "every_steps", type(self).__name__)
        seconds = EVERY_SECONDS(self.every_seconds, "every_seconds", type(self).__name__)
        overridden = type(self).on_step_end is not Callback.on_step_end
        return overridden and (steps is not None or seconds is not None)


class _Function(Callback):
    def __init__(self, function):
        self._function = function

    def on_epoch_end(self, epoch, logs, network):
        return self._function(epoch, logs, network)

    def reason(self):
        return getattr(self._function, "__name__", "a callback")


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
        _check_takes(given, 3, "a callback function takes (epoch, logs, network)")
        return _Function(given)
    raise TypeError(
        f"a callback is a Callback or a function (epoch, logs, network), not {shown(given)}"
    )


def warn_of_nan(watching, logs: dict[str, float], history: dict[str, list[float]]) -> None:
    """Warn of a metric that is NaN for the first time in a fit, where something monitors it.

    watching   callbacks, and a schedule or None
    history    the epochs before
    """
    for name in sorted({getattr(one, "monitor", None) or "" for one in watching} & set(logs)):
        if math.isnan(logs[name]) and not any(map(math.isnan, history.get(name, ()))):
            reason = UNDEFINED.get(name.removeprefix("val_"), "it is not defined for these data")
            warnings.warn(
                f"{name} is monitored and is NaN, which never counts as an improvement; {reason}",
                RuntimeWarning,
                stacklevel=6,
            )


class _Watch:
    """A metric that improves downwards or upwards, and by how much it has to."""

    def __init__(self, owner: str, monitor: str, mode: str, min_delta: float):
        self.owner, self.monitor = owner, monitor
        self.min_delta = Real(0)(min_delta, "min_delta", owner)
        self.mode = MODE(mode, "mode", owner)
        self.best = math.inf

    def take(self, value: float) -> None:
        """Count a value from before as one that was reached."""
        self.best = min(
            self.best, monitored(self.owner, self.monitor, self.mode, {self.monitor: value})
        )

    def improves(self, logs: dict[str, float]) -> bool:
        """Whether the metric is better than the best before; ValueError if it is not there."""
        value = monitored(self.owner, self.monitor, self.mode, logs)
        if value < self.best - (self.min_delta if self.best < math.inf else 0):
            self.best = value
            return True
        return False


class EarlyStopping(KnownArguments, Callback):
    """Stop when `monitor` has not improved for `patience` epochs, and restore the best parameters.

    mode        "min" or "max", whether it improves downwards or upwards; "auto": as its name says,
                downwards for losses and errors, upwards for other metrics of `nn.metrics`
    min_delta   what counts as an improvement: more than this
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        restore_best: bool = True,
        mode: str = "auto",
        min_delta: float = 0.0,
    ):
        self.monitor, self.mode, self.min_delta = monitor, mode, min_delta
        self.patience = Count(0)(patience, "patience", "EarlyStopping")
        self.restore_best = Flag()(restore_best, "restore_best", "EarlyStopping")
        self.on_fit_begin(None)

    def on_fit_begin(self, network):
        self.watch = _Watch("EarlyStopping", self.monitor, self.mode, self.min_delta)
        self.since, self.best = 0, None

    def on_epoch_end(self, epoch, logs, network):
        if self.watch.improves(logs):
            self.since = 0
            self.best = snapshot(network) if self.restore_best else None
        else:
            self.since += 1
        return self.since >= self.patience

    def on_fit_end(self, network):
        if self.best is not None:
            restore(network, self.best)

    def reason(self):
        best = "; the best parameters are restored" if self.best is not None else ""
        return f"EarlyStopping: {self.monitor} has not improved for {self.since} epochs{best}"


class TimeLimit(KnownArguments, Callback):
    """Stop after the epoch in which `seconds` are over."""

    def __init__(self, seconds: float):
        self.seconds = Real(above=0)(seconds, "seconds", "TimeLimit")

    def on_fit_begin(self, network):
        self.end = time.monotonic() + self.seconds

    def on_epoch_end(self, epoch, logs, network):
        return time.monotonic() >= self.end


class Checkpoint(KnownArguments, Callback):
    """Save the network into a folder after every `every` epochs; `fit(…, resume=folder)` goes on.

    folder          made if need be; files epoch-000012.safetensors, and within epoch 13, after 400
                    of its batches, epoch-000013-000000400.safetensors
    keep            how many of these are kept, the newest
    monitor         a metric whose best network is kept too, as
                    best-000007-val_loss=0.25.safetensors; None: no such file. `mode` is that of
                    EarlyStopping
    every_steps     save within epochs too, after every so many steps
    every_minutes   or when so many minutes have passed since the last time

    A file is written completely or not at all, so a run that is killed can be resumed.
    """

    def __init__(
        self,
        folder,
        every: int = 1,
        keep: int = 3,
        monitor: str | None = None,
        mode: str = "auto",
        every_steps: int | None = None,
        every_minutes: float | None = None,
    ):
        self.folder = Path(os.fsdecode(folder))
        self.every = Count(1)(every, "every", "Checkpoint")
        self.every_steps = EVERY_STEPS(every_steps, "every_steps", "Checkpoint")
        minutes = EVERY_SECONDS(every_minutes, "every_minutes", "Checkpoint")
        self.every_seconds = None if minutes is None else 60 * minutes
        self.keep = Count(1)(keep, "keep", "Checkpoint")
        self.monitor = monitor
        self.watch = _Watch("Checkpoint", monitor or "", mode, 0)

    def on_fit_begin(self, network):
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._best():
            with suppress(ValueError):
                self.watch.take(float(path.stem.rpartition("=")[2]))

    def on_epoch_end(self, epoch, logs, network):
        if self.monitor and self.watch.improves(logs):
            older, value = self._best(), logs[self.monitor]
            name = f"best-{epoch:06}-{self.monitor}={value:.9g}.safetensors"
            network.save(self.folder / name)
            _remove(path for path in older if path.name != name)
        if epoch % self.every == 0:
            self._save(network, CHECKPOINT.format(epoch=epoch))

    def on_step_end(self, step, logs, network):
        batches = network.unfinished.batches
        self._save(network, STEP_CHECKPOINT.format(epoch=network.epoch + 1, batches=batches))

    def _save(self, network, name: str) -> None:
        network.save(self.folder / name)
        _remove(checkpoints(self.folder)[: -self.keep])

    def _best(self) -> list[Path]:
        if not self.monitor:
            return []
        return list(self.folder.glob(f"best-*-{self.monitor}=*.safetensors"))


def checkpoints(folder) -> list[Path]:
    """The files of a Checkpoint, the newest last."""
    return sorted(Path(folder).glob("epoch-*.safetensors"))


def _remove(paths) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


class Log(KnownArguments, Callback):
    """Append the metrics of every epoch to a file: FILE.csv, or a line of JSON each in FILE.jsonl.

    Raises ValueError for another suffix, or a CSV file with other columns.
    """

    def __init__(self, path):
        self.path = Path(os.fsdecode(path))
        if self.path.suffix not in (".csv", ".jsonl"):
            raise ValueError(f"Log: {self.path}: give a file .csv or .jsonl")

    def on_epoch_end(self, epoch, logs, network):
        row = {"epoch": epoch, **logs}
        if self.path.suffix == ".jsonl":
            text = json.dumps(row) + "\n"
        else:
            text = self._head(",".join(row)) + ",".join(map(repr, row.values())) + "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text)

    def _head(self, head: str) -> str:
        """The first line, if it is not there yet."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return head + "\n"
        with open(self.path, encoding="utf-8") as file:
            found = file.readline().rstrip("\n")
        if found != head:
            raise ValueError(f"Log: {self.path} has the columns {found}, this training {head}")
        return ""


class TensorBoard(KnownArguments, Callback):
    """Write the metrics of every epoch into a folder that TensorBoard shows.

    every_steps   and their means so far after every so many steps, as steps/loss and so on, over
                  the optimiser's steps
    Raises ImportError without tensorboardX.
    """

    def __init__(self, folder, every_steps: int | None = None):
        self.folder = Path(os.fsdecode(folder))
        self.every_steps = EVERY_STEPS(every_steps, "every_steps", "TensorBoard")
        self.writer: Any = None
        _summary_writer()

    def on_fit_begin(self, network):
        self.writer = _summary_writer()(str(self.folder))

    def on_step_end(self, step, logs, network):
        for name, value in logs.items():
            self.writer.add_scalar(f"steps/{name}", value, network.optimizer_steps)

    def on_epoch_end(self, epoch, logs, network):
        for name, value in logs.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def on_fit_end(self, network):
        self.writer.close()
        self.writer = None


def _summary_writer():
    """What writes TensorBoard's files; ImportError where it is not installed."""
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoard needs tensorboardX; pip install numbanet[tensorboard]"
        ) from error
