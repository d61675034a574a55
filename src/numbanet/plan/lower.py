"""Lowering: ops become rows, slots and tasks. Every offset of the project is assigned here, and nowhere else."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from numbanet.backend.intrinsics import lanes, load, num_threads, ptr_add, store, thread_rank
from numbanet.backend.jit import kernel
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
    NEXT,
    PARAM_COLS,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    PREVIOUS,
    ROW_SIZE,
    SAMPLE_STRIDE_X,
    SAMPLE_STRIDE_Y,
    SCRATCH,
    SPLIT_K,
    STATISTICS,
    Op,
    Plan,
    W,
    X,
    Y,
    context,
    float64_bits,
)


@dataclass
class _Slot:
    """Numbers per sample, whether the whole batch is kept, whether it has a derivative, and where it begins."""

    size: int
    batch: bool
    delta: bool
    offset: int = -1


L2_ELEMENTS = 131072
"""Numbers that the slots of a block of samples may fill together: half of a level-2 cache of 1 MiB."""


def lower(ops: list[Op], dtype, *, batch: int, threads: int, train: bool, card: bool = False) -> Plan:
    """Assign every offset: turn ops into tables, slots and tasks.

    `ops` begins with the gather and ends with the loss or a scatter; `batch` is the largest number of samples worked on at once.
    With train, every op after the first with parameters gets a backward; where one has none, ValueError says why.
    For a GPU's card `threads` counts rows of blocks: each takes one shard, whose samples are all kept, and has no scratch memory;
    the columns of the verbs hold 1 instead of an address.
    """
    trained = next((k for k, op in enumerate(ops) if op.n_params), len(ops))
    ops = _insert_copies(ops)
    shards = threads if card else min(batch, MAX_CHUNKS)
    ops = [_choose_gradient(op, batch, shards, card) for op in ops]
    splits = N_SPLIT_K if train and not card and _use_split_k(ops, batch) else 0
    if splits:
        ops[:2] = replace(ops[0], forward=None), replace(ops[1], forward=ops[1].reduce_split_k)
    places, slots = _allocate_slots(ops, trained, train)
    waits = train and any(op.statistics for op in ops)
    for slot in slots if waits or card else ():
        slot.batch = True
    block = _micro_batch(slots, batch)
    n_acts, n_deltas, arenas = _assign_offsets(slots, batch, threads, block, train)
    shards = shards if train and any(op.accumulate_gradient for op in ops) else threads
    scratch = 0 if card else max(op.scratch for op in ops)
    scratch_start, n_acts = n_acts, n_acts + scratch * threads
    starts = np.cumsum([1, *(-(-(ATTRS + len(op.attrs)) // ROW_SIZE) for op in ops)]).tolist()
    tables = np.zeros((threads, starts[-1] + 1, ROW_SIZE), np.int64)
    offsets = {op: out.offset for op, (_, out) in zip(ops, places, strict=True) if out is not None}
    parameter, buffers = 0, sum(op.n_params for op in ops)
    for k, op in enumerate(ops):
        row = tables[:, starts[k] :].reshape(threads, -1)
        carries_back = train and k > trained and op.n_in and not op.side_output
        if carries_back and op.backward is None:
            raise ValueError(op.not_differentiable or f"{op.name} has no backward pass, so nothing before it can be trained")
        gradient = reduce_chunks if op.accumulate_gradient else op.gradient
        verbs = (op.forward, op.backward if carries_back else None, op.accumulate_gradient if train else None, gradient if train else None)
        for column, verb in zip((FORWARD, BACKWARD, ACCUMULATE, GRADIENT), verbs, strict=True):
            row[:, column] = 0 if verb is None else 1 if card else verb.address(dtype)
        row[:, INDEX] = starts[k]
        row[:, NEXT] = starts[k + 1] if k + 1 < len(ops) else 0
        row[:, PREVIOUS] = starts[k - 1] if k else 0
        row[:, N_IN], row[:, N_OUT], row[:, W], row[:, N_WEIGHTS] = op.n_in, op.n_out, parameter, op.n_weights
        row[:, AUX] = offsets[op.aux] if op.aux else 0
        row[:, SCRATCH] = scratch_start + np.arange(threads) * scratch
        row[:, PARTIAL_STRIDE], row[:, PARAM_COLS], row[:, BUFFERS] = op.n_params + op.statistics_size, op.param_cols, buffers
        if splits and k < 2:
            row[:, SPLIT_K] = op.split_k.address(dtype) if op.split_k else 0
        if splits and k == 1:
            row[:, PARTIAL_GRADS], row[:, PARTIAL_STRIDE] = n_acts, batch * op.n_out
            n_acts += splits * batch * op.n_out
        row[:, STATISTICS] = (1 if card else op.statistics.address(dtype)) if train and op.statistics else 0
        if train and op.accumulate_gradient:
            row[:, PARTIAL_GRADS] = n_acts
            n_acts += shards * (op.n_params + op.statistics_size)
        row[:, L1_STRENGTH], row[:, L2_STRENGTH] = (float64_bits(strength) for strength in op.penalties)
        for column, home, step, slot in zip((X, Y), (BASE_X, BASE_Y), (SAMPLE_STRIDE_X, SAMPLE_STRIDE_Y), places[k], strict=True):
            if slot is not None:
                apart = 0 if slot.batch else arenas[slot.delta]
                row[:, home] = row[:, column] = slot.offset + np.arange(threads) * apart
                row[:, step] = 0 if slot.batch else slot.size
        for i, value in enumerate(op.attrs):
            row[:, ATTRS + i] = float64_bits(value) if isinstance(value, float) else value
        parameter += op.n_params
        buffers += op.buffers
    tables[:, -1, INDEX] = starts[-1]
    tables[:, 0, PREVIOUS] = starts[-2]
    tables[:, 0, CHUNKS] = shards
    tasks, bounds = _partition_parameters(ops if train else [], starts, threads, parameter, 32 if card else 8)
    buffer = int((tasks[:, 4] - tasks[:, 3]).max(initial=0))
    return Plan(ops, threads, batch, block, tables, offsets, shards, n_acts, n_deltas, parameter, tasks, bounds, buffer,
                _phases(ops, starts, starts[1] if splits else starts[0]), splits)


def _phases(ops, starts, first):
    """Forwards from row `first` to each op that waits for the whole batch, to the end and back, then back from each such op."""
    waiting = [start for start, op in zip(starts, ops, strict=False) if op.statistics]
    forward = [first, *waiting]
    phases = [(row, to, 0, 0) for row, to in pairwise(forward)]
    back = [starts[-2], *waiting[::-1]]
    phases.append((forward[-1], 0, back[0], back[1] if waiting else 0))
    phases += [(0, 0, row, to) for row, to in pairwise([*back[1:], 0])]
    return np.array(phases, np.int64)


def _use_split_k(ops, batch):
    """Whether the first product is cut by its inputs: then a thread reads the weights that it updates itself, and no others.

    Cut by samples, each thread needs all weights, half of which another one has just written: for a long, narrow product and a
    small batch, fetching them takes longer than the arithmetic.
    """
    inputs, first = ops[0], ops[1]
    return inputs.split_k and first.split_k and first.gradient and first.n_in >= 32 * batch and first.n_weights >= 1 << 13


MAX_CHUNKS = 16
"""Parts of a batch whose partial gradients are kept apart: a fixed number, so that sums do not depend on the threads."""


@kernel
def reduce_chunks(op, params, grads, acts, deltas, lo, hi):
    """grads[W + i] = Σ over shards, in their order, of their partial gradients, for units lo … hi − 1"""
    unit, w = op[PARAM_COLS], op[W]
    for i in range(lo * unit, hi * unit):
        grads[w + i] = acts[op[PARTIAL_GRADS] + i]
    for shard in range(1, context(op, CHUNKS)):
        part = op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE]
        for i in range(lo * unit, hi * unit):
            grads[w + i] += acts[part + i]


@reduce_chunks.cuda
def reduce_chunks(op, params, grads, acts, deltas, lo, hi):
    shards = context(op, CHUNKS)
    for i in range(lo * op[PARAM_COLS] + thread_rank(), hi * op[PARAM_COLS], num_threads()):
        total = acts[op[PARTIAL_GRADS] + i]
        for shard in range(1, shards):
            total += acts[op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE] + i]
        grads[op[W] + i] = total


def _choose_gradient(op, batch, shards, card):
    """The op with `gradient` or `partial`, where it has both: partial sums where a shard has many samples and few parameters."""
    if not (op.gradient and op.accumulate_gradient):
        return op
    samples, numbers = (8, 1 << 24) if card else (64, 1 << 17)
    in_parts = batch >= samples * shards and op.n_params * shards <= numbers
    return replace(op, gradient=None) if in_parts else replace(op, accumulate_gradient=None)


def _insert_copies(ops):
    """Put a copy before each op in place whose predecessor still needs its own output."""
    result, last = [], None
    for op in ops:
        if op.in_place and last is not None and last.keeps_output:
            result.append(Op("Copy", op.n_in, op.n_in, copy_forward, copy_backward))
        result.append(op)
        last = last if op.side_output else op
    return result


@kernel
def copy_forward(op, params, grads, acts, deltas, lo, hi):
    """acts[y] = acts[x]"""
    n, width = op[N_IN], lanes(acts)
    for i in range(lo * n, hi * n, width):
        store(ptr_add(acts, op[Y] + i), load(ptr_add(acts, op[X] + i), hi * n - i), hi * n - i)


@copy_forward.cuda
def copy_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_IN] + thread_rank(), hi * op[N_IN], num_threads()):
        acts[op[Y] + i] = acts[op[X] + i]


@kernel
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y]"""
    n, width = op[N_IN], lanes(deltas)
    for i in range(lo * n, hi * n, width):
        store(ptr_add(deltas, op[X] + i), load(ptr_add(deltas, op[Y] + i), hi * n - i), hi * n - i)


