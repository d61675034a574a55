"""Lowering: ops become rows, slots and tasks. Every offset of the project is assigned here, and nowhere else."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from numbanet.backend.intrinsics import at, lanes, load, store, thread, threads
from numbanet.backend.jit import kernel
from numbanet.plan.columns import (
    BACKWARD,
    BUFFERS,
    COUNT,
    FORWARD,
    GRADIENT,
    HOME_X,
    HOME_Y,
    INDEX,
    L1,
    L2,
    N_X,
    N_Y,
    NEXT,
    OTHER,
    OWN,
    PARTIAL,
    PARTIALS,
    PREPARE,
    PREVIOUS,
    SCRATCH,
    SHARDS,
    SPLIT,
    SPLITS,
    STEP_X,
    STEP_Y,
    UNIT,
    WEIGHTS,
    WIDTH,
    Op,
    Plan,
    W,
    X,
    Y,
    clock,
    real_bits,
)


@dataclass
class _Slot:
    """Numbers per sample, whether the whole batch is kept, whether it has a derivative, and where it begins."""

    size: int
    batch: bool
    delta: bool
    offset: int = -1


BLOCK_NUMBERS = 131072
"""Numbers that the slots of a block of samples may fill together: half of a level-2 cache of 1 MiB."""


def lower(ops: list[Op], dtype, *, batch: int, threads: int, train: bool, card: bool = False) -> Plan:
    """Assign every offset: turn ops into tables, slots and tasks.

    `ops` begins with the gather and ends with the loss or a scatter; `batch` is the largest number of samples worked on at once.
    With train, every op after the first with parameters gets a backward; where one has none, ValueError says why.
    For a GPU's card `threads` counts rows of blocks: each takes one shard, whose samples are all kept, and has no scratch memory;
    the columns of the verbs hold 1 instead of an address.
    """
    trained = next((k for k, op in enumerate(ops) if op.parameters), len(ops))
    ops = _apart(ops)
    shards = threads if card else min(batch, SHARDS_AT_MOST)
    ops = [_one_gradient(op, batch, shards, card) for op in ops]
    splits = SPLITS if train and not card and _splits(ops, batch) else 0
    if splits:
        ops[:2] = replace(ops[0], forward=None), replace(ops[1], forward=ops[1].joined)
    places, slots = _slots(ops, trained, train)
    waits = train and any(op.prepare for op in ops)
    for slot in slots if waits or card else ():
        slot.batch = True
    block = _block(slots, batch)
    n_acts, n_deltas, arenas = _layout(slots, batch, threads, block, train)
    shards = shards if train and any(op.partial for op in ops) else threads
    scratch = 0 if card else max(op.scratch for op in ops)
    scratch_start, n_acts = n_acts, n_acts + scratch * threads
    starts = np.cumsum([1, *(-(-(OWN + len(op.own)) // WIDTH) for op in ops)]).tolist()
    tables = np.zeros((threads, starts[-1] + 1, WIDTH), np.int64)
    offsets = {op: out.offset for op, (_, out) in zip(ops, places, strict=True) if out is not None}
    parameter, buffers = 0, sum(op.parameters for op in ops)
    for k, op in enumerate(ops):
        row = tables[:, starts[k] :].reshape(threads, -1)
        carries_back = train and k > trained and op.n_in and not op.side
        if carries_back and op.backward is None:
            raise ValueError(op.why_no_backward or f"{op.name} has no backward pass, so nothing before it can be trained")
        gradient = sum_partials if op.partial else op.gradient
        verbs = (op.forward, op.backward if carries_back else None, op.partial if train else None, gradient if train else None)
        for column, verb in zip((FORWARD, BACKWARD, PARTIAL, GRADIENT), verbs, strict=True):
            row[:, column] = 0 if verb is None else 1 if card else verb.address(dtype)
        row[:, INDEX] = starts[k]
        row[:, NEXT] = starts[k + 1] if k + 1 < len(ops) else 0
        row[:, PREVIOUS] = starts[k - 1] if k else 0
        row[:, N_X], row[:, N_Y], row[:, W], row[:, WEIGHTS] = op.n_in, op.n_out, parameter, op.weights
        row[:, OTHER] = offsets[op.reads] if op.reads else 0
        row[:, SCRATCH] = scratch_start + np.arange(threads) * scratch
        row[:, COUNT], row[:, UNIT], row[:, BUFFERS] = op.parameters + op.extra, op.unit, buffers
        if splits and k < 2:
            row[:, SPLIT] = op.split.address(dtype) if op.split else 0
        if splits and k == 1:
            row[:, PARTIALS], row[:, COUNT] = n_acts, batch * op.n_out
            n_acts += splits * batch * op.n_out
        row[:, PREPARE] = (1 if card else op.prepare.address(dtype)) if train and op.prepare else 0
        if train and op.partial:
            row[:, PARTIALS] = n_acts
            n_acts += shards * (op.parameters + op.extra)
        row[:, L1], row[:, L2] = (real_bits(strength) for strength in op.penalties)
        for column, home, step, slot in zip((X, Y), (HOME_X, HOME_Y), (STEP_X, STEP_Y), places[k], strict=True):
            if slot is not None:
                apart = 0 if slot.batch else arenas[slot.delta]
                row[:, home] = row[:, column] = slot.offset + np.arange(threads) * apart
                row[:, step] = 0 if slot.batch else slot.size
        for i, value in enumerate(op.own):
            row[:, OWN + i] = real_bits(value) if isinstance(value, float) else value
        parameter += op.parameters
        buffers += op.buffers
    tables[:, -1, INDEX] = starts[-1]
    tables[:, 0, PREVIOUS] = starts[-2]
    tables[:, 0, SHARDS] = shards
    tasks, bounds = _cut(ops if train else [], starts, threads, parameter, 32 if card else 8)
    buffer = int((tasks[:, 4] - tasks[:, 3]).max(initial=0))
    return Plan(ops, threads, batch, block, tables, offsets, shards, n_acts, n_deltas, parameter, tasks, bounds, buffer,
                _phases(ops, starts, starts[1] if splits else starts[0]), splits)


def _phases(ops, starts, first):
    """Forwards from row `first` to each op that waits for the whole batch, to the end and back, then back from each such op."""
    waiting = [start for start, op in zip(starts, ops, strict=False) if op.prepare]
    forward = [first, *waiting]
    phases = [(row, to, 0, 0) for row, to in pairwise(forward)]
    back = [starts[-2], *waiting[::-1]]
    phases.append((forward[-1], 0, back[0], back[1] if waiting else 0))
    phases += [(0, 0, row, to) for row, to in pairwise([*back[1:], 0])]
    return np.array(phases, np.int64)


def _splits(ops, batch):
    """Whether the first product is cut by its inputs: then a thread reads the weights that it updates itself, and no others.

    Cut by samples, each thread needs all weights, half of which another one has just written: for a long, narrow product and a
    small batch, fetching them takes longer than the arithmetic.
    """
    inputs, first = ops[0], ops[1]
    return inputs.split and first.split and first.gradient and first.n_in >= 32 * batch and first.weights >= 1 << 13


SHARDS_AT_MOST = 16
"""Parts of a batch whose partial gradients are kept apart: a fixed number, so that sums do not depend on the threads."""


@kernel
def sum_partials(op, params, grads, acts, deltas, lo, hi):
    """grads[W + i] = Σ over shards, in their order, of their partial gradients, for units lo … hi − 1"""
    unit, w = op[UNIT], op[W]
    for i in range(lo * unit, hi * unit):
        grads[w + i] = acts[op[PARTIALS] + i]
    for shard in range(1, clock(op, SHARDS)):
        part = op[PARTIALS] + shard * op[COUNT]
        for i in range(lo * unit, hi * unit):
            grads[w + i] += acts[part + i]


@sum_partials.cuda
def sum_partials(op, params, grads, acts, deltas, lo, hi):
    shards = clock(op, SHARDS)
    for i in range(lo * op[UNIT] + thread(), hi * op[UNIT], threads()):
        total = acts[op[PARTIALS] + i]
        for shard in range(1, shards):
            total += acts[op[PARTIALS] + shard * op[COUNT] + i]
        grads[op[W] + i] = total


def _one_gradient(op, batch, shards, card):
    """The op with `gradient` or `partial`, where it has both: partial sums where a shard has many samples and few parameters."""
    if not (op.gradient and op.partial):
        return op
    samples, numbers = (8, 1 << 24) if card else (64, 1 << 17)
    in_parts = batch >= samples * shards and op.parameters * shards <= numbers
    return replace(op, gradient=None) if in_parts else replace(op, partial=None)


def _apart(ops):
    """Put a copy before each op in place whose predecessor still needs its own output."""
    result, last = [], None
    for op in ops:
        if op.in_place and last is not None and last.keeps_output:
            result.append(Op("Copy", op.n_in, op.n_in, copy_forward, copy_backward))
        result.append(op)
        last = last if op.side else op
    return result


@kernel
def copy_forward(op, params, grads, acts, deltas, lo, hi):
    """acts[y] = acts[x]"""
    n, width = op[N_X], lanes(acts)
    for i in range(lo * n, hi * n, width):
        store(at(acts, op[Y] + i), load(at(acts, op[X] + i), hi * n - i), hi * n - i)


@copy_forward.cuda
def copy_forward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_X] + thread(), hi * op[N_X], threads()):
        acts[op[Y] + i] = acts[op[X] + i]


@kernel
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y]"""
    n, width = op[N_X], lanes(deltas)
    for i in range(lo * n, hi * n, width):
        store(at(deltas, op[X] + i), load(at(deltas, op[Y] + i), hi * n - i), hi * n - i)


