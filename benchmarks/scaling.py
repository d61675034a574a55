"""Predict training steps on 4, 8 and 16 cores from what this machine shows on one and two.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --lines 784-30-10,lenet5-128

A step of n threads is predicted as the sum of

    samples    the kernels of the forward-backward region on one core · the largest thread's part
    update     the gradients and the optimiser on one core · the largest thread's part
    rest       what lies between the kernels: every thread does it
    barriers   their number · what one takes; arrivals follow one another, so it grows with n
    bytes      what a thread reads that others wrote, at the speed from core to core: parameters,
               outputs and deltas for its gradients, partial gradients

The parts come from the plan as it is lowered for n threads. The prediction for two threads stands
beside what two take, which is the model's check. It leaves out what breaks it on larger machines:
cores that share a level-3 cache or the memory's bandwidth with many others, several sockets,
a lower clock where many cores work, and two threads on one core.
"""

import argparse
import math
import time

import numpy as np
from numba import prange

from benchmarks.peers import work
from benchmarks.peers.report import duration
from benchmarks.peers.with_numbanet import network, optimizer
from numbanet.backend.intrinsics import data_pointer
from numbanet.backend.intrinsics.barrier import barrier_arrive_all, barrier_wait
from numbanet.backend.jit import entry_point
from numbanet.backend.threads import max_threads
from numbanet.engine.cpu.kernels import BARRIER_SIZE, in_region
from numbanet.network.profiler import UPDATE_VERBS, step_profile
from numbanet.nn.data import layout
from numbanet.plan.lower import lower
from numbanet.plan.plan import OVER_FEATURES

CORES = (2, 4, 8, 16)
ROUNDS, REPEATS = 200, 50
BYTES = 32 * 1024
"""What one core reads of the other's in a round: less than a first-level cache has."""
MOST_BATCHES = 32


@entry_point(parallel=True)
def exchange(counter, sums, buffers, n, workers, shift, rounds):
    """Write n floats of one's own buffer and read those of the buffer `shift` further, in rounds.

    Two barriers a round. sums[w] is −1 where not all workers came.
    """
    for w in prange(workers):
        place = data_pointer(counter)
        sums[w] = -1.0
        if barrier_arrive_all(place, workers):
            total, generation = np.float32(0), 1
            for k in range(rounds):
                for j in range(n):
                    buffers[w, j] = np.float32(k)
                generation += 1
                barrier_wait(place, workers, generation)
                for j in range(n):
                    total += buffers[(w + shift) % workers, j]
                generation += 1
                barrier_wait(place, workers, generation)
            sums[w] = total


def seconds_of(n: int, shift: int) -> float:
    """The shortest time of a round of two workers, of some measurements."""
    found = []
    buffers, sums = np.zeros((2, max(n, 1)), np.float32), np.zeros(2)
    while len(found) < REPEATS:
        counter = np.zeros(BARRIER_SIZE, np.int64)
        began = time.perf_counter()
        in_region(exchange, (counter, sums, buffers, n, 2, shift, ROUNDS), 2)
        if sums.min() >= 0:
            found.append((time.perf_counter() - began) / ROUNDS)
    return min(found)


def between_cores() -> tuple[float, float]:
    """(seconds of a barrier of two threads, seconds of a byte from one core to the other)."""
    n = BYTES // 4
    seconds_of(1, 0)
    return seconds_of(0, 0) / 2, max(0.0, seconds_of(n, 1) - seconds_of(n, 0)) / BYTES


