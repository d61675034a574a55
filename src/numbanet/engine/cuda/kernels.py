"""The CUDA engine: kernels, composed of those of the ops, that replay a plan's schedule.

    forward-backward region, a block group for each chunk of the batch    (BP1, BP2)
    update region, a block group for each task of parameters              (BP3, BP4)

The ops' kernels are composed when a network is first used. Everything stays on the GPU: a launch is
given the address of its `call` and two or three integers, with no copies or synchronisation
between steps. How much one launch does is chosen in `launch`.
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
    set_float_attr,
    syncthreads,
    thread_in_block,
    thread_rank,
)
from numbanet.backend.jit import inline
from numbanet.nn.regularizers import penalize
from numbanet.plan.builtin_ops import reduce_chunks
from numbanet.plan.columns import (
    ACCUMULATE,
    ATTRS,
    BACKWARD,
    CHUNKS,
    EPOCH,
    FIRST_SAMPLE,
    FORWARD,
    GRADIENT,
    INPUT_COLUMNS,
    INPUT_STARTS,
    INPUTS,
    LENGTHS,
    N_WEIGHTS,
    OUTPUTS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PENALTY_FACTOR,
    PENALTY_FACTORS,
    PERMUTATION,
    PREFETCH_LIMIT,
    RATES,
    ROW_SIZE,
    SAMPLES,
    SEED,
    START,
    STATISTICS,
    STEP,
    TARGETS,
    WEIGHTS,
    Attrs,
    W,
)
from numbanet.plan.plan import TASK_SIZE, ZERO_GRADS

CALL = Attrs(
    "tables table_rows params grads acts deltas state metric_sums tasks n_tasks batch "
    "epoch_samples steps_done losses correct stopped batches_done n_chunks epoch seed "
    "permutation inputs targets outputs rates weights penalty_factors lengths first_sample "
    "input_columns input_starts",
    first=0,
)
"""
What launches work on:
tables … tasks         addresses on the GPU, and sizes
losses, correct        offsets in acts of the samples' losses and correct answers, −1: none
steps_done             optimiser steps taken before
stopped, batches_done  whether and where training stopped
epoch … input_starts   what the context of every table holds
"""
CONTEXT_COLUMNS = {
    EPOCH: CALL.epoch,
    SEED: CALL.seed,
    PERMUTATION: CALL.permutation,
    INPUTS: CALL.inputs,
    TARGETS: CALL.targets,
    OUTPUTS: CALL.outputs,
    RATES: CALL.rates,
    WEIGHTS: CALL.weights,
    PENALTY_FACTORS: CALL.penalty_factors,
    LENGTHS: CALL.lengths,
    FIRST_SAMPLE: CALL.first_sample,
    INPUT_COLUMNS: CALL.input_columns,
    INPUT_STARTS: CALL.input_starts,
}
"""Columns of the context, and where the call holds them."""

# --- the steps of the schedule -----------------------------------------------------------------
# Each is `part(table, row, chunk, params, acts, deltas, lo, hi)` around the CUDA kernel of a verb.


def _forward(verb):
    def part(table, row, chunk, params, acts, deltas, lo, hi):
        verb(ptr_add(table, row * ROW_SIZE), params, params, acts, deltas, lo, hi)

    return device(part)


def _statistics(verb):
    def part(table, row, chunk, params, acts, deltas, lo, hi):
        op = ptr_add(table, row * ROW_SIZE)
        sums = ptr_add(acts, op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE])
        verb(op, params, sums, acts, deltas, lo, hi)

    return device(part)


def _accumulate(verb):
    def part(table, row, chunk, params, acts, deltas, lo, hi):
        op = ptr_add(table, row * ROW_SIZE)
        partial = ptr_add(acts, op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] - op[W])
        verb(op, params, partial, acts, deltas, lo, hi)

    return device(part)


def _zero_grads(_):
    def part(table, row, chunk, params, acts, deltas, lo, hi):
        op = ptr_add(table, row * ROW_SIZE)
        partial = ptr_add(acts, op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE])
        for i in range(thread_rank(), op[PARTIAL_STRIDE], num_threads()):
            partial[i] = const_like(acts, 0)

    return device(part)


_PARTS = {
    FORWARD: _forward,
    BACKWARD: _forward,
    STATISTICS: _statistics,
    ACCUMULATE: _accumulate,
    ZERO_GRADS: _zero_grads,
}


def steps(plan, phase: int) -> list[tuple]:
    """(verb, kernel, row) for each step of a phase of the plan's schedule."""
    return [(verb, plan.by_row[row].verbs.get(verb), row) for verb, row in plan.steps(phase)]


@cache
def one_step(verb: int, kernel):
    """The part of one step alone, for the row that a launch names."""
    return _PARTS[verb](cuda_kernel(kernel) if kernel is not None else None)


def _empty(table, row, chunk, params, acts, deltas, lo, hi):
    pass


def _compose(first, last, row_of_last):
    def part(table, row, chunk, params, acts, deltas, lo, hi):
        first(table, row, chunk, params, acts, deltas, lo, hi)
        syncthreads()
        last(table, row_of_last, chunk, params, acts, deltas, lo, hi)

    return device(part)


@cache
def chain(found: tuple):
    """One part for several steps.

    There is a barrier of the block between two of them.
    """
    whole = device(_empty)
    for verb, kernel, row in found:
        whole = _compose(whole, one_step(verb, kernel), row)
    return whole


# --- the regions -------------------------------------------------------------------------------


@inline
def _write_context(call, table, batch):
    """Write the context of a block group; one thread runs it."""
    start = batch * call[CALL.batch]
    table[START], table[SAMPLES] = start, min(call[CALL.batch], call[CALL.epoch_samples] - start)
    table[STEP], table[CHUNKS] = call[CALL.steps_done] + batch + 1, call[CALL.n_chunks]
    table[EPOCH], table[SEED] = call[CALL.epoch], call[CALL.seed]
    table[PERMUTATION], table[PREFETCH_LIMIT] = call[CALL.permutation], 0
    table[INPUTS], table[TARGETS] = call[CALL.inputs], call[CALL.targets]
    table[OUTPUTS], table[WEIGHTS] = call[CALL.outputs], call[CALL.weights]
    table[LENGTHS], table[FIRST_SAMPLE] = call[CALL.lengths], call[CALL.first_sample]
    table[INPUT_COLUMNS] = call[CALL.input_columns]
    table[INPUT_STARTS], factor = call[CALL.input_starts], 1.0
    if call[CALL.penalty_factors]:
        factor = as_pointer(call[CALL.penalty_factors], np.float64)[batch]
    set_float_attr(table, PENALTY_FACTOR, factor)
    if call[CALL.rates]:
        last_row = ptr_add(table, (call[CALL.table_rows] - 1) * ROW_SIZE)
        set_float_attr(last_row, ATTRS, as_pointer(call[CALL.rates], np.float64)[batch])


@inline
def _add_metrics(call, acts, batch, samples):
    """Add up loss and correct answers in a fixed order, or stop at a loss that is not finite.

    One block runs it.
    """
    sums = as_pointer(call[CALL.metric_sums], np.float64)
    if call[CALL.losses] >= 0:
        loss = block_sum(sums, ptr_add(acts, call[CALL.losses]), samples)
        if thread_in_block() == 0:
            if math.isfinite(loss):
                sums[0] += loss
            else:
                call[CALL.stopped], call[CALL.batches_done] = 1, batch
        syncthreads()
    if call[CALL.correct] >= 0 and call[CALL.stopped] == 0:
        correct = block_sum(sums, ptr_add(acts, call[CALL.correct]), samples)
        if thread_in_block() == 0:
            sums[1] += correct
        syncthreads()


def _noop(op, params, grads, acts, deltas, lo, hi):
    pass


@cache
def _single_thread(kernel):
    """An optimiser's kernel as it is, for one thread; without one, nothing."""
    return device(kernel.function if kernel is not None else _noop)


@cache
def forward_backward(part, kind, begin_step=None) -> CudaKernel:
    """A phase, or one step of it: `launch(groups, blocks, call, batch, row)`."""
    begin_step = _single_thread(begin_step)

    def work(address, batch, row):
        call = as_pointer(address, np.int64)
        if call[CALL.stopped] == 0:
            chunk, chunks = group_index(), num_groups()
            table = ptr_add(
                as_pointer(call[CALL.tables], np.int64), chunk * call[CALL.table_rows] * ROW_SIZE
            )
            params, acts = as_pointer(call[CALL.params], kind), as_pointer(call[CALL.acts], kind)
            deltas = as_pointer(call[CALL.deltas], kind)
            if thread_in_block() == 0:
                _write_context(call, table, batch)
                last_row = ptr_add(table, (call[CALL.table_rows] - 1) * ROW_SIZE)
                begin_step(last_row, params, params, acts, deltas, 0, 0)
            syncthreads()
            samples = table[SAMPLES]
            lo, hi = samples * chunk // chunks, samples * (chunk + 1) // chunks
            part(table, row, chunk, params, acts, deltas, lo, hi)

    return CudaKernel(work, 3)


def _dispatch_by_code(verbs):
    """One function for the gradients of all ops; the column GRADIENT holds the code of a row's."""

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
    """Gradients, a block group for each task and one more for the metrics.

    `launch(groups, blocks, call, batch)`
    """
    gradient = _dispatch_by_code(verbs)

    def work(address, batch):
        call = as_pointer(address, np.int64)
        if call[CALL.stopped] == 0:
            table, acts = as_pointer(call[CALL.tables], np.int64), as_pointer(call[CALL.acts], kind)
            if group_index() < call[CALL.n_tasks]:
                task = ptr_add(as_pointer(call[CALL.tasks], np.int64), TASK_SIZE * group_index())
                params, grads = (
                    as_pointer(call[CALL.params], kind),
                    as_pointer(call[CALL.grads], kind),
                )
                deltas = as_pointer(call[CALL.deltas], kind)
                gradient(
                    ptr_add(table, task[0] * ROW_SIZE),
                    params,
                    grads,
                    acts,
                    deltas,
                    task[1],
                    task[2],
                )
            elif block_in_group() == 0:
                _add_metrics(call, acts, batch, table[SAMPLES])

    return CudaKernel(work, 2)


def _update_task(update):
    """Penalty and update of the parameters of a task.

    Without an optimiser's kernel, only the penalty is applied.
    """
    update = _single_thread(update)

    def finish(call, task, params, grads, state, deltas):
        table = as_pointer(call[CALL.tables], np.int64)
        op, last_row = (
            ptr_add(table, task[0] * ROW_SIZE),
            ptr_add(table, (call[CALL.table_rows] - 1) * ROW_SIZE),
        )
        end = op[W] + op[N_WEIGHTS]
        for i in range(task[3] + thread_rank(), task[4], num_threads()):
            penalize(op, params, grads, i, min(i + 1, max(i, end)))
            update(last_row, params, grads, state, deltas, i, i + 1)

    return device(finish)


@cache
def updates(kind, update=None) -> CudaKernel:
    """Penalties and updates, a block group for each task: `launch(groups, blocks, call)`."""
    finish = _update_task(update)

    def work(address):
        call = as_pointer(address, np.int64)
        if call[CALL.stopped] == 0:
            task = ptr_add(as_pointer(call[CALL.tasks], np.int64), TASK_SIZE * group_index())
            params, grads = as_pointer(call[CALL.params], kind), as_pointer(call[CALL.grads], kind)
            state, deltas = as_pointer(call[CALL.state], kind), as_pointer(call[CALL.deltas], kind)
            finish(call, task, params, grads, state, deltas)

    return CudaKernel(work, 1)


@cache
def metrics(kind) -> CudaKernel:
    """Add up loss and correct answers of a batch, in one block: `launch(1, 1, call, batch)`."""

    def work(address, batch):
        call = as_pointer(address, np.int64)
        samples = as_pointer(call[CALL.tables], np.int64)[SAMPLES]
        _add_metrics(call, as_pointer(call[CALL.acts], kind), batch, samples)

    return CudaKernel(work, 2)


@cache
def single_block(part, verbs: tuple, kind, begin_step, update) -> CudaKernel:
    """Steps first … last − 1 of an epoch in one block: `launch(1, 1, call, first, last)`."""
    begin_step, gradient, finish = (
        _single_thread(begin_step),
        _dispatch_by_code(verbs),
        _update_task(update),
    )

    def work(address, first, last):
        call = as_pointer(address, np.int64)
        table, tasks = (
            as_pointer(call[CALL.tables], np.int64),
            as_pointer(call[CALL.tasks], np.int64),
        )
        params, grads = as_pointer(call[CALL.params], kind), as_pointer(call[CALL.grads], kind)
        acts, deltas = as_pointer(call[CALL.acts], kind), as_pointer(call[CALL.deltas], kind)
        state, n_tasks = as_pointer(call[CALL.state], kind), call[CALL.n_tasks]
        batch = first
        while batch < last and call[CALL.stopped] == 0:
            if thread_in_block() == 0:
                _write_context(call, table, batch)
                last_row = ptr_add(table, (call[CALL.table_rows] - 1) * ROW_SIZE)
                begin_step(last_row, params, params, state, deltas, 0, 0)
            syncthreads()
            part(table, 0, 0, params, acts, deltas, 0, table[SAMPLES])
            syncthreads()
            _add_metrics(call, acts, batch, table[SAMPLES])
            if call[CALL.stopped] == 0:
                for k in range(n_tasks):
                    task = ptr_add(tasks, TASK_SIZE * k)
                    op = ptr_add(table, task[0] * ROW_SIZE)
                    gradient(op, params, grads, acts, deltas, task[1], task[2])
                syncthreads()
                for k in range(n_tasks):
                    finish(call, ptr_add(tasks, TASK_SIZE * k), params, grads, state, deltas)
            syncthreads()
            batch += 1

    return CudaKernel(work, 3)


def gradient_verbs(plan) -> tuple:
    """The different gradient verbs of a plan.

    Their codes, from 1, are written into the column GRADIENT.
    """
    verbs: list = []
    for op, row in plan.rows.items():
        if plan.tables[0, row, GRADIENT] and op.n_params:
            verb = reduce_chunks if op.accumulate_gradient else op.gradient
            if verb not in verbs:
                verbs.append(verb)
            plan.tables[:, row, GRADIENT] = verbs.index(verb) + 1
    return tuple(verbs)