@copy_backward.cuda
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    for i in range(lo * op[N_X] + thread(), hi * op[N_X], threads()):
        deltas[op[X] + i] = deltas[op[Y] + i]


def _slots(ops, trained, train):
    """The slots of each op's input and output, and all slots in the order of the chain."""
    slots, places, chain = [], [], None
    for k, op in enumerate(ops):
        out = None
        if op.in_place:
            out = chain
        elif op.n_out:
            out = _Slot(op.n_out, batch=op.side, delta=train and k >= trained and not op.side)
            slots.append(out)
        places.append((chain if op.n_in else None, out))
        if train and op.gradient is not None and op.partial is None:
            chain.batch = out.batch = True
        chain = chain if op.side or out is None else out
    for op, (_, out) in zip(ops, places, strict=True):
        if out is not None and any(op is other.reads for other in ops):
            out.batch = True
    if ops[-1].n_out:  # a loss: the batch's values are added in order after the step
        places[-1][1].batch, places[-1][1].delta = True, False
    return places, slots


def _block(slots, batch):
    """Samples that a thread carries through the whole network at a time."""
    fits = BLOCK_NUMBERS // max(1, sum(slot.size for slot in slots))
    fits = fits // 8 * 8 if fits >= 8 else max(1, fits)
    return min(fits, 64, batch)


def _layout(slots, batch, threads, block, train):
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


def _cut(ops, starts, threads, n_params, rows):
    """Cut the parameters into tasks of at most a few thousand numbers, and share them out among the threads by cost.

    The cuts do not depend on the threads: a compiled loop may round its last, odd numbers differently from the others.
    """
    grain = min(4096, max(256, n_params // 32))
    tasks, costs, offset = [], [0], 0
    for start, op in zip(starts, ops, strict=False):
        if op.parameters:
            at_once = min(op.units, max(rows, grain // op.unit // rows * rows))  # whole tiles of rows
            for lo, hi in pairwise([*range(0, op.units, at_once), op.units]):
                tasks.append((start, lo, hi, offset + lo * op.unit, offset + hi * op.unit))
                costs.append((hi - lo) * op.unit + 64)
        offset += op.parameters
    total = np.cumsum(costs)
    shares = total[-1] * np.arange(threads + 1) / threads
    bounds = np.abs(total[:, None] - shares).argmin(axis=0).astype(np.int64)
    return np.array(tasks, np.int64).reshape(-1, 5), bounds
