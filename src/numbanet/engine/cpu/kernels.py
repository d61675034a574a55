"""The CPU engine: kernels that replay a plan's schedule, and the parallel region that runs them.

    forward-backward region, over samples:   inputs → forward … → loss → backward …     (BP1, BP2)
    update region, over parameters:          gradient → penalty → update                (BP3, BP4)

The update region divides the parameters, not the batch, among the threads: each weight adds its
samples in one fixed order, so the result is bit-identical for any number of threads. Where an
update needs all gradients at once (the norm of the whole) or those of several batches, they are
kept, and all threads wait for one another before the update.

The engine's own work is written as kernels for one worker of several: `train`, `differentiate`,
`infer`, and `run_stage` for steps so long that they are cut into several native calls. All workers
enter one parallel region (`run_parallel`, the only `prange`) and wait for one another at a spinning
barrier. A worker stands for one or more of the threads that the plan was made for, so any number of
workers gives bit-identical results.
"""

import math
import os
import threading

import numba
import numpy as np
from numba import from_dtype, prange
from numba.core import types

from numbanet.backend.ahead import Unit
from numbanet.backend.intrinsics import (
    CACHE_LINE,
    VECTOR_BYTES,
    address,
    as_pointer,
    call_indirect,
    const_like,
    data_pointer,
    float_attr,
    lanes,
    ptr_add,
    set_float_attr,
)
from numbanet.backend.intrinsics.affinity import leave_shared_cpu, record_cpu
from numbanet.backend.intrinsics.barrier import barrier_arrive_all, barrier_wait
from numbanet.backend.intrinsics.pointers import prefetch_write
from numbanet.backend.jit import entry_point, inline, inline_strict, kernel
from numbanet.backend.threads import max_threads
from numbanet.nn.regularizers import penalize
from numbanet.nn.steering import (
    AVERAGE,
    BEGIN_STEP,
    CLIP,
    COMMON,
    DECAY,
    STEERING,
    UPDATE,
)
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    BASE_X,
    BASE_Y,
    CHUNKS,
    EPOCH,
    FORWARD,
    GRADIENT,
    INPUTS,
    L2_STRENGTH,
    N_OUT,
    N_SPLIT_K,
    N_WEIGHTS,
    OPTIMIZER_ROW,
    OUTPUTS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PENALTY_FACTOR,
    PENALTY_FACTORS,
    PERMUTATION,
    PREFETCH_LIMIT,
    RATES,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SAMPLES,
    SPLIT_K,
    START,
    STATISTICS,
    STEP,
    Attrs,
    W,
    X,
    Y,
)
from numbanet.plan.plan import OVER_FEATURES, PHASE_SIZE, STEP_SIZE, TASK_SIZE, ZERO_GRADS

CALL = Attrs(
    "tables table_rows schedule phases n_phases by_chunk tasks task_bounds state metric_sums "
    "barrier epoch_samples batch micro_batch epoch permutation threads losses correct "
    "task_size n_kept accumulate optimizer_row sum_squares square_sums penalty_sums n_tasks "
    "first last steps_done stage piece n_pieces",
    first=0,
)
"""
What one native call works on:
tables … task_bounds         addresses and sizes of the plan's arrays
state                        address of the optimiser's state
metric_sums, barrier         addresses of where loss and correct answers of each epoch are added
                             up, and of the workers' barrier
epoch_samples, batch         samples in an epoch and in a batch
epoch, permutation           of the first epoch, where there are several; 0 without an order
losses, correct              offsets in acts of the samples' losses and correct answers, −1: none
task_size                    elements of a thread's gradient buffer
n_kept                       elements in front of these buffers, where all gradients are kept, or 0
accumulate                   batches whose gradients make one update
optimizer_row                the first row of the optimiser
sum_squares                  address of the kernel that sums squares, where one of the next is not 0
square_sums, penalty_sums    addresses of the sums of squares of each task's gradient, and of what
                             its L2 penalty adds to the summed loss of an epoch; 0 where not asked
first, last                  batches from and to; in training they count on through the next epochs
steps_done                   optimiser steps taken before the first epoch
stage, piece, n_pieces       of `run_stage`
"""
BATCHES_DONE, CPU_IDS, BARRIER_SIZE = 16, 24, 24 + 1024
"""Offsets in the barrier's memory of the batch reached and of the workers' CPUs, and its size."""
MAX_WORKERS = BARRIER_SIZE - CPU_IDS
N_SUMS, INDEX_BYTES = 2, 8
"""Sums of an epoch, and the size of an integer in the order of its samples."""

