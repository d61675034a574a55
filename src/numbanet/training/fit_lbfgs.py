"""A fit by L-BFGS: an epoch is an iteration over all samples."""

import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from numbanet.plan.op import DEFAULT_GROUP
from numbanet.training.callbacks import warn_of_nan
from numbanet.training.data import Data, validate
from numbanet.training.epoch import DivergenceError, reuse_optimizer_state
from numbanet.training.history import History
from numbanet.training.lbfgs import minimize
from numbanet.training.progress import Progress


def check_lbfgs(network, has_batches: bool, augment, lengths, callbacks, unfinished) -> None:
    """ValueError for what L-BFGS cannot do."""
    if unfinished is not None:
        raise ValueError(
            "resume: the checkpoint stands within an epoch, and L-BFGS begins with whole ones; "
            "go on with the optimizer of the file"
        )
    for callback in callbacks:
        if callback.called_at_steps():
            raise ValueError(
                f"L-BFGS has no steps after which {type(callback).__name__} could be called; an "
                "epoch is an iteration: use on_epoch_end"
            )
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


def fit_lbfgs(
    network, optimizer, data: Data, loss, epochs: int, metrics, callbacks, verbose
) -> History:
    """Minimise the loss of all samples."""
    x, validation = data.x, data.validation
    if network.averaged_parameters is not None:  # they would be those of an earlier fit
        reuse_optimizer_state(network, replace(network.optimizer, average=0.0))
    history, progress = History(), Progress(epochs, len(x), verbose)
    snapshot, start = network.memory.copy(), time.perf_counter()

    def end_iteration(value: float) -> bool:
        nonlocal start
        network.epoch += 1
        logs = {"loss": value}
        if validation is not None:
            penalty = network.penalty_value(len(x), 1)
            logs |= validate(network, validation, loss, penalty, metrics, len(x))
        start, began = time.perf_counter(), start
        warn_of_nan(callbacks, logs, history.history)
        history.add(logs, start - began)
        progress.epoch(logs)
        ends = [one for one in callbacks if one.on_epoch_end(network.epoch, logs, network)]
        if ends:
            progress.reason = ends[0].reason()
            return True
        if len(history.seconds) < epochs:
            begin_iteration()
        return False

    def begin_iteration() -> None:
        for callback in callbacks:
            callback.on_epoch_begin(network.epoch + 1, network)

    with ExitStack() as at_end:
        for callback in callbacks:
            callback.on_fit_begin(network)
            at_end.callback(callback.on_fit_end, network)
        at_end.callback(progress.close)
        begin_iteration()
        found = minimize(
            network,
            x,
            data.y,
            loss,
            tol=optimizer.tolerance,
            max_iter=epochs,
            max_fun=optimizer.max_evaluations,
            weights=data.weights,
            callback=end_iteration,
        )
        if not (np.isfinite(found.fun) and np.isfinite(network.parameters).all()):
            network.memory[:] = snapshot
            raise DivergenceError(
                "L-BFGS met a loss that is not a finite number. The network is back at its "
                "parameters from before; scale the inputs and the targets"
            )
    return history
