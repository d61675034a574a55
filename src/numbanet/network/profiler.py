"""A profile of each kernel of a network: its time, arithmetic and memory traffic.

Every verb of every op runs alone on one block of samples, in one thread, with its data in cache.
A whole step takes longer because it waits for memory and for other threads.
"""

import time
from dataclasses import dataclass

import numpy as np

from numbanet.backend.intrinsics import call_indirect, data_pointer, gemm, ptr_add
from numbanet.backend.jit import entry_point, kernel
from numbanet.engine.cpu.executor import GradientExecutor
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    BASE_X,
    BASE_Y,
    FORWARD,
    GRADIENT,
    INPUTS,
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


@dataclass(frozen=True)
class Cost:
    """One verb of one op: microseconds, floating-point operations and bytes per sample.

    `share` is the fraction of the FMA peak that it reaches.
    """

    layer: str
    verb: str
    microseconds: float
    flops: float
    bytes: float
    share: float

    @property
    def bound(self) -> str:
        """What limits its speed: arithmetic, or memory (fewer than 4 operations for each byte)."""
        return "arithmetic" if self.flops > 4 * self.bytes else "memory"


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


def peak(dtype) -> float:
    """The FMA peak: floating-point operations per second of a 128³ product on one core."""
    n = 128
    a, b, c = (np.random.default_rng(k).random(n * n).astype(dtype) for k in range(3))
    row = np.zeros((1, ROW_SIZE), np.int64)
    address = square_product.address(np.dtype(dtype))
    return (
        2
        * n**3
        / _seconds(lambda times: _repeat(address, row, 0, a, b, c, c, 0, n, times), rounds=9)
    )


def costs(network, x, y, loss=None, batch_size: int = 128) -> list[Cost]:
    """Measure every verb of a training step on the first `batch_size` samples.

    The network and the data are left unchanged.
    """
    chosen = network.resolve_loss(loss)
    x, y, classes = network.check_data(x[:batch_size], y[:batch_size], chosen)
    ops, loss_op, _ = network.loss_ops(
        chosen, x.dtype, y.dtype, False, samples=len(x), batches=1, training=True
    )
    executor = GradientExecutor(ops, network.dtype, batch=len(x), threads=1, loss_op=loss_op)
    params = network.memory.copy()
    executor.bind(INPUTS, x)
    executor.bind(TARGETS, y)
    executor.gradient(params, len(x))
    plan, samples, fma_peak = executor.plan, len(x), peak(network.dtype)
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
            fraction = flops * count / seconds / fma_peak
            found.append(Cost(op.name, verb, 1e6 * seconds / count, flops, moved, fraction))
    executor.release()
    return found


def table(found: list[Cost]) -> str:
    """The costs as a table, one line for each verb, with the sum."""
    lines = [
        f"{'layer':16}{'verb':10}{'µs/sample':>10}{'flop/sample':>13}"
        f"{'bytes/sample':>14}{'of peak':>9}  bound by",
        "─" * 84,
    ]
    for one in found:
        lines.append(
            f"{one.layer:16}{one.verb:10}{one.microseconds:10.3f}{one.flops:13,.0f}"
            f"{one.bytes:14,.0f}"
            f"{one.share:9.0%}  {one.bound}"
        )
    lines += [
        "─" * 84,
        f"{'sum':26}{sum(one.microseconds for one in found):10.3f}"
        f"{sum(one.flops for one in found):13,.0f}"
        f"{sum(one.bytes for one in found):14,.0f}",
    ]
    return "\n".join(lines)
