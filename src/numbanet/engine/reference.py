"""The reference engine: runs the same plan with a naive Python twin in the place of every kernel. Slow and obvious.

It is what the compiled engines are compared with. It reads the tables that `lower` made, so it works on the same offsets, the
same shards, blocks and tasks, one after the other; memories begin as NaN, so that a number used before it was written shows.

A twin has the arguments of its kernel, `twin(op, params, grads, acts, deltas, lo, hi)`, with arrays for the memories and a `Row`
for op. Twins are found by the kernel's module and name. Python cannot read through the addresses in the clock, so the twins of
the ends of the plan find the data as arrays in `op.data[INPUTS]`, `TARGETS`, `ORDER` (or None) and `OUTPUTS`.
"""

from collections.abc import Callable, Mapping

import numpy as np

from numbanet.plan.columns import (
    BACKWARD,
    COUNT,
    HOME_X,
    HOME_Y,
    INDEX,
    INPUTS,
    L1,
    L2,
    N_Y,
    NEXT,
    ORDER,
    OUTPUTS,
    OWN,
    PARTIAL,
    PARTIALS,
    PREPARE,
    PREVIOUS,
    SAMPLES,
    SHARDS,
    START,
    STEP,
    STEP_X,
    STEP_Y,
    TARGETS,
    WEIGHTS,
    WIDTH,
    Op,
    Plan,
    W,
    X,
    Y,
    real_bits,
)
from numbanet.plan.lower import sum_partials


def name(kernel) -> str:
    """The name by which a kernel's twin is found: its module and its function."""
    return f"{kernel.function.__module__}.{kernel.function.__qualname__}"


