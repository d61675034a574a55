"""The target CPU's vectors: what Numba compiles for, which may be set lower than the machine."""

from llvmlite import binding
from numba.core.codegen import get_host_cpu_features

from numbanet.backend.threads import config


def _features() -> str:
    """The CPU features that Numba compiles for, as one string `+avx,+avx2,…`."""
    return config.CPU_FEATURES or (
        get_host_cpu_features() if config.CPU_NAME in (None, "host") else ""
    )


def _vector_bytes() -> int:
    features = _features().split(",")
    if config.CPU_NAME not in (None, "host") and not features[0]:
        return 16
    if "+avx512f" in features:
        return 64
    return 32 if "+avx" in features else 16


VECTOR_BYTES = _vector_bytes()
CACHE_LINE = 64
"""Bytes of a cache line; a vector register that lies across two of them costs two accesses."""
MR = 8 if VECTOR_BYTES == 64 else 6 if binding.get_process_triple().startswith("x86") else 8
"""Rows of the micro-kernel: with two vectors per row its sums fill the registers."""
NR = 3 if VECTOR_BYTES == 64 else 2
"""Most vectors per row: of 32 registers the sums of three leave enough for what is multiplied."""


def lanes_of(element) -> int:
    """Elements of a Numba float type in one vector register."""
    return VECTOR_BYTES * 8 // element.bitwidth
