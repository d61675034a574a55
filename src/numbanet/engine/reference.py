"""The reference engine: runs the same plan with a naive Python twin in the place of every kernel. Slow and obvious.

It is what the compiled engines are compared with. It reads the tables that `lower` made, so it works on the same offsets, the
same shards, blocks and tasks, one after the other; memories begin as NaN, so that a number used before it was written shows.

A twin has the arguments of its kernel, `twin(op, params, grads, acts, deltas, lo, hi)`, with arrays for the memories and a `Row`
for op. Twins are found by the kernel's module and name. Python cannot read through the addresses in the clock, so the twins of
the ends of the plan find the data as arrays in `op.data[INPUTS]`, `TARGETS`, `ORDER` (or None) and `OUTPUTS`.
"""

from collections.abc import Callable, Mapping

import numpy as np

from numbanet.nn.optimizers import N_STATE
from numbanet.plan.columns import (
    ACCUMULATE,
    ATTRS,
    BACKWARD,
    BASE_X,
    BASE_Y,
    CHUNKS,
    INDEX,
    INPUTS,
    L1_STRENGTH,
    L2_STRENGTH,
    N_OUT,
    N_WEIGHTS,
    NEXT,
    OUTPUTS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PERMUTATION,
    PREVIOUS,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SAMPLES,
    START,
    STATISTICS,
    STEP,
    TARGETS,
    Op,
    Plan,
    W,
    X,
    Y,
    float64_bits,
)
from numbanet.plan.lower import reduce_chunks


def name(kernel) -> str:
    """The name by which a kernel's twin is found: its module and its function."""
    return f"{kernel.function.__module__}.{kernel.function.__qualname__}"


class Row:
    """An op's row as a twin sees it: `op[column]`, where a column below 0 lies in a row before, as for a kernel's pointer."""

    def __init__(self, table: np.ndarray, number: int, data: Mapping):
        self.numbers, self.start, self.data = table.reshape(-1), number * ROW_SIZE, data

    def __getitem__(self, column: int) -> int:
        return int(self.numbers[self.start + column])

    def __setitem__(self, column: int, value: int) -> None:
        self.numbers[self.start + column] = value

    def float_attr(self, column: int) -> float:
        """The attribute at a column that holds the bits of a real number."""
        return float(np.int64(self[column]).view(np.float64))

    def set_float_attr(self, column: int, value: float) -> None:
        """Write a real number as its bits."""
        self[column] = float64_bits(value)

    def context(self, column: int) -> int:
        """A column of row 0."""
        return self[column - self[INDEX] * ROW_SIZE]


