"""The CPU engine: runs a plan over the four memories, in two parallel regions per training step.

    region A, over shards of the batch:   gather → forward … → loss → backward …          (BP1, BP2)
    region B, over blocks of parameters:  gradient over the whole batch → penalty → update   (BP3, BP4)

Region B splits the parameters, not the batch: each weight adds its samples in one fixed order, so the result is the same bits
for any number of threads. The work is written as kernels, `train`, `differentiate` and `forward`, for one worker of several; the
workers enter one parallel region (`enter`, the only `prange`) and meet at a spinning barrier between the regions. A worker stands
for one or more of the threads that the plan was made for, so that any number of workers gives the same bits.
"""

import math
import os
import threading

import numba
import numpy as np
from numba import prange

from numbanet.backend.intrinsics import address, as_pointer, call_indirect, const_like, data_pointer, ptr_add
from numbanet.backend.intrinsics.affinity import leave_shared_cpu, record_cpu
from numbanet.backend.intrinsics.barrier import barrier_arrive_all, barrier_wait
from numbanet.backend.jit import entry_point, inline, kernel
from numbanet.backend.threads import max_threads
from numbanet.nn.regularizers import penalize
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    BASE_X,
    BASE_Y,
    CHUNKS,
    FORWARD,
    GRADIENT,
    INPUTS,
    N_OUT,
    N_WEIGHTS,
    NEXT,
    OUTPUTS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PREFETCH_LIMIT,
    PREVIOUS,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SAMPLES,
    SPLIT_K,
    START,
    STATISTICS,
    STEP,
    W,
    X,
    Y,
    context,
)

(TABLES, TABLE_ROWS, PHASES, N_PHASES, TASKS, BOUNDS, STATE, SUMS, BARRIER, EPOCH_SAMPLES, BATCH, MICRO_BATCH, THREADS, LOSSES, CORRECT, BUFFER,
 FIRST, LAST, STEPS_DONE, N_SPLITS) = range(20)
"""A run, what one call works on: addresses of the plan's arrays, of the optimiser's state, of where sums and workers meet; samples,
sizes; offsets of losses and hits in acts (−1: none); numbers in a worker's gradient buffer; batches from and to; steps taken."""
BATCHES_DONE, CPU_IDS, BARRIER_SIZE = 16, 24, 24 + 1024
"""Where in the workers' meeting place the batch reached and the processors stand, and how long it is."""

# --- the two regions --------------------------------------------------------------------------------------------------


@inline
def _forward_backward(run, table, params, acts, deltas, from_shard, to_shard, phase, train):
    """Region A for some shards of the batch: each block of samples through the network, and back.

    Where an op waits for the whole batch, a phase ends: a block is then one shard, and all workers meet before the next phase.
    """
    size, shards = table[SAMPLES], table[CHUNKS]
    rows = ptr_add(as_pointer(run[PHASES], np.int64), 4 * phase)
    forward_from, forward_to, back_from, back_to = rows[0], rows[1], rows[2], rows[3]
    if train and phase == 0:
        _clear_partial_grads(table, acts, from_shard, to_shard)
    shard = from_shard
    lo, hi = size * from_shard // shards, size * to_shard // shards
    while lo < hi:
        last = min(lo + run[MICRO_BATCH], hi)
        if run[N_PHASES] > 1:
            while size * (shard + 1) // shards == lo:  # an empty shard: the batch has fewer samples than shards
                shard += 1
            last = size * (shard + 1) // shards
        row = forward_from
        while row != forward_to:
            op = ptr_add(table, row * ROW_SIZE)
            op[X] = op[BASE_X] - lo * op[SAMPLE_STRIDE_X]
            op[Y] = op[BASE_Y] - lo * op[SAMPLE_STRIDE_Y]
            call_indirect(op[FORWARD], op, params, params, acts, deltas, lo, last)
            row = op[NEXT]
        if row:
            op = ptr_add(table, row * ROW_SIZE)
            call_indirect(op[STATISTICS], op, params, ptr_add(acts, op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE]), acts, deltas, lo, last)
        row = back_from if train else 0
        while row:
            op = ptr_add(table, row * ROW_SIZE)
            if op[ACCUMULATE] and not (op[STATISTICS] and row == back_from):
                _accumulate(op, params, acts, deltas, from_shard, to_shard, lo, last)
            if row == back_to:
                break
            if op[BACKWARD]:
                call_indirect(op[BACKWARD], op, params, params, acts, deltas, lo, last)
            row = op[PREVIOUS]
        lo = last
        shard += 1


@inline
def _accumulate(op, params, acts, deltas, from_shard, to_shard, lo, hi):
    """Add the gradient of samples lo ≤ i < hi to the partial gradients of their shards."""
    size, shards = context(op, SAMPLES), context(op, CHUNKS)
    for shard in range(from_shard, to_shard):
        first, last = max(lo, size * shard // shards), min(hi, size * (shard + 1) // shards)
        if first < last:
            call_indirect(op[ACCUMULATE], op, params, ptr_add(acts, op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE] - op[W]), acts, deltas, first, last)


