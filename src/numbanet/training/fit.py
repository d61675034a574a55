"""The loop of fit: epochs of compiled calls, with callbacks, progress and Ctrl-C between them."""

import time
import warnings
from contextlib import ExitStack

import numpy as np

from numbanet.io.attributes import instance
from numbanet.io.fields import Flag, Real, shown
from numbanet.io.validation import check_int, check_sample_weight, check_threads
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
from numbanet.training import lbfgs
from numbanet.training.callbacks import as_callbacks
from numbanet.training.diagnosis import FEW_STEPS, STUCK_EPOCHS, NotLearningWarning, Run
from numbanet.training.history import History
from numbanet.training.lbfgs import LBFGS
from numbanet.training.progress import VERBOSE, Progress

WRONG_SPLIT = "{label} must be at least 0 and below 1, got {got}"
SPLIT = Real(0, below=1, says=WRONG_SPLIT, beyond=WRONG_SPLIT)


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
            weights = check_sample_weight(sample_weight, len(x))
    validation = None
    if validation_data is not None:
        validation = _validation_data(network, validation_data, validation_split, loss)
    elif validation_split:
        n_train = _n_train(len(x), validation_split)
        rest = None if lengths is None else lengths[n_train:]
        validation = (x[n_train:], y[n_train:], classes, rest)
        x, y = x[:n_train], y[:n_train]
        weights = None if weights is None else weights[:n_train]
        lengths = None if lengths is None else lengths[:n_train]
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
                found = network.scale_targets(validation[1])
                validation = (validation[0], found, False, validation[3])
    if isinstance(optimizer, LBFGS):
        return _fit_lbfgs(
            network, optimizer, x, y, loss, epochs, weights, validation, callbacks, verbose
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
            run = Run(network, x, y, classes, loss, optimizer, network.epoch, epochs)
            rates = run.rates(batches)
            trainer.bind(INPUTS, x)
            trainer.bind(TARGETS, y)
            trainer.bind(LENGTHS, lengths)
            trainer.set_attrs(optimizer.attrs)
            for callback in callbacks:
                callback.on_fit_begin(network)
                at_end.callback(callback.on_fit_end, network)
            progress = Progress(epochs, verbose)
            at_end.callback(progress.close)
        reuse_optimizer_state(network, optimizer)
        if rates is not None and not rates.any() and epochs:
            warnings.warn(
                f"the learning rate is 0: {optimizer.learning_rate} has ended by epoch "
                f"{network.epoch}; pass another schedule or rate",
                NotLearningWarning,
                stacklevel=4,
            )
        for _ in range(epochs):
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
                logs |= _validate(network, validation, loss, penalty)
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


def _fit_lbfgs(
    network, optimizer, x, y, loss, epochs, weights, validation, callbacks, verbose
) -> History:
    """Minimise the loss of all samples; an epoch is an iteration of L-BFGS."""
    history, progress = History(), Progress(epochs, verbose)
    snapshot, start = network.memory.copy(), time.perf_counter()

    def end_iteration(value: float) -> bool:
        nonlocal start
        network.epoch += 1
        logs = {"loss": value}
        if validation is not None:
            logs |= _validate(network, validation, loss, network.penalty_value(len(x), 1))
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


def _validation_data(network, validation_data, validation_split, loss) -> tuple:
    """Checked validation data: x, y, whether y names classes, and lengths or None."""
    if validation_split:
        raise ValueError("pass validation_data or validation_split, not both")
    if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
        raise ValueError("validation_data must be a pair (x, y), or (x, y, lengths)")
    x, y, *rest = validation_data
    x, y, classes = network.check_data(x, y, loss, labels=("validation x", "validation y"))
    given = rest[0] if rest else None
    lengths = network.check_lengths(given, len(x), "validation lengths")
    return x, y, classes, lengths


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


def relative_weights(weights, order, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of samples divided by the mean of their batch, and the batches' sums of weights.

    The loss of a batch is then the weighted mean of its samples' losses. A batch of weights that
    are all 0 has a loss of 0.
    """
    ordered = weights if order is None else weights[order]
    starts = np.arange(0, len(weights), batch)
    sums, counts = np.add.reduceat(ordered, starts), np.diff([*starts, len(weights)])
    factors = np.divide(counts, sums, out=np.zeros(len(sums)), where=sums > 0)
    relative = np.empty(len(weights))
    relative[slice(None) if order is None else order] = ordered * np.repeat(factors, counts)
    return relative, sums


def reuse_optimizer_state(network, optimizer) -> None:
    """Keep the optimiser's state if it is of the same class, or start it at zero."""
    n_state = len(optimizer.state_names) * network.parameters.size
    same_class = type(network.optimizer) is type(optimizer)
    if not same_class or network.optimizer_state.size != n_state:
        network.optimizer_state = np.zeros(n_state, network.dtype)
        network.optimizer_steps = 0
    network.optimizer = optimizer


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
    """Take all steps of an epoch on the bound data, in native calls of at most about 50 ms.

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
    while done < batches:
        last = min(batches, done + trainer.steps_per_call())
        reached = trainer.steps(
            network.memory, network.optimizer_state, samples, done, last, network.optimizer_steps
        )
        network.optimizer_steps += reached - done
        if reached < last:
            return reached
        done = reached
        if progress is not None:
            progress.step(done / batches)
    return batches


def _validate(network, validation, loss, penalty: float) -> dict[str, float]:
    """Loss, with the penalty, and accuracy on the validation data."""
    x, y, classes, lengths = validation
    value, accuracy = network.score(x, y, classes, loss, None, lengths)
    logs = {"val_loss": value + penalty}
    if accuracy is not None:
        logs["val_accuracy"] = accuracy
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
    network.optimizer_state[:] = 0
    network.optimizer_steps = 0
    raise DivergenceError(
        f"training diverged in epoch {network.epoch + 1}, batch {batch}: the loss is no longer a "
        "finite number. The network is back at its parameters from before it. "
        f"{run.advice(diverged=True)}"
    )
