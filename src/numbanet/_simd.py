"""The only file that speaks LLVM: the matrix tile, pointers, calls by address, reinterpreted bits.

Everything here is a Numba intrinsic: a few instructions emitted where it is called. The kernels use flat memories through
C pointers, so `params[w + k]` is one load without bounds, reference counts or negative indices.

The heart is `tile`, called by `multiply` for block after block: a block of C stays in registers while one row of B after another
is loaded as vectors and multiplied by broadcast elements of A. K runs in two levels, an inner and an outer run with a stride each
for A and B, so that the same tile serves a dense layer (outer run of one) and every convolution. Each element of C adds its
products one after the other in the order of K, whatever the tile around it: results do not depend on how a matrix was cut, hence
not on the number of threads.
"""

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from numbanet._jit import Published, config

_POINTERS = (types.CPointer, types.RawPointer)


def _features() -> str:
    """The processor features that Numba compiles for, as one string `+avx,+avx2,…`."""
    return config.CPU_FEATURES or (get_host_cpu_features() if config.CPU_NAME in (None, "host") else "")


def _vector_bytes() -> int:
    features = _features().split(",")
    if config.CPU_NAME not in (None, "host") and not features[0]:
        return 16
    if "+avx512f" in features:
        return 64
    return 32 if "+avx" in features else 16


VECTOR_BYTES = _vector_bytes()
ROWS = 8 if VECTOR_BYTES == 64 else 6 if binding.get_process_triple().startswith("x86") else 8
"""Rows of the largest tile: with two vectors of columns its sums fill the registers without spilling."""


def _lanes(element) -> int:
    """Numbers of a Numba float type in one vector register."""
    return VECTOR_BYTES * 8 // element.bitwidth


# --- pointers -------------------------------------------------------------------------------------------------------


@intrinsic
def at(typingctx, pointer, offset):
    """The pointer moved by `offset` elements."""
    if isinstance(pointer, types.CPointer) and isinstance(offset, types.Integer):

        def codegen(context, builder, signature, args):
            return builder.gep(args[0], [args[1]])

        return pointer(pointer, types.int64), codegen


@intrinsic
def pointer(typingctx, address, dtype):
    """The int64 `address` as a pointer to elements of `dtype`, or of the type that a given pointer has."""
    if isinstance(address, types.Integer):
        result = dtype if isinstance(dtype, types.CPointer) else types.CPointer(dtype.instance_type)

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(result))

        return result(types.int64, dtype), codegen


@intrinsic
def address(typingctx, pointer):
    """The pointer as an int64 address."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return builder.ptrtoint(args[0], ir.IntType(64))

        return types.int64(pointer), codegen


@intrinsic
def memory(typingctx, array):
    """A pointer to the first element of a contiguous array."""
    if isinstance(array, types.Array):
        result = types.CPointer(array.dtype)

        def codegen(context, builder, signature, args):
            return cgutils.create_struct_proxy(array)(context, builder, value=args[0]).data

        return result(array), codegen


@intrinsic
def lanes(typingctx, pointer):
    """How many elements of the type that `pointer` points to fill one vector register (a constant)."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return ir.IntType(64)(_lanes(pointer.dtype))

        return types.int64(pointer), codegen


@intrinsic(prefer_literal=True)
def stack(typingctx, like, count):
    """Room for `count` (a literal) elements of the type that `like` points to, on the thread's own stack."""
    if isinstance(like, types.CPointer) and isinstance(count, types.IntegerLiteral):
        size = count.literal_value

        def codegen(context, builder, signature, args):
            room = cgutils.alloca_once(builder, context.get_value_type(like.dtype), size=size)
            room.align = 64
            return room

        return like(like, types.int64), codegen


# --- bits -----------------------------------------------------------------------------------------------------------


