"""The threads of parallel loops: which library runs them, and how many there may be."""

import os
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
    """Return the largest number of threads that one call may use."""
    return config.NUMBA_NUM_THREADS
