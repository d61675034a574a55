"""The only importer of `cuda`: finding a GPU, compiling and launching kernels, device memory.

In Numba's simulator (NUMBA_ENABLE_CUDASIM=1) the same calls run kernels as Python, on arrays in the
host's memory.
"""

import importlib.util
import warnings
from functools import cache
from typing import Any

import numpy as np
from numba.core import types

from numbanet.backend.cuda import simulator
from numbanet.backend.cuda.gemm import BLOCK_THREADS, SIMULATED, gemm_naive, gemm_strided_cuda
from numbanet.backend.cuda.simulator import rebind
from numbanet.backend.intrinsics import (
    block_in_group,
    blocks_per_group,
    num_threads,
    thread_in_block,
    thread_rank,
)
from numbanet.backend.jit import Kernel

MIN_COMPUTE_CAPABILITY = (7, 0)
"""The oldest compute capability that kernels are compiled for: Volta."""

cuda: Any = None
"""numba.cuda, once `module` has found it; the simulator replaces it while a kernel runs."""


class CudaError(RuntimeError):
    """There is no usable GPU, or it reported an error; the message says what and what to do."""


def module():
    """numba.cuda itself, usable or not. CudaError where its package is not installed."""
    global cuda
    if cuda is None:
        if not SIMULATED and importlib.util.find_spec("numba_cuda") is None:
            raise CudaError(
                'device="cuda" needs the package numba-cuda: pip install "numbanet[cuda]" '
                "(or numba-cuda[cu13] where the driver is one of CUDA 13); "
                'device="cpu" needs nothing'
            )
        from numba import cuda as found

        cuda = found
    return cuda


@cache
def require_gpu() -> None:
    """CudaError unless there is a driver and a GPU that kernels can be compiled for."""
    found = module()
    if SIMULATED:
        return
    try:
        device = found.get_current_device()
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CudaError(
            f'device="cuda" finds no usable NVIDIA driver or GPU ({reason}); '
            '`nvidia-smi` should list a GPU; device="cpu" needs none'
        ) from None
    capability = tuple(device.compute_capability)
    if capability < MIN_COMPUTE_CAPABILITY:
        raise CudaError(
            f"the GPU {_name(device)} has compute capability {capability[0]}.{capability[1]}; "
            f"{MIN_COMPUTE_CAPABILITY[0]}.{MIN_COMPUTE_CAPABILITY[1]} or newer is needed "
            '(Volta, 2017); use device="cpu"'
        )


def _name(device) -> str:
    name = device.name
    return name.decode() if isinstance(name, bytes) else str(name)


@cache
def multiprocessors() -> int:
    """The number of streaming multiprocessors of the GPU."""
    return 1 if SIMULATED else int(module().get_current_device().MULTIPROCESSOR_COUNT)


def device_name() -> str:
    """The name of the GPU."""
    return "the simulator" if SIMULATED else _name(module().get_current_device())


# --- functions ---------------------------------------------------------------------------------


def _current():
    """The module that the simulator provides to the current thread."""
    return cuda


@cache
def _simulated_words():
    return simulator.simulator_intrinsics(_current)


def device(function):
    """A function that kernels call."""
    if SIMULATED:
        return rebind(function, _simulated_words())
    return module().jit(device=True)(getattr(function, "py_func", function))


@cache
def cuda_kernel(kernel: Kernel):
    """A kernel's CUDA kernel as a device function.

    It is the one written for it or, if its iterations are independent, the kernel itself, of which
    each thread runs other iterations.
    """
    if kernel.cuda_kernel is not None:
        return device(kernel.cuda_kernel)
    if not kernel.independent:
        raise CudaError(
            f"{kernel!r} has no CUDA kernel; write one (`@{kernel.__name__}.cuda`), or make it "
            "`@kernel(independent=True)` if the iterations lo ≤ i < hi are independent"
        )
    per_thread = device(kernel.function)

    def each(op, params, grads, acts, deltas, lo, hi):
        for i in range(lo + thread_rank(), hi, num_threads()):
            per_thread(op, params, grads, acts, deltas, i, i + 1)

    return device(each)


