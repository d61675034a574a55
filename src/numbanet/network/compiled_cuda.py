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
from numbanet.network.compiled import single_sample_plan
from numbanet.nn.layers.base import size
from numbanet.plan.columns import ROW_SIZE

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
    plan, steps, first_input, first_output = single_sample_plan(
        network, MAX_LOCAL_BYTES, "the memory of a thread", target="cuda"
    )
    n_in, n_out, kind = size(network.input_shape), size(network.output_shape), network.dtype.type
    table = driver.DeviceBuffer(plan.tables.size, np.int64)
    parameters = driver.DeviceBuffer(network.memory.size, network.dtype)
    table.upload(plan.tables)
    parameters.upload(network.memory)
    whole = driver.device(_empty)
    for _, row in steps:
        whole = _compose(whole, driver.per_thread(plan.by_row[row].forward), row)
    table_address, params_address, n_local = table.address, parameters.address, int(plan.n_acts) + 1

    def predict_row(row, out):
        params, rows = as_pointer(params_address, kind), as_pointer(table_address, np.int64)
        acts, x, y = local_array(params, n_local), data_pointer(row), data_pointer(out)
        for k in range(n_in):
            acts[first_input + k] = const_like(acts, x[k])
        whole(rows, params, acts)
        for j in range(n_out):
            y[j] = const_like(y, acts[first_output + j])

    made = driver.device(predict_row)
    made.kept_alive, made.n_local = (table, parameters), n_local
    return made


def _empty(rows, params, acts):
    pass


def _compose(first, verb, row):
    def walk(rows, params, acts):
        first(rows, params, acts)
        verb(ptr_add(rows, row * ROW_SIZE), params, params, acts, acts, 0, 1)

    return driver.device(walk)