class Model:
    """The time of a step of one line, by the number of threads.

    samples, update, rest   seconds on one core
    """

    def __init__(self, line: work.Line, barrier: float, byte: float):
        self.line, self.barrier, self.byte = line, barrier, byte
        rng, n = np.random.default_rng(0), min(line.steps, MOST_BATCHES) * line.batch
        self.x = rng.random((n, *line.input_shape), np.float32)
        self.y = rng.integers(0, 10, n) if line.has_classes else rng.random((n, 1), np.float32)
        self.net = network(line)
        self.loss = self.net.resolve_loss(line.loss)
        found = self.profile(1)
        scale = 1e-6 * found.plain / found.timed
        updating = {*UPDATE_VERBS, "gradient"}
        self.samples = self.update = 0.0
        for (_, verb), microseconds in found.kernels.items():
            if verb in updating:
                self.update += scale * float(microseconds[0])
            else:
                self.samples += scale * float(microseconds[0])
        self.rest = scale * float(found.between[0])

    def profile(self, threads: int):
        """Where the time of steps goes on so many threads."""
        return step_profile(
            self.net, self.x, self.y, self.loss, self.line.batch, optimizer(self.line), threads
        )

    def plan(self, threads: int):
        """The line's plan for so many threads."""
        x, y, classes = self.net.check_data(self.x, self.y, self.loss)
        ops, _, _ = self.net.loss_ops(
            self.loss, layout(x), y.dtype, classes, samples=len(x), batches=1, training=True
        )
        return lower(ops, self.net.dtype, batch=self.line.batch, threads=threads, train=True)

    def parts(self, threads: int) -> dict[str, float]:
        """Seconds of each part of a step on so many threads."""
        plan, batch = self.plan(threads), self.line.batch
        cuts = batch * (plan.chunks * np.arange(threads + 1) // threads) // plan.chunks
        sizes = plan.tasks[:, 4] - plan.tasks[:, 3]
        mine = [int(sizes[a:b].sum()) for a, b in zip(plan.task_bounds, plan.task_bounds[1:])]
        others = 1 - 1 / threads
        read = plan.n_params * others  # the parameters that others updated
        for op in plan.ops:
            if op.trained and op.accumulate_gradient:
                read += op.n_params / threads * plan.chunks * others
            elif op.trained:
                read += batch * ((op.n_in or 0) / threads + op.n_out) * others
        split = bool((plan.phases[:, 0] == OVER_FEATURES).any())
        waits = len(plan.phases) + 1
        return {
            "samples": self.samples * (1 / threads if split else np.diff(cuts).max() / batch),
            "update": self.update * max(mine) / max(1, sizes.sum()),
            "rest": self.rest,
            "barriers": waits * self.barrier * threads / 2 * (threads > 1),
            "bytes": read * self.net.dtype.itemsize * self.byte,
        }


def breaks(model: Model, threads: int) -> str:
    """What takes most of the time that perfect scaling would not take."""
    parts = model.parts(threads)
    lost = {name: seconds for name, seconds in parts.items() if name not in ("samples", "update")}
    uneven = parts["samples"] + parts["update"] - (model.samples + model.update) / threads
    lost["uneven parts"] = uneven
    name = max(lost, key=lost.__getitem__)
    return f"{name}, {lost[name] / sum(parts.values()):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0]
    )
    training = [line for line in work.LINES if line.trains]
    parser.add_argument("--lines", help="names or numbers between commas (default: all that train)")
    given = parser.parse_args()
    if given.lines:
        try:
            training = [work.line(name.strip()) for name in given.lines.split(",")]
        except ValueError as error:
            parser.error(str(error))
        if not all(line.trains for line in training):
            parser.error("--lines: only lines that train")
    if max_threads() < 2:
        parser.error("two CPUs are needed: what crosses between them is measured")
    barrier, byte = between_cores()
    speed = f"{1e-9 / byte:.1f} GB/s" if byte else "too fast to measure"
    print(f"barrier of two threads {duration(barrier)}; from core to core {speed}\n")
    heads = ["line", "1", "2 predicted", "2 measured", *(f"{n} predicted" for n in CORES[1:])]
    heads.append(f"speed-up on {CORES[-1]}")
    heads.append(f"what costs most on {CORES[-1]}")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    for line in training:
        model = Model(line, barrier, byte)
        times = {n: math.fsum(model.parts(n).values()) for n in (1, *CORES)}
        cells = [line.title, duration(times[1]), duration(times[2])]
        cells.append(duration(1e-6 * model.profile(2).plain))
        cells += [duration(times[n]) for n in CORES[1:]]
        cells += [f"{times[1] / times[CORES[-1]]:.1f}", breaks(model, CORES[-1])]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
