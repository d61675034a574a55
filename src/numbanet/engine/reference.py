"""The reference engine: replays a plan's schedule with a naive Python function for every kernel.

Slow and obvious. It is what the compiled engines are compared with. It reads the tables that
`lower` made, so it works on the same offsets, chunks, micro-batches and tasks, one after the other;
memories begin as NaN, so that an element used before it was written shows.

The reference of a kernel has its arguments, `reference(op, params, grads, acts, deltas, lo, hi)`,
with arrays for the memories and a `Row` for op. References are found by the kernel's module and
name. Python cannot read through the addresses in the context, so those of the ends of the plan find
the data as arrays in `op.data[INPUTS]`, `TARGETS`, `PERMUTATION` (or None), `OUTPUTS`,
`WEIGHTS`, `LENGTHS` and `STATE`.
"""

import struct
from collections.abc import Callable, Mapping

import numpy as np

from numbanet.nn.steering import AVERAGE, BEGIN_STEP, CLIP, COMMON, DECAY, STEERING, UPDATE
from numbanet.plan.builtin_ops import reduce_chunks
from numbanet.plan.columns import (
    ACCUMULATE,
    BASE_X,
    BASE_Y,
    CHUNKS,
    FORWARD,
    GRADIENT,
    INDEX,
    INPUTS,
    L1_STRENGTH,
    L2_STRENGTH,
    LENGTHS,
    N_OUT,
    N_SPLIT_K,
    N_WEIGHTS,
    OPTIMIZER_ROW,
    OUTPUTS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PERMUTATION,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SAMPLES,
    SPLIT_K,
    START,
    STATE,
    STATISTICS,
    STEP,
    TARGETS,
    WEIGHTS,
    W,
    X,
    Y,
    float64_bits,
)
from numbanet.plan.op import Op
from numbanet.plan.plan import OVER_FEATURES, ZERO_GRADS, Plan


def kernel_name(kernel) -> str:
    """The name by which a kernel's reference is found: its module and its function."""
    return f"{kernel.function.__module__}.{kernel.function.__qualname__}"


class Row:
    """The row of an op for a reference kernel: `op[column]`; columns below 0 lie in rows before."""

    def __init__(self, table: np.ndarray, number: int, data: Mapping):
        self.integers, self.start, self.data = table.reshape(-1), number * ROW_SIZE, data

    def __getitem__(self, column: int) -> int:
        return int(self.integers[self.start + column])

    def __setitem__(self, column: int, value: int) -> None:
        self.integers[self.start + column] = value

    def float_attr(self, column: int) -> float:
        """A column that holds the bits of a float."""
        return struct.unpack("<d", struct.pack("<q", self[column]))[0]

    def set_float_attr(self, column: int, value: float) -> None:
        """Write a float as its bits."""
        self[column] = float64_bits(value)

    def context(self, column: int) -> int:
        """A column of row 0."""
        return self[column - self[INDEX] * ROW_SIZE]


