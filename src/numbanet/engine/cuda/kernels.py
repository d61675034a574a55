"""The CUDA engine: runs a plan on a GPU, in the same two regions as the CPU engine.

    region A, a row of blocks for each shard of the batch:   gather → forward … → loss → backward …          (BP1, BP2)
    region B, a row of blocks for each block of parameters:  gradient over the whole batch, then penalty → update   (BP3, BP4)

The verbs' CUDA twins are chained into kernels when a network is first used. Everything stays on the card: a launch is given the
address of its `run` and two or three whole numbers, and nothing is copied or waited for between steps. How much one launch does
depends on the work (`way`):

    ONE     one block takes many steps: forward, backward and update of a small network, without leaving the kernel
    WALK    region A in one launch, each row of blocks walks with its shard through the whole network and back
    APART   one launch for each op of region A, so that many blocks can share the product of a large layer
"""

import math
from functools import cache

import numpy as np

from numbanet.backend.cuda.driver import CudaKernel, cuda_kernel, device
from numbanet.backend.cuda.gemm import block_sum
from numbanet.backend.intrinsics import (
    as_pointer,
    block_in_group,
    const_like,
    group_index,
    num_groups,
    num_threads,
    ptr_add,
    syncthreads,
    thread_in_block,
    thread_rank,
)
from numbanet.backend.jit import inline
from numbanet.nn.regularizers import penalize
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    CHUNKS,
    EPOCH,
    GRADIENT,
    INPUTS,
    N_WEIGHTS,
    NEXT,
    OUTPUTS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PERMUTATION,
    PREFETCH_LIMIT,
    ROW_SIZE,
    SAMPLES,
    SEED,
    START,
    STATISTICS,
    STEP,
    TARGETS,
    W,
)
from numbanet.plan.lower import reduce_chunks

(TABLES, TABLE_ROWS, PARAMS, GRADS, ACTS, DELTAS, STATE, SUMS, TASKS, N_TASKS, BATCH, EPOCH_SAMPLES, STEPS_DONE, LOSSES, CORRECT, STOPPED,
 BATCHES_DONE, N_CHUNKS, CONTEXT) = range(19)
"""A run: addresses on the card, sizes, offsets of losses and hits (−1: none), steps taken before, whether and where training
stopped; from CLOCK on what the clocks of all tables hold."""
SHARED_CONTEXT = (EPOCH, SEED, PERMUTATION, INPUTS, TARGETS, OUTPUTS)
RUN_SIZE = CONTEXT + len(SHARED_CONTEXT)

# --- what one op does ---------------------------------------------------------------------------------------------------
# Each is `part(table, row, shard, params, acts, deltas, lo, hi)` around the twin of a verb.


def _forward(verb):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        verb(ptr_add(table, row * ROW_SIZE), params, params, acts, deltas, lo, hi)

    return device(part)


_backward = _forward
"""BACKWARD has the same arguments."""


def _prepare(verb):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        op = ptr_add(table, row * ROW_SIZE)
        verb(op, params, ptr_add(acts, op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE]), acts, deltas, lo, hi)

    return device(part)


def _partial(verb):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        op = ptr_add(table, row * ROW_SIZE)
        verb(op, params, ptr_add(acts, op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE] - op[W]), acts, deltas, lo, hi)

    return device(part)


def _zero_partials(_):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        op = ptr_add(table, row * ROW_SIZE)
        partials = ptr_add(acts, op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE])
        for i in range(thread_rank(), op[PARTIAL_STRIDE], num_threads()):
            partials[i] = const_like(acts, 0)

    return device(part)


def _empty(table, row, shard, params, acts, deltas, lo, hi):
    pass


def _compose(first, last, row_of_last):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        first(table, row, shard, params, acts, deltas, lo, hi)
        syncthreads()
        last(table, row_of_last, shard, params, acts, deltas, lo, hi)

    return device(part)


@cache
def single(wrapper, verb):
    """One part alone, for the row that a launch names."""
    return wrapper(cuda_kernel(verb) if verb is not None else None)


def schedule(plan, training: bool) -> list[list[tuple]]:
    """For each phase of region A its parts in order: (wrapper, verb, row)."""
    table, numbered = plan.tables[0], rows(plan)
    order = list(numbered)
    phases = []
    for k, (forward_from, forward_to, back_from, back_to) in enumerate(plan.phases[: None if training else 1].tolist()):
        found = [(_zero_partials, None, row) for row in order if training and k == 0 and table[row, ACCUMULATE]]
        end = order.index(forward_to) if forward_to else len(order)
        found += [(_forward, numbered[row].forward, row) for row in order[order.index(forward_from) : end]] if forward_from else []
        found += [(_prepare, numbered[forward_to].statistics, forward_to)] if forward_to else []
        backwards = order[order.index(back_to) if back_to else 0 : order.index(back_from) + 1] if back_from and training else []
        for row in reversed(backwards):
            if table[row, ACCUMULATE] and not (table[row, STATISTICS] and row == back_from):
                found.append((_partial, numbered[row].accumulate_gradient, row))
            if table[row, BACKWARD] and row != back_to:
                found.append((_backward, numbered[row].backward, row))
        phases.append(found)
    return phases


