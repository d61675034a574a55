"""The plan: a network as a table of whole numbers that every engine reads.

A network is lowered once: each layer gives a few `Op`s, each op becomes a row of int64 (addresses of its kernels, sizes, offsets
into the four flat memories), and nothing but this file assigns an offset. Attributes that are real numbers stand in their row as
the bits of a float64.

    row 0        the clock: what changes from step to step (batch size, start, epoch, addresses of the data)
    row 1        the gather, which copies the samples of a batch into the first slot
    rows 2 …     the layers' ops, then the gather of targets and the loss, or the scatter of outputs
    last row     the optimiser

Memories. `params` and `grads` hold, op by op, weights then bias. `acts` holds a *slot* for the output of every op (an op in place
shares the slot of the one before), `deltas` the derivative of the loss by the same numbers at the same offsets; slots without a
derivative come last, so deltas is the shorter. A slot holds a row per sample, either of the whole batch (where a gradient is
taken over the batch afterwards) or only of the block of samples that a thread is walking through.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from numbanet._jit import Kernel, inline, kernel
from numbanet._simd import pointer

# Columns of an op's row.
FORWARD, BACKWARD, PARTIAL, GRADIENT = range(4)
"""Addresses of the verbs; 0 where there is nothing to do. An op that needs the whole batch has a fifth, in PREPARE."""
INDEX = 4
"""The row's own number."""
X, Y = 5, 6
"""Offsets, in acts and deltas, of sample 0 of the input and of the output."""
N_X, N_Y = 7, 8
"""Numbers per sample in the input and in the output."""
W = 9
"""Offset of the op's parameters in params and grads."""
WEIGHTS = 10
"""How many parameters, from W on, a penalty applies to."""
HOME_X, HOME_Y, STEP_X, STEP_Y = 11, 12, 13, 14
"""Slots of a block: X = HOME_X − lo·STEP_X while the block that starts at sample lo is worked on."""
L1, L2 = 15, 16
"""Strengths of the penalties, as reals."""
NEXT, PREVIOUS = 17, 18
"""Numbers of the rows of the next and the previous op; 0 ends the list."""
OTHER = 19
"""Offset of sample 0 in the slot of the op that this one reads besides its input: a loss reads the targets."""
SCRATCH = 20
"""Offset in acts of the numbers that a thread has for itself while it works on this op."""
PARTIALS, COUNT, UNIT = 21, 22, 23
"""Offset in acts of the first shard's partial gradient, how many numbers each shard's has, and how many make a unit."""
PREPARE, BUFFERS = 24, 25
"""Address of the verb whose result for the whole batch `forward` waits for; offset in params of numbers that are not trained."""
OWN = 26
"""First of the columns that belong to the layer. A layer that needs more than its row holds is given the following rows too."""
WIDTH = 48

# Columns of row 0, the clock.
SAMPLES, START, EPOCH, SEED, SHARDS, STEP, INPUTS, TARGETS, ORDER, OUTPUTS, TOTAL = range(5, 16)
"""Samples in this batch · position of its first in the epoch · epoch · seed · shards the batch is split into · optimiser steps
taken, this one included · addresses of the data · samples in the epoch, 0 if the next batch is not worth asking for."""


@inline
def clock(op, column):
    """A column of row 0, seen from any row."""
    return op[column - op[INDEX] * WIDTH]


@inline
def sample_index(op, i):
    """The index in the data of sample i of the batch."""
    place = clock(op, START) + i
    if clock(op, ORDER):
        return pointer(clock(op, ORDER), np.int64)[place]
    return place


@dataclass(frozen=True, eq=False)
class Op:
    """One row of the plan as a layer describes it: kernels, sizes and its own attributes, no offsets yet.

    `in_place`        its output takes the place of its input
    `keeps_output`    its backward reads its own output, so no op in place may follow
    `side`            its output is not the next op's input (the targets, the hits); it is kept for the whole batch
    `reads`           an op before it whose output it reads besides its input
    `partial`         instead of `gradient`: adds the gradient of samples lo … hi − 1 to grads[W …] in region A. The engine gives
                      it a copy per shard (a fixed part of the batch) and adds the copies in order in region B
    `prepare`         for an op whose samples depend on one another: sums over samples lo … hi − 1, into grads, before any `forward`
                      of the op; the engine lets all threads finish it first, and likewise `partial` before `backward`
    `extra`           numbers behind a shard's partial gradient for that
    `buffers`         numbers that are kept and saved with the network, but not trained
    `scratch`         numbers that a thread needs for itself during a verb
    `units`, `unit`   the parameters form `units` blocks of `unit` numbers, the grain in which a gradient is taken;
                      `weights` of them, from the first, are subject to penalties and are used `uses` times per sample
    `own`             whole or real numbers for the columns from OWN on
    """

    name: str
    n_in: int
    n_out: int
    forward: Kernel
    backward: Kernel | None = None
    gradient: Kernel | None = None
    partial: Kernel | None = None
    in_place: bool = False
    keeps_output: bool = False
    side: bool = False
    reads: "Op | None" = None
    prepare: Kernel | None = None
    extra: int = 0
    buffers: int = 0
    scratch: int = 0
    units: int = 0
    unit: int = 0
    weights: int = 0
    uses: int = 1
    own: tuple = ()
    why_no_backward: str = ""
    penalties: tuple = (0.0, 0.0)

    @property
    def parameters(self) -> int:
        return self.units * self.unit

    @property
    def flops(self) -> int:
        """Floating-point operations of a forward pass per sample, roughly: two for each use of a weight."""
        return 2 * self.weights * self.uses + self.n_out