@intrinsic
def real(typingctx, integers, index):
    """The float64 whose bits stand at `integers[index]` (an attribute of an op, such as a slope)."""
    if isinstance(integers, types.CPointer):

        def codegen(context, builder, signature, args):
            word = builder.load(builder.gep(args[0], [args[1]]))
            return builder.bitcast(word, ir.DoubleType())

        return types.float64(integers, types.int64), codegen


@intrinsic
def set_real(typingctx, integers, index, value):
    """Store the bits of the float64 `value` at `integers[index]`."""
    if isinstance(integers, types.CPointer):

        def codegen(context, builder, signature, args):
            word = builder.bitcast(args[2], ir.IntType(64))
            builder.store(word, builder.gep(args[0], [args[1]]))
            return context.get_dummy_value()

        return types.void(integers, types.int64, types.float64), codegen


@intrinsic
def like(typingctx, x, value):
    """`value` in the type of x, or of what x points to: a plain 0.5 is float64 and would drag float32 code with it."""
    kind = x.dtype if isinstance(x, types.CPointer) else x
    if isinstance(kind, types.Float):

        def codegen(context, builder, signature, args):
            return context.cast(builder, args[1], signature.args[1], signature.return_type)

        return kind(x, value), codegen


@intrinsic
def is_single(typingctx, x):
    """True for float32 and false for float64, known when the code is compiled."""
    if isinstance(x, types.Float):

        def codegen(context, builder, signature, args):
            return ir.IntType(1)(x == types.float32)

        return types.boolean(x), codegen


def _exponent_bits(kind):
    """(integer type of the float's width, bits of its fraction, bias of its exponent)."""
    return (ir.IntType(32), 23, 127) if kind == types.float32 else (ir.IntType(64), 52, 1023)


@intrinsic
def nearest(typingctx, x):
    """The whole number nearest to x, as a float."""
    if isinstance(x, types.Float):

        def codegen(context, builder, signature, args):
            kind = args[0].type
            name = f"llvm.rint.f{x.bitwidth}"
            return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name), args)

        return x(x), codegen


@intrinsic
def power_of_two(typingctx, n):
    """2ⁿ for a whole float n within the range of normal exponents."""
    if isinstance(n, types.Float):

        def codegen(context, builder, signature, args):
            integer, fraction, bias = _exponent_bits(n)
            shifted = builder.shl(builder.add(builder.fptosi(args[0], integer), integer(bias)), integer(fraction))
            return builder.bitcast(shifted, args[0].type)

        return n(n), codegen


@intrinsic
def exponent(typingctx, x):
    """⌊log₂ x⌋ of a positive normal number, as a float."""
    if isinstance(x, types.Float):

        def codegen(context, builder, signature, args):
            integer, fraction, bias = _exponent_bits(x)
            field = builder.ashr(builder.bitcast(args[0], integer), integer(fraction))
            return builder.sitofp(builder.sub(field, integer(bias)), args[0].type)

        return x(x), codegen


@intrinsic
def mantissa(typingctx, x):
    """x / 2^⌊log₂ x⌋ of a positive normal number, in [1, 2)."""
    if isinstance(x, types.Float):

        def codegen(context, builder, signature, args):
            integer, fraction, bias = _exponent_bits(x)
            kept = builder.and_(builder.bitcast(args[0], integer), integer((1 << fraction) - 1))
            return builder.bitcast(builder.or_(kept, integer(bias << fraction)), args[0].type)

        return x(x), codegen


# --- calls ----------------------------------------------------------------------------------------------------------


@intrinsic
def call(typingctx, address, op, params, grads, acts, deltas, lo, hi):
    """Call the kernel at `address`: every kernel has these seven arguments and returns nothing."""
    arguments = (op, params, grads, acts, deltas, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        kinds = [context.get_value_type(kind) for kind in arguments]
        function = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *arguments), codegen


# --- the matrix product -----------------------------------------------------------------------------------------------


@intrinsic
def multiply(typingctx, s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, m, n, k_in, k_out, started):
    """C = S + A·B: a call of `_multiply`, which is compiled once and shared by all kernels."""
    if isinstance(c, types.CPointer):
        arguments = _multiply_arguments(c.dtype)

        def codegen(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(one) for one in arguments])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, _shared_multiply.symbol(c.dtype)), args)
            return context.get_dummy_value()

        return types.void(*arguments), codegen