# --- the forward-backward region ------------------------------------------------------------------


@inline
def _table(call, t):
    """The table of thread t."""
    return ptr_add(as_pointer(call[CALL.tables], np.int64), t * call[CALL.table_rows] * ROW_SIZE)


@inline
def _batches(call):
    """The batches of an epoch."""
    return (call[CALL.epoch_samples] + call[CALL.batch] - 1) // call[CALL.batch]


@inline
def _write_context(call, table, epoch, batch, train):
    """Write the position of the batch in its epoch, and its factor of the penalties."""
    if epoch > 0:
        table[EPOCH] = call[CALL.epoch] + epoch
        if call[CALL.permutation]:
            size = epoch * call[CALL.epoch_samples] * INDEX_BYTES
            table[PERMUTATION] = call[CALL.permutation] + size
    start = batch * call[CALL.batch]
    table[START], table[SAMPLES] = start, min(call[CALL.batch], call[CALL.epoch_samples] - start)
    table[PREFETCH_LIMIT] = call[CALL.epoch_samples] if train else 0
    factor = 1.0
    if table[PENALTY_FACTORS]:
        factor = as_pointer(table[PENALTY_FACTORS], np.float64)[batch]
    set_float_attr(table, PENALTY_FACTOR, factor)


@inline
def _replay(call, table, params, acts, deltas, first, last, lo, hi, from_chunk, to_chunk):
    """Run steps first … last − 1 of the schedule on a micro-batch, samples lo ≤ i < hi."""
    schedule = as_pointer(call[CALL.schedule], np.int64)
    for k in range(first, last):
        verb, op = schedule[STEP_SIZE * k], ptr_add(table, schedule[STEP_SIZE * k + 1] * ROW_SIZE)
        if verb == FORWARD:
            op[X] = op[BASE_X] - lo * op[SAMPLE_STRIDE_X]
            op[Y] = op[BASE_Y] - lo * op[SAMPLE_STRIDE_Y]
            call_indirect(op[FORWARD], op, params, params, acts, deltas, lo, hi)
        elif verb == BACKWARD:
            call_indirect(op[BACKWARD], op, params, params, acts, deltas, lo, hi)
        elif verb == ACCUMULATE:
            _accumulate(table, op, params, acts, deltas, lo, hi, from_chunk, to_chunk)
        elif verb == STATISTICS:
            sums = ptr_add(acts, op[PARTIAL_GRADS] + from_chunk * op[PARTIAL_STRIDE])
            call_indirect(op[STATISTICS], op, params, sums, acts, deltas, lo, hi)


@inline
def _accumulate(table, op, params, acts, deltas, lo, hi, from_chunk, to_chunk):
    """Add the gradient of samples lo ≤ i < hi to the partial gradients of their chunks."""
    size, chunks = table[SAMPLES], table[CHUNKS]
    for chunk in range(from_chunk, to_chunk):
        first, last = max(lo, size * chunk // chunks), min(hi, size * (chunk + 1) // chunks)
        if first < last:
            partial = ptr_add(acts, op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] - op[W])
            call_indirect(op[ACCUMULATE], op, params, partial, acts, deltas, first, last)