class Reference:
    """A plan with its memories and twins, for training, gradients, evaluation or prediction.

    plan                what `lower` returned; its tables are copied
    twins               the twin for each kernel's name
    loss, hits          the ops whose outputs are added up, if there are any
    optimizer           in training, whose kernels and hyper-parameters go into the last row
    inputs … outputs    the arrays that the ends of the plan read and write
    """

    def __init__(self, plan: Plan, twins: Mapping[str, Callable], dtype, *, loss: Op | None = None, hits: Op | None = None,
                 optimizer=None, inputs=None, targets=None, order=None, outputs=None):
        self.plan, self.twins, self.loss, self.hits, self.optimizer = plan, twins, loss, hits, optimizer
        self.tables = plan.tables.copy()
        self.data = {INPUTS: inputs, TARGETS: targets, PERMUTATION: order, OUTPUTS: outputs}
        self.acts, self.deltas, self.grads = (np.full(n, np.nan, dtype) for n in (plan.n_acts, plan.n_deltas, plan.n_params))
        self.metric_sums = np.zeros(3)
        self.ops = {row[INDEX]: op for row, op in zip(self.rows(self.tables[0], 1, NEXT), plan.ops, strict=True)}
        if optimizer is not None:
            for table in self.tables:
                last = Row(table, len(table) - 1, self.data)
                last[N_STATE] = plan.n_params
                for i, value in enumerate(optimizer.attrs):
                    last.set_float_attr(ATTRS + i, value)

    def call(self, kernel, row, params, grads, acts, deltas, lo, hi) -> None:
        """Call the twin of a kernel."""
        self.twins[name(kernel)](row, params, grads, acts, deltas, lo, hi)

    def samples(self, params, start: int, size: int, train: bool) -> None:
        """Region A for one batch, phase by phase: every thread's samples through a part of the network, and back."""
        plan = self.plan
        bounds = [size * k // plan.chunks for k in range(plan.chunks + 1)]
        if plan.n_split_k:
            self.columns(params, start, size)
        for number, phase in enumerate(plan.phases.tolist() if train else [[1, 0, 0, 0]]):
            for t, table in enumerate(self.tables):
                table[0, START], table[0, SAMPLES], table[0, CHUNKS] = start, size, plan.chunks
                mine = range(plan.chunks * t // plan.threads, plan.chunks * (t + 1) // plan.threads)
                if train and number == 0:
                    self.clear_partials(table, mine)
                if len(plan.phases) > 1:
                    blocks = [(shard, bounds[shard], bounds[shard + 1]) for shard in mine if bounds[shard] < bounds[shard + 1]]
                else:
                    end = bounds[mine.stop]
                    blocks = [(-1, lo, min(lo + plan.micro_batch, end)) for lo in range(bounds[mine.start], end, plan.micro_batch)]
                for shard, lo, hi in blocks:
                    self.forwards(table, params, phase, shard, lo, hi)
                    if train:
                        inside = [(k, max(lo, bounds[k]), min(hi, bounds[k + 1])) for k in mine]
                        self.backwards(table, params, phase, inside, lo, hi)

    def columns(self, params, start: int, size: int) -> None:
        """Before region A: the first product, part by part of the inputs' columns."""
        table = self.tables[0]
        table[0, START], table[0, SAMPLES] = start, size
        inputs, first = list(self.rows(table, 1, NEXT))[:2]
        for part in range(self.plan.n_split_k):
            lo, hi = (inputs[N_OUT] * k // self.plan.n_split_k for k in (part, part + 1))
            self.call(self.op(inputs).split_k, inputs, params, params, self.acts, self.deltas, lo, hi)
            self.call(self.op(first).split_k, first, params, self.partial(first, part), self.acts, self.deltas, lo, hi)

    def clear_partials(self, table, shards) -> None:
        """Start these shards' partial gradients at zero."""
        for row in self.rows(table, 1, NEXT):
            for shard in shards if row[ACCUMULATE] else ():
                self.partial(row, shard)[:] = 0

    def forwards(self, table, params, phase, shard: int, lo: int, hi: int) -> None:
        """A block of samples through the ops of a phase; the op that ends it prepares for the next."""
        for row in self.rows(table, phase[0], NEXT):
            row[X] = row[BASE_X] - lo * row[SAMPLE_STRIDE_X]
            row[Y] = row[BASE_Y] - lo * row[SAMPLE_STRIDE_Y]
            if row[INDEX] == phase[1]:
                self.call(self.op(row).statistics, row, params, self.partial(row, shard), self.acts, self.deltas, lo, hi)
                return
            self.call(self.op(row).forward, row, params, params, self.acts, self.deltas, lo, hi)

    def backwards(self, table, params, phase, shards, lo: int, hi: int) -> None:
        """A block of samples back through the ops of a phase; the op that ends it takes its partial sums only."""
        for row in self.rows(table, phase[2], PREVIOUS):
            begins, ends = row[STATISTICS] and row[INDEX] == phase[2], row[INDEX] == phase[3]
            if row[ACCUMULATE] and not begins:
                for shard, first, last in shards:
                    if first < last:
                        part, w = self.partial(row, shard), row[W]
                        grads = np.concatenate([np.zeros(w, part.dtype), part])
                        self.call(self.op(row).accumulate_gradient, row, params, grads, self.acts, self.deltas, first, last)
                        part[:] = grads[w:]
            if ends:
                return
            if row[BACKWARD]:
                self.call(self.op(row).backward, row, params, params, self.acts, self.deltas, lo, hi)

    def rows(self, table, first: int, following: int):
        """The rows of ops in a thread's table from the first on, each linked to the following by its column NEXT or PREVIOUS."""
        while first:
            row = Row(table, first, self.data)
            yield row
            first = row[following]

    def op(self, row: Row) -> Op:
        """The op that a row was made from."""
        return self.ops[row[INDEX]]

    def partial(self, row: Row, shard: int) -> np.ndarray:
        """The place of a shard's partial gradient."""
        first = row[PARTIAL_GRADS] + shard * row[PARTIAL_STRIDE]
        return self.acts[first : first + row[PARTIAL_STRIDE]]

    def parameters(self, params, state, step: int) -> None:
        """Region B: every task's gradient over the whole batch, its penalty, and with an optimiser its update."""
        plan, optimizer = self.plan, self.optimizer
        for t, table in enumerate(self.tables):
            table[0, STEP] = step
            last_row = Row(table, len(table) - 1, self.data)
            if optimizer is not None and optimizer.begin_step:
                self.call(optimizer.begin_step, last_row, params, params, state, self.deltas, 0, 0)
            for number, lo, hi, first, last in plan.tasks[plan.task_bounds[t] : plan.task_bounds[t + 1]].tolist():
                row = Row(table, number, self.data)
                gradient = reduce_chunks if row[ACCUMULATE] else self.op(row).gradient
                self.call(gradient, row, params, self.grads, self.acts, self.deltas, lo, hi)
                for i in range(first, min(last, row[W] + row[N_WEIGHTS])):
                    self.grads[i] += row.float_attr(L1_STRENGTH) * np.sign(params[i]) + row.float_attr(L2_STRENGTH) * params[i]
                if optimizer is not None:
                    self.call(optimizer.update, last_row, params, self.grads, state, self.deltas, first, last)

    def total(self, op: Op | None, size: int) -> float:
        """The sum of an op's outputs over the batch."""
        return float(sum(self.acts[self.plan.offsets[op] + i] for i in range(size))) if op is not None else 0.0

    def _add(self, size: int) -> None:
        self.metric_sums += self.total(self.loss, size), self.total(self.hits, size), size

    def steps(self, params, state, samples: int, first: int, last: int, step: int) -> int:
        """Take steps first … last − 1 of an epoch; stop at a loss that is not finite and return how far it came."""
        for k in range(first, last):
            start = k * self.plan.batch
            size = min(self.plan.batch, samples - start)
            self.samples(params, start, size, True)
            if not np.isfinite(self.total(self.loss, size)):
                return k
            self._add(size)
            self.parameters(params, state, step + k - first + 1)
        return last

    def gradient(self, params, samples: int) -> float:
        """Fill grads with the gradient over one batch, penalties included, and return the summed loss."""
        self.samples(params, 0, samples, True)
        self.parameters(params, None, 1)
        return self.total(self.loss, samples)

    def forward(self, params, samples: int) -> None:
        """Write the outputs of all samples to the array of outputs."""
        for start in range(0, samples, self.plan.batch):
            self.samples(params, start, min(self.plan.batch, samples - start), False)

    def evaluate(self, params, samples: int) -> tuple[float, float]:
        """Return the sums of loss and hits over all samples."""
        self.metric_sums[:] = 0
        for start in range(0, samples, self.plan.batch):
            size = min(self.plan.batch, samples - start)
            self.samples(params, start, size, False)
            self._add(size)
        return float(self.metric_sums[0]), float(self.metric_sums[1])
