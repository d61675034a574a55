"""Twins of the kernels in layers/dense.py."""

from numbanet.plan.columns import COUNT, N_X, N_Y, OWN, PARTIALS, SAMPLES, SPLITS, W, X, Y


def forward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    for i in range(lo, hi):
        for j in range(n_out):
            z = params[op[W] + n_in * n_out + j] if op[OWN] else 0.0
            for k in range(n_in):
                z += acts[op[X] + i * n_in + k] * params[op[W] + k * n_out + j]
            acts[op[Y] + i * n_out + j] = z


def split(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    for i in range(op.clock(SAMPLES)):
        for j in range(n_out):
            grads[i * n_out + j] = sum(acts[op[X] + i * n_in + k] * params[op[W] + k * n_out + j] for k in range(lo, hi))


def joined(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    for i in range(lo, hi):
        for j in range(n_out):
            z = params[op[W] + n_in * n_out + j] if op[OWN] else 0.0
            for part in range(SPLITS):
                z += acts[op[PARTIALS] + part * op[COUNT] + i * n_out + j]
            acts[op[Y] + i * n_out + j] = z


def backward(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    for i in range(lo, hi):
        for k in range(n_in):
            da = 0.0
            for j in range(n_out):
                da += deltas[op[Y] + i * n_out + j] * params[op[W] + k * n_out + j]
            deltas[op[X] + i * n_in + k] = da


def gradient(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    for k in range(lo, hi):
        for j in range(n_out):
            dw = 0.0
            for i in range(op.clock(SAMPLES)):
                a = acts[op[X] + i * n_in + k] if k < n_in else 1.0
                dw += a * deltas[op[Y] + i * n_out + j]
            grads[op[W] + k * n_out + j] = dw


def partial(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out = op[N_X], op[N_Y]
    for k in range(n_in + op[OWN]):
        for j in range(n_out):
            for i in range(lo, hi):
                a = acts[op[X] + i * n_in + k] if k < n_in else 1.0
                grads[op[W] + k * n_out + j] += a * deltas[op[Y] + i * n_out + j]
