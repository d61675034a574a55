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

from numbanet.backend.cuda.driver import Launch, device, twin
from numbanet.backend.cuda.gemm import total
from numbanet.backend.intrinsics import at, block, blocks, column, lane, like, pointer, sync, thread, threads
from numbanet.backend.jit import inline
from numbanet.nn.regularizers import penalize
from numbanet.plan.columns import (
    BACKWARD,
    COUNT,
    EPOCH,
    GRADIENT,
    INPUTS,
    NEXT,
    ORDER,
    OUTPUTS,
    PARTIAL,
    PARTIALS,
    PREPARE,
    SAMPLES,
    SEED,
    SHARDS,
    START,
    STEP,
    TARGETS,
    TOTAL,
    WEIGHTS,
    WIDTH,
    W,
)
from numbanet.plan.lower import sum_partials

(TABLES, ROWS, PARAMS, GRADS, ACTS, DELTAS, STATE, SUMS, TASKS, N_TASKS, BATCH, EPOCH_SAMPLES, TAKEN, LOSSES, HITS, STOPPED,
 REACHED, N_SHARDS, CLOCK) = range(19)
"""A run: addresses on the card, sizes, offsets of losses and hits (−1: none), steps taken before, whether and where training
stopped; from CLOCK on what the clocks of all tables hold."""
SHARED_CLOCK = (EPOCH, SEED, ORDER, INPUTS, TARGETS, OUTPUTS)
RUN_SIZE = CLOCK + len(SHARED_CLOCK)

# --- what one op does ---------------------------------------------------------------------------------------------------
# Each is `part(table, row, shard, params, acts, deltas, lo, hi)` around the twin of a verb.


def _forward(verb):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        verb(at(table, row * WIDTH), params, params, acts, deltas, lo, hi)

    return device(part)


_backward = _forward
"""BACKWARD has the same arguments."""


def _prepare(verb):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        op = at(table, row * WIDTH)
        verb(op, params, at(acts, op[PARTIALS] + shard * op[COUNT]), acts, deltas, lo, hi)

    return device(part)


def _partial(verb):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        op = at(table, row * WIDTH)
        verb(op, params, at(acts, op[PARTIALS] + shard * op[COUNT] - op[W]), acts, deltas, lo, hi)

    return device(part)


def _clear(_):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        op = at(table, row * WIDTH)
        partials = at(acts, op[PARTIALS] + shard * op[COUNT])
        for i in range(thread(), op[COUNT], threads()):
            partials[i] = like(acts, 0)

    return device(part)


def _nothing(table, row, shard, params, acts, deltas, lo, hi):
    pass


def _then(first, last, row_of_last):
    def part(table, row, shard, params, acts, deltas, lo, hi):
        first(table, row, shard, params, acts, deltas, lo, hi)
        sync()
        last(table, row_of_last, shard, params, acts, deltas, lo, hi)

    return device(part)


@cache
def single(wrapper, verb):
    """One part alone, for the row that a launch names."""
    return wrapper(twin(verb) if verb is not None else None)


def parts(plan, training: bool) -> list[list[tuple]]:
    """For each phase of region A its parts in order: (wrapper, verb, row)."""
    table, numbered = plan.tables[0], rows(plan)
    order = list(numbered)
    phases = []
    for k, (forward_from, forward_to, back_from, back_to) in enumerate(plan.phases[: None if training else 1].tolist()):
        found = [(_clear, None, row) for row in order if training and k == 0 and table[row, PARTIAL]]
        end = order.index(forward_to) if forward_to else len(order)
        found += [(_forward, numbered[row].forward, row) for row in order[order.index(forward_from) : end]] if forward_from else []
        found += [(_prepare, numbered[forward_to].prepare, forward_to)] if forward_to else []
        backwards = order[order.index(back_to) if back_to else 0 : order.index(back_from) + 1] if back_from and training else []
        for row in reversed(backwards):
            if table[row, PARTIAL] and not (table[row, PREPARE] and row == back_from):
                found.append((_partial, numbered[row].partial, row))
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


def _idle(op, params, grads, acts, deltas, lo, hi):
    pass


@cache
def chain(found: tuple):
    """One part for several (wrapper, verb, row), with all threads of a block waiting for each other in between."""
    whole = device(_nothing)
    for wrapper, verb, row in found:
        whole = _then(whole, wrapper(twin(verb) if verb is not None else None), row)
    return whole


@inline
def _begin(run, table, batch):
    """Write the clock of a row of blocks and return the samples of the batch; lane 0 alone."""
    start = batch * run[BATCH]
    table[START], table[SAMPLES], table[TOTAL] = start, min(run[BATCH], run[EPOCH_SAMPLES] - start), 0
    table[STEP], table[SHARDS] = run[TAKEN] + batch + 1, run[N_SHARDS]
    table[EPOCH], table[SEED], table[ORDER] = run[CLOCK], run[CLOCK + 1], run[CLOCK + 2]
    table[INPUTS], table[TARGETS], table[OUTPUTS] = run[CLOCK + 3], run[CLOCK + 4], run[CLOCK + 5]


@inline
def _totals(run, acts, batch, samples):
    """Add up loss and hits of the batch in a fixed order, or stop the training at a loss that is not finite; one block."""
    sums = pointer(run[SUMS], np.float64)
    if run[LOSSES] >= 0:
        loss = total(sums, at(acts, run[LOSSES]), samples)
        if lane() == 0:
            if math.isfinite(loss):
                sums[0] += loss
            else:
                run[STOPPED], run[REACHED] = 1, batch
        sync()
    if run[HITS] >= 0 and run[STOPPED] == 0:
        hits = total(sums, at(acts, run[HITS]), samples)
        if lane() == 0:
            sums[1] += hits
        sync()


