"""The matrix product (GEMM), the heart of the project.

    gemm        C = β C + A·B          A (m, k) · B (k, n) · C (m, n) · β is 0 or 1
    gemm_tn     C = β C + Aᵀ·B         A is stored (k, m)
    gemm_nt     C = β C + A·Bᵀ         B is stored (n, k)
    gemm_bias   C = b + A·B            b (n,) is the same for every row; without `use_bias`, C = A·B

Matrices are row-major, and `lda`, `ldb` and `ldc` are the distances from row to row in elements.
The batch-reduce forms `brgemm`, `brgemm_tn`, `brgemm_nt` and `brgemm_bias` (oneDNN's word) add up
several products, whose matrices lie `stride_a` and `stride_b` elements from one another, as in a
convolution:

    C = β C + Σ_t A_t·B_t     0 ≤ t < batch

With β = 0, C is not read. All are calls of two helpers, which are compiled once and shared by all
kernels. In a microkernel a tile of C stays in registers while one row of B after another is loaded
as vectors and multiplied by broadcast elements of A. Each element of C adds its products one after
the other in the order of k and t, whatever the tile around it: results do not depend on how a
matrix was cut, hence not on the number of threads. `gemm_nt` adds up in vector lanes instead.
"""

import inspect

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.elementwise import const_like
from numbanet.backend.intrinsics.pointers import call_external, lanes, ptr_add
from numbanet.backend.intrinsics.target import MR, NR, VECTOR_BYTES, lanes_of
from numbanet.backend.intrinsics.vectors import (
    broadcast,
    first_n_mask,
    llvm_intrinsic,
    masked_load,
    masked_store,
    vector_of,
)
from numbanet.backend.jit import ExternalHelper, inline

NR_GEMV = 8
"""Vectors of the tile for a single row: more sums in flight, as each waits for the one before."""


@inline
def gemm(m, n, k, a, lda, b, ldb, beta, c, ldc):
    """C = β C + A·B."""
    brgemm_strided(m, n, k, 1, a, lda, 1, 0, b, ldb, 0, beta, c, ldc, c, ldc)


@inline
def gemm_tn(m, n, k, a, lda, b, ldb, beta, c, ldc):
    """C = β C + Aᵀ·B, with A stored (k, m)."""
    brgemm_strided(m, n, k, 1, a, 1, lda, 0, b, ldb, 0, beta, c, ldc, c, ldc)


@inline
def gemm_nt(m, n, k, a, lda, b, ldb, beta, c, ldc):
    """C = β C + A·Bᵀ, with B stored (n, k): dot products of rows, for few and long ones."""
    brgemm_nt(m, n, k, 1, a, lda, 0, b, ldb, 0, beta, c, ldc)


@inline
def gemm_bias(m, n, k, a, lda, b, ldb, bias, use_bias, c, ldc):
    """C = bias + A·B, or A·B where `use_bias` is 0."""
    brgemm_strided(m, n, k, 1, a, lda, 1, 0, b, ldb, 0, use_bias, bias, 0, c, ldc)


@inline
def brgemm(m, n, k, batch, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc):
    """C = β C + Σ_t A_t·B_t."""
    brgemm_strided(m, n, k, batch, a, lda, 1, stride_a, b, ldb, stride_b, beta, c, ldc, c, ldc)


@inline
def brgemm_tn(m, n, k, batch, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc):
    """C = β C + Σ_t A_tᵀ·B_t, with each A_t stored (k, m)."""
    brgemm_strided(m, n, k, batch, a, 1, lda, stride_a, b, ldb, stride_b, beta, c, ldc, c, ldc)


@inline
def brgemm_bias(m, n, k, batch, a, lda, stride_a, b, ldb, stride_b, bias, use_bias, c, ldc):
    """C = bias + Σ_t A_t·B_t, or without the bias where `use_bias` is 0."""
    brgemm_strided(m, n, k, batch, a, lda, 1, stride_a, b, ldb, stride_b, use_bias, bias, 0, c, ldc)


# --- the microkernel and the loops around it ----------------------------------------------------


_HELPER_ORDER = (
    *("c0", "ldc0", "a", "lda", "a_k", "stride_a", "b", "ldb", "stride_b", "c", "ldc"),
    *("m", "n", "k", "batch", "beta"),
)
"""The helper takes C₀ and A first, which the calling convention keeps in registers: large dense
products are 7 % faster than with the sizes first."""


