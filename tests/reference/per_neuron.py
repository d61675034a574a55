"""Twins of the kernels in layers/per_neuron.py."""

import math

from numbanet.plan.columns import N_Y, OWN, Y
from reference.activations import sigmoid


def _neurons(op):
    """(kind, slope) for each neuron of a row that lists runs of neurons."""
    neurons = []
    for run in range(op[OWN]):
        kind, last, slope = op[OWN + 1 + 3 * run], op[OWN + 2 + 3 * run], op.real(OWN + 3 + 3 * run)
        neurons += [(kind, slope)] * (last - len(neurons))
    return neurons


def mixed_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, (kind, slope) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_Y] + j
            z = acts[place]
            acts[place] = [z, sigmoid(z), math.tanh(z), max(z, 0), z if z > 0 else slope * z, float(z > 0)][kind]


def mixed_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, (kind, slope) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_Y] + j
            a = acts[place]
            deltas[place] *= [1, a * (1 - a), 1 - a * a, float(a > 0), 1 if a > 0 else slope][kind]
