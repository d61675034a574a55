"""The columns of the plan's tables: what each integer of a row means.

A plan's table has a row of int64 for each op, and one in front of them for the batch:

    row 0        the batch's context: what changes from step to step (its size, addresses of the
                 data)
    row 1        the op that copies the samples of a batch into the first slot
    rows 2 …     the layers' ops, then the targets and the loss, or the op that writes the outputs
    last rows    the optimiser, one for each group of layers with a rate and a decay of their own

Columns are named, never counted: `op[N_IN]`, `context(op, SAMPLES)`, and for what belongs to one
kind of op a layout made by `Attrs`. A float stands in its column as the bits of a float64.
"""

from collections import namedtuple
from typing import Any

import numpy as np

from numbanet.backend.intrinsics import as_pointer, float_attr
from numbanet.backend.jit import inline

# --- the row of an op -----------------------------------------------------------------------------

VERBS = range(6)
FORWARD, BACKWARD, STATISTICS, ACCUMULATE, GRADIENT, SPLIT_K = VERBS
"""Kernel pointers; 0 where there is nothing to do."""

(
    INDEX,
    X,
    Y,
    AUX,
    BASE_X,
    BASE_Y,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SCRATCH,
    N_IN,
    N_OUT,
    W,
    N_WEIGHTS,
    PARAM_COLS,
    BUFFERS,
    L1_STRENGTH,
    L2_STRENGTH,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    READER,
    OPTIMIZER_ROW,
    STATE_OFFSET,
) = range(6, 28)
"""
INDEX                        the row's own number
X, Y                         offsets of sample 0 of the input and of the output, in acts and deltas
AUX                          offset of sample 0 of the auxiliary input (a loss reads the targets
                             there)
BASE_X, SAMPLE_STRIDE_X      X = BASE_X − lo · SAMPLE_STRIDE_X while the micro-batch that begins at
                             sample lo is worked on; the stride is 0 where the whole batch is kept
SCRATCH                      offset in acts of elements that a thread has for itself
N_IN, N_OUT                  elements per sample of the input and of the output
W                            offset of the op's parameters, in params and grads
N_WEIGHTS                    how many of them, from the first, are weights: penalties apply to these
PARAM_COLS                   elements in a row of the parameter block
BUFFERS                      offset in params of elements that are kept but not trained
L1_STRENGTH, L2_STRENGTH     strengths of the penalties, floats
PARTIAL_GRADS                offset in acts of the first chunk's partial gradient (or partial
                             product)
PARTIAL_STRIDE               elements from one chunk's to the next
READER                       the row of the op that reads the output
OPTIMIZER_ROW                the row of the optimiser that updates the op's parameters
STATE_OFFSET                 where the op's part of a sample's state begins
"""
ATTRS = 28
"""First of the columns that belong to the kind of op.

A row that needs more takes the rows after it.
"""
ROW_SIZE = 48
"""Columns of a row."""
N_SPLIT_K = 4
"""Parts that a split-K product is cut into: fixed, so that sums do not depend on the threads."""


class Attrs:
    """The attributes of a kind of op: a column for each name, from ATTRS on.

        GEOMETRY = Attrs("height width channels")
        GEOMETRY.height                                  the column, a constant in compiled code
        GEOMETRY.pack(height=8, width=6, channels=3)     the values in the order of the columns

    Raises TypeError where a name is missing or unknown.
    """

    def __new__(cls, names: str, first: int = ATTRS) -> Any:
        fields = names.split()
        layout: Any = namedtuple("Attrs", fields)  # type: ignore[misc]  # constants to Numba

        class Layout(layout):
            __slots__ = ()

            @staticmethod
            def pack(**values) -> tuple:
                """Values in the order of the columns."""
                return tuple(layout(**values))

        return Layout(*range(first, first + len(fields)))


# --- the batch's context, row 0 ----------------------------------------------------------------

(
    SAMPLES,
    START,
    EPOCH,
    SEED,
    CHUNKS,
    STEP,
    INPUTS,
    TARGETS,
    PERMUTATION,
    OUTPUTS,
    PREFETCH_LIMIT,
    RATES,
    WEIGHTS,
    PENALTY_FACTORS,
    PENALTY_FACTOR,
    LENGTHS,
    FIRST_SAMPLE,
    INPUT_COLUMNS,
    INPUT_STARTS,
    TANGENTS,
    STATE,
    STATE_SIZE,
) = range(22)
"""
SAMPLES, START               samples in this batch, and where it begins in the epoch
EPOCH, SEED                  of which random numbers are a function
CHUNKS                       number of fixed chunks of the batch, each with its partial gradient
STEP                         optimiser steps taken, this one included
INPUTS, TARGETS, OUTPUTS     addresses of the data
PERMUTATION                  address of the order of the epoch's samples, or 0
PREFETCH_LIMIT               samples in the epoch, 0 where the next batch is not prefetched
RATES                        address of the learning rate of every batch of the epoch, or 0 where it
                             is constant
WEIGHTS                      address of the weight of every sample of the data, float64
PENALTY_FACTORS              address of what every batch of the epoch multiplies the penalties by,
                             float64, or 0 for a factor of 1
PENALTY_FACTOR               that of this batch, a float
LENGTHS                      address of the number of steps of every sequence, or 0 where all have
                             as many as the network's input
FIRST_SAMPLE                 how many samples of the epoch came before the data, which are a part of
                             them; else 0
INPUT_COLUMNS, INPUT_STARTS  addresses of the columns of the values at INPUTS, int32, and of where
                             each row begins, int64, for inputs that are sparse
STATE                        address of what a sample leaves to the one at its place in the next
                             batch, (samples, STATE_SIZE); 0 where that is zero, and not kept
STATE_SIZE                   elements of a sample's state
TANGENTS                     from an element of acts, or of deltas, to its tangent, in the verbs
                             `second_backward` and `second_gradient`
"""


@inline
def context(op, column):
    """A column of the batch's context, seen from any row."""
    return op[column - op[INDEX] * ROW_SIZE]


@inline
def context_float(op, column):
    """The same for a column that holds a float."""
    return float_attr(op, column - op[INDEX] * ROW_SIZE)


@inline
def sample_index(op, i):
    """The index in the data of sample i of the batch."""
    place = context(op, START) + i
    if context(op, PERMUTATION):
        return as_pointer(context(op, PERMUTATION), np.int64)[place]
    return place


@inline
def sample_number(op, i):
    """The number in all data of sample i of the batch, of which random numbers are a function."""
    return context(op, FIRST_SAMPLE) + sample_index(op, i)


@inline
def sequence_length(op, i, steps):
    """The number of steps of sample i of the batch; `steps` where lengths are not given."""
    if context(op, LENGTHS):
        return as_pointer(context(op, LENGTHS), np.int64)[sample_index(op, i)]
    return steps


def float64_bits(value: float) -> int:
    """The bits of a float64 as an int64."""
    return int(np.float64(value).view(np.int64))


def column_value(value: int | float) -> int:
    """What a column holds for an attribute: an integer itself, a float's bits."""
    return float64_bits(value) if isinstance(value, float) else int(value)