@copy_backward.cuda
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_IN] + thread_rank(), hi * op[N_IN], num_threads()):
        deltas[op[X] + i] = deltas[op[Y] + i]


def _allocate_slots(ops, trained, train):
    """The slots of each op's input and output, and all slots in the order of the chain."""
    slots, places, chain = [], [], None
    for k, op in enumerate(ops):
        out = None
        if op.in_place:
            out = chain
        elif op.n_out:
            out = _Slot(op.n_out, batch=op.side_output, delta=train and k >= trained and not op.side_output)
            slots.append(out)
        places.append((chain if op.n_in else None, out))
        if train and op.gradient is not None and op.accumulate_gradient is None:
            chain.batch = out.batch = True
        chain = chain if op.side_output or out is None else out
    for op, (_, out) in zip(ops, places, strict=True):
        if out is not None and any(op is other.aux for other in ops):
            out.batch = True
    if ops[-1].n_out:  # a loss: the batch's values are added in order after the step
        places[-1][1].batch, places[-1][1].delta = True, False
    return places, slots


def _micro_batch(slots, batch):
    """Samples that a thread carries through the whole network at a time."""
    fits = L2_ELEMENTS // max(1, sum(slot.size for slot in slots))
    fits = fits // 8 * 8 if fits >= 8 else max(1, fits)
    return min(fits, 64, batch)


