"""The plan: a network as a table of whole numbers that every engine reads.

A network is lowered once: each layer gives a few `Op`s, each op becomes a row of int64 (addresses of its kernels, sizes, offsets
into the four flat memories), and nothing but this file assigns an offset. Attributes that are real numbers stand in their row as
the bits of a float64.

    row 0        the clock: what changes from step to step (batch size, start, epoch, addresses of the data)
    row 1        the gather, which copies the samples of a batch into the first slot
    rows 2 …     the layers' ops, then the gather of targets and the loss, or the scatter of outputs
    last row     the optimiser

Memories. `params` and `grads` hold, op by op, weights then bias. `acts` holds a *slot* for the output of every op (an op in place
shares the slot of the one before), `deltas` the derivative of the loss by the same numbers at the same offsets; slots without a
derivative come last, so deltas is the shorter. A slot holds a row per sample, either of the whole batch (where a gradient is
taken over the batch afterwards) or only of the block of samples that a thread is walking through.
"""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np

from numbanet.backend.intrinsics import as_pointer
from numbanet.backend.jit import Kernel, inline

# Columns of an op's row.
FORWARD, BACKWARD, ACCUMULATE, GRADIENT = range(4)
"""Addresses of the verbs; 0 where there is nothing to do. An op that needs the whole batch has a fifth, in PREPARE."""
INDEX = 4
"""The row's own number."""
X, Y = 5, 6
"""Offsets, in acts and deltas, of sample 0 of the input and of the output."""
N_IN, N_OUT = 7, 8
"""Numbers per sample in the input and in the output."""
W = 9
"""Offset of the op's parameters in params and grads."""
N_WEIGHTS = 10
"""How many parameters, from W on, a penalty applies to."""
BASE_X, BASE_Y, SAMPLE_STRIDE_X, SAMPLE_STRIDE_Y = 11, 12, 13, 14
"""Slots of a block: X = HOME_X − lo·STEP_X while the block that starts at sample lo is worked on."""
L1_STRENGTH, L2_STRENGTH = 15, 16
"""Strengths of the penalties, as reals."""
NEXT, PREVIOUS = 17, 18
"""Numbers of the rows of the next and the previous op; 0 ends the list."""
AUX = 19
"""Offset of sample 0 in the slot of the op that this one reads besides its input: a loss reads the targets."""
SCRATCH = 20
"""Offset in acts of the numbers that a thread has for itself while it works on this op."""
PARTIAL_GRADS, PARTIAL_STRIDE, PARAM_COLS = 21, 22, 23
"""Offset in acts of the first shard's partial gradient, how many numbers each shard's has, and how many make a unit."""
STATISTICS, BUFFERS = 24, 25
"""Address of the verb whose result for the whole batch `forward` waits for; offset in params of numbers that are not trained."""
SPLIT_K = 26
"""Address of the verb that works on columns lo ≤ j < hi of the inputs of the whole batch, before region A; see `lowering`."""
N_SPLIT_K = 4
"""Parts that the columns are cut into then: a fixed number, so that sums do not depend on the threads."""
ATTRS = 27
"""First of the columns that belong to the layer. A layer that needs more than its row holds is given the following rows too."""
ROW_SIZE = 48


class Attrs:
    """The attributes of a kind of op: a column for each name, from ATTRS on, and how they are packed.

        GEOMETRY = Attrs("height width channels")
        GEOMETRY.height                                  the column, a constant in compiled code
        GEOMETRY.pack(height=8, width=6, channels=3)     the values in the order of the columns

    Raises TypeError where a name is missing or unknown.
    """

    def __new__(cls, names: str, first: int = ATTRS) -> Any:
        fields = names.split()
        layout: Any = namedtuple("Attrs", fields)  # type: ignore[misc]  # Numba knows named tuples

        class Layout(layout):
            __slots__ = ()

            @staticmethod
            def pack(**values) -> tuple:
                """Values in the order of the columns."""
                return tuple(layout(**values))

        return Layout(*range(first, first + len(fields)))


# Columns of row 0, the clock.
SAMPLES, START, EPOCH, SEED, CHUNKS, STEP, INPUTS, TARGETS, PERMUTATION, OUTPUTS, PREFETCH_LIMIT = range(5, 16)
"""Samples in this batch · position of its first in the epoch · epoch · seed · shards the batch is split into · optimiser steps
taken, this one included · addresses of the data · samples in the epoch, 0 if the next batch is not worth asking for."""


