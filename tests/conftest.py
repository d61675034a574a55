"""Without an NVIDIA driver, CUDA kernels run in Numba's simulator.

It has to be chosen before Numba is imported.
"""

import ctypes
import os
import sys

import pytest


def _has_gpu():
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


if not _has_gpu():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")


@pytest.fixture(autouse=True)
def as_many_threads_as_asked_for(monkeypatch):
    """Plans are made for as many threads as a test asks for, on a machine of few CPUs too."""
    from numbanet.engine import executors

    monkeypatch.setattr(executors, "max_threads", lambda: 64)


@pytest.fixture
def short_switch_interval():
    """Switch between Python's threads often: those of the simulator wait for one another."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
