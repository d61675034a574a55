"""Reference implementations of the kernels in nn/layers/window.py."""

from numbanet.nn.layers.window import PADDING
from numbanet.plan.columns import N_IN, N_OUT, X, Y


def inside(op):
    """Offset in the padded image of each element of the image."""
    return [
        (row + op[PADDING.top]) * op[PADDING.padded_row_stride] + op[PADDING.left_elements] + j
        for row in range(op[PADDING.height])
        for j in range(op[PADDING.row_stride])
    ]


def pad_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for offset in range(op[N_OUT]):
            acts[op[Y] + i * op[N_OUT] + offset] = 0
        for j, offset in enumerate(inside(op)):
            acts[op[Y] + i * op[N_OUT] + offset] = acts[op[X] + i * op[N_IN] + j]


def pad_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, offset in enumerate(inside(op)):
            deltas[op[X] + i * op[N_IN] + j] = deltas[op[Y] + i * op[N_OUT] + offset]
