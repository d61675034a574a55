"""The loop of fit: epochs of compiled calls, with callbacks, progress and Ctrl-C between them."""

import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from numbanet.io.attributes import instance
from numbanet.io.fields import Flag, Real, shown
from numbanet.io.validation import check_int, check_threads, check_weights
from numbanet.nn import metrics as measures
from numbanet.nn import optimizers
from numbanet.nn.augment import Augment
from numbanet.plan.columns import (
    EPOCH,
    INPUTS,
    LENGTHS,
    PERMUTATION,
    RATES,
    SEED,
    TARGETS,
    WEIGHTS,
)
from numbanet.plan.op import DEFAULT_GROUP
from numbanet.training import lbfgs
from numbanet.training.averages import measured_network, refresh
from numbanet.training.callbacks import as_callbacks
from numbanet.training.diagnosis import FEW_STEPS, STUCK_EPOCHS, NotLearningWarning, Run, filled
from numbanet.training.history import History
from numbanet.training.lbfgs import LBFGS
from numbanet.training.progress import VERBOSE, Progress
from numbanet.training.weights import class_weights, relative_weights, sample_weights

WRONG_SPLIT = "{label} must be at least 0 and below 1, got {got}"
SPLIT = Real(0, below=1, says=WRONG_SPLIT, beyond=WRONG_SPLIT)


TRIED_SAMPLES = 64
"""Validation samples on which metrics are tried before training."""


class Validation(NamedTuple):
    """Checked data that are measured after every epoch.

    x, y      inputs (samples, …), and labels (samples,) or rows (samples, outputs)
    classes   whether y names classes
    lengths   numbers of steps, int64 (samples,), or None
    weights   weights of the samples, float64, or None
    """

    x: np.ndarray
    y: np.ndarray
    classes: bool
    lengths: np.ndarray | None
    weights: np.ndarray | None


class DivergenceError(ArithmeticError):
    """The loss was no longer finite. The network is back at its parameters from before."""


def epoch_permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of an epoch's samples: a permutation that depends on seed and epoch alone."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