@cache
def _by_one(kernel):
    """An optimiser's kernel as it is, for one thread; without one, nothing."""
    return device(kernel.function if kernel is not None else _idle)


@cache
def region(part, kind, prepare=None) -> Launch:
    """Region A, or one part of it: `launch(rows, columns, run, batch, row)`. `prepare` is the optimiser's kernel."""
    prepare = _by_one(prepare)

    def work(address, batch, row):
        run = pointer(address, np.int64)
        if run[STOPPED] == 0:
            shard, shards = block(), blocks()
            table = at(pointer(run[TABLES], np.int64), shard * run[ROWS] * WIDTH)
            params, acts, deltas = pointer(run[PARAMS], kind), pointer(run[ACTS], kind), pointer(run[DELTAS], kind)
            if lane() == 0:
                _begin(run, table, batch)
                prepare(at(table, (run[ROWS] - 1) * WIDTH), params, params, acts, deltas, 0, 0)
            sync()
            samples = table[SAMPLES]
            part(table, row, shard, params, acts, deltas, samples * shard // shards, samples * (shard + 1) // shards)

    return Launch(work, 3)


def _choice(verbs):
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
        chosen = either(twin(verb), code, chosen)
    return chosen


@cache
def gradients(verbs: tuple, kind) -> Launch:
    """First half of region B, a row of blocks for each task and one more for the sums: `launch(rows, columns, run, batch)`."""
    gradient = _choice(verbs)

    def work(address, batch):
        run = pointer(address, np.int64)
        if run[STOPPED] == 0:
            table, acts = pointer(run[TABLES], np.int64), pointer(run[ACTS], kind)
            if block() < run[N_TASKS]:
                task = at(pointer(run[TASKS], np.int64), 5 * block())
                gradient(at(table, task[0] * WIDTH), pointer(run[PARAMS], kind), pointer(run[GRADS], kind), acts,
                         pointer(run[DELTAS], kind), task[1], task[2])
            elif column() == 0:
                _totals(run, acts, batch, table[SAMPLES])

    return Launch(work, 2)


def _finish(update):
    """Penalty and update of the parameters of a task; without an optimiser's kernel the penalty alone."""
    update = _by_one(update)

    def finish(run, task, params, grads, state, deltas):
        table = pointer(run[TABLES], np.int64)
        op, last_row = at(table, task[0] * WIDTH), at(table, (run[ROWS] - 1) * WIDTH)
        end = op[W] + op[WEIGHTS]
        for i in range(task[3] + thread(), task[4], threads()):
            penalize(op, params, grads, i, min(i + 1, max(i, end)))
            update(last_row, params, grads, state, deltas, i, i + 1)

    return device(finish)


@cache
def updates(kind, update=None) -> Launch:
    """Second half of region B, a row of blocks for each task: `launch(rows, columns, run)`."""
    finish = _finish(update)

    def work(address):
        run = pointer(address, np.int64)
        if run[STOPPED] == 0:
            finish(run, at(pointer(run[TASKS], np.int64), 5 * block()), pointer(run[PARAMS], kind), pointer(run[GRADS], kind),
                   pointer(run[STATE], kind), pointer(run[DELTAS], kind))

    return Launch(work, 1)


@cache
def sums(kind) -> Launch:
    """Add up loss and hits of a batch, in one block: `launch(1, 1, run, batch)`."""

    def work(address, batch):
        run = pointer(address, np.int64)
        _totals(run, pointer(run[ACTS], kind), batch, pointer(run[TABLES], np.int64)[SAMPLES])

    return Launch(work, 2)


@cache
def steps(part, verbs: tuple, kind, prepare, update) -> Launch:
    """Steps first … last − 1 of an epoch in one block: `launch(1, 1, run, first, last)`."""
    prepare, gradient, finish = _by_one(prepare), _choice(verbs), _finish(update)

    def work(address, first, last):
        run = pointer(address, np.int64)
        table, tasks, n_tasks = pointer(run[TABLES], np.int64), pointer(run[TASKS], np.int64), run[N_TASKS]
        params, grads, state = pointer(run[PARAMS], kind), pointer(run[GRADS], kind), pointer(run[STATE], kind)
        acts, deltas = pointer(run[ACTS], kind), pointer(run[DELTAS], kind)
        batch = first
        while batch < last and run[STOPPED] == 0:
            if lane() == 0:
                _begin(run, table, batch)
                prepare(at(table, (run[ROWS] - 1) * WIDTH), params, params, state, deltas, 0, 0)
            sync()
            part(table, 0, 0, params, acts, deltas, 0, table[SAMPLES])
            sync()
            _totals(run, acts, batch, table[SAMPLES])
            if run[STOPPED] == 0:
                for k in range(n_tasks):
                    task = at(tasks, 5 * k)
                    gradient(at(table, task[0] * WIDTH), params, grads, acts, deltas, task[1], task[2])
                sync()
                for k in range(n_tasks):
                    finish(run, at(tasks, 5 * k), params, grads, state, deltas)
            sync()
            batch += 1

    return Launch(work, 3)


def gradient_verbs(plan) -> tuple:
    """The different gradient verbs of a plan; their numbers, from 1, are written into the column GRADIENT."""
    verbs: list = []
    for row, op in rows(plan).items():
        if plan.tables[0, row, GRADIENT] and op.parameters:
            verb = sum_partials if op.partial else op.gradient
            if verb not in verbs:
                verbs.append(verb)
            plan.tables[:, row, GRADIENT] = verbs.index(verb) + 1
    return tuple(verbs)
