"""Twins of the kernels in layers/lppool2d.py."""

import math

from numbanet.nn.layers import pool_geometry as at
from reference.pool2d import clear, windows


def lp_forward(op, params, grads, acts, deltas, lo, hi):
    p = op.float_attr(at.POWER)
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            acts[y] = sum(abs(acts[x]) ** p for x in inputs) ** (1 / p)


def lp_backward(op, params, grads, acts, deltas, lo, hi):
    p = op.float_attr(at.POWER)
    for i in range(lo, hi):
        clear(op, deltas, i)
        for y, inputs in windows(op, i):
            for x in inputs:
                if acts[x] != 0:
                    deltas[x] += deltas[y] * math.copysign((abs(acts[x]) / acts[y]) ** (p - 1), acts[x])
