"""Reference implementations of the kernels in nn/layers/pool2d.py."""

import math

from numbanet.nn.layers.pool2d import GEOMETRY
from numbanet.plan.columns import N_IN, N_OUT, TANGENTS, X, Y


def windows(op, i):
    """(output, [inputs of its window, row by row]) of sample i."""
    height, width, channels = op[GEOMETRY.height], op[GEOMETRY.width], op[GEOMETRY.channels]
    for out_row in range(op[GEOMETRY.out_height]):
        for out_col in range(op[GEOMETRY.out_width]):
            for c in range(channels):
                top = out_row * op[GEOMETRY.stride_row] - op[GEOMETRY.top]
                left = out_col * op[GEOMETRY.stride_col] - op[GEOMETRY.left]
                rows = [top + r for r in range(op[GEOMETRY.size_h])]
                cols = [left + s for s in range(op[GEOMETRY.size_w])]
                pixel = out_row * op[GEOMETRY.out_width] + out_col
                yield (
                    op[Y] + i * op[N_OUT] + pixel * channels + c,
                    [
                        op[X] + i * op[N_IN] + (row * width + col) * channels + c
                        for row in rows
                        if 0 <= row < height
                        for col in cols
                        if 0 <= col < width
                    ],
                )


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


def lp_forward(op, params, grads, acts, deltas, lo, hi):
    p = op.float_attr(GEOMETRY.power)
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            acts[y] = sum(abs(acts[x]) ** p for x in inputs) ** (1 / p)


def lp_backward(op, params, grads, acts, deltas, lo, hi):
    p = op.float_attr(GEOMETRY.power)
    for i in range(lo, hi):
        clear(op, deltas, i)
        for y, inputs in windows(op, i):
            for x in inputs:
                if acts[x] != 0:
                    slope = math.copysign((abs(acts[x]) / acts[y]) ** (p - 1), acts[x])
                    deltas[x] += deltas[y] * slope


def max_tangent(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            deltas[y] = deltas[max(inputs, key=lambda x: acts[x])]


def lp_tangent(op, params, grads, acts, deltas, lo, hi):
    p = op.float_attr(GEOMETRY.power)
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            slopes = [(abs(acts[x]) / acts[y]) ** (p - 1) if acts[x] else 0 for x in inputs]
            signed = [math.copysign(one, acts[x]) for one, x in zip(slopes, inputs, strict=True)]
            deltas[y] = sum(one * deltas[x] for one, x in zip(signed, inputs, strict=True))


def lp_second_backward(op, params, grads, acts, deltas, lo, hi):
    p, tangents = op.float_attr(GEOMETRY.power), op.context(TANGENTS)
    for i in range(lo, hi):
        for y, inputs in windows(op, i):
            for x in inputs:
                ratio, sign = abs(acts[x]) / acts[y], math.copysign(1, acts[x])
                change = ratio ** (p - 2) * acts[tangents + x]
                change -= sign * ratio ** (p - 1) * acts[tangents + y]
                deltas[tangents + x] += deltas[y] * (p - 1) / acts[y] * change