@intrinsic
def brgemm_strided(
    typingctx, m, n, k, batch, a, lda, a_k, stride_a, b, ldb, stride_b, beta, c0, ldc0, c, ldc
):
    """C = β C₀ + Σ_t A_t·B_t with every stride free: a call of `_brgemm`.

    The wrappers above are what a kernel calls.
    """
    if isinstance(c, types.CPointer):
        helper, emit = call_external(_external_brgemm, c.dtype)
        kinds = dict(zip(_HELPER_ORDER, helper.args, strict=True))
        names = list(inspect.signature(brgemm_strided._defn).parameters)[1:]

        def codegen(context, builder, signature, args):
            given = dict(zip(names, args, strict=True))
            return emit(context, builder, helper, [given[name] for name in _HELPER_ORDER])

        return types.void(*[kinds[name] for name in names]), codegen


def _brgemm_arguments(dtype):
    pointer, integer = types.CPointer(dtype), types.int64
    a, b = (pointer, *[integer] * 3), (pointer, *[integer] * 2)
    return (pointer, integer, *a, *b, pointer, *[integer] * 6)


def _brgemm(c0, ldc0, a, lda, a_k, stride_a, b, ldb, stride_b, c, ldc, m, n, k, batch, beta):
    """C = β C₀ + Σ_t A_t·B_t with C of m rows and n columns, cut into tiles that fit the registers.

    c[i, j] = β c0[i, j] + Σ_t Σ_p a[i·lda + p·a_k + t·stride_a] · b[j + p·ldb + t·stride_b]
    for 0 ≤ p < k and 0 ≤ t < batch. Strides are in elements; rows of B, C and C₀ are contiguous.
    c0 may be c; with ldc0 = 0 every row starts from the same row (a bias). Panels are two vectors
    wide, the last one up to NR: a single vector would wait for the broadcast elements of A.
    """
    width, tiles, j = lanes(c), (m + MR - 1) // MR, 0
    panel, widest = (NR_GEMV if m == 1 else 2) * width, (NR_GEMV if m == 1 else NR) * width
    while j < n:
        i, columns = 0, n - j if n - j <= widest else panel
        for tile in range(tiles):
            rows = (m - i) // (tiles - tile)
            microkernel(
                ptr_add(c0, i * ldc0 + j), ldc0, ptr_add(a, i * lda), lda, a_k, stride_a,
                ptr_add(b, j), ldb, stride_b, ptr_add(c, i * ldc + j), ldc,
                rows, columns, k, batch, beta,
            )  # fmt: skip
            i += rows
        j += columns


_external_brgemm = ExternalHelper(_brgemm, _brgemm_arguments)
_external_brgemm.bind_to(brgemm_strided)


@intrinsic
def microkernel(
    typingctx, c0, ldc0, a, lda, a_k, stride_a, b, ldb, stride_b, c, ldc, m, n, k, batch, beta
):
    """One tile of `_brgemm`: 1 to MR rows of 1 to NR vectors, or one row of up to NR_GEMV.

    A body is emitted for every number of rows and vectors, and for some with another form of the
    last vector; nothing beyond the tile is read or written.
    """

    def codegen(context, builder, signature, args):
        width, bitwidth = lanes_of(c.dtype), c.dtype.bitwidth
        operands = dict(zip(inspect.signature(_brgemm).parameters, args, strict=True))
        integer = ir.IntType(64)
        vectors, form = _choose_form(builder, operands["n"], width)
        kind = builder.add(builder.mul(vectors, integer(len(FORMS))), form)
        done = builder.append_basic_block("tile.done")
        case = builder.add(builder.mul(kind, integer(MR + 1)), operands["m"])
        choose = builder.switch(case, done)
        for count in range(1, NR_GEMV + 1):
            for rows in range(1, (MR if count <= NR else 1) + 1):
                blocks = {
                    form: builder.append_basic_block(f"tile.{rows}x{count}")
                    for form in _forms(rows, count)
                }
                for form in FORMS:
                    number = (len(FORMS) * count + form) * (MR + 1) + rows
                    choose.add_case(integer(number), blocks.get(form, blocks[MASKED]))
                for form, block in blocks.items():
                    builder.position_at_end(block)
                    _emit_microkernel(builder, operands, rows, count, form, width, bitwidth)
                    builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*_brgemm_arguments(c.dtype)), codegen


