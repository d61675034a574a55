"""The learning-rate finder: a short training of a copy, at a rate that grows from step to step.

Source   Smith, Cyclical Learning Rates for Training Neural Networks, 2017 (the range test)
"""

import copy
from dataclasses import dataclass, replace

import numpy as np

from numbanet.io.fields import Count, Flag, Real
from numbanet.io.validation import check_int, check_threads
from numbanet.nn import optimizers
from numbanet.nn.data import bind_inputs
from numbanet.plan.columns import (
    EPOCH,
    LENGTHS,
    PERMUTATION,
    RATES,
    SEED,
    TARGETS,
    WEIGHTS,
)
from numbanet.training.data import check_last_batch
from numbanet.training.diagnosis import STUCK_DROP
from numbanet.training.epoch import epoch_permutation, reuse_optimizer_state
from numbanet.training.lbfgs import is_lbfgs
from numbanet.training.weights import axes, relative_weights

FEWEST_STEPS = 20
"""Fewer steps do not show a curve."""
DIVERGED = 4.0
"""Where the loss is so many times its lowest, the search ends."""
TRAILING = 5
"""Steps over which the loss is averaged to see that."""
BELOW_LOWEST = 0.1
"""The rate suggested, as a fraction of that at which the smoothed loss is lowest."""


@dataclass(frozen=True, eq=False)
class LearningRates:
    """What the learning-rate finder measured; `plotting.learning_rates` draws it.

    rates        (n,) the learning rate of each step
    losses       (n,) the loss of the step's batch, before the step, without penalties
    smoothed     (n,) means of the losses of a step and its neighbours
    suggestion   a tenth of the rate at which the smoothed loss is lowest; None if it never fell by
                 5 % of the first
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float | None

    def __repr__(self):
        found = "none" if self.suggestion is None else f"{self.suggestion:.2g}"
        span = f"{self.rates[0]:.2g} … {self.rates[-1]:.2g}" if len(self.rates) else "nothing"
        return f"<LearningRates {span}: suggestion {found}>"


def find_learning_rate(
    network,
    x,
    y,
    *,
    lengths,
    loss,
    optimizer,
    batch_size,
    lowest,
    highest,
    steps,
    scale_targets,
    sample_weight,
    class_weight,
    threads,
) -> LearningRates:
    """Train a copy of the network for some steps; see Sequential.find_learning_rate."""
    lowest = Real(above=0)(lowest, "lowest")
    highest = Real(above=lowest)(highest, "highest")
    rates = np.geomspace(lowest, highest, Count(FEWEST_STEPS)(steps, "steps"))
    if network.is_stateful:
        raise ValueError(
            "find_learning_rate changes the order of the samples, and a stateful network goes on "
            "from batch to batch; try rates on the same network without stateful=True"
        )
    network = copy.deepcopy(network)
    loss = network.resolve_loss(loss)
    if is_lbfgs(optimizer):
        raise ValueError("find_learning_rate: L-BFGS has no learning rate; pass another optimizer")
    chosen = optimizers.optimizer(optimizer or network.optimizer or "adam")
    chosen = replace(chosen, learning_rate=lowest, accumulate=1, average=0.0)
    network.learn_names(x, y)
    x, y, classes = network.check_data(x, y, loss, lengths=lengths, weighs=True)
    lengths = network.check_lengths(lengths, len(x))
    weights = network.check_weights(y, classes, sample_weight, class_weight, lengths)
    batch = len(x) if batch_size is None else min(check_int(batch_size, "batch_size"), len(x))
    check_last_batch(network, len(x), batch)
    if network.learn_scalings(x, y, loss, Flag()(scale_targets, "scale_targets")):
        y, classes = network.scale_targets(y), False
    trainer = network.executors.training(
        loss,
        chosen,
        x,
        y,
        classes,
        batch=batch,
        batches=-(-len(x) // batch),
        threads=check_threads(threads),
        weighted=axes(weights),
    )
    reuse_optimizer_state(network, chosen)
    trainer.set_optimizer(chosen)
    bind_inputs(trainer, x)
    trainer.bind(TARGETS, y)
    trainer.bind(LENGTHS, lengths)
    try:
        losses = _losses(network, trainer, len(x), rates, weights)
    finally:
        trainer.release()
    smoothed = _smoothed(losses, len(rates) // FEWEST_STEPS)
    return LearningRates(rates[: len(losses)], losses, smoothed, _suggestion(rates, smoothed))


def _losses(network, trainer, samples: int, rates: np.ndarray, weights) -> np.ndarray:
    """The losses of steps at these rates, until one diverges."""
    batch, losses = trainer.plan.batch, []
    batches, lowest = -(-samples // batch), np.inf
    trainer.plan.set_context(SEED, network.seed)
    for k, place in enumerate(np.arange(len(rates)) % batches):
        if place == 0:
            order = epoch_permutation(network.seed, network.epoch, samples)
            trainer.bind(PERMUTATION, order)
            trainer.plan.set_context(EPOCH, network.epoch)
            trainer.bind(RATES, np.resize(rates[k : k + batches], batches))
            if weights is not None:
                trainer.bind(WEIGHTS, relative_weights(weights, order, batch)[0])
            network.epoch += 1
        trainer.metric_sums[:] = 0
        memory, state, done = network.memory, network.optimizer_state, network.optimizer_steps
        if trainer.steps(memory, state, samples, int(place), int(place) + 1, done) == place:
            break
        network.optimizer_steps += 1
        losses.append(float(trainer.metric_sums[0]) / min(batch, samples - int(place) * batch))
        recent = float(np.mean(losses[-TRAILING:]))
        if len(losses) >= TRAILING:
            lowest = min(lowest, recent)
        if recent > DIVERGED * lowest:
            break
    return np.array(losses)


def _smoothed(losses: np.ndarray, reach: int) -> np.ndarray:
    """Means of each loss and of up to `reach` before and after it."""
    starts = range(-reach, len(losses) - reach)
    return np.array([losses[max(0, k) : k + 2 * reach + 1].mean() for k in starts])


def _suggestion(rates: np.ndarray, smoothed: np.ndarray) -> float | None:
    if not len(smoothed):
        return None
    lowest = int(smoothed.argmin())
    if smoothed[0] - smoothed[lowest] < STUCK_DROP * smoothed[0]:
        return None
    return float(BELOW_LOWEST * rates[lowest])
