"""The only folder that speaks LLVM. Everything in it is a Numba intrinsic: a few instructions emitted where it is called.

`pointers`  pointers into flat memories, calls by address, bits
`vectors`   one vector register as a value
`tiles`     the matrix product
"""

from numbanet._simd.pointers import (
    at,
    call,
    exponent,
    is_single,
    lanes,
    like,
    mantissa,
    memory,
    nearest,
    pointer,
    power_of_two,
    real,
    set_real,
    stack,
)
from numbanet._simd.tiles import multiply
from numbanet._simd.width import VECTOR_BYTES

__all__ = ["VECTOR_BYTES", "at", "call", "exponent", "is_single", "lanes", "like", "mantissa", "memory", "multiply", "nearest",
           "pointer", "power_of_two", "real", "set_real", "stack"]
