"""A profile of each kernel of a network, and of whole training steps on all threads.

Alone: every verb of every op runs on one block of samples, in one thread, with its data in cache:
its time, arithmetic and memory traffic.

In a step: the addresses of the kernels in the plan's tables are replaced by those of kernels that
read a clock, call the one that stood there, read the clock again and write both into the log of
their thread. The engine is the same, and nothing of it costs anything where nobody profiles.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from numbanet.backend.intrinsics import as_pointer, call_indirect, data_pointer, gemm, ptr_add
from numbanet.backend.intrinsics.clock import read_ticks
from numbanet.backend.jit import entry_point, kernel, specialize
from numbanet.backend.threads import max_threads
from numbanet.engine.cpu import kernels as engine
from numbanet.engine.cpu.executor import GradientExecutor, TrainingExecutor
from numbanet.engine.cpu.kernels import CALL
from numbanet.io.tables import Table
from numbanet.nn import optimizers
from numbanet.nn.data import bind_inputs, layout
from numbanet.nn.steering import AVERAGE, BEGIN_STEP, CLIP, DECAY, UPDATE
from numbanet.plan.columns import (
    ACCUMULATE,
    BACKWARD,
    BASE_X,
    BASE_Y,
    FORWARD,
    GRADIENT,
    INDEX,
    LENGTHS,
    N_SPLIT_K,
    PERMUTATION,
    ROW_SIZE,
    SAMPLES,
    SPLIT_K,
    START,
    STATISTICS,
    TARGETS,
    X,
    Y,
    context,
)
from numbanet.training.lbfgs import is_lbfgs

VERBS = {
    "split": SPLIT_K,
    "forward": FORWARD,
    "backward": BACKWARD,
    "gradient": GRADIENT,
    "accumulate": ACCUMULATE,
}


MOST_COLUMNS = 4
"""Threads that have a column each in the table of a step."""
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
    step            where the time of whole steps goes
    """

    costs: list[Cost]
    before: float
    after: float
    step: "StepProfile"

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.step.table()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + self.step.table()._repr_html_()

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


@dataclass(frozen=True)
class StepProfile:
    """Where the time of whole training steps goes: microseconds of a step, for each thread.

    batch     samples of a step
    kernels   (layer or optimiser, verb) → microseconds, shape (threads)
    waiting   until the last thread has come to a barrier
    between   the barriers themselves, what lies between two kernels, and reading the clock
    timed     of a step with the clocks, the mean of the fastest quarter: the sum of the others
    plain     of a step without, from the fastest of some runs
    reason    why there are fewer threads than were asked for, or than there could be; else ""
    """

    batch: int
    kernels: dict[tuple[str, str], np.ndarray]
    waiting: np.ndarray
    between: np.ndarray
    timed: float
    plain: float
    reason: str = ""

    def table(self) -> Table:
        """One line for each verb, then the waiting and what lies between, with the sum."""
        threads = len(self.waiting)
        each = threads <= MOST_COLUMNS
        names = [f"thread {t + 1}" for t in range(threads)] if each else ["mean", "slowest"]
        lines = [*self.kernels.items(), (("waiting", ""), self.waiting)]
        rows = []
        for name, found in [*lines, (("between kernels", ""), self.between)]:
            columns = found if each else (found.mean(), found.max())
            share = f"{found.mean() / self.timed:.1%}"
            rows.append((*name, *(f"{one:.2f}" for one in columns), share))
        sums = [f"{self.timed:.2f}"] * len(names)
        note = f"A step of {self.batch} takes {self.plain:.2f} µs without the clocks{self.reason}"
        header = ("a step, µs", "verb", *names, "of the step")
        return Table([header, *rows, ("sum", "", *sums, "")], left=2, note=note)


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


# --- whole steps ----------------------------------------------------------------------------------

LOG = ROW_SIZE - 1
"""The column of the context that holds the address of the thread's log."""
HEAD = 3
"""Integers in front of a log: events, room for so many, where the first lies. Then come the
addresses of the verbs, N_VERBS for each row of the table, and the events."""
EVENT = 4
"""Integers of an event: the place of the verb's address, the step's first sample, two ticks."""
MAX_EVENTS = 1 << 15
"""Events that a log has room for; it lies in the cache of its core."""
MOST_BATCHES = 32
"""Batches of the samples that are used."""
ATTEMPTS = 20
"""How often steps are begun where some threads do not come."""
STEP_SECONDS = 0.05
"""Seconds of steps that are timed, if the logs have room for them."""
TIMED_VERBS = {**VERBS, "statistics": STATISTICS}
UPDATE_VERBS = {
    "begin step": BEGIN_STEP,
    "clip": CLIP,
    "decay": DECAY,
    "update": UPDATE,
    "average": AVERAGE,
}
"""The verbs of the optimiser's rows; their columns are those of other verbs elsewhere."""
N_VERBS = len(TIMED_VERBS)
VERB = FORWARD
"""In the template: the verb of the kernel."""


