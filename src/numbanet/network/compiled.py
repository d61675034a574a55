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
    data_pointer,
    stack_array,
)
from numbanet.backend.jit import embeddable, entry_point, specialize
from numbanet.network.embedded import predict
from numbanet.network.handle import HEADER, make_handle
from numbanet.plan.columns import Attrs

MAX_STACK_BYTES = 1 << 18
"""Bytes of work memory that still fit on a thread's stack."""

RECORD = Attrs("model params", first=0)
"""Columns of the record of a CompiledNetwork: addresses of its handle and of its parameters."""


@embeddable
def _predict_row(network, row, out):
    """What every CompiledNetwork runs."""
    record = as_pointer(network, numba.int64)
    if record[RECORD.model] == 0:
        raise ValueError("the compiled network was freed; keep a reference to it in Python")
    model = as_pointer(record[RECORD.model], numba.int64)
    if row.size != model[HEADER.n_in] or out.size != model[HEADER.n_out]:
        raise ValueError(
            "the compiled network was given a row or an output of another size than its own"
        )
    params = as_pointer(record[RECORD.params], network)
    work = stack_array(params, model[HEADER.work_size])
    predict(model, params, work, data_pointer(row), data_pointer(out))


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
        self._network = copy.deepcopy(network)
        self._network.optimizer, self._network.optimizer_state = None, np.zeros(0, network.dtype)
        self._model = make_handle(self._network, gradient=False)
        needed = int(self._model[HEADER.work_size]) * network.dtype.itemsize
        if needed > MAX_STACK_BYTES:
            raise ValueError(
                f"one sample needs {needed:,} bytes between the layers, more than the "
                f"{MAX_STACK_BYTES:,} that fit on a stack; call predict, or "
                "numbanet.compiled.forward with memory of your own"
            )
        record = RECORD.pack(model=self._model.ctypes.data, params=self._network.memory.ctypes.data)
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