@inline
def _zero_grads(call, table, acts, first, from_chunk, to_chunk):
    """Set the partial gradients of these chunks to zero, as the first steps of the schedule."""
    schedule = as_pointer(call[CALL.schedule], np.int64)
    k = first
    while schedule[STEP_SIZE * k] == ZERO_GRADS:
        op = ptr_add(table, schedule[STEP_SIZE * k + 1] * ROW_SIZE)
        for i in range(
            op[PARTIAL_GRADS] + from_chunk * op[PARTIAL_STRIDE],
            op[PARTIAL_GRADS] + to_chunk * op[PARTIAL_STRIDE],
        ):
            acts[i] = const_like(acts, 0)
        k += 1
    return k


@inline
def _forward_backward(call, table, params, acts, deltas, t, phase, piece, n_pieces):
    """One phase for the samples of thread t, micro-batch by micro-batch; one of n_pieces of them.

    Where statistics are taken, a micro-batch is one chunk of the batch.
    """
    size, chunks, threads = table[SAMPLES], table[CHUNKS], call[CALL.threads]
    from_chunk, to_chunk = chunks * t // threads, chunks * (t + 1) // threads
    begin, end = size * from_chunk // chunks, size * to_chunk // chunks
    by_chunk, most = call[CALL.by_chunk], call[CALL.micro_batch]
    n = to_chunk - from_chunk if by_chunk else (end - begin + most - 1) // most
    first_part, last_part = n * piece // n_pieces, n * (piece + 1) // n_pieces
    zero_from = from_chunk + first_part if by_chunk else from_chunk
    zero_to = to_chunk if piece == 0 else from_chunk
    zero_to = from_chunk + last_part if by_chunk else zero_to
    first = _zero_grads(call, table, acts, phase[1], zero_from, zero_to)
    for part in range(first_part, last_part):
        lo, hi = begin + part * most, min(begin + (part + 1) * most, end)
        if by_chunk:
            from_chunk = chunks * t // threads + part
            to_chunk = from_chunk + 1
            lo, hi = size * from_chunk // chunks, size * to_chunk // chunks
        if lo < hi:  # a batch may have fewer samples than chunks
            _replay(
                call, table, params, acts, deltas, first, phase[2], lo, hi, from_chunk, to_chunk
            )


