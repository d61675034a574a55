"""Single verbs of a plan, run by themselves: what layers.py and benchmarks/test_kernels.py time.

A network of a few layers is lowered for training, a whole step fills its memories, and then one
verb of one op is called again and again from a compiled loop: one thread, data in cache.
"""

import functools
import inspect

import numpy as np

import numbanet as nn


def or_skip(setup):
    """Let a setup skip what an older commit cannot do; asv shows n/a for NotImplementedError."""

    @functools.wraps(setup)
    def tried(self, *parameters):
        try:
            setup(self, *parameters)
        except (ImportError, AttributeError, TypeError) as error:
            raise NotImplementedError(f"this commit lacks it: {error}") from error

    tried.__signature__ = inspect.signature(setup)
    return tried


def enough_threads(threads: int) -> None:
    """Skip where the machine has fewer threads than a benchmark is to use."""
    from numba import config

    if threads > config.NUMBA_NUM_THREADS:
        raise NotImplementedError(f"{threads} threads wanted, there are {config.NUMBA_NUM_THREADS}")


class Machine:
    """A network lowered for the gradient of one batch, with memories that a whole step has filled.

    The parameters are copies.
    """

    def __init__(self, layers, input_shape, batch: int, threads: int = 1):
        from numbanet.engine.cpu import executor
        from numbanet.nn.losses import loss
        from numbanet.plan.columns import INPUTS, TARGETS

        network = nn.Sequential(layers, input_shape, seed=0)
        rng = np.random.default_rng(0)
        x, y = (
            rng.random((batch, *network.input_shape), np.float32),
            rng.random((batch, *network.output_shape), np.float32),
        )
        ops, last, _ = network.loss_ops(
            loss("mean_squared_error"), x.dtype, y.dtype, False, batch, 1, training=True
        )
        self.machine = executor.GradientExecutor(
            ops, network.dtype, batch=batch, threads=threads, loss_op=last
        )
        self.batch, self.plan = batch, self.machine.plan
        self.machine.bind(INPUTS, x)
        self.machine.bind(TARGETS, y)
        self.parameters = network.memory.copy()
        self.step()

    def step(self) -> None:
        """The gradient of the batch."""
        self.machine.gradient(self.parameters, self.batch)

    def verb(self, layer: str, verb: str):
        """The verb of the first op of that name that has a way back, or of the first of that name.

        For a layer whose gradient is taken sample by sample, "gradient" is its partial. Returns a
        Verb.
        """
        from numbanet.plan.columns import BACKWARD

        table = self.plan.tables[0]
        found = [
            (not table[row, BACKWARD], row, op)
            for op, row in self.plan.rows.items()
            if op.name == layer
        ]
        _, row, op = min(found, key=lambda one: one[:2])
        return Verb(
            self, row, op, "accumulate" if verb == "gradient" and op.accumulate_gradient else verb
        )


class Verb:
    """One verb, ready to be called: on a block of samples, or for a gradient on the whole batch.

    flops   floating-point operations of a call, counting two for each use of a weight
    """

    def __init__(self, made: Machine, row: int, op, verb: str):
        from numbanet.network.profiler import VERBS, _repeat
        from numbanet.plan.columns import BASE_X, BASE_Y, SAMPLES, START, X, Y

        machine, plan, table = made.machine, made.plan, made.plan.tables[0]
        whole = verb == "gradient"
        self.samples, hi = (
            (made.batch, op.param_rows) if whole else (min(plan.micro_batch, made.batch),) * 2
        )
        self.batch, self.flops = (
            made.batch,
            self.samples * (2 * op.n_weights * op.weight_reuse or op.n_out),
        )
        address = int(table[row, VERBS[verb]])
        if not address:
            raise ValueError(f"{op.name} has no {verb} here")
        table[0, SAMPLES], table[0, START] = made.batch, 0
        table[row, X], table[row, Y] = table[row, BASE_X], table[row, BASE_Y]
        # the output and delta of an op in place would shrink to denormal numbers; zeros stay
        if op.in_place:
            machine.acts[:] = 0
        self.arguments = (
            address,
            table,
            row,
            made.parameters,
            machine.grads,
            machine.acts,
            machine.deltas,
            0,
            hi,
        )
        self.made, self.repeat = made, _repeat
        self.calls(1)

    def calls(self, times: int) -> None:
        """Call it so many times."""
        self.repeat(*self.arguments, times)

    def batches(self, times: int) -> None:
        """Call it as often as so many batches take, block by block."""
        self.calls(max(1, round(times * self.batch / self.samples)))