class Reference:
    """A plan with its memories and reference kernels, for training, evaluation or prediction.

    plan                what `lower` returned; its tables are copied
    references          the reference of each kernel, by its name
    loss, correct       the ops whose outputs are added up, if there are any
    optimizer           in training, whose kernels and hyper-parameters go into the last rows
    inputs … outputs    the arrays that the ends of the plan read and write
    rates               the learning rate of every batch, if it is not constant
    weights             the weights of the samples, where the plan reads them
    lengths             the numbers of steps of the samples, if not all
    state               the state of the samples, where they have one; written
    penalty_factors     what every batch multiplies the penalties by, if not by 1
    """

    def __init__(
        self,
        plan: Plan,
        references: Mapping[str, Callable],
        dtype,
        *,
        loss: Op | None = None,
        correct: Op | None = None,
        optimizer=None,
        inputs=None,
        targets=None,
        permutation=None,
        outputs=None,
        rates=None,
        weights=None,
        lengths=None,
        state=None,
        penalty_factors=None,
    ):
        self.plan, self.references, self.optimizer = plan, references, optimizer
        self.loss, self.correct, self.rates = loss, correct, rates
        self.tables, self.ops = plan.tables.copy(), plan.by_row
        self.penalty_factors = penalty_factors
        self.data = {INPUTS: inputs, TARGETS: targets, PERMUTATION: permutation, OUTPUTS: outputs}
        self.data |= {WEIGHTS: weights, LENGTHS: lengths, STATE: state}
        sizes = plan.n_acts, plan.n_deltas, plan.n_params
        self.acts, self.deltas, self.grads = (np.full(n, np.nan, dtype) for n in sizes)
        self.total_grads = self.grads  # of the batches of an update
        self.metric_sums = np.zeros(3)
        if optimizer is not None:
            rows = self.tables[:, -len(plan.groups) :]
            optimizer.write_rows(rows, plan.groups, plan.n_params)

    def call(self, kernel, row, params, grads, acts, deltas, lo, hi) -> None:
        """Call the reference of a kernel."""
        self.references[kernel_name(kernel)](row, params, grads, acts, deltas, lo, hi)

    def run_batch(self, params, start: int, size: int) -> None:
        """All phases of one batch: the samples, or features, of one thread after the other."""
        plan = self.plan
        for number, (kind, _, _) in enumerate(plan.phases.tolist()):
            for t, table in enumerate(self.tables):
                table[0, START], table[0, SAMPLES], table[0, CHUNKS] = start, size, plan.chunks
                if kind == OVER_FEATURES:
                    self.split_k(params, table, t, plan.steps(number))
                else:
                    self.forward_backward(params, table, t, plan.steps(number), size)

    def split_k(self, params, table, t: int, steps) -> None:
        """Partial products of the features of thread t."""
        threads = self.plan.threads
        features = Row(table, steps[0][1], self.data)[N_OUT]
        for part in range(N_SPLIT_K * t // threads, N_SPLIT_K * (t + 1) // threads):
            lo, hi = features * part // N_SPLIT_K, features * (part + 1) // N_SPLIT_K
            for verb, number in steps:
                assert verb == SPLIT_K
                row = Row(table, number, self.data)
                product = self.partial(row, part) if row[PARTIAL_STRIDE] else params
                self.call(
                    self.ops[number].split_k, row, params, product, self.acts, self.deltas, lo, hi
                )

    def forward_backward(self, params, table, t: int, steps, size: int) -> None:
        """One phase for the samples of thread t, micro-batch by micro-batch."""
        plan = self.plan
        bounds = [size * k // plan.chunks for k in range(plan.chunks + 1)]
        mine = range(plan.chunks * t // plan.threads, plan.chunks * (t + 1) // plan.threads)
        for verb, number in steps:
            for chunk in mine if verb == ZERO_GRADS else ():
                self.partial(Row(table, number, self.data), chunk)[:] = 0
        if plan.by_chunk:
            parts = [
                (range(c, c + 1), bounds[c], bounds[c + 1])
                for c in mine
                if bounds[c] < bounds[c + 1]
            ]
        else:
            end = bounds[mine.stop]
            starts = range(bounds[mine.start], end, plan.micro_batch)
            parts = [(mine, lo, min(lo + plan.micro_batch, end)) for lo in starts]
        for chunks, lo, hi in parts:
            for verb, number in steps:
                row = Row(table, number, self.data)
                if verb == FORWARD:
                    row[X] = row[BASE_X] - lo * row[SAMPLE_STRIDE_X]
                    row[Y] = row[BASE_Y] - lo * row[SAMPLE_STRIDE_Y]
                if verb == ACCUMULATE:
                    for c in chunks:
                        self.accumulate(params, row, c, max(lo, bounds[c]), min(hi, bounds[c + 1]))
                elif verb != ZERO_GRADS:
                    sums = self.partial(row, chunks[0]) if verb == STATISTICS else params
                    self.call(
                        self.ops[number].verbs[verb],
                        row,
                        params,
                        sums,
                        self.acts,
                        self.deltas,
                        lo,
                        hi,
                    )

    def accumulate(self, params, row: Row, chunk: int, lo: int, hi: int) -> None:
        """Add the gradient of samples lo ≤ i < hi to their chunk's partial gradient."""
        if lo < hi:
            partial, w = self.partial(row, chunk), row[W]
            grads = np.concatenate([np.zeros(w, partial.dtype), partial])
            kernel = self.ops[row[INDEX]].accumulate_gradient
            self.call(kernel, row, params, grads, self.acts, self.deltas, lo, hi)
            partial[:] = grads[w:]

    def partial(self, row: Row, chunk: int) -> np.ndarray:
        """A chunk's partial gradient."""
        first = row[PARTIAL_GRADS] + chunk * row[PARTIAL_STRIDE]
        return self.acts[first : first + row[PARTIAL_STRIDE]]

    def take_gradients(self, params, penalty_factor: float = 1.0) -> None:
        """For every task the gradient over the batch with its penalty, into grads."""
        plan, bounds = self.plan, self.plan.task_bounds
        for t, table in enumerate(self.tables):
            for number, lo, hi, first, last in plan.tasks[bounds[t] : bounds[t + 1]].tolist():
                row = Row(table, number, self.data)
                gradient = reduce_chunks if row[ACCUMULATE] else self.ops[number].gradient
                assert row[GRADIENT]
                self.call(gradient, row, params, self.grads, self.acts, self.deltas, lo, hi)
                l1, l2 = (
                    penalty_factor * row.float_attr(column) for column in (L1_STRENGTH, L2_STRENGTH)
                )
                for i in range(first, min(last, row[W] + row[N_WEIGHTS])):
                    self.grads[i] += l1 * np.sign(params[i]) + l2 * params[i]

    def update(self, params, state, step: int, n: int, rate: float | None) -> None:
        """One update by the sum `total` of n batches' gradients, at a rate of the schedule's."""
        plan, optimizer = self.plan, self.optimizer
        trained = [self.total_grads[first:last] for *_, first, last in plan.tasks.tolist()]
        factor = 1 / n
        if optimizer.clip_norm is not None:
            norm = np.linalg.norm(np.concatenate(trained)) / n
            factor *= min(1, optimizer.clip_norm / (norm + 1e-6))
        for t, table in enumerate(self.tables):
            table[0, STEP] = step
            kernels = {}
            for number, group in enumerate(plan.groups, len(table) - len(plan.groups)):
                row, kernels[number] = Row(table, number, self.data), optimizer.kernels(group)
                row.set_float_attr(STEERING.gradient_factor, factor)
                if rate is not None:
                    row.set_float_attr(COMMON.learning_rate, rate * group.rate_factor)
                if BEGIN_STEP in kernels[number]:
                    begin = kernels[number][BEGIN_STEP]
                    self.call(begin, row, params, params, state, self.deltas, 0, 0)
            for number, _, _, first, last in plan.tasks[
                plan.task_bounds[t] : plan.task_bounds[t + 1]
            ].tolist():
                row = Row(table, int(table[number, OPTIMIZER_ROW]), self.data)
                for column in (CLIP, DECAY, UPDATE, AVERAGE):
                    if column in (found := kernels[row[INDEX]]):
                        memories = params, self.total_grads, state, self.deltas
                        self.call(found[column], row, *memories, first, last)

    def total(self, op: Op | None, size: int) -> float:
        """The sum of an op's outputs over the batch."""
        if op is None:
            return 0.0
        return float(sum(self.acts[self.plan.offsets[op] + i] for i in range(size)))

    def _add_metrics(self, size: int) -> None:
        self.metric_sums += self.total(self.loss, size), self.total(self.correct, size), size

    def steps(self, params, state, samples: int, first: int, last: int, steps_done: int) -> int:
        """Take batches first … last − 1 of an epoch; stop at a loss that is not finite."""
        every = self.optimizer.accumulate
        for k in range(first, last):
            start = k * self.plan.batch
            size = min(self.plan.batch, samples - start)
            self.run_batch(params, start, size)
            if not np.isfinite(self.total(self.loss, size)):
                return k
            self._add_metrics(size)
            factor = 1.0 if self.penalty_factors is None else self.penalty_factors[k]
            self.take_gradients(params, factor)
            self.total_grads = self.grads + (self.total_grads if k % every else 0)
            if (k + 1) % every == 0 or start + size == samples:
                rate = None if self.rates is None else self.rates[k]
                step = steps_done - first // every + k // every + 1
                self.update(params, state, step, k % every + 1, rate)
        return last

    def gradient(self, params, samples: int) -> float:
        """Fill grads with the gradient over one batch, with penalties; return the summed loss."""
        self.run_batch(params, 0, samples)
        self.take_gradients(params)
        return self.total(self.loss, samples)

    def infer(self, params, samples: int) -> tuple[float, float]:
        """Carry all samples through; the sums of loss and correct answers."""
        self.metric_sums[:] = 0
        for start in range(0, samples, self.plan.batch):
            size = min(self.plan.batch, samples - start)
            self.run_batch(params, start, size)
            self._add_metrics(size)
        return float(self.metric_sums[0]), float(self.metric_sums[1])
