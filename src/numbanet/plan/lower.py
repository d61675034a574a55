"""Lowering: ops become rows, slots, a schedule and tasks.

Every offset of the package is assigned here.

    ops ─► copies inserted ─► gradients chosen ─► slots and offsets ─► rows ─► schedule, tasks

Memories. `params` and `grads` hold, op by op, weights then bias; `params` holds the buffers behind
all parameters. `acts` holds a slot for the output of every op, `deltas` the derivative of the loss
by the same elements at the same offsets.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from numbanet.backend.ahead import Unit, compile_ahead
from numbanet.backend.jit import units
from numbanet.plan.allocate import allocate_slots, assign_offsets, micro_batch
from numbanet.plan.builtin_ops import copy_op, reduce_chunks
from numbanet.plan.columns import (
    ACCUMULATE,
    ATTRS,
    AUX,
    BACKWARD,
    BASE_X,
    BASE_Y,
    BUFFERS,
    CHUNKS,
    FORWARD,
    GRADIENT,
    INDEX,
    L1_STRENGTH,
    L2_STRENGTH,
    N_IN,
    N_OUT,
    N_SPLIT_K,
    N_WEIGHTS,
    OPTIMIZER_ROW,
    PARAM_COLS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PENALTY_FACTOR,
    READER,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SCRATCH,
    SPLIT_K,
    STATE_OFFSET,
    STATE_SIZE,
    STATISTICS,
    W,
    X,
    Y,
    column_value,
    float64_bits,
)
from numbanet.plan.op import DEFAULT_GROUP, Op
from numbanet.plan.plan import Plan
from numbanet.plan.schedule import schedule
from numbanet.plan.tasks import partition_parameters

MAX_CHUNKS = 16
"""Chunks of a batch, each with a partial gradient; fixed, so sums do not depend on threads."""
NO_POINTER = 1
"""Stands for a kernel pointer in a plan for a GPU, whose engine composes the kernels itself."""
EMBEDDED = ("embedded", "thread")
"""Targets of the user's compiled code: on the CPU, and in a single thread of a GPU."""
GPU = ("cuda", "thread")
"""Targets without kernel pointers and scratch memory."""
SPLIT_K_RATIO = 6
"""How many times as many weights as partial products the first product has where it is cut by its
inputs."""
TILE_ROWS = {"cpu": 8, "embedded": 8, "cuda": 32, "thread": 8}
"""Rows of a parameter block that a matrix tile takes at once: tasks are cut into whole tiles."""
LONG_CHUNKS = {
    "cpu": (64, 1 << 17),
    "cuda": (8, 1 << 24),
    **dict.fromkeys(EMBEDDED, (1, 1 << 62)),
}
"""Least samples of a chunk, and most elements of all partial gradients, for gradients by chunks."""