class Row:
    """An op's row as a twin sees it: `op[column]`, where a column below 0 lies in a row before, as for a kernel's pointer."""

    def __init__(self, table: np.ndarray, number: int, data: Mapping):
        self.numbers, self.start, self.data = table.reshape(-1), number * WIDTH, data

    def __getitem__(self, column: int) -> int:
        return int(self.numbers[self.start + column])

    def __setitem__(self, column: int, value: int) -> None:
        self.numbers[self.start + column] = value

    def real(self, column: int) -> float:
        """The attribute at a column that holds the bits of a real number."""
        return float(np.int64(self[column]).view(np.float64))

    def set_real(self, column: int, value: float) -> None:
        """Write a real number as its bits."""
        self[column] = real_bits(value)

    def clock(self, column: int) -> int:
        """A column of row 0."""
        return self[column - self[INDEX] * WIDTH]


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
        self.data = {INPUTS: inputs, TARGETS: targets, ORDER: order, OUTPUTS: outputs}
        self.acts, self.deltas, self.grads = (np.full(n, np.nan, dtype) for n in (plan.n_acts, plan.n_deltas, plan.n_params))
        self.sums = np.zeros(3)
        self.ops = {row[INDEX]: op for row, op in zip(self.rows(self.tables[0], 1, NEXT), plan.ops, strict=True)}
        if optimizer is not None:
            for table in self.tables:
                last = Row(table, len(table) - 1, self.data)
                last[W] = plan.n_params
                for i, value in enumerate(optimizer.own):
                    last.set_real(OWN + i, value)

    def call(self, kernel, row, params, grads, acts, deltas, lo, hi) -> None:
        """Call the twin of a kernel."""
        self.twins[name(kernel)](row, params, grads, acts, deltas, lo, hi)

    def samples(self, params, start: int, size: int, train: bool) -> None:
        """Region A for one batch, phase by phase: every thread's samples through a part of the network, and back."""
        plan = self.plan
        bounds = [size * k // plan.shards for k in range(plan.shards + 1)]
        if plan.splits:
            self.columns(params, start, size)
        for number, phase in enumerate(plan.phases.tolist() if train else [[1, 0, 0, 0]]):
            for t, table in enumerate(self.tables):
                table[0, START], table[0, SAMPLES], table[0, SHARDS] = start, size, plan.shards
                mine = range(plan.shards * t // plan.threads, plan.shards * (t + 1) // plan.threads)
                if train and number == 0:
                    self.clear_partials(table, mine)
                if len(plan.phases) > 1:
                    blocks = [(shard, bounds[shard], bounds[shard + 1]) for shard in mine if bounds[shard] < bounds[shard + 1]]
                else:
                    end = bounds[mine.stop]
                    blocks = [(-1, lo, min(lo + plan.block, end)) for lo in range(bounds[mine.start], end, plan.block)]
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
        for part in range(self.plan.splits):
            lo, hi = (inputs[N_Y] * k // self.plan.splits for k in (part, part + 1))
            self.call(self.op(inputs).split, inputs, params, params, self.acts, self.deltas, lo, hi)
            self.call(self.op(first).split, first, params, self.partial(first, part), self.acts, self.deltas, lo, hi)

    def clear_partials(self, table, shards) -> None:
        """Start these shards' partial gradients at zero."""
        for row in self.rows(table, 1, NEXT):
            for shard in shards if row[PARTIAL] else ():
                self.partial(row, shard)[:] = 0

    def forwards(self, table, params, phase, shard: int, lo: int, hi: int) -> None:
        """A block of samples through the ops of a phase; the op that ends it prepares for the next."""
        for row in self.rows(table, phase[0], NEXT):
            row[X] = row[HOME_X] - lo * row[STEP_X]
            row[Y] = row[HOME_Y] - lo * row[STEP_Y]
            if row[INDEX] == phase[1]:
                self.call(self.op(row).prepare, row, params, self.partial(row, shard), self.acts, self.deltas, lo, hi)
                return
            self.call(self.op(row).forward, row, params, params, self.acts, self.deltas, lo, hi)

    def backwards(self, table, params, phase, shards, lo: int, hi: int) -> None:
        """A block of samples back through the ops of a phase; the op that ends it takes its partial sums only."""
        for row in self.rows(table, phase[2], PREVIOUS):
            begins, ends = row[PREPARE] and row[INDEX] == phase[2], row[INDEX] == phase[3]
            if row[PARTIAL] and not begins:
                for shard, first, last in shards:
                    if first < last:
                        part, w = self.partial(row, shard), row[W]
                        grads = np.concatenate([np.zeros(w, part.dtype), part])
                        self.call(self.op(row).partial, row, params, grads, self.acts, self.deltas, first, last)
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
        first = row[PARTIALS] + shard * row[COUNT]
        return self.acts[first : first + row[COUNT]]

    def parameters(self, params, state, step: int) -> None:
        """Region B: every task's gradient over the whole batch, its penalty, and with an optimiser its update."""
        plan, optimizer = self.plan, self.optimizer
        for t, table in enumerate(self.tables):
            table[0, STEP] = step
            last_row = Row(table, len(table) - 1, self.data)
            if optimizer is not None and optimizer.prepare:
                self.call(optimizer.prepare, last_row, params, params, state, self.deltas, 0, 0)
            for number, lo, hi, first, last in plan.tasks[plan.bounds[t] : plan.bounds[t + 1]].tolist():
                row = Row(table, number, self.data)
                gradient = sum_partials if row[PARTIAL] else self.op(row).gradient
                self.call(gradient, row, params, self.grads, self.acts, self.deltas, lo, hi)
                for i in range(first, min(last, row[W] + row[WEIGHTS])):
                    self.grads[i] += row.real(L1) * np.sign(params[i]) + row.real(L2) * params[i]
                if optimizer is not None:
                    self.call(optimizer.update, last_row, params, self.grads, state, self.deltas, first, last)

    def total(self, op: Op | None, size: int) -> float:
        """The sum of an op's outputs over the batch."""
        return float(sum(self.acts[self.plan.offsets[op] + i] for i in range(size))) if op is not None else 0.0

    def _add(self, size: int) -> None:
        self.sums += self.total(self.loss, size), self.total(self.hits, size), size

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
        self.sums[:] = 0
        for start in range(0, samples, self.plan.batch):
            size = min(self.plan.batch, samples - start)
            self.samples(params, start, size, False)
            self._add(size)
        return float(self.sums[0]), float(self.sums[1])
