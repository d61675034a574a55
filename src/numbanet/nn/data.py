"""The ends of the plan: inputs and targets are copied in by index, outputs are copied out.

The data stay as the user gave them: a batch is a list of indices into them, and bytes are read
where they lie; sparse rows become dense on the way in. The factor of a Rescale layer in front is
applied there too. The addresses of the data stand in row 0 of the plan.
"""

from typing import Any

import numpy as np

from numbanet.backend.intrinsics import (
    CACHE_LINE,
    VECTOR_BYTES,
    address,
    as_pointer,
    const_like,
    div_u32,
    float_attr,
    lanes,
    num_threads,
    ptr_add,
    thread_rank,
)
from numbanet.backend.intrinsics.pointers import prefetch
from numbanet.backend.jit import inline, kernel, specialize
from numbanet.io.sparse import SparseRows
from numbanet.io.validation import READ_AS_THEY_ARE
from numbanet.plan.columns import (
    BASE_X,
    INDEX,
    INPUT_COLUMNS,
    INPUT_STARTS,
    INPUTS,
    N_IN,
    N_OUT,
    OUTPUTS,
    PREFETCH_LIMIT,
    READER,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLES,
    START,
    TARGETS,
    Attrs,
    X,
    Y,
    context,
    sample_index,
)
from numbanet.plan.op import Op

COPY = Attrs("scale")
LABELS = Attrs("labels")
"""How many labels a sample has: 1, or one for every step of a sequence."""
ZERO_COPY = Attrs("nonfinite")
NONFINITE = ZERO_COPY.nonfinite
"""1 when an input was not finite, for inputs that are read in place."""
RARE, RARE_SHARE = "rare_", 1 / 16
"""In front of the layout of sparse rows with so few stored elements, by their share of all, that
multiplying them one by one is faster than a dense product."""

SOURCE: int = INPUTS
"""In the templates: the column of row 0 with the address of the data."""
DTYPE: Any = np.float32
"""In the templates: the dtype of the data."""


# --- copies, for each dtype -------------------------------------------------------------------


