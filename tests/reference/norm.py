"""Twins of the kernels in layers/norm.py."""

import math

import numpy as np

from numbanet.nn.layers.norm import CHANNELS, EPSILON, MOMENTUM
from numbanet.plan.columns import BUFFERS, CHUNKS, N_IN, PARTIAL_GRADS, PARTIAL_STRIDE, SAMPLES, W, X, Y


def places(op, lo, hi, c):
    """Numbers of channel c in samples lo … hi − 1, counted from the first of sample 0."""
    return range(lo * op[N_IN] + c, hi * op[N_IN], op[CHANNELS])


def size(op, shard):
    """Numbers per channel in a shard."""
    n, shards = op.context(SAMPLES), op.context(CHUNKS)
    return (n * (shard + 1) // shards - n * shard // shards) * op[N_IN] // op[CHANNELS]


def shards(op):
    return [shard for shard in range(op.context(CHUNKS)) if size(op, shard)]


def statistics(op, acts, c):
    """(numbers, mean, variance) of a channel over the batch, from what `batch_prepare` left for each shard."""
    sums = [(size(op, k), *acts[op[PARTIAL_GRADS] + k * op[PARTIAL_STRIDE] + np.array([2, 3]) * op[CHANNELS] + c]) for k in shards(op)]
    count = sum(n for n, _, _ in sums)
    mean = sum(n * m for n, m, _ in sums) / count
    return count, mean, sum(squares + n * (m - mean) ** 2 for n, m, squares in sums) / count


def batch_statistics(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS] if lo < hi else 0):
        numbers = np.array([acts[op[X] + p] for p in places(op, lo, hi, c)])
        grads[2 * op[CHANNELS] + c] = numbers.mean()
        grads[3 * op[CHANNELS] + c] = ((numbers - numbers.mean()) ** 2).sum()


def batch_forward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS] if lo < hi else 0):
        count, mean, variance = statistics(op, acts, c)
        _normalize(op, params, acts, lo, hi, c, mean, variance)
        if lo == 0:  # once in a batch
            r, m = op[BUFFERS] + c, op.float_attr(MOMENTUM)
            params[r] = (1 - m) * params[r] + m * mean
            r += op[CHANNELS]
            params[r] = (1 - m) * params[r] + m * variance * count / (count - 1)


def _normalize(op, params, acts, lo, hi, c, mean, variance):
    for p in places(op, lo, hi, c):
        hat = (acts[op[X] + p] - mean) / math.sqrt(variance + op.float_attr(EPSILON))
        acts[op[Y] + p] = params[op[W] + c] * hat + params[op[W] + op[CHANNELS] + c]


def _sums(op, grads, acts, deltas, lo, hi, c, mean, variance):
    for p in places(op, lo, hi, c):
        grads[op[W] + c] += deltas[op[Y] + p] * (acts[op[X] + p] - mean) / math.sqrt(variance + op.float_attr(EPSILON))
        grads[op[W] + op[CHANNELS] + c] += deltas[op[Y] + p]


def batch_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS]):
        _, mean, variance = statistics(op, acts, c)
        _sums(op, grads, acts, deltas, lo, hi, c, mean, variance)


def batch_backward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS]):
        count, mean, variance = statistics(op, acts, c)
        deviation = math.sqrt(variance + op.float_attr(EPSILON))
        weighted = sum(acts[op[PARTIAL_GRADS] + k * op[PARTIAL_STRIDE] + c] for k in range(op.context(CHUNKS))) / count
        plain = sum(acts[op[PARTIAL_GRADS] + k * op[PARTIAL_STRIDE] + op[CHANNELS] + c] for k in range(op.context(CHUNKS))) / count
        for p in places(op, lo, hi, c):
            hat = (acts[op[X] + p] - mean) / deviation
            deltas[op[X] + p] = params[op[W] + c] / deviation * (deltas[op[Y] + p] - plain - hat * weighted)


def _running(op, params, c):
    return params[op[BUFFERS] + c], params[op[BUFFERS] + op[CHANNELS] + c]


def running_forward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS]):
        _normalize(op, params, acts, lo, hi, c, *_running(op, params, c))


def running_backward(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS]):
        for p in places(op, lo, hi, c):
            deltas[op[X] + p] = params[op[W] + c] * deltas[op[Y] + p] / math.sqrt(_running(op, params, c)[1] + op.float_attr(EPSILON))


def running_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for c in range(op[CHANNELS]):
        _sums(op, grads, acts, deltas, lo, hi, c, *_running(op, params, c))


def _groups(op, lo, hi):
    """Where each run of channels begins, and the channels in it."""
    return [(p, range(op[CHANNELS])) for p in range(lo * op[N_IN], hi * op[N_IN], op[CHANNELS])]


def _hats(op, acts, p):
    """(x̂ of each channel of a run, √(σ² + ε))"""
    numbers = np.array([acts[op[X] + p + c] for c in range(op[CHANNELS])])
    deviation = math.sqrt(numbers.var() + op.float_attr(EPSILON))
    return (numbers - numbers.mean()) / deviation, deviation


def layer_forward(op, params, grads, acts, deltas, lo, hi):
    for p, channels in _groups(op, lo, hi):
        hats, _ = _hats(op, acts, p)
        for c in channels:
            acts[op[Y] + p + c] = params[op[W] + c] * hats[c] + params[op[W] + len(channels) + c]


def layer_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = Jᵀ g with the Jacobian (δ − 1/c − x̂ x̂ᵀ/c) / √(σ² + ε) written out"""
    for p, channels in _groups(op, lo, hi):
        hats, deviation = _hats(op, acts, p)
        g = [params[op[W] + c] * deltas[op[Y] + p + c] for c in channels]
        for c in channels:
            deltas[op[X] + p + c] = sum(
                g[k] * ((k == c) - 1 / len(channels) - hats[k] * hats[c] / len(channels)) for k in channels) / deviation


def layer_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for p, channels in _groups(op, lo, hi):
        hats, _ = _hats(op, acts, p)
        for c in channels:
            grads[op[W] + c] += deltas[op[Y] + p + c] * hats[c]
            grads[op[W] + len(channels) + c] += deltas[op[Y] + p + c]