FORMS = MASKED, WHOLE, HALVES, QUARTERS = range(4)
"""What the last vector of a tile is: the masked end of a row; a whole vector; or the short ends of
two or four rows, side by side."""
SHARED_BY = {HALVES: 2, QUARTERS: 4}
"""Rows whose ends share a vector."""


def _forms(rows: int, vectors: int) -> list[int]:
    """The forms for which a tile has a body of its own; the masked one does for all of them.

    With masks in registers (AVX-512) that is 2 % slower for whole vectors, else its stores are far
    slower. Rows that share a vector wait for their broadcast elements: it takes others beside it.
    """
    if VECTOR_BYTES < 64:
        return [MASKED, WHOLE] if vectors > 1 else [MASKED]
    if rows < MR - 1 or vectors == 1:
        return [MASKED]
    return [MASKED, HALVES, QUARTERS] if vectors > 2 else [MASKED, WHOLE, HALVES, QUARTERS]


def _choose_form(builder, n, width):
    """(vectors, form) of a tile of n columns, as integers of LLVM."""
    integer = ir.IntType(64)
    vectors = builder.sdiv(builder.add(n, integer(width - 1)), integer(width))
    rest = builder.sub(n, builder.mul(builder.sub(vectors, integer(1)), integer(width)))
    form = integer(MASKED)
    for kind, rows in SHARED_BY.items():
        fits = builder.icmp_signed("<=", rest, integer(width // rows))
        form = builder.select(fits, integer(kind), form)
    whole = builder.icmp_signed("==", rest, integer(width))
    return vectors, builder.select(whole, integer(WHOLE), form)


def _emit_microkernel(builder, operands, rows, vectors, form, width, bitwidth):
    """Emit one tile: load or clear the sums, add all products with the sums in registers, store.

    A sum is named by its row and its vector; where rows share one, by the first of them.
    """
    integer, shared = ir.IntType(64), SHARED_BY.get(form, 1)
    element, last = ir.FloatType() if bitwidth == 32 else ir.DoubleType(), vectors - 1
    vector, end = ir.VectorType(element, width), ir.VectorType(element, width // shared)
    zero, no_end = ir.Constant(vector, None), ir.Constant(end, None)
    mask = None
    if form != WHOLE:
        mask = first_n_mask(builder, operands["n"], width * last, end.count)

    def place(base, v):
        kind = end if v == last else vector
        return builder.bitcast(builder.gep(base, [integer(v * width)]), kind.as_pointer())

    def load(base, v):
        if v == last and mask is not None:
            return masked_load(builder, place(base, v), end, mask)
        return builder.load(place(base, v), align=bitwidth // 8)

    def store(value, base, v):
        if v == last and mask is not None:
            masked_store(builder, value, place(base, v), mask)
        else:
            builder.store(value, place(base, v), align=bitwidth // 8)

    def row(base, stride, r):
        return builder.gep(base, [builder.mul(stride, integer(r))])

    def sharing(r):
        """The rows that share the last vector with row r, the first of them."""
        return range(r, min(r + shared, rows))

    fma = llvm_intrinsic(builder, "fmuladd", vector, vector, vector, vector, vector)
    places = [(r, v) for r in range(rows) for v in range(vectors) if v < last or r % shared == 0]

    def products(t, sums):
        a_t = builder.gep(operands["a"], [builder.mul(t, operands["stride_a"])])
        b_t = builder.gep(operands["b"], [builder.mul(t, operands["stride_b"])])

        def rank_one(p, sums):
            a_p = builder.gep(a_t, [builder.mul(p, operands["a_k"])])
            b_p = builder.gep(b_t, [builder.mul(p, operands["ldb"])])
            b_row = [load(b_p, v) for v in range(vectors)]
            b_row[last] = _lanes_from(builder, b_row[last], no_end, [*range(end.count)] * shared)
            a_values = [builder.load(row(a_p, operands["lda"], r)) for r in range(rows)]
            a_column = [broadcast(builder, value, vector) for value in a_values]
            a_ends = {
                r: _of_each_row(builder, [a_column[k] for k in sharing(r)], end.count)
                for r in range(0, rows, shared)
            }
            return {
                (r, v): builder.call(
                    fma, [a_ends[r] if v == last else a_column[r], b_row[v], sums[r, v]]
                )
                for r, v in places
            }

        return _loop(builder, operands["k"], sums, rank_one, unroll=2 if vectors == 1 else 1)

    empty, full, ready = (builder.append_basic_block(name) for name in ("empty", "full", "ready"))
    builder.cbranch(builder.icmp_signed("==", operands["beta"], integer(0)), empty, full)
    builder.position_at_end(empty)
    builder.branch(ready)
    builder.position_at_end(full)
    c0_rows = [row(operands["c0"], operands["ldc0"], r) for r in range(rows)]
    loaded = {(r, v): load(c0_rows[r], v) for r, v in places if v < last}
    for r in range(0, rows, shared):
        ends = [load(c0_rows[k], last) for k in sharing(r)]
        loaded[r, last] = _side_by_side(builder, ends + [no_end] * (shared - len(ends)))
    builder.branch(ready)
    builder.position_at_end(ready)
    starts = _phi(builder, [(empty, dict.fromkeys(places, zero)), (full, loaded)])
    sums = _loop(builder, operands["batch"], starts, products)
    for r, v in places:
        for k, one in enumerate(sharing(r) if v == last else [r]):
            numbers = [*range(k * end.count, (k + 1) * end.count)]
            value = _lanes_from(builder, sums[r, v], zero, numbers) if v == last else sums[r, v]
            store(value, row(operands["c"], operands["ldc"], one), v)


def _lanes_from(builder, left, right, numbers):
    """A vector of the lanes with these numbers, counted through both."""
    if numbers == [*range(left.type.count)]:
        return left
    kind = ir.VectorType(ir.IntType(32), len(numbers))
    return builder.shuffle_vector(left, right, ir.Constant(kind, numbers))


def _side_by_side(builder, ends):
    """The ends of rows, a power of two, in one vector."""
    while len(ends) > 1:
        numbers = [*range(2 * ends[0].type.count)]
        pairs = zip(ends[::2], ends[1::2], strict=True)
        ends = [_lanes_from(builder, left, right, numbers) for left, right in pairs]
    return ends[0]


def _of_each_row(builder, values, count):
    """A vector with the value of each row, which all lanes of a vector hold, in `count` lanes."""
    found, width = values[0], values[0].type.count
    for k, value in enumerate(values[1:], 1):
        numbers = [i + (width if i // count == k else 0) for i in range(width)]
        found = _lanes_from(builder, found, value, numbers)
    return found


def _phi(builder, sums_by_block):
    """Phi nodes for sums that come from several blocks."""
    joined = {}
    for place, first in sums_by_block[0][1].items():
        joined[place] = builder.phi(first.type)
        for block, sums in sums_by_block:
            joined[place].add_incoming(sums[place], block)
    return joined


def _loop(builder, count, sums, step, unroll=1):
    """Emit `count` times sums = step(index, sums), with the sums in registers.

    unroll   how many of them LLVM puts into a round; of more it would move the sums about between
             registers, where these are full
    """
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
    again, module = builder.branch(head), builder.module
    rule = module.add_metadata(["llvm.loop.unroll.count", ir.IntType(32)(unroll)])
    loop = module.add_metadata([rule, f"{builder.function.name} {head.name}"])
    loop.operands = (loop, rule)  # refers to itself, as LLVM asks
    again.set_metadata("llvm.loop", loop)
    builder.position_at_end(after)
    return carried


# --- products of rows -----------------------------------------------------------------------------

DOT_ROWS, DOT_COLUMNS = (5, 4) if MR == 8 else (3, 3)
"""Largest tile of C that `_brgemm_nt` keeps in registers."""


@intrinsic
def brgemm_nt(typingctx, m, n, k, batch, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc):
    """C = β C + Σ_t A_t·B_tᵀ, with each B_t stored (n, k): a call of `_brgemm_nt`."""
    if isinstance(c, types.CPointer):
        return call_external(_external_brgemm_nt, c.dtype)


def _brgemm_nt_arguments(dtype):
    pointer, integer = types.CPointer(dtype), types.int64
    matrices = (pointer, integer, integer) * 2
    return (*[integer] * 4, *matrices, integer, pointer, integer)


def _brgemm_nt(m, n, k, batch, a, lda, stride_a, b, ldb, stride_b, beta, c, ldc):
    """C = β C + Σ_t A_t·B_tᵀ, the vectors along the rows and one sum across the lanes at the end.

    c[i, j] = β c[i, j] + Σ_t Σ_p a[i·lda + p + t·stride_a] · b[j·ldb + p + t·stride_b]
    for 0 ≤ p < k and 0 ≤ t < batch. Rows of A may overlap (lda = 1: one image seen through a
    moving window).
    """
    if beta == 0:
        for i in range(m):
            for j in range(n):
                c[i * ldc + j] = const_like(c, 0)
    for i in range(0, m, DOT_ROWS):
        for j in range(0, n, DOT_COLUMNS):
            dot_microkernel(
                min(DOT_ROWS, m - i), min(DOT_COLUMNS, n - j), k, batch,
                ptr_add(a, i * lda), lda, stride_a, ptr_add(b, j * ldb), ldb, stride_b,
                ptr_add(c, i * ldc + j), ldc,
            )  # fmt: skip


_external_brgemm_nt = ExternalHelper(_brgemm_nt, _brgemm_nt_arguments)
_external_brgemm_nt.bind_to(brgemm_nt)


@intrinsic
def dot_microkernel(typingctx, m, n, k, batch, a, lda, stride_a, b, ldb, stride_b, c, ldc):
    """C += Σ_t A_t·B_tᵀ for one tile, with a body for every number of rows and columns."""
    pointer, integer = types.CPointer(c.dtype), types.int64
    arguments = (*[integer] * 4, *(pointer, integer, integer) * 2, pointer, integer)
    names = [name for name in inspect.signature(_brgemm_nt).parameters if name != "beta"]

    def codegen(context, builder, signature, args):
        operands = dict(zip(names, args, strict=True))
        integer = ir.IntType(64)
        case = builder.add(builder.mul(operands["m"], integer(DOT_COLUMNS + 1)), operands["n"])
        done = builder.append_basic_block("dots.done")
        choose = builder.switch(case, done)
        for rows in range(1, DOT_ROWS + 1):
            for columns in range(1, DOT_COLUMNS + 1):
                block = builder.append_basic_block(f"dots.{rows}x{columns}")
                choose.add_case(integer(rows * (DOT_COLUMNS + 1) + columns), block)
                builder.position_at_end(block)
                _emit_dot_microkernel(builder, operands, rows, columns, vector_of(c.dtype))
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(*arguments), codegen


def _emit_dot_microkernel(builder, operands, rows, columns, vector):
    """Emit one tile: all sums in registers over k and t, then one sum across the lanes for each."""
    integer, width = ir.IntType(64), vector.count
    places = [(r, c) for r in range(rows) for c in range(columns)]
    fma = llvm_intrinsic(builder, "fmuladd", vector, vector, vector, vector, vector)
    n_full = builder.sdiv(operands["k"], integer(width))
    tail = first_n_mask(builder, builder.srem(operands["k"], integer(width)), 0, width)
    add_lanes = llvm_intrinsic(
        builder, "vector.reduce.fadd", vector, vector.element, vector.element, vector
    )

    def row(base, stride, r):
        return builder.gep(base, [builder.mul(stride, integer(r))])

    def products(a, b, sums, read):
        """sums + the products of the vectors at a and b."""
        right = [read(row(b, operands["ldb"], c)) for c in range(columns)]
        left = [read(row(a, operands["lda"], r)) for r in range(rows)]
        return {(r, c): builder.call(fma, [left[r], right[c], sums[r, c]]) for r, c in places}

    def plain(place):
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)

    def masked(place):
        return masked_load(builder, builder.bitcast(place, vector.as_pointer()), vector, tail)

    def one_product(t, sums):
        a, b = (builder.gep(operands[x], [builder.mul(t, operands[f"stride_{x}"])]) for x in "ab")

        def step(v, sums):
            offset = builder.mul(v, integer(width))
            return products(builder.gep(a, [offset]), builder.gep(b, [offset]), sums, plain)

        sums = _loop(builder, n_full, sums, step)
        end = builder.mul(n_full, integer(width))
        return products(builder.gep(a, [end]), builder.gep(b, [end]), sums, masked)

    zero = ir.Constant(vector, None)
    sums = _loop(builder, operands["batch"], dict.fromkeys(places, zero), one_product)
    for r, c in places:
        offset = builder.add(builder.mul(operands["ldc"], integer(r)), integer(c))
        place = builder.gep(operands["c"], [offset])
        arguments = [vector.element(0.0), sums[r, c]]
        total = builder.call(add_lanes, arguments, "", None, None, ("reassoc",))
        builder.store(builder.fadd(builder.load(place), total), place)
