"""Reference implementations of the kernels in layers/layer_norm.py."""

import math

import numpy as np

from numbanet.nn.layers.normalization import NORM
from numbanet.plan.columns import N_IN, TANGENTS, W, X, Y


def _groups(op, lo, hi):
    """Where each run of channels begins, and the channels in it."""
    return [
        (p, range(op[NORM.channels]))
        for p in range(lo * op[N_IN], hi * op[N_IN], op[NORM.channels])
    ]


def _hats(op, acts, p):
    """(x̂ of each channel of a run, √(σ² + ε))"""
    numbers = np.array([acts[op[X] + p + c] for c in range(op[NORM.channels])])
    deviation = math.sqrt(numbers.var() + op.float_attr(NORM.epsilon))
    return (numbers - numbers.mean()) / deviation, deviation


def forward(op, params, grads, acts, deltas, lo, hi):
    for p, channels in _groups(op, lo, hi):
        hats, _ = _hats(op, acts, p)
        for c in channels:
            acts[op[Y] + p + c] = params[op[W] + c] * hats[c] + params[op[W] + len(channels) + c]


def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = Jᵀ g with the Jacobian (δ − 1/c − x̂ x̂ᵀ/c) / √(σ² + ε) written out"""
    for p, channels in _groups(op, lo, hi):
        hats, deviation = _hats(op, acts, p)
        g = [params[op[W] + c] * deltas[op[Y] + p + c] for c in channels]
        for c in channels:
            deltas[op[X] + p + c] = (
                sum(
                    g[k] * ((k == c) - 1 / len(channels) - hats[k] * hats[c] / len(channels))
                    for k in channels
                )
                / deviation
            )


def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for p, channels in _groups(op, lo, hi):
        hats, _ = _hats(op, acts, p)
        for c in channels:
            grads[op[W] + c] += deltas[op[Y] + p + c] * hats[c]
            grads[op[W] + len(channels) + c] += deltas[op[Y] + p + c]


def _jacobian(hats, deviation):
    """dx̂/dx = (δ − 1/c − x̂ x̂ᵀ/c) / √(σ² + ε)"""
    n = len(hats)
    return (np.eye(n) - 1 / n - np.outer(hats, hats) / n) / deviation


def _run(memory, start, channels):
    """The elements of a run of channels."""
    return np.array([memory[start + c] for c in channels])


def tangent(op, params, grads, acts, deltas, lo, hi):
    for p, channels in _groups(op, lo, hi):
        change = _jacobian(*_hats(op, acts, p)) @ _run(deltas, op[X] + p, channels)
        for c in channels:
            deltas[op[Y] + p + c] = params[op[W] + c] * change[c]


def second_backward(op, params, grads, acts, deltas, lo, hi):
    """The change of the Jacobian, of its x̂ and of its √(σ² + ε), times g"""
    tangents = op.context(TANGENTS)
    for p, channels in _groups(op, lo, hi):
        hats, deviation = _hats(op, acts, p)
        n, x_dot = len(channels), _run(acts, tangents + op[X] + p, channels)
        g = _run(params, op[W], channels) * _run(deltas, op[Y] + p, channels)
        jacobian = _jacobian(hats, deviation)
        hats_dot, deviation_dot = jacobian @ x_dot, hats @ x_dot / n
        change = np.outer(hats_dot, hats) + np.outer(hats, hats_dot)
        found = (-change / n / deviation - jacobian * deviation_dot / deviation) @ g
        for c in channels:
            deltas[tangents + op[X] + p + c] += found[c]


def second_gradient(op, params, grads, acts, deltas, lo, hi):
    for p, channels in _groups(op, lo, hi):
        x_dot = _run(acts, op.context(TANGENTS) + op[X] + p, channels)
        change = _jacobian(*_hats(op, acts, p)) @ x_dot
        for c in channels:
            grads[op[W] + c] += deltas[op[Y] + p + c] * change[c]
