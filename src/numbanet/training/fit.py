"""fit: epochs of compiled calls, with callbacks, progress and Ctrl-C between them."""

import time
import warnings
from contextlib import ExitStack

from numbanet.io.attributes import instance
from numbanet.io.fields import Flag, shown
from numbanet.io.validation import check_int, check_threads
from numbanet.nn import metrics as measures
from numbanet.nn.augment import Augment
from numbanet.plan.columns import STATE
from numbanet.training import data as given_data
from numbanet.training import lbfgs
from numbanet.training.averages import measured_network, refresh
from numbanet.training.callbacks import as_callbacks, warn_of_nan
from numbanet.training.data import (
    Data,
    check_last_batch,
    check_stateful,
    try_metrics,
    validate,
)
from numbanet.training.diagnosis import FEW_STEPS, STUCK_EPOCHS, NotLearningWarning, Run, filled
from numbanet.training.epoch import (
    DivergenceError,
    reuse_optimizer_state,
    train_epoch,
    train_epoch_of_blocks,
)
from numbanet.training.fit_lbfgs import check_lbfgs, fit_lbfgs
from numbanet.training.history import History
from numbanet.training.lbfgs import LBFGS
from numbanet.training.progress import VERBOSE, Progress
from numbanet.training.steps import BetweenCalls, Stopped, Unfinished
from numbanet.training.weights import axes