def _timed(op, params, grads, acts, deltas, lo, hi):
    """Call the kernel whose place this one has taken, between two readings of the clock."""
    log = as_pointer(context(op, LOG), np.int64)
    place = op[INDEX] * N_VERBS + VERB
    began = read_ticks()
    call_indirect(log[HEAD + place], op, params, grads, acts, deltas, lo, hi)
    ended = read_ticks()
    if log[0] < log[1]:
        event = ptr_add(log, log[2] + EVENT * log[0])
        event[0], event[1], event[2], event[3] = place, context(op, START), began, ended
        log[0] += 1


_TIMED = {
    verb: kernel(specialize(_timed, f"timed_{name}", VERB=verb))
    for name, verb in TIMED_VERBS.items()
}


@entry_point
def _ticks():
    return read_ticks()


def _install_clocks(executor) -> list[np.ndarray]:
    """Let all kernels of the executor write into logs, which are returned, one for each thread."""
    tables, dtype = executor.plan.tables, executor.acts.dtype
    n_rows = tables.shape[1]
    logs = [np.zeros(HEAD + n_rows * N_VERBS + EVENT * MAX_EVENTS, np.int64) for _ in tables]
    rows = [*executor.plan.rows.values(), *range(n_rows - len(executor.plan.groups), n_rows)]
    for table, log in zip(tables, logs, strict=True):
        log[:HEAD] = 0, MAX_EVENTS, HEAD + n_rows * N_VERBS
        table[0, LOG] = log.ctypes.data
        for row in rows:
            for verb in TIMED_VERBS.values():
                if table[row, verb]:
                    log[HEAD + row * N_VERBS + verb] = table[row, verb]
                    table[row, verb] = _TIMED[verb].address(dtype)
    return logs


def _events(log: np.ndarray) -> np.ndarray:
    """The events of a log, (events, EVENT)."""
    return log[log[2] :].reshape(-1, EVENT)[: log[0]]


def _phases(plan, keeps_gradients: bool) -> np.ndarray:
    """The number of the barrier that comes next, for each place of a verb."""
    n_rows, last = plan.tables.shape[1], len(plan.phases)
    found = np.full(n_rows * N_VERBS, last)
    for phase in range(last):
        for verb, row in plan.steps(phase):
            if verb in TIMED_VERBS.values():
                found[row * N_VERBS + verb] = phase
    if keeps_gradients:
        found[(n_rows - len(plan.groups)) * N_VERBS :] = last + 1
    return found


def _named_rows(plan, optimizer: str) -> dict[int, tuple[str, dict[str, int]]]:
    """The name of each row and the verbs that it may have; equal layers have numbers."""
    ops = [op.name for op in plan.ops]
    found: dict[int, tuple[str, dict[str, int]]] = {}
    seen: dict[str, int] = {}
    for op, row in plan.rows.items():
        seen[op.name] = seen.get(op.name, 0) + 1
        number = f" {seen[op.name]}" if ops.count(op.name) > 1 else ""
        found[row] = (op.name + number, TIMED_VERBS)
    n_rows = plan.tables.shape[1]
    for row in range(n_rows - len(plan.groups), n_rows):
        found[row] = (optimizer, UPDATE_VERBS)
    return found


