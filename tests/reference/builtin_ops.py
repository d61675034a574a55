"""References of the kernels in lowering.py."""

from numbanet.plan.columns import CHUNKS, N_IN, PARAM_COLS, PARTIAL_GRADS, PARTIAL_STRIDE, W, X, Y


def copy_forward(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for j in range(n):
            acts[op[Y] + i * n + j] = acts[op[X] + i * n + j]


def copy_backward(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for j in range(n):
            deltas[op[X] + i * n + j] = deltas[op[Y] + i * n + j]


def reduce_chunks(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[PARAM_COLS], hi * op[PARAM_COLS]):
        grads[op[W] + i] = sum(
            acts[op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] + i]
            for chunk in range(op.context(CHUNKS))
        )
