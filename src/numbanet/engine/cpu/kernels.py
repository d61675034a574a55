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

from numbanet.backend.intrinsics import address, at, call, like, memory, pointer
from numbanet.backend.intrinsics.barrier import all_here, meet, separate, take_place
from numbanet.backend.jit import inline, kernel, max_threads, native
from numbanet.nn.regularizers import penalize
from numbanet.plan.columns import (
    BACKWARD,
    COUNT,
    FORWARD,
    GRADIENT,
    HOME_X,
    HOME_Y,
    INPUTS,
    N_Y,
    NEXT,
    OUTPUTS,
    PARTIAL,
    PARTIALS,
    PREPARE,
    PREVIOUS,
    SAMPLES,
    SHARDS,
    SPLIT,
    START,
    STEP,
    STEP_X,
    STEP_Y,
    TOTAL,
    WEIGHTS,
    WIDTH,
    W,
    X,
    Y,
    clock,
)

(TABLES, ROWS, PHASES, N_PHASES, TASKS, BOUNDS, STATE, SUMS, MEETING, EPOCH_SAMPLES, BATCH, BLOCK, THREADS, LOSSES, HITS, BUFFER,
 FIRST, LAST, TAKEN, N_SPLITS) = range(20)
"""A run, what one call works on: addresses of the plan's arrays, of the optimiser's state, of where sums and workers meet; samples,
sizes; offsets of losses and hits in acts (−1: none); numbers in a worker's gradient buffer; batches from and to; steps taken."""
REACHED, PLACES, MEETING_SIZE = 16, 24, 24 + 1024
"""Where in the workers' meeting place the batch reached and the processors stand, and how long it is."""

# --- the two regions --------------------------------------------------------------------------------------------------


@inline
def _walk(run, table, params, acts, deltas, from_shard, to_shard, phase, train):
    """Region A for some shards of the batch: each block of samples through the network, and back.

    Where an op waits for the whole batch, a phase ends: a block is then one shard, and all workers meet before the next phase.
    """
    size, shards = table[SAMPLES], table[SHARDS]
    rows = at(pointer(run[PHASES], np.int64), 4 * phase)
    forward_from, forward_to, back_from, back_to = rows[0], rows[1], rows[2], rows[3]
    if train and phase == 0:
        _clear_partials(table, acts, from_shard, to_shard)
    shard = from_shard
    lo, hi = size * from_shard // shards, size * to_shard // shards
    while lo < hi:
        last = min(lo + run[BLOCK], hi)
        if run[N_PHASES] > 1:
            while size * (shard + 1) // shards == lo:  # an empty shard: the batch has fewer samples than shards
                shard += 1
            last = size * (shard + 1) // shards
        row = forward_from
        while row != forward_to:
            op = at(table, row * WIDTH)
            op[X] = op[HOME_X] - lo * op[STEP_X]
            op[Y] = op[HOME_Y] - lo * op[STEP_Y]
            call(op[FORWARD], op, params, params, acts, deltas, lo, last)
            row = op[NEXT]
        if row:
            op = at(table, row * WIDTH)
            call(op[PREPARE], op, params, at(acts, op[PARTIALS] + shard * op[COUNT]), acts, deltas, lo, last)
        row = back_from if train else 0
        while row:
            op = at(table, row * WIDTH)
            if op[PARTIAL] and not (op[PREPARE] and row == back_from):
                _partial(op, params, acts, deltas, from_shard, to_shard, lo, last)
            if row == back_to:
                break
            if op[BACKWARD]:
                call(op[BACKWARD], op, params, params, acts, deltas, lo, last)
            row = op[PREVIOUS]
        lo = last
        shard += 1


