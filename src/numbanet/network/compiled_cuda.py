"""A trained network as a function inside the user's own CUDA kernels.

`network.compiled(device="cuda")` gives a device function `f(row, out)`: each thread that calls it
processes one sample. The outputs of the layers stay in the thread's local memory; the parameters
are read from global memory.
"""

import numpy as np

from numbanet.backend.cuda import driver
from numbanet.backend.intrinsics import (
    as_pointer,
    const_like,
    data_pointer,
    local_array,
    ptr_add,
)
from numbanet.nn import data
from numbanet.nn.layers.base import size
from numbanet.plan.columns import ROW_SIZE, X, Y
from numbanet.plan.lower import lower

MAX_LOCAL_BYTES = 1 << 18
"""Bytes between the layers that fit the local memory of a single thread."""


def compiled(network):
    """Return `f(row, out)` for the network as it is now, to be called from `@cuda.jit` code.

    row   C-contiguous array on the GPU, of input_shape or flat; float32, float64 or uint8
    out   array of as many elements as the network has outputs; overwritten
    Sizes are not checked, as a kernel on a GPU cannot raise. ValueError here if one sample needs
    more than 256 KiB between the layers.
    """
    driver.require_gpu()
    ops = [
        data.inputs(size(network.input_shape), network.dtype),
        *network.layer_ops(),
        *network.output_ops(),
    ]
    plan = lower(ops, network.dtype, batch=1, threads=1, train=False, target="cuda")
    needed = plan.n_acts * network.dtype.itemsize
    if needed > MAX_LOCAL_BYTES:
        raise ValueError(
            f"one sample needs {needed:,} bytes between the layers, more than the "
            f"{MAX_LOCAL_BYTES:,} that fit the memory of a thread; call predict instead"
        )
    table, steps = plan.tables[0], plan.steps(0)
    first_input, first_output = int(table[steps[0][1], Y]), int(table[steps[-1][1], X])
    n_in, n_out, kind = size(network.input_shape), size(network.output_shape), network.dtype.type
    rows = driver.DeviceBuffer(plan.tables.size, np.int64)
    parameters = driver.DeviceBuffer(network.memory.size, network.dtype)
    rows.upload(plan.tables)
    parameters.upload(network.memory)
    whole = driver.device(_empty)
    for _, row in steps[1:-1]:
        whole = _compose(whole, driver.per_thread(plan.by_row[row].forward), row)
    table_address, params_address, n_local = rows.address, parameters.address, int(plan.n_acts) + 1

    def predict_row(row, out):
        params, rows = as_pointer(params_address, kind), as_pointer(table_address, np.int64)
        acts, x, y = local_array(params, n_local), data_pointer(row), data_pointer(out)
        for k in range(n_in):
            acts[first_input + k] = const_like(acts, x[k])
        whole(rows, params, acts)
        for j in range(n_out):
            y[j] = const_like(y, acts[first_output + j])

    made = driver.device(predict_row)
    made.kept_alive, made.n_local = (rows, parameters), n_local
    return made


def _empty(rows, params, acts):
    pass


def _compose(first, verb, row):
    def walk(rows, params, acts):
        first(rows, params, acts)
        verb(ptr_add(rows, row * ROW_SIZE), params, params, acts, acts, 0, 1)

    return driver.device(walk)