def fit(
    network,
    x,
    y,
    *,
    loss,
    optimizer,
    batch_size,
    epochs,
    shuffle,
    scale_targets,
    augment,
    callbacks,
    verbose,
    metrics,
    threads,
    resumed: tuple[int, Unfinished | None],
    **options,
) -> History:
    """Train the network; see Sequential.fit.

    resumed   epochs that were trained before, and how far the next one has come, if it was begun
    options   what else belongs to the data; see `data.read`
    """
    optimizer = lbfgs.optimizer(network.optimizer or "adam" if optimizer is None else optimizer)
    loss = network.resolve_loss(loss)
    callbacks, metrics = as_callbacks(callbacks), measures.metrics(metrics)
    epochs = check_int(epochs, "epochs", 0)
    verbose = VERBOSE(int(verbose) if isinstance(verbose, bool) else verbose, "verbose")
    threads = check_threads(threads)
    batch_size = None if batch_size is None else check_int(batch_size, "batch_size")
    scale_targets = Flag()(scale_targets, "scale_targets")
    shuffle = Flag()(shuffle, "shuffle")
    augment = instance(augment, Augment)
    if not (augment is None or isinstance(augment, Augment)):
        raise TypeError(f"augment is an Augment or None, not {shown(augment)}")
    undo = network.undo_scalings()
    with undo:
        data = given_data.read(
            network,
            x,
            y,
            loss,
            optimizer,
            batch_size=batch_size,
            epochs=epochs,
            metrics=metrics,
            **options,
        )
        samples, stream = len(data.x), data.stream
        batch = batch_size if stream else min(batch_size or samples, samples)
        batches = (stream.steps or 1) if stream else -(-samples // batch)
        if stream is None:
            check_last_batch(network, samples, batch)
        check_stateful(network, data, batch, shuffle, optimizer)
        if isinstance(optimizer, LBFGS):
            check_lbfgs(network, batch < samples, augment, data.lengths, callbacks, resumed[1])
        elif resumed[1] is not None:
            count = None if stream else samples
            resumed[1].check_same(batch, count, shuffle, optimizer.accumulate)
        if epochs:
            data = data.scaled(network, loss, scale_targets)
        if metrics and data.validation is not None:
            try_metrics(network, metrics, data.validation)
    if isinstance(optimizer, LBFGS):
        return fit_lbfgs(network, optimizer, data, loss, epochs, metrics, callbacks, verbose)
    with ExitStack() as at_end:
        with undo:
            trainer = network.executors.training(
                loss,
                optimizer,
                data.x,
                data.y,
                data.classes,
                batch=batch,
                batches=batches,
                threads=threads,
                augment=augment,
                weighted=axes(data.weights),
            )
            at_end.callback(trainer.release)
            run = Run(
                network,
                data.x,
                filled(data.y),
                data.classes,
                loss,
                optimizer,
                network.epoch,
                epochs,
            )
            _check_rates(run, data, batches, metrics)
            data.bind(trainer)
            trainer.bind(STATE, network.begin_state(samples, batch, keep=True))
            trainer.set_optimizer(optimizer)
            if stream:
                stream.skip(resumed[0])
            between = _between(run, data, trainer, callbacks, shuffle, verbose)
            for callback in callbacks:
                callback.on_fit_begin(network)
                at_end.callback(callback.on_fit_end, network)
            at_end.callback(between.progress.close)
        reuse_optimizer_state(network, optimizer)
        return _epochs(
            run, data, batches, trainer, between, callbacks, shuffle, metrics, undo, resumed[1]
        )


def _check_rates(run: Run, data: Data, batches: int, metrics) -> None:
    """ValueError for a schedule that lacks a number of steps, or a metric that it asks for."""
    stream, schedule = data.stream, run.optimizer.schedule
    if run.rates(batches) is not None and stream and stream.steps is None:
        raise ValueError(
            f"{run.optimizer.learning_rate} needs to know how many steps an epoch has; pass "
            "steps_per_epoch"
        )
    if schedule is not None:
        schedule.observe((), dict.fromkeys(data.log_names(metrics), 0.0))


def _between(run: Run, data: Data, trainer, callbacks, shuffle: bool, verbose: int) -> BetweenCalls:
    """What is done between the native calls."""
    batch, samples, stream = trainer.plan.batch, len(data.x), data.stream
    total, count = -(-samples // batch), samples
    if stream:
        total, count = stream.steps or 0, (stream.steps or 0) * batch
    progress = Progress(run.epochs, count, verbose)
    shape = batch, None if stream else samples, shuffle, run.optimizer.accumulate
    return BetweenCalls(run.network, trainer, callbacks, progress, total=total, shape=shape)


def _epochs(
    run: Run,
    data: Data,
    batches: int,
    trainer,
    between: BetweenCalls,
    callbacks: list,
    shuffle: bool,
    metrics,
    undo,
    unfinished: Unfinished | None,
) -> History:
    """Train epoch by epoch, until they are done or something ends it."""
    network, schedule, history = run.network, run.optimizer.schedule, History()
    samples, stream = len(data.x), data.stream
    measured = network
    if data.validation is not None:
        measured = measured_network(network, run.optimizer)
    watched, first = network.epoch == 0, 0.0
    _warn_if_ended(run, batches)
    for _ in range(run.epochs):
        if schedule is not None and schedule.has_ended(network.schedule_state):
            between.progress.reason = f"{type(schedule).__name__} has reached its end"
            break
        start = time.perf_counter()
        for callback in callbacks:
            callback.on_epoch_begin(network.epoch + 1, network)
        try:
            if stream is None:
                logs = train_epoch(
                    run, trainer, batches, shuffle, data.weights, between, unfinished
                )
            else:
                logs = train_epoch_of_blocks(run, trainer, stream, shuffle, between, unfinished)
        except Stopped:
            break
        except DivergenceError:
            if not history.seconds:
                undo()
            raise
        unfinished = None
        penalty = network.penalty_value(samples, batches)
        network.epoch += 1
        first = logs["loss"] if not history.seconds else first
        if watched and network.epoch >= STUCK_EPOCHS:
            if network.optimizer_steps >= FEW_STEPS or network.epoch == run.epochs:
                watched = False
                _warn_if_stuck(run, first, logs["loss"], between.progress)
        logs["loss"] += penalty
        if data.validation is not None:
            if measured is not network:
                refresh(measured, network)
                penalty = measured.penalty_value(samples, batches)
            logs |= validate(
                measured, data.validation, run.loss, penalty, metrics, trainer.plan.batch
            )
        if schedule is not None:
            network.schedule_state = schedule.observe(network.schedule_state, logs)
        warn_of_nan([*callbacks, schedule], logs, history.history)
        history.add(logs, time.perf_counter() - start)
        between.progress.epoch(logs)
        ends = [one for one in callbacks if one.on_epoch_end(network.epoch, logs, network)]
        if ends:
            between.progress.reason = ends[0].reason()
            break
    return history


def _warn_if_ended(run: Run, batches: int) -> None:
    """Say that a schedule leaves nothing to do."""
    network, schedule, rates = run.network, run.optimizer.schedule, run.rates(batches)
    if not run.epochs or schedule is None or rates is None:
        return
    ended = schedule.has_ended(network.schedule_state)
    over = network.epoch >= schedule.duration(run.start + run.epochs)
    if ended or over or not rates.any():
        rate = f"at most {rates.max():.3g}" if rates.any() else "0"
        what = "no epoch was trained" if ended else f"the learning rate is {rate}"
        warnings.warn(
            f"{what}: {run.optimizer.learning_rate} has ended by epoch {network.epoch}, counted "
            "from the network's first; pass another schedule or rate, or train network[:], a copy "
            "whose epochs begin at 0",
            NotLearningWarning,
            stacklevel=6,
        )


def _warn_if_stuck(run, first: float, last: float, progress) -> None:
    """Say once what to try where the loss has hardly moved since the first epoch."""
    text = run.stuck(first, last)
    if text is not None:
        progress.new_line()
        warnings.warn(text, NotLearningWarning, stacklevel=6)
