"""Plan: a network lowered for one purpose, as tables of integers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from numbanet.plan.op import Group, Op

PHASE_SIZE, STEP_SIZE, TASK_SIZE = 3, 2, 5
"""Integers of a phase, of a step of the schedule, and of a task."""
OVER_FEATURES, OVER_SAMPLES = range(2)
"""What is divided among the threads in a phase: the inputs' features (split-K), or the samples."""
ZERO_GRADS = -1
"""The step of the schedule that sets the partial gradients of an op's chunks to zero."""


@dataclass
class Plan:
    """A network for training, a gradient or prediction, and how much memory it needs.

    tables       int64 (threads, rows, ROW_SIZE); every thread has its own copy, because it rewrites
                 the batch's context and the offsets of micro-batches as it advances
    schedule     int64 (steps, 2): (verb or ZERO_GRADS, row), the verbs of a training step before
                 the update, or of a prediction, in the order in which they run
    phases       int64 (phases, 3): (what is shared out, first step, past the last step). All
                 threads wait for one another between two phases
    by_chunk     a micro-batch is one chunk of the batch, because statistics are taken of chunks
    tasks        int64 (tasks, 5): (row, lo, hi, first, last): rows lo … hi of an op's parameter
                 block and the parameters they are, which the update region treats at once
    task_bounds  int64 (threads + 1): the tasks of each thread
    n_acts, n_deltas, n_params   elements of the memories
    task_size    parameters in the largest task
    offsets      where in acts the output of an op begins
    rows         the number of each op's row
    groups       what the optimiser's rows, the last ones, stand for
    """

    ops: list[Op]
    threads: int
    batch: int
    micro_batch: int
    chunks: int
    tables: np.ndarray
    schedule: np.ndarray
    phases: np.ndarray
    by_chunk: bool
    tasks: np.ndarray
    task_bounds: np.ndarray
    n_acts: int
    n_deltas: int
    n_params: int
    offsets: dict[Op, int]
    rows: dict[Op, int]
    groups: list[Group]

    @cached_property
    def task_size(self) -> int:
        """Parameters in the largest task."""
        return int((self.tasks[:, 4] - self.tasks[:, 3]).max(initial=0))

    @property
    def optimizer_rows(self) -> np.ndarray:
        """The optimiser's rows in every thread's table, (threads, groups, ROW_SIZE)."""
        return self.tables[:, -len(self.groups) :]

    @cached_property
    def n_memory(self) -> int:
        """Elements of params: all parameters, then the buffers."""
        return self.n_params + sum(op.buffers for op in self.ops)

    @property
    def uses_split_k(self) -> bool:
        """Whether the first product is cut by its inputs."""
        return bool((self.phases[:, 0] == OVER_FEATURES).any())

    @property
    def by_row(self) -> dict[int, Op]:
        """The op of each row."""
        return {row: op for op, row in self.rows.items()}

    def steps(self, phase: int) -> list[tuple[int, int]]:
        """(verb, row) of the steps of a phase."""
        _, first, last = self.phases[phase].tolist()
        return [(verb, row) for verb, row in self.schedule[first:last].tolist()]

    def set_context(self, column: int, value: int) -> None:
        """Write a column of the batch's context in every thread's copy."""
        self.tables[:, 0, column] = value
