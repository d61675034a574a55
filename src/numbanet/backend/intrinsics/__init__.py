"""The only folder that speaks LLVM. Everything in it is a Numba intrinsic: a few instructions emitted where it is called.

`pointers`  pointers into flat memories, calls by address, bits
`vectors`   one vector register as a value
`numbers`   the steps of elementary functions, for a number or a vector
`tiles`     the matrix product; `turning`, the transpose
`random`    counter-based random numbers
`grid`      the threads of a GPU
"""

from numbanet.backend.intrinsics.cuda_threads import block, blocks, column, columns, lane, quotient, shared, sync, thread, threads
from numbanet.backend.intrinsics.elementwise import (
    even_lanes,
    exponent,
    is_single,
    like,
    mantissa,
    nearest,
    neighbours,
    odd_lanes,
    power_of_two,
    twice,
    where_equal,
    where_greater,
)
from numbanet.backend.intrinsics.gemm import dots, multiply
from numbanet.backend.intrinsics.pointers import (
    address,
    at,
    byte_share,
    call,
    fixed_address,
    lanes,
    memory,
    pointer,
    real,
    set_real,
    stack,
)
from numbanet.backend.intrinsics.random import chance, mixed, uniform
from numbanet.backend.intrinsics.target import VECTOR_BYTES
from numbanet.backend.intrinsics.transpose import turn
from numbanet.backend.intrinsics.vectors import load, store

__all__ = [
    "VECTOR_BYTES",
    "address",
    "at",
    "block",
    "blocks",
    "byte_share",
    "call",
    "chance",
    "column",
    "columns",
    "dots",
    "even_lanes",
    "exponent",
    "fixed_address",
    "is_single",
    "lane",
    "lanes",
    "like",
    "load",
    "mantissa",
    "memory",
    "mixed",
    "multiply",
    "nearest",
    "neighbours",
    "odd_lanes",
    "pointer",
    "power_of_two",
    "quotient",
    "real",
    "set_real",
    "shared",
    "stack",
    "store",
    "sync",
    "thread",
    "threads",
    "turn",
    "twice",
    "uniform",
    "where_equal",
    "where_greater",
]
