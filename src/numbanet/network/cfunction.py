"""A network as a C function: for SciPy's LowLevelCallable, ctypes, Fortran and C.

`network.cfunc()` gives an object with the address of a function

    plain       void f(const real *x, real *out)
    user_data   void f(const real *x, real *out, void *user_data)
    integrand   double f(int n, double *x, void *user_data)        for networks of one output

of one sample, where `real` is float or double, as the network has it. The last two are compiled
once for all networks: `user_data` tells them which one it is. The parameters are those at the
moment of `cfunc()`. A call allocates nothing, takes no lock and needs no Python.
"""

import ctypes
from typing import Any

import numba
import numpy as np
from numba.core import types

from numbanet.backend.intrinsics import as_pointer, stack_array
from numbanet.backend.jit import c_function, inline, specialize
from numbanet.io.registry import lookup
from numbanet.network.compiled import RECORD, CompiledNetwork
from numbanet.network.embedded import predict
from numbanet.network.handle import HEADER

REAL: Any = numba.float32
"""In the templates: the dtype of the network."""
ADDRESS: Any = 0
"""In the template of a plain function: where the network's record is."""


@inline
def _predict(record, params, x, out):
    """Write the outputs for one sample; `record` is that of a CompiledNetwork."""
    model = as_pointer(record[RECORD.model], numba.int64)
    predict(model, params, stack_array(params, model[HEADER.work_size]), x, out)


def _plain(x, out):
    record = as_pointer(ADDRESS, numba.int64)
    _predict(record, as_pointer(record[RECORD.params], REAL), x, out)


def _user_data(x, out, record):
    _predict(record, as_pointer(record[RECORD.params], REAL), x, out)


def _integrand(n, x, record):
    params = as_pointer(record[RECORD.params], REAL)
    out = stack_array(params, 1)
    if n != as_pointer(record[RECORD.model], numba.int64)[HEADER.n_in]:
        return np.nan
    _predict(record, params, x, out)
    return np.float64(out[0])


KINDS = {
    "plain": (_plain, "void f(const {0} *x, {0} *out)"),
    "user_data": (_user_data, "void f(const {0} *x, {0} *out, void *user_data)"),
    "integrand": (_integrand, "double f(int n, double *x, void *user_data)"),
}
"""The template and the C declaration of each kind."""


class CFunction:
    """A network as it was, as a C function of one sample.

    signature   its declaration in C
    address     of the function, an int; it never raises, and does not check sizes, except that an
                integrand returns NaN where n is not the network's number of inputs
    user_data   a ctypes.c_void_p for the function's last argument; None for a plain one
    ctypes      the same as a function of ctypes
    The function may be called as long as one of these objects, or the CFunction, is kept, from any
    thread. It cannot be pickled: TypeError.
    """

    def __init__(self, network, kind: str = "plain"):
        make, declaration = lookup("kind of C function", kind, KINDS)
        if make is _integrand and int(np.prod(network.output_shape)) != 1:
            raise ValueError(
                f"an integrand returns one number, the network has outputs {network.output_shape}; "
                'take kind="user_data"'
            )
        self._network, dtype = CompiledNetwork(network), str(network.dtype)
        real, single = getattr(types, dtype), dtype == "float32"
        self.signature = declaration.format("float" if single else "double")
        names: dict[str, Any] = {"REAL": real}
        if make is _plain:
            names["ADDRESS"] = self._network.address
        function = specialize(make, f"{make.__name__[1:]}_{dtype}", **names)
        self._compiled = c_function(function, _SIGNATURES[make](real), make is not _plain)
        self.address = self._compiled.address
        self.user_data: Any = None
        if make is not _plain:
            self.user_data = ctypes.c_void_p(self._network.address)
            self.user_data._owner = self
        pointer = ctypes.POINTER(ctypes.c_float if single else ctypes.c_double)
        self.ctypes = _PROTOTYPES[make](pointer)(self.address)
        self.ctypes._owner = self

    def low_level_callable(self):
        """Return it as a scipy.LowLevelCallable, which keeps it."""
        from scipy import LowLevelCallable

        return LowLevelCallable(self.ctypes, self.user_data)

    def __reduce__(self):
        raise TypeError(
            "a C function is an address in this process and cannot be pickled; pickle the network, "
            "and call cfunc() where it is loaded"
        )

    def __repr__(self):
        return f"<{self.signature} of {self._network!r}>"


_RECORD = types.CPointer(types.int64)
_SIGNATURES: dict[Any, Any] = {
    _plain: lambda real: types.void(types.CPointer(real), types.CPointer(real)),
    _user_data: lambda real: types.void(types.CPointer(real), types.CPointer(real), _RECORD),
    _integrand: lambda real: types.float64(types.int32, types.CPointer(types.float64), _RECORD),
}
_PROTOTYPES: dict[Any, Any] = {
    _plain: lambda real: ctypes.CFUNCTYPE(None, real, real),
    _user_data: lambda real: ctypes.CFUNCTYPE(None, real, real, ctypes.c_void_p),
    _integrand: lambda real: ctypes.CFUNCTYPE(
        ctypes.c_double, ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.c_void_p
    ),
}
"""For each template its Numba signature and its ctypes type, from the type of the network's reals.

user_data is a pointer to the record, in C a void *.
"""
