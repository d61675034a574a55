"""Reference implementations of the kernels in layers/batch_norm.py."""

import math

import numpy as np

from numbanet.nn.layers.normalization import NORM
from numbanet.plan.columns import (
    BUFFERS,
    CHUNKS,
    N_IN,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    SAMPLES,
    TANGENTS,
    W,
    X,
    Y,
)


def places(op, lo, hi, c):
    """Numbers of channel c in samples lo … hi − 1, counted from the first of sample 0."""
    return range(lo * op[N_IN] + c, hi * op[N_IN], op[NORM.channels])


def size(op, chunk):
    """Numbers per channel in a chunk."""
    n, chunks = op.context(SAMPLES), op.context(CHUNKS)
    return (n * (chunk + 1) // chunks - n * chunk // chunks) * op[N_IN] // op[NORM.channels]


def chunks(op):
    return [chunk for chunk in range(op.context(CHUNKS)) if size(op, chunk)]


def batch_moments(op, acts, c):
    """(count, mean, variance) of a channel over the batch, from what `statistics` left."""
    sums = [
        (
            size(op, k),
            *acts[
                op[PARTIAL_GRADS]
                + k * op[PARTIAL_STRIDE]
                + np.array([2, 3]) * op[NORM.channels]
                + c
            ],
        )
        for k in chunks(op)
    ]
    count = sum(n for n, _, _ in sums)
    mean = sum(n * m for n, m, _ in sums) / count
    return count, mean, sum(m2 + n * (m - mean) ** 2 for n, m, m2 in sums) / count


def statistics(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels] if lo < hi else 0):
        numbers = np.array([acts[op[X] + p] for p in places(op, lo, hi, c)])
        grads[2 * op[NORM.channels] + c] = numbers.mean()
        grads[3 * op[NORM.channels] + c] = ((numbers - numbers.mean()) ** 2).sum()


def forward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels] if lo < hi else 0):
        count, mean, variance = batch_moments(op, acts, c)
        _normalize(op, params, acts, lo, hi, c, mean, variance)
        if lo == 0:  # once in a batch
            r, m = op[BUFFERS] + c, op.float_attr(NORM.momentum)
            params[r] = (1 - m) * params[r] + m * mean
            r += op[NORM.channels]
            params[r] = (1 - m) * params[r] + m * variance * count / (count - 1)


def _normalize(op, params, acts, lo, hi, c, mean, variance):
    for p in places(op, lo, hi, c):
        x_hat = (acts[op[X] + p] - mean) / math.sqrt(variance + op.float_attr(NORM.epsilon))
        acts[op[Y] + p] = params[op[W] + c] * x_hat + params[op[W] + op[NORM.channels] + c]


def _sums(op, grads, acts, deltas, lo, hi, c, mean, variance):
    for p in places(op, lo, hi, c):
        grads[op[W] + c] += (
            deltas[op[Y] + p]
            * (acts[op[X] + p] - mean)
            / math.sqrt(variance + op.float_attr(NORM.epsilon))
        )
        grads[op[W] + op[NORM.channels] + c] += deltas[op[Y] + p]


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        _, mean, variance = batch_moments(op, acts, c)
        _sums(op, grads, acts, deltas, lo, hi, c, mean, variance)


def backward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        count, mean, variance = batch_moments(op, acts, c)
        deviation = math.sqrt(variance + op.float_attr(NORM.epsilon))
        weighted = (
            sum(
                acts[op[PARTIAL_GRADS] + k * op[PARTIAL_STRIDE] + c]
                for k in range(op.context(CHUNKS))
            )
            / count
        )
        plain = (
            sum(
                acts[op[PARTIAL_GRADS] + k * op[PARTIAL_STRIDE] + op[NORM.channels] + c]
                for k in range(op.context(CHUNKS))
            )
            / count
        )
        for p in places(op, lo, hi, c):
            x_hat = (acts[op[X] + p] - mean) / deviation
            deltas[op[X] + p] = (
                params[op[W] + c] / deviation * (deltas[op[Y] + p] - plain - x_hat * weighted)
            )


def _running(op, params, c):
    return params[op[BUFFERS] + c], params[op[BUFFERS] + op[NORM.channels] + c]


def running_forward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        _normalize(op, params, acts, lo, hi, c, *_running(op, params, c))


def running_backward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        for p in places(op, lo, hi, c):
            deltas[op[X] + p] = (
                params[op[W] + c]
                * deltas[op[Y] + p]
                / math.sqrt(_running(op, params, c)[1] + op.float_attr(NORM.epsilon))
            )


def running_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        _sums(op, grads, acts, deltas, lo, hi, c, *_running(op, params, c))


def running_tangent(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        deviation = math.sqrt(_running(op, params, c)[1] + op.float_attr(NORM.epsilon))
        for p in places(op, lo, hi, c):
            deltas[op[Y] + p] = params[op[W] + c] * deltas[op[X] + p] / deviation


def running_second(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[NORM.channels]):
        deviation = math.sqrt(_running(op, params, c)[1] + op.float_attr(NORM.epsilon))
        for p in places(op, lo, hi, c):
            x_dot = acts[op.context(TANGENTS) + op[X] + p]
            grads[op[W] + c] += deltas[op[Y] + p] * x_dot / deviation