@cache
def per_thread(kernel: Kernel):
    """A kernel's CUDA kernel for a single thread, which processes a sample without any other.

    The thread counts as the whole block group, so there is no barrier.
    """
    if kernel.cuda_kernel is None:
        cuda_kernel(kernel)  # says what is missing
        return device(kernel.function)
    words = {id(word): device(by_itself) for word, by_itself in _SINGLE_THREAD.items()}
    words, finish = (_simulated_words() | words, _identity) if SIMULATED else (words, device)
    return rebind(
        kernel.cuda_kernel,
        words | {id(gemm_strided_cuda): rebind(gemm_naive, words, finish)},
        finish,
    )


def _identity(function):
    return function


def _zero():
    return 0


def _one():
    return 1


_SINGLE_THREAD = {
    thread_in_block: _zero,
    thread_rank: _zero,
    block_in_group: _zero,
    num_threads: _one,
    blocks_per_group: _one,
}


def _trampoline(function, *args):
    """What the simulator launches; it replaces `cuda` in the module of the function given."""
    with np.errstate(all="ignore"):
        function(*args)


class CudaKernel:
    """A kernel whose arguments are integers, compiled on its first launch.

    `kernel(groups, blocks, *integers)` launches it on `groups` block groups of `blocks` blocks.
    """

    def __init__(self, function, n_args: int):
        self.function, self.n_args = function, n_args
        self._ready: dict = {}

    def __call__(self, groups: int, blocks: int, *integers) -> None:
        ready = self._ready.get((groups, blocks))
        if ready is None:
            with warnings.catch_warnings():  # a small network needs few blocks only
                warnings.simplefilter("ignore")
                ready = self._ready[groups, blocks] = self._kernel()[
                    (groups, blocks), BLOCK_THREADS
                ]
        if SIMULATED:
            ready(self.copy, *integers)
        else:
            ready(*integers)

    def _kernel(self):
        if SIMULATED:
            self.copy = rebind(self.function, _simulated_words())
            return module().jit(_trampoline)
        if "kernel" not in self.__dict__:
            jit = module().jit(types.void(*[types.int64] * self.n_args))
            self.kernel = jit(self.function)
        return self.kernel


# --- memory ------------------------------------------------------------------------------------


def free_bytes() -> int:
    """The number of free bytes of device memory."""
    return 1 << 40 if SIMULATED else int(module().current_context().get_memory_info().free)


class DeviceBuffer:
    """An array in device memory."""

    def __init__(self, count: int, dtype):
        self.count, self.dtype = count, np.dtype(dtype)
        self.array: Any
        if SIMULATED:
            self.array = np.full(max(1, count), _poison(self.dtype), self.dtype)
            self.address = self.array.ctypes.data
            simulator.DEVICE_ARRAYS[self.address] = self.array
        else:
            self.array = module().device_array(max(1, count), self.dtype)
            self.address = int(self.array.device_ctypes_pointer.value)

    def upload(self, values: np.ndarray) -> None:
        """Copy from the host."""
        values = np.ascontiguousarray(values).reshape(-1)
        if SIMULATED:
            self.array[: values.size] = values
        elif values.size:
            self.array[: values.size].copy_to_device(values)

    def download(self, values: np.ndarray) -> None:
        """Copy to the host, after all work that was launched before."""
        if SIMULATED:
            values[...] = self.array[: values.size].reshape(values.shape)
        elif values.size:
            values[...] = self.array[: values.size].copy_to_host().reshape(values.shape)

    def __del__(self):
        if SIMULATED:
            simulator.DEVICE_ARRAYS.pop(self.__dict__.get("address"), None)


def _poison(dtype):
    """The initial value of the elements: a NaN shows where they are read before written."""
    return np.nan if dtype.kind == "f" else 0
