"""References of the kernels in nn/data.py. They read the data as arrays, in op.data."""

from numbanet.io.sparse import SparseRows
from numbanet.nn.data import COPY, LABELS
from numbanet.plan.columns import (
    INPUTS,
    LENGTHS,
    N_IN,
    N_OUT,
    OUTPUTS,
    PERMUTATION,
    SAMPLES,
    START,
    TARGETS,
    X,
    Y,
)


def sample_index(op, i):
    """Which sample of the data is sample i of the batch."""
    place = op.context(START) + i
    return place if op.data[PERMUTATION] is None else int(op.data[PERMUTATION][place])


def sequence_length(op, i, steps):
    """The number of steps of sample i of the batch."""
    lengths = op.data.get(LENGTHS)
    return steps if lengths is None else int(lengths[sample_index(op, i)])


def input_row(op, i):
    """Sample i of the batch, from an array or SparseRows."""
    data, k = op.data[INPUTS], sample_index(op, i)
    return data.dense(slice(k, k + 1))[0] if isinstance(data, SparseRows) else data[k].reshape(-1)


def _targets(op, i):
    return op.data[TARGETS][sample_index(op, i)].reshape(-1)


def _rows(op, row_of, acts, lo, hi, scale):
    for i in range(lo, hi):
        row = row_of(op, i)
        for j in range(op[N_OUT]):
            acts[op[Y] + i * op[N_OUT] + j] = float(row[j]) * scale


def inputs_float32(op, params, grads, acts, deltas, lo, hi):
    _rows(op, input_row, acts, lo, hi, op.float_attr(COPY.scale))


def inputs_float64(op, params, grads, acts, deltas, lo, hi):
    _rows(op, input_row, acts, lo, hi, op.float_attr(COPY.scale))


def inputs_uint8(op, params, grads, acts, deltas, lo, hi):
    _rows(op, input_row, acts, lo, hi, op.float_attr(COPY.scale))


def _copy_features(op, acts, lo, hi):
    scale = op.float_attr(COPY.scale)
    for i in range(op.context(SAMPLES)):
        row = input_row(op, i)
        for j in range(lo, hi):
            acts[op[Y] + i * op[N_OUT] + j] = float(row[j]) * scale


def features_float32(op, params, grads, acts, deltas, lo, hi):
    _copy_features(op, acts, lo, hi)


def features_float64(op, params, grads, acts, deltas, lo, hi):
    _copy_features(op, acts, lo, hi)


def features_uint8(op, params, grads, acts, deltas, lo, hi):
    _copy_features(op, acts, lo, hi)


def sparse_float32(op, params, grads, acts, deltas, lo, hi):
    _rows(op, input_row, acts, lo, hi, op.float_attr(COPY.scale))


def sparse_float64(op, params, grads, acts, deltas, lo, hi):
    _rows(op, input_row, acts, lo, hi, op.float_attr(COPY.scale))


def sparse_features_float32(op, params, grads, acts, deltas, lo, hi):
    _copy_features(op, acts, lo, hi)


def sparse_features_float64(op, params, grads, acts, deltas, lo, hi):
    _copy_features(op, acts, lo, hi)


def inputs_zero_copy(op, params, grads, acts, deltas, lo, hi):
    _rows(op, input_row, acts, lo, hi, 1.0)


def targets_float32(op, params, grads, acts, deltas, lo, hi):
    _rows(op, _targets, acts, lo, hi, 1.0)


def targets_float64(op, params, grads, acts, deltas, lo, hi):
    _rows(op, _targets, acts, lo, hi, 1.0)


def targets_int64(op, params, grads, acts, deltas, lo, hi):
    n = op[N_OUT] // op[LABELS.labels]
    for i in range(lo, hi):
        for s, label in enumerate(_targets(op, i).tolist()):
            for j in range(n):
                place = op[Y] + i * op[N_OUT] + s * n + j
                acts[place] = label if n == 1 else float(j == label)


def write_outputs(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for j in range(n):
            op.data[OUTPUTS][op.context(START) + i].reshape(-1)[j] = acts[op[X] + i * n + j]
