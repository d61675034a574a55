"""The matrix product, the heart of the project.

In a `tile` a block of C stays in registers while one row of B after another
is loaded as vectors and multiplied by broadcast elements of A. K runs in two levels, an inner and an outer run with a stride each
for A and B, so that the same tile serves a dense layer (outer run of one) and every convolution. Each element of C adds its
products one after the other in the order of K, whatever the tile around it: results do not depend on how a matrix was cut, hence
not on the number of threads.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.pointers import call_external, lanes, ptr_add
from numbanet.backend.intrinsics.target import MR, lanes_of
from numbanet.backend.intrinsics.vectors import broadcast, first_n_mask, llvm_intrinsic, masked_load, masked_store, vector_of
from numbanet.backend.jit import ExternalHelper

NR_GEMV = 4
"""Vectors of the tile for a single row: more sums under way, since each waits for the one before."""


@intrinsic
def brgemm_strided(typingctx, s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, m, n, k_in, k_out, started):
    """C = S + A·B: a call of `_multiply`, which is compiled once and shared by all kernels."""
    if isinstance(c, types.CPointer):
        return call_external(_external_brgemm, c.dtype)


def _brgemm_arguments(dtype):
    memory, whole = types.CPointer(dtype), types.int64
    return (memory, whole, memory, whole, whole, whole, memory, whole, whole, memory, *[whole] * 6)


def _brgemm(s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, m, n, k_in, k_out, started):
    """C = S + A·B with C of m rows and n columns, cut into tiles that fit the registers.

    c[r, j] = s[r, j] + Σ_o Σ_k a[r·a_row + k·a_in + o·a_out] · b[j + k·b_in + o·b_out],  0 ≤ k < k_in, 0 ≤ o < k_out
    Strides are in elements; rows of B, C and S are contiguous along j. With started = 0, S counts as zero and is not read;
    with s = c the product is added to what is there; with s_row = 0 every row starts from the same row (a bias).
    """
    panel = (NR_GEMV if m == 1 else 2) * lanes(c)
    tiles = (m + MR - 1) // MR
    for j in range(0, n, panel):
        i = 0
        for t in range(tiles):
            rows = (m - i) // (tiles - t)
            microkernel(started, ptr_add(s, i * s_row + j), s_row, ptr_add(a, i * a_row), a_row, a_in, a_out, ptr_add(b, j), b_in, b_out,
                 ptr_add(c, i * c_row + j), c_row, rows, min(n - j, panel), k_in, k_out)
            i += rows


_external_brgemm = ExternalHelper(_brgemm, _brgemm_arguments)
_external_brgemm.bind_to(brgemm_strided)


@intrinsic
def microkernel(typingctx, started, s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, rows, columns, k_in, k_out):
    """One block of `multiply`: 1 to ROWS rows of 1 to 2 vectors, or one row of up to ROW_VECTORS; nothing beyond is touched.

    A body of its own is emitted for every number of rows and vectors, with the last vector masked and without.
    """
    whole = types.int64
    signature = types.void(whole, c, whole, c, whole, whole, whole, c, whole, whole, c, whole, whole, whole, whole, whole)

    def codegen(context, builder, signature, args):
        width, bitwidth = lanes_of(c.dtype), c.dtype.bitwidth
        names = ("started", "s", "s_row", "a", "a_row", "a_in", "a_out", "b", "b_in", "b_out", "c", "c_row", "rows", "columns",
                 "k_in", "k_out")
        given = dict(zip(names, args, strict=True))
        integer = ir.IntType(64)
        columns, one = given["columns"], integer(width)
        vectors = builder.sdiv(builder.add(columns, integer(width - 1)), one)
        several = builder.icmp_signed(">", vectors, integer(1))
        full = builder.and_(builder.icmp_signed("==", builder.mul(vectors, one), columns), several)
        kind = builder.add(builder.mul(vectors, integer(2)), builder.zext(full, integer))
        done = builder.append_basic_block("tile.done")
        choose = builder.switch(builder.add(builder.mul(kind, integer(MR + 1)), given["rows"]), done)
        for count in range(1, NR_GEMV + 1):
            for masked in (True, False) if count > 1 else (True,):
                for rows in range(1, (MR if count <= 2 else 1) + 1):
                    block = builder.append_basic_block(f"tile.{rows}x{count}")
                    choose.add_case(integer((2 * count + (not masked)) * (MR + 1) + rows), block)
                    builder.position_at_end(block)
                    _emit_microkernel(builder, given, rows, count, masked, width, bitwidth)
                    builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


def _emit_microkernel(builder, given, rows, vectors, masked, width, bitwidth):
    """Emit one tile: load the sums or clear them, run K with the sums in registers, store them."""
    integer = ir.IntType(64)
    vector = ir.VectorType(ir.FloatType() if bitwidth == 32 else ir.DoubleType(), width)
    zero = ir.Constant(vector, None)
    last = vectors - 1 if masked else vectors
    mask = first_n_mask(builder, given["columns"], width * (vectors - 1), width) if masked else None

    def load(base, v):
        place = builder.bitcast(builder.gep(base, [integer(v * width)]), vector.as_pointer())
        return masked_load(builder, place, vector, mask) if v == last else builder.load(place, align=bitwidth // 8)

    def store(value, base, v):
        place = builder.bitcast(builder.gep(base, [integer(v * width)]), vector.as_pointer())
        if v == last:
            masked_store(builder, value, place, mask)
        else:
            builder.store(value, place, align=bitwidth // 8)

    def row(base, stride, r):
        return builder.gep(base, [builder.mul(stride, integer(r))])

    multiply_add = llvm_intrinsic(builder, "fmuladd", vector, vector, vector, vector, vector)
    places = [(r, v) for r in range(rows) for v in range(vectors)]

    def outer(o, sums):
        a_here = builder.gep(given["a"], [builder.mul(o, given["a_out"])])
        b_here = builder.gep(given["b"], [builder.mul(o, given["b_out"])])

        def inner(k, sums):
            a_k = builder.gep(a_here, [builder.mul(k, given["a_in"])])
            b_k = builder.gep(b_here, [builder.mul(k, given["b_in"])])
            b_row = [load(b_k, v) for v in range(vectors)]
            a_column = [broadcast(builder, builder.load(row(a_k, given["a_row"], r)), vector) for r in range(rows)]
            return {(r, v): builder.call(multiply_add, [a_column[r], b_row[v], sums[r, v]]) for r, v in places}

        return _loop(builder, given["k_in"], sums, inner)

    empty, full, ready = (builder.append_basic_block(name) for name in ("empty", "full", "ready"))
    builder.cbranch(builder.icmp_signed("==", given["started"], integer(0)), empty, full)
    builder.position_at_end(empty)
    builder.branch(ready)
    builder.position_at_end(full)
    loaded = {(r, v): load(row(given["s"], given["s_row"], r), v) for r, v in places}
    builder.branch(ready)
    builder.position_at_end(ready)
    starts = _phi(builder, [(empty, dict.fromkeys(places, zero)), (full, loaded)])
    sums = _loop(builder, given["k_out"], starts, outer)
    for r, v in places:
        store(sums[r, v], row(given["c"], given["c_row"], r), v)


def _phi(builder, sums_by_block):
    """Phi nodes for sums that come from several blocks."""
    joined = {}
    for place, first in sums_by_block[0][1].items():
        joined[place] = builder.phi(first.type)
        for block, sums in sums_by_block:
            joined[place].add_incoming(sums[place], block)
    return joined


def _loop(builder, count, sums, step):
    """Emit `count` times sums = step(index, sums), with the sums in registers."""
    integer = ir.IntType(64)
    before, head = builder.block, builder.append_basic_block("head")
    inside, after = builder.append_basic_block("inside"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(integer)
    index.add_incoming(integer(0), before)
    carried = _phi(builder, [(before, sums)])
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    following = step(index, carried)
    index.add_incoming(builder.add(index, integer(1)), builder.block)
    for place, phi in carried.items():
        phi.add_incoming(following[place], builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return carried


# --- dot products -------------------------------------------------------------------------------------------------------

DOT_ROWS, DOT_COLUMNS = (5, 4) if MR == 8 else (3, 3)
"""Largest block of sums that `dots` keeps in registers."""


@intrinsic
def dot_products(typingctx, a, a_row, a_out, b, b_row, b_out, c, c_row, m, n, length, times):
    """C += A·Bᵀ for few, long rows: a call of `_dots`, which is compiled once and shared by all kernels."""
    if isinstance(c, types.CPointer):
        return call_external(_external_dot_products, c.dtype)


def _dot_arguments(dtype):
    memory, whole = types.CPointer(dtype), types.int64
    return (memory, whole, whole, memory, whole, whole, memory, *[whole] * 5)


def _dot_products(a, a_row, a_out, b, b_row, b_out, c, c_row, m, n, length, times):
    """C += A·Bᵀ, the vectors along the rows and one sum across the lanes at the end.

    c[i, j] += Σ_t Σ_p a[i·a_row + p + t·a_out] · b[j·b_row + p + t·b_out],  0 ≤ p < length, 0 ≤ t < times
    Rows of A may overlap (a_row = 1: one picture seen through a moving window).
    """
    for i in range(0, m, DOT_ROWS):
        for j in range(0, n, DOT_COLUMNS):
            dot_microkernel(ptr_add(a, i * a_row), a_row, a_out, ptr_add(b, j * b_row), b_row, b_out, ptr_add(c, i * c_row + j), c_row,
                      min(DOT_ROWS, m - i), min(DOT_COLUMNS, n - j), length, times)


_external_dot_products = ExternalHelper(_dot_products, _dot_arguments)
_external_dot_products.bind_to(dot_products)


@intrinsic
def dot_microkernel(typingctx, a, a_row, a_out, b, b_row, b_out, c, c_row, rows, columns, length, times):
    """One block of `_dots`, with a body of its own for every number of rows and columns."""
    arguments = _dot_arguments(c.dtype)
    names = ("a", "a_row", "a_out", "b", "b_row", "b_out", "c", "c_row", "rows", "columns", "length", "times")

    def codegen(context, builder, signature, args):
        given = dict(zip(names, args, strict=True))
        integer = ir.IntType(64)
        case = builder.add(builder.mul(given["rows"], integer(DOT_COLUMNS + 1)), given["columns"])
        done = builder.append_basic_block("dots.done")
        choose = builder.switch(case, done)
        for rows in range(1, DOT_ROWS + 1):
            for columns in range(1, DOT_COLUMNS + 1):
                block = builder.append_basic_block(f"dots.{rows}x{columns}")
                choose.add_case(integer(rows * (DOT_COLUMNS + 1) + columns), block)
                builder.position_at_end(block)
                _emit_dot_kernel(builder, given, rows, columns, vector_of(c.dtype))
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*arguments), codegen


def _emit_dot_kernel(builder, given, rows, columns, vector):
    """Emit one block: all sums in registers over both runs, then one sum across the lanes for each."""
    integer, width = ir.IntType(64), vector.count
    places = [(r, c) for r in range(rows) for c in range(columns)]
    multiply_add = llvm_intrinsic(builder, "fmuladd", vector, vector, vector, vector, vector)
    whole = builder.sdiv(given["length"], integer(width))
    rest = first_n_mask(builder, builder.srem(given["length"], integer(width)), 0, width)
    add_up = llvm_intrinsic(builder, "vector.reduce.fadd", vector, vector.element, vector.element, vector)

    def row(base, stride, r):
        return builder.gep(base, [builder.mul(stride, integer(r))])

    def products(a, b, sums, read):
        """sums + the products of the vectors at a and b."""
        right = [read(row(b, given["b_row"], c)) for c in range(columns)]
        left = [read(row(a, given["a_row"], r)) for r in range(rows)]
        return {(r, c): builder.call(multiply_add, [left[r], right[c], sums[r, c]]) for r, c in places}

    def plain(place):
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)

    def masked(place):
        return masked_load(builder, builder.bitcast(place, vector.as_pointer()), vector, rest)

    def outer(t, sums):
        a, b = (builder.gep(given[x], [builder.mul(t, given[f"{x}_out"])]) for x in "ab")

        def inner(k, sums):
            step = builder.mul(k, integer(width))
            return products(builder.gep(a, [step]), builder.gep(b, [step]), sums, plain)

        sums = _loop(builder, whole, sums, inner)
        end = builder.mul(whole, integer(width))
        return products(builder.gep(a, [end]), builder.gep(b, [end]), sums, masked)

    sums = _loop(builder, given["times"], dict.fromkeys(places, ir.Constant(vector, None)), outer)
    for r, c in places:
        place = builder.gep(given["c"], [builder.add(builder.mul(given["c_row"], integer(r)), integer(c))])
        total = builder.call(add_up, [vector.element(0.0), sums[r, c]], "", None, None, ("reassoc",))
        builder.store(builder.fadd(builder.load(place), total), place)
