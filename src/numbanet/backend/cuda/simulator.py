"""The same kernel with other intrinsics, for Numba's CUDA simulator and for single threads.

`rebind` copies a function, and what it calls, with some of its globals replaced. With Python
functions in place of the intrinsics (`simulator_intrinsics`), Numba's CUDA simulator runs CUDA
kernels as Python; with other thread indices, a single thread of a GPU runs kernels that were
written for a block group (`per_thread`, in driver.py).
"""

import struct
import types
from typing import Any

import numpy as np

from numbanet.backend import intrinsics
from numbanet.backend.intrinsics.random import fold_in_python, uniform_python

# --- copying ----------------------------------------------------------------------------------


def rebind(function, replacements: dict, decorate=lambda function: function, memo=None):
    """Return a copy of a function, and of all that it calls in the package, with some replaced.

    `replacements` maps the id of a global to what replaces it; `decorate` is applied to every
    copy, for instance to compile it.
    """
    memo = {} if memo is None else memo  # functions and modules that were copied already
    function = getattr(function, "py_func", function)
    if function not in memo:
        code, scope = function.__code__, dict(function.__globals__)
        for name in _names(code):
            if name in scope:
                scope[name] = _translated(scope[name], replacements, decorate, memo)
        cells = tuple(
            types.CellType(_translated(cell.cell_contents, replacements, decorate, memo))
            for cell in function.__closure__ or ()
        )
        copy = types.FunctionType(code, scope, function.__name__, function.__defaults__, cells)
        memo[function] = decorate(copy)
    return memo[function]


def _names(code):
    """The global names in a piece of code, and in the pieces inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _translated(value, replacements, decorate, memo):
    if id(value) in replacements:
        return replacements[id(value)]
    if hasattr(value, "py_func"):
        return rebind(value, replacements, decorate, memo)
    if isinstance(value, types.ModuleType) and value.__name__.startswith("numbanet."):
        if value not in memo:
            memo[value] = copy = types.ModuleType(value.__name__)
            for name, inner in vars(value).items():
                setattr(copy, name, _translated(inner, replacements, decorate, memo))
        return memo[value]
    return value


# --- the intrinsics of the simulator ----------------------------------------------------------

DEVICE_ARRAYS: dict[int, np.ndarray] = {}
"""The arrays that stand for the GPU's memory, by their addresses."""


class Pointer:
    """A position in an array; unlike a pointer in compiled code it checks the array's bounds."""

    __slots__ = ("array", "dtype", "start")

    def __init__(self, array, start=0):
        self.array, self.start, self.dtype = array, int(start), array.dtype

    def _index(self, index):
        place = self.start + int(index)
        if not 0 <= place < self.array.size:
            raise IndexError(f"element {place} of an array of {self.array.size}")
        return place

    def __getitem__(self, index):
        return self.array[self._index(index)]

    def __setitem__(self, index, value):
        self.array[self._index(index)] = value


def _set_float_attr(integers, index, value):
    integers[index] = struct.unpack("<q", struct.pack("<d", value))[0]


def _div_u32(dividend, divisor):
    assert 0 <= dividend < 2**32 and 0 < divisor < 2**32, (
        f"div_u32({dividend}, {divisor}) is beyond 32 bits"
    )
    return int(dividend) // int(divisor)


def _exp2_of_bits(x):
    integer, fraction = (np.int32, 23) if x.dtype == np.float32 else (np.int64, 52)
    return np.left_shift(x.view(integer), integer(fraction)).view(x.dtype)


def _as_pointer(address, dtype):
    wanted = dtype.dtype if isinstance(dtype, Pointer) else np.dtype(dtype)
    array = DEVICE_ARRAYS[int(address)] if address else np.empty(0, wanted)
    assert array.dtype == wanted, f"{array.dtype} read as {wanted}"
    return Pointer(array)


def _address(pointer):
    """0 for a null pointer; else a number that is no address."""
    return 1 if pointer.array.size else 0


def _poisoned(dtype_of, count):
    """An array whose elements are NaN until they are written."""
    return np.full(count, np.nan if dtype_of.dtype.kind == "f" else 0, dtype_of.dtype)


def _local_array(dtype_of, count):
    return Pointer(_poisoned(dtype_of, count))


def _data_pointer(array):
    while not isinstance(array, np.ndarray):  # the simulator wraps the arrays of the user's kernel
        array = array.__dict__.get("_ary", array.__dict__.get("_item"))
    return Pointer(array.reshape(-1))


_INTRINSICS: dict[str, Any] = {
    "ptr_add": lambda p, offset: Pointer(p.array, p.start + int(offset)),
    "as_pointer": _as_pointer,
    "address": _address,
    "local_array": _local_array,
    "float_attr": lambda integers, index: struct.unpack(
        "<d", struct.pack("<q", int(integers[index]))
    )[0],
    "set_float_attr": _set_float_attr,
    "const_like": lambda x, value: x.dtype.type(value),
    "is_float32": lambda x: x.dtype == np.float32,
    "exp2_of_bits": _exp2_of_bits,
    "exponent": lambda x: x.dtype.type(np.frexp(x)[1] - 1),
    "mantissa": lambda x: x.dtype.type(2 * np.frexp(x)[0]),
    "where_greater": lambda a, b, then, otherwise: then if a > b else otherwise,
    "where_equal": lambda a, b, then, otherwise: then if a == b else otherwise,
    "fold_in": fold_in_python,
    "uniform_scalar": uniform_python,
    "div_u32": _div_u32,
    "data_pointer": _data_pointer,
}


def simulator_intrinsics(cuda) -> dict:
    """Return the Python versions of the intrinsics.

    `cuda()` is the module that knows the current thread.
    """

    def shared_array(dtype_of, count):
        now = cuda()  # of one launch; two arrays of one type and size in a kernel are the same
        arrays = now.__dict__.setdefault("shared_arrays", {})
        place = now.blockIdx.x, now.blockIdx.y, dtype_of.dtype, count
        return Pointer(arrays.setdefault(place, _poisoned(dtype_of, count)))

    functions = _INTRINSICS | {
        "thread_in_block": lambda: cuda().threadIdx.x,
        "group_index": lambda: cuda().blockIdx.x,
        "num_groups": lambda: cuda().gridDim.x,
        "block_in_group": lambda: cuda().blockIdx.y,
        "blocks_per_group": lambda: cuda().gridDim.y,
        "thread_rank": lambda: cuda().threadIdx.x + cuda().blockDim.x * cuda().blockIdx.y,
        "num_threads": lambda: cuda().blockDim.x * cuda().gridDim.y,
        "syncthreads": lambda: cuda().syncthreads(),
        "shared_array": shared_array,
    }
    return {id(getattr(intrinsics, name)): function for name, function in functions.items()}
