"""The CPU engine: runs a plan over the four memories, in two parallel regions per training step.

    region A, over shards of the batch:   gather → forward … → loss → backward …          (BP1, BP2)
    region B, over blocks of parameters:  gradient over the whole batch → penalty → update   (BP3, BP4)

Region B splits the parameters, not the batch: each weight adds its samples in one fixed order, so the result is the same bits
for any number of threads. `prange` stands in this file alone. Every entry point is compiled twice when needed, with threads and
without: a small network, a forked child and a single thread never enter a parallel region.
"""

import math
import os
import threading

import numba
from numba import prange

from numbanet import _jit
from numbanet._jit import inline, native
from numbanet._simd import address, at, call, like, memory
from numbanet._simd.threads import all_here, meet, separate, take_place
from numbanet.plan import (
    BACKWARD,
    COUNT,
    FORWARD,
    GRADIENT,
    HOME_X,
    HOME_Y,
    INPUTS,
    NEXT,
    OUTPUTS,
    PARTIAL,
    PARTIALS,
    PREPARE,
    PREVIOUS,
    SAMPLES,
    SHARDS,
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
from numbanet.regularizers import penalize

# --- the two regions --------------------------------------------------------------------------------------------------


@inline
def _walk(table, params, acts, deltas, from_shard, to_shard, block, phases, phase, train):
    """Region A for some shards of the batch: each block of samples through the network, and back.

    Where an op waits for the whole batch, a phase ends: a block is then one shard, and all threads meet before the next phase.
    """
    size, shards = table[SAMPLES], table[SHARDS]
    forward_from, forward_to, back_from, back_to = phases[phase, 0], phases[phase, 1], phases[phase, 2], phases[phase, 3]
    if train and phase == 0:
        _clear_partials(table, acts, from_shard, to_shard)
    shard = from_shard
    lo, hi = size * from_shard // shards, size * to_shard // shards
    while lo < hi:
        last = min(lo + block, hi)
        if len(phases) > 1:
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
def _samples(tables, phases, params, acts, deltas, t, threads, total, start, size, block, phase, train):
    """Region A, the shards of thread t."""
    table = at(memory(tables), t * tables.shape[1] * WIDTH)
    table[START] = start
    table[SAMPLES] = size
    table[TOTAL] = total
    shards = table[SHARDS]
    _walk(table, memory(params), memory(acts), memory(deltas), shards * t // threads, shards * (t + 1) // threads, block, phases,
          phase, train)


@inline
def _parameters(tables, tasks, bounds, params, grads, acts, deltas, state, t, buffer, step):
    """Region B, the tasks of thread t. With a buffer, gradients live only until the update; without, they fill grads."""
    table = at(memory(tables), t * tables.shape[1] * WIDTH)
    optimizer = at(table, (tables.shape[1] - 1) * WIDTH)
    theta, a, da, s = memory(params), memory(acts), memory(deltas), memory(state)
    table[STEP] = step
    if optimizer[FORWARD]:
        call(optimizer[FORWARD], optimizer, theta, theta, s, da, 0, 0)
    for k in range(bounds[t], bounds[t + 1]):
        op = at(table, tasks[k, 0] * WIDTH)
        first, last = tasks[k, 3], tasks[k, 4]
        g = at(memory(grads), t * buffer - first if buffer else 0)
        call(op[GRADIENT], op, theta, g, a, da, tasks[k, 1], tasks[k, 2])
        penalize(op, theta, g, first, min(last, op[W] + op[WEIGHTS]))
        if optimizer[GRADIENT]:
            call(optimizer[GRADIENT], optimizer, theta, g, s, da, first, last)


@inline
def _total(acts, offset, size):
    """Σ acts[offset … offset + size), in order; 0 for a negative offset."""
    total = 0.0
    if offset >= 0:
        for i in range(size):
            total += acts[offset + i]
    return total


REACHED, PLACES, MEETING = 16, 24, 24 + 1024
"""Where in the workers' meeting place the step reached and the processors stand, and how long it is."""


# --- entry points -----------------------------------------------------------------------------------------------------


def train(tables, phases, tasks, bounds, params, grads, acts, deltas, state, layout, first, last, step, sums, meeting, workers):
    """Take the steps first … last − 1 of an epoch; add loss, hits and samples to sums and stop at a loss that is not finite.

    The workers enter one parallel region and meet at a spinning barrier after each region of a step. `meeting` is their counter,
    zeroed; behind the decision it returns the step that was reached, or −1 if the workers never all came.
    """
    meeting[REACHED] = -1
    for worker in prange(workers):
        _work(tables, phases, tasks, bounds, params, grads, acts, deltas, state, layout, first, last, step, sums, meeting, worker,
              workers)
    return meeting[REACHED]


@inline
def _work(tables, phases, tasks, bounds, params, grads, acts, deltas, state, layout, first, last, step, sums, meeting, worker,
          workers):
    """The steps of one worker, which stands for one or more of the threads that the plan was made for."""
    samples, batch, block, threads, losses, hits, buffer = layout
    counter = memory(meeting)
    from_thread, to_thread = threads * worker // workers, threads * (worker + 1) // workers
    turn, k = 1, first
    if workers > 1:
        places = at(counter, PLACES)
        take_place(places, worker)
        if not all_here(counter, workers):
            return
        separate(places, worker)
    while k < last:
        start = k * batch
        size = min(batch, samples - start)
        for phase in range(len(phases)):
            for t in range(from_thread, to_thread):
                _samples(tables, phases, params, acts, deltas, t, threads, samples, start, size, block, phase, True)
            turn += 1
            meet(counter, workers, turn)
        total = _total(acts, losses, size)
        if not math.isfinite(total):
            break
        if worker == 0:
            sums[0] += total
            sums[1] += _total(acts, hits, size)
            sums[2] += size
        k += 1
        for t in range(from_thread, to_thread):
            _parameters(tables, tasks, bounds, params, grads, acts, deltas, state, t, buffer, step + k - first)
        turn += 1
        meet(counter, workers, turn)
    if worker == 0:
        meeting[REACHED] = k


def gradient(tables, phases, tasks, bounds, params, grads, acts, deltas, layout, start, size, sums):
    """Fill grads with the gradient of the mean loss over one batch, penalties included; add the loss to sums."""
    samples, batch, block, threads, losses, hits, buffer = layout
    for phase in range(len(phases)):
        for t in prange(threads):
            _samples(tables, phases, params, acts, deltas, t, threads, 0, start, size, block, phase, True)
    sums[0] += _total(acts, losses, size)
    for t in prange(threads):
        _parameters(tables, tasks, bounds, params, grads, acts, deltas, deltas, t, 0, 1)


def forward(tables, phases, params, acts, layout, first, last, sums):
    """Carry the batches first … last − 1 of the data through; the last op hands outputs out, or loss and hits are added to sums."""
    samples, batch, block, threads, losses, hits, buffer = layout
    for k in range(first, last):
        start = k * batch
        size = min(batch, samples - start)
        for t in prange(threads):
            _samples(tables, phases, params, acts, acts, t, threads, 0, start, size, block, 0, False)
        sums[0] += _total(acts, losses, size)
        sums[1] += _total(acts, hits, size)


def direct(x, outputs, tables, phases, params, acts, block):
    """Carry a few samples through in the calling thread; False, and no outputs, if an input is not finite."""
    total = 0.0
    numbers = memory(x)
    for k in range(x.size):
        total += numbers[k] * 0.0
    if total != 0.0:
        return False
    table = memory(tables)
    table[INPUTS] = address(numbers)
    table[OUTPUTS] = address(memory(outputs))
    _samples(tables, phases, params, acts, acts, 0, 1, 0, 0, len(x), block, 0, False)
    table[INPUTS] = table[OUTPUTS] = 0
    return True


_NATIVE = {entry: {parallel: native(entry, parallel=parallel) for parallel in (False, True)}
           for entry in (train, gradient, forward, direct)}

# --- the Python side --------------------------------------------------------------------------------------------------

direct_call = _NATIVE[direct][False]
"""`direct`, compiled without threads."""

_one_at_a_time = threading.Lock()
_owner = os.getpid()


def usable_threads(wanted: int) -> int:
    """`wanted`, but 1 in a child of a fork, where OpenMP's threads did not come along."""
    return wanted if os.getpid() == _owner else 1


def run(entry, threads, *args, most=1):
    """Call an entry point, compiled with threads or without, under the lock that the work queue needs.

    `most` is the number of threads that other calls of this kind use: where it is more than one, the parallel version serves.
    """
    threads, most = usable_threads(threads), usable_threads(max(threads, most))
    if most == 1:
        return _NATIVE[entry][False](*args)
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, _jit.max_threads()))
    try:
        if numba.threading_layer() == "workqueue":
            with _one_at_a_time:
                return _NATIVE[entry][True](*args)
        return _NATIVE[entry][True](*args)
    finally:
        numba.set_num_threads(before)
