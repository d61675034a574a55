"""A trained network as a function inside the user's own compiled code.

`network.compiled()` gives a Numba function `f(row, out)`: one sample in, its outputs out, callable
from any `@njit` code, in a `prange` loop too. A call allocates nothing, takes no lock and no
thread: what lies between the layers stays on the caller's stack. The parameters are those at the
moment of
`compiled()`; later training does not reach it.
"""

import numba
from numba.core import types
from numba.extending import overload

from numbanet.backend.intrinsics import (
    as_pointer,
    call_indirect,
    const_like,
    constant_address,
    data_pointer,
    local_array,
    ptr_add,
)
from numbanet.backend.jit import noinline
from numbanet.nn import data
from numbanet.nn.layers.base import size
from numbanet.plan.columns import FORWARD, ROW_SIZE, X, Y
from numbanet.plan.lower import lower
from numbanet.plan.plan import STEP_SIZE, Plan

MAX_STACK_BYTES = 1 << 20
"""Bytes between the layers that still fit on a thread's stack."""
STACK_PADDING = 16
"""Elements of the stack behind the last slot, which a vector store may touch masked."""


def single_sample_plan(
    network, max_bytes: int, where: str, target: str = "cpu"
) -> tuple[Plan, list, int, int]:
    """(plan, steps between the ends, offset of the inputs, offset of the outputs) for one sample.

    Raises ValueError if it needs more than `max_bytes` between the layers.
    """
    ops = [
        data.inputs(size(network.input_shape), network.dtype),
        *network.layer_ops(),
        *network.output_ops(),
    ]
    plan = lower(ops, network.dtype, batch=1, threads=1, train=False, target=target)
    needed = plan.n_acts * network.dtype.itemsize
    if needed > max_bytes:
        raise ValueError(
            f"one sample needs {needed:,} bytes between the layers, more than the "
            f"{max_bytes:,} that fit {where}; call predict instead"
        )
    table, steps = plan.tables[0], plan.steps(0)
    first_input, first_output = int(table[steps[0][1], Y]), int(table[steps[-1][1], X])
    return plan, steps[1:-1], first_input, first_output


def compiled(network):
    """Return `f(row, out)` for the network as it is now.

    row   C-contiguous array of input_shape, or flat; float32, float64 or uint8
    out   array of as many elements as the network has outputs, of the network's dtype; overwritten
    Inside, ValueError is raised where row or out have another size. ValueError here if one sample
    needs more than 1 MiB between the layers.
    """
    plan, _, first_input, first_output = single_sample_plan(network, MAX_STACK_BYTES, "on a stack")
    n_in, n_out = size(network.input_shape), size(network.output_shape)
    table, params = plan.tables[0].copy(), network.memory.copy()
    schedule, n_steps = plan.schedule[1:-1].copy(), len(plan.schedule) - 2
    stack_elements, kind = int(plan.n_acts) + STACK_PADDING, numba.from_dtype(network.dtype)
    table_address, params_address = constant_address(table), constant_address(params)
    schedule_address = constant_address(schedule)

    @noinline
    def predict_row(row, out):
        if row.size != n_in or out.size != n_out:
            raise ValueError(
                "the compiled network was given a row or an output of another size than its own"
            )
        table = as_pointer(table_address(), numba.int64)
        schedule = as_pointer(schedule_address(), numba.int64)
        params = as_pointer(params_address(), kind)
        acts = local_array(params, stack_elements)
        _read(row, ptr_add(acts, first_input), n_in)
        for k in range(n_steps):
            op = ptr_add(table, schedule[STEP_SIZE * k + 1] * ROW_SIZE)
            call_indirect(op[FORWARD], op, params, params, acts, acts, 0, 1)
        result = data_pointer(out)
        for j in range(n_out):
            result[j] = const_like(result, acts[first_output + j])

    predict_row.kept_alive = (plan, table, params, schedule)
    return predict_row


def _read(row, acts, n):
    """acts[k] = row[k]"""


@overload(_read)
def _(row, acts, n):
    if not isinstance(row, types.Array) or row.layout != "C":
        return None

    def from_elements(row, acts, n):
        x = data_pointer(row)
        for k in range(n):
            acts[k] = const_like(acts, x[k])

    return from_elements
