"""Twins of the kernels in optimizers.py: the formulas as the papers and PyTorch write them."""

import math

from numbanet.plan.columns import ATTRS, STEP, W


def sgd(op, params, grads, state, _, lo, hi):
    for i in range(lo, hi):
        params[i] = params[i] - op.float_attr(ATTRS) * grads[i]


def sgd_momentum(op, params, grads, state, _, lo, hi):
    rate, momentum = op.float_attr(ATTRS), op.float_attr(ATTRS + 1)
    for i in range(lo, hi):
        state[i] = momentum * state[i] + grads[i]
        params[i] = params[i] - rate * state[i]


def sgd_nesterov(op, params, grads, state, _, lo, hi):
    rate, momentum = op.float_attr(ATTRS), op.float_attr(ATTRS + 1)
    for i in range(lo, hi):
        state[i] = momentum * state[i] + grads[i]
        params[i] = params[i] - rate * (grads[i] + momentum * state[i])


def adagrad(op, params, grads, state, _, lo, hi):
    rate, tiny = op.float_attr(ATTRS), op.float_attr(ATTRS + 1)
    for i in range(lo, hi):
        state[i] = state[i] + grads[i] ** 2
        params[i] = params[i] - rate * grads[i] / (math.sqrt(state[i]) + tiny)


def rmsprop(op, params, grads, state, _, lo, hi):
    rate, alpha, tiny, momentum = (op.float_attr(ATTRS + k) for k in range(4))
    for i in range(lo, hi):
        j = op[W] + i
        state[i] = alpha * state[i] + (1 - alpha) * grads[i] ** 2
        state[j] = momentum * state[j] + grads[i] / (math.sqrt(state[i]) + tiny)
        params[i] = params[i] - rate * state[j]


def adam_begin_step(op, params, grads, state, _, lo, hi):
    """Nothing: the naive update works the corrections out for every parameter."""


def adam(op, params, grads, state, _, lo, hi):
    rate, beta_1, beta_2, tiny, decay = (op.float_attr(ATTRS + k) for k in range(5))
    t = op.context(STEP)
    for i in range(lo, hi):
        j = op[W] + i
        state[i] = beta_1 * state[i] + (1 - beta_1) * grads[i]
        state[j] = beta_2 * state[j] + (1 - beta_2) * grads[i] ** 2
        mean, squares = state[i] / (1 - beta_1**t), state[j] / (1 - beta_2**t)
        params[i] = params[i] - rate * decay * params[i] - rate * mean / (math.sqrt(squares) + tiny)
