"""Twins of the kernels in lowering.py."""

from numbanet.plan.columns import COUNT, N_X, PARTIALS, SHARDS, UNIT, W, X, Y


def copy_forward(op, params, grads, acts, deltas, lo, hi):
    n = op[N_X]
    for i in range(lo, hi):
        for j in range(n):
            acts[op[Y] + i * n + j] = acts[op[X] + i * n + j]


def copy_backward(op, params, grads, acts, deltas, lo, hi):
    n = op[N_X]
    for i in range(lo, hi):
        for j in range(n):
            deltas[op[X] + i * n + j] = deltas[op[Y] + i * n + j]


def sum_partials(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[UNIT], hi * op[UNIT]):
        grads[op[W] + i] = sum(acts[op[PARTIALS] + shard * op[COUNT] + i] for shard in range(op.clock(SHARDS)))