def rows(plan) -> dict:
    """The op of each row, in the order of the chain."""
    table, row, found = plan.tables[0], 1, {}
    for op in plan.ops:
        found[row] = op
        row = int(table[row, NEXT])
    return found


# --- the regions --------------------------------------------------------------------------------------------------------


def _noop(op, params, grads, acts, deltas, lo, hi):
    pass


@cache
def chain(found: tuple):
    """One part for several (wrapper, verb, row), with all threads of a block waiting for each other in between."""
    whole = device(_empty)
    for wrapper, verb, row in found:
        whole = _compose(whole, wrapper(cuda_kernel(verb) if verb is not None else None), row)
    return whole


@inline
def _write_context(run, table, batch):
    """Write the clock of a row of blocks and return the samples of the batch; lane 0 alone."""
    start = batch * run[BATCH]
    table[START], table[SAMPLES], table[PREFETCH_LIMIT] = start, min(run[BATCH], run[EPOCH_SAMPLES] - start), 0
    table[STEP], table[CHUNKS] = run[STEPS_DONE] + batch + 1, run[N_CHUNKS]
    table[EPOCH], table[SEED], table[PERMUTATION] = run[CONTEXT], run[CONTEXT + 1], run[CONTEXT + 2]
    table[INPUTS], table[TARGETS], table[OUTPUTS] = run[CONTEXT + 3], run[CONTEXT + 4], run[CONTEXT + 5]


@inline
def _add_metrics(run, acts, batch, samples):
    """Add up loss and hits of the batch in a fixed order, or stop the training at a loss that is not finite; one block."""
    sums = as_pointer(run[SUMS], np.float64)
    if run[LOSSES] >= 0:
        loss = block_sum(sums, ptr_add(acts, run[LOSSES]), samples)
        if thread_in_block() == 0:
            if math.isfinite(loss):
                sums[0] += loss
            else:
                run[STOPPED], run[BATCHES_DONE] = 1, batch
        syncthreads()
    if run[CORRECT] >= 0 and run[STOPPED] == 0:
        hits = block_sum(sums, ptr_add(acts, run[CORRECT]), samples)
        if thread_in_block() == 0:
            sums[1] += hits
        syncthreads()


@cache
def _single_thread(kernel):
    """An optimiser's kernel as it is, for one thread; without one, nothing."""
    return device(kernel.function if kernel is not None else _noop)


