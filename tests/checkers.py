"""The checkers behind the laws.

They are not in the tests, so that a planted bug can show that each of them fails.
"""

import ctypes

import numpy as np
from reference import REFERENCES

import numbanet as nn
from numbanet.engine.reference import Reference, Row
from numbanet.io.validation import has_missing
from numbanet.network.handle import step_plan
from numbanet.nn import losses
from numbanet.nn.data import inference_layout, layout
from numbanet.plan.columns import (
    AUX,
    BASE_X,
    BASE_Y,
    BUFFERS,
    EPOCH,
    INPUTS,
    N_IN,
    N_OUT,
    OUTPUTS,
    PARTIAL_GRADS,
    PENALTY_FACTORS,
    PERMUTATION,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SAMPLES,
    SCRATCH,
    SEED,
    STATE_SIZE,
    STATISTICS,
    TARGETS,
    W,
    X,
    Y,
)
from numbanet.plan.lower import lower
from numbanet.training.epoch import epoch_permutation as epoch_permutation
from numbanet.training.epoch import reuse_optimizer_state
from numbanet.training.weights import relative_weights

STEP = 1e-5
"""Half the distance of a central difference."""


# --- gradients ---------------------------------------------------------------------------------


class Kink(Exception):
    """The loss has no derivative here, or another on either side."""


def difference(f, theta):
    """Central differences of f at theta, one element after the other.

    There is a kink where the differences to both sides disagree.
    """
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
    if (gaps > 2e-4 * scale).any():
        raise Kink
    return found


def parts(net, flat):
    """The parts of a flat vector that belong to each parameter of each layer."""
    start = 0
    for built in net.layers:
        for values in built.parameters.values():
            yield flat[start : start + values.size]
            start += values.size


def largest_error(net, found, expected):
    """The largest error relative to the largest element of every layer's parameters, by name."""
    return max(
        np.abs(f - e).max() / max(np.abs(f).max(), np.abs(e).max(), 1e-3)
        for f, e in zip(parts(net, found), parts(net, expected), strict=True)
    )


def gradient_error(net, x, y, loss, training=False):
    """The largest relative error of `gradient`."""
    numeric = difference(lambda: net.loss(x, y, loss, training=training), net.parameters)
    return largest_error(net, net.gradient(x, y, loss, training=training), numeric)


def trained_once(net, x, y, loss, rate, threads=1):
    """One step of SGD over all samples.

    Returns what it subtracted from the parameters, and the loss that training computed.
    """
    net.epoch, before = 0, net.parameters.copy()
    history = net.fit(
        x, y, loss=loss, optimizer=nn.SGD(rate), batch_size=None, shuffle=False, threads=threads
    )
    return before - net.parameters, history.history["loss"][0]


def training_gradient_error(net, x, y, loss):
    """The same for the gradient that training applies, with batch statistics and masks.

    The loss is the one that training computes.
    """
    numeric = difference(lambda: trained_once(net, x, y, loss, 0.0)[1], net.parameters)
    return largest_error(net, trained_once(net, x, y, loss, 1.0)[0], numeric)


