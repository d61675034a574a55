"""Tasks of the update region: blocks of parameters, and which thread treats which."""

from itertools import pairwise

import numpy as np

from numbanet.plan.op import Op
from numbanet.plan.plan import TASK_SIZE

MAX_TASK = 4096
MIN_TASK = 1024
MOST_SMALL_TASKS = 8
"""Tasks of fewer parameters than MAX_TASK: one costs about 250 cycles besides its parameters."""
TASK_OVERHEAD = 64
"""What a task costs besides its parameters, in parameters."""


def partition_parameters(ops: list[Op], rows: dict[Op, int], threads: int, tile_rows: int):
    """Cut the parameters into tasks of a few thousand, and assign them to the threads by cost.

    Vectorised loops round their remainder differently, so the cuts are chosen from sizes alone and
    never from the number of threads. Returns (tasks, task_bounds); see Plan.
    """
    n_params = sum(op.n_params for op in ops)
    grain = min(MAX_TASK, max(MIN_TASK, n_params // MOST_SMALL_TASKS))
    tasks, costs, offset = [], [0], 0
    for op in ops:
        if op.trained:
            whole_tiles = grain // op.param_cols // tile_rows * tile_rows
            at_once = min(op.param_rows, max(tile_rows, whole_tiles))
            for lo, hi in pairwise([*range(0, op.param_rows, at_once), op.param_rows]):
                first, last = offset + lo * op.param_cols, offset + hi * op.param_cols
                tasks.append((rows[op], lo, hi, first, last))
                costs.append(last - first + TASK_OVERHEAD)
        offset += op.n_params
    total = np.cumsum(costs)
    limits = total[-1] * np.arange(threads + 1) / threads
    bounds = np.abs(total[:, None] - limits).argmin(axis=0).astype(np.int64)
    return np.array(tasks, np.int64).reshape(-1, TASK_SIZE), bounds
