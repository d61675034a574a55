"""One epoch of a training: its steps in compiled calls, with what is done between them."""

from contextlib import closing

import numpy as np

from numbanet.backend.permutation import permutation
from numbanet.nn.data import bind_inputs
from numbanet.plan.columns import (
    EPOCH,
    FIRST_SAMPLE,
    PERMUTATION,
    RATES,
    SEED,
    TARGETS,
    WEIGHTS,
)
from numbanet.training.data import check_last_batch
from numbanet.training.steps import Between, mean_metrics
from numbanet.training.stream import read_ahead
from numbanet.training.weights import relative_weights


class DivergenceError(ArithmeticError):
    """The loss was no longer finite. The network is back at its parameters from before."""


def epoch_permutation(seed: int, epoch: int, samples: int, first: int = 0) -> np.ndarray:
    """The order of an epoch's samples: a permutation that depends on seed and epoch alone.

    first   for data that are a part of the epoch's, how many samples came before them
    """
    return permutation(samples, seed, epoch, first)


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


def train_epoch(run, trainer, batches, shuffle, weights, between, unfinished) -> dict[str, float]:
    """Train for one epoch, in calls of at most about 50 ms; return mean loss and accuracy."""
    network, samples = run.network, len(run.x)
    snapshot = network.memory.copy()
    order = epoch_permutation(network.seed, network.epoch, samples) if shuffle else None
    if weights is not None:
        trainer.bind(WEIGHTS, relative_weights(weights, order, trainer.plan.batch)[0])
    rates, first = run.rates(batches), unfinished.batches if unfinished else 0
    trainer.metric_sums[:] = unfinished.sums if unfinished else 0
    reached = take_steps(network, trainer, samples, order, rates, between, first)
    if reached < batches:
        _restore_and_raise(run, snapshot, reached + 1)
    if not np.isfinite(network.parameters).all():
        _restore_and_raise(run, snapshot, batches)
    return mean_metrics(trainer, samples)


