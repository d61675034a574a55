"""Twins of the kernels in gather.py. They read the data as arrays, in op.data."""

from numbanet.plan.columns import INPUTS, N_X, N_Y, ORDER, OUTPUTS, SAMPLES, START, TARGETS, X, Y


def _index(op, i):
    """Which sample of the data is sample i of the batch."""
    place = op.clock(START) + i
    return place if op.data[ORDER] is None else int(op.data[ORDER][place])


def _rows(op, data, acts, lo, hi, divisor=1):
    for i in range(lo, hi):
        row = data[_index(op, i)].reshape(-1)
        for j in range(op[N_Y]):
            acts[op[Y] + i * op[N_Y] + j] = float(row[j]) / divisor


def inputs_float32(op, params, grads, acts, deltas, lo, hi):
    _rows(op, op.data[INPUTS], acts, lo, hi)


def inputs_float64(op, params, grads, acts, deltas, lo, hi):
    _rows(op, op.data[INPUTS], acts, lo, hi)


def inputs_uint8(op, params, grads, acts, deltas, lo, hi):
    _rows(op, op.data[INPUTS], acts, lo, hi, 255)


def _columns(op, acts, lo, hi, divisor=1):
    for i in range(op.clock(SAMPLES)):
        row = op.data[INPUTS][_index(op, i)].reshape(-1)
        for j in range(lo, hi):
            acts[op[Y] + i * op[N_Y] + j] = float(row[j]) / divisor


def columns_float32(op, params, grads, acts, deltas, lo, hi):
    _columns(op, acts, lo, hi)


def columns_float64(op, params, grads, acts, deltas, lo, hi):
    _columns(op, acts, lo, hi)


def columns_uint8(op, params, grads, acts, deltas, lo, hi):
    _columns(op, acts, lo, hi, 255)


def inputs_in_place(op, params, grads, acts, deltas, lo, hi):
    _rows(op, op.data[INPUTS], acts, lo, hi)


def targets_float32(op, params, grads, acts, deltas, lo, hi):
    _rows(op, op.data[TARGETS], acts, lo, hi)


def targets_float64(op, params, grads, acts, deltas, lo, hi):
    _rows(op, op.data[TARGETS], acts, lo, hi)


def targets_int64(op, params, grads, acts, deltas, lo, hi):
    n = op[N_Y]
    for i in range(lo, hi):
        label = int(op.data[TARGETS][_index(op, i)])
        for j in range(n):
            acts[op[Y] + i * n + j] = label if n == 1 else float(j == label)


def scatter_outputs(op, params, grads, acts, deltas, lo, hi):
    n = op[N_X]
    for i in range(lo, hi):
        for j in range(n):
            op.data[OUTPUTS][op.clock(START) + i].reshape(-1)[j] = acts[op[X] + i * n + j]
