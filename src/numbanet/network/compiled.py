"""A trained network as a function inside the user's own compiled code.

`network.compiled()` gives a function `f(row, out)`: one sample in, its outputs out, callable from
any `@njit` code, in a `prange` loop too. A call allocates nothing, takes no lock and no thread:
what lies between the layers stays on the stack. The parameters are those at the moment of
`compiled()`; later training does not reach it. All networks of a dtype share the compiled code:
what is different is read from a record (backend/intrinsics/bound.py).
"""

import copy

import numba
import numpy as np
from numba.core import types
from numba.core.errors import TypingError

from numbanet.backend.intrinsics import (
    BoundFunction,
    as_pointer,
    bind,
    call_indirect,
    const_like,
    data_pointer,
    ptr_add,
    stack_array,
)
from numbanet.backend.jit import entry_point, noinline, specialize
from numbanet.nn import data
from numbanet.nn.layers.base import size
from numbanet.plan.columns import FORWARD, ROW_SIZE, Attrs, X, Y
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


RECORD = Attrs(
    "table schedule steps params stack_size n_in n_out first_input first_output", first=0
)
"""Columns of the record of a CompiledNetwork.

table, schedule, params   addresses
steps                     steps between the ends of the schedule
stack_size                elements between the layers
n_in, n_out               elements of a row and of its outputs
first_input, first_output their offsets among those between the layers
"""


@noinline
def _predict_row(network, row, out):
    """What every CompiledNetwork runs."""
    record = as_pointer(network, numba.int64)
    if row.size != record[RECORD.n_in] or out.size != record[RECORD.n_out]:
        raise ValueError(
            "the compiled network was given a row or an output of another size than its own"
        )
    table = as_pointer(record[RECORD.table], numba.int64)
    schedule = as_pointer(record[RECORD.schedule], numba.int64)
    params = as_pointer(record[RECORD.params], network)
    acts = stack_array(params, record[RECORD.stack_size])
    x, inputs = data_pointer(row), ptr_add(acts, record[RECORD.first_input])
    for k in range(record[RECORD.n_in]):
        inputs[k] = const_like(acts, x[k])
    for k in range(record[RECORD.steps]):
        op = ptr_add(table, schedule[STEP_SIZE * k + 1] * ROW_SIZE)
        call_indirect(op[FORWARD], op, params, params, acts, acts, 0, 1)
    result, outputs = data_pointer(out), ptr_add(acts, record[RECORD.first_output])
    for j in range(record[RECORD.n_out]):
        result[j] = const_like(result, outputs[j])


class CompiledNetwork(BoundFunction):
    """A network as it was, as a function `f(row, out)` for Python and for compiled code.

    row   C-contiguous array of input_shape, or flat: float32, float64 or integers
    out   C-contiguous array of as many elements as the network has outputs, float32 or float64;
          overwritten
    Raises ValueError where row or out have another size; TypeError, or in compiled code Numba's
    TypingError, where they are of another kind or `out` cannot be written to.

    A pickle holds the network; it is compiled again where it is loaded.
    """

    function = _predict_row

    def __init__(self, network):
        plan, _, first_input, first_output = single_sample_plan(
            network, MAX_STACK_BYTES, "on a stack"
        )
        self._network = copy.deepcopy(network)
        self._network.optimizer, self._network.optimizer_state = None, np.zeros(0, network.dtype)
        self._table, self._schedule = plan.tables[0].copy(), plan.schedule[1:-1].copy()
        record = RECORD.pack(
            table=self._table.ctypes.data,
            schedule=self._schedule.ctypes.data,
            params=self._network.memory.ctypes.data,
            steps=len(self._schedule),
            stack_size=plan.n_acts + STACK_PADDING,
            n_in=size(network.input_shape),
            n_out=size(network.output_shape),
            first_input=first_input,
            first_output=first_output,
        )
        super().__init__(np.array(record, np.int64), network.dtype)
        self._call = _from_python[str(network.dtype)].compiled

    @classmethod
    def check(cls, *kinds) -> None:
        for name, kind in zip(("row", "out"), kinds, strict=True):
            is_out, found = name == "out", getattr(kind, "dtype", None)
            numeric = found in (types.float32, types.float64) or (
                isinstance(found, types.Integer) and not is_out
            )
            if (
                isinstance(kind, types.Array)
                and numeric
                and kind.layout == "C"
                and (kind.mutable or not is_out)
            ):
                continue
            also = "that can be written to" if is_out else "or integers"
            raise TypingError(
                f"{name} of a compiled network is a C-contiguous array of float32, float64 {also}, "
                f"got {kind}"
            )

    def __call__(self, row, out) -> None:
        """Write the outputs of one sample into `out`."""
        try:
            self._call(self.address, row, out)
        except TypingError:
            self.check_python(row, out)
            raise

    def check_python(self, *arguments) -> None:
        """TypeError for what the function does not take."""
        try:
            self.check(*(numba.typeof(one) for one in arguments))
        except (TypingError, ValueError) as error:
            raise TypeError(str(error)) from None

    def __reduce__(self):
        return type(self), (self._network,)

    def __repr__(self):
        return f"<compiled {self._network!r}>"


bound, dtype = bind(CompiledNetwork), numba.float32


def _call(address, row, out):
    bound(address, dtype)(row, out)


_from_python = {
    str(dtype): entry_point(specialize(_call, f"call_{dtype}", dtype=dtype))
    for dtype in (numba.float32, numba.float64)
}
"""The entry points of Python, by dtype."""
