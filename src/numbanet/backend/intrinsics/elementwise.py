"""Elementwise operations, for a scalar or for a vector register (a Vector) alike.

A Vector has + − · /, a sign, abs, math.sqrt and the functions below, so that the mathematics in
`elementary` and of the activations is written once. The operations of a Vector are the same in
every lane: the result for an element does not depend on its position in memory.
"""

import math
import operator

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from numbanet.backend.intrinsics.vectors import Vector, broadcast, llvm_intrinsic, vector_of

_FLAGS = ("nsz", "arcp", "contract", "afn")


def _element(kind):
    """The float type of a scalar, a vector, or what a pointer points to; None for anything else."""
    if isinstance(kind, Vector):
        return kind.element
    kind = kind.dtype if isinstance(kind, types.CPointer) else kind
    return kind if isinstance(kind, types.Float) else None


def _shape(kind, bits_of):
    """An LLVM scalar type, or a vector of it where `kind` is a Vector."""
    return (
        ir.VectorType(bits_of, vector_of(kind.element).count)
        if isinstance(kind, Vector)
        else bits_of
    )


def _constant(kind, scalar, value):
    """A constant of a scalar LLVM type, in every lane where `kind` is a Vector."""
    if isinstance(kind, Vector):
        count = vector_of(kind.element).count
        return ir.Constant(ir.VectorType(scalar, count), [scalar(value)] * count)
    return scalar(value)


def _exponent_field(kind):
    """(integer type of the float's width, bits of its fraction, bias of its exponent)."""
    return (
        (ir.IntType(32), 23, 127) if _element(kind) == types.float32 else (ir.IntType(64), 52, 1023)
    )


def _operator(function, instruction):
    @infer_global(function)
    class Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)

    @lower_builtin(function, Vector, Vector)
    def lower(context, builder, sig, args):
        return getattr(builder, instruction)(*args, flags=_FLAGS)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


@infer_global(operator.neg)
@infer_global(abs)
@infer_global(math.sqrt)
class _OneVector(AbstractTemplate):
    def generic(self, args, kws):
        if len(args) == 1 and isinstance(args[0], Vector):
            return signature(args[0], *args)


@lower_builtin(operator.neg, Vector)
def _lower_neg(context, builder, sig, args):
    return builder.fneg(*args, flags=_FLAGS)


@lower_builtin(abs, Vector)
def _lower_abs(context, builder, sig, args):
    kind = args[0].type
    return builder.call(llvm_intrinsic(builder, "fabs", kind, kind, kind), args)


@lower_builtin(math.sqrt, Vector)
def _lower_sqrt(context, builder, sig, args):
    kind = args[0].type
    return builder.call(llvm_intrinsic(builder, "sqrt", kind, kind, kind), args)


@intrinsic
def const_like(typingctx, x, value):
    """`value` in the type of x, or of what x points to; a plain 0.5 is float64."""
    element = _element(x)
    if element is not None and isinstance(value, types.Number):
        result = x if isinstance(x, Vector) else element

        def codegen(context, builder, signature, args):
            number = context.cast(builder, args[1], signature.args[1], element)
            return (
                broadcast(builder, number, vector_of(element)) if isinstance(x, Vector) else number
            )

        return result(x, value), codegen


@intrinsic
def splat(typingctx, pointer, value):
    """A Vector with `value` in every lane, of the type that `pointer` points to."""
    if isinstance(pointer, types.CPointer) and isinstance(value, types.Number):
        element = pointer.dtype

        def codegen(context, builder, signature, args):
            scalar = context.cast(builder, args[1], signature.args[1], element)
            return broadcast(builder, scalar, vector_of(element))

        return Vector(element)(pointer, value), codegen


@intrinsic
def is_float32(typingctx, x):
    """True for float32 and false for float64, known when the code is compiled."""
    element = _element(x)
    if element is not None:

        def codegen(context, builder, signature, args):
            return ir.IntType(1)(element == types.float32)

        return types.boolean(x), codegen


