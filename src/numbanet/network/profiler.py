"""A profile of each kernel of a network: its time, arithmetic and memory traffic.

Every verb of every op runs alone on one block of samples, in one thread, with its data in cache.
A whole step takes longer because it waits for memory and for other threads.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from numbanet.backend.intrinsics import call_indirect, data_pointer, gemm, ptr_add
from numbanet.backend.jit import entry_point, kernel
from numbanet.engine.cpu.executor import GradientExecutor
from numbanet.io.tables import Table
from numbanet.nn.data import bind_inputs, layout
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    BASE_X,
    BASE_Y,
    FORWARD,
    GRADIENT,
    N_SPLIT_K,
    ROW_SIZE,
    SAMPLES,
    SPLIT_K,
    START,
    TARGETS,
    X,
    Y,
)

VERBS = {
    "split": SPLIT_K,
    "forward": FORWARD,
    "backward": BACKWARD,
    "gradient": GRADIENT,
    "accumulate": ACCUMULATE,
}


PEAK_ROUND = 0.002
"""Seconds of one round of products, at least: shorter than what another process takes at once."""
PEAK_ROUNDS, PEAK_TOLERANCE = 25, 0.02
"""Fewest rounds for the peak, and by how much the best two may differ."""
BUSY = 0.1
"""A peak that changes by more than this fraction belongs to a busy machine."""


@dataclass(frozen=True)
class Cost:
    """One verb of one op: microseconds, floating-point operations and bytes per sample."""

    layer: str
    verb: str
    microseconds: float
    flops: float
    bytes: float

    @property
    def speed(self) -> float:
        """Floating-point operations per second."""
        return 1e6 * self.flops / self.microseconds

    @property
    def bound(self) -> str:
        """What limits its speed: arithmetic, or memory (fewer than 4 operations for each byte)."""
        return "arithmetic" if self.flops > 4 * self.bytes else "memory"


@dataclass(frozen=True)
class Profile:
    """The costs of all verbs.

    before, after   the FMA peak as it was measured before and after them
    """

    costs: list[Cost]
    before: float
    after: float

    @property
    def peak(self) -> float:
        """The highest speed seen, of which fractions are given."""
        return max(self.before, self.after, *(one.speed for one in self.costs))

    @property
    def note(self) -> str:
        """A line where the measurement was disturbed, else ""."""
        measured = max(self.before, self.after)
        if self.peak > measured:
            return (
                "The measurement was disturbed: a kernel was faster than the peak as it was "
                f"measured, {measured / 1e9:.0f} GFLOP/s, and stands for it"
            )
        if min(self.before, self.after) < (1 - BUSY) * measured:
            return (
                f"The measurement was disturbed: the peak was {self.before / 1e9:.0f} GFLOP/s "
                f"before it and {self.after / 1e9:.0f} after it"
            )
        return ""

    def table(self) -> Table:
        """The costs, one line for each verb, with the sum and the note."""
        header = ("layer", "verb", "bound by", "µs/sample", "flop/sample", "bytes/sample")
        rows = [
            (
                one.layer,
                one.verb,
                one.bound,
                f"{one.microseconds:.3f}",
                f"{one.flops:,.0f}",
                f"{one.bytes:,.0f}",
                f"{one.speed / self.peak:.0%}",
            )
            for one in self.costs
        ]
        sums = (
            f"{sum(one.microseconds for one in self.costs):.3f}",
            f"{sum(one.flops for one in self.costs):,.0f}",
            f"{sum(one.bytes for one in self.costs):,.0f}",
        )
        rows = [(*header, "of peak"), *rows, ("sum", "", "", *sums, "")]
        return Table(rows, left=3, note=self.note)


@entry_point
def _repeat(address, table, row, params, grads, acts, deltas, lo, hi, times):
    op = ptr_add(data_pointer(table), row * ROW_SIZE)
    for _ in range(times):
        call_indirect(
            address,
            op,
            data_pointer(params),
            data_pointer(grads),
            data_pointer(acts),
            data_pointer(deltas),
            lo,
            hi,
        )


def _seconds(times_called, floor=0.002, rounds=5) -> float:
    """The median time of one call, from rounds of at least `floor` seconds."""
    times_called(1)
    times, spent = 1, 0.0
    while spent < floor and times < 1 << 20:
        times *= 2
        began = time.perf_counter()
        times_called(times)
        spent = time.perf_counter() - began
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        times_called(times)
        found.append((time.perf_counter() - began) / times)
    return float(np.median(found))


@kernel
def square_product(op, params, grads, acts, deltas, lo, hi):
    """acts = params · grads for matrices of hi × hi; the FMA peak is measured with it."""
    gemm(hi, hi, hi, params, hi, grads, hi, 0, acts, hi)


def peak(dtype, threads: int = 1) -> float:
    """The FMA peak: floating-point operations per second of 128³ products, a thread on each core.

    It is the best of many rounds, because a busy machine only makes them slower.
    """
    n = 128
    row, address = np.zeros((1, ROW_SIZE), np.int64), square_product.address(np.dtype(dtype))
    generator = np.random.default_rng(0)
    memories = [[generator.random(n * n).astype(dtype) for _ in range(3)] for _ in range(threads)]

    def run(memory, times):
        a, b, c = memory
        _repeat(address, row, 0, a, b, c, c, 0, n, times)

    with ThreadPoolExecutor(threads) as pool:

        def seconds_of(times):
            began = time.perf_counter()
            list(pool.map(run, memories, [times] * threads))
            return time.perf_counter() - began

        seconds_of(1)
        times = 1
        while seconds_of(times) < PEAK_ROUND:
            times *= 2
        return best_rate(lambda: threads * 2 * n**3 * times / seconds_of(times))


def best_rate(measure: Callable[[], float], rounds=PEAK_ROUNDS, limit=1.0) -> float:
    """The best of some rounds, of more while the best two differ, for at most `limit` seconds."""
    ends = time.perf_counter() + limit
    rates = sorted(measure() for _ in range(rounds))
    while rates[-1] > (1 + PEAK_TOLERANCE) * rates[-2] and time.perf_counter() < ends:
        rates = sorted([*rates, measure()])
    return rates[-1]


def profile(network, x, y, loss=None, batch_size: int = 128) -> Profile:
    """Measure every verb of a training step on the first `batch_size` samples.

    The network and the data are left unchanged.
    """
    chosen = network.resolve_loss(loss)
    x, y, classes = network.check_data(x[:batch_size], y[:batch_size], chosen)
    ops, loss_op, _ = network.loss_ops(
        chosen, layout(x), y.dtype, False, samples=len(x), batches=1, training=True
    )
    executor = GradientExecutor(ops, network.dtype, batch=len(x), threads=1, loss_op=loss_op)
    params = network.memory.copy()
    bind_inputs(executor, x)
    executor.bind(TARGETS, y)
    executor.gradient(params, len(x))
    plan, samples, before = executor.plan, len(x), peak(network.dtype)
    table, item, found = plan.tables[0], network.dtype.itemsize, []
    table[0, SAMPLES], table[0, START] = samples, 0
    for op, row in plan.rows.items():
        table[row, X], table[row, Y] = table[row, BASE_X], table[row, BASE_Y]
        for verb, column in VERBS.items():
            if not table[row, column] or (column == GRADIENT and op.accumulate_gradient):
                continue
            lo, hi, count = 0, min(plan.micro_batch, samples), min(plan.micro_batch, samples)
            if column == GRADIENT:
                hi, count = op.param_rows, samples
            if column == SPLIT_K:
                hi, count = op.n_in or op.n_out, samples

            def repeat(times, address=int(table[row, column]), row=row, lo=lo, hi=hi):
                _repeat(
                    address,
                    table,
                    row,
                    params,
                    executor.grads,
                    executor.acts,
                    executor.deltas,
                    lo,
                    hi,
                    times,
                )

            seconds = _seconds(repeat)
            reduces = (
                column == FORWARD
                and op.reduce_split_k is not None
                and op.forward is op.reduce_split_k
            )
            flops = op.n_out * (1 + N_SPLIT_K * reduces)
            if op.n_weights and not reduces:
                flops = 2 * op.n_weights * op.weight_reuse
            moved = item * (op.n_in + op.n_out + (op.n_params * (1 + (column == GRADIENT))) / count)
            found.append(Cost(op.name, verb, 1e6 * seconds / count, flops, moved))
    executor.release()
    return Profile(found, before, peak(network.dtype))
