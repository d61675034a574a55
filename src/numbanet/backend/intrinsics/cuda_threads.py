"""The threads of a GPU: their indices, the barrier of a block, memory that a block shares.

A CUDA kernel is run by a block group, the blocks along the grid's y that share samples [lo, hi);
the grid's x counts such groups.

    thread_rank, num_threads            the threads of a block group
    block_in_group, blocks_per_group    the blocks of a group
    group_index, num_groups             the groups
    thread_in_block                     the threads of one block
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


def _special(register):
    """Code that reads a special register as an int64."""

    def read(builder):
        word = ir.IntType(32)
        name = f"llvm.nvvm.read.ptx.sreg.{register}"
        value = builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(word, []), name), []
        )
        return builder.zext(value, ir.IntType(64))

    return read


_TID, _NTID, _GROUP, _GROUPS, _BLOCK, _BLOCKS = (
    _special(name) for name in ("tid.x", "ntid.x", "ctaid.x", "nctaid.x", "ctaid.y", "nctaid.y")
)


@intrinsic
def thread_in_block(typingctx):
    """Index of this thread in its block."""
    return types.int64(), lambda context, builder, signature, args: _TID(builder)


@intrinsic
def group_index(typingctx):
    """Index of this thread's block group."""
    return types.int64(), lambda context, builder, signature, args: _GROUP(builder)


@intrinsic
def num_groups(typingctx):
    """How many block groups there are."""
    return types.int64(), lambda context, builder, signature, args: _GROUPS(builder)


@intrinsic
def block_in_group(typingctx):
    """Index of this thread's block in its group."""
    return types.int64(), lambda context, builder, signature, args: _BLOCK(builder)


@intrinsic
def blocks_per_group(typingctx):
    """How many blocks a group has."""
    return types.int64(), lambda context, builder, signature, args: _BLOCKS(builder)


@intrinsic
def thread_rank(typingctx):
    """Index of this thread among those of its block group."""

    def codegen(context, builder, signature, args):
        return builder.add(_TID(builder), builder.mul(_NTID(builder), _BLOCK(builder)))

    return types.int64(), codegen


@intrinsic
def num_threads(typingctx):
    """How many threads a block group has."""

    def codegen(context, builder, signature, args):
        return builder.mul(_NTID(builder), _BLOCKS(builder))

    return types.int64(), codegen


@intrinsic
def syncthreads(typingctx):
    """Barrier of the block: wait for all its threads, and make their writes visible to them."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.nvvm.barrier0"), [])
        return context.get_dummy_value()

    return types.void(), codegen


SHARED_ADDRESS_SPACE = 3
"""LLVM's number for the shared memory of a block."""


@intrinsic(prefer_literal=True)
def shared_array(typingctx, dtype_of, count):
    """Memory of the block for `count` (a literal) elements of the type `dtype_of` points to."""
    if isinstance(dtype_of, types.CPointer) and isinstance(count, types.IntegerLiteral):
        size = count.literal_value

        def codegen(context, builder, signature, args):
            kind = ir.ArrayType(context.get_value_type(dtype_of.dtype), size)
            place = cgutils.add_global_variable(
                builder.module, kind, "numbanet_shared", SHARED_ADDRESS_SPACE
            )
            place.linkage = "internal"
            place.initializer = ir.Constant(kind, ir.Undefined)
            place.align = 16
            generic = builder.addrspacecast(place, ir.PointerType(kind), "generic")
            return builder.bitcast(generic, context.get_value_type(dtype_of))

        return dtype_of(
            dtype_of, count
        ), codegen  # with the literal in it, so that two sizes are two functions


@intrinsic
def div_u32(typingctx, number, divisor):
    """number // divisor for integers from 0 to 2³² − 1; 64 bits take a GPU four times as long."""
    if isinstance(number, types.Integer) and isinstance(divisor, types.Integer):

        def codegen(context, builder, signature, args):
            half = ir.IntType(32)
            result = builder.udiv(builder.trunc(args[0], half), builder.trunc(args[1], half))
            return builder.zext(result, ir.IntType(64))

        return types.int64(types.int64, types.int64), codegen
