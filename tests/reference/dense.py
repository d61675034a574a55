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


def forward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_IN], op[N_OUT]
    for i in range(lo, hi):
        for j in range(n_out):
            z = params[op[W] + n_in * n_out + j] if op[LAYOUT.bias] else 0.0
            for k in range(n_in):
                z += acts[op[X] + i * n_in + k] * params[op[W] + k * n_out + j]
            acts[op[Y] + i * n_out + j] = z


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
    n_in, n_out = op[N_IN], op[N_OUT]
    for i in range(lo, hi):
        for k in range(n_in):
            da = 0.0
            for j in range(n_out):
                da += deltas[op[Y] + i * n_out + j] * params[op[W] + k * n_out + j]
            deltas[op[X] + i * n_in + k] = da


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
    n_in, n_out = op[N_IN], op[N_OUT]
    for k in range(n_in + op[LAYOUT.bias]):
        for j in range(n_out):
            for i in range(lo, hi):
                a = acts[op[X] + i * n_in + k] if k < n_in else 1.0
                grads[op[W] + k * n_out + j] += a * deltas[op[Y] + i * n_out + j]


backward_row, accumulate_row = backward, accumulate_gradient
