"""Callbacks: what the user runs between epochs."""

import json
import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from numbanet.io.attributes import KnownArguments
from numbanet.io.fields import Count, Flag, Real, shown
from numbanet.nn.metrics import MODE, monitored
from numbanet.training.averages import restore, snapshot

CHECKPOINT = "epoch-{epoch:06}.safetensors"
"""The name of a Checkpoint's file."""


class Callback:
    """Called around training. Override what you need.

    A plain function (epoch, logs, network) is taken as an `on_epoch_end`. `logs` is a dict of this
    epoch's metrics. A true result of `on_epoch_end` stops the training after this epoch.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in known:
                raise TypeError(
                    f"{cls.__name__}: nothing calls {name}; a Callback has {', '.join(known)}"
                )

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

    folder    made if need be; files epoch-000012.safetensors
    keep      how many of these are kept, the newest
    monitor   a metric whose best network is kept too, as best-000007-val_loss=0.25.safetensors;
              None: no such file. `mode` is that of EarlyStopping

    A file is written completely or not at all, so a run that is killed can be resumed.
    """

    def __init__(
        self,
        folder,
        every: int = 1,
        keep: int = 3,
        monitor: str | None = None,
        mode: str = "auto",
    ):
        self.folder = Path(os.fsdecode(folder))
        self.every = Count(1)(every, "every", "Checkpoint")
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
            network.save(self.folder / CHECKPOINT.format(epoch=epoch))
            _remove(checkpoints(self.folder)[: -self.keep])

    def _best(self) -> list[Path]:
        if not self.monitor:
            return []
        return list(self.folder.glob(f"best-*-{self.monitor}=*.safetensors"))


def checkpoints(folder) -> list[Path]:
    """The files of a Checkpoint, by epoch."""
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
