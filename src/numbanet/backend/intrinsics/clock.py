"""A clock of the processor that compiled code can read within nanoseconds, for profiles.

It counts ticks of an unnamed, constant length, alike on all cores; `time.perf_counter` around a
measurement tells how long one is.
"""

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_ARM = binding.get_process_triple().startswith(("aarch64", "arm64"))


@intrinsic
def read_ticks(typingctx):
    """The ticks of the clock now."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(64), [])
        if _ARM:  # its cycle counter is closed to programs, the timer is open
            return builder.asm(kind, "mrs $0, cntvct_el0", "=r", [], side_effect=True)
        name = "llvm.readcyclecounter"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])

    return types.int64(), codegen
