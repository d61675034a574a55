"""CuPy: the dense network of `by_hand` on the GPU, its products by cuBLAS."""

import cupy

from benchmarks.gpu.by_hand import Training

NAME, VERSION, ASIDE = "CuPy", cupy.__version__, ()


def variants(line) -> tuple[str, ...]:
    return ("by hand",) if line.trains and not line.has_images else ()


def missing() -> str:
    """Why there is nothing to measure, or nothing."""
    return "" if cupy.cuda.runtime.getDeviceCount() else "CuPy sees no GPU"


def start(case, variant: str):
    """A contender for the line."""
    return Training(case, cupy)
