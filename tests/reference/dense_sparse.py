"""References of the kernels in nn/dense_sparse.py."""

from numbanet.nn.dense_sparse import LAYOUT
from numbanet.plan.columns import N_OUT, W, Y
from reference.data import input_row


def forward_float32(op, params, grads, acts, deltas, lo, hi):
    n_in, n_out, scale = op[LAYOUT.n_in], op[N_OUT], op.float_attr(LAYOUT.scale)
    for i in range(lo, hi):
        row = input_row(op, i)
        for j in range(n_out):
            z = params[op[W] + n_in * n_out + j] if op[LAYOUT.bias] else 0.0
            for k in range(n_in):
                z += float(row[k]) * scale * params[op[W] + k * n_out + j]
            acts[op[Y] + i * n_out + j] = z


forward_float64 = forward_float32