def account(events: list[np.ndarray], phases: np.ndarray, batch: int):
    """(kernels, waiting, between, step): ticks of a step, from the events of each thread.

    phases    for each place of a verb, the number of the barrier that comes next in a step
    kernels   (threads, places); waiting and between (threads)
    A barrier opens when the last kernel before it has ended. Where a machine does other things too
    some steps last longer: the mean is that of the fastest quarter.
    """
    n_phases = int(phases.max()) + 1
    n_steps = min(int(found[:, 1].max()) // batch for found in events if len(found))
    n_barriers = n_steps * n_phases
    ends = np.zeros((len(events), n_barriers), np.int64)
    kernels = np.zeros((len(events), n_steps, len(phases)))
    for t, found in enumerate(events):
        found = found[found[:, 1] < n_steps * batch]
        places, steps = found[:, 0], found[:, 1] // batch
        np.maximum.at(ends[t], steps * n_phases + phases[places], found[:, 3])
        np.add.at(kernels[t], (steps, places), found[:, 3] - found[:, 2])
    began = min(int(found[0, 2]) for found in events if len(found))
    opens = np.maximum.accumulate(np.maximum(ends.max(axis=0), began))
    before = np.concatenate([[began], opens[:-1]])
    waiting = opens - np.maximum(ends, before)
    shape = len(events), n_steps, n_phases
    waited, length = waiting.reshape(shape).sum(-1), (opens - before).reshape(shape[1:]).sum(-1)
    fast = length <= np.quantile(length, 0.25)
    used, step = kernels[:, fast].mean(axis=1), length[fast].mean()
    waiting = waited[:, fast].mean(axis=1)
    return used, waiting, step - used.sum(axis=1) - waiting, step


def step_profile(network, x, y, loss, batch_size, optimizer, threads, lengths=None) -> StepProfile:
    """Take training steps on the samples, and see where their time goes; see StepProfile.

    lengths   of sequences, checked
    Raises ValueError for LBFGS, which takes no steps of batches, ArithmeticError where the loss of
    the first batch is not finite, RuntimeError where not all threads come.
    """
    if is_lbfgs(optimizer):
        raise ValueError(
            "profile measures steps of batches, and LBFGS takes all samples at once; pass another "
            "optimizer, such as 'adam'"
        )
    given = optimizer or network.optimizer
    optimizer = optimizers.optimizer("adam" if given is None or is_lbfgs(given) else given)
    x, y, classes = network.check_data(x, y, loss, lengths=lengths)
    batch = min(batch_size, len(x))
    samples = len(x) // batch * batch
    flops = 3 * sum(op.flops for op in network.layer_ops()) * batch
    asked, most = threads or network.threads, max_threads()
    threads = min(network.executors.threads(threads, flops), most)
    reason = ""
    if asked and threads < asked:
        reason = f"; {threads} of {asked} threads, no more can be used here"
    elif not asked and threads < most:
        reason = (
            f"; of {most} threads as many as in fit, for its arithmetic: threads={most} takes all"
        )
    ops, loss_op, correct_op = network.loss_ops(
        loss, layout(x), y.dtype, classes, samples=samples, batches=samples // batch, training=True
    )
    executor = TrainingExecutor(
        ops,
        network.dtype,
        batch=batch,
        threads=threads,
        loss_op=loss_op,
        correct_op=correct_op,
        optimizer=optimizer,
    )
    executor.allocate_grads(keep=executor.keeps_gradients)
    bind_inputs(executor, x)
    executor.bind(TARGETS, y)
    executor.bind(LENGTHS, lengths)
    params = network.memory.copy()
    state = optimizer.initial_state(params[: network.parameters.size])
    executor.call[CALL.state] = state.ctypes.data

    def run(steps: int) -> float:
        """Seconds of a step, from so many; the samples come again and again."""
        params[:], state[:] = network.memory, optimizer.initial_state(network.parameters)
        order = np.resize(np.arange(samples), steps * batch)
        executor.bind(PERMUTATION, order)
        executor.call[CALL.epoch_samples] = len(order)
        for _ in range(ATTEMPTS):
            began = time.perf_counter()
            reached = executor.try_batches(engine.train, params, 0, steps, threads)
            if reached == steps:
                return (time.perf_counter() - began) / steps
            if reached >= 0:
                raise ArithmeticError(
                    f"profile: the loss of step {reached + 1} is not a finite number; pass an "
                    "optimizer with a lower learning rate, or see network.diagnose(x, y)"
                )
        raise RuntimeError(
            f"profile: {threads} threads did not all come, the machine is busy; try again, or pass "
            "threads=1"
        )

    try:
        seconds = run(4)
        plain = min(run(max(4, int(0.1 * STEP_SECONDS / seconds))) for _ in range(10))
        logs = _install_clocks(executor)
        run(4)
        most = MAX_EVENTS // max(1, *(int(log[0]) // 4 for log in logs))
        for log in logs:
            log[0] = 0
        first, began = _ticks(), time.perf_counter()
        run(max(4, min(most - 1, int(STEP_SECONDS / plain))))
        scale = 1e6 * (time.perf_counter() - began) / (_ticks() - first)
    finally:
        executor.release()
    plan, events = executor.plan, [_events(log) for log in logs]
    used, waiting, between, step = account(events, _phases(plan, executor.keeps_gradients), batch)
    found: dict[tuple[str, str], np.ndarray] = {}
    for row, (layer, verbs) in _named_rows(plan, type(optimizer).__name__).items():
        for name, verb in verbs.items():
            time_of = scale * used[:, row * N_VERBS + verb]
            if time_of.any():
                key = (layer, name)
                found[key] = found.get(key, 0) + time_of
    return StepProfile(
        batch, found, scale * waiting, scale * between, float(scale * step), 1e6 * plain, reason
    )


def profile(
    network, x, y, loss=None, batch_size=128, optimizer=None, threads=None, lengths=None
) -> Profile:
    """Measure every verb of a training step on the first `batch_size` samples, and whole steps.

    The network and the data are left unchanged.
    """
    chosen, lengths = network.resolve_loss(loss), network.check_lengths(lengths, np.shape(x)[0])
    most = MOST_BATCHES * batch_size
    first, used = (None if lengths is None else lengths[:n] for n in (batch_size, most))
    step = step_profile(network, x[:most], y[:most], chosen, batch_size, optimizer, threads, used)
    x, y, classes = network.check_data(x[:batch_size], y[:batch_size], chosen, lengths=first)
    ops, loss_op, _ = network.loss_ops(
        chosen, layout(x), y.dtype, False, samples=len(x), batches=1, training=True
    )
    executor = GradientExecutor(ops, network.dtype, batch=len(x), threads=1, loss_op=loss_op)
    params = network.memory.copy()
    bind_inputs(executor, x)
    executor.bind(TARGETS, y)
    executor.bind(LENGTHS, first)
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
    return Profile(found, before, peak(network.dtype), step)