def _multiply_arguments(dtype):
    memory, whole = types.CPointer(dtype), types.int64
    return (memory, whole, memory, whole, whole, whole, memory, whole, whole, memory, *[whole] * 6)


def _multiply(s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, m, n, k_in, k_out, started):
    """C = S + A·B with C of m rows and n columns, cut into tiles that fit the registers.

    c[r, j] = s[r, j] + Σ_o Σ_k a[r·a_row + k·a_in + o·a_out] · b[j + k·b_in + o·b_out],  0 ≤ k < k_in, 0 ≤ o < k_out
    Strides are in elements; rows of B, C and S are contiguous along j. With started = 0, S counts as zero and is not read;
    with s = c the product is added to what is there; with s_row = 0 every row starts from the same row (a bias).
    """
    panel = 2 * lanes(c)
    tiles = (m + ROWS - 1) // ROWS
    for j in range(0, n, panel):
        i = 0
        for t in range(tiles):
            rows = (m - i) // (tiles - t)
            tile(started, at(s, i * s_row + j), s_row, at(a, i * a_row), a_row, a_in, a_out, at(b, j), b_in, b_out,
                 at(c, i * c_row + j), c_row, rows, min(n - j, panel), k_in, k_out)
            i += rows


_shared_multiply = Published(_multiply, _multiply_arguments)


@intrinsic
def tile(typingctx, started, s, s_row, a, a_row, a_in, a_out, b, b_in, b_out, c, c_row, rows, columns, k_in, k_out):
    """One block of `multiply`: 1 to ROWS rows, 1 to 2 vectors of columns; nothing beyond is read or written.

    A body of its own is emitted for every number of rows and for one vector, two, or two of which the last is masked.
    """
    whole = types.int64
    signature = types.void(whole, c, whole, c, whole, whole, whole, c, whole, whole, c, whole, whole, whole, whole, whole)

    def codegen(context, builder, signature, args):
        width, bitwidth = _lanes(c.dtype), c.dtype.bitwidth
        names = ("started", "s", "s_row", "a", "a_row", "a_in", "a_out", "b", "b_in", "b_out", "c", "c_row", "rows", "columns",
                 "k_in", "k_out")
        given = dict(zip(names, args, strict=True))
        integer = ir.IntType(64)
        columns = given["columns"]
        bodies = [(1, True), (2, True), (2, False)]
        shape = builder.select(builder.icmp_signed("<=", columns, integer(width)), integer(0),
                               builder.select(builder.icmp_signed("<", columns, integer(2 * width)), integer(1), integer(2)))
        case = builder.add(builder.mul(shape, integer(ROWS)), given["rows"])
        done = builder.append_basic_block("tile.done")
        choose = builder.switch(case, done)
        for kind, (vectors, masked) in enumerate(bodies):
            for rows in range(1, ROWS + 1):
                block = builder.append_basic_block(f"tile.{rows}x{vectors}")
                choose.add_case(integer(kind * ROWS + rows), block)
                builder.position_at_end(block)
                _body(builder, given, rows, vectors, masked, width, bitwidth)
                builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return signature, codegen