def penalty_of_an_epoch(device, optimizer, threads=1):
    """What an executor says that L2 adds to the loss of an epoch, and what NumPy finds.

    Of a network of three layers, the second without a penalty, on 14 samples in batches of 5.
    """
    layers = [
        nn.Dense(7, activation="tanh", penalty=[nn.L1(0.2), nn.L2(0.3)]),
        nn.Dense(6, activation="tanh"),
        nn.Dense(2, activation=None, penalty=nn.L2(0.01)),
    ]
    generator, factors = np.random.default_rng(0), np.array([1.5, 0.0, 7.0])
    x, y = generator.normal(size=(14, 5)), generator.normal(size=(14, 2))
    net = nn.Sequential(layers, 5, "float64", device=device)
    reuse_optimizer_state(net, optimizer)
    trainer = net.executors.training(
        losses.loss("quadratic"), optimizer, x, y, False, batch=5, batches=3, threads=threads
    )
    for column, array in ((INPUTS, x), (TARGETS, y), (PENALTY_FACTORS, factors)):
        trainer.bind(column, array)
    trainer.set_optimizer(optimizer)
    trainer.sum_penalties()
    dense = [built for built in net.layers if isinstance(built.layer, nn.Dense)]
    first, _, last = (built.parameters["weights"] for built in dense)
    expected = 0.0
    for k, samples in enumerate((5, 5, 4)):
        value = 0.3 / 2 * (first**2).sum() + 0.01 / 2 * (last**2).sum()
        expected += value * factors[k] * samples
        taken = optimizer.updates(k, 3)
        assert trainer.steps(net.memory, net.optimizer_state, 14, k, k + 1, taken) == k + 1
        trainer.publish()
    return trainer.penalty_sums.sum(), expected


# --- the reference engine ----------------------------------------------------------------------