@dataclass
class _Slot:
    """Numbers per sample, whether the whole batch is kept, whether it has a derivative, and where it begins."""

    size: int
    batch: bool
    delta: bool
    offset: int = -1


@dataclass
class Plan:
    """The rows of a network for one purpose (training, gradient, prediction), and how much memory they need.

    `tables`  int64 (threads, rows, WIDTH): every thread has its own copy, whose clock and block offsets it may change
    `tasks`   int64 (tasks, 5): row, lo, hi, first and last parameter of a block that region B treats at once
    `bounds`  int64 (threads + 1): the tasks of each thread
    `buffer`  parameters in the largest task
    `phases`  int64 (phases, 4): rows from and to which region A goes forwards, then backwards, before all threads meet
    """

    ops: list[Op]
    threads: int
    batch: int
    block: int
    tables: np.ndarray
    offsets: dict[Op, int]
    shards: int
    n_acts: int
    n_deltas: int
    n_params: int
    tasks: np.ndarray
    bounds: np.ndarray
    buffer: int
    phases: np.ndarray

    def set_clock(self, column: int, value: int) -> None:
        """Write a column of the clock in every thread's copy."""
        self.tables[:, 0, column] = value


def real_bits(value: float) -> int:
    """The bits of a float64 as an int64."""
    return int(np.float64(value).view(np.int64))


BLOCK_NUMBERS = 131072
"""Numbers that the slots of a block of samples may fill together: half of a level-2 cache of 1 MiB."""


def lower(ops: list[Op], dtype, *, batch: int, threads: int, train: bool) -> Plan:
    """Assign every offset: turn ops into tables, slots and tasks.

    `ops` begins with the gather and ends with the loss or a scatter; `batch` is the largest number of samples worked on at once.
    With train, every op after the first with parameters gets a backward; where one has none, ValueError says why.
    """
    trained = next((k for k, op in enumerate(ops) if op.parameters), len(ops))
    ops = _apart(ops)
    places, slots = _slots(ops, trained, train)
    waits = train and any(op.prepare for op in ops)
    for slot in slots if waits else ():
        slot.batch = True
    block = _block(slots, batch)
    n_acts, n_deltas, arenas = _layout(slots, batch, threads, block, train)
    shards = min(batch, SHARDS_AT_MOST) if train and any(op.partial for op in ops) else threads
    scratch = max(op.scratch for op in ops)
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
            row[:, column] = verb.address(dtype) if verb is not None else 0
        row[:, INDEX] = starts[k]
        row[:, NEXT] = starts[k + 1] if k + 1 < len(ops) else 0
        row[:, PREVIOUS] = starts[k - 1] if k else 0
        row[:, N_X], row[:, N_Y], row[:, W], row[:, WEIGHTS] = op.n_in, op.n_out, parameter, op.weights
        row[:, OTHER] = offsets[op.reads] if op.reads else 0
        row[:, SCRATCH] = scratch_start + np.arange(threads) * scratch
        row[:, COUNT], row[:, UNIT], row[:, BUFFERS] = op.parameters + op.extra, op.unit, buffers
        row[:, PREPARE] = op.prepare.address(dtype) if train and op.prepare else 0
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
    tasks, bounds = _cut(ops, starts, threads, parameter) if train else (np.zeros((0, 5), np.int64), np.zeros(1, np.int64))
    buffer = int((tasks[:, 4] - tasks[:, 3]).max(initial=0))
    return Plan(ops, threads, batch, block, tables, offsets, shards, n_acts, n_deltas, parameter, tasks, bounds, buffer,
                _phases(ops, starts))


def _phases(ops, starts):
    """Forwards up to each op that waits for the whole batch, then to the end and back, then back from each such op."""
    waiting = [start for start, op in zip(starts, ops, strict=False) if op.prepare]
    forward = [1, *waiting]
    phases = [(row, to, 0, 0) for row, to in pairwise(forward)]
    back = [starts[-2], *waiting[::-1]]
    phases.append((forward[-1], 0, back[0], back[1] if waiting else 0))
    phases += [(0, 0, row, to) for row, to in pairwise([*back[1:], 0])]
    return np.array(phases, np.int64)


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
    n = op[N_X]
    for i in range(lo * n, hi * n):
        acts[op[Y] + i] = acts[op[X] + i]


@kernel
def copy_backward(op, params, grads, acts, deltas, lo, hi):
    """deltas[x] = deltas[y]"""
    n = op[N_X]
    for i in range(lo * n, hi * n):
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


def _cut(ops, starts, threads, n_params):
    """Cut the parameters into tasks of at most a few thousand numbers, and share them out among the threads by cost.

    The cuts do not depend on the threads: a compiled loop may round its last, odd numbers differently from the others.
    """
    grain = min(4096, max(256, n_params // 32))
    tasks, costs, offset = [], [0], 0
    for start, op in zip(starts, ops, strict=False):
        if op.parameters:
            at_once = max(1, min(op.units, grain // op.unit))
            at_once = at_once // 8 * 8 if at_once >= 8 else at_once
            for lo, hi in pairwise([*range(0, op.units, at_once), op.units]):
                tasks.append((start, lo, hi, offset + lo * op.unit, offset + hi * op.unit))
                costs.append((hi - lo) * op.unit + 64)
        offset += op.parameters
    total = np.cumsum(costs)
    shares = total[-1] * np.arange(threads + 1) / threads
    bounds = np.abs(total[:, None] - shares).argmin(axis=0).astype(np.int64)
    return np.array(tasks, np.int64).reshape(-1, 5), bounds
