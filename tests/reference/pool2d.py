"""Twins of the kernels in layers/pool2d.py."""

from numbanet.nn.layers import pool_geometry as at
from numbanet.plan.columns import N_IN, N_OUT, X, Y


def windows(op, i):
    """(output, [inputs of its window, row by row]) of sample i."""
    for h in range(op[at.OUT_HEIGHT]):
        for w in range(op[at.OUT_WIDTH]):
            for c in range(op[at.CHANNELS]):
                lines = [h * op[at.STRIDE_V] - op[at.TOP] + r for r in range(op[at.ROWS])]
                columns = [w * op[at.STRIDE_H] - op[at.LEFT] + s for s in range(op[at.COLUMNS])]
                yield (op[Y] + i * op[N_OUT] + (h * op[at.OUT_WIDTH] + w) * op[at.CHANNELS] + c,
                       [op[X] + i * op[N_IN] + (line * op[at.WIDTH_IN] + column) * op[at.CHANNELS] + c
                        for line in lines if 0 <= line < op[at.HEIGHT]
                        for column in columns if 0 <= column < op[at.WIDTH_IN]])


def clear(op, deltas, i):
    for x in range(op[X] + i * op[N_IN], op[X] + i * op[N_IN] + op[N_IN]):
        deltas[x] = 0


def max_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            acts[y] = max(acts[x] for x in inputs)


def max_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        clear(op, deltas, i)
        for y, inputs in windows(op, i):
            deltas[max(inputs, key=lambda x: acts[x])] += deltas[y]  # the first of the largest


def mean_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            acts[y] = sum(acts[x] for x in inputs) / len(inputs)


def mean_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        clear(op, deltas, i)
        for y, inputs in windows(op, i):
            for x in inputs:
                deltas[x] += deltas[y] / len(inputs)
