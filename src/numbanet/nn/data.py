"""The ends of the plan: inputs and targets are copied in by index, outputs are copied out.

The data stay as the user gave them: a batch is a list of indices into them. uint8 inputs are pictures, 0 … 255, and become
0 … 1 on the way in. The addresses of the data stand in the clock.
"""

import numpy as np

from numbanet.backend.intrinsics import VECTOR_BYTES, address, at, lanes, like, pointer, quotient, thread, threads
from numbanet.backend.intrinsics.barrier import prefetch
from numbanet.backend.jit import inline, kernel
from numbanet.plan.columns import (
    HOME_X,
    INDEX,
    INPUTS,
    N_X,
    N_Y,
    NEXT,
    OUTPUTS,
    OWN,
    SAMPLES,
    START,
    STEP_X,
    TARGETS,
    TOTAL,
    WIDTH,
    Op,
    X,
    Y,
    clock,
    sample_index,
)

FOUND = OWN
"""1 when an input was not finite, for inputs that are read where they lie."""
CACHE_LINE = 64
"""Bytes that memory hands over at once."""


@inline
def _copy(op, x, scale, acts, lo, hi):
    """acts[y] = scale · x, for samples lo ≤ i < hi, and ask for the samples of the next batch."""
    n, batch, line = op[N_Y], clock(op, SAMPLES), lanes(x) * (CACHE_LINE // VECTOR_BYTES)
    for i in range(lo, hi):
        if clock(op, START) + batch + i < clock(op, TOTAL):
            following = sample_index(op, batch + i) * n
            for j in range(0, n, line):
                prefetch(at(x, following + j))
        source, y = sample_index(op, i) * n, op[Y] + i * n
        for j in range(n):
            acts[y + j] = like(acts, x[source + j]) * scale


@inline
def _bring(op, x, scale, acts, lo, hi):
    """acts[y] = scale · x, for samples lo ≤ i < hi, number by number."""
    n = op[N_Y]
    for e in range(thread(), (hi - lo) * n, threads()):
        i = quotient(e, n)
        acts[op[Y] + lo * n + e] = like(acts, x[sample_index(op, lo + i) * n + e - i * n]) * scale


@inline
def _columns(op, x, scale, acts, lo, hi):
    """acts[y] = scale · x for columns lo ≤ j < hi of all samples of the batch, and ask for those of the next batch."""
    n, batch, line = op[N_Y], clock(op, SAMPLES), lanes(x) * (CACHE_LINE // VECTOR_BYTES)
    for i in range(batch):
        if clock(op, START) + batch + i < clock(op, TOTAL):
            following = sample_index(op, batch + i) * n
            for j in range(lo, hi, line):
                prefetch(at(x, following + j))
        source, y = sample_index(op, i) * n, op[Y] + i * n
        for j in range(lo, hi):
            acts[y + j] = like(acts, x[source + j]) * scale


@inline
def _bring_columns(op, x, scale, acts, lo, hi):
    """The same, number by number."""
    n = op[N_Y]
    for e in range(thread(), (hi - lo) * clock(op, SAMPLES), threads()):
        i = quotient(e, hi - lo)
        j = lo + e - i * (hi - lo)
        acts[op[Y] + i * n + j] = like(acts, x[sample_index(op, i) * n + j]) * scale


@kernel
def columns_float32(op, params, grads, acts, deltas, lo, hi):
    """Copy columns lo ≤ j < hi of a batch of float32 samples into the first slot."""
    _columns(op, pointer(clock(op, INPUTS), np.float32), like(acts, 1), acts, lo, hi)


@columns_float32.cuda
def columns_float32(op, params, grads, acts, deltas, lo, hi):
    _bring_columns(op, pointer(clock(op, INPUTS), np.float32), like(acts, 1), acts, lo, hi)


@kernel
def columns_float64(op, params, grads, acts, deltas, lo, hi):
    """Copy columns lo ≤ j < hi of a batch of float64 samples into the first slot."""
    _columns(op, pointer(clock(op, INPUTS), np.float64), like(acts, 1), acts, lo, hi)


@columns_float64.cuda
def columns_float64(op, params, grads, acts, deltas, lo, hi):
    _bring_columns(op, pointer(clock(op, INPUTS), np.float64), like(acts, 1), acts, lo, hi)


@kernel
def columns_uint8(op, params, grads, acts, deltas, lo, hi):
    """Copy columns lo ≤ j < hi of a batch of pictures of bytes into the first slot, scaled to 0 … 1."""
    _columns(op, pointer(clock(op, INPUTS), np.uint8), like(acts, 1 / 255), acts, lo, hi)


@columns_uint8.cuda
def columns_uint8(op, params, grads, acts, deltas, lo, hi):
    _bring_columns(op, pointer(clock(op, INPUTS), np.uint8), like(acts, 1 / 255), acts, lo, hi)


@kernel
def inputs_float32(op, params, grads, acts, deltas, lo, hi):
    """Copy float32 samples into the first slot."""
    _copy(op, pointer(clock(op, INPUTS), np.float32), like(acts, 1), acts, lo, hi)


@inputs_float32.cuda
def inputs_float32(op, params, grads, acts, deltas, lo, hi):
    _bring(op, pointer(clock(op, INPUTS), np.float32), like(acts, 1), acts, lo, hi)


@kernel
def inputs_float64(op, params, grads, acts, deltas, lo, hi):
    """Copy float64 samples into the first slot."""
    _copy(op, pointer(clock(op, INPUTS), np.float64), like(acts, 1), acts, lo, hi)


@inputs_float64.cuda
def inputs_float64(op, params, grads, acts, deltas, lo, hi):
    _bring(op, pointer(clock(op, INPUTS), np.float64), like(acts, 1), acts, lo, hi)


@kernel
def inputs_uint8(op, params, grads, acts, deltas, lo, hi):
    """Copy pictures of bytes into the first slot, scaled to 0 … 1."""
    _copy(op, pointer(clock(op, INPUTS), np.uint8), like(acts, 1 / 255), acts, lo, hi)


@inputs_uint8.cuda
def inputs_uint8(op, params, grads, acts, deltas, lo, hi):
    _bring(op, pointer(clock(op, INPUTS), np.uint8), like(acts, 1 / 255), acts, lo, hi)


@kernel
def inputs_in_place(op, params, grads, acts, deltas, lo, hi):
    """Let the next op read samples of the network's own type, in their order, where they lie; a NaN or infinity shows in FOUND."""
    n, x = op[N_Y], pointer(clock(op, INPUTS), acts)
    first, total = clock(op, START) * n, like(acts, 0)
    for j in range(first + lo * n, first + hi * n):
        total += x[j] * like(acts, 0)
    if total != like(acts, 0):
        op[FOUND] = 1
    following = at(op, (op[NEXT] - op[INDEX]) * WIDTH)
    following[HOME_X] = (address(x) - address(acts)) // (VECTOR_BYTES // lanes(acts)) + first
    following[STEP_X] = 0


@inputs_in_place.cuda
def inputs_in_place(op, params, grads, acts, deltas, lo, hi):
    _bring(op, pointer(clock(op, INPUTS), acts), like(acts, 1), acts, lo, hi)


@kernel
def targets_float32(op, params, grads, acts, deltas, lo, hi):
    """Copy float32 rows of targets."""
    _copy(op, pointer(clock(op, TARGETS), np.float32), like(acts, 1), acts, lo, hi)


@targets_float32.cuda
def targets_float32(op, params, grads, acts, deltas, lo, hi):
    _bring(op, pointer(clock(op, TARGETS), np.float32), like(acts, 1), acts, lo, hi)


@kernel
def targets_float64(op, params, grads, acts, deltas, lo, hi):
    """Copy float64 rows of targets."""
    _copy(op, pointer(clock(op, TARGETS), np.float64), like(acts, 1), acts, lo, hi)


@targets_float64.cuda
def targets_float64(op, params, grads, acts, deltas, lo, hi):
    _bring(op, pointer(clock(op, TARGETS), np.float64), like(acts, 1), acts, lo, hi)


@kernel(apart=True)
def targets_int64(op, params, grads, acts, deltas, lo, hi):
    """Write class labels as rows with a single one; a single output takes the label 0 or 1 itself."""
    labels, n = pointer(clock(op, TARGETS), np.int64), op[N_Y]
    for i in range(lo, hi):
        label, y = labels[sample_index(op, i)], op[Y] + i * n
        for j in range(n):
            acts[y + j] = like(acts, 1) if j == label else like(acts, 0)
        if n == 1:
            acts[y] = like(acts, label)


@kernel
def scatter_outputs(op, params, grads, acts, deltas, lo, hi):
    """Copy the outputs to the caller's array, of the network's dtype."""
    n = op[N_X]
    outputs = pointer(clock(op, OUTPUTS), acts)
    for i in range(lo, hi):
        place, x = (clock(op, START) + i) * n, op[X] + i * n
        for j in range(n):
            outputs[place + j] = acts[x + j]


@scatter_outputs.cuda
def scatter_outputs(op, params, grads, acts, deltas, lo, hi):
    n = op[N_X]
    outputs = at(pointer(clock(op, OUTPUTS), acts), (clock(op, START) + lo) * n)
    for e in range(thread(), (hi - lo) * n, threads()):
        outputs[e] = acts[op[X] + lo * n + e]


_COLUMNS = {"float32": columns_float32, "float64": columns_float64, "uint8": columns_uint8}
_INPUTS = {"float32": inputs_float32, "float64": inputs_float64, "uint8": inputs_uint8}
_TARGETS = {"float32": targets_float32, "float64": targets_float64, "int64": targets_int64}


def inputs(n: int, dtype) -> Op:
    """The op that brings in samples of n numbers of `dtype` (float32, float64 or uint8)."""
    return Op("Inputs", 0, n, _INPUTS[str(dtype)], split=_COLUMNS[str(dtype)])


def inputs_to_read(n: int, dtype, network_dtype, following: Op) -> Op:
    """The same for samples that are only read, in their order: where they lie, if `following` does not write there."""
    if dtype != network_dtype or following.in_place:
        return inputs(n, dtype)
    return Op("Inputs", 0, n, inputs_in_place, own=(0,))


def targets(n: int, dtype) -> Op:
    """The op that brings in n targets per sample, from rows (float32, float64) or labels (int64)."""
    return Op("Targets", 0, n, _TARGETS[str(dtype)], side=True)


def scatter(n: int) -> Op:
    """The op that hands n outputs per sample to the caller."""
    return Op("Outputs", n, 0, scatter_outputs)
