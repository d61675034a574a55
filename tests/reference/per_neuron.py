"""Twins of the kernels in layers/per_neuron.py."""

import math

from numbanet.plan.columns import ATTRS, N_OUT, Y
from reference.activations import sigmoid


def _neurons(op):
    """(kind, slope) for each neuron of a row that lists runs of neurons."""
    neurons = []
    for run in range(op[ATTRS]):
        kind, last, slope = op[ATTRS + 1 + 3 * run], op[ATTRS + 2 + 3 * run], op.float_attr(ATTRS + 3 + 3 * run)
        neurons += [(kind, slope)] * (last - len(neurons))
    return neurons


def per_neuron_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, (kind, slope) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_OUT] + j
            z = acts[place]
            acts[place] = [z, sigmoid(z), math.tanh(z), max(z, 0), z if z > 0 else slope * z, float(z > 0)][kind]


def per_neuron_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, (kind, slope) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_OUT] + j
            a = acts[place]
            deltas[place] *= [1, a * (1 - a), 1 - a * a, float(a > 0), 1 if a > 0 else slope][kind]
