"""The loop of fit: epochs of native calls, with callbacks, progress and Ctrl-C between them."""

import time

import numpy as np

from numbanet.io.fields import Real, shown
from numbanet.io.validation import check_int, check_threads
from numbanet.nn import optimizers
from numbanet.nn.augment import Augment
from numbanet.plan.columns import EPOCH, INPUTS, PERMUTATION, SEED, TARGETS
from numbanet.training.callbacks import callback
from numbanet.training.progress import Progress

WRONG_SPLIT = "{label} must be at least 0 and below 1, got {got}"
SPLIT = Real(0, below=1, says=WRONG_SPLIT, beyond=WRONG_SPLIT)


class DivergenceError(ArithmeticError):
    """The loss was no longer finite. The network is back at the parameters it had before that epoch."""


class History:
    """What fit measured: `history` maps a figure's name to its values, one per epoch; `seconds` likewise lists times."""

    def __init__(self):
        self.history: dict[str, list[float]] = {}
        self.seconds: list[float] = []

    def add(self, logs: dict[str, float], seconds: float) -> None:
        """Append one epoch."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        self.seconds.append(seconds)

    def __repr__(self):
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {len(self.seconds)} epochs: {last}>"


def epoch_permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of an epoch's samples: a permutation that depends on seed and epoch alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


def fit(network, x, y, *, loss, optimizer, batch_size, epochs, shuffle, validation_data, validation_split, augment, callbacks,
        verbose, threads) -> History:
    """Train the network; see Sequential.fit."""
    loss, optimizer = network._loss(loss), optimizers.optimizer(optimizer)
    callbacks = [callback(one) for one in callbacks]
    epochs = check_int(epochs, "epochs", 0)
    threads = check_threads(threads)
    batch_size = None if batch_size is None else check_int(batch_size, "batch_size")
    validation_split = SPLIT(validation_split, "validation_split")
    if not (augment is None or isinstance(augment, Augment)):
        raise TypeError(f"augment is an Augment or None, not {shown(augment)}")
    x, y, classes = network._data(x, y, loss)
    validation = None
    if validation_data is not None:
        if validation_split:
            raise ValueError("pass validation_data or validation_split, not both")
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise ValueError("validation_data must be a pair (x, y)")
        validation = network._data(*validation_data, loss, names=("validation x", "validation y"))
    elif validation_split:
        kept = len(x) - int(round(len(x) * validation_split))
        if not 0 < kept < len(x):
            raise ValueError(f"validation_split={validation_split} of {len(x)} samples leaves one side empty")
        validation = (x[kept:], y[kept:], classes)
        x, y = x[:kept], y[:kept]
    samples = len(x)
    batch = min(batch_size or samples, samples)
    batches = -(-samples // batch)
    smallest = samples % batch or batch
    for placed in network.layers:
        if getattr(placed.layer, "needs_batch", False) and smallest * len(placed.input_shape) == 1:
            raise ValueError(f"{type(placed.layer).__name__} needs at least 2 samples in every batch; {samples} samples in "
                             f"batches of {batch} leave one of a single sample: choose another batch_size")
    trainer = network._executors.trainer(loss, optimizer, x, y, classes, batch, batches, threads, augment)
    _reuse_optimizer_state(network, optimizer)
    history, show = History(), Progress(epochs if verbose else 0)
    trainer.bind(INPUTS, x)
    trainer.bind(TARGETS, y)
    trainer.set_attrs(optimizer.attrs)
    for one in callbacks:
        one.on_fit_begin(network)
    try:
        for _ in range(epochs):
            began = time.perf_counter()
            logs = _epoch(network, trainer, samples, batches, shuffle, show)
            logs["loss"] += network.penalty_value(samples, batches)
            network.epoch += 1
            if validation is not None:
                value, hits = network._score(*validation, loss)
                logs["val_loss"] = value + network.penalty_value(samples, batches)
                if hits is not None:
                    logs["val_accuracy"] = hits
            history.add(logs, time.perf_counter() - began)
            show.epoch(logs)
            if any([one.on_epoch_end(network.epoch, logs, network) for one in callbacks]):
                break
    finally:
        show.close()
        trainer.release()
        for one in callbacks:
            one.on_fit_end(network)
    return history


def _reuse_optimizer_state(network, optimizer) -> None:
    """Keep the optimiser's state if it is of the same kind, or start it at zero."""
    wanted = len(optimizer.state_names) * network.parameters.size
    if type(network.optimizer) is not type(optimizer) or network.optimizer_state.size != wanted:
        network.optimizer_state = np.zeros(wanted, network.dtype)
        network.optimizer_steps = 0
    network.optimizer = optimizer


def _epoch(network, trainer, samples, batches, shuffle, show) -> dict[str, float]:
    """One pass over the data, in native calls of about 50 ms; the means of loss and accuracy."""
    kept = network._memory.copy()
    trainer.bind(PERMUTATION, epoch_permutation(network.seed, network.epoch, samples) if shuffle else None)
    trainer.plan.set_context(EPOCH, network.epoch)
    trainer.plan.set_context(SEED, network.seed)
    trainer.metric_sums[:] = 0
    done = 0
    while done < batches:
        last = min(batches, done + trainer.slice())
        reached = trainer.steps(network._memory, network.optimizer_state, samples, done, last, network.optimizer_steps)
        network.optimizer_steps += reached - done
        if reached < last:
            _restore_and_raise(network, kept, reached + 1)
        done = reached
        show.step(done / batches)
    if not np.isfinite(network.parameters).all():
        _restore_and_raise(network, kept, batches)
    logs = {"loss": float(trainer.metric_sums[0] / samples)}
    if trainer.correct_op is not None:
        logs["accuracy"] = float(trainer.metric_sums[1] / samples)
    return logs


def _restore_and_raise(network, kept, batch) -> None:
    network._memory[:] = kept
    network.optimizer_state[:] = 0
    network.optimizer_steps = 0
    raise DivergenceError(f"training diverged in epoch {network.epoch + 1}, batch {batch}: the loss is no longer a finite number. "
                          "The network is back at its parameters from before it. Lower the learning rate, or scale the inputs")
