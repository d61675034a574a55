"""Pointers into flat memories, calls by address, reinterpreted bits.

`params[w + k]` through a C pointer is one load, without bounds checks or reference counts.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from numbanet.backend.intrinsics.bound import BoundType
from numbanet.backend.intrinsics.target import lanes_of

# --- pointers ---------------------------------------------------------------------------------


@intrinsic
def ptr_add(typingctx, pointer, offset):
    """The pointer moved by `offset` elements."""
    if isinstance(pointer, types.CPointer) and isinstance(offset, types.Integer):

        def codegen(context, builder, signature, args):
            return builder.gep(args[0], [args[1]])

        return pointer(pointer, types.int64), codegen


@intrinsic
def as_pointer(typingctx, address, dtype):
    """The int64 `address` as a pointer to elements of `dtype`, a dtype or what has it: a pointer, a
    bound function."""
    if isinstance(address, (types.Integer, BoundType)):
        result = dtype if isinstance(dtype, types.CPointer) else types.CPointer(dtype.instance_type)

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(result))

        kind = address if isinstance(address, BoundType) else types.int64
        return result(kind, dtype), codegen


@intrinsic
def address(typingctx, pointer):
    """The pointer as an int64 address."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return builder.ptrtoint(args[0], ir.IntType(64))

        return types.int64(pointer), codegen


@intrinsic
def data_pointer(typingctx, array):
    """A pointer to the first element of a contiguous array."""
    if isinstance(array, types.Array):
        result = types.CPointer(array.dtype)

        def codegen(context, builder, signature, args):
            return cgutils.create_struct_proxy(array)(context, builder, value=args[0]).data

        return result(array), codegen


