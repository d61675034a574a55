"""The ends of the plan: inputs and targets are copied in by index, outputs are copied out.

The data stay as the user gave them: a batch is a list of indices into them. uint8 inputs are pictures, 0 … 255, and become
0 … 1 on the way in. The addresses of the data stand in the clock.
"""

import numpy as np

from numbanet.backend.intrinsics import (
    VECTOR_BYTES,
    address,
    as_pointer,
    const_like,
    div_u32,
    lanes,
    num_threads,
    ptr_add,
    thread_rank,
)
from numbanet.backend.intrinsics.pointers import prefetch
from numbanet.backend.jit import inline, kernel
from numbanet.plan.columns import (
    ATTRS,
    BASE_X,
    INDEX,
    INPUTS,
    N_IN,
    N_OUT,
    NEXT,
    OUTPUTS,
    PREFETCH_LIMIT,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLES,
    START,
    TARGETS,
    Op,
    X,
    Y,
    context,
    sample_index,
)

NONFINITE = ATTRS
"""1 when an input was not finite, for inputs that are read where they lie."""
CACHE_LINE = 64
"""Bytes that memory hands over at once."""


@inline
def _copy(op, x, scale, acts, lo, hi):
    """acts[y] = scale · x, for samples lo ≤ i < hi, and ask for the samples of the next batch."""
    n, batch, line = op[N_OUT], context(op, SAMPLES), lanes(x) * (CACHE_LINE // VECTOR_BYTES)
    for i in range(lo, hi):
        if context(op, START) + batch + i < context(op, PREFETCH_LIMIT):
            following = sample_index(op, batch + i) * n
            for j in range(0, n, line):
                prefetch(ptr_add(x, following + j))
        source, y = sample_index(op, i) * n, op[Y] + i * n
        for j in range(n):
            acts[y + j] = const_like(acts, x[source + j]) * scale


@inline
def _copy_cuda(op, x, scale, acts, lo, hi):
    """acts[y] = scale · x, for samples lo ≤ i < hi, number by number."""
    n = op[N_OUT]
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        i = div_u32(e, n)
        acts[op[Y] + lo * n + e] = const_like(acts, x[sample_index(op, lo + i) * n + e - i * n]) * scale


@inline
def _copy_features(op, x, scale, acts, lo, hi):
    """acts[y] = scale · x for columns lo ≤ j < hi of all samples of the batch, and ask for those of the next batch."""
    n, batch, line = op[N_OUT], context(op, SAMPLES), lanes(x) * (CACHE_LINE // VECTOR_BYTES)
    for i in range(batch):
        if context(op, START) + batch + i < context(op, PREFETCH_LIMIT):
            following = sample_index(op, batch + i) * n
            for j in range(lo, hi, line):
                prefetch(ptr_add(x, following + j))
        source, y = sample_index(op, i) * n, op[Y] + i * n
        for j in range(lo, hi):
            acts[y + j] = const_like(acts, x[source + j]) * scale


@inline
def _copy_features_cuda(op, x, scale, acts, lo, hi):
    """The same, number by number."""
    n = op[N_OUT]
    for e in range(thread_rank(), (hi - lo) * context(op, SAMPLES), num_threads()):
        i = div_u32(e, hi - lo)
        j = lo + e - i * (hi - lo)
        acts[op[Y] + i * n + j] = const_like(acts, x[sample_index(op, i) * n + j]) * scale


@kernel
def features_float32(op, params, grads, acts, deltas, lo, hi):
    """Copy columns lo ≤ j < hi of a batch of float32 samples into the first slot."""
    _copy_features(op, as_pointer(context(op, INPUTS), np.float32), const_like(acts, 1), acts, lo, hi)


@features_float32.cuda
def features_float32(op, params, grads, acts, deltas, lo, hi):
    _copy_features_cuda(op, as_pointer(context(op, INPUTS), np.float32), const_like(acts, 1), acts, lo, hi)


@kernel
def features_float64(op, params, grads, acts, deltas, lo, hi):
    """Copy columns lo ≤ j < hi of a batch of float64 samples into the first slot."""
    _copy_features(op, as_pointer(context(op, INPUTS), np.float64), const_like(acts, 1), acts, lo, hi)


@features_float64.cuda
def features_float64(op, params, grads, acts, deltas, lo, hi):
    _copy_features_cuda(op, as_pointer(context(op, INPUTS), np.float64), const_like(acts, 1), acts, lo, hi)


@kernel
def features_uint8(op, params, grads, acts, deltas, lo, hi):
    """Copy columns lo ≤ j < hi of a batch of pictures of bytes into the first slot, scaled to 0 … 1."""
    _copy_features(op, as_pointer(context(op, INPUTS), np.uint8), const_like(acts, 1 / 255), acts, lo, hi)


@features_uint8.cuda
def features_uint8(op, params, grads, acts, deltas, lo, hi):
    _copy_features_cuda(op, as_pointer(context(op, INPUTS), np.uint8), const_like(acts, 1 / 255), acts, lo, hi)


@kernel
def inputs_float32(op, params, grads, acts, deltas, lo, hi):
    """Copy float32 samples into the first slot."""
    _copy(op, as_pointer(context(op, INPUTS), np.float32), const_like(acts, 1), acts, lo, hi)


@inputs_float32.cuda
def inputs_float32(op, params, grads, acts, deltas, lo, hi):
    _copy_cuda(op, as_pointer(context(op, INPUTS), np.float32), const_like(acts, 1), acts, lo, hi)


@kernel
def inputs_float64(op, params, grads, acts, deltas, lo, hi):
    """Copy float64 samples into the first slot."""
    _copy(op, as_pointer(context(op, INPUTS), np.float64), const_like(acts, 1), acts, lo, hi)


@inputs_float64.cuda
def inputs_float64(op, params, grads, acts, deltas, lo, hi):
    _copy_cuda(op, as_pointer(context(op, INPUTS), np.float64), const_like(acts, 1), acts, lo, hi)


@kernel
def inputs_uint8(op, params, grads, acts, deltas, lo, hi):
    """Copy pictures of bytes into the first slot, scaled to 0 … 1."""
    _copy(op, as_pointer(context(op, INPUTS), np.uint8), const_like(acts, 1 / 255), acts, lo, hi)


@inputs_uint8.cuda
def inputs_uint8(op, params, grads, acts, deltas, lo, hi):
    _copy_cuda(op, as_pointer(context(op, INPUTS), np.uint8), const_like(acts, 1 / 255), acts, lo, hi)


@kernel
def inputs_zero_copy(op, params, grads, acts, deltas, lo, hi):
    """Let the next op read samples of the network's own type, in their order, where they lie; a NaN or infinity shows in FOUND."""
    n, x = op[N_OUT], as_pointer(context(op, INPUTS), acts)
    first, total = context(op, START) * n, const_like(acts, 0)
    for j in range(first + lo * n, first + hi * n):
        total += x[j] * const_like(acts, 0)
    if total != const_like(acts, 0):
        op[NONFINITE] = 1
    following = ptr_add(op, (op[NEXT] - op[INDEX]) * ROW_SIZE)
    following[BASE_X] = (address(x) - address(acts)) // (VECTOR_BYTES // lanes(acts)) + first
    following[SAMPLE_STRIDE_X] = 0


@inputs_zero_copy.cuda
def inputs_zero_copy(op, params, grads, acts, deltas, lo, hi):
    _copy_cuda(op, as_pointer(context(op, INPUTS), acts), const_like(acts, 1), acts, lo, hi)


@kernel
def targets_float32(op, params, grads, acts, deltas, lo, hi):
    """Copy float32 rows of targets."""
    _copy(op, as_pointer(context(op, TARGETS), np.float32), const_like(acts, 1), acts, lo, hi)


@targets_float32.cuda
def targets_float32(op, params, grads, acts, deltas, lo, hi):
    _copy_cuda(op, as_pointer(context(op, TARGETS), np.float32), const_like(acts, 1), acts, lo, hi)


@kernel
def targets_float64(op, params, grads, acts, deltas, lo, hi):
    """Copy float64 rows of targets."""
    _copy(op, as_pointer(context(op, TARGETS), np.float64), const_like(acts, 1), acts, lo, hi)


@targets_float64.cuda
def targets_float64(op, params, grads, acts, deltas, lo, hi):
    _copy_cuda(op, as_pointer(context(op, TARGETS), np.float64), const_like(acts, 1), acts, lo, hi)


@kernel(independent=True)
def targets_int64(op, params, grads, acts, deltas, lo, hi):
    """Write class labels as rows with a single one; a single output takes the label 0 or 1 itself."""
    labels, n = as_pointer(context(op, TARGETS), np.int64), op[N_OUT]
    for i in range(lo, hi):
        label, y = labels[sample_index(op, i)], op[Y] + i * n
        for j in range(n):
            acts[y + j] = const_like(acts, 1) if j == label else const_like(acts, 0)
        if n == 1:
            acts[y] = const_like(acts, label)


@kernel
def write_outputs(op, params, grads, acts, deltas, lo, hi):
    """Copy the outputs to the caller's array, of the network's dtype."""
    n = op[N_IN]
    outputs = as_pointer(context(op, OUTPUTS), acts)
    for i in range(lo, hi):
        place, x = (context(op, START) + i) * n, op[X] + i * n
        for j in range(n):
            outputs[place + j] = acts[x + j]


@write_outputs.cuda
def write_outputs(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    outputs = ptr_add(as_pointer(context(op, OUTPUTS), acts), (context(op, START) + lo) * n)
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        outputs[e] = acts[op[X] + lo * n + e]


_COLUMNS = {"float32": features_float32, "float64": features_float64, "uint8": features_uint8}
_INPUTS = {"float32": inputs_float32, "float64": inputs_float64, "uint8": inputs_uint8}
_TARGETS = {"float32": targets_float32, "float64": targets_float64, "int64": targets_int64}


def inputs(n: int, dtype) -> Op:
    """The op that brings in samples of n numbers of `dtype` (float32, float64 or uint8)."""
    return Op("Inputs", 0, n, _INPUTS[str(dtype)], split_k=_COLUMNS[str(dtype)])


def inference_inputs(n: int, dtype, network_dtype, following: Op) -> Op:
    """The same for samples that are only read, in their order: where they lie, if `following` does not write there."""
    if dtype != network_dtype or following.in_place:
        return inputs(n, dtype)
    return Op("Inputs", 0, n, inputs_zero_copy, attrs=(0,))


def targets(n: int, dtype) -> Op:
    """The op that brings in n targets per sample, from rows (float32, float64) or labels (int64)."""
    return Op("Targets", 0, n, _TARGETS[str(dtype)], side_output=True)


def outputs(n: int) -> Op:
    """The op that hands n outputs per sample to the caller."""
    return Op("Outputs", n, 0, write_outputs)
