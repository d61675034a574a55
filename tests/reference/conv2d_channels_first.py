"""Twins of the kernels in layers/planar.py."""

from numbanet.nn.layers import conv2d_channels_first as at
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, W, X, Y


def weights(op):
    """(weight, filter, distance in the picture) of every weight, the weight counted from the first."""
    for r in range(op[at.ROWS]):
        for s in range(op[at.COLUMNS]):
            for o in range(op[at.FILTERS]):
                far = r * op[at.DILATION_V] * op[at.LINE] + s * op[at.DILATION_H]
                yield (r * op[at.COLUMNS] + s) * op[at.FILTERS] + o, o, far


def forward(op, params, grads, acts, deltas, lo, hi):
    plane = op[N_OUT] // op[at.FILTERS]
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for z in range(op[N_OUT]):
            acts[y + z] = params[op[W] + op[N_WEIGHTS] + z // plane] if op[at.BIAS] else 0
        for k, o, far in weights(op):
            for p in range(op[at.LENGTH]):
                acts[y + o * plane + p] += params[op[W] + k] * acts[x + p + far]


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    plane = op[N_OUT] // op[at.FILTERS]
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for k, o, far in weights(op):
            for p in range(op[at.LENGTH]):
                grads[op[W] + k] += acts[x + p + far] * deltas[y + o * plane + p]
        for o in range(op[at.FILTERS] if op[at.BIAS] else 0):
            for p in range(op[at.LENGTH]):
                grads[op[W] + op[N_WEIGHTS] + o] += deltas[y + o * plane + p]


def windows(op, i):
    """(output, its four inputs, row by row) of sample i."""
    for h in range(op[at.OUT_HEIGHT]):
        for w in range(op[at.OUT_WIDTH]):
            for c in range(op[at.CHANNELS]):
                plane = op[X] + i * op[N_IN] + c * op[at.PLANE_ROWS] * op[at.ROW]
                yield (op[Y] + i * op[N_OUT] + (h * op[at.OUT_WIDTH] + w) * op[at.CHANNELS] + c,
                       [plane + (2 * h + r) * op[at.ROW] + 2 * w + s for r in (0, 1) for s in (0, 1)])


def pool_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            acts[y] = max(acts[x] for x in inputs)


def pool_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for x in range(op[N_IN]):
            deltas[op[X] + i * op[N_IN] + x] = 0
        for y, inputs in windows(op, i):
            deltas[max(inputs, key=lambda x: acts[x])] = deltas[y]  # the first of the largest