@intrinsic
def exp2_of_bits(typingctx, x):
    """2ⁿ, with the last bits of x as the field of its exponent: n and the bias."""
    if _element(x) is not None:

        def codegen(context, builder, signature, args):
            integer, fraction, _ = _exponent_field(x)
            bits = builder.bitcast(args[0], _shape(x, integer))
            return builder.bitcast(builder.shl(bits, _constant(x, integer, fraction)), args[0].type)

        return x(x), codegen


@intrinsic
def exponent(typingctx, x):
    """⌊log₂ x⌋ of a positive normal number, as a float."""
    if _element(x) is not None:

        def codegen(context, builder, signature, args):
            integer, fraction, bias = _exponent_field(x)
            field = builder.ashr(
                builder.bitcast(args[0], _shape(x, integer)), _constant(x, integer, fraction)
            )
            return builder.sitofp(builder.sub(field, _constant(x, integer, bias)), args[0].type)

        return x(x), codegen


@intrinsic
def mantissa(typingctx, x):
    """x / 2^⌊log₂ x⌋ of a positive normal number, in [1, 2)."""
    if _element(x) is not None:

        def codegen(context, builder, signature, args):
            integer, fraction, bias = _exponent_field(x)
            word = builder.bitcast(args[0], _shape(x, integer))
            kept = builder.and_(word, _constant(x, integer, (1 << fraction) - 1))
            return builder.bitcast(
                builder.or_(kept, _constant(x, integer, bias << fraction)), args[0].type
            )

        return x(x), codegen


@intrinsic
def where_greater(typingctx, a, b, then, otherwise):
    """`then` where a > b, else `otherwise`; a comparison with NaN does not hold."""
    if _element(a) is not None and a == b == then == otherwise:

        def codegen(context, builder, signature, args):
            return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

        return a(a, b, then, otherwise), codegen


@intrinsic
def where_equal(typingctx, a, b, then, otherwise):
    """`then` where a = b, else `otherwise`."""
    if _element(a) is not None and a == b == then == otherwise:

        def codegen(context, builder, signature, args):
            return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

        return a(a, b, then, otherwise), codegen


def _shuffle(builder, first, second, order):
    """A vector of lanes of two; `order` counts those of the second after those of the first."""
    index_type = ir.IntType(32)
    return builder.shuffle_vector(
        first,
        second,
        ir.Constant(ir.VectorType(index_type, len(order)), [index_type(i) for i in order]),
    )


@intrinsic
def swap_pairs(typingctx, v):
    """The vector with the lanes of every pair swapped: 1, 0, 3, 2, …"""
    if isinstance(v, Vector):

        def codegen(context, builder, signature, args):
            return _shuffle(
                builder, args[0], args[0], [i ^ 1 for i in range(vector_of(v.element).count)]
            )

        return v(v), codegen


@intrinsic
def concat_even(typingctx, v, w):
    """The even lanes of v, then those of w."""
    if isinstance(v, Vector) and v == w:

        def codegen(context, builder, signature, args):
            return _shuffle(builder, *args, [2 * i for i in range(vector_of(v.element).count)])

        return v(v, w), codegen


@intrinsic
def interleave_low(typingctx, v):
    """Every lane of the first half of v twice: 0, 0, 1, 1, …"""
    if isinstance(v, Vector):

        def codegen(context, builder, signature, args):
            return _shuffle(
                builder, args[0], args[0], [i >> 1 for i in range(vector_of(v.element).count)]
            )

        return v(v), codegen


@intrinsic
def odd_mask(typingctx, v):
    """A vector like v with 1 in its odd lanes and 0 in the others."""
    if isinstance(v, Vector):

        def codegen(context, builder, signature, args):
            kind = vector_of(v.element)
            return ir.Constant(kind, [kind.element(float(i & 1)) for i in range(kind.count)])

        return v(v), codegen
