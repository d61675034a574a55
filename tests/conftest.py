"""Without an NVIDIA driver, CUDA kernels run in Numba's simulator.

It has to be chosen before Numba is imported.
"""

import ctypes
import importlib.util
import os

import pytest


def _has_gpu():
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False


if not _has_gpu():
    os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")


@pytest.fixture(autouse=True, scope="session")
def simulated_threads_take_turns():
    """The simulator runs a block's threads one at a time."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" and importlib.util.find_spec("numba_cuda"):
        import simulated_blocks

        simulated_blocks.kernel.BlockManager = simulated_blocks.Block


@pytest.fixture(autouse=True)
def as_many_threads_as_asked_for(monkeypatch):
    """Plans are made for as many threads as a test asks for, on a machine of few CPUs too."""
    from numbanet.engine import executors

    monkeypatch.setattr(executors, "max_threads", lambda: 64)


def pytest_collection_modifyitems(items):
    # what takes longest comes first, so that no process is left alone with it at the end
    items.sort(key=lambda item: item.path.name != "test_ptx.py")
    for item in items:
        if item.get_closest_marker("gpu") and os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