def _copy(op, params, grads, acts, deltas, lo, hi):
    """Copy samples lo ≤ i < hi, times a constant, into acts[y], and prefetch the next batch."""
    x = as_pointer(context(op, SOURCE), DTYPE)
    scale = const_like(acts, float_attr(op, COPY.scale))
    line = lanes(x) * (CACHE_LINE // VECTOR_BYTES)
    n, batch = op[N_OUT], context(op, SAMPLES)
    for i in range(lo, hi):
        if context(op, START) + batch + i < context(op, PREFETCH_LIMIT):
            upcoming = sample_index(op, batch + i) * n
            for j in range(0, n, line):
                prefetch(ptr_add(x, upcoming + j))
        source, y = sample_index(op, i) * n, op[Y] + i * n
        for j in range(n):
            acts[y + j] = const_like(acts, x[source + j]) * scale


def _copy_cuda(op, params, grads, acts, deltas, lo, hi):
    x, n = as_pointer(context(op, SOURCE), DTYPE), op[N_OUT]
    scale = const_like(acts, float_attr(op, COPY.scale))
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        i = div_u32(e, n)
        source = sample_index(op, lo + i) * n + e - i * n
        acts[op[Y] + lo * n + e] = const_like(acts, x[source]) * scale


def _copy_features(op, params, grads, acts, deltas, lo, hi):
    """The same for features lo ≤ j < hi of all samples of the batch."""
    x = as_pointer(context(op, SOURCE), DTYPE)
    scale = const_like(acts, float_attr(op, COPY.scale))
    line = lanes(x) * (CACHE_LINE // VECTOR_BYTES)
    n, batch = op[N_OUT], context(op, SAMPLES)
    for i in range(batch):
        if context(op, START) + batch + i < context(op, PREFETCH_LIMIT):
            upcoming = sample_index(op, batch + i) * n
            for j in range(lo, hi, line):
                prefetch(ptr_add(x, upcoming + j))
        source, y = sample_index(op, i) * n, op[Y] + i * n
        for j in range(lo, hi):
            acts[y + j] = const_like(acts, x[source + j]) * scale


def _copy_features_cuda(op, params, grads, acts, deltas, lo, hi):
    x, n = as_pointer(context(op, SOURCE), DTYPE), op[N_OUT]
    scale = const_like(acts, float_attr(op, COPY.scale))
    for e in range(thread_rank(), (hi - lo) * context(op, SAMPLES), num_threads()):
        i = div_u32(e, hi - lo)
        j = lo + e - i * (hi - lo)
        acts[op[Y] + i * n + j] = const_like(acts, x[sample_index(op, i) * n + j]) * scale


# --- sparse rows, for each dtype --------------------------------------------------------------


@inline
def _gather_row(op, acts, values, i, lo, hi):
    """Write features lo ≤ j < hi of sample i of the batch, times a constant, into acts[y]."""
    columns = as_pointer(context(op, INPUT_COLUMNS), np.int32)
    starts = as_pointer(context(op, INPUT_STARTS), np.int64)
    scale = const_like(acts, float_attr(op, COPY.scale))
    y, sample = op[Y] + i * op[N_OUT], sample_index(op, i)
    for j in range(lo, hi):
        acts[y + j] = const_like(acts, 0) * scale
    for k in range(starts[sample], starts[sample + 1]):
        if lo <= columns[k] < hi:
            acts[y + columns[k]] = const_like(acts, values[k]) * scale


@inline
def _gather_element(op, acts, values, i, j):
    """The same for one element, found by bisection of its row."""
    columns = as_pointer(context(op, INPUT_COLUMNS), np.int32)
    starts = as_pointer(context(op, INPUT_STARTS), np.int64)
    sample, found = sample_index(op, i), const_like(acts, 0)
    first, last = starts[sample], starts[sample + 1]
    while first < last:
        middle = (first + last) >> 1
        if columns[middle] < j:
            first = middle + 1
        else:
            last = middle
    if first < starts[sample + 1] and columns[first] == j:
        found = const_like(acts, values[first])
    acts[op[Y] + i * op[N_OUT] + j] = found * const_like(acts, float_attr(op, COPY.scale))


def _gather(op, params, grads, acts, deltas, lo, hi):
    """Write samples lo ≤ i < hi, whose rows are sparse, times a constant, into acts[y]."""
    values = as_pointer(context(op, INPUTS), DTYPE)
    for i in range(lo, hi):
        _gather_row(op, acts, values, i, 0, op[N_OUT])


def _gather_cuda(op, params, grads, acts, deltas, lo, hi):
    values, n = as_pointer(context(op, INPUTS), DTYPE), op[N_OUT]
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        i = div_u32(e, n)
        _gather_element(op, acts, values, lo + i, e - i * n)


def _gather_features(op, params, grads, acts, deltas, lo, hi):
    """The same for features lo ≤ j < hi of all samples of the batch."""
    values = as_pointer(context(op, INPUTS), DTYPE)
    for i in range(context(op, SAMPLES)):
        _gather_row(op, acts, values, i, lo, hi)


def _gather_features_cuda(op, params, grads, acts, deltas, lo, hi):
    values = as_pointer(context(op, INPUTS), DTYPE)
    for e in range(thread_rank(), (hi - lo) * context(op, SAMPLES), num_threads()):
        i = div_u32(e, hi - lo)
        _gather_element(op, acts, values, i, lo + e - i * (hi - lo))


def for_dtype(dtype: str, name: str, column: int, cpu, cuda):
    """The kernel that copies data of a dtype, from the templates for CPU and GPU."""
    values = {"SOURCE": column, "DTYPE": getattr(np, dtype)}
    names = {key: value for key, value in values.items() if key in cpu.__code__.co_names}
    made = kernel(specialize(cpu, f"{name}_{dtype}", **names))
    return made.cuda(specialize(cuda, f"{name}_{dtype}", **names))


inputs_float32, inputs_float64, inputs_uint8 = (
    for_dtype(dtype, "inputs", INPUTS, _copy, _copy_cuda)
    for dtype in ("float32", "float64", "uint8")
)
features_float32, features_float64, features_uint8 = (
    for_dtype(dtype, "features", INPUTS, _copy_features, _copy_features_cuda)
    for dtype in ("float32", "float64", "uint8")
)
sparse_float32, sparse_float64 = (
    for_dtype(dtype, "sparse", INPUTS, _gather, _gather_cuda) for dtype in ("float32", "float64")
)
sparse_features_float32, sparse_features_float64 = (
    for_dtype(dtype, "sparse_features", INPUTS, _gather_features, _gather_features_cuda)
    for dtype in ("float32", "float64")
)
targets_float32, targets_float64 = (
    for_dtype(dtype, "targets", TARGETS, _copy, _copy_cuda) for dtype in ("float32", "float64")
)


# --- special cases ----------------------------------------------------------------------------


@kernel
def inputs_zero_copy(op, params, grads, acts, deltas, lo, hi):
    """Let the next op read samples of the network's dtype, in their order, without a copy.

    A NaN or infinity among them sets the column NONFINITE.
    """
    n, x = op[N_OUT], as_pointer(context(op, INPUTS), acts)
    first, total = context(op, START) * n, const_like(acts, 0)
    for j in range(first + lo * n, first + hi * n):
        total += x[j] * const_like(acts, 0)
    if total != const_like(acts, 0):
        op[NONFINITE] = 1
    next_op = ptr_add(op, (op[READER] - op[INDEX]) * ROW_SIZE)
    next_op[BASE_X] = (address(x) - address(acts)) // (VECTOR_BYTES // lanes(acts)) + first
    next_op[SAMPLE_STRIDE_X] = 0


@inputs_zero_copy.cuda
def inputs_zero_copy(op, params, grads, acts, deltas, lo, hi):
    x, n = as_pointer(context(op, INPUTS), acts), op[N_OUT]
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        i = div_u32(e, n)
        acts[op[Y] + lo * n + e] = x[sample_index(op, lo + i) * n + e - i * n]


@kernel(independent=True)
def targets_int64(op, params, grads, acts, deltas, lo, hi):
    """Write class labels as one-hot rows; a single output takes the label 0 or 1 itself.

    A step without a label has a row of zeros.
    """
    labels, count = as_pointer(context(op, TARGETS), np.int64), op[LABELS.labels]
    n = op[N_OUT] // count
    for i in range(lo, hi):
        for s in range(count):
            label, y = labels[sample_index(op, i) * count + s], op[Y] + (i * count + s) * n
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
        first, x = (context(op, START) + i) * n, op[X] + i * n
        for j in range(n):
            outputs[first + j] = acts[x + j]


@write_outputs.cuda
def write_outputs(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    outputs = ptr_add(as_pointer(context(op, OUTPUTS), acts), (context(op, START) + lo) * n)
    for e in range(thread_rank(), (hi - lo) * n, num_threads()):
        outputs[e] = acts[op[X] + lo * n + e]


_FEATURES = {
    "float32": features_float32,
    "float64": features_float64,
    "uint8": features_uint8,
    "sparse_float32": sparse_features_float32,
    "sparse_float64": sparse_features_float64,
}
_INPUTS = {
    "float32": inputs_float32,
    "float64": inputs_float64,
    "uint8": inputs_uint8,
    "sparse_float32": sparse_float32,
    "sparse_float64": sparse_float64,
}
_TARGETS = {"float32": targets_float32, "float64": targets_float64, "int64": targets_int64}
_NAMES = {dtype: dtype.name for dtype in READ_AS_THEY_ARE}


def layout(x) -> str:
    """Return how inputs lie in memory, by which executors and their kernels are chosen.

    It is the name of their dtype, with "sparse_" in front for SparseRows.
    """
    name = _NAMES[x.dtype]
    return f"sparse_{name}" if isinstance(x, SparseRows) else name


def inference_layout(x) -> str:
    """Return the same for inputs that are only read, with RARE in front where it holds."""
    if isinstance(x, SparseRows) and x.stored < RARE_SHARE * len(x) * x.n_columns:
        return RARE + layout(x)
    return layout(x)


def bind_inputs(executor, x) -> None:
    """Let an executor read the inputs x, an array or SparseRows."""
    sparse = isinstance(x, SparseRows)
    executor.bind(INPUTS, x.values if sparse else x)
    if sparse:
        executor.bind(INPUT_COLUMNS, x.columns)
        executor.bind(INPUT_STARTS, x.starts)


def inputs(n: int, kind, scale: float = 1.0) -> Op:
    """Return the op that copies in samples of n values, times `scale`.

    kind   their `layout`: float32, float64, uint8, sparse_float32 or sparse_float64
    """
    copy, attrs = _INPUTS[str(kind)], COPY.pack(scale=float(scale))
    return Op("Inputs", 0, n, copy, split_k=_FEATURES[str(kind)], attrs=attrs)


def inference_inputs(n: int, kind, network_dtype, scale: float, next_op: Op) -> Op:
    """Return the same for samples that are only read, in their order.

    They are not copied if they have the network's dtype, need no factor, and `next_op` does not
    write in place.
    """
    if str(kind) != str(network_dtype) or scale != 1 or next_op.in_place:
        return inputs(n, str(kind).removeprefix(RARE), scale)
    return Op("Inputs", 0, n, inputs_zero_copy, attrs=ZERO_COPY.pack(nonfinite=0))


def targets(n: int, dtype, labels: int = 1) -> Op:
    """Return the op that copies in n targets per sample: rows, or `labels` labels (int64)."""
    attrs = LABELS.pack(labels=labels) if str(dtype) == "int64" else COPY.pack(scale=1.0)
    return Op("Targets", 0, n, _TARGETS[str(dtype)], side_output=True, attrs=attrs)


def outputs(n: int) -> Op:
    """Return the op that copies n outputs per sample to the caller."""
    return Op("Outputs", n, 0, write_outputs)
