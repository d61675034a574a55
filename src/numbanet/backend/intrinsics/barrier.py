"""Threads that meet without leaving a parallel region: atomic counters, a barrier that spins, processors; and prefetching.

Leaving and entering a region costs about 1 µs under OpenMP and 90 µs in Numba's work queue; this barrier about 0.1 µs.
"""

import ctypes
import os
import sys

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from numbanet.backend.intrinsics.pointers import local_array, ptr_add
from numbanet.backend.jit import inline

_X86 = binding.get_process_triple().startswith(("x86", "i686"))


def _find_yield() -> None:
    """Make the operating system's way to give a processor away known to compiled code."""
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    function = library.sched_yield if os.name == "posix" else library.SwitchToThread
    binding.add_symbol("numbanet_yield", ctypes.cast(function, ctypes.c_void_p).value)


_find_yield()


@intrinsic
def fetch_add(typingctx, counter, value):
    """Add to the int64 at `counter` in one step and return what it was."""
    if isinstance(counter, types.CPointer):

        def codegen(context, builder, signature, args):
            return builder.atomic_rmw("add", args[0], args[1], "seq_cst")

        return types.int64(counter, types.int64), codegen


@intrinsic
def compare_exchange(typingctx, place, expected, value):
    """Write `value` to the int64 at `place` if it is `expected`, in one step, and return what it was."""
    if isinstance(place, types.CPointer):

        def codegen(context, builder, signature, args):
            return builder.extract_value(builder.cmpxchg(*args, "seq_cst"), 0)

        return types.int64(place, types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx, place):
    """The int64 at `place` as other threads last wrote it."""
    if isinstance(place, types.CPointer):

        def codegen(context, builder, signature, args):
            return builder.load_atomic(args[0], "acquire", 8)

        return types.int64(place), codegen


@intrinsic
def cpu_relax(typingctx):
    """Tell the processor that this is a loop that waits."""

    def codegen(context, builder, signature, args):
        if _X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def yield_cpu(typingctx):
    """Let the operating system run another thread on this processor."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "numbanet_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def prefetch(typingctx, pointer):
    """Ask for the cache line at `pointer`, which need not be a valid place."""
    if isinstance(pointer, types.CPointer):

        def codegen(context, builder, signature, args):
            word, place = ir.IntType(32), builder.bitcast(args[0], ir.IntType(8).as_pointer())
            kind = ir.FunctionType(ir.VoidType(), [place.type, word, word, word])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(function, [place, word(0), word(2), word(1)])
            return context.get_dummy_value()

        return types.void(pointer), codegen


SPIN_LIMIT = 2000
"""Looks at the counter before a waiting thread gives its processor away: some tens of microseconds."""
YIELD_LIMIT = 20_000
"""Times that a thread gives its processor away before it decides that the others will not come."""


@inline
def _wait(spins):
    """Wait a moment, longer after many spins; returns the spins so far."""
    if spins > SPIN_LIMIT:
        yield_cpu()
    else:
        cpu_relax()
    return spins + 1


@inline
def barrier_wait(counter, workers, turn):
    """Wait until all workers have come for the `turn`-th time (counted from 1)."""
    if workers > 1:
        fetch_add(counter, 1)
        spins = 0
        while atomic_load(counter) < workers * turn:
            spins = _wait(spins)


@inline
def barrier_arrive_all(counter, workers):
    """Wait for the first meeting; False, to all alike, if some worker does not come: then there are fewer threads than asked for.

    counter[8] holds the decision: 0 open, 1 all came, 2 given up.
    """
    decision = ptr_add(counter, 8)
    if fetch_add(counter, 1) == workers - 1:
        compare_exchange(decision, 0, 1)
    spins = 0
    while atomic_load(decision) == 0:
        spins = _wait(spins)
        if spins > SPIN_LIMIT + YIELD_LIMIT:
            compare_exchange(decision, 0, 2)
    return atomic_load(decision) == 1


# --- threads on processors of their own ---------------------------------------------------------------------------------

_LINUX = sys.platform == "linux"
_sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
_sched_getaffinity = types.ExternalFunction("sched_getaffinity", types.int32(types.int32, types.int64, types.CPointer(types.int64)))
_sched_setaffinity = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, types.int64, types.CPointer(types.int64)))
MASK_WORDS = 16
"""Words of a set of processors: room for 1,024 of them."""


@inline
def record_cpu(places, worker):
    """Note on which processor this worker runs; places[worker] is its number plus 1, 0 where it cannot be told."""
    if _LINUX:
        places[worker] = _sched_getcpu() + 1


@inline
def leave_shared_cpu(places, worker):
    """Move this worker off a processor that an earlier worker runs on.

    A scheduler may wake a thread on the processor of the one that woke it, and leave the two to take turns there for seconds. What
    the thread may run on is as before when this returns.
    """
    if _LINUX:
        for other in range(worker):
            if places[other] == places[worker] and places[worker] > 0:
                here, allowed = places[worker] - 1, local_array(places, MASK_WORDS)
                if here < 64 * MASK_WORDS and _sched_getaffinity(0, 8 * MASK_WORDS, allowed) == 0:
                    word = allowed[here >> 6]
                    allowed[here >> 6] = word & ~(1 << (here & 63))
                    if _sched_setaffinity(0, 8 * MASK_WORDS, allowed) == 0:
                        allowed[here >> 6] = word
                        _sched_setaffinity(0, 8 * MASK_WORDS, allowed)
                record_cpu(places, worker)