def train_epoch_of_blocks(run, trainer, stream, shuffle, between, unfinished) -> dict[str, float]:
    """Train for one epoch on a Stream.

    Where reading fails, network and optimiser are as before the epoch.
    """
    network, batch = run.network, trainer.plan.batch
    snapshot = network.memory.copy()
    state, steps = network.optimizer_state.copy(), network.optimizer_steps
    begun = unfinished.batches if unfinished else 0
    trainer.metric_sums[:] = unfinished.sums if unfinished else 0
    rates = run.rates(stream.steps or 1)
    reader, samples = read_ahead(stream.pieces()), 0
    with closing(reader):
        while True:
            try:
                rows = next(reader, None)
                if rows is None and (not samples or samples <= (begun - 1) * batch):
                    what = f"{begun} batches, where the checkpoint stands" if begun else "a sample"
                    raise ValueError(
                        f"fit: the data of epoch {network.epoch + 1} ended before {what}; what can "
                        "be read only once is for one epoch: pass a function that returns a new "
                        "iterator"
                    )
                if rows is not None:
                    check_last_batch(network, len(rows), batch)
            except Exception:
                network.memory[:], network.optimizer_state[:] = snapshot, state
                network.optimizer_steps = steps
                raise
            if rows is None:
                break
            before, count = samples // batch, len(rows)
            batches, samples = -(-count // batch), samples + count
            if before + batches > begun:
                first = max(0, begun - before)
                reached = _take_piece(
                    network, trainer, rows, rates, shuffle, between, first, samples - count
                )
                if reached < batches:
                    _restore_and_raise(run, snapshot, before + reached + 1)
    between.total, between.progress.samples = -(-samples // batch), samples
    if not np.isfinite(network.parameters).all():
        _restore_and_raise(run, snapshot, between.total)
    logs = mean_metrics(trainer, samples)
    return logs if stream.classes else {"loss": logs["loss"]}


def _take_piece(network, trainer, rows, rates, shuffle, between, first, first_sample) -> int:
    """Take the steps of a piece of an epoch, from its batch `first`; see `take_steps`."""
    batch, count, order = trainer.plan.batch, len(rows), None
    if shuffle:
        order = epoch_permutation(network.seed, network.epoch, count, first_sample)
    if rates is not None:
        rates = np.ascontiguousarray(rates[first_sample // batch :])
    bind_inputs(trainer, rows.x)
    trainer.bind(TARGETS, rows.y)
    if rows.weights is not None:
        trainer.bind(WEIGHTS, relative_weights(rows.weights, order, batch)[0])
    trainer.plan.set_context(FIRST_SAMPLE, first_sample)
    try:
        return take_steps(network, trainer, count, order, rates, between, first, first_sample)
    finally:
        trainer.plan.set_context(FIRST_SAMPLE, 0)


def take_epochs(network, trainer, samples: int, orders, rates) -> int:
    """Take all steps of one epoch or several; see `take_steps`. Their sums begin at 0.

    orders   the order of the samples in each of them, int64 (epochs, samples), or None for one
             epoch; at most len(trainer.sums)
    rates    those of one epoch, for each of them
    """
    trainer.sums[:], trainer.penalty_sums[:] = 0, 0
    epochs = 1 if orders is None else len(orders)
    return take_steps(network, trainer, samples, orders, rates, epochs=epochs)


def take_steps(
    network,
    trainer,
    samples: int,
    order,
    rates,
    between: Between | None = None,
    first: int = 0,
    first_sample: int = 0,
    epochs: int = 1,
) -> int:
    """Take the steps from batch `first` on the bound data, in native calls of at most about 50 ms.

    order          the order of the samples, int64, or None
    rates          the learning rate of every step, float64, or None where it is constant
    between        what is done between the calls
    first_sample   how many samples of the epoch, in whole batches, came before the bound data
    epochs         how many to go through, without anything between: batches count on, and `order`
                   holds the order of each
    Returns the number of the batch that was reached: less than there are where the loss of the next
    one is not finite. The losses' and correct answers' sums are added to trainer.metric_sums.
    """
    trainer.bind(PERMUTATION, order)
    trainer.bind(RATES, rates)
    trainer.plan.set_context(EPOCH, network.epoch)
    trainer.plan.set_context(SEED, network.seed)
    batch, done = trainer.plan.batch, first
    of_epoch = -(-samples // batch)
    batches = epochs * of_epoch
    updates = network.optimizer.updates
    steps_before = network.optimizer_steps - updates(first, of_epoch)
    while done < batches:
        last = min(batches, done + trainer.steps_per_call())
        if between is not None:
            last = between.end_of_call(done, last, batches)
        try:
            reached = trainer.steps(
                network.memory,
                network.optimizer_state,
                samples,
                done,
                last,
                network.optimizer_steps,
            )
        except KeyboardInterrupt:  # it is raised when the native call has ended
            network.optimizer_steps = steps_before + updates(max(done, trainer.reached), of_epoch)
            raise
        taken = steps_before + updates(reached, of_epoch) - network.optimizer_steps
        network.optimizer_steps += taken
        if reached < last:
            return reached
        done = reached
        if between is not None:
            seen = min(done * batch, samples)
            between.after(taken, first_sample // batch + done, first_sample + seen, done == batches)
    return batches


def go_back(network, memory: np.ndarray) -> None:
    """Put a diverged network back to this memory; its optimiser begins anew."""
    network.memory[:] = memory
    network.optimizer_state[:] = network.optimizer.initial_state(network.parameters)
    network.optimizer_steps = 0
    network.reset_state()


def _restore_and_raise(run, snapshot, batch) -> None:
    network = run.network
    go_back(network, snapshot)
    raise DivergenceError(
        f"training diverged in epoch {network.epoch + 1}, batch {batch}: the loss is no longer a "
        "finite number. The network is back at its parameters from before it. "
        f"{run.advice(diverged=True)}"
    )
