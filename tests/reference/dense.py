"""Reference implementations of the kernels in nn/layers/dense.py."""

from numbanet.nn.layers.dense import LAYOUT
from numbanet.plan.columns import (
    N_IN,
    N_OUT,
    N_SPLIT_K,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    SAMPLES,
    W,
    X,
    Y,
)


def _rows(op, lo, hi):
    """Where each row of the samples begins in the input and in the output."""
    rows = range(lo * op[LAYOUT.rows], hi * op[LAYOUT.rows])
    return [(op[X] + i * op[LAYOUT.n_in], op[Y] + i * op[LAYOUT.stride]) for i in rows]


def forward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[LAYOUT.n_in], op[LAYOUT.n_out]
    for x, y in _rows(op, lo, hi):
        for j in range(n_out):
            z = params[op[W] + n_in * n_out + j] if op[LAYOUT.bias] else 0.0
            for k in range(n_in):
                z += acts[x + k] * params[op[W] + k * n_out + j]
            acts[y + j] = z


def split_k(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_IN], op[N_OUT]
    for i in range(op.context(SAMPLES)):
        for j in range(n_out):
            z = 0.0
            for k in range(lo, hi):
                z += acts[op[X] + i * n_in + k] * params[op[W] + k * n_out + j]
            grads[i * n_out + j] = z


def reduce_split_k(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_IN], op[N_OUT]
    for i in range(lo, hi):
        for j in range(n_out):
            z = params[op[W] + n_in * n_out + j] if op[LAYOUT.bias] else 0.0
            for part in range(N_SPLIT_K):
                z += acts[op[PARTIAL_GRADS] + part * op[PARTIAL_STRIDE] + i * n_out + j]
            acts[op[Y] + i * n_out + j] = z


def backward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[LAYOUT.n_in], op[LAYOUT.n_out]
    for x, y in _rows(op, lo, hi):
        for k in range(n_in):
            da = 0.0
            for j in range(n_out):
                da += deltas[y + j] * params[op[W] + k * n_out + j]
            deltas[x + k] = da


def gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_IN], op[N_OUT]
    for k in range(lo, hi):
        for j in range(n_out):
            dw = 0.0
            for i in range(op.context(SAMPLES)):
                a = acts[op[X] + i * n_in + k] if k < n_in else 1.0
                dw += a * deltas[op[Y] + i * n_out + j]
            grads[op[W] + k * n_out + j] = dw


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[LAYOUT.n_in], op[LAYOUT.n_out]
    for k in range(n_in + op[LAYOUT.bias]):
        for j in range(n_out):
            for x, y in _rows(op, lo, hi):
                a = acts[x + k] if k < n_in else 1.0
                grads[op[W] + k * n_out + j] += a * deltas[y + j]


backward_row, accumulate_row = backward, accumulate_gradient
forward_single, accumulate_single = forward, accumulate_gradient
