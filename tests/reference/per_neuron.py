"""Reference implementations of the kernels in layers/per_neuron.py."""

import math

from numbanet.nn.layers.per_neuron import SEGMENT, SEGMENTS
from numbanet.plan.columns import N_OUT, TANGENTS, Y
from reference.activations import sigmoid


def _neurons(op):
    """(code, slope) for each neuron of a row that lists segments of neurons."""
    neurons = []
    for k in range(op[SEGMENTS.n_segments]):
        segment = SEGMENTS.first + k * len(SEGMENT)
        code, slope = op[segment + SEGMENT.code], op.float_attr(segment + SEGMENT.slope)
        neurons += [(code, slope)] * (op[segment + SEGMENT.end] - len(neurons))
    return neurons


def per_neuron_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, (code, slope) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_OUT] + j
            z = acts[place]
            acts[place] = [
                z,
                sigmoid(z),
                math.tanh(z),
                max(z, 0),
                z if z > 0 else slope * z,
                float(z > 0),
                math.exp(z),
            ][code]


def per_neuron_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo, hi):
        for j, (code, slope) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_OUT] + j
            a = acts[place]
            deltas[place] *= [
                1,
                a * (1 - a),
                1 - a * a,
                float(a > 0),
                1 if a > 0 else slope,
                0,
                a,
            ][code]


def per_neuron_second_backward(op, params, grads, acts, deltas, lo, hi):
    tangents = op.context(TANGENTS)
    for i in range(lo, hi):
        for j, (code, _) in enumerate(_neurons(op)):
            place = op[Y] + i * op[N_OUT] + j
            slope = {1: 1 - 2 * acts[place], 2: -2 * acts[place], 6: 1}.get(code, 0)
            deltas[tangents + place] += acts[tangents + place] * deltas[place] * slope