@inline
def _split_k(call, table, params, acts, deltas, t, phase):
    """Partial products of the features of thread t, for the whole batch."""
    threads, schedule = call[CALL.threads], as_pointer(call[CALL.schedule], np.int64)
    inputs = ptr_add(table, schedule[STEP_SIZE * phase[1] + 1] * ROW_SIZE)
    for part in range(N_SPLIT_K * t // threads, N_SPLIT_K * (t + 1) // threads):
        lo, hi = inputs[N_OUT] * part // N_SPLIT_K, inputs[N_OUT] * (part + 1) // N_SPLIT_K
        for k in range(phase[1], phase[2]):
            op = ptr_add(table, schedule[STEP_SIZE * k + 1] * ROW_SIZE)
            product = ptr_add(acts, op[PARTIAL_GRADS] + part * op[PARTIAL_STRIDE])
            call_indirect(op[SPLIT_K], op, params, product, acts, deltas, lo, hi)


@inline
def _run_phase(
    call, params, acts, deltas, worker, workers, epoch, batch, number, train, piece, n_pieces
):
    """One phase of a batch, for the threads that this worker replaces."""
    threads, phase = (
        call[CALL.threads],
        ptr_add(as_pointer(call[CALL.phases], np.int64), PHASE_SIZE * number),
    )
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = _table(call, t)
        _write_context(call, table, epoch, batch, train)
        if train and phase[0] == OVER_FEATURES:
            if piece == 0:
                _split_k(call, table, params, acts, deltas, t, phase)
        else:
            _forward_backward(call, table, params, acts, deltas, t, phase, piece, n_pieces)


# --- the update region ----------------------------------------------------------------------------


@inline
def _update_due(call, batch):
    """Whether the gradients are applied after this batch: every few batches, and after the last."""
    last = (batch + 1) * call[CALL.batch] >= call[CALL.epoch_samples]
    return last or (batch + 1) % call[CALL.accumulate] == 0


@inline_strict
def _gradient_factor(call, optimizer, batch):
    """What makes the sum of gradients their mean, of a norm that is not too large."""
    n = float(batch % call[CALL.accumulate] + 1)
    if call[CALL.square_sums] == 0:
        return 1.0 / n
    squares, total = as_pointer(call[CALL.square_sums], np.float64), 0.0
    for k in range(call[CALL.n_tasks]):
        total += squares[k]
    return min(1.0, float_attr(optimizer, STEERING.clip_norm) / (math.sqrt(total) / n + 1e-6)) / n


@inline
def _begin_step(call, params, deltas, worker, workers, epoch, batch):
    """Write what all parameters share, and let the optimiser compute the rest of it."""
    threads, state = call[CALL.threads], as_pointer(call[CALL.state], params)
    updates = (_batches(call) + call[CALL.accumulate] - 1) // call[CALL.accumulate]
    step = call[CALL.steps_done] + epoch * updates + batch // call[CALL.accumulate] + 1
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = _table(call, t)
        table[STEP] = step
        for row in range(call[CALL.optimizer_row], call[CALL.table_rows]):
            optimizer = ptr_add(table, row * ROW_SIZE)
            if optimizer[CLIP]:
                factor = _gradient_factor(call, optimizer, batch)
                set_float_attr(optimizer, STEERING.gradient_factor, factor)
            if table[RATES]:
                rate = as_pointer(table[RATES], np.float64)[batch]
                rate *= float_attr(optimizer, STEERING.rate_factor)
                set_float_attr(optimizer, COMMON.learning_rate, rate)
            if optimizer[BEGIN_STEP]:
                call_indirect(optimizer[BEGIN_STEP], optimizer, params, params, state, deltas, 0, 0)


@kernel
def sum_squares(op, params, grads, acts, deltas, lo, hi):
    """The sum of the squares of grads[lo … hi − 1], into the optimiser's row, in float64"""
    total = 0.0
    for i in range(lo, hi):
        g = np.float64(grads[i])
        total += g * g
    set_float_attr(op, STEERING.square_sum, total)


@inline
def _sum_squares(call, optimizer, values, acts, deltas, first, last):
    """The sum of the squares of values first … last − 1."""
    call_indirect(call[CALL.sum_squares], optimizer, values, values, acts, deltas, first, last)
    return float_attr(optimizer, STEERING.square_sum)


@inline
def _update(optimizer, params, grads, state, deltas, first, last):
    """Update parameters first … last − 1, with what is asked for before and after it."""
    if optimizer[CLIP]:
        call_indirect(optimizer[CLIP], optimizer, params, grads, state, deltas, first, last)
    if optimizer[DECAY]:
        call_indirect(optimizer[DECAY], optimizer, params, grads, state, deltas, first, last)
    if optimizer[UPDATE]:
        call_indirect(optimizer[UPDATE], optimizer, params, grads, state, deltas, first, last)
    if optimizer[AVERAGE]:
        call_indirect(optimizer[AVERAGE], optimizer, params, grads, state, deltas, first, last)


@inline
def _fetch_for_update(params, first, last):
    """Fetch the cache lines of parameters first … last − 1 while their gradient is taken.

    The other threads have read them: unless they give them up before, each store waits for that.
    """
    for i in range(first, last, lanes(params) * (CACHE_LINE // VECTOR_BYTES)):
        prefetch_write(ptr_add(params, i))


@inline
def _update_region(
    call, params, grads, acts, deltas, worker, workers, epoch, batch, piece, n_pieces, take, apply
):
    """`take` the gradients of tasks, with penalties, and `apply` them; one of n_pieces.

    Where gradients are kept they fill grads, or are added to those of the batches before; elsewhere
    a gradient lives in a buffer until its update.
    """
    kept = call[CALL.n_kept] > 0
    norm = call[CALL.square_sums] != 0 and _update_due(call, batch)
    adding = kept and batch % call[CALL.accumulate] > 0
    tasks, bounds = (
        as_pointer(call[CALL.tasks], np.int64),
        as_pointer(call[CALL.task_bounds], np.int64),
    )
    threads, state = call[CALL.threads], as_pointer(call[CALL.state], params)
    for t in range(threads * worker // workers, threads * (worker + 1) // workers):
        table = _table(call, t)
        n = bounds[t + 1] - bounds[t]
        for k in range(bounds[t] + n * piece // n_pieces, bounds[t] + n * (piece + 1) // n_pieces):
            task = ptr_add(tasks, TASK_SIZE * k)
            op, first, last = ptr_add(table, task[0] * ROW_SIZE), task[3], task[4]
            optimizer = ptr_add(table, op[OPTIMIZER_ROW] * ROW_SIZE)
            buffer = call[CALL.n_kept] + t * call[CALL.task_size] - first
            g = ptr_add(grads, buffer if not kept or (take and adding) else 0)
            if apply:
                _fetch_for_update(params, first, last)
            if take:
                call_indirect(op[GRADIENT], op, params, g, acts, deltas, task[1], task[2])
                last_weight = min(last, op[W] + op[N_WEIGHTS])
                penalize(op, params, g, first, last_weight)
                if call[CALL.penalty_sums]:
                    squares = _sum_squares(
                        call, optimizer, params, acts, deltas, first, last_weight
                    )
                    strength = float_attr(op, L2_STRENGTH) * float_attr(table, PENALTY_FACTOR)
                    sums = as_pointer(call[CALL.penalty_sums], np.float64)
                    sums[epoch * call[CALL.n_tasks] + k] += (
                        0.5 * strength * table[SAMPLES] * squares
                    )
            if take and adding:
                for i in range(first, last):
                    grads[i] += g[i]
            if take and norm:
                squares = as_pointer(call[CALL.square_sums], np.float64)
                squares[k] = _sum_squares(call, optimizer, grads, acts, deltas, first, last)
            if apply:
                _update(optimizer, params, g, state, deltas, first, last)


@inline
def _sum(call, acts, offset, batch):
    """The sum of the batch's losses or correct answers, in order; 0 where there are none."""
    total = 0.0
    if offset >= 0:
        samples = min(call[CALL.batch], call[CALL.epoch_samples] - batch * call[CALL.batch])
        for i in range(offset, offset + samples):
            total += acts[i]
    return total


@inline
def _add_metrics(call, acts, epoch, batch, loss):
    """Add the summed loss and the correct answers of a batch to the sums of its epoch."""
    sums = ptr_add(as_pointer(call[CALL.metric_sums], np.float64), epoch * N_SUMS)
    sums[0] += loss
    sums[1] += _sum(call, acts, call[CALL.correct], batch)


@inline
def _arrive(counter, worker, workers):
    """Wait until all workers have arrived, each on its own CPU; False if some do not arrive."""
    if workers > 1:
        cpus = ptr_add(counter, CPU_IDS)
        record_cpu(cpus, worker)
        if not barrier_arrive_all(counter, workers):
            return False
        leave_shared_cpu(cpus, worker)
    return True


# --- the engine's kernels -------------------------------------------------------------------------


@kernel
def train(call, params, grads, acts, deltas, worker, workers):
    """Take the steps first … last − 1, of one epoch or several; stop at a loss that is not finite.

    BATCHES_DONE becomes the batch that was reached; it stays −1 if the workers never all came.
    """
    counter = as_pointer(call[CALL.barrier], np.int64)
    if not _arrive(counter, worker, workers):
        return
    generation, done, batches = 1, call[CALL.first], _batches(call)
    while done < call[CALL.last]:
        epoch, batch = done // batches, done % batches
        for phase in range(call[CALL.n_phases]):
            _run_phase(call, params, acts, deltas, worker, workers, epoch, batch, phase, True, 0, 1)
            generation += 1
            barrier_wait(counter, workers, generation)
        loss = _sum(call, acts, call[CALL.losses], batch)
        if not math.isfinite(loss):
            break
        if worker == 0:
            _add_metrics(call, acts, epoch, batch, loss)
        due, last_part = _update_due(call, batch), 1 if call[CALL.n_kept] else 0
        for part in range(last_part + 1):
            if part > 0 and due:
                generation += 1
                barrier_wait(counter, workers, generation)
            apply = due and part == last_part
            if apply:
                _begin_step(call, params, deltas, worker, workers, epoch, batch)
            take = part == 0
            _update_region(
                call, params, grads, acts, deltas, worker, workers, epoch, batch, 0, 1, take, apply
            )
        done += 1
        generation += 1
        barrier_wait(counter, workers, generation)
    if worker == 0:
        counter[BATCHES_DONE] = done


@kernel
def differentiate(call, params, grads, acts, deltas, worker, workers):
    """Fill grads with the gradient of the mean loss over one batch, penalties included.

    The loss is added to the metrics.
    """
    counter = as_pointer(call[CALL.barrier], np.int64)
    if not _arrive(counter, worker, workers):
        return
    generation = 1
    for phase in range(call[CALL.n_phases]):
        _run_phase(call, params, acts, deltas, worker, workers, 0, 0, phase, True, 0, 1)
        generation += 1
        barrier_wait(counter, workers, generation)
    _update_region(call, params, grads, acts, deltas, worker, workers, 0, 0, 0, 1, True, False)
    if worker == 0:
        _add_metrics(call, acts, 0, 0, _sum(call, acts, call[CALL.losses], 0))
        counter[BATCHES_DONE] = 1


@kernel
def infer(call, params, grads, acts, deltas, worker, workers):
    """Process the batches first … last − 1.

    Outputs are written, or loss and correct answers are added up.
    """
    counter = as_pointer(call[CALL.barrier], np.int64)
    summing = call[CALL.losses] >= 0
    if summing and not _arrive(counter, worker, workers):
        return
    generation = 1
    for batch in range(call[CALL.first], call[CALL.last]):
        _run_phase(call, params, acts, deltas, worker, workers, 0, batch, 0, False, 0, 1)
        if summing:
            generation += 1
            barrier_wait(counter, workers, generation)
            if worker == 0:
                _add_metrics(call, acts, 0, batch, _sum(call, acts, call[CALL.losses], batch))
            generation += 1
            barrier_wait(counter, workers, generation)
    if worker == 0:
        counter[BATCHES_DONE] = call[CALL.last]


TAKE_GRADIENTS, APPLY_GRADIENTS = -1, -2
"""Stages of a step after its phases; a phase has its index as its stage."""


@kernel
def run_stage(call, params, grads, acts, deltas, worker, workers):
    """One piece of one stage of a step that is cut into several native calls; grads are all kept.

    Without a barrier: the end of the native call is one. BATCHES_DONE becomes the batch.
    """
    stage, piece, n_pieces = call[CALL.stage], call[CALL.piece], call[CALL.n_pieces]
    epoch, batch = call[CALL.first] // _batches(call), call[CALL.first] % _batches(call)
    take = stage == TAKE_GRADIENTS
    if stage >= 0:
        _run_phase(
            call, params, acts, deltas, worker, workers, epoch, batch, stage, True, piece, n_pieces
        )
    else:
        if not take:
            _begin_step(call, params, deltas, worker, workers, epoch, batch)
        part, parts = (piece, n_pieces) if take else (0, 1)
        _update_region(
            call,
            params,
            grads,
            acts,
            deltas,
            worker,
            workers,
            epoch,
            batch,
            part,
            parts,
            take,
            not take,
        )
    if worker == 0:
        as_pointer(call[CALL.barrier], np.int64)[BATCHES_DONE] = call[CALL.first]


# --- entry points ---------------------------------------------------------------------------------


def _run(kernel_address, call, params, grads, acts, deltas, workers):
    """Let all workers do their part of the work of the kernel at that address."""
    for worker in prange(workers):
        call_indirect(
            kernel_address,
            data_pointer(call),
            data_pointer(params),
            data_pointer(grads),
            data_pointer(acts),
            data_pointer(deltas),
            worker,
            workers,
        )


_RUN = {parallel: entry_point(_run, parallel=parallel) for parallel in (False, True)}


def engine_units(kernel, dtype, most: int) -> list[Unit]:
    """What has to be compiled to run a kernel of the engine; `most` as in run_parallel."""
    return [*kernel.units(dtype), region_unit(dtype, usable_threads(most) > 1)]


def region_unit(dtype, parallel: bool) -> Unit:
    """What runs the engine's kernels, to be compiled ahead."""
    integers, memory = (types.Array(found, 1, "C") for found in (types.int64, from_dtype(dtype)))
    return _RUN[parallel].unit((types.int64, integers, *[memory] * 4, types.int64))


@entry_point
def batch_loss(call, acts):
    """Add loss and correct answers of batch `first` to the sums; the loss of the batch."""
    call_, acts_ = data_pointer(call), data_pointer(acts)
    epoch, batch = call[CALL.first] // _batches(call_), call[CALL.first] % _batches(call_)
    loss = _sum(call_, acts_, call[CALL.losses], batch)
    _add_metrics(call_, acts_, epoch, batch, loss)
    return loss


@entry_point
def predict_small(x, outputs, call, params, acts, check_finite):
    """Process a few samples in the calling thread; False if an output is not finite.

    With `check_finite`, False and no outputs if an input is not finite in the dtype of `acts`.
    """
    inputs, results, memory = data_pointer(x), data_pointer(outputs), data_pointer(acts)
    total = const_like(memory, 0)
    if check_finite:
        for k in range(x.size):
            total += const_like(memory, inputs[k]) * const_like(memory, 0)
        if total != const_like(memory, 0):
            return False
    table = as_pointer(call[CALL.tables], np.int64)
    table[INPUTS], table[OUTPUTS] = address(inputs), address(results)
    call[CALL.epoch_samples] = len(x)
    _run_phase(data_pointer(call), data_pointer(params), memory, memory, 0, 1, 0, 0, 0, False, 0, 1)
    table[INPUTS] = table[OUTPUTS] = 0
    for k in range(outputs.size):
        total += results[k] * const_like(memory, 0)
    return total == const_like(memory, 0)


_workqueue_lock = threading.Lock()
_import_pid = os.getpid()


def usable_threads(wanted: int) -> int:
    """`wanted`, but 1 in a child of a fork, where OpenMP's threads do not exist."""
    return wanted if os.getpid() == _import_pid else 1


def run_parallel(kernel_address, call, memories, workers: int, most: int) -> None:
    """Run a kernel, by its address, with that many workers, under the lock of the work queue.

    memories   params, grads, acts, deltas
    most       the number of workers that other calls of this kind have: where it is more than one,
               the parallel version serves
    """
    if usable_threads(most) == 1:
        _RUN[False](kernel_address, call, *memories, 1)
    else:
        in_region(_RUN[True], (kernel_address, call, *memories, workers), workers)


def in_region(entry, arguments, workers: int) -> None:
    """Call an entry point with so many threads, under the lock of the work queue."""
    before, wanted = numba.get_num_threads(), min(workers, max_threads())
    if wanted != before:
        numba.set_num_threads(wanted)
    try:
        if numba.threading_layer() == "workqueue":
            with _workqueue_lock:
                entry(*arguments)
        else:
            entry(*arguments)
    finally:
        if wanted != before:
            numba.set_num_threads(before)
