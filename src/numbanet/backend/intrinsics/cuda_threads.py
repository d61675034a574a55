"""The threads of a GPU: who am I, wait for the others, memory that a block shares.

A verb's CUDA twin is run by a row of blocks (the grid's y) that share samples [lo, hi); the grid's x counts such rows. `thread`
and `threads` number the threads of one row, `column` and `columns` its blocks, `lane` the threads of one block.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def _special(register):
    """An intrinsic's code: a special register as an int64."""

    def read(builder):
        word = ir.IntType(32)
        name = f"llvm.nvvm.read.ptx.sreg.{register}"
        value = builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, []), name), [])
        return builder.zext(value, ir.IntType(64))

    return read


_TID, _NTID, _BLOCK, _BLOCKS, _COLUMN, _COLUMNS = (
    _special(name) for name in ("tid.x", "ntid.x", "ctaid.x", "nctaid.x", "ctaid.y", "nctaid.y"))


@intrinsic
def thread_in_block(typingctx):
    """Number of this thread in its block."""
    return types.int64(), lambda context, builder, signature, args: _TID(builder)


@intrinsic
def group_index(typingctx):
    """Number of this thread's row of blocks."""
    return types.int64(), lambda context, builder, signature, args: _BLOCK(builder)


@intrinsic
def num_groups(typingctx):
    """How many rows of blocks there are."""
    return types.int64(), lambda context, builder, signature, args: _BLOCKS(builder)


@intrinsic
def block_in_group(typingctx):
    """Number of this thread's block in its row."""
    return types.int64(), lambda context, builder, signature, args: _COLUMN(builder)


@intrinsic
def blocks_per_group(typingctx):
    """How many blocks share the samples of a row."""
    return types.int64(), lambda context, builder, signature, args: _COLUMNS(builder)


@intrinsic
def thread_rank(typingctx):
    """Number of this thread among those of its row of blocks."""

    def codegen(context, builder, signature, args):
        return builder.add(_TID(builder), builder.mul(_NTID(builder), _COLUMN(builder)))

    return types.int64(), codegen


@intrinsic
def num_threads(typingctx):
    """How many threads a row of blocks has."""

    def codegen(context, builder, signature, args):
        return builder.mul(_NTID(builder), _COLUMNS(builder))

    return types.int64(), codegen


@intrinsic
def syncthreads(typingctx):
    """Wait until all threads of the block are here; what they wrote is seen by all of them."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.nvvm.barrier0"), [])
        return context.get_dummy_value()

    return types.void(), codegen


SHARED_ADDRESS_SPACE = 3
"""The number by which LLVM knows a block's own memory."""


@intrinsic(prefer_literal=True)
def shared_array(typingctx, like, count):
    """Room for `count` (a literal) numbers of the type that `like` points to, one for all threads of the block."""
    if isinstance(like, types.CPointer) and isinstance(count, types.IntegerLiteral):
        size = count.literal_value

        def codegen(context, builder, signature, args):
            kind = ir.ArrayType(context.get_value_type(like.dtype), size)
            place = cgutils.add_global_variable(builder.module, kind, "numbanet_shared", SHARED_ADDRESS_SPACE)
            place.linkage = "internal"
            place.initializer = ir.Constant(kind, ir.Undefined)
            place.align = 16
            generic = builder.addrspacecast(place, ir.PointerType(kind), "generic")
            return builder.bitcast(generic, context.get_value_type(like))

        return like(like, count), codegen  # with the literal in it, so that two sizes are two functions


@intrinsic
def div_u32(typingctx, number, divisor):
    """number // divisor of whole numbers from 0 to 2³² − 1: a division of 64 bits takes a GPU four times as long."""
    if isinstance(number, types.Integer) and isinstance(divisor, types.Integer):

        def codegen(context, builder, signature, args):
            half = ir.IntType(32)
            result = builder.udiv(builder.trunc(args[0], half), builder.trunc(args[1], half))
            return builder.zext(result, ir.IntType(64))

        return types.int64(types.int64, types.int64), codegen
