"""The checkers behind the laws, apart from the tests so that a planted bug can show that each of them fails."""

import ctypes

import numpy as np

import numbanet as nn
from numbanet import gather, training
from numbanet.engine.reference import Reference, Row
from numbanet.layers.base import size
from numbanet.plan import (HOME_X, HOME_Y, INPUTS, N_X, N_Y, NEXT, ORDER, OUTPUTS, STEP_X, STEP_Y, TARGETS, W, X, Y,
                           lower)
from reference import TWINS

STEP = 1e-5
"""Half the distance of a central difference."""


# --- gradients --------------------------------------------------------------------------------------------------------


class Kink(Exception):
    """The loss has no derivative here, or another on either side."""


def difference(f, theta):
    """Central differences of f at theta, one number after the other; Kink where the differences to both sides disagree."""
    found, gaps, middle = np.empty_like(theta), np.empty_like(theta), f()
    for i in range(theta.size):
        kept = theta[i]
        theta[i] = kept + STEP
        above = f()
        theta[i] = kept - STEP
        below = f()
        theta[i] = kept
        found[i] = (above - below) / (2 * STEP)
        gaps[i] = abs(above - 2 * middle + below) / STEP
    scale = max(1.0, np.abs(found).max())
    if (gaps > 3e-3 * scale).any():
        raise Kink
    return found


def gradient_error(net, x, y, loss):
    """The largest relative error of the gradient, over the parameters of every layer by name."""
    numeric = difference(lambda: net.loss(x, y, loss), net.parameters)
    found = net.gradient(x, y, loss)
    worst = 0.0
    for placed in net.layers:
        expected, got = placed.view(numeric), placed.view(found)
        for name in expected:
            size_of = max(np.abs(expected[name]).max(), np.abs(got[name]).max(), 1e-3)
            worst = max(worst, np.abs(expected[name] - got[name]).max() / size_of)
    return worst


# --- the reference engine ---------------------------------------------------------------------------------------------


