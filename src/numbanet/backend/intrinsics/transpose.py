"""Transposing a matrix, square tiles of it in registers."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.pointers import call_external, lanes, ptr_add
from numbanet.backend.intrinsics.vectors import first_n_mask, masked_load, masked_store, vector_of
from numbanet.backend.jit import ExternalHelper


@intrinsic
def transpose(typingctx, m, n, a, lda, b, ldb):
    """B = Aᵀ for A (m, n), row-major: a call of `_transpose`, compiled once for all kernels.

    b[j·ldb + i] = a[i·lda + j],  0 ≤ i < m, 0 ≤ j < n
    """
    if isinstance(b, types.CPointer):
        return call_external(_external_transpose, b.dtype)


def _transpose_arguments(dtype):
    pointer, integer = types.CPointer(dtype), types.int64
    return (integer, integer, pointer, integer, pointer, integer)


def _transpose(m, n, a, lda, b, ldb):
    """Transpose tile by tile, each in as many registers as it has rows."""
    width = lanes(a)
    for i in range(0, m, width):
        for j in range(0, n, width):
            transpose_tile(
                min(width, m - i),
                min(width, n - j),
                ptr_add(a, i * lda + j),
                lda,
                ptr_add(b, j * ldb + i),
                ldb,
            )


_external_transpose = ExternalHelper(_transpose, _transpose_arguments)
_external_transpose.bind_to(transpose)


@intrinsic
def transpose_tile(typingctx, m, n, a, lda, b, ldb):
    """One tile of `_transpose`, without masks where it is whole."""

    def codegen(context, builder, signature, args):
        m, n, a, lda, b, ldb = args
        kind, integer = vector_of(signature.args[2].dtype), ir.IntType(64)
        width = kind.count

        def place(base, stride, r):
            return builder.bitcast(
                builder.gep(base, [builder.mul(stride, integer(r))]), kind.as_pointer()
            )

        def place_within(base, stride, r, limit):
            """Row r, or row 0 beyond the last.

            A masked access touches nothing, but is slow where no memory is mapped.
            """
            valid = builder.icmp_signed("<", integer(r), limit)
            return place(base, builder.select(valid, stride, integer(0)), r)

        def row_mask(limit, r, count):
            """The first `count` lanes of row r where r < limit, and none elsewhere."""
            valid = builder.icmp_signed("<", integer(r), limit)
            return first_n_mask(builder, builder.select(valid, count, integer(0)), 0, width)

        whole = builder.and_(*(builder.icmp_signed("==", size, integer(width)) for size in (m, n)))
        with builder.if_else(whole) as (full, partial):
            with full:
                align = signature.args[2].dtype.bitwidth // 8
                rows = [builder.load(place(a, lda, r), align=align) for r in range(width)]
                for r, row in enumerate(_transposed(builder, rows)):
                    builder.store(row, place(b, ldb, r), align=align)
            with partial:
                rows = [
                    masked_load(builder, place_within(a, lda, r, m), kind, row_mask(m, r, n))
                    for r in range(width)
                ]
                for r, row in enumerate(_transposed(builder, rows)):
                    masked_store(builder, row, place_within(b, ldb, r, n), row_mask(n, r, m))
        return context.get_dummy_value()

    return types.void(*_transpose_arguments(a.dtype)), codegen


def _transposed(builder, rows):
    """A square of registers transposed: for d = 1, 2, 4, … lanes and rows with bit d swap."""
    width, index_type = len(rows), ir.IntType(32)
    tile, d = list(rows), 1
    while d < width:
        for r in range(width):
            if not r & d:
                pair = tile[r], tile[r + d]
                first = [width + k - d if k & d else k for k in range(width)]
                second = [width + k if k & d else k + d for k in range(width)]
                for row, order in ((r, first), (r + d, second)):
                    mask = ir.Constant(
                        ir.VectorType(index_type, width), [index_type(k) for k in order]
                    )
                    tile[row] = builder.shuffle_vector(*pair, mask)
        d *= 2
    return tile
