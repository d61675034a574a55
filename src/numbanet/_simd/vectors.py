"""One vector register as a value in a kernel: for loops over few channels, which a compiler leaves scalar.

`load(p, n)` reads the first n numbers at p (at most a register full) and fills the rest with zeros; `store(p, v, n)` writes the
first n. Between them: + − · through `add`, `multiply_add`, `scale`, and `largest`, `where_equal`.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic

from numbanet._simd.width import lanes_of


class Vector(types.Type):
    """Numba's type of a register full of `element`."""

    def __init__(self, element):
        self.element = element
        super().__init__(name=f"Vector({element})")


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, vector_of(kind.element))


def vector_of(element):
    """The LLVM type of a register full of a Numba float type."""
    return ir.VectorType(ir.FloatType() if element.bitwidth == 32 else ir.DoubleType(), lanes_of(element))


def spread(builder, scalar, kind):
    """A vector with the scalar in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None))


def mask_before(builder, columns, first, width):
    """True in the lanes whose number, first + lane, lies before `columns`."""
    integer = ir.IntType(64)
    many = ir.VectorType(integer, width)
    numbers = ir.Constant(many, [integer(first + i) for i in range(width)])
    return builder.icmp_signed("<", numbers, spread(builder, columns, many))


def named(builder, name, kind, result, *arguments):
    """LLVM's function `name` for a vector type."""
    suffix = f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), f"llvm.{name}.{suffix}")


def masked_load(builder, place, kind, mask):
    """The lanes of a vector at `place` that the mask selects, zero elsewhere."""
    load_ = named(builder, "masked.load", kind, kind, place.type, ir.IntType(32), mask.type, kind)
    size = 4 if isinstance(kind.element, ir.FloatType) else 8
    return builder.call(load_, [place, ir.IntType(32)(size), mask, ir.Constant(kind, None)])


def masked_store(builder, value, place, mask):
    """Write the lanes that the mask selects."""
    kind = value.type
    store_ = named(builder, "masked.store", kind, ir.VoidType(), kind, place.type, ir.IntType(32), mask.type)
    size = 4 if isinstance(kind.element, ir.FloatType) else 8
    builder.call(store_, [value, place, ir.IntType(32)(size), mask])


@intrinsic
def load(typingctx, pointer, count):
    """The first `count` numbers at `pointer`, zeros behind them."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            kind = vector_of(pointer.dtype)
            place = builder.bitcast(args[0], kind.as_pointer())
            return masked_load(builder, place, kind, mask_before(builder, args[1], 0, kind.count))

        return Vector(pointer.dtype)(pointer, types.int64), codegen


@intrinsic
def store(typingctx, pointer, value, count):
    """Write the first `count` numbers of `value` to `pointer`."""
    if isinstance(pointer, types.CPointer) and isinstance(value, Vector):

        def codegen(context, builder, signature, args):
            kind = vector_of(pointer.dtype)
            place = builder.bitcast(args[0], kind.as_pointer())
            masked_store(builder, args[1], place, mask_before(builder, args[2], 0, kind.count))
            return context.get_dummy_value()

        return types.void(pointer, value, types.int64), codegen


@intrinsic
def zeros(typingctx, pointer):
    """A vector of zeros of the type that `pointer` points to."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return ir.Constant(vector_of(pointer.dtype), None)

        return Vector(pointer.dtype)(pointer), codegen


@intrinsic
def filled(typingctx, number):
    """A vector with `number` in every lane."""
    if isinstance(number, types.Float):

        def codegen(context, builder, signature, args):
            return spread(builder, args[0], vector_of(number))

        return Vector(number)(number), codegen


def _binary(emit, doc):
    def typed(typingctx, a, b):
        if isinstance(a, Vector) and a == b:

            def codegen(context, builder, signature, args):
                return emit(builder, *args)

            return a(a, b), codegen

    typed.__doc__ = doc
    return intrinsic(typed)


add = _binary(lambda builder, a, b: builder.fadd(a, b), "a + b")
product = _binary(lambda builder, a, b: builder.fmul(a, b), "a · b")
largest = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", b, a), b, a), "The larger; a where equal.")


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a · b + c"""
    if isinstance(a, Vector) and a == b == c:

        def codegen(context, builder, signature, args):
            kind = args[0].type
            return builder.call(named(builder, "fmuladd", kind, kind, kind, kind, kind), args)

        return a(a, b, c), codegen


@intrinsic
def where_equal(typingctx, a, b, then, otherwise):
    """`then` in the lanes where a = b, `otherwise` elsewhere."""
    if isinstance(a, Vector) and a == b == then == otherwise:

        def codegen(context, builder, signature, args):
            return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

        return a(a, b, then, otherwise), codegen
