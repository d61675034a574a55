"""Many networks at once: a thread carries one through some batches, then takes the next.

    worker 0:  network 0 ────────► network 3 ──────► …        no barrier between networks,
    worker 1:  network 1 ──► network 2 ────► network 4 ► …    each has its own table and parameters

A *job* is one network's batches first … last − 1, done by one worker with the engine's own kernel,
so a network's numbers are those of a lone call. Jobs are taken from a counter. The activations, the
deltas and the gradient of a task lie in memories of the worker, which all networks of one layout
share: they hold nothing between two steps.
"""

import numpy as np
from numba import prange

from numbanet.backend.intrinsics import as_pointer, call_indirect, data_pointer
from numbanet.backend.intrinsics.barrier import fetch_add
from numbanet.backend.jit import entry_point, inline
from numbanet.backend.threads import max_threads
from numbanet.engine.cpu.executor import Executor, allocate
from numbanet.engine.cpu.kernels import BATCHES_DONE, CALL, CPU_IDS, in_region, usable_threads
from numbanet.plan.columns import (
    ATTRS,
    INPUT_COLUMNS,
    INPUT_STARTS,
    INPUTS,
    L1_STRENGTH,
    L2_STRENGTH,
    LENGTHS,
    OUTPUTS,
    PENALTY_FACTORS,
    PERMUTATION,
    RATES,
    STATE,
    TARGETS,
    WEIGHTS,
)

ADDRESSES = [
    INPUTS,
    TARGETS,
    PERMUTATION,
    OUTPUTS,
    RATES,
    WEIGHTS,
    PENALTY_FACTORS,
    LENGTHS,
    INPUT_COLUMNS,
    INPUT_STARTS,
    STATE,
]
"""The columns of the context that say where data are: a network's are those that it is given."""
JOB_SIZE, MEMORIES = 3, 3
"""Integers of a job (its call, its parameters, its layout); memories of a layout for a worker."""


@inline
def _take_jobs(kernel_address, jobs, n_jobs, memories, counter, witness, worker, workers):
    """Take jobs until none is left."""
    k = fetch_add(counter, 1)
    while k < n_jobs:
        job = k * JOB_SIZE
        memory = (jobs[job + 2] * workers + worker) * MEMORIES
        call_indirect(
            kernel_address,
            as_pointer(jobs[job], np.int64),
            as_pointer(jobs[job + 1], witness),
            as_pointer(memories[memory], witness),
            as_pointer(memories[memory + 1], witness),
            as_pointer(memories[memory + 2], witness),
            0,
            1,
        )
        k = fetch_add(counter, 1)


def _run(kernel_address, jobs, memories, counter, witness, workers):
    """Let all workers take jobs.

    jobs       int64 (jobs, JOB_SIZE)
    memories   int64 (layouts, workers, MEMORIES), addresses of grads, acts and deltas
    counter    int64 (1), 0
    witness    any array of the networks' dtype
    """
    for worker in prange(workers):
        _take_jobs(
            kernel_address,
            data_pointer(jobs),
            len(jobs),
            data_pointer(memories),
            data_pointer(counter),
            data_pointer(witness),
            worker,
            workers,
        )


_RUN = {parallel: entry_point(_run, parallel=parallel) for parallel in (False, True)}


def layout(executor: Executor) -> tuple:
    """What two executors have in common that may work in the same memories, one after the other."""
    plan = executor.plan
    rows = plan.tables[0, 1:, :ATTRS].copy()
    rows[:, [L1_STRENGTH, L2_STRENGTH]] = 0
    rows[-len(plan.groups) :] = 0
    grads = _n_grads(executor)
    return plan.n_acts, plan.n_deltas, grads, rows.tobytes(), plan.schedule.tobytes()


def _n_grads(executor: Executor) -> int:
    """Elements of the memory of its gradients."""
    return int(executor.call[CALL.n_kept] + executor.call[CALL.task_size])