@intrinsic(prefer_literal=True)
def checked_pointer(typingctx, array, name, kind):
    """As `data_pointer`, for arrays that users give; TypingError with the `name` for other kinds.

    A vector whose layout Numba does not know, as in `guvectorize`, is checked when it is called:
    ValueError where its elements do not follow one another.

    kind   "read" for floats or integers, "float" for floats, "write" for floats to be written,
           "integers" for int64
    """
    if not isinstance(name, types.StringLiteral):
        return None  # Numba's second attempt, after an error
    label, wanted = name.literal_value, kind.literal_value
    found = getattr(array, "dtype", None)
    floats = (types.float32, types.float64)
    allowed, also = {
        "read": (found in floats or isinstance(found, types.Integer), "float32, float64, integers"),
        "float": (found in floats, "float32, float64"),
        "write": (found in floats, "float32, float64 that can be written to"),
        "integers": (found == types.int64, "int64"),
    }[wanted]
    if not (
        isinstance(array, types.Array)
        and allowed
        and (array.layout == "C" or array.ndim == 1)
        and (array.mutable or wanted != "write")
    ):
        raise TypingError(f"{label} must be a C-contiguous array of {also}, got {array}")
    result = types.CPointer(found)

    def codegen(context, builder, signature, args):
        view = cgutils.create_struct_proxy(array)(context, builder, value=args[0])
        if array.layout != "C":
            stride, size = builder.extract_value(view.strides, 0), view.nitems
            spaced = builder.icmp_signed("!=", stride, stride.type(found.bitwidth // 8))
            several = builder.icmp_signed(">", size, size.type(1))
            with builder.if_then(builder.and_(spaced, several), likely=False):
                message = f"{label} must be C-contiguous: pass a copy"
                context.call_conv.return_user_exc(builder, ValueError, (message,))
        return view.data

    return result(array, name, kind), codegen


@intrinsic
def holds_integers(typingctx, pointer):
    """Whether `pointer` points to integers, known when the code is compiled."""
    if isinstance(pointer, types.CPointer):
        value = isinstance(pointer.dtype, types.Integer)

        def codegen(context, builder, signature, args):
            return ir.IntType(1)(value)

        return types.boolean(pointer), codegen


@intrinsic
def lanes(typingctx, pointer):
    """Elements of the type that `pointer` points to in one vector register (a constant)."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            return ir.IntType(64)(lanes_of(pointer.dtype))

        return types.int64(pointer), codegen


@intrinsic
def stack_array(typingctx, dtype_of, count):
    """Memory on the stack of the function, for `count` elements of the type `dtype_of` points to.

    For the CPU; where the number is a literal, `local_array` serves both.
    """
    if isinstance(dtype_of, types.CPointer) and isinstance(count, types.Integer):

        def codegen(context, builder, signature, args):
            memory = builder.alloca(context.get_value_type(dtype_of.dtype), args[1])
            memory.align = 64
            return memory

        return dtype_of(dtype_of, types.int64), codegen


@intrinsic(prefer_literal=True)
def local_array(typingctx, dtype_of, count):
    """Memory on the stack for `count` (a literal) elements of the type `dtype_of` points to."""
    if isinstance(dtype_of, types.CPointer) and isinstance(count, types.IntegerLiteral):
        size = count.literal_value

        def codegen(context, builder, signature, args):
            with builder.goto_entry_block():  # Numba's own alloca_once would fill it with zeros
                memory = builder.alloca(ir.ArrayType(context.get_value_type(dtype_of.dtype), size))
            memory.align = 64
            return builder.bitcast(memory, context.get_value_type(dtype_of))

        return dtype_of(
            dtype_of, count
        ), codegen  # with the literal in it, so that two sizes are two functions


def _emit_prefetch(builder, pointer, write):
    """LLVM's prefetch of the cache line at `pointer`."""
    word, place = ir.IntType(32), builder.bitcast(pointer, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, word(write), word(2), word(1)])


@intrinsic
def prefetch(typingctx, pointer):
    """Fetch the cache line at `pointer` ahead of use; the address need not be valid."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            _emit_prefetch(builder, args[0], 0)
            return context.get_dummy_value()

        return types.void(pointer), codegen


@intrinsic
def prefetch_write(typingctx, pointer):
    """The same for a line that will be written: the other cores' copies of it become invalid."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            _emit_prefetch(builder, args[0], 1)
            return context.get_dummy_value()

        return types.void(pointer), codegen


# --- bits -------------------------------------------------------------------------------------


@intrinsic
def float_attr(typingctx, integers, index):
    """The float64 whose bits are at `integers[index]` (an attribute of an op, such as a slope)."""
    if isinstance(integers, types.CPointer):

        def codegen(context, builder, signature, args):
            word = builder.load(builder.gep(args[0], [args[1]]))
            return builder.bitcast(word, ir.DoubleType())

        return types.float64(integers, types.int64), codegen


@intrinsic
def set_float_attr(typingctx, integers, index, value):
    """Store the bits of the float64 `value` at `integers[index]`."""
    if isinstance(integers, types.CPointer):

        def codegen(context, builder, signature, args):
            word = builder.bitcast(args[2], ir.IntType(64))
            builder.store(word, builder.gep(args[0], [args[1]]))
            return context.get_dummy_value()

        return types.void(integers, types.int64, types.float64), codegen


# --- calls ------------------------------------------------------------------------------------


@intrinsic
def call_indirect(typingctx, address, op, params, grads, acts, deltas, lo, hi):
    """Call the kernel at `address`: every kernel has these seven arguments and returns nothing."""
    arguments = (op, params, grads, acts, deltas, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        kinds = [context.get_value_type(kind) for kind in arguments]
        function = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(builder.inttoptr(args[0], function.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *arguments), codegen


@intrinsic
def next_word(typingctx, function, state):
    """The next word of a NumPy bit generator: its `next_uint32` and its state, as addresses."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.uint32(types.int64, types.int64), codegen


def call_external(helper, dtype):
    """(signature, code) of an intrinsic that calls an external helper for a dtype by its symbol."""
    arguments = helper.arguments(dtype)

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [context.get_value_type(one) for one in arguments])
        builder.call(
            cgutils.get_or_insert_function(builder.module, kind, helper.symbol(dtype)), args
        )
        return context.get_dummy_value()

    return types.void(*arguments), codegen
