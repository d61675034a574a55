"""Reference implementations of the kernels in losses.py."""

import math

import numpy as np

from numbanet.nn.losses import CORRECT, HUBER, MISSING, QUANTILE, STEPS
from numbanet.plan.columns import AUX, N_IN, N_OUT, SAMPLES, WEIGHTS, X, Y
from reference.data import sample_index, sequence_length


def _pairs(op, acts, i):
    """Outputs and targets of sample i."""
    n = op[N_IN]
    return [(acts[op[X] + i * n + j], acts[op[AUX] + i * n + j]) for j in range(n)]


def _store(op, deltas, i, values):
    for j, value in enumerate(values):
        deltas[op[X] + i * op[N_IN] + j] = value / op.context(SAMPLES)


def quadratic_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        acts[op[Y] + i] = sum((a - y) ** 2 for a, y in _pairs(op, acts, i)) / 2


def quadratic_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _store(op, deltas, i, [a - y for a, y in _pairs(op, acts, i)])


def mean_squared_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        acts[op[Y] + i] = sum((a - y) ** 2 for a, y in _pairs(op, acts, i)) / op[N_IN]


def mean_squared_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _store(op, deltas, i, [2 * (a - y) / op[N_IN] for a, y in _pairs(op, acts, i)])


def mean_absolute_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        acts[op[Y] + i] = sum(abs(a - y) for a, y in _pairs(op, acts, i)) / op[N_IN]


def mean_absolute_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _store(
            op,
            deltas,
            i,
            [((a > y) * 1.0 - (a < y) * 1.0) / op[N_IN] for a, y in _pairs(op, acts, i)],
        )


def huber_forward(op, params, grads, acts, deltas, lo, hi):
    delta = op.float_attr(HUBER.delta)
    for i in range(lo, hi):
        total = 0.0
        for a, y in _pairs(op, acts, i):
            r = abs(a - y)
            total += r * r / 2 if r <= delta else delta * (r - delta / 2)
        acts[op[Y] + i] = total / op[N_IN]


def huber_backward(op, params, grads, acts, deltas, lo, hi):
    delta = op.float_attr(HUBER.delta)
    for i in range(lo, hi):
        _store(
            op,
            deltas,
            i,
            [min(max(a - y, -delta), delta) / op[N_IN] for a, y in _pairs(op, acts, i)],
        )


def _level(op, j):
    """The level of output j."""
    return op.float_attr(QUANTILE.first_level + j % op[QUANTILE.n_levels])


def quantile_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        pairs = enumerate(_pairs(op, acts, i))
        total = sum(
            max(_level(op, j) * (y - a), (1 - _level(op, j)) * (a - y)) for j, (a, y) in pairs
        )
        acts[op[Y] + i] = total / op[N_IN]


def quantile_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        pairs = enumerate(_pairs(op, acts, i))
        _store(
            op,
            deltas,
            i,
            [((a > y) - _level(op, j)) * (a != y) / op[N_IN] for j, (a, y) in pairs],
        )


def binary_cross_entropy_forward(op, params, grads, acts, deltas, lo, hi):
    """log(1 + eᶻ) − y z, taken apart so that nothing overflows."""
    for i in range(lo, hi):
        acts[op[Y] + i] = sum(
            max(z, 0) + math.log1p(math.exp(-abs(z))) - y * z for z, y in _pairs(op, acts, i)
        )


def binary_cross_entropy_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _store(op, deltas, i, [(1 + math.tanh(z / 2)) / 2 - y for z, y in _pairs(op, acts, i)])


def _log_total(pairs):
    """log Σ eᶻ"""
    z_max = max(z for z, _ in pairs)
    return z_max + math.log(sum(math.exp(z - z_max) for z, _ in pairs))


def cross_entropy_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        pairs = _pairs(op, acts, i)
        total = _log_total(pairs)
        acts[op[Y] + i] = sum(y * (total - z) for z, y in pairs)


def cross_entropy_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        pairs = _pairs(op, acts, i)
        total, y_sum = _log_total(pairs), sum(y for _, y in pairs)
        _store(op, deltas, i, [math.exp(z - total) * y_sum - y for z, y in pairs])


def poisson_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        acts[op[Y] + i] = sum(
            math.exp(z) - y + (y * (math.log(y) - z) if y else 0) for z, y in _pairs(op, acts, i)
        )


def poisson_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        _store(op, deltas, i, [math.exp(z) - y for z, y in _pairs(op, acts, i)])


def hide_missing(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for j in range(n):
            missing = math.isnan(acts[op[AUX] + i * n + j])
            output = op.float_attr(MISSING.neutral) if missing else acts[op[X] + i * n + j]
            acts[op[Y] + i * n + j] = output
            if missing:
                acts[op[AUX] + i * n + j] = 0


def hide_missing_backward(op, params, grads, acts, deltas, lo, hi):
    for j in range(lo * op[N_IN], hi * op[N_IN]):
        deltas[op[X] + j] = deltas[op[Y] + j]


def weigh_deltas(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for j in range(n):
            delta = deltas[op[Y] + i * n + j]
            deltas[op[X] + i * n + j] = op.data[WEIGHTS][sample_index(op, i)] * delta


def weigh_losses(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        acts[op[Y] + i] *= op.data[WEIGHTS][sample_index(op, i)]


def average_deltas(op, params, grads, acts, deltas, lo, hi):
    n, steps = op[N_IN], op[STEPS.steps]
    for i in range(lo, hi):
        length = sequence_length(op, i, steps)
        for j in range(n):
            factor = 1 / length if j < length * n // steps else 0
            if op[STEPS.weighted]:
                factor = op.data[WEIGHTS][sample_index(op, i), j * steps // n]
            deltas[op[X] + i * n + j] = deltas[op[Y] + i * n + j] * factor


def average_losses(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        steps, first = op[STEPS.steps], op[AUX] + i * op[STEPS.steps]
        acts[op[Y] + i] = acts[first : first + sequence_length(op, i, steps)].mean()
        if op[STEPS.weighted]:
            acts[op[Y] + i] = op.data[WEIGHTS][sample_index(op, i)] @ acts[first : first + steps]


def count_correct(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        pairs, n = _pairs(op, acts, i), op[N_IN] // op[CORRECT.steps]
        length = sequence_length(op, i, op[CORRECT.steps]) if op[CORRECT.steps] > 1 else 1
        correct = [_is_correct(op, pairs[s * n : s * n + n]) for s in range(length)]
        weights = op.data.get(WEIGHTS)
        weight = 1 if weights is None else weights[sample_index(op, i)]
        if op[CORRECT.weighted]:
            acts[op[Y] + i] = np.dot(weight[:length], correct)
        else:
            acts[op[Y] + i] = weight * sum(correct) / length


def _is_correct(op, pairs):
    outputs, targets = zip(*pairs, strict=True)
    if len(outputs) == 1:
        return (outputs[0] > op.float_attr(CORRECT.threshold)) == (targets[0] > 0.5)
    return outputs.index(max(outputs)) == targets.index(max(targets))


def _over_time(reference):
    def over_time(op, params, grads, acts, deltas, lo, hi):
        steps = op[N_OUT]
        reference(op, params, grads, acts, deltas, lo * steps, hi * steps)

    return over_time


for _name in (
    "quadratic",
    "mean_squared",
    "mean_absolute",
    "huber",
    "quantile",
    "binary_cross_entropy",
    "cross_entropy",
    "poisson",
):
    for _verb in ("forward", "backward"):
        _stem = f"{_name}_{_verb}"
        globals()[f"{_stem}_over_time"] = _over_time(globals()[_stem])