@inline
def _clear_partial_grads(table, acts, from_shard, to_shard):
    """Start the partial gradients of these shards at zero."""
    row = table[PREVIOUS]
    while row:
        op = ptr_add(table, row * ROW_SIZE)
        if op[ACCUMULATE]:
            for i in range(op[PARTIAL_GRADS] + from_shard * op[PARTIAL_STRIDE], op[PARTIAL_GRADS] + to_shard * op[PARTIAL_STRIDE]):
                acts[i] = const_like(acts, 0)
        row = op[PREVIOUS]


@inline
def _sample_region(run, params, acts, deltas, worker, workers, batch, phase, train):
    """Region A, the shards of the threads that this worker stands for."""
    threads, start = run[THREADS], batch * run[BATCH]
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = ptr_add(as_pointer(run[TABLES], np.int64), t * run[TABLE_ROWS] * ROW_SIZE)
        table[START], table[SAMPLES] = start, min(run[BATCH], run[EPOCH_SAMPLES] - start)
        table[PREFETCH_LIMIT] = run[EPOCH_SAMPLES] if train else 0
        shards = table[CHUNKS]
        _forward_backward(run, table, params, acts, deltas, shards * t // threads, shards * (t + 1) // threads, phase, train)


@inline
def _split_k_region(run, params, acts, deltas, worker, workers, batch):
    """Before region A: the parts of the inputs' columns of the threads that this worker stands for, for the whole batch."""
    threads, start, splits = run[THREADS], batch * run[BATCH], run[N_SPLITS]
    first, last = threads * worker // workers, threads * (worker + 1) // workers
    table = ptr_add(as_pointer(run[TABLES], np.int64), first * run[TABLE_ROWS] * ROW_SIZE)
    table[START], table[SAMPLES], table[PREFETCH_LIMIT] = start, min(run[BATCH], run[EPOCH_SAMPLES] - start), run[EPOCH_SAMPLES]
    inputs = ptr_add(table, ROW_SIZE)
    op = ptr_add(table, inputs[NEXT] * ROW_SIZE)
    for part in range(splits * first // threads, splits * last // threads):
        lo, hi = inputs[N_OUT] * part // splits, inputs[N_OUT] * (part + 1) // splits
        call_indirect(inputs[SPLIT_K], inputs, params, params, acts, deltas, lo, hi)
        call_indirect(op[SPLIT_K], op, params, ptr_add(acts, op[PARTIAL_GRADS] + part * op[PARTIAL_STRIDE]), acts, deltas, lo, hi)


@inline
def _update_region(run, params, grads, acts, deltas, worker, workers, step):
    """Region B, the tasks of the threads that this worker stands for.

    With a buffer, gradients live only until the update; without, they fill grads.
    """
    threads, tasks, bounds = run[THREADS], as_pointer(run[TASKS], np.int64), as_pointer(run[BOUNDS], np.int64)
    state = as_pointer(run[STATE], params)
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = ptr_add(as_pointer(run[TABLES], np.int64), t * run[TABLE_ROWS] * ROW_SIZE)
        optimizer = ptr_add(table, (run[TABLE_ROWS] - 1) * ROW_SIZE)
        table[STEP] = step
        if optimizer[FORWARD]:
            call_indirect(optimizer[FORWARD], optimizer, params, params, state, deltas, 0, 0)
        for k in range(bounds[t], bounds[t + 1]):
            task = ptr_add(tasks, 5 * k)
            op = ptr_add(table, task[0] * ROW_SIZE)
            first, last = task[3], task[4]
            g = ptr_add(grads, t * run[BUFFER] - first if run[BUFFER] else 0)
            call_indirect(op[GRADIENT], op, params, g, acts, deltas, task[1], task[2])
            penalize(op, params, g, first, min(last, op[W] + op[N_WEIGHTS]))
            if optimizer[GRADIENT]:
                call_indirect(optimizer[GRADIENT], optimizer, params, g, state, deltas, first, last)


@inline
def _sum(run, acts, column, batch):
    """The sum of the losses or hits of a batch, in order; 0 where there are none."""
    offset, total = run[column], 0.0
    if offset >= 0:
        for i in range(offset, offset + min(run[BATCH], run[EPOCH_SAMPLES] - batch * run[BATCH])):
            total += acts[i]
    return total


@inline
def _arrive(counter, worker, workers):
    """Wait for all workers, each on a processor of its own; False if they do not all come."""
    if workers > 1:
        places = ptr_add(counter, CPU_IDS)
        record_cpu(places, worker)
        if not barrier_arrive_all(counter, workers):
            return False
        leave_shared_cpu(places, worker)
    return True


# --- the work ---------------------------------------------------------------------------------------------------------


@kernel
def train(run, params, grads, acts, deltas, worker, workers):
    """Take the steps FIRST … LAST − 1 of an epoch; add up loss, hits and samples, and stop at a loss that is not finite.

    The meeting place's REACHED becomes the batch that was reached; it stays −1 if the workers never all came.
    """
    counter, sums = as_pointer(run[BARRIER], np.int64), as_pointer(run[SUMS], np.float64)
    if not _arrive(counter, worker, workers):
        return
    turn, batch = 1, run[FIRST]
    while batch < run[LAST]:
        if run[N_SPLITS]:
            _split_k_region(run, params, acts, deltas, worker, workers, batch)
            turn += 1
            barrier_wait(counter, workers, turn)
        for phase in range(run[N_PHASES]):
            _sample_region(run, params, acts, deltas, worker, workers, batch, phase, True)
            turn += 1
            barrier_wait(counter, workers, turn)
        total = _sum(run, acts, LOSSES, batch)
        if not math.isfinite(total):
            break
        if worker == 0:
            sums[0] += total
            sums[1] += _sum(run, acts, CORRECT, batch)
        batch += 1
        _update_region(run, params, grads, acts, deltas, worker, workers, run[STEPS_DONE] + batch - run[FIRST])
        turn += 1
        barrier_wait(counter, workers, turn)
    if worker == 0:
        counter[BATCHES_DONE] = batch


@kernel
def differentiate(run, params, grads, acts, deltas, worker, workers):
    """Fill grads with the gradient of the mean loss over one batch, penalties included; add up the loss."""
    counter, sums = as_pointer(run[BARRIER], np.int64), as_pointer(run[SUMS], np.float64)
    if not _arrive(counter, worker, workers):
        return
    turn = 1
    if run[N_SPLITS]:
        _split_k_region(run, params, acts, deltas, worker, workers, 0)
        turn += 1
        barrier_wait(counter, workers, turn)
    for phase in range(run[N_PHASES]):
        _sample_region(run, params, acts, deltas, worker, workers, 0, phase, True)
        turn += 1
        barrier_wait(counter, workers, turn)
    _update_region(run, params, grads, acts, deltas, worker, workers, 1)
    if worker == 0:
        sums[0] += _sum(run, acts, LOSSES, 0)
        counter[BATCHES_DONE] = 1


@kernel
def forward(run, params, grads, acts, deltas, worker, workers):
    """Carry the batches FIRST … LAST − 1 through; the last op hands outputs out, or loss and hits are added up."""
    counter, sums = as_pointer(run[BARRIER], np.int64), as_pointer(run[SUMS], np.float64)
    summing = run[LOSSES] >= 0
    if summing and not _arrive(counter, worker, workers):
        return
    turn = 1
    for batch in range(run[FIRST], run[LAST]):
        _sample_region(run, params, acts, deltas, worker, workers, batch, 0, False)
        if summing:
            turn += 1
            barrier_wait(counter, workers, turn)
            if worker == 0:
                sums[0] += _sum(run, acts, LOSSES, batch)
                sums[1] += _sum(run, acts, CORRECT, batch)
            turn += 1
            barrier_wait(counter, workers, turn)
    if worker == 0:
        counter[BATCHES_DONE] = run[LAST]


# --- entry points -----------------------------------------------------------------------------------------------------


def _run(work, run, params, grads, acts, deltas, workers):
    """Let all workers do their part of the work at that address."""
    for worker in prange(workers):
        call_indirect(work, data_pointer(run), data_pointer(params), data_pointer(grads), data_pointer(acts), data_pointer(deltas), worker, workers)


_RUN = {parallel: entry_point(_run, parallel=parallel) for parallel in (False, True)}


@entry_point
def predict_small(x, outputs, run, params, acts, look):
    """Carry a few samples through in the calling thread; with `look`, False and no outputs if an input is not finite."""
    numbers = data_pointer(x)
    if look:
        total = 0.0
        for k in range(x.size):
            total += numbers[k] * 0.0
        if total != 0.0:
            return False
    table = as_pointer(run[TABLES], np.int64)
    table[INPUTS], table[OUTPUTS], run[EPOCH_SAMPLES] = address(numbers), address(data_pointer(outputs)), len(x)
    _sample_region(data_pointer(run), data_pointer(params), data_pointer(acts), data_pointer(acts), 0, 1, 0, 0, False)
    table[INPUTS] = table[OUTPUTS] = 0
    return True


_workqueue_lock = threading.Lock()
_import_pid = os.getpid()


def usable_threads(wanted: int) -> int:
    """`wanted`, but 1 in a child of a fork, where OpenMP's threads did not come along."""
    return wanted if os.getpid() == _import_pid else 1


def run_parallel(work, run, params, grads, acts, deltas, workers: int, most: int) -> None:
    """Do the work of a kernel, by its address, with that many workers, under the lock that the work queue needs.

    `most` is the number of workers that other calls of this kind have: where it is more than one, the parallel version serves.
    """
    if usable_threads(most) == 1:
        _RUN[False](work, run, params, grads, acts, deltas, 1)
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(workers, max_threads()))
    try:
        if numba.threading_layer() == "workqueue":
            with _workqueue_lock:
                _RUN[True](work, run, params, grads, acts, deltas, workers)
        else:
            _RUN[True](work, run, params, grads, acts, deltas, workers)
    finally:
        numba.set_num_threads(before)
