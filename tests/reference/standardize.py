"""Reference implementations of the kernels in layers/standardize.py."""

from numbanet.nn.layers.standardize import STANDARDIZE
from numbanet.plan.columns import BUFFERS, N_OUT, Y


def elements(op, params, lo, hi):
    """(place, mean, deviation) of every element of samples lo ≤ i < hi."""
    channels = op[STANDARDIZE.channels]
    for i in range(lo * op[N_OUT], hi * op[N_OUT]):
        mean = op[BUFFERS] + i % channels
        yield op[Y] + i, params[mean], params[mean + channels]


def forward(op, params, grads, acts, deltas, lo, hi):
    for i, mean, deviation in elements(op, params, lo, hi):
        acts[i] = (acts[i] - mean) / deviation


def backward(op, params, grads, acts, deltas, lo, hi):
    for i, _, deviation in elements(op, params, lo, hi):
        deltas[i] /= deviation


def unscale(op, params, grads, acts, deltas, lo, hi):
    for i, mean, deviation in elements(op, params, lo, hi):
        acts[i] = mean + deviation * acts[i]


def unscale_backward(op, params, grads, acts, deltas, lo, hi):
    for i, _, deviation in elements(op, params, lo, hi):
        deltas[i] *= deviation
