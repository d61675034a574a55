"""One vector register as a value in a kernel: for short loops, which a compiler leaves scalar.

`load(p, n)` reads the first n elements at p (at most a register full) and fills the rest with
zeros, `load_or(p, n, v)` with the lanes of v; `store(p, v, n)` writes the first n (Highway's LoadN,
LoadNOr and StoreN). The arithmetic of vectors is in `elementwise`, but for `reduce_sum`.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.datamodel.registry import register_default
from numba.extending import intrinsic

from numbanet.backend.intrinsics.target import lanes_of


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
    return ir.VectorType(
        ir.FloatType() if element.bitwidth == 32 else ir.DoubleType(), lanes_of(element)
    )


def broadcast(builder, scalar, kind):
    """A vector with the scalar in every lane."""
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first, first, ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None)
    )


def first_n_mask(builder, columns, first, width):
    """True in the lanes with first + lane < columns."""
    short, all_ = ir.IntType(32), ir.IntType(64)(first + width)
    fits = builder.icmp_signed("<", columns, all_)
    count = builder.trunc(builder.select(fits, columns, all_), short)  # one comparison
    many = ir.VectorType(short, width)
    numbers = ir.Constant(many, [short(first + i) for i in range(width)])
    return builder.icmp_signed("<", numbers, broadcast(builder, count, many))


def llvm_intrinsic(builder, name, kind, result, *arguments):
    """LLVM's intrinsic function `name` for a vector type."""
    suffix = f"v{kind.count}f{32 if isinstance(kind.element, ir.FloatType) else 64}"
    return cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, arguments), f"llvm.{name}.{suffix}"
    )


def masked_load(builder, place, kind, mask, other=None):
    """The lanes of a vector at `place` that the mask selects, elsewhere those of `other` or 0."""
    load_ = llvm_intrinsic(
        builder, "masked.load", kind, kind, place.type, ir.IntType(32), mask.type, kind
    )
    size = 4 if isinstance(kind.element, ir.FloatType) else 8
    other = ir.Constant(kind, None) if other is None else other
    return builder.call(load_, [place, ir.IntType(32)(size), mask, other])


def masked_store(builder, value, place, mask):
    """Write the lanes that the mask selects."""
    kind = value.type
    store_ = llvm_intrinsic(
        builder, "masked.store", kind, ir.VoidType(), kind, place.type, ir.IntType(32), mask.type
    )
    size = 4 if isinstance(kind.element, ir.FloatType) else 8
    builder.call(store_, [value, place, ir.IntType(32)(size), mask])


def _load_first(builder, pointer, count, element, other=None):
    """The first `count` elements at `pointer`, then the lanes of `other` or zeros."""
    kind = vector_of(element)
    place = builder.bitcast(pointer, kind.as_pointer())
    full = builder.icmp_signed(">=", count, ir.IntType(64)(kind.count))
    with builder.if_else(full, likely=True) as (whole, part):
        with whole:
            all_ = builder.load(place, align=element.bitwidth // 8)
            from_whole = builder.block
        with part:
            mask = first_n_mask(builder, count, 0, kind.count)
            some = masked_load(builder, place, kind, mask, other)
            from_part = builder.block
    value = builder.phi(kind)
    value.add_incoming(all_, from_whole)
    value.add_incoming(some, from_part)
    return value


@intrinsic
def load(typingctx, pointer, count):
    """The first `count` elements at `pointer`, then zeros."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return _load_first(builder, *args, pointer.dtype)

        return Vector(pointer.dtype)(pointer, types.int64), codegen


@intrinsic
def load_or(typingctx, pointer, count, other):
    """The first `count` elements at `pointer`, then the lanes of the vector `other`."""
    if isinstance(pointer, types.CPointer) and other == Vector(pointer.dtype):

        def codegen(context, builder, signature, args):
            return _load_first(builder, args[0], args[1], pointer.dtype, args[2])

        return other(pointer, types.int64, other), codegen


@intrinsic
def reduce_sum(typingctx, v):
    """The sum of the lanes of a vector: halves are added to one another until one lane is left."""
    if isinstance(v, Vector):

        def codegen(context, builder, signature, args):
            value, count, index = args[0], vector_of(v.element).count, ir.IntType(32)
            while count > 1:
                count //= 2
                low, high = (
                    builder.shuffle_vector(
                        value,
                        value,
                        ir.Constant(
                            ir.VectorType(index, count), [index(first + i) for i in range(count)]
                        ),
                    )
                    for first in (0, count)
                )
                value = builder.fadd(low, high)
            return builder.extract_element(value, index(0))

        return v.element(v), codegen


@intrinsic
def store(typingctx, pointer, value, count):
    """Write the first `count` lanes of `value` to `pointer`."""
    if isinstance(pointer, types.CPointer) and isinstance(value, Vector):

        def codegen(context, builder, signature, args):
            kind = vector_of(pointer.dtype)
            place = builder.bitcast(args[0], kind.as_pointer())
            full = builder.icmp_signed(">=", args[2], ir.IntType(64)(kind.count))
            with builder.if_else(full, likely=True) as (whole, part):
                with whole:
                    builder.store(args[1], place, align=pointer.dtype.bitwidth // 8)
                with part:
                    masked_store(
                        builder, args[1], place, first_n_mask(builder, args[2], 0, kind.count)
                    )
            return context.get_dummy_value()

        return types.void(pointer, value, types.int64), codegen
