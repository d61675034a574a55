"""Counter-based random numbers: a function of what they are for, not of who asks, in which order or in which thread.

`mixed(a, b)` makes a new 64-bit key of two; `uniform(like, key, first)` fills a vector with numbers in [0, 1), lane by lane a
function of the key and of first + lane. They are multiples of 2⁻²⁴, the same for float32 and float64.

Source   Steele, Lea, Flood 2014 (SplitMix64, for the keys); Appleby 2011 (the finaliser of MurmurHash3, for the numbers)
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet._simd.vectors import Vector, spread, vector_of

_GOLDEN = 0x9E3779B97F4A7C15


@intrinsic
def mixed(typingctx, a, b):
    """A 64-bit key from a key and a number."""
    if isinstance(a, types.Integer) and isinstance(b, types.Integer):

        def codegen(context, builder, signature, args):
            word = ir.IntType(64)
            z = builder.add(args[0], builder.mul(builder.add(args[1], word(1)), word(_GOLDEN)))
            for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
                z = builder.mul(builder.xor(z, builder.lshr(z, word(shift))), word(factor))
            return builder.xor(z, builder.lshr(z, word(31)))

        return types.int64(types.int64, types.int64), codegen


@intrinsic
def uniform(typingctx, pointer, key, first):
    """A vector of numbers in [0, 1), of the type that `pointer` points to, for the counters first, first + 1, …"""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            kind = vector_of(pointer.dtype)
            half = ir.IntType(32)
            many = ir.VectorType(half, kind.count)

            def every(number):
                return ir.Constant(many, [half(number)] * kind.count)

            lanes = ir.Constant(many, [half(i) for i in range(kind.count)])
            counter = builder.add(spread(builder, builder.trunc(args[2], half), many), lanes)
            low = spread(builder, builder.trunc(args[1], half), many)
            high = spread(builder, builder.trunc(builder.lshr(args[1], ir.IntType(64)(32)), half), many)
            z = builder.xor(builder.mul(counter, every(0x9E3779B9)), low)
            for salt in (high, None):
                for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
                    z = builder.mul(builder.xor(z, builder.lshr(z, every(shift))), every(factor))
                z = builder.xor(z, builder.lshr(z, every(16)))
                z = builder.add(z, salt) if salt is not None else z
            return builder.fmul(
                builder.uitofp(builder.lshr(z, every(8)), kind), ir.Constant(kind, [kind.element(2.0**-24)] * kind.count)
            )

        return Vector(pointer.dtype)(pointer, types.int64, types.int64), codegen
