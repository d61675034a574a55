"""Reference implementations of the kernels in layers/activations.py."""

import math

from numbanet.nn.layers.activations import SLOPE, SOFTMAX
from numbanet.plan.columns import N_OUT, TANGENTS, Y


def places(op, lo, hi):
    return range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT])


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def sigmoid_forward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        acts[i] = sigmoid(acts[i])


def sigmoid_backward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        deltas[i] = deltas[i] * acts[i] * (1 - acts[i])


def tanh_forward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        acts[i] = math.tanh(acts[i])


def tanh_backward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        deltas[i] = deltas[i] * (1 - acts[i] ** 2)


def exp_forward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        acts[i] = math.exp(acts[i])


def exp_backward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        deltas[i] = deltas[i] * acts[i]


def relu_forward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        acts[i] = 0 if acts[i] < 0 else acts[i]


def relu_backward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        deltas[i] = deltas[i] if acts[i] > 0 else 0


def leakyrelu_forward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        acts[i] = acts[i] if acts[i] > 0 else op.float_attr(SLOPE.slope) * acts[i]


def leakyrelu_backward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        deltas[i] = deltas[i] if acts[i] > 0 else op.float_attr(SLOPE.slope) * deltas[i]


def step_forward(op, params, grads, acts, deltas, lo, hi):
    for i in places(op, lo, hi):
        acts[i] = 1 if acts[i] > 0 else 0


def rows(op, lo, hi):
    """Where each row of a softmax begins: a sample, or a step of one."""
    return range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], op[SOFTMAX.classes])


def softmax_forward(op, params, grads, acts, deltas, lo, hi):
    for first in rows(op, lo, hi):
        here = range(first, first + op[SOFTMAX.classes])
        z_max = max(acts[j] for j in here)
        powers = [math.exp(acts[j] - z_max) for j in here]
        for j, power in zip(here, powers, strict=True):
            acts[j] = power / sum(powers)


def softmax_backward(op, params, grads, acts, deltas, lo, hi):
    """dzⱼ = Σₖ daₖ aₖ (δⱼₖ − aⱼ), the Jacobian written out."""
    n = op[SOFTMAX.classes]
    for first in rows(op, lo, hi):
        dz = [0.0] * n
        for j in range(n):
            for k in range(n):
                dz[j] += deltas[first + k] * acts[first + k] * ((j == k) - acts[first + j])
        for j in range(n):
            deltas[first + j] = dz[j]


def second(op, acts, deltas, lo, hi, slope):
    """The tangent of dz = da f'(z) where a changes: ȧ da times the derivative of f'(z) by a."""
    tangents = op.context(TANGENTS)
    for i in places(op, lo, hi):
        deltas[tangents + i] += acts[tangents + i] * deltas[i] * slope(acts[i])


def sigmoid_second_backward(op, params, grads, acts, deltas, lo, hi):
    second(op, acts, deltas, lo, hi, lambda a: 1 - 2 * a)


def tanh_second_backward(op, params, grads, acts, deltas, lo, hi):
    second(op, acts, deltas, lo, hi, lambda a: -2 * a)


def exp_second_backward(op, params, grads, acts, deltas, lo, hi):
    second(op, acts, deltas, lo, hi, lambda a: 1)


def softmax_second_backward(op, params, grads, acts, deltas, lo, hi):
    """The tangent of the Jacobian, aₖ (δⱼₖ − aⱼ), written out."""
    n, tangents = op[SOFTMAX.classes], op.context(TANGENTS)
    for first in rows(op, lo, hi):
        for j in range(first, first + n):
            for k in range(first, first + n):
                change = acts[tangents + k] * ((j == k) - acts[j]) - acts[k] * acts[tangents + j]
                deltas[tangents + j] += deltas[k] * change