def lower(
    ops: list[Op],
    dtype,
    *,
    batch: int,
    threads: int,
    train: bool,
    target: str = "cpu",
    input_gradient: bool = False,
    also: Sequence[Unit] = (),
) -> Plan:
    """Make a plan of ops: assign every offset.

    ops       from the op that copies the inputs to the loss, or to the op that writes the outputs
    batch     the largest number of samples worked on at once
    threads   copies of the table; for target "cuda" block groups, each with one chunk of the
              batch
    train     every op after the first one with parameters gets a backward pass
    target    "cpu" or "cuda"; "embedded" for the user's compiled code, "thread" for that of single
              threads of a GPU: a whole batch is one micro-batch and one chunk, whose gradient is
              added to the caller's
    input_gradient   with `train` the first op with parameters, and those before it, get one too
    also      what else the caller needs compiled, beside the kernels of the ops
    Raises ValueError where one has none, with the reason.
    """
    gpu, embedded = target in GPU, target in EMBEDDED
    ops, verbs, chunks = _choose_verbs(ops, batch, threads, train, target, input_gradient)
    if not gpu:
        kernels = [kernel for found in verbs.values() for kernel in found.values()]
        compile_ahead([*also, *units(kernels, dtype)])
    by_chunk = any(STATISTICS in found for found in verbs.values())
    first_trained = _first_differentiated(ops, input_gradient)
    places, slots = allocate_slots(ops, first_trained, train)
    for slot in slots if by_chunk or target == "cuda" else ():
        slot.whole_batch = True
    outputs = places[-1][1]
    if embedded and outputs is not None:
        outputs.has_delta = train  # there may be no loss
    samples = batch if embedded else micro_batch(slots, batch)
    n_acts, n_deltas, arena_strides = assign_offsets(slots, batch, threads, samples, train)

    sizes = [-(-(ATTRS + len(op.attrs)) // ROW_SIZE) for op in ops]
    rows = dict(zip(ops, np.cumsum([1, *sizes]).tolist(), strict=False))
    groups = list(dict.fromkeys(op.group for op in ops if op.trained)) or [DEFAULT_GROUP]
    first_group = 1 + sum(sizes)
    n_rows = first_group + len(groups)
    tables = np.zeros((threads, n_rows, ROW_SIZE), np.int64)
    tables[:, first_group:, INDEX] = range(first_group, n_rows)
    tables[:, 0, CHUNKS] = chunks
    tables[:, 0, PENALTY_FACTOR] = float64_bits(1.0)
    offsets = {op: out.offset for op, (_, out) in zip(ops, places, strict=True) if out is not None}
    scratch = 0 if gpu else max(op.scratch for op in ops)
    scratch_start, n_acts = n_acts, n_acts + scratch * threads
    w, buffers, n_state = 0, sum(op.n_params for op in ops), 0
    states: dict[Op | None, int] = {}
    for k, op in enumerate(ops):
        row = tables[:, rows[op] :].reshape(threads, -1)
        for column, kernel in verbs[op].items():
            row[:, column] = NO_POINTER if gpu else kernel.address(dtype)
        _write_sizes(row, op)
        _write_places(row, places[k], arena_strides)
        row[:, INDEX], row[:, W], row[:, BUFFERS] = rows[op], w, buffers
        row[:, OPTIMIZER_ROW] = first_group + groups.index(op.group) if op.trained else 0
        row[:, AUX] = offsets[op.aux] if op.aux else 0
        row[:, STATE_OFFSET] = states[op] = states.get(op.aux, n_state)
        row[:, SCRATCH] = scratch_start + np.arange(threads) * scratch
        row[:, READER] = next(
            (rows[ops[j]] for j in range(k + 1, len(ops)) if places[j][0] is places[k][1]), 0
        )
        stride, copies = (0, 0) if embedded else _partials(op, verbs[op], batch, chunks)
        row[:, PARTIAL_GRADS], row[:, PARTIAL_STRIDE] = n_acts, stride
        n_acts += stride * copies
        w += op.n_params
        buffers, n_state = buffers + op.buffers, n_state + op.state
    tables[:, 0, STATE_SIZE] = n_state
    steps, phases = schedule({rows[op]: set(verbs[op]) for op in ops})
    tasks, task_bounds = partition_parameters(
        ops if train else [], rows, threads, TILE_ROWS[target]
    )
    return Plan(
        ops=ops,
        threads=threads,
        batch=batch,
        micro_batch=samples,
        chunks=chunks,
        tables=tables,
        schedule=steps,
        phases=phases,
        by_chunk=by_chunk,
        tasks=tasks,
        task_bounds=task_bounds,
        n_acts=n_acts,
        n_deltas=n_deltas,
        n_params=w,
        offsets=offsets,
        rows=rows,
        groups=groups,
    )


# --- the rows ---------------------------------------------------------------------------------


def _write_sizes(row: np.ndarray, op: Op) -> None:
    """Write what the op says of itself: sizes, penalties and attributes."""
    row[:, N_IN], row[:, N_OUT] = op.n_in, op.n_out
    row[:, N_WEIGHTS], row[:, PARAM_COLS] = op.n_weights, op.param_cols
    row[:, L1_STRENGTH], row[:, L2_STRENGTH] = (float64_bits(s) for s in op.penalties)
    for i, value in enumerate(op.attrs):
        row[:, ATTRS + i] = column_value(value)


def _write_places(row: np.ndarray, slots, arena_strides: dict[bool, int]) -> None:
    """Write where the input and the output of the op lie, for every thread."""
    columns = (X, BASE_X, SAMPLE_STRIDE_X), (Y, BASE_Y, SAMPLE_STRIDE_Y)
    for slot, (offset, base, stride) in zip(slots, columns, strict=True):
        if slot is not None:
            arena_stride = 0 if slot.whole_batch else arena_strides[slot.has_delta]
            row[:, base] = row[:, offset] = slot.offset + np.arange(len(row)) * arena_stride
            row[:, stride] = 0 if slot.whole_batch else slot.size


def _partials(op: Op, verbs: dict, batch: int, chunks: int) -> tuple[int, int]:
    """(elements, how many) of the op's partial products or partial gradients."""
    if SPLIT_K in verbs and op.n_in:
        return batch * op.n_out, N_SPLIT_K
    if ACCUMULATE in verbs:
        return op.n_params + op.statistics_size, chunks
    return 0, 0


# --- what is run ------------------------------------------------------------------------------


def _first_differentiated(ops: list[Op], input_gradient: bool) -> int:
    """The number of the first op whose output has a derivative: the first one that is trained."""
    if input_gradient:
        return 0
    return next((k for k, op in enumerate(ops) if op.trained), len(ops))


def _choose_verbs(
    ops: list[Op], batch: int, threads: int, train: bool, target: str, input_gradient: bool
):
    """(ops, the kernels of each by column, chunks of the batch): which verbs the plan calls."""
    chunks = min(batch, MAX_CHUNKS) if target == "cpu" else threads
    ops = [_choose_gradient(op, batch, chunks, target) for op in _insert_copies(ops)]
    first_trained = _first_differentiated(ops, input_gradient)
    split = train and target == "cpu" and _use_split_k(ops, batch)
    if split:
        reduce = replace(ops[1], forward=ops[1].reduce_split_k)
        ops[:2] = replace(ops[0], forward=None), reduce
    verbs = {
        op: _verbs(op, train, train and k > first_trained, split and k < 2)
        for k, op in enumerate(ops)
    }
    if target in EMBEDDED:
        for op, found in verbs.items():
            instead = op.substitutes(batch)
            found |= {column: kernel for column, kernel in instead.items() if column in found}
    accumulates = any(ACCUMULATE in found for found in verbs.values())
    return ops, verbs, chunks if train and accumulates else threads


def _insert_copies(ops: list[Op]) -> list[Op]:
    """Put a copy before each op in place whose predecessor still needs its own output."""
    result: list[Op] = []
    before: Op | None = None
    for op in ops:
        if op.in_place and before is not None and before.keeps_output:
            result.append(copy_op(op.n_in))
        result.append(op)
        before = before if op.side_output else op
    return result


def _choose_gradient(op: Op, batch: int, chunks: int, target: str) -> Op:
    """The op with one of `gradient` and `accumulate_gradient`, where it has both.

    Chunks are for long batches and few parameters: what a gradient over the batch would read again
    later is read while it is in cache.
    """
    if not (op.gradient and op.accumulate_gradient):
        return op
    samples, elements = LONG_CHUNKS[target]
    if batch >= samples * chunks and op.n_params * chunks <= elements:
        return replace(op, gradient=None)
    return replace(op, accumulate_gradient=None)


def _use_split_k(ops: list[Op], batch: int) -> bool:
    """Whether the first product uses split-K; a thread then reads the weights it updates itself.

    Cut by samples, each thread needs all weights, half of which another one has just written, and
    takes back those that it writes itself; cut by features, only partial products travel. Where
    the weights are SPLIT_K_RATIO times as many as these, a step of 784-30 to 784-512 takes 4 to
    14 % less on two threads, and 0 to 4 % more on one.
    """
    inputs, first = ops[0], ops[1]
    return bool(
        inputs.split_k
        and first.split_k
        and first.gradient
        and first.n_in >= SPLIT_K_RATIO * N_SPLIT_K * batch
        and first.n_weights >= 1 << 13
    )


def _verbs(op: Op, train: bool, after_trained: bool, split: bool) -> dict:
    """The kernels of an op's row by column: those that this plan calls."""
    verbs = {FORWARD: op.forward}
    if train:
        gradient = reduce_chunks if op.accumulate_gradient else op.gradient
        verbs |= {STATISTICS: op.statistics, ACCUMULATE: op.accumulate_gradient, GRADIENT: gradient}
    if split:
        verbs[SPLIT_K] = op.split_k
    if after_trained and op.n_in and not op.side_output:
        if op.backward is None:
            raise ValueError(
                op.not_differentiable
                or f"{op.name} has no backward pass, so nothing before it can be trained"
            )
        verbs[BACKWARD] = op.backward
    return {column: kernel for column, kernel in verbs.items() if kernel is not None}
