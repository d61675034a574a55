"""L-BFGS: SciPy's minimiser over a network's flat parameters, all samples in every step.

Source   Liu, Nocedal 1989; Byrd, Lu, Nocedal, Zhu 1995 (SciPy's implementation)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from numbanet.io.arrays import near_one
from numbanet.io.attributes import Description
from numbanet.io.fields import Count, Real, check
from numbanet.io.registry import lookup, plain
from numbanet.nn import optimizers
from numbanet.nn.data import bind_inputs
from numbanet.nn.optimizers import AROUND, NAMES, Optimizer
from numbanet.plan.columns import EPOCH, PENALTY_FACTORS, SEED, TARGETS, WEIGHTS
from numbanet.training.weights import axes


@dataclass(frozen=True)
class LBFGS(Description):
    """SciPy's L-BFGS, as the optimizer of a fit with batch_size=None; an epoch is an iteration.

    tolerance         it stops where no element of the gradient is larger, or where an iteration
                      lowers the loss by less than about 2e-9 of it
    max_evaluations   most evaluations of loss and gradient in a fit
    """

    after_change = "pass it to the next fit"
    instead: ClassVar[dict[str, str]] = dict.fromkeys(
        AROUND, "it is of the optimizers with mini-batches"
    )

    tolerance: Annotated[float, Real(0)] = 1e-5
    max_evaluations: Annotated[int, Count(1)] = 15000

    def __post_init__(self):
        check(self)


def is_lbfgs(given) -> bool:
    """Whether an `optimizer` argument asks for L-BFGS: by an object, the class or its name."""
    named = isinstance(given, str) and plain(given) == "lbfgs"
    return named or given is LBFGS or isinstance(given, LBFGS)


def optimizer(given) -> Optimizer | LBFGS:
    """The optimiser for a name, an object or a class: L-BFGS, or one with mini-batches."""
    if is_lbfgs(given):
        return given if isinstance(given, LBFGS) else LBFGS()
    if isinstance(given, str):
        return lookup("optimizer", given, {**NAMES, "lbfgs": LBFGS})()
    return optimizers.optimizer(given)


def minimize(
    network,
    x,
    y,
    loss,
    *,
    tol,
    max_iter,
    max_fun,
    weights=None,
    penalty_factor=1.0,
    callback: Callable[[float], bool] | None = None,
):
    """Move the parameters to a minimum of the mean loss and the penalties; return SciPy's result.

    x, y, loss       checked data and a Loss
    tol              the largest element of the gradient at which it stops
    max_iter         most iterations
    max_fun          most evaluations of loss and gradient
    weights          weights of the samples (samples,), or of their steps (samples, steps),
                     float64, or None
    penalty_factor   what the penalties are multiplied by
    callback         called with the value after every iteration; a true result ends the search
    The arithmetic is float64, whatever the network's dtype, and deterministic.
    Raises           ImportError without SciPy
    """
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError("L-BFGS needs SciPy; pip install numbanet[sklearn]") from error
    samples, work = len(x), network
    if network.dtype != np.float64:
        arguments = network.specs, network.input_shape, "float64", network.seed
        work = type(network)(*arguments, network.penalty, network.threads, network.device)
        work.memory[:] = network.memory
    executor = work.executors.gradient(loss, x, y, None, True, axes(weights))
    executor.plan.set_context(EPOCH, network.epoch)
    executor.plan.set_context(SEED, network.seed)
    bind_inputs(executor, x)
    executor.bind(TARGETS, y)
    executor.bind(PENALTY_FACTORS, np.array([penalty_factor], np.float64))
    if weights is not None:
        weights = near_one(weights)
        executor.bind(WEIGHTS, weights * (samples / weights.sum()))

    def objective(parameters):
        work.parameters[:] = parameters
        value = executor.gradient(work.memory, samples) / samples
        penalty = penalty_factor * work.penalty_value(samples, 1)
        return value + penalty, executor.grads.copy()

    def iteration(intermediate_result):
        work.parameters[:] = intermediate_result.x
        network.memory[:] = work.memory
        if callback is not None and callback(float(intermediate_result.fun)):
            raise StopIteration

    try:
        found = optimize.minimize(
            objective,
            work.parameters.copy(),
            jac=True,
            method="L-BFGS-B",
            callback=iteration,
            options={"maxfun": max_fun, "maxiter": max_iter, "gtol": tol},
        )
    finally:
        executor.release()
    work.parameters[:] = found.x
    network.memory[:] = work.memory
    return found
