"""Reference implementations of the kernels in layers/rescale.py."""

from numbanet.nn.layers.rescale import RESCALE
from numbanet.plan.columns import N_OUT, Y


def forward(op, params, grads, acts, deltas, lo, hi):
    scale, offset = op.float_attr(RESCALE.scale), op.float_attr(RESCALE.offset)
    for i in range(lo * op[N_OUT], hi * op[N_OUT]):
        acts[op[Y] + i] = scale * acts[op[Y] + i] + offset


def backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_OUT], hi * op[N_OUT]):
        deltas[op[Y] + i] *= op.float_attr(RESCALE.scale)