def _body(builder, given, rows, vectors, masked, width, bitwidth):
    """Emit one tile: load the sums or clear them, run K with the sums in registers, store them."""
    integer, lane = ir.IntType(64), ir.IntType(32)
    scalar = ir.FloatType() if bitwidth == 32 else ir.DoubleType()
    vector = ir.VectorType(scalar, width)
    spreading = ir.Constant(ir.VectorType(lane, width), None)
    undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(vector, None)
    last = vectors - 1 if masked else vectors
    mask = _mask(builder, given["columns"], width * (vectors - 1), width) if masked else None
    suffix = f"v{width}f{bitwidth}"

    def function(name, result, *arguments):
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), f"llvm.{name}.{suffix}")

    def load(base, v):
        place = builder.bitcast(builder.gep(base, [integer(v * width)]), vector.as_pointer())
        if v != last:
            return builder.load(place, align=bitwidth // 8)
        masked_load = function("masked.load", vector, place.type, lane, mask.type, vector)
        return builder.call(masked_load, [place, lane(bitwidth // 8), mask, zero])

    def store(value, base, v):
        place = builder.bitcast(builder.gep(base, [integer(v * width)]), vector.as_pointer())
        if v != last:
            return builder.store(value, place, align=bitwidth // 8)
        masked_store = function("masked.store", ir.VoidType(), vector, place.type, lane, mask.type)
        return builder.call(masked_store, [value, place, lane(bitwidth // 8), mask])

    def row(base, stride, r):
        return builder.gep(base, [builder.mul(stride, integer(r))])

    def spread(element):
        first = builder.insert_element(undefined, element, lane(0))
        return builder.shuffle_vector(first, first, spreading)

    multiply_add = function("fmuladd", vector, vector, vector, vector)
    places = [(r, v) for r in range(rows) for v in range(vectors)]

    def join(sums_by_block):
        """Phi nodes for the sums, fed from several blocks."""
        joined = {}
        for place in places:
            joined[place] = builder.phi(vector)
            for block, sums in sums_by_block:
                joined[place].add_incoming(sums[place], block)
        return joined

    def loop(count, sums, step):
        """`count` times sums = step(index, sums), with the sums in registers."""
        before, head = builder.block, builder.append_basic_block("head")
        inside, after = builder.append_basic_block("inside"), builder.append_basic_block("after")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(integer)
        index.add_incoming(integer(0), before)
        carried = join([(before, sums)])
        builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
        builder.position_at_end(inside)
        following = step(index, carried)
        index.add_incoming(builder.add(index, integer(1)), builder.block)
        for place in places:
            carried[place].add_incoming(following[place], builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return carried

    def outer(o, sums):
        a_here = builder.gep(given["a"], [builder.mul(o, given["a_out"])])
        b_here = builder.gep(given["b"], [builder.mul(o, given["b_out"])])

        def inner(k, sums):
            a_k = builder.gep(a_here, [builder.mul(k, given["a_in"])])
            b_k = builder.gep(b_here, [builder.mul(k, given["b_in"])])
            b_row = [load(b_k, v) for v in range(vectors)]
            a_column = [spread(builder.load(row(a_k, given["a_row"], r))) for r in range(rows)]
            return {(r, v): builder.call(multiply_add, [a_column[r], b_row[v], sums[r, v]]) for r, v in places}

        return loop(given["k_in"], sums, inner)

    empty, full, ready = (builder.append_basic_block(name) for name in ("empty", "full", "ready"))
    builder.cbranch(builder.icmp_signed("==", given["started"], integer(0)), empty, full)
    builder.position_at_end(empty)
    builder.branch(ready)
    builder.position_at_end(full)
    loaded = {(r, v): load(row(given["s"], given["s_row"], r), v) for r, v in places}
    builder.branch(ready)
    builder.position_at_end(ready)
    sums = loop(given["k_out"], join([(empty, dict.fromkeys(places, zero)), (full, loaded)]), outer)
    for r, v in places:
        store(sums[r, v], row(given["c"], given["c_row"], r), v)


def _mask(builder, columns, first, width):
    """True in the lanes whose column, first + lane, lies before `columns`."""
    integer, lane = ir.IntType(64), ir.IntType(32)
    many = ir.VectorType(integer, width)
    numbers = ir.Constant(many, [integer(first + i) for i in range(width)])
    head = builder.insert_element(ir.Constant(many, ir.Undefined), columns, lane(0))
    spread = builder.shuffle_vector(head, head, ir.Constant(ir.VectorType(lane, width), None))
    return builder.icmp_signed("<", numbers, spread)