def fit(
    network,
    x,
    y,
    *,
    lengths,
    loss,
    optimizer,
    batch_size,
    epochs,
    shuffle,
    validation_data,
    validation_split,
    scale_targets,
    augment,
    callbacks,
    verbose,
    sample_weight,
    class_weight,
    metrics,
    threads,
) -> History:
    """Train the network; see Sequential.fit."""
    loss = network.resolve_loss(loss)
    if optimizer is None:
        optimizer = network.optimizer or "adam"
    if optimizer is LBFGS or (isinstance(optimizer, str) and optimizer.lower() == "lbfgs"):
        optimizer = LBFGS()
    if not isinstance(optimizer, LBFGS):
        optimizer = optimizers.optimizer(optimizer)
    callbacks = as_callbacks(callbacks)
    metrics = measures.metrics(metrics)
    epochs = check_int(epochs, "epochs", 0)
    verbose = VERBOSE(int(verbose) if isinstance(verbose, bool) else verbose, "verbose")
    threads = check_threads(threads)
    batch_size = None if batch_size is None else check_int(batch_size, "batch_size")
    validation_split = SPLIT(validation_split, "validation_split")
    scale_targets = Flag()(scale_targets, "scale_targets")
    shuffle = Flag()(shuffle, "shuffle")
    augment = instance(augment, Augment)
    if not (augment is None or isinstance(augment, Augment)):
        raise TypeError(f"augment is an Augment or None, not {shown(augment)}")
    undo = network.undo_scalings()
    with undo:
        network.learn_names(x, y)
        x, y, classes = network.check_data(x, y, loss)
        lengths = network.check_lengths(lengths, len(x))
        weights = None
        if sample_weight is not None:
            weights = check_weights(sample_weight, len(x))
        validation = None
        if validation_data is not None:
            validation = _validation_data(network, validation_data, validation_split, loss)
        elif validation_split:
            n_train = _n_train(len(x), validation_split)
            rest = [None if one is None else one[n_train:] for one in (lengths, weights)]
            validation = Validation(x[n_train:], y[n_train:], classes, *rest)
            x, y = x[:n_train], y[:n_train]
            weights = None if weights is None else weights[:n_train]
            lengths = None if lengths is None else lengths[:n_train]
        elif metrics:
            raise ValueError("metrics are measured on validation data; pass validation_data")
        by_class = class_weights(network, class_weight, y, classes)
        weights = sample_weights(y, weights, by_class)
        if validation is not None:
            found = sample_weights(validation.y, validation.weights, by_class)
            validation = validation._replace(weights=found)
    samples = len(x)
    batch = min(batch_size or samples, samples)
    batches = -(-samples // batch)
    check_last_batch(network, samples, batch)
    if isinstance(optimizer, LBFGS):
        _check_lbfgs(network, batch < samples, augment, lengths)
    history, watched, first = History(), network.epoch == 0, 0.0
    with undo:
        if epochs and network.learn_scalings(x, y, loss, scale_targets):
            y, classes = network.scale_targets(y), False
            if validation is not None:
                found = network.scale_targets(validation.y)
                validation = validation._replace(y=found, classes=False)
        if metrics and validation is not None:
            _try_metrics(network, metrics, validation)
    if isinstance(optimizer, LBFGS):
        return _fit_lbfgs(
            network, optimizer, x, y, loss, epochs, weights, validation, metrics, callbacks, verbose
        )
    with ExitStack() as at_end:
        with undo:
            trainer = network.executors.training(
                loss,
                optimizer,
                x,
                y,
                classes,
                batch=batch,
                batches=batches,
                threads=threads,
                augment=augment,
                weighted=weights is not None,
            )
            at_end.callback(trainer.release)
            run = Run(network, x, filled(y), classes, loss, optimizer, network.epoch, epochs)
            rates, schedule = run.rates(batches), optimizer.schedule
            if schedule is not None:  # a metric that it asks for and that is not there, before all
                schedule.observe((), dict.fromkeys(_log_names(classes, validation, metrics), 0.0))
            trainer.bind(INPUTS, x)
            trainer.bind(TARGETS, y)
            trainer.bind(LENGTHS, lengths)
            trainer.set_optimizer(optimizer)
            for callback in callbacks:
                callback.on_fit_begin(network)
                at_end.callback(callback.on_fit_end, network)
            progress = Progress(epochs, samples, verbose)
            at_end.callback(progress.close)
        reuse_optimizer_state(network, optimizer)
        measured = measured_network(network, optimizer) if validation is not None else network
        ended = schedule is not None and schedule.has_ended(network.schedule_state)
        if epochs and (ended or (rates is not None and not rates.any())):
            what = "no epoch was trained" if ended else "the learning rate is 0"
            warnings.warn(
                f"{what}: {optimizer.learning_rate} has ended by epoch {network.epoch}; "
                "pass another schedule or rate",
                NotLearningWarning,
                stacklevel=4,
            )
        for _ in range(epochs):
            if schedule is not None and schedule.has_ended(network.schedule_state):
                break
            start = time.perf_counter()
            try:
                logs = _epoch(run, trainer, batches, shuffle, weights, progress)
            except DivergenceError:
                if not history.seconds:
                    undo()
                raise
            penalty = network.penalty_value(samples, batches)
            network.epoch += 1
            first = logs["loss"] if not history.seconds else first
            if watched and network.epoch >= STUCK_EPOCHS:
                if network.optimizer_steps >= FEW_STEPS or network.epoch == epochs:
                    watched = False
                    _warn_if_stuck(run, first, logs["loss"], progress)
            logs["loss"] += penalty
            if validation is not None:
                if measured is not network:
                    refresh(measured, network)
                    penalty = measured.penalty_value(samples, batches)
                logs |= _validate(measured, validation, loss, penalty, metrics)
            if schedule is not None:
                network.schedule_state = schedule.observe(network.schedule_state, logs)
            history.add(logs, time.perf_counter() - start)
            progress.epoch(logs)
            if any([callback.on_epoch_end(network.epoch, logs, network) for callback in callbacks]):
                break
    return history


def _check_lbfgs(network, has_batches: bool, augment, lengths) -> None:
    """ValueError for what L-BFGS cannot do."""
    if lengths is not None:
        raise ValueError("L-BFGS takes no lengths; pass another optimizer")
    if has_batches or augment is not None:
        raise ValueError(
            "L-BFGS minimises the loss of all samples; pass batch_size=None and no augment"
        )
    if not all(built.trainable for built in network.layers if built.n_parameters):
        raise ValueError("L-BFGS trains all layers, some are frozen: network.unfreeze() first")
    own = [k for k, built in enumerate(network.layers) if built.group != DEFAULT_GROUP]
    if own:
        raise ValueError(
            f"L-BFGS has no learning rate and no decay, layer {own[0]} has one of its own; set its "
            "learning_rate_factor to 1 and its weight_decay to None"
        )


def _fit_lbfgs(
    network, optimizer, x, y, loss, epochs, weights, validation, metrics, callbacks, verbose
) -> History:
    """Minimise the loss of all samples; an epoch is an iteration of L-BFGS."""
    history, progress = History(), Progress(epochs, len(x), verbose)
    snapshot, start = network.memory.copy(), time.perf_counter()

    def end_iteration(value: float) -> bool:
        nonlocal start
        network.epoch += 1
        logs = {"loss": value}
        if validation is not None:
            penalty = network.penalty_value(len(x), 1)
            logs |= _validate(network, validation, loss, penalty, metrics)
        start, began = time.perf_counter(), start
        history.add(logs, start - began)
        progress.epoch(logs)
        return any([callback.on_epoch_end(network.epoch, logs, network) for callback in callbacks])

    for callback in callbacks:
        callback.on_fit_begin(network)
    try:
        found = lbfgs.minimize(
            network,
            x,
            y,
            loss,
            tol=optimizer.tolerance,
            max_iter=epochs,
            max_fun=optimizer.max_evaluations,
            weights=weights,
            callback=end_iteration,
        )
        if not (np.isfinite(found.fun) and np.isfinite(network.parameters).all()):
            network.memory[:] = snapshot
            raise DivergenceError(
                "L-BFGS met a loss that is not a finite number. The network is back at its "
                "parameters from before; scale the inputs and the targets"
            )
    finally:
        progress.close()
        for callback in callbacks:
            callback.on_fit_end(network)
    return history


def _validation_data(network, given, validation_split, loss) -> Validation:
    """The checked validation data that fit was given."""
    if validation_split:
        raise ValueError("pass validation_data or validation_split, not both")
    if isinstance(given, (tuple, list)) and len(given) == 2:
        given = dict(zip(("x", "y"), given, strict=True))
    known = {"x", "y", "lengths", "sample_weight"}
    if not isinstance(given, Mapping) or not {"x", "y"} <= set(given) <= known:
        raise ValueError(
            "validation_data must be a pair (x, y), or a dict of x, y and, if need be, lengths and "
            f"sample_weight, got {shown(given)}"
        )
    x, y, classes = network.check_data(
        given["x"], given["y"], loss, labels=("validation x", "validation y")
    )
    lengths = network.check_lengths(given.get("lengths"), len(x), "validation lengths")
    weights = given.get("sample_weight")
    if weights is not None:
        weights = check_weights(weights, len(x), "validation sample_weight")
    return Validation(x, y, classes, lengths, weights)


def _n_train(samples: int, validation_split: float) -> int:
    """How many samples, from the first, are left to train on."""
    n_train = samples - int(round(samples * validation_split))
    if not 0 < n_train < samples:
        raise ValueError(
            f"validation_split={validation_split} of {samples} samples leaves one side empty"
        )
    return n_train


def check_last_batch(network, samples: int, batch: int) -> None:
    """ValueError where the last batch is too small for a layer with batch statistics."""
    last_batch = samples % batch or batch
    for built in network.layers:
        needs_batch = getattr(built.layer, "needs_batch", False)
        if needs_batch and built.trainable and last_batch * len(built.input_shape) == 1:
            raise ValueError(
                f"{type(built.layer).__name__} needs at least 2 samples in every batch; {samples} "
                f"samples in batches of {batch} leave one of a single sample: "
                "give more samples, or choose another batch_size"
            )


def reuse_optimizer_state(network, optimizer) -> None:
    """Keep the optimiser's state if it is of the same class, or start it anew.

    Averages that are first asked for begin with the parameters as they are. What a schedule
    remembers is kept if it is the same.
    """
    if getattr(network.optimizer, "learning_rate", None) != optimizer.learning_rate:
        network.schedule_state = ()
    before, state = network.optimizer, network.optimizer_state
    fresh = optimizer.initial_state(network.parameters)
    own = len(optimizer.state_names) * network.parameters.size
    same = type(before) is type(optimizer) and before.state_names == optimizer.state_names
    if not same or state.size != len(before.vectors) * network.parameters.size:
        network.optimizer_state, network.optimizer_steps = fresh, 0
    elif before.vectors != optimizer.vectors:
        network.optimizer_state = np.concatenate([state[:own], fresh[own:]])
    network.optimizer = optimizer
    for built in network.layers:
        if optimizer.average and not built.trainable:
            part = slice(built.offset, built.offset + built.n_parameters)
            network.averaged_parameters[part] = network.parameters[part]


def _epoch(run, trainer, batches, shuffle, weights, progress) -> dict[str, float]:
    """Train for one epoch, in calls of at most about 50 ms; return mean loss and accuracy."""
    network, samples = run.network, len(run.x)
    snapshot = network.memory.copy()
    order = epoch_permutation(network.seed, network.epoch, samples) if shuffle else None
    if weights is not None:
        trainer.bind(WEIGHTS, relative_weights(weights, order, trainer.plan.batch)[0])
    reached = take_epoch(network, trainer, samples, order, run.rates(batches), progress)
    if reached < batches:
        _restore_and_raise(run, snapshot, reached + 1)
    if not np.isfinite(network.parameters).all():
        _restore_and_raise(run, snapshot, batches)
    logs = {"loss": float(trainer.metric_sums[0] / samples)}
    if trainer.correct_op is not None:
        logs["accuracy"] = float(trainer.metric_sums[1] / samples)
    return logs


def take_epoch(network, trainer, samples: int, order, rates, progress=None) -> int:
    """Take all batches of an epoch on the bound data, in native calls of at most about 50 ms.

    order      the order of the samples, int64, or None
    rates      the learning rate of every step, float64, or None where it is constant
    progress   told after every call which part of the epoch is done
    Returns the number of the batch that was reached: less than there are where the loss of the next
    one is not finite. The losses' and correct answers' sums are in trainer.metric_sums.
    """
    trainer.bind(PERMUTATION, order)
    trainer.bind(RATES, rates)
    trainer.plan.set_context(EPOCH, network.epoch)
    trainer.plan.set_context(SEED, network.seed)
    trainer.metric_sums[:] = 0
    batches, done = -(-samples // trainer.plan.batch), 0
    updates, steps_before = network.optimizer.updates, network.optimizer_steps
    while done < batches:
        last = min(batches, done + trainer.steps_per_call())
        reached = trainer.steps(
            network.memory, network.optimizer_state, samples, done, last, network.optimizer_steps
        )
        network.optimizer_steps = steps_before + updates(reached, batches)
        if reached < last:
            return reached
        done = reached
        if progress is not None:
            progress.step(done / batches)
    return batches


def _try_metrics(network, metrics, validation: Validation) -> None:
    """Measure a few samples: a metric that does not fit fails before training."""
    x, y, _, *rest = validation
    some = (None if one is None else one[:TRIED_SAMPLES] for one in rest)
    network.measure(metrics, x[:TRIED_SAMPLES], y[:TRIED_SAMPLES], *some)


def _log_names(classes: bool, validation: Validation | None, metrics) -> list[str]:
    """The names of what an epoch measures."""
    names = ["loss", *(["accuracy"] if classes else [])]
    if validation is not None:
        found = ["loss", *(["accuracy"] if validation.classes else []), *metrics]
        names += [f"val_{name}" for name in found]
    return names


def _validate(network, validation, loss, penalty: float, metrics) -> dict[str, float]:
    """Loss, with the penalty, accuracy and other metrics on the validation data."""
    x, y, classes, lengths, weights = validation
    value, accuracy = network.score(x, y, classes, loss, None, lengths, weights)
    logs = {"val_loss": value + penalty}
    if accuracy is not None:
        logs["val_accuracy"] = accuracy
    if metrics:
        found = network.measure(metrics, x, y, lengths, weights)
        logs |= {f"val_{name}": value for name, value in found.items()}
    return logs


def _warn_if_stuck(run, first: float, last: float, progress) -> None:
    """Say once what to try where the loss has hardly moved since the first epoch."""
    text = run.stuck(first, last)
    if text is not None:
        progress.new_line()
        warnings.warn(text, NotLearningWarning, stacklevel=5)


def _restore_and_raise(run, snapshot, batch) -> None:
    network = run.network
    network.memory[:] = snapshot
    network.optimizer_state[:] = network.optimizer.initial_state(network.parameters)
    network.optimizer_steps = 0
    raise DivergenceError(
        f"training diverged in epoch {network.epoch + 1}, batch {batch}: the loss is no longer a "
        "finite number. The network is back at its parameters from before it. "
        f"{run.advice(diverged=True)}"
    )