def reference_fit(net, x, y, loss, optimizer, batch_size, epochs, *, shuffle=True, threads=1, twins=TWINS):
    """Train as fit does, but with the reference engine; return parameters, state and the loss of every epoch."""
    x, y, classes = net._data(x, y, loss)
    samples, batch = len(x), min(batch_size, len(x))
    batches = -(-samples // batch)
    ops, last, hits = net._with_loss(loss, x.dtype, y.dtype, classes, samples, batches)
    plan = lower(ops, net.dtype, batch=batch, threads=threads, train=True)
    params = net.parameters.copy()
    state = np.zeros(len(optimizer.vectors) * params.size, net.dtype)
    losses = []
    for epoch in range(epochs):
        order = training.order(net.seed, epoch, samples) if shuffle else None
        engine = Reference(plan, twins, net.dtype, loss=last, hits=hits, optimizer=optimizer, inputs=x, targets=y, order=order)
        engine.steps(params, state, samples, 0, batches, epoch * batches)
        losses.append(engine.sums[0] / samples)
    return params, state, losses


def reference_gradient(net, x, y, loss, *, threads=1, twins=TWINS):
    """Gradient and mean loss, penalties in the gradient but not in the loss."""
    x, y, _ = net._data(x, y, loss)
    ops, last, _ = net._with_loss(loss, x.dtype, y.dtype, False, len(x), 1)
    plan = lower(ops, net.dtype, batch=len(x), threads=threads, train=True)
    engine = Reference(plan, twins, net.dtype, loss=last, inputs=x, targets=y)
    total = engine.gradient(net.parameters.copy(), len(x))
    return engine.grads, total / len(x)


def reference_predict(net, x, *, batch=8, threads=1, twins=TWINS):
    """Outputs for all samples."""
    x = nn.checks.inputs(x, net.input_shape, net.dtype)
    outputs = np.full((len(x), *net.output_shape), np.nan, net.dtype)
    ops = [gather.inputs(size(net.input_shape), x.dtype), *net._ops(), gather.scatter(size(net.output_shape))]
    plan = lower(ops, net.dtype, batch=batch, threads=threads, train=False)
    Reference(plan, twins, net.dtype, inputs=x, outputs=outputs).forward(net.parameters.copy(), len(x))
    return outputs


def reference_evaluate(net, x, y, loss, *, batch=8, threads=1, twins=TWINS):
    """Mean loss and share of hits (0 where the targets name no classes)."""
    x, y, classes = net._data(x, y, loss)
    ops, last, hits = net._with_loss(loss, x.dtype, y.dtype, classes)
    plan = lower(ops, net.dtype, batch=batch, threads=threads, train=False)
    total, found = Reference(plan, twins, net.dtype, loss=last, hits=hits, inputs=x, targets=y).evaluate(net.parameters, len(x))
    return total / len(x), found / len(x)


def close(found, expected, tolerance):
    """Assert that two arrays differ by at most tolerance times the largest number expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    error, scale = np.abs(found - expected).max(initial=0), max(np.abs(expected).max(initial=0), 1e-3)
    assert error <= tolerance * scale, f"{error:.3g} apart, {error / scale:.3g} of the largest number {scale:.3g}"


# --- single kernels and what they write -------------------------------------------------------------------------------

GUARD = 256
"""Numbers before and after each memory that nobody may touch."""
_CALL = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, ctypes.c_int64, ctypes.c_int64)


class Bench:
    """The plan of one training step with memories full of random numbers between guards, to call one kernel at a time."""

    def __init__(self, net, x, y, loss, seed=5):
        x, y, classes = net._data(x, y, loss)
        self.samples, self.dtype = len(x), net.dtype
        ops, _, _ = net._with_loss(loss, x.dtype, y.dtype, classes)
        self.plan = lower(ops, net.dtype, batch=len(x), threads=1, train=True)
        self.data = {INPUTS: x, TARGETS: y, ORDER: None, OUTPUTS: None}
        self.plan.set_clock(INPUTS, x.ctypes.data)
        self.plan.set_clock(TARGETS, y.ctypes.data)
        self.plan.set_clock(5, self.samples)
        generator = np.random.default_rng(seed)
        sizes = {"params": self.plan.n_params, "grads": self.plan.n_params, "acts": self.plan.n_acts, "deltas": self.plan.n_deltas}
        self.guarded = {name: generator.uniform(0.1, 0.9, n + 2 * GUARD).astype(self.dtype) for name, n in sizes.items()}
        self.rows = {}
        number = 1
        for op in self.plan.ops:
            row = Row(self.plan.tables[0], number, self.data)
            row[X], row[Y] = row[HOME_X], row[HOME_Y]
            self.rows[op] = row
            number = row[NEXT]

    def place(self, row, lo, hi):
        """Let the row's slots of a block begin at sample lo, as the engine does."""
        assert hi - lo <= self.plan.block
        row[X] = row[HOME_X] - lo * row[STEP_X]
        row[Y] = row[HOME_Y] - lo * row[STEP_Y]

    def memories(self):
        """The memories without their guards."""
        return {name: array[GUARD:-GUARD] for name, array in self.guarded.items()}

    def call(self, kernel, row, lo, hi):
        """Call the compiled kernel and return, for every memory, which numbers it changed, counted from the first inside."""
        before = {name: array.copy() for name, array in self.guarded.items()}
        pointers = [array.ctypes.data for array in self.memories().values()]
        address = row.numbers.ctypes.data + row.start * row.numbers.itemsize
        _CALL(kernel.address(self.dtype))(address, *pointers, lo, hi)
        kind = f"u{self.dtype.itemsize}"
        return {name: set((np.flatnonzero(array.view(kind) != before[name].view(kind)) - GUARD).tolist())
                for name, array in self.guarded.items()}

    def call_twin(self, kernel, row, lo, hi, twins=TWINS):
        """The memories after the twin, without touching our own."""
        copies = {name: array.astype(np.float64) for name, array in self.memories().items()}
        twins[f"{kernel.function.__module__}.{kernel.function.__qualname__}"](row, *copies.values(), lo, hi)
        return copies

    def slot(self, row, verb, lo, hi):
        """(memory, numbers) that a verb may write."""
        if verb == "gradient":
            op = next(op for op, r in self.rows.items() if r is row)
            return "grads", set(range(row[W] + lo * op.unit, row[W] + hi * op.unit))
        if verb == "forward":
            return "acts", set(range(row[Y] + lo * row[N_Y], row[Y] + hi * row[N_Y]))
        return "deltas", set(range(row[X] + lo * row[N_X], row[X] + hi * row[N_X]))


def stray_writes(bench, kernel, row, verb, lo, hi):
    """What a verb changed outside its own slot, as {memory: numbers}."""
    memory, allowed = bench.slot(row, verb, lo, hi)
    changed = bench.call(kernel, row, lo, hi)
    return {name: sorted(numbers - (allowed if name == memory else set()))
            for name, numbers in changed.items() if numbers - (allowed if name == memory else set())}
