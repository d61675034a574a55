"""Reference implementations of the kernels in steering.py."""

from numbanet.nn.steering import COMMON, STEERING


def clip(op, params, grads, state, _, lo, hi):
    factor, most = op.float_attr(STEERING.gradient_factor), op.float_attr(STEERING.clip_value)
    for i in range(lo, hi):
        grads[i] = min(most, max(-most, factor * grads[i]))


def decay(op, params, grads, state, _, lo, hi):
    rate, weight_decay = op.float_attr(COMMON.learning_rate), op.float_attr(STEERING.weight_decay)
    for i in range(lo, hi):
        params[i] = params[i] - rate * weight_decay * params[i]


def average(op, params, grads, state, _, lo, hi):
    d, first = op.float_attr(STEERING.average), op[STEERING.averages]
    for i in range(lo, hi):
        state[first + i] = d * state[first + i] + (1 - d) * params[i]
