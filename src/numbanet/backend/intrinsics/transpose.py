"""Transposing a matrix, square blocks of it in registers."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.pointers import call_external, lanes, ptr_add
from numbanet.backend.intrinsics.vectors import first_n_mask, masked_load, masked_store, vector_of
from numbanet.backend.jit import ExternalHelper


@intrinsic
def transpose(typingctx, source, source_row, target, target_row, rows, columns):
    """target[j, i] = source[i, j]: a call of `_turn`, which is compiled once and shared by all kernels."""
    if isinstance(target, types.CPointer):
        return call_external(_external_transpose, target.dtype)


def _transpose_arguments(dtype):
    memory, whole = types.CPointer(dtype), types.int64
    return (memory, whole, memory, whole, whole, whole)


def _transpose(source, source_row, target, target_row, rows, columns):
    """Transpose a matrix of `rows` × `columns`, square block by square block, each in as many registers as it has rows."""
    width = lanes(source)
    for i in range(0, rows, width):
        for j in range(0, columns, width):
            transpose_tile(ptr_add(source, i * source_row + j), source_row, ptr_add(target, j * target_row + i), target_row,
                       min(width, rows - i), min(width, columns - j))


_external_transpose = ExternalHelper(_transpose, _transpose_arguments)
_external_transpose.bind_to(transpose)


@intrinsic
def transpose_tile(typingctx, source, source_row, target, target_row, rows, columns):
    """One block of `_turn`: in step d = 1, 2, 4, … the lanes with bit d exchange places with the rows with bit d."""

    def codegen(context, builder, signature, args):
        source, source_row, target, target_row, rows, columns = args
        kind, integer, lane = vector_of(signature.args[0].dtype), ir.IntType(64), ir.IntType(32)
        width = kind.count

        def place(base, stride, r, limit):
            """Row r, or row 0 beyond the last: a masked access may touch nothing, but is slow where no memory is."""
            offset = builder.select(builder.icmp_signed("<", integer(r), limit), builder.mul(stride, integer(r)), integer(0))
            return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())

        def inside(limit, r, numbers):
            """The lanes below `numbers` for a row r before `limit`, none beyond."""
            count = builder.select(builder.icmp_signed("<", integer(r), limit), numbers, integer(0))
            return first_n_mask(builder, count, 0, width)

        block = [masked_load(builder, place(source, source_row, r, rows), kind, inside(rows, r, columns))
                 for r in range(width)]
        step = 1
        while step < width:
            for r in range(width):
                if not r & step:
                    upper, lower = block[r], block[r + step]
                    first = [width + k - step if k & step else k for k in range(width)]
                    second = [width + k if k & step else k + step for k in range(width)]
                    order = [ir.Constant(ir.VectorType(lane, width), [lane(k) for k in chosen]) for chosen in (first, second)]
                    block[r], block[r + step] = (builder.shuffle_vector(upper, lower, one) for one in order)
            step *= 2
        for r in range(width):
            masked_store(builder, block[r], place(target, target_row, r, columns), inside(columns, r, rows))
        return context.get_dummy_value()

    return types.void(*_transpose_arguments(source.dtype)), codegen
