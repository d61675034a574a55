"""Twins of the kernels in layers/window.py."""

from numbanet.nn.layers import window as at
from numbanet.plan.columns import N_IN, N_OUT, X, Y


def inside(op):
    """Where each number of the picture lies in the padded picture."""
    return [(h + op[at.TOP]) * op[at.PADDED_LINE] + op[at.BEFORE] + j for h in range(op[at.HEIGHT]) for j in range(op[at.LINE])]


def pad_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for place in range(op[N_OUT]):
            acts[op[Y] + i * op[N_OUT] + place] = 0
        for j, place in enumerate(inside(op)):
            acts[op[Y] + i * op[N_OUT] + place] = acts[op[X] + i * op[N_IN] + j]


def pad_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, place in enumerate(inside(op)):
            deltas[op[X] + i * op[N_IN] + j] = deltas[op[Y] + i * op[N_OUT] + place]
