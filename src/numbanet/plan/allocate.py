"""Memory layout: slots for the outputs of ops, and their offsets in acts and deltas.

A *slot* holds a row for each sample: of the whole batch where a gradient is taken over the batch
afterwards, else only of the micro-batch that a thread is working on. An op in place shares the slot
of the op before. Slots with a derivative come first, at the same offsets in acts and in deltas.
"""

from dataclasses import dataclass

from numbanet.plan.op import Op

L2_ELEMENTS = 131072
"""Elements that a micro-batch may fill in all slots together: half of a level-2 cache of 1 MiB."""
MAX_MICRO_BATCH = 64
MIN_ROWS = 16
"""Samples of a micro-batch where every step of a sequence is a product over them, if one step fits:
two tiles of the micro-kernel."""


@dataclass(eq=False)
class Slot:
    """The output of an op in memory.

    Holds the elements per sample, whether the batch is kept and a derivative needed, which op wrote
    it and which one reads it last. `parts`, as in Op, is how many of them a sample is worked on in.
    """

    size: int
    whole_batch: bool
    has_delta: bool
    born: int
    parts: int = 1
    last_reader: int = -1
    offset: int = -1


def allocate_slots(ops: list[Op], first_trained: int, train: bool):
    """The slots of each op's input and output, and all slots in the order of writing."""
    slots: list[Slot] = []
    places: list[tuple[Slot | None, Slot | None]] = []
    chain: Slot | None = None
    for k, op in enumerate(ops):
        out = None
        if op.in_place:
            out = chain
        elif op.n_out:
            has_delta = train and k >= first_trained and (op.side_delta or not op.side_output)
            out = Slot(op.n_out, op.side_output, has_delta, born=k)
            slots.append(out)
        if out is not None:
            out.parts = max(out.parts, op.parts)
        places.append((chain if op.n_in else None, out))
        if op.n_in and chain is not None:
            chain.last_reader = k
        if train and op.gradient is not None and chain is not None and out is not None:
            chain.whole_batch = out.whole_batch = True
        chain = chain if op.side_output or out is None else out
    for k, op in enumerate(ops):
        if op.aux is not None:
            read = places[ops.index(op.aux)][1]
            assert read is not None
            read.whole_batch, read.last_reader = True, max(read.last_reader, k)
    last = places[-1][1]
    if last is not None:  # a loss: the batch's values are added in order after the step
        last.whole_batch, last.has_delta = True, False
    return places, slots


def micro_batch(slots: list[Slot], batch: int) -> int:
    """The size of a micro-batch: samples that a thread processes at a time."""
    fits = L2_ELEMENTS // max(1, sum(slot.size for slot in slots))
    if fits < MIN_ROWS:
        part = L2_ELEMENTS // max(1, sum(slot.size // slot.parts for slot in slots))
        fits = max(fits, min(part, MIN_ROWS))
    fits = fits // 8 * 8 if fits >= 8 else max(1, fits)
    return min(fits, MAX_MICRO_BATCH, batch)


def assign_offsets(slots: list[Slot], batch: int, threads: int, samples: int, train: bool):
    """Give slots their offsets; `samples` is the size of a micro-batch.

    Returns the elements of acts and of deltas, and for slots with and without a derivative the
    elements from one thread's micro-batch to the next's. Where nothing is kept for a backward pass,
    a slot takes the place of those that nobody reads any more.
    """
    end, n_deltas = 0, 0
    arena_strides: dict[bool, int] = {}
    for has_delta in (True, False):
        kind = [slot for slot in slots if slot.has_delta == has_delta]
        for slot in kind:
            if slot.whole_batch:
                slot.offset, end = end, end + batch * slot.size
        transient = [slot for slot in kind if not slot.whole_batch]
        arena_strides[has_delta] = _arena(transient, samples, end, train)
        end += arena_strides[has_delta] * threads
        if has_delta:
            n_deltas = end
    return end, n_deltas, arena_strides


def _arena(slots: list[Slot], samples: int, start: int, keep: bool) -> int:
    """Place slots of a micro-batch from `start` on, over one another unless `keep`.

    Returns the size.
    """
    live: list[Slot] = []
    size = 0
    for slot in slots:
        live = [other for other in live if keep or other.last_reader >= slot.born]
        offset = 0
        for other in sorted(live, key=lambda s: s.offset):
            if other.offset - start >= offset + samples * slot.size:
                break
            offset = other.offset - start + samples * other.size
        slot.offset = start + offset
        live.append(slot)
        size = max(size, offset + samples * slot.size)
    return size