def _assign_offsets(slots, batch, threads, block, train):
    """Give slots their offsets: those with a derivative first, each kind with the slots of the whole batch before a block's.

    Returns the sizes of acts and deltas and how far apart the threads' blocks lie. Where nothing is kept for a way back, the
    slots of a block take turns in two places.
    """
    end, n_deltas, arenas = 0, 0, {}
    for delta in (True, False):
        for slot in slots:
            if slot.batch and slot.delta == delta:
                slot.offset, end = end, end + batch * slot.size
        passing = [slot for slot in slots if not slot.batch and slot.delta == delta]
        inside = 0
        if train:
            for slot in passing:
                slot.offset, inside = end + inside, inside + block * slot.size
        else:
            for turn in (passing[0::2], passing[1::2]):
                for slot in turn:
                    slot.offset = end + inside
                inside += block * max((slot.size for slot in turn), default=0)
        arenas[delta] = inside
        end += inside * threads
        if delta:
            n_deltas = end
    return end, n_deltas, arenas


def _partition_parameters(ops, starts, threads, n_params, rows):
    """Cut the parameters into tasks of at most a few thousand numbers, and share them out among the threads by cost.

    The cuts do not depend on the threads: a compiled loop may round its last, odd numbers differently from the others.
    """
    grain = min(4096, max(256, n_params // 32))
    tasks, costs, offset = [], [0], 0
    for start, op in zip(starts, ops, strict=False):
        if op.n_params:
            at_once = min(op.param_rows, max(rows, grain // op.param_cols // rows * rows))  # whole tiles of rows
            for lo, hi in pairwise([*range(0, op.param_rows, at_once), op.param_rows]):
                tasks.append((start, lo, hi, offset + lo * op.param_cols, offset + hi * op.param_cols))
                costs.append((hi - lo) * op.param_cols + 64)
        offset += op.n_params
    total = np.cumsum(costs)
    shares = total[-1] * np.arange(threads + 1) / threads
    bounds = np.abs(total[:, None] - shares).argmin(axis=0).astype(np.int64)
    return np.array(tasks, np.int64).reshape(-1, 5), bounds
