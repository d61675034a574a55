"""Reference implementations of the kernels in nn/layers/embedding.py."""

from numbanet.nn.layers.embedding import TABLE
from numbanet.plan.columns import N_IN, N_OUT, SAMPLES, W, X, Y


def _rows(op, acts, lo, hi):
    """(the row of the table, where its copy begins in the output) for every step."""
    for t in range(lo * op[N_IN], hi * op[N_IN]):
        row = min(max(int(acts[op[X] + t]), 0), op[TABLE.vocabulary] - 1)
        yield row, op[Y] + t * op[TABLE.size]


def forward(op, params, grads, acts, deltas, lo, hi):
    for row, y in _rows(op, acts, lo, hi):
        for j in range(op[TABLE.size]):
            acts[y + j] = params[op[W] + row * op[TABLE.size] + j]


def gradient(op, params, grads, acts, deltas, lo, hi):
    for v in range(lo, hi):
        for j in range(op[TABLE.size]):
            found = [y for row, y in _rows(op, acts, 0, op.context(SAMPLES)) if row == v]
            grads[op[W] + v * op[TABLE.size] + j] = sum(deltas[y + j] for y in found)


def tangent(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_OUT], hi * op[N_OUT]):
        deltas[op[Y] + i] = 0
