"""A trained network as a function inside the user's own CUDA kernels.

`network.compiled(device="cuda")` gives a device function `f(row, out)`: each thread that calls it carries one sample through, by
itself. What lies between the layers stays in the thread's own memory; parameters are read from the card's.
"""

import numpy as np

from numbanet.backend.cuda import driver
from numbanet.backend.intrinsics import as_pointer, const_like, data_pointer, local_array, ptr_add, uint8_scale
from numbanet.nn import data
from numbanet.nn.layers.base import size
from numbanet.plan.columns import NEXT, ROW_SIZE, X, Y
from numbanet.plan.lower import lower

LARGEST = 1 << 18
"""Bytes between the layers that still fit the memory of a single thread."""


def compiled(network):
    """Return `f(row, out)` for the network as it is now, to be called from `@cuda.jit` code.

    row   C-contiguous array on the card, of input_shape or flat; float32, float64, or uint8 (0 … 255 become 0 … 1)
    out   array of as many numbers as the network has outputs; overwritten
    Sizes are not looked at: a GPU has no way to complain. ValueError here if one sample needs more than 256 KiB.
    """
    driver.require_gpu()
    dtype, kind = network.dtype, network.dtype.type
    n_in, n_out = size(network.input_shape), size(network.output_shape)
    ops = [data.inputs(n_in, dtype), *network.layer_ops(), data.outputs(n_out)]
    plan = lower(ops, dtype, batch=1, threads=1, train=False, card=True)
    if plan.n_acts * dtype.itemsize > LARGEST:
        raise ValueError(f"one sample needs {plan.n_acts * dtype.itemsize:,} bytes between the layers, more than the {LARGEST:,} "
                         "that fit the memory of a thread; call predict instead")
    table, parameters = driver.DeviceBuffer(plan.tables.size, np.int64), driver.DeviceBuffer(network.memory.size, dtype)
    table.upload(plan.tables)
    parameters.upload(network.memory)
    row, numbered = 1, []
    for op in plan.ops:
        numbered.append((op, row))
        row = int(plan.tables[0, row, NEXT])
    begin, end = int(plan.tables[0, 1, Y]), int(plan.tables[0, numbered[-1][1], X])
    whole = driver.device(_nothing)
    for op, row in numbered[1:-1]:
        whole = _then(whole, driver.per_thread(op.forward), row)
    table_address, params_address, room = table.address, parameters.address, int(plan.n_acts) + 1

    def predict_row(row, out):
        params, rows = as_pointer(params_address, kind), as_pointer(table_address, np.int64)
        acts, x, y = local_array(params, room), data_pointer(row), data_pointer(out)
        for k in range(n_in):
            acts[begin + k] = const_like(acts, x[k]) * const_like(acts, uint8_scale(x))
        whole(rows, params, acts)
        for j in range(n_out):
            y[j] = const_like(y, acts[end + j])

    made = driver.device(predict_row)
    made.keep, made.room = (table, parameters), room
    return made


def _nothing(rows, params, acts):
    pass


def _then(first, verb, row):
    def walk(rows, params, acts):
        first(rows, params, acts)
        verb(ptr_add(rows, row * ROW_SIZE), params, params, acts, acts, 0, 1)

    return driver.device(walk)
