"""Data that come in blocks: checked, joined and cut into whole batches by a thread.

A block is (x, y) or (x, y, sample_weight) of any number of samples. Rows keep their order, and what
is left of a block goes into the first batch of the next: batches do not depend on how the rows are
spread over blocks. While the engine works on one piece, a thread prepares the next.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from numbanet.io.fields import shown
from numbanet.io.sparse import SparseRows
from numbanet.io.validation import check_weights, has_missing
from numbanet.nn.data import layout
from numbanet.nn.regularizers import penalties

LEAST_BYTES = 1 << 20
"""Blocks smaller than this are joined, so that a native call takes many steps."""
PIECES_AHEAD = 2
"""Pieces that wait, prepared."""
JOIN_SECONDS = 1.0
"""How long the end of a training waits for a block that is being read."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Checked samples: x (samples, …) or SparseRows, y, and weights (samples,) or None."""

    x: Any
    y: np.ndarray
    weights: np.ndarray | None

    def __len__(self):
        return len(self.x)

    def __getitem__(self, some: slice) -> "Rows":
        weights = None if self.weights is None else self.weights[some]
        return Rows(self.x[some], self.y[some], weights)

    @property
    def nbytes(self) -> int:
        return self.x.nbytes


def joined(parts: list[Rows]) -> Rows:
    """The rows of all parts, one after the other; of a single one without a copy."""
    if len(parts) == 1:
        return parts[0]
    weights = None
    if parts[0].weights is not None:
        weights = np.concatenate([one.weights for one in parts])
    xs, y = [one.x for one in parts], np.concatenate([one.y for one in parts])
    sparse = isinstance(xs[0], SparseRows)
    return Rows(SparseRows.joined(xs) if sparse else np.concatenate(xs), y, weights)


class Stream:
    """The blocks of a training.

    given        a function without arguments that returns an iterable of blocks, or an iterable; it
                 is gone through anew in every epoch
    batch        samples of a batch
    accumulate   batches of an update
    steps        batches of an epoch, which then goes on in the blocks where the last one ended;
                 None: an epoch is all blocks
    Raises TypeError for what is neither, ValueError for an iterator that is read only once and
    several epochs
    """

    def __init__(self, network, given, loss, batch: int, accumulate: int, steps, epochs: int):
        self.network, self.loss, self.batch, self.steps = network, loss, batch, steps
        self.unit = batch * accumulate
        if not (callable(given) or isinstance(given, Iterable)):
            raise TypeError(
                f"fit takes x and y, or a function or an iterable that gives blocks (x, y); got "
                f"{shown(given)} without y"
            )
        if isinstance(given, Iterator) and epochs > 1 and steps is None:
            raise ValueError(
                f"fit: a {type(given).__name__} is read only once, and there are {epochs} epochs; "
                "pass a function that returns a new one, or say steps_per_epoch"
            )
        self.begin: Callable[[], Iterable] = given if callable(given) else lambda: given
        self.blocks: Iterator | None = None
        self.number = 0
        self.waiting: list[Rows] = []
        self.kind: tuple = ()
        self.classes, self.missing = True, False

    def first(self) -> Rows:
        """Read the first block, which begins the first epoch."""
        rows = self._next()
        if rows is None:
            raise ValueError("fit: the data have no blocks")
        self.waiting = [rows]
        return rows

    def skip(self, epochs: int) -> None:
        """Read over so many epochs, where the blocks go on from one to the next."""
        for _ in range(epochs if self.steps else 0):
            for _ in self.pieces():
                pass

    def pieces(self) -> Generator[Rows, None, None]:
        """Go through one epoch in pieces of whole updates; the last one may be smaller."""
        waiting, self.waiting = self.waiting, []
        left = self.steps * self.batch if self.steps else None
        count, nbytes = sum(map(len, waiting)), sum(one.nbytes for one in waiting)
        while True:
            enough = count >= self.unit and nbytes >= LEAST_BYTES
            if not enough and not (left and count >= left):
                block = self._next()
                if block is None and left is None:
                    self.blocks = None
                    if waiting:
                        yield joined(waiting)
                    return
                if block is None:
                    block = self._again((left or 0) - count)
                waiting.append(block)
                count, nbytes = count + len(block), nbytes + block.nbytes
                continue
            *before, last = waiting
            fill = (len(last) - count) % self.unit if before else len(last)
            rows, rest = joined([*before, last[:fill]]), last[fill:]
            size = min(len(rows), left or len(rows))
            size -= 0 if size == left else size % self.unit
            waiting = [one for one in (rows[size:], rest) if len(one)]
            count, nbytes = count - size, sum(one.nbytes for one in waiting)
            if size:
                yield rows[:size]
            if left is not None:
                left -= size
                if left == 0:
                    self.waiting = waiting
                    return

    def _again(self, left: int) -> Rows:
        """The first block of the next pass, for an epoch that lacks `left` samples."""
        self.blocks = None
        block = self._next()
        if block is None:
            raise ValueError(
                f"the data ended {-(-left // self.batch)} batches before the end of an epoch of "
                f"steps_per_epoch={self.steps}, and cannot be read again; pass a function that "
                "returns a new iterator"
            )
        return block

    def _next(self) -> Rows | None:
        """The next block, None at the end."""
        if self.blocks is None:
            self.blocks, self.number = iter(self.begin()), 0
        for block in self.blocks:
            self.number += 1
            try:
                return self._checked(block)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"block {self.number} of the data: {error}") from None
        return None

    def _checked(self, block) -> Rows:
        if not isinstance(block, (tuple, list)) or len(block) not in (2, 3):
            raise ValueError(f"it must be (x, y) or (x, y, sample_weight), got {shown(block)}")
        network, (x, y, *given) = self.network, block
        if not self.kind:
            network.learn_names(x, y)
        x, y, classes = network.check_data(x, y, self.loss)
        if isinstance(x, SparseRows):
            x = SparseRows.joined([x])
        else:
            x = _own(x.reshape(len(x), *network.input_shape))
        y, weights = _own(y), None
        if given:
            weights = _own(check_weights(given[0], len(x), some=False))
        begun, missing = bool(self.kind), has_missing(y)
        kind = layout(x), y.dtype, len(block)
        self.kind = self.kind or kind
        for ours, first, name in zip(kind, self.kind, ("x", "y", "length"), strict=True):
            if ours != first:
                raise ValueError(f"{name} is {ours}, and {first} in block 1; make all alike")
        if begun and missing and not self.missing:
            raise ValueError(
                "y has masked targets, and that of block 1 none; begin with a block that has some"
            )
        self.missing, self.classes = self.missing or missing, self.classes and classes
        return Rows(x, y, weights)


def _own(array: np.ndarray) -> np.ndarray:
    """A copy of what the iterator may write again, while it is still to be read."""
    return array.copy() if array.flags.writeable else array


def check_penalties(network) -> None:
    """ValueError for penalties that depend on how many samples or batches there are."""
    for built in network.layers:
        for one in penalties(getattr(built.layer, "penalty", None)) or network.penalty:
            if one.per is not None:
                raise ValueError(
                    f"{one}: data in blocks do not say how many there are; give a strength "
                    "without per"
                )


def read_ahead(items: Iterable) -> Generator[Any, None, None]:
    """Yield the items of an iterable that a thread reads; an error in it is raised here."""
    ready: queue.Queue = queue.Queue(PIECES_AHEAD)
    stopped, end = threading.Event(), object()

    def put(item, error=None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(end)
        except BaseException as error:
            put(end, error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stopped.set()
        thread.join(JOIN_SECONDS)
