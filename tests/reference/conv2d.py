"""Twins of the kernels in layers/conv2d.py."""

from numbanet.nn.layers import conv2d as at
from numbanet.plan.columns import N_IN, N_OUT, N_WEIGHTS, W, X, Y


def terms(op):
    """(output, input, weight) for every product in the convolution of a picture, numbers counted from the first of each."""
    channels, filters = op[at.C_IN] // op[at.GROUPS], op[at.C_OUT] // op[at.GROUPS]
    for h in range(op[at.OUT_HEIGHT]):
        for w in range(op[at.OUT_WIDTH]):
            for o in range(op[at.C_OUT]):
                for r in range(op[at.ROWS]):
                    for s in range(op[at.COLUMNS]):
                        for c in range(channels):
                            line = h * op[at.STRIDE_V] + r * op[at.DILATION_V]
                            column = w * op[at.STRIDE_H] + s * op[at.DILATION_H]
                            channel = o // filters * channels + c
                            yield ((h * op[at.OUT_WIDTH] + w) * op[at.C_OUT] + o,
                                   (line * op[at.WIDTH_IN] + column) * op[at.C_IN] + channel,
                                   ((r * op[at.COLUMNS] + s) * channels + c) * op[at.C_OUT] + o)


def forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for z in range(op[N_OUT]):
            acts[y + z] = params[op[W] + op[N_WEIGHTS] + z % op[at.C_OUT]] if op[at.BIAS] else 0
        for z, a, k in terms(op):
            acts[y + z] += acts[x + a] * params[op[W] + k]


def backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for a in range(op[N_IN]):
            deltas[x + a] = 0
        for z, a, k in terms(op):
            deltas[x + a] += deltas[y + z] * params[op[W] + k]


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        x, y = op[X] + i * op[N_IN], op[Y] + i * op[N_OUT]
        for z, a, k in terms(op):
            grads[op[W] + k] += acts[x + a] * deltas[y + z]
        for z in range(op[N_OUT] if op[at.BIAS] else 0):
            grads[op[W] + op[N_WEIGHTS] + z % op[at.C_OUT]] += deltas[y + z]