class Members:
    """One kind of call (training, evaluation) for many networks of one dtype.

    executors   one for each network, of one thread; networks whose plans are equal may share one.
                Nobody else may use them until this object is made, which then needs their plans
                alone
    kernel      of the engine: `train`, `infer`
    threads     workers, at most
    optimizers  that of each network, in training
    """

    def __init__(self, executors: list, kernel, threads: int, optimizers=None):
        self.executors = executors  # their plans are in use
        self.witness = executors[0].acts
        self.kernel_address = kernel.address(self.witness.dtype)
        self.workers = max(1, min(usable_threads(threads), max_threads(), len(executors)))
        n = len(executors)
        self.tables = []
        for k, executor in enumerate(executors):
            if optimizers is not None:
                executor.set_optimizer(optimizers[k])
                executor.arrange_grads(keep=executor.keeps_gradients)
            table = executor.plan.tables[0].copy()
            table[0, ADDRESSES] = 0
            self.tables.append(table)
        self.calls = np.array([executor.call for executor in executors])
        self.sums = np.zeros((n, 2))
        self._square_sums = [np.zeros(len(executor.plan.tasks)) for executor in executors]
        self._done = np.zeros((n, CPU_IDS), np.int64)
        for k in range(n):
            self.calls[k, CALL.tables] = self.tables[k].ctypes.data
            self.calls[k, CALL.metric_sums] = self.sums[k].ctypes.data
            self.calls[k, CALL.barrier] = self._done[k].ctypes.data
            self.calls[k, CALL.penalty_sums] = 0
            if self.calls[k, CALL.square_sums]:
                self.calls[k, CALL.square_sums] = self._square_sums[k].ctypes.data
        self._jobs = np.zeros((n, JOB_SIZE), np.int64)
        self._jobs[:, 0] = self.calls.ctypes.data + self.calls.itemsize * len(CALL) * np.arange(n)
        self._counter = np.zeros(1, np.int64)
        self._allocate()

    def _allocate(self) -> None:
        """Memories of every layout for every worker."""
        numbers: dict[tuple, int] = {}
        self._kept, addresses = [], []
        for k, executor in enumerate(self.executors):
            found = layout(executor)
            if found not in numbers:
                numbers[found] = len(numbers)
                plan, dtype = executor.plan, self.witness.dtype
                for _ in range(self.workers):
                    sizes = _n_grads(executor), plan.n_acts, plan.n_deltas
                    self._kept.append([allocate(size, dtype) for size in sizes])
                    addresses.append([memory.ctypes.data for memory in self._kept[-1]])
            self._jobs[k, 2] = numbers[found]
        self._memories = np.array(addresses, np.int64).reshape(-1, self.workers, MEMORIES)

    def bind(self, k: int, column: int, value: int) -> None:
        """Write a column of the context of network k; the caller keeps what an address is of."""
        self.tables[k][0, column] = value

    def run(self, chosen, addresses, samples, first, last) -> np.ndarray:
        """Let the networks `chosen` do batches first … last − 1; the batches that they reached.

        chosen       numbers of networks, in the order in which they are begun, each one once
        addresses    of the memory with the parameters of each of them
        samples, first, last   an integer for each of them
        """
        chosen = np.asarray(chosen, np.int64)
        self.calls[chosen, CALL.epoch_samples] = samples
        self.calls[chosen, CALL.first], self.calls[chosen, CALL.last] = first, last
        self._jobs[chosen, 1] = addresses
        self._counter[0] = 0
        jobs = np.ascontiguousarray(self._jobs[chosen])
        workers = min(self.workers, len(chosen))
        memories = np.ascontiguousarray(self._memories[:, :workers])
        arguments = (self.kernel_address, jobs, memories, self._counter, self.witness, workers)
        in_region(_RUN[self.workers > 1], arguments, workers)
        return self._done[chosen, BATCHES_DONE]
