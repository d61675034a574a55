"""Reference implementations of the kernels in optimizers.py: formulas as in the papers."""

import math

from numbanet.nn.optimizers import ADAGRAD, ADAM, N_STATE, RMSPROP, SGD_ROW
from numbanet.plan.columns import STEP


def sgd(op, params, grads, state, _, lo, hi):
    for i in range(lo, hi):
        params[i] = params[i] - op.float_attr(SGD_ROW.learning_rate) * grads[i]


def sgd_momentum(op, params, grads, state, _, lo, hi):
    lr, momentum = op.float_attr(SGD_ROW.learning_rate), op.float_attr(SGD_ROW.momentum)
    for i in range(lo, hi):
        state[i] = momentum * state[i] + grads[i]
        params[i] = params[i] - lr * state[i]


def sgd_nesterov(op, params, grads, state, _, lo, hi):
    lr, momentum = op.float_attr(SGD_ROW.learning_rate), op.float_attr(SGD_ROW.momentum)
    for i in range(lo, hi):
        state[i] = momentum * state[i] + grads[i]
        params[i] = params[i] - lr * (grads[i] + momentum * state[i])


def adagrad(op, params, grads, state, _, lo, hi):
    lr, eps = op.float_attr(ADAGRAD.learning_rate), op.float_attr(ADAGRAD.epsilon)
    for i in range(lo, hi):
        state[i] = state[i] + grads[i] ** 2
        params[i] = params[i] - lr * grads[i] / (math.sqrt(state[i]) + eps)


def rmsprop(op, params, grads, state, _, lo, hi):
    lr, alpha = op.float_attr(RMSPROP.learning_rate), op.float_attr(RMSPROP.alpha)
    eps, momentum = op.float_attr(RMSPROP.epsilon), op.float_attr(RMSPROP.momentum)
    for i in range(lo, hi):
        j = op[N_STATE] + i
        state[i] = alpha * state[i] + (1 - alpha) * grads[i] ** 2
        state[j] = momentum * state[j] + grads[i] / (math.sqrt(state[i]) + eps)
        params[i] = params[i] - lr * state[j]


def adam_begin_step(op, params, grads, state, _, lo, hi):
    """Nothing: the naive update works the corrections out for every parameter."""


def epsilon_hat_begin_step(op, params, grads, state, _, lo, hi):
    """ε √(1 − β₂ᵗ) beside the corrected √v is ε beside √v as it is."""
    op.set_float_attr(ADAM.v_correction, 1.0)


def adam(op, params, grads, state, _, lo, hi):
    lr, decay = op.float_attr(ADAM.learning_rate), op.float_attr(ADAM.weight_decay)
    beta_1, beta_2, eps = (op.float_attr(k) for k in (ADAM.beta_1, ADAM.beta_2, ADAM.epsilon))
    t = op.context(STEP)
    for i in range(lo, hi):
        j = op[N_STATE] + i
        state[i] = beta_1 * state[i] + (1 - beta_1) * grads[i]
        state[j] = beta_2 * state[j] + (1 - beta_2) * grads[i] ** 2
        mean, squares = state[i] / (1 - beta_1**t), state[j] / (1 - beta_2**t)
        hat = math.sqrt(1 - beta_2**t) if op.float_attr(ADAM.v_correction) == 1 else 1
        params[i] -= lr * decay * params[i] + lr * mean / (math.sqrt(squares) + eps / hat)