@cache
def region(part, kind, prepare=None) -> CudaKernel:
    """Region A, or one part of it: `launch(rows, columns, run, batch, row)`. `prepare` is the optimiser's kernel."""
    prepare = _single_thread(prepare)

    def work(address, batch, row):
        run = as_pointer(address, np.int64)
        if run[STOPPED] == 0:
            shard, shards = group_index(), num_groups()
            table = ptr_add(as_pointer(run[TABLES], np.int64), shard * run[TABLE_ROWS] * ROW_SIZE)
            params, acts, deltas = as_pointer(run[PARAMS], kind), as_pointer(run[ACTS], kind), as_pointer(run[DELTAS], kind)
            if thread_in_block() == 0:
                _write_context(run, table, batch)
                prepare(ptr_add(table, (run[TABLE_ROWS] - 1) * ROW_SIZE), params, params, acts, deltas, 0, 0)
            syncthreads()
            samples = table[SAMPLES]
            part(table, row, shard, params, acts, deltas, samples * shard // shards, samples * (shard + 1) // shards)

    return CudaKernel(work, 3)


def _dispatch_by_code(verbs):
    """One function for the gradients of all ops: the column GRADIENT of a row says which of these verbs is its own."""

    def none(op, params, grads, acts, deltas, lo, hi):
        pass

    def either(verb, code, rest):
        def gradient(op, params, grads, acts, deltas, lo, hi):
            if op[GRADIENT] == code:
                verb(op, params, grads, acts, deltas, lo, hi)
            else:
                rest(op, params, grads, acts, deltas, lo, hi)

        return device(gradient)

    chosen = device(none)
    for code, verb in enumerate(verbs, 1):
        chosen = either(cuda_kernel(verb), code, chosen)
    return chosen


@cache
def gradients(verbs: tuple, kind) -> CudaKernel:
    """First half of region B, a row of blocks for each task and one more for the sums: `launch(rows, columns, run, batch)`."""
    gradient = _dispatch_by_code(verbs)

    def work(address, batch):
        run = as_pointer(address, np.int64)
        if run[STOPPED] == 0:
            table, acts = as_pointer(run[TABLES], np.int64), as_pointer(run[ACTS], kind)
            if group_index() < run[N_TASKS]:
                task = ptr_add(as_pointer(run[TASKS], np.int64), 5 * group_index())
                gradient(ptr_add(table, task[0] * ROW_SIZE), as_pointer(run[PARAMS], kind), as_pointer(run[GRADS], kind), acts,
                         as_pointer(run[DELTAS], kind), task[1], task[2])
            elif block_in_group() == 0:
                _add_metrics(run, acts, batch, table[SAMPLES])

    return CudaKernel(work, 2)


def _finish(update):
    """Penalty and update of the parameters of a task; without an optimiser's kernel the penalty alone."""
    update = _single_thread(update)

    def finish(run, task, params, grads, state, deltas):
        table = as_pointer(run[TABLES], np.int64)
        op, last_row = ptr_add(table, task[0] * ROW_SIZE), ptr_add(table, (run[TABLE_ROWS] - 1) * ROW_SIZE)
        end = op[W] + op[N_WEIGHTS]
        for i in range(task[3] + thread_rank(), task[4], num_threads()):
            penalize(op, params, grads, i, min(i + 1, max(i, end)))
            update(last_row, params, grads, state, deltas, i, i + 1)

    return device(finish)


@cache
def updates(kind, update=None) -> CudaKernel:
    """Second half of region B, a row of blocks for each task: `launch(rows, columns, run)`."""
    finish = _finish(update)

    def work(address):
        run = as_pointer(address, np.int64)
        if run[STOPPED] == 0:
            finish(run, ptr_add(as_pointer(run[TASKS], np.int64), 5 * group_index()), as_pointer(run[PARAMS], kind), as_pointer(run[GRADS], kind),
                   as_pointer(run[STATE], kind), as_pointer(run[DELTAS], kind))

    return CudaKernel(work, 1)


@cache
def sums(kind) -> CudaKernel:
    """Add up loss and hits of a batch, in one block: `launch(1, 1, run, batch)`."""

    def work(address, batch):
        run = as_pointer(address, np.int64)
        _add_metrics(run, as_pointer(run[ACTS], kind), batch, as_pointer(run[TABLES], np.int64)[SAMPLES])

    return CudaKernel(work, 2)


@cache
def steps(part, verbs: tuple, kind, prepare, update) -> CudaKernel:
    """Steps first … last − 1 of an epoch in one block: `launch(1, 1, run, first, last)`."""
    prepare, gradient, finish = _single_thread(prepare), _dispatch_by_code(verbs), _finish(update)

    def work(address, first, last):
        run = as_pointer(address, np.int64)
        table, tasks, n_tasks = as_pointer(run[TABLES], np.int64), as_pointer(run[TASKS], np.int64), run[N_TASKS]
        params, grads, state = as_pointer(run[PARAMS], kind), as_pointer(run[GRADS], kind), as_pointer(run[STATE], kind)
        acts, deltas = as_pointer(run[ACTS], kind), as_pointer(run[DELTAS], kind)
        batch = first
        while batch < last and run[STOPPED] == 0:
            if thread_in_block() == 0:
                _write_context(run, table, batch)
                prepare(ptr_add(table, (run[TABLE_ROWS] - 1) * ROW_SIZE), params, params, state, deltas, 0, 0)
            syncthreads()
            part(table, 0, 0, params, acts, deltas, 0, table[SAMPLES])
            syncthreads()
            _add_metrics(run, acts, batch, table[SAMPLES])
            if run[STOPPED] == 0:
                for k in range(n_tasks):
                    task = ptr_add(tasks, 5 * k)
                    gradient(ptr_add(table, task[0] * ROW_SIZE), params, grads, acts, deltas, task[1], task[2])
                syncthreads()
                for k in range(n_tasks):
                    finish(run, ptr_add(tasks, 5 * k), params, grads, state, deltas)
            syncthreads()
            batch += 1

    return CudaKernel(work, 3)


def gradient_verbs(plan) -> tuple:
    """The different gradient verbs of a plan; their numbers, from 1, are written into the column GRADIENT."""
    verbs: list = []
    for row, op in rows(plan).items():
        if plan.tables[0, row, GRADIENT] and op.n_params:
            verb = reduce_chunks if op.accumulate_gradient else op.gradient
            if verb not in verbs:
                verbs.append(verb)
            plan.tables[:, row, GRADIENT] = verbs.index(verb) + 1
    return tuple(verbs)
