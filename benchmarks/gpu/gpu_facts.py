"""What the GPU is and can do: its name, float32 peak, and bytes per second of a copy."""

import time

import numpy as np

from numbanet.apps import bench
from numbanet.backend.cuda import driver

COPIED = 1 << 28
"""Bytes of a copy that is measured."""


def facts() -> dict:
    """Name, compute capability, multiprocessors, float32 operations per second, bytes per second.

    None where simulated.
    """
    found = {"name": driver.device_name(), "multiprocessors": driver.multiprocessors()}
    if driver.SIMULATED:
        return found | {"capability": None, "peak": None, "bandwidth": None}
    device = driver.module().get_current_device()
    return found | {
        "capability": ".".join(map(str, device.compute_capability)),
        "peak": bench.gpu_peak_flops(),
        "bandwidth": bandwidth(),
    }


def bandwidth() -> float:
    """Bytes read and written per second while an array is copied on the GPU; the best of a few."""
    cuda = driver.module()
    there, here = (cuda.device_array(COPIED // 4, np.float32) for _ in range(2))
    best = 0.0
    for _ in range(5):
        cuda.synchronize()
        began = time.perf_counter()
        for _ in range(8):
            here.copy_to_device(there)
        cuda.synchronize()
        best = max(best, 8 * 2 * COPIED / (time.perf_counter() - began))
    return best
