"""The first Dense of a prediction from sparse rows: only what is stored is multiplied.

    z = b + Σ_k s a[k] W[k]       over the stored elements a[k] of a row; s the factor of a Rescale

The sum has the order of the matrix product, where a zero changes nothing: the bits are the same.
"""

from dataclasses import replace

import numpy as np

from numbanet.backend.intrinsics import (
    as_pointer,
    const_like,
    div_u32,
    float_attr,
    gemm,
    local_array,
    num_threads,
    ptr_add,
    thread_rank,
)
from numbanet.nn.data import RARE, for_dtype
from numbanet.nn.layers import dense
from numbanet.plan.columns import (
    INPUT_COLUMNS,
    INPUT_STARTS,
    INPUTS,
    N_OUT,
    Attrs,
    W,
    Y,
    context,
    sample_index,
)
from numbanet.plan.op import Op

DTYPE = np.float32
"""In the templates: the dtype of the data."""
LAYOUT = Attrs("bias n_in scale")
"""bias as in Dense, inputs of a row, and the factor of the inputs."""


def first_op(op: Op, kind: str, scale: float) -> Op | None:
    """Return what takes the place of the op of a first Dense and of its inputs; None elsewhere.

    kind   how the inputs lie: `data.inference_layout`
    A single output is a dot product in another order, and a sequence has no sparse rows.
    """
    vector = op.forward is dense.forward and op.gradient is not None
    if not kind.startswith(RARE) or not vector or op.n_out == 1:
        return None
    attrs = LAYOUT.pack(bias=op.param_rows - op.n_in, n_in=op.n_in, scale=float(scale))
    return replace(op, n_in=0, forward=_FORWARD[kind.removeprefix(RARE)], attrs=attrs)


def _forward(op, params, grads, acts, deltas, lo, hi):
    """Compute z = b + Σ s a[k] W[k], for samples lo ≤ i < hi.

    Reads params[W]; overwrites acts[y]
    """
    values = as_pointer(context(op, INPUTS), DTYPE)
    columns = as_pointer(context(op, INPUT_COLUMNS), np.int32)
    starts = as_pointer(context(op, INPUT_STARTS), np.int64)
    n_out, scale = op[N_OUT], const_like(acts, float_attr(op, LAYOUT.scale))
    w, bias = ptr_add(params, op[W]), ptr_add(params, op[W] + op[LAYOUT.n_in] * n_out)
    a = local_array(acts, 1)
    for i in range(lo, hi):
        z, sample = ptr_add(acts, op[Y] + i * n_out), sample_index(op, i)
        for j in range(n_out):
            z[j] = bias[j] if op[LAYOUT.bias] else const_like(acts, 0)
        for k in range(starts[sample], starts[sample + 1]):
            a[0] = const_like(acts, values[k]) * scale
            gemm(1, n_out, 1, a, 1, ptr_add(w, columns[k] * n_out), n_out, 1, z, n_out)


def _forward_cuda(op, params, grads, acts, deltas, lo, hi):
    values = as_pointer(context(op, INPUTS), DTYPE)
    columns = as_pointer(context(op, INPUT_COLUMNS), np.int32)
    starts = as_pointer(context(op, INPUT_STARTS), np.int64)
    n_out, scale = op[N_OUT], const_like(acts, float_attr(op, LAYOUT.scale))
    w, bias = ptr_add(params, op[W]), ptr_add(params, op[W] + op[LAYOUT.n_in] * n_out)
    for e in range(thread_rank(), (hi - lo) * n_out, num_threads()):
        i = div_u32(e, n_out)
        j, sample = e - i * n_out, sample_index(op, lo + i)
        total = bias[j] if op[LAYOUT.bias] else const_like(acts, 0)
        for k in range(starts[sample], starts[sample + 1]):
            total += const_like(acts, values[k]) * scale * w[columns[k] * n_out + j]
        acts[op[Y] + lo * n_out + e] = total


forward_float32, forward_float64 = (
    for_dtype(dtype, "forward", INPUTS, _forward, _forward_cuda) for dtype in ("float32", "float64")
)
_FORWARD = {"sparse_float32": forward_float32, "sparse_float64": forward_float64}
