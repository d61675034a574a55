"""The threads of parallel loops: which library runs them, and how many there may be."""

import contextlib
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config

config: Any = _config
"""Numba's settings."""

if config.DISABLE_JIT:
    raise ImportError(
        "numbanet cannot run without Numba's compiler: its kernels call one another by address. "
        "NUMBA_DISABLE_JIT is set; unset it before Python starts"
    )


def prefer_openmp() -> None:
    """Put OpenMP first among the threading layers (a fork-join takes 1 µs there, 90 µs in Numba's
    work queue).

    The user's own choice by NUMBA_THREADING_LAYER or NUMBA_THREADING_LAYER_PRIORITY stands.
    """
    if not os.environ.get("NUMBA_THREADING_LAYER_PRIORITY"):
        config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def threading_layer() -> str:
    """Load and return the layer that runs parallel loops: `omp`, `tbb` or `workqueue`."""
    numba.set_num_threads(numba.get_num_threads())
    return numba.threading_layer()


def max_threads() -> int:
    """Return the largest number of threads that one call may use.

    They wait for one another by spinning, so there are never more than `usable_cpus`.
    """
    return min(config.NUMBA_NUM_THREADS, usable_cpus())


@cache
def usable_cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity, a container's quota."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _cpu_quota(Path("/sys/fs/cgroup"))
    return cpus if math.isinf(quota) else max(1, min(cpus, math.ceil(quota)))


def idle_cpus() -> int:
    """Return on how many CPUs this thread finds nothing else to run at this moment, its own too.

    It is 0 where the system does not say (elsewhere than under Linux).
    """
    try:
        running = Path("/proc/loadavg").read_bytes().split()[3].partition(b"/")[0]
    except (OSError, IndexError):
        return 0
    return max(0, (os.cpu_count() or 1) - int(running) + 1)


def _cpu_quota(folder: Path) -> float:
    """The CPUs that a control group (Linux, version 2 or 1) grants; inf where it sets no limit."""
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # no such file, "max"
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf
