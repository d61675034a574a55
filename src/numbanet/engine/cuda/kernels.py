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
from numbanet.backend.cuda.gemm import block_square_sum, block_sum
from numbanet.backend.intrinsics import (
    as_pointer,
    block_in_group,
    const_like,
    float_attr,
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
from numbanet.nn.steering import COMMON, STEERING
from numbanet.plan.builtin_ops import reduce_chunks
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    CHUNKS,
    EPOCH,
    FIRST_SAMPLE,
    FORWARD,
    GRADIENT,
    INPUT_COLUMNS,
    INPUT_STARTS,
    INPUTS,
    L2_STRENGTH,
    LENGTHS,
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
    SAMPLES,
    SEED,
    START,
    STATE,
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
    "input_columns input_starts carried accumulate n_params optimizer_row square_sums penalty_sums",
    first=0,
)
"""
What launches work on:
tables … tasks         addresses on the GPU, and sizes
losses, correct        offsets in acts of the samples' losses and correct answers, −1: none
steps_done             optimiser steps taken before the epoch
stopped, batches_done  whether and where training stopped
epoch … carried        what the context of every table holds
accumulate             batches whose gradients make one update; with more than one, grads holds a
                       second vector of n_params elements, their sum
optimizer_row          the first row of the optimiser
square_sums            address of the sums of squares of the tasks' gradients, or 0
penalty_sums           that of what each task's L2 penalty adds to the summed loss, or 0
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
    STATE: CALL.carried,
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
    accumulate = call[CALL.accumulate]
    table[STEP], table[CHUNKS] = (
        call[CALL.steps_done] + batch // accumulate + 1,
        call[CALL.n_chunks],
    )
    table[EPOCH], table[SEED] = call[CALL.epoch], call[CALL.seed]
    table[PERMUTATION], table[PREFETCH_LIMIT] = call[CALL.permutation], 0
    table[INPUTS], table[TARGETS] = call[CALL.inputs], call[CALL.targets]
    table[OUTPUTS], table[WEIGHTS] = call[CALL.outputs], call[CALL.weights]
    table[LENGTHS], table[FIRST_SAMPLE] = call[CALL.lengths], call[CALL.first_sample]
    table[INPUT_COLUMNS] = call[CALL.input_columns]
    table[INPUT_STARTS], table[STATE], factor = call[CALL.input_starts], call[CALL.carried], 1.0
    if call[CALL.penalty_factors]:
        factor = as_pointer(call[CALL.penalty_factors], np.float64)[batch]
    set_float_attr(table, PENALTY_FACTOR, factor)
    for row in range(call[CALL.optimizer_row], call[CALL.table_rows]):
        optimizer = ptr_add(table, row * ROW_SIZE)
        set_float_attr(optimizer, STEERING.gradient_factor, 1.0 / (batch % accumulate + 1))
        if call[CALL.rates]:
            rate = as_pointer(call[CALL.rates], np.float64)[batch]
            rate *= float_attr(optimizer, STEERING.rate_factor)
            set_float_attr(optimizer, COMMON.learning_rate, rate)


@inline
def _update_due(call, batch):
    """Whether the gradients are applied after this batch: every few batches, and after the last."""
    last = (batch + 1) * call[CALL.batch] >= call[CALL.epoch_samples]
    return last or (batch + 1) % call[CALL.accumulate] == 0


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
def _begin_steps(begin_step):
    """What an optimiser calculates once per step, for each of its rows; one thread runs it."""
    begin_step = _single_thread(begin_step)

    def begin(call, table, params, acts, deltas):
        for row in range(call[CALL.optimizer_row], call[CALL.table_rows]):
            begin_step(ptr_add(table, row * ROW_SIZE), params, params, acts, deltas, 0, 0)

    return device(begin)


@cache
def forward_backward(part, kind, begin_step=None) -> CudaKernel:
    """A phase, or one step of it: `launch(groups, blocks, call, batch, row)`."""
    begin_steps = _begin_steps(begin_step)

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
                begin_steps(call, table, params, acts, deltas)
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


@inline
def _add_penalty(call, task, k, params):
    """Add what the L2 penalty of task k adds to the summed loss; one block runs it."""
    if call[CALL.penalty_sums]:
        table = as_pointer(call[CALL.tables], np.int64)
        op = ptr_add(table, task[0] * ROW_SIZE)
        sums = as_pointer(call[CALL.penalty_sums], np.float64)
        squares = block_square_sum(sums, params, task[3], min(task[4], op[W] + op[N_WEIGHTS]))
        if thread_in_block() == 0:
            strength = float_attr(op, L2_STRENGTH) * float_attr(table, PENALTY_FACTOR)
            sums[k] += 0.5 * strength * table[SAMPLES] * squares
        syncthreads()


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
                if block_in_group() == 0:
                    _add_penalty(call, task, group_index(), params)
            elif block_in_group() == 0:
                _add_metrics(call, acts, batch, table[SAMPLES])

    return CudaKernel(work, 2)


def _penalize(call, op, params, grads, batch, i):
    """Add the penalty of parameter i to its gradient."""
    penalize(op, params, grads, i, min(i + 1, max(i, op[W] + op[N_WEIGHTS])))


def _penalize_and_add(call, op, params, grads, batch, i):
    """The same, and the gradients of the batches before that belong to the same update."""
    penalize(op, params, grads, i, min(i + 1, max(i, op[W] + op[N_WEIGHTS])))
    total = call[CALL.n_params] + i
    if batch % call[CALL.accumulate] > 0:
        grads[i] += grads[total]
    grads[total] = grads[i]


@cache
def _finish_task(verbs: tuple, accumulates: bool, taken: bool):
    """Penalty and update of a task's parameters; no penalty where gradients are already `taken`.

    verbs   the kernels of the update, in their order; without any, only the penalty is applied
    """
    take = device(_no_penalty if taken else _penalize_and_add if accumulates else _penalize)
    update = device(_noop)
    for verb in verbs:
        update = _then(update, _single_thread(verb))

    def finish(call, task, params, grads, state, deltas, batch):
        table, due = as_pointer(call[CALL.tables], np.int64), _update_due(call, batch)
        op = ptr_add(table, task[0] * ROW_SIZE)
        optimizer = ptr_add(table, op[OPTIMIZER_ROW] * ROW_SIZE)
        for i in range(task[3] + thread_rank(), task[4], num_threads()):
            take(call, op, params, grads, batch, i)
            if due:
                update(optimizer, params, grads, state, deltas, i, i + 1)

    return device(finish)


def _no_penalty(call, op, params, grads, batch, i):
    pass


def _then(first, second):
    def both(op, params, grads, state, deltas, lo, hi):
        first(op, params, grads, state, deltas, lo, hi)
        second(op, params, grads, state, deltas, lo, hi)

    return device(both)


@cache
def _square_task(accumulates: bool):
    """Penalty of a task's gradients and the sum of their squares; one block runs it."""
    finish = _finish_task((), accumulates, False)

    def square(call, k, params, grads, batch):
        task = ptr_add(as_pointer(call[CALL.tasks], np.int64), TASK_SIZE * k)
        finish(call, task, params, grads, params, params, batch)
        syncthreads()
        sums = as_pointer(call[CALL.square_sums], np.float64)
        total = block_square_sum(sums, grads, task[3], task[4])
        if thread_in_block() == 0:
            sums[k] = total
        syncthreads()

    return device(square)


@inline
def _write_factor(call, batch):
    """Multiply the gradient's factor by that of its norm; one block runs it."""
    sums = as_pointer(call[CALL.square_sums], np.float64)
    total = block_sum(sums, sums, call[CALL.n_tasks])
    if thread_in_block() == 0:
        table, n = as_pointer(call[CALL.tables], np.int64), batch % call[CALL.accumulate] + 1
        for row in range(call[CALL.optimizer_row], call[CALL.table_rows]):
            optimizer = ptr_add(table, row * ROW_SIZE)
            most = float_attr(optimizer, STEERING.clip_norm)
            factor = min(1.0, most / (math.sqrt(total) / n + 1e-6)) / n
            set_float_attr(optimizer, STEERING.gradient_factor, factor)
    syncthreads()


@cache
def _clip_norm(accumulates: bool):
    """Penalties of all tasks and the factor of the gradient; one block runs it."""
    square = _square_task(accumulates)

    def clip(call, params, grads, batch):
        for k in range(call[CALL.n_tasks]):
            square(call, k, params, grads, batch)
        _write_factor(call, batch)

    return device(clip)


def _no_clip(call, params, grads, batch):
    pass


@cache
def square_sums(kind, accumulates: bool) -> CudaKernel:
    """Penalties and sums of squares, a block for each task: `launch(tasks, 1, call, batch)`."""
    square = _square_task(accumulates)

    def work(address, batch):
        call = as_pointer(address, np.int64)
        if call[CALL.stopped] == 0:
            params, grads = as_pointer(call[CALL.params], kind), as_pointer(call[CALL.grads], kind)
            square(call, group_index(), params, grads, batch)

    return CudaKernel(work, 2)


@cache
def gradient_factor() -> CudaKernel:
    """The factor of the gradient, from the sums of squares: `launch(1, 1, call, batch)`."""

    def work(address, batch):
        _write_factor(as_pointer(address, np.int64), batch)

    return CudaKernel(work, 2)


@cache
def updates(kind, verbs: tuple = (), accumulates: bool = False, taken: bool = False) -> CudaKernel:
    """Penalties and updates, a block group for each task: `launch(groups, blocks, call, batch)`.

    See `_finish_task` for the arguments.
    """
    finish = _finish_task(verbs, accumulates, taken)

    def work(address, batch):
        call = as_pointer(address, np.int64)
        if call[CALL.stopped] == 0:
            task = ptr_add(as_pointer(call[CALL.tasks], np.int64), TASK_SIZE * group_index())
            params, grads = as_pointer(call[CALL.params], kind), as_pointer(call[CALL.grads], kind)
            state, deltas = as_pointer(call[CALL.state], kind), as_pointer(call[CALL.deltas], kind)
            finish(call, task, params, grads, state, deltas, batch)

    return CudaKernel(work, 2)


@cache
def metrics(kind) -> CudaKernel:
    """Add up loss and correct answers of a batch, in one block: `launch(1, 1, call, batch)`."""

    def work(address, batch):
        call = as_pointer(address, np.int64)
        samples = as_pointer(call[CALL.tables], np.int64)[SAMPLES]
        _add_metrics(call, as_pointer(call[CALL.acts], kind), batch, samples)

    return CudaKernel(work, 2)


@cache
def single_block(
    part, verbs: tuple, kind, begin_step, update: tuple, accumulates: bool, norm: bool
) -> CudaKernel:
    """Batches first … last − 1 of an epoch in one block: `launch(1, 1, call, first, last)`.

    norm   the update needs the norm of the whole gradient
    """
    begin_steps, gradient = _begin_steps(begin_step), _dispatch_by_code(verbs)
    finish = _finish_task(update, accumulates, norm)
    clip = _clip_norm(accumulates) if norm else device(_no_clip)

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
                begin_steps(call, table, params, state, deltas)
            syncthreads()
            part(table, 0, 0, params, acts, deltas, 0, table[SAMPLES])
            syncthreads()
            _add_metrics(call, acts, batch, table[SAMPLES])
            if call[CALL.stopped] == 0:
                for k in range(n_tasks):
                    task = ptr_add(tasks, TASK_SIZE * k)
                    op = ptr_add(table, task[0] * ROW_SIZE)
                    gradient(op, params, grads, acts, deltas, task[1], task[2])
                    _add_penalty(call, task, k, params)
                syncthreads()
                clip(call, params, grads, batch)
                for k in range(n_tasks):
                    task = ptr_add(tasks, TASK_SIZE * k)
                    finish(call, task, params, grads, state, deltas, batch)
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