@inline
def _partial(op, params, acts, deltas, from_shard, to_shard, lo, hi):
    """Add the gradient of samples lo ≤ i < hi to the partial gradients of their shards."""
    size, shards = clock(op, SAMPLES), clock(op, SHARDS)
    for shard in range(from_shard, to_shard):
        first, last = max(lo, size * shard // shards), min(hi, size * (shard + 1) // shards)
        if first < last:
            call(op[PARTIAL], op, params, at(acts, op[PARTIALS] + shard * op[COUNT] - op[W]), acts, deltas, first, last)


@inline
def _clear_partials(table, acts, from_shard, to_shard):
    """Start the partial gradients of these shards at zero."""
    row = table[PREVIOUS]
    while row:
        op = at(table, row * WIDTH)
        if op[PARTIAL]:
            for i in range(op[PARTIALS] + from_shard * op[COUNT], op[PARTIALS] + to_shard * op[COUNT]):
                acts[i] = like(acts, 0)
        row = op[PREVIOUS]


@inline
def _samples(run, params, acts, deltas, worker, workers, batch, phase, train):
    """Region A, the shards of the threads that this worker stands for."""
    threads, start = run[THREADS], batch * run[BATCH]
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = at(pointer(run[TABLES], np.int64), t * run[ROWS] * WIDTH)
        table[START], table[SAMPLES] = start, min(run[BATCH], run[EPOCH_SAMPLES] - start)
        table[TOTAL] = run[EPOCH_SAMPLES] if train else 0
        shards = table[SHARDS]
        _walk(run, table, params, acts, deltas, shards * t // threads, shards * (t + 1) // threads, phase, train)


@inline
def _columns(run, params, acts, deltas, worker, workers, batch):
    """Before region A: the parts of the inputs' columns of the threads that this worker stands for, for the whole batch."""
    threads, start, splits = run[THREADS], batch * run[BATCH], run[N_SPLITS]
    first, last = threads * worker // workers, threads * (worker + 1) // workers
    table = at(pointer(run[TABLES], np.int64), first * run[ROWS] * WIDTH)
    table[START], table[SAMPLES], table[TOTAL] = start, min(run[BATCH], run[EPOCH_SAMPLES] - start), run[EPOCH_SAMPLES]
    inputs = at(table, WIDTH)
    op = at(table, inputs[NEXT] * WIDTH)
    for part in range(splits * first // threads, splits * last // threads):
        lo, hi = inputs[N_Y] * part // splits, inputs[N_Y] * (part + 1) // splits
        call(inputs[SPLIT], inputs, params, params, acts, deltas, lo, hi)
        call(op[SPLIT], op, params, at(acts, op[PARTIALS] + part * op[COUNT]), acts, deltas, lo, hi)


@inline
def _parameters(run, params, grads, acts, deltas, worker, workers, step):
    """Region B, the tasks of the threads that this worker stands for.

    With a buffer, gradients live only until the update; without, they fill grads.
    """
    threads, tasks, bounds = run[THREADS], pointer(run[TASKS], np.int64), pointer(run[BOUNDS], np.int64)
    state = pointer(run[STATE], params)
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = at(pointer(run[TABLES], np.int64), t * run[ROWS] * WIDTH)
        optimizer = at(table, (run[ROWS] - 1) * WIDTH)
        table[STEP] = step
        if optimizer[FORWARD]:
            call(optimizer[FORWARD], optimizer, params, params, state, deltas, 0, 0)
        for k in range(bounds[t], bounds[t + 1]):
            task = at(tasks, 5 * k)
            op = at(table, task[0] * WIDTH)
            first, last = task[3], task[4]
            g = at(grads, t * run[BUFFER] - first if run[BUFFER] else 0)
            call(op[GRADIENT], op, params, g, acts, deltas, task[1], task[2])
            penalize(op, params, g, first, min(last, op[W] + op[WEIGHTS]))
            if optimizer[GRADIENT]:
                call(optimizer[GRADIENT], optimizer, params, g, state, deltas, first, last)


@inline
def _total(run, acts, column, batch):
    """The sum of the losses or hits of a batch, in order; 0 where there are none."""
    offset, total = run[column], 0.0
    if offset >= 0:
        for i in range(offset, offset + min(run[BATCH], run[EPOCH_SAMPLES] - batch * run[BATCH])):
            total += acts[i]
    return total


@inline
def _begin(counter, worker, workers):
    """Wait for all workers, each on a processor of its own; False if they do not all come."""
    if workers > 1:
        places = at(counter, PLACES)
        take_place(places, worker)
        if not all_here(counter, workers):
            return False
        separate(places, worker)
    return True


# --- the work ---------------------------------------------------------------------------------------------------------


@kernel
def train(run, params, grads, acts, deltas, worker, workers):
    """Take the steps FIRST … LAST − 1 of an epoch; add up loss, hits and samples, and stop at a loss that is not finite.

    The meeting place's REACHED becomes the batch that was reached; it stays −1 if the workers never all came.
    """
    counter, sums = pointer(run[MEETING], np.int64), pointer(run[SUMS], np.float64)
    if not _begin(counter, worker, workers):
        return
    turn, batch = 1, run[FIRST]
    while batch < run[LAST]:
        if run[N_SPLITS]:
            _columns(run, params, acts, deltas, worker, workers, batch)
            turn += 1
            meet(counter, workers, turn)
        for phase in range(run[N_PHASES]):
            _samples(run, params, acts, deltas, worker, workers, batch, phase, True)
            turn += 1
            meet(counter, workers, turn)
        total = _total(run, acts, LOSSES, batch)
        if not math.isfinite(total):
            break
        if worker == 0:
            sums[0] += total
            sums[1] += _total(run, acts, HITS, batch)
        batch += 1
        _parameters(run, params, grads, acts, deltas, worker, workers, run[TAKEN] + batch - run[FIRST])
        turn += 1
        meet(counter, workers, turn)
    if worker == 0:
        counter[REACHED] = batch


@kernel
def differentiate(run, params, grads, acts, deltas, worker, workers):
    """Fill grads with the gradient of the mean loss over one batch, penalties included; add up the loss."""
    counter, sums = pointer(run[MEETING], np.int64), pointer(run[SUMS], np.float64)
    if not _begin(counter, worker, workers):
        return
    turn = 1
    if run[N_SPLITS]:
        _columns(run, params, acts, deltas, worker, workers, 0)
        turn += 1
        meet(counter, workers, turn)
    for phase in range(run[N_PHASES]):
        _samples(run, params, acts, deltas, worker, workers, 0, phase, True)
        turn += 1
        meet(counter, workers, turn)
    _parameters(run, params, grads, acts, deltas, worker, workers, 1)
    if worker == 0:
        sums[0] += _total(run, acts, LOSSES, 0)
        counter[REACHED] = 1


@kernel
def forward(run, params, grads, acts, deltas, worker, workers):
    """Carry the batches FIRST … LAST − 1 through; the last op hands outputs out, or loss and hits are added up."""
    counter, sums = pointer(run[MEETING], np.int64), pointer(run[SUMS], np.float64)
    summing = run[LOSSES] >= 0
    if summing and not _begin(counter, worker, workers):
        return
    turn = 1
    for batch in range(run[FIRST], run[LAST]):
        _samples(run, params, acts, deltas, worker, workers, batch, 0, False)
        if summing:
            turn += 1
            meet(counter, workers, turn)
            if worker == 0:
                sums[0] += _total(run, acts, LOSSES, batch)
                sums[1] += _total(run, acts, HITS, batch)
            turn += 1
            meet(counter, workers, turn)
    if worker == 0:
        counter[REACHED] = run[LAST]


# --- entry points -----------------------------------------------------------------------------------------------------


def _enter(work, run, params, grads, acts, deltas, workers):
    """Let all workers do their part of the work at that address."""
    for worker in prange(workers):
        call(work, memory(run), memory(params), memory(grads), memory(acts), memory(deltas), worker, workers)


_ENTER = {parallel: native(_enter, parallel=parallel) for parallel in (False, True)}


@native
def direct(x, outputs, run, params, acts, look):
    """Carry a few samples through in the calling thread; with `look`, False and no outputs if an input is not finite."""
    numbers = memory(x)
    if look:
        total = 0.0
        for k in range(x.size):
            total += numbers[k] * 0.0
        if total != 0.0:
            return False
    table = pointer(run[TABLES], np.int64)
    table[INPUTS], table[OUTPUTS], run[EPOCH_SAMPLES] = address(numbers), address(memory(outputs)), len(x)
    _samples(memory(run), memory(params), memory(acts), memory(acts), 0, 1, 0, 0, False)
    table[INPUTS] = table[OUTPUTS] = 0
    return True


_one_at_a_time = threading.Lock()
_owner = os.getpid()


def usable_threads(wanted: int) -> int:
    """`wanted`, but 1 in a child of a fork, where OpenMP's threads did not come along."""
    return wanted if os.getpid() == _owner else 1


def enter(work, run, params, grads, acts, deltas, workers: int, most: int) -> None:
    """Do the work of a kernel, by its address, with that many workers, under the lock that the work queue needs.

    `most` is the number of workers that other calls of this kind have: where it is more than one, the parallel version serves.
    """
    if usable_threads(most) == 1:
        _ENTER[False](work, run, params, grads, acts, deltas, 1)
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(workers, max_threads()))
    try:
        if numba.threading_layer() == "workqueue":
            with _one_at_a_time:
                _ENTER[True](work, run, params, grads, acts, deltas, workers)
        else:
            _ENTER[True](work, run, params, grads, acts, deltas, workers)
    finally:
        numba.set_num_threads(before)
