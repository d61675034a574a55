"""Counter-based random numbers: a function of what they are for, not of who asks, in which order or in which thread.

`mixed(a, b)` makes a new 64-bit key of two; `uniform(like, key, first)` fills a vector with numbers in [0, 1), lane by lane a
function of the key and of first + lane. They are multiples of 2⁻²⁴, the same for float32 and float64.

Source   Steele, Lea, Flood 2014 (SplitMix64, for the keys); Appleby 2011 (the finaliser of MurmurHash3, for the numbers)
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.vectors import Vector, broadcast, vector_of

_GOLDEN = 0x9E3779B97F4A7C15


@intrinsic
def fold_in(typingctx, a, b):
    """A 64-bit key from a key and a number."""
    if isinstance(a, types.Integer) and isinstance(b, types.Integer):

        def codegen(context, builder, signature, args):
            word = ir.IntType(64)
            z = builder.add(args[0], builder.mul(builder.add(args[1], word(1)), word(_GOLDEN)))
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                z = builder.mul(builder.xor(z, builder.lshr(z, word(shift))), word(factor))
            return builder.xor(z, builder.lshr(z, word(31)))

        return types.int64(types.int64, types.int64), codegen


def _uniform(builder, kind, key, first):
    """Numbers in [0, 1) of the LLVM type `kind`, a float or a vector, for the counters from `first` on."""
    half, count = ir.IntType(32), getattr(kind, "count", 0)

    def every(*numbers):
        constants = [half(n) for n in numbers] * (count if len(numbers) == 1 and count else 1)
        return ir.Constant(ir.VectorType(half, count), constants) if count else constants[0]

    def shared(number):
        number = builder.trunc(number, half)
        return broadcast(builder, number, ir.VectorType(half, count)) if count else number

    counter = builder.add(shared(first), every(*range(count))) if count else shared(first)
    z = builder.xor(builder.mul(counter, every(0x9E3779B9)), shared(key))
    for salt in (shared(builder.lshr(key, ir.IntType(64)(32))), None):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            z = builder.mul(builder.xor(z, builder.lshr(z, every(shift))), every(factor))
        z = builder.xor(z, builder.lshr(z, every(16)))
        z = builder.add(z, salt) if salt is not None else z
    scale = ir.Constant(kind, [kind.element(2.0**-24)] * count) if count else kind(2.0**-24)
    return builder.fmul(builder.uitofp(builder.lshr(z, every(8)), kind), scale)


@intrinsic
def uniform(typingctx, pointer, key, first):
    """A vector of numbers in [0, 1), of the type that `pointer` points to, for the counters first, first + 1, …"""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return _uniform(builder, vector_of(pointer.dtype), args[1], args[2])

        return Vector(pointer.dtype)(pointer, types.int64, types.int64), codegen


@intrinsic
def uniform_scalar(typingctx, key, counter):
    """One number in [0, 1), the one that `uniform` has for this counter, as float64."""
    if isinstance(key, types.Integer):

        def codegen(context, builder, signature, args):
            return _uniform(builder, ir.DoubleType(), args[0], args[1])

        return types.float64(types.int64, types.int64), codegen
