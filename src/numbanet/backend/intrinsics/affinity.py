"""CPU affinity: on which CPU each worker runs, and how one leaves a shared CPU. Linux only."""

import sys

from numba.core import types

from numbanet.backend.intrinsics.pointers import local_array
from numbanet.backend.jit import inline

_LINUX = sys.platform == "linux"
_MASK = types.CPointer(types.int64)
_affinity = types.int32(types.int32, types.int64, _MASK)
_sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
_sched_getaffinity = types.ExternalFunction("sched_getaffinity", _affinity)
_sched_setaffinity = types.ExternalFunction("sched_setaffinity", _affinity)
MASK_WORDS = 16
"""Words of an affinity mask, enough for 1,024 CPUs."""


@inline
def record_cpu(cpu_of_worker, worker):
    """Note on which CPU this worker runs: its number plus 1, or 0 where it cannot be told."""
    if _LINUX:
        cpu_of_worker[worker] = _sched_getcpu() + 1


@inline
def leave_shared_cpu(cpu_of_worker, worker):
    """Move this worker off a CPU that an earlier worker runs on.

    A scheduler may wake a thread on the CPU of the one that woke it, and let the two share it for
    seconds. The thread's affinity mask is as before when this returns.
    """
    if _LINUX:
        for other in range(worker):
            if cpu_of_worker[other] == cpu_of_worker[worker] and cpu_of_worker[worker] > 0:
                cpu, mask = cpu_of_worker[worker] - 1, local_array(cpu_of_worker, MASK_WORDS)
                known = cpu < 64 * MASK_WORDS
                if known and _sched_getaffinity(0, 8 * MASK_WORDS, mask) == 0:
                    mask_word = mask[cpu >> 6]
                    mask[cpu >> 6] = mask_word & ~(1 << (cpu & 63))
                    if _sched_setaffinity(0, 8 * MASK_WORDS, mask) == 0:
                        mask[cpu >> 6] = mask_word
                        _sched_setaffinity(0, 8 * MASK_WORDS, mask)
                record_cpu(cpu_of_worker, worker)