def reference_fit(
    net,
    x,
    y,
    loss,
    optimizer,
    batch_size,
    epochs,
    *,
    shuffle=True,
    threads=1,
    sample_weight=None,
    penalty_factors=None,
    references=REFERENCES,
):
    """Train as fit does, but with the reference engine.

    Returns the memory of the network, the state and the loss of every epoch.
    """
    x, y, classes = net.check_data(x, y, loss)
    samples, batch = len(x), min(batch_size, len(x))
    batches = -(-samples // batch)
    ops, last, correct = net.loss_ops(
        loss,
        layout(x),
        y.dtype,
        classes,
        samples,
        batches,
        training=True,
        weighted=np.ndim(sample_weight) if sample_weight is not None else 0,
        missing=has_missing(y),
    )
    plan = lower(ops, net.dtype, batch=batch, threads=threads, train=True)
    plan.set_context(SEED, net.seed)
    params = net.memory.copy()
    state = optimizer.initial_state(net.parameters)
    updates = -(-batches // optimizer.accumulate)
    losses = []
    for epoch in range(epochs):
        order = epoch_permutation(net.seed, epoch, samples) if shuffle else None
        plan.set_context(EPOCH, epoch)
        weights = None
        if sample_weight is not None:
            weights = relative_weights(sample_weight, order, batch)[0]
        engine = Reference(
            plan,
            references,
            net.dtype,
            loss=last,
            correct=correct,
            optimizer=optimizer,
            inputs=x,
            targets=y,
            permutation=order,
            rates=optimizer.rates(epoch, batches, epochs),
            weights=weights,
            penalty_factors=penalty_factors,
        )
        engine.steps(params, state, samples, 0, batches, epoch * updates)
        losses.append(engine.metric_sums[0] / samples)
    return params, state, losses


def reference_gradient(net, x, y, loss, *, threads=1, references=REFERENCES):
    """Gradient and mean loss, penalties in the gradient but not in the loss."""
    x, y, _ = net.check_data(x, y, loss)
    ops, last, _ = net.loss_ops(loss, layout(x), y.dtype, False, len(x), 1)
    plan = lower(ops, net.dtype, batch=len(x), threads=threads, train=True)
    engine = Reference(plan, references, net.dtype, loss=last, inputs=x, targets=y)
    total = engine.gradient(net.memory.copy(), len(x))
    return engine.grads, total / len(x)


def reference_predict(net, x, *, batch=8, threads=1, references=REFERENCES):
    """Outputs for all samples."""
    x = nn.io.validation.check_inputs(x, net.input_shape, net.dtype)
    outputs = np.full((len(x), *net.output_shape), np.nan, net.dtype)
    ops = net.executors.inference_ops(inference_layout(x))
    plan = lower(ops, net.dtype, batch=batch, threads=threads, train=False)
    Reference(plan, references, net.dtype, inputs=x, outputs=outputs).infer(
        net.memory.copy(), len(x)
    )
    return outputs


def reference_evaluate(net, x, y, loss, *, batch=8, threads=1, references=REFERENCES):
    """Mean loss and fraction of correct answers (0 where the targets name no classes)."""
    x, y, classes = net.check_data(x, y, loss)
    ops, last, correct = net.loss_ops(loss, layout(x), y.dtype, classes)
    plan = lower(ops, net.dtype, batch=batch, threads=threads, train=False)
    total, found = Reference(
        plan, references, net.dtype, loss=last, correct=correct, inputs=x, targets=y
    ).infer(net.memory.copy(), len(x))
    return total / len(x), found / len(x)


def close(found, expected, tolerance):
    """Assert that two arrays differ by at most tolerance times the largest element expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    error, scale = (
        np.abs(found - expected).max(initial=0),
        max(np.abs(expected).max(initial=0), 1e-3),
    )
    assert error <= tolerance * scale, (
        f"a difference of {error:.3g}, {error / scale:.3g} of the largest element {scale:.3g}"
    )


def directions(net, x, seed=0):
    """A direction of the inputs, empty where they are indices, and one of the parameters."""
    generator = np.random.default_rng(seed)
    indices = isinstance(net.layers[0].layer, nn.Embedding)
    vrow = generator.normal(size=(0,) if indices else x.shape).astype(net.dtype)
    return vrow, generator.normal(size=net.parameters.size).astype(net.dtype)


# --- single kernels and what they write --------------------------------------------------------

GUARD = 256
"""Elements before and after each memory that nobody may touch."""
_CALL = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, ctypes.c_int64, ctypes.c_int64)


class KernelHarness:
    """The plan of one training step, to call one kernel at a time.

    Its memories are full of random numbers and lie between guards.
    """

    def __init__(self, net, x, y, loss, training=True, seed=5):
        x, y, classes = net.check_data(x, y, loss)
        self.samples, self.dtype = len(x), net.dtype
        ops, _, _ = net.loss_ops(loss, layout(x), y.dtype, classes, training=training)
        self.plan = lower(ops, net.dtype, batch=len(x), threads=1, train=True)
        self.data = {INPUTS: x, TARGETS: y, PERMUTATION: None, OUTPUTS: None}
        self.plan.set_context(TARGETS, y.ctypes.data)
        self._allocate(x, self.plan.n_params + sum(op.buffers for op in ops), seed=seed)

    def _allocate(self, x, n_memory, n_grads=None, seed=5):
        """Fill the memories with random numbers; `n_grads` are as many as the parameters."""
        self.plan.set_context(INPUTS, x.ctypes.data)
        self.plan.set_context(SAMPLES, self.samples)
        generator = np.random.default_rng(seed)
        sizes = {
            "params": n_memory,
            "grads": self.plan.n_params if n_grads is None else n_grads,
            "acts": self.plan.n_acts,
            "deltas": self.plan.n_deltas,
        }
        self.guarded = {
            name: generator.uniform(0.1, 0.9, n + 2 * GUARD).astype(self.dtype)
            for name, n in sizes.items()
        }
        self.rows = {
            op: Row(self.plan.tables[0], index, self.data) for op, index in self.plan.rows.items()
        }

    def place(self, lo, hi, filled=True):
        """Let a block begin at sample lo.

        Fill acts by a forward pass over lo … hi − 1, or else with random numbers, as deltas.
        """
        assert hi - lo <= self.plan.micro_batch
        for name in ("acts", "deltas"):
            self.guarded[name][:] = np.random.default_rng(lo).uniform(
                0.1, 0.9, len(self.guarded[name])
            )
        pointers = [array.ctypes.data for array in self.memories().values()]
        for op, row in self.rows.items():
            row[X] = row[BASE_X] - lo * row[SAMPLE_STRIDE_X]
            row[Y] = row[BASE_Y] - lo * row[SAMPLE_STRIDE_Y]
            if row[STATISTICS]:
                sums = (
                    self.memories()["acts"].ctypes.data + row[PARTIAL_GRADS] * self.dtype.itemsize
                )
                _CALL(op.statistics.address(self.dtype))(
                    self.address(row), pointers[0], sums, *pointers[2:], lo, hi
                )
            if filled:
                _CALL(op.forward.address(self.dtype))(self.address(row), *pointers, lo, hi)

    def address(self, row):
        """Where a row begins."""
        return row.integers.ctypes.data + row.start * row.integers.itemsize

    def memories(self):
        """The memories without their guards."""
        return {name: array[GUARD:-GUARD] for name, array in self.guarded.items()}

    def call(self, kernel, row, lo, hi):
        """Call the compiled kernel; return the indices of changed elements in every memory."""
        before = {name: array.copy() for name, array in self.guarded.items()}
        pointers = [array.ctypes.data for array in self.memories().values()]
        _CALL(kernel.address(self.dtype))(self.address(row), *pointers, lo, hi)
        kind = f"u{self.dtype.itemsize}"
        return {
            name: set(
                (np.flatnonzero(array.view(kind) != before[name].view(kind)) - GUARD).tolist()
            )
            for name, array in self.guarded.items()
        }

    def call_reference(self, kernel, row, lo, hi, references=REFERENCES):
        """The memories after the reference, without touching our own."""
        copies = {name: array.astype(np.float64) for name, array in self.memories().items()}
        references[f"{kernel.function.__module__}.{kernel.function.__qualname__}"](
            row, *copies.values(), lo, hi
        )
        return copies

    def op(self, row):
        """The op of a row."""
        return next(op for op, one in self.rows.items() if one is row)

    def slot(self, row, verb, lo, hi):
        """(memory, elements) that a verb may write."""
        op = self.op(row)
        if verb == "gradient":
            return "grads", set(range(row[W] + lo * op.param_cols, row[W] + hi * op.param_cols))
        if verb == "accumulate_gradient":
            return "grads", set(range(row[W], row[W] + op.n_params))
        if verb == "forward":
            return "acts", set(range(row[Y] + lo * row[N_OUT], row[Y] + hi * row[N_OUT]))
        return "deltas", set(range(row[X] + lo * row[N_IN], row[X] + hi * row[N_IN]))

    def scratch(self, row):
        """The elements of acts that a verb of the op may use as scratch memory."""
        return range(row[SCRATCH], row[SCRATCH] + self.op(row).scratch)


class StepHarness(KernelHarness):
    """The plan of one step of a sequence, whose state stands in the place of grads."""

    def __init__(self, net, x):
        self.samples, self.dtype, self.plan = len(x), net.dtype, step_plan(net, len(x))
        self.data = {INPUTS: x, PERMUTATION: None}
        self._allocate(x, net.memory.size, len(x) * int(self.plan.tables[0, 0, STATE_SIZE]))


def stray_writes(harness, kernel, row, verb, lo, hi):
    """What a verb changed outside its own slot, scratch and buffers, as {memory: elements}."""
    memory, elements = harness.slot(row, verb, lo, hi)
    buffers = (
        range(row[BUFFERS], row[BUFFERS] + harness.op(row).buffers) if verb == "forward" else ()
    )
    allowed = {"acts": set(harness.scratch(row)), "params": set(buffers)}
    allowed[memory] = allowed.get(memory, set()) | elements
    aux = harness.op(row).aux
    if verb == "backward" and aux is not None and aux.side_delta:
        allowed[memory] |= set(range(row[AUX] + lo * aux.n_out, row[AUX] + hi * aux.n_out))
    strays = {
        name: sorted(changed - allowed.get(name, set()))
        for name, changed in harness.call(kernel, row, lo, hi).items()
    }
    return {name: places for name, places in strays.items() if places}
