"""A trained network as a function inside the user's own compiled code.

`network.compiled()` gives a Numba function `f(row, out)`: one sample in, its outputs out, callable from any `@njit` code, in a
`prange` loop too. A call allocates nothing, takes no lock and no thread: what lies between the layers stays on the caller's
stack. The parameters are those at the moment of `compiled()`; later training does not reach it.
"""

import numba
from numba.core import types
from numba.extending import overload

from numbanet.backend.intrinsics import as_pointer, call_indirect, const_like, constant_address, data_pointer, local_array, ptr_add
from numbanet.backend.jit import noinline
from numbanet.nn import data
from numbanet.nn.layers.base import size
from numbanet.plan.columns import FORWARD, NEXT, PREVIOUS, ROW_SIZE, X, Y
from numbanet.plan.lower import lower

LARGEST = 1 << 20
"""Bytes between the layers that still fit on a thread's stack."""


def compiled(network):
    """Return `f(row, out)` for the network as it is now.

    row   C-contiguous array of input_shape, or flat; float32, float64, or uint8 (0 … 255 become 0 … 1)
    out   array of as many numbers as the network has outputs, of the network's dtype; overwritten
    Inside, ValueError is raised where row or out have another size. ValueError here if one sample needs more than 1 MiB.
    """
    dtype = network.dtype
    n_in, n_out = size(network.input_shape), size(network.output_shape)
    ops = [data.inputs(n_in, dtype), *network.layer_ops(), data.outputs(n_out)]
    plan = lower(ops, dtype, batch=1, threads=1, train=False)
    if plan.n_acts * dtype.itemsize > LARGEST:
        raise ValueError(f"one sample needs {plan.n_acts * dtype.itemsize:,} bytes between the layers, more than the {LARGEST:,} "
                         "that fit on a stack; call predict instead")
    table, params = plan.tables[0].copy(), network.memory.copy()  # with running means behind the parameters
    first, last = int(table[1, NEXT]), int(plan.tables[0, 0, PREVIOUS])
    begin, end = int(table[1, Y]), int(table[last, X])
    for row in range(len(table)):  # the walk ends before the scatter
        if table[row, NEXT] == last:
            table[row, NEXT] = 0
    first = 0 if first == last else first
    room = int(plan.n_acts) + 16
    kind = numba.from_dtype(dtype)
    table_address, params_address = constant_address(table), constant_address(params)

    @noinline
    def predict_row(row, out):
        if row.size != n_in or out.size != n_out:
            raise ValueError("the compiled network was given a row or an output of another size than its own")
        table = as_pointer(table_address(), numba.int64)
        params = as_pointer(params_address(), kind)
        acts = local_array(params, room)
        _read(row, ptr_add(acts, begin), n_in)
        op_row = first
        while op_row:
            op = ptr_add(table, op_row * ROW_SIZE)
            call_indirect(op[FORWARD], op, params, params, acts, acts, 0, 1)
            op_row = op[NEXT]
        result = data_pointer(out)
        for j in range(n_out):
            result[j] = const_like(result, acts[end + j])

    predict_row.keep = (plan, table, params)
    return predict_row


def _read(row, acts, n):
    """acts[k] = row[k]; bytes of a picture are scaled to 0 … 1."""


@overload(_read)
def _(row, acts, n):
    if not isinstance(row, types.Array) or row.layout != "C":
        return None
    if row.dtype == types.uint8:

        def bytes_(row, acts, n):
            x = data_pointer(row)
            for k in range(n):
                acts[k] = const_like(acts, x[k]) * const_like(acts, 1 / 255)

        return bytes_

    def numbers(row, acts, n):
        x = data_pointer(row)
        for k in range(n):
            acts[k] = const_like(acts, x[k])

    return numbers
