"""References of the kernels of the tests' own layer, in scale.py."""

from numbanet.plan.columns import N_IN, SAMPLES, W, X, Y


def forward(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            acts[op[Y] + i * n + k] = params[op[W] + k] * acts[op[X] + i * n + k]


def backward(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            deltas[op[X] + i * n + k] = params[op[W] + k] * deltas[op[Y] + i * n + k]


def gradient(op, params, grads, acts, deltas, lo, hi):
    n = op[N_IN]
    for k in range(lo, hi):
        grads[op[W] + k] = sum(
            acts[op[X] + i * n + k] * deltas[op[Y] + i * n + k] for i in range(op.context(SAMPLES))
        )
