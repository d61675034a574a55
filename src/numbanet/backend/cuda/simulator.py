"""The same function with other words: where a kernel says `thread()` or `like(x, 0)`, something else is meant.

`bound(function, words)` copies a compiled helper's or twin's Python source with the names in `words` exchanged, in everything that
it calls as well. So Numba's CUDA simulator runs kernels as Python (`SIMULATED_WORDS`), and a single thread of a GPU runs twins
that were written for a row of blocks (`ALONE`, in compiled.py).
"""

import struct
import threading
import types
from typing import Any

import numpy as np

from numbanet.backend import intrinsics

# --- copying ------------------------------------------------------------------------------------------------------------


def rebind(function, words: dict, finish=lambda function: function, known: dict | None = None):
    """A copy of a function, and of all functions of the package that it calls, with other words.

    `words` maps the id of a word to what takes its place; `finish` is applied to every copy, for instance to compile it.
    """
    known = {} if known is None else known  # functions and modules that were copied already
    function = getattr(function, "py_func", function)
    if function not in known:
        code, scope = function.__code__, dict(function.__globals__)
        for name in _names(code):
            if name in scope:
                scope[name] = _translated(scope[name], words, finish, known)
        cells = tuple(types.CellType(_translated(cell.cell_contents, words, finish, known)) for cell in function.__closure__ or ())
        copy = types.FunctionType(code, scope, function.__name__, function.__defaults__, cells)
        known[function] = finish(copy)
    return known[function]


def _names(code):
    """The global names in a piece of code, and in the pieces inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _translated(value, words, finish, known):
    if id(value) in words:
        return words[id(value)]
    if hasattr(value, "py_func"):
        return rebind(value, words, finish, known)
    if isinstance(value, types.ModuleType) and value.__name__.startswith("numbanet."):
        if value not in known:
            known[value] = copy = types.ModuleType(value.__name__)
            for name, inner in vars(value).items():
                setattr(copy, name, _translated(inner, words, finish, known))
        return known[value]
    return value


# --- the words of the simulator -----------------------------------------------------------------------------------------

DEVICE_ARRAYS: dict[int, np.ndarray] = {}
"""The arrays that stand for the card's memory, by their addresses."""


class Pointer:
    """A place in an array; unlike a pointer in compiled code it knows the array's ends."""

    __slots__ = ("array", "dtype", "start")

    def __init__(self, array, start=0):
        self.array, self.start, self.dtype = array, int(start), array.dtype

    def _place(self, index):
        place = self.start + int(index)
        if not 0 <= place < self.array.size:
            raise IndexError(f"number {place} of a memory of {self.array.size}")
        return place

    def __getitem__(self, index):
        return self.array[self._place(index)]

    def __setitem__(self, index, value):
        self.array[self._place(index)] = value


def _bits(value) -> int:
    """The low 64 bits of a whole number as int64 has them."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _mixed(a, b):
    z = (int(a) + (int(b) + 1) * 0x9E3779B97F4A7C15) & 2**64 - 1
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> shift) * factor & 2**64 - 1
    return _bits(z ^ z >> 31)


def _scrambled(z):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        z = (z ^ z >> shift) * factor & 2**32 - 1
    return z ^ z >> 16


def _chance(key, counter):
    key = int(key) & 2**64 - 1
    z = _scrambled((int(counter) * 0x9E3779B9 ^ key) & 2**32 - 1)
    return (_scrambled((z + (key >> 32)) & 2**32 - 1) >> 8) / 2**24


def _set_real(integers, index, value):
    integers[index] = struct.unpack("<q", struct.pack("<d", value))[0]


def _quotient(number, divisor):
    assert 0 <= number < 2**32 and 0 < divisor < 2**32, f"quotient({number}, {divisor}) is beyond 32 bits"
    return int(number) // int(divisor)


def _pointer(address, dtype):
    array = DEVICE_ARRAYS[int(address)]
    wanted = dtype.dtype if isinstance(dtype, Pointer) else np.dtype(dtype)
    assert array.dtype == wanted, f"{array.dtype} read as {wanted}"
    return Pointer(array)


def _memory(array):
    while not isinstance(array, np.ndarray):  # the simulator wraps the arrays of the user's kernel
        array = array.__dict__.get("_ary", array.__dict__.get("_item"))
    return Pointer(array.reshape(-1))


_INTRINSICS: dict[str, Any] = {
    "ptr_add": lambda p, offset: Pointer(p.array, p.start + int(offset)),
    "as_pointer": _pointer,
    "local_array": lambda like, count: Pointer(np.full(count, np.nan, like.dtype)),
    "float_attr": lambda integers, index: struct.unpack("<d", struct.pack("<q", int(integers[index])))[0],
    "set_float_attr": _set_real,
    "const_like": lambda x, value: x.dtype.type(value),
    "is_float32": lambda x: x.dtype == np.float32,
    "rint": np.rint,
    "exp2_int": lambda n: np.ldexp(n.dtype.type(1), int(n)),
    "exponent": lambda x: x.dtype.type(np.frexp(x)[1] - 1),
    "mantissa": lambda x: x.dtype.type(2 * np.frexp(x)[0]),
    "where_greater": lambda a, b, then, otherwise: then if a > b else otherwise,
    "where_equal": lambda a, b, then, otherwise: then if a == b else otherwise,
    "fold_in": _mixed,
    "uniform_scalar": _chance,
    "div_u32": _quotient,
    "data_pointer": _memory,
    "uint8_scale": lambda p: 1 / 255 if p.dtype == np.uint8 else 1.0,
}

_lock = threading.Lock()


def simulator_intrinsics(cuda) -> dict:
    """What takes the words' place in the simulator; `cuda()` is the module with the present thread's numbers."""

    def shared(like, count):
        # The simulator tells allocations apart by the line that asks for them: each kind and size is given a line of its own.
        line = compile("array(count, dtype)", f"<shared {like.dtype} {count}>", "eval")
        with _lock:
            return Pointer(eval(line, {"array": cuda().shared.array, "count": count, "dtype": like.dtype}))

    words = _INTRINSICS | {
        "thread_in_block": lambda: cuda().threadIdx.x,
        "group_index": lambda: cuda().blockIdx.x,
        "num_groups": lambda: cuda().gridDim.x,
        "block_in_group": lambda: cuda().blockIdx.y,
        "blocks_per_group": lambda: cuda().gridDim.y,
        "thread_rank": lambda: cuda().threadIdx.x + cuda().blockDim.x * cuda().blockIdx.y,
        "num_threads": lambda: cuda().blockDim.x * cuda().gridDim.y,
        "syncthreads": lambda: cuda().syncthreads(),
        "shared_array": shared,
    }
    return {id(getattr(intrinsics, name)): word for name, word in words.items()}