@inline
def context(op, column):
    """A column of row 0, seen from any row."""
    return op[column - op[INDEX] * ROW_SIZE]


@inline
def sample_index(op, i):
    """The index in the data of sample i of the batch."""
    place = context(op, START) + i
    if context(op, PERMUTATION):
        return as_pointer(context(op, PERMUTATION), np.int64)[place]
    return place


@dataclass(frozen=True, eq=False)
class Op:
    """One row of the plan as a layer describes it: kernels, sizes and its own attributes, no offsets yet.

    `in_place`        its output takes the place of its input
    `keeps_output`    its backward reads its own output, so no op in place may follow
    `side`            its output is not the next op's input (the targets, the hits); it is kept for the whole batch
    `reads`           an op before it whose output it reads besides its input
    `partial`         instead of `gradient`: adds the gradient of samples lo … hi − 1 to grads[W …] in region A. The engine gives
                      it a copy per shard (a fixed part of the batch) and adds the copies in order in region B
    `prepare`         for an op whose samples depend on one another: sums over samples lo … hi − 1, into grads, before any `forward`
                      of the op; the engine lets all threads finish it first, and likewise `partial` before `backward`
    `split`, `joined` a first layer's product in another cut: `split` takes inputs lo ≤ j < hi of all samples, and writes what they
                      give into grads; `joined` is the forward that adds these parts up. The gather in front splits likewise
    `extra`           numbers behind a shard's partial gradient for that
    `buffers`         numbers that are kept and saved with the network, but not trained
    `scratch`         numbers that a thread needs for itself during a verb
    `units`, `unit`   the parameters form `units` blocks of `unit` numbers, the grain in which a gradient is taken;
                      `weights` of them, from the first, are subject to penalties and are used `uses` times per sample
    `own`             whole or real numbers for the columns from OWN on
    """

    name: str
    n_in: int
    n_out: int
    forward: Kernel | None
    backward: Kernel | None = None
    gradient: Kernel | None = None
    accumulate_gradient: Kernel | None = None
    in_place: bool = False
    keeps_output: bool = False
    side_output: bool = False
    aux: "Op | None" = None
    statistics: Kernel | None = None
    split_k: Kernel | None = None
    reduce_split_k: Kernel | None = None
    statistics_size: int = 0
    buffers: int = 0
    scratch: int = 0
    param_rows: int = 0
    param_cols: int = 0
    n_weights: int = 0
    weight_reuse: int = 1
    attrs: tuple = ()
    not_differentiable: str = ""
    penalties: tuple = (0.0, 0.0)

    @property
    def n_params(self) -> int:
        return self.param_rows * self.param_cols

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass per sample, roughly: two for each use of a weight."""
        return 2 * self.n_weights * self.weight_reuse + self.n_out


@dataclass
class Plan:
    """The rows of a network for one purpose (training, gradient, prediction), and how much memory they need.

    `tables`  int64 (threads, rows, WIDTH): every thread has its own copy, whose clock and block offsets it may change
    `tasks`   int64 (tasks, 5): row, lo, hi, first and last parameter of a block that region B treats at once
    `bounds`  int64 (threads + 1): the tasks of each thread
    `buffer`  parameters in the largest task
    `splits`  parts that the inputs' columns are cut into before region A, 0 where the first product is cut by samples alone
    `phases`  int64 (phases, 4): rows from and to which region A goes forwards, then backwards, before all threads meet
    """

    ops: list[Op]
    threads: int
    batch: int
    micro_batch: int
    tables: np.ndarray
    offsets: dict[Op, int]
    chunks: int
    n_acts: int
    n_deltas: int
    n_params: int
    tasks: np.ndarray
    task_bounds: np.ndarray
    buffer: int
    phases: np.ndarray
    n_split_k: int = 0

    def set_context(self, column: int, value: int) -> None:
        """Write a column of the clock in every thread's copy."""
        self.tables[:, 0, column] = value


def float64_bits(value: float) -> int:
    """The bits of a float64 as an int64."""
    return int(np.float64(value).view(np.int64))
