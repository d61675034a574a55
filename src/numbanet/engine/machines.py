"""Machines: a plan with its memories, and the calls of the engine that work on them. Allocated once and used again."""

import time

import numpy as np

from numbanet._jit import max_threads
from numbanet.engine.cpu import MEETING, PLACES, direct_call, forward, gradient, run, train, usable_threads
from numbanet.plan import COUNT, FORWARD, GRADIENT, OWN, Plan, real_bits


class Memory:
    """A plan with its memories: what one kind of call on one network needs, allocated once and used again."""

    def __init__(self, plan: Plan, dtype, grads: int = 0):
        self.plan = plan
        self.acts = np.zeros(plan.n_acts, dtype)
        self.deltas = np.zeros(plan.n_deltas, dtype)
        self.grads = np.zeros(grads, dtype)
        self.sums = np.zeros(3)
        self._keep: dict = {}

    def bind(self, column: int, array: np.ndarray | None) -> None:
        """Let the plan read (or write) a contiguous array of the caller's; None unbinds."""
        self._keep[column] = array
        self.plan.set_clock(column, array.ctypes.data if array is not None else 0)

    def release(self) -> None:
        """Unbind all data: neither the network nor the plan keeps the caller's arrays."""
        for column in self._keep:
            self.plan.set_clock(column, 0)
        self._keep.clear()

    def layout(self, samples: int, losses=None, hits=None, buffer: int = 0):
        plan = self.plan
        offsets = (plan.offsets[op] if op is not None else -1 for op in (losses, hits))
        return (samples, plan.batch, plan.block, plan.threads, *offsets, buffer)


class Trainer(Memory):
    """Training by mini-batches: the plan with a loss, and an optimiser in its last row."""

    def __init__(self, plan: Plan, dtype, loss_op, hits_op, optimizer):
        super().__init__(plan, dtype, grads=plan.buffer * plan.threads)
        self.loss_op, self.hits_op = loss_op, hits_op
        self.meeting = np.zeros(MEETING, np.int64)
        self.team = Team(plan.threads)
        row = plan.tables[:, -1]
        row[:, FORWARD] = optimizer.prepare.address(dtype) if optimizer.prepare else 0
        row[:, GRADIENT] = optimizer.update.address(dtype)
        row[:, COUNT] = plan.n_params
        self.set_own(optimizer.own)

    def set_own(self, values) -> None:
        """Write the optimiser's hyper-parameters."""
        for i, value in enumerate(values):
            self.plan.tables[:, -1, OWN + i] = real_bits(value)

    def steps(self, params, state, samples: int, first: int, last: int, step: int) -> int:
        """Take steps first … last − 1 of the epoch and return how far it came; sums collects loss, hits and samples."""
        plan, workers = self.plan, min(usable_threads(self.team.size), max_threads())
        layout = self.layout(samples, self.loss_op, self.hits_op, plan.buffer)
        began = time.perf_counter()
        while True:
            self.meeting[:PLACES] = 0
            reached = run(train, workers, plan.tables, plan.phases, plan.tasks, plan.bounds, params, self.grads, self.acts,
                           self.deltas, state, layout, first, last, step, self.sums, self.meeting, workers, most=plan.threads)
            if reached >= 0:
                break
            workers = 1  # the others did not come: the machine is busy, or the threading layer has fewer threads than it said
        self.team.note((time.perf_counter() - began) / max(1, reached - first))
        return reached

    def slice(self) -> int:
        """How many steps the next native call should take."""
        return self.team.slice()


class Team:
    """Chooses how many threads work: all, or one where meeting costs more than it brings (small steps, a busy machine).

    The weights are the same bits either way, so both are tried now and then, and the faster one is kept.
    """

    SLICE = 0.05
    """Seconds that one native call should last, so that Ctrl-C and progress are never far."""
    TRIAL = 0.002
    """Seconds of a trial of the other choice."""
    EVERY = 20
    """Slices between trials."""

    def __init__(self, most: int):
        self.most, self.size, self.calls = most, most, 0
        self.seconds: dict[int, float] = {}

    def slice(self) -> int:
        """Choose the size for the next call and return its number of steps."""
        choices = (self.most, 1) if self.most > 1 else (1,)
        untried = [n for n in choices if n not in self.seconds]
        if not self.calls:  # the first call compiles and starts threads; what it took says nothing
            untried = [self.most]
        best = min(self.seconds, key=self.seconds.__getitem__, default=self.most)
        self.calls += 1
        if self.calls == 1 or untried:
            self.size = untried[0]
            return 1 if self.calls == 1 else 4 if not self.seconds else max(2, int(self.TRIAL / self.seconds[best]))
        trial = len(choices) > 1 and self.calls % self.EVERY == 0
        self.size = next(n for n in choices if n != best) if trial else best
        return max(2 if trial else 1, int((self.TRIAL if trial else self.SLICE) / self.seconds[self.size]))

    def note(self, seconds: float) -> None:
        """Take in how long a step of the last call took."""
        if self.calls > 1:
            self.seconds[self.size] = max(seconds, 1e-7)


class Differentiator(Memory):
    """The gradient of a loss over given samples."""

    def __init__(self, plan: Plan, dtype, loss_op):
        super().__init__(plan, dtype, grads=plan.n_params)
        self.loss_op = loss_op

    def gradient(self, params, samples: int) -> float:
        """Fill grads and return the summed loss."""
        plan = self.plan
        self.sums[:] = 0
        run(gradient, plan.threads, plan.tables, plan.phases, plan.tasks, plan.bounds, params, self.grads, self.acts, self.deltas,
             self.layout(samples, self.loss_op), 0, samples, self.sums)
        return float(self.sums[0])


class Predictor(Memory):
    """Forward passes: outputs, or the sums of loss and hits."""

    def __init__(self, plan: Plan, dtype, loss_op=None, hits_op=None):
        super().__init__(plan, dtype)
        self.loss_op, self.hits_op = loss_op, hits_op
        self.pace = 1  # batches per native call, adjusted to how long they take

    def forward(self, params, samples: int) -> tuple[float, float]:
        """Carry all samples through and return the sums of loss and hits (0 without a loss)."""
        plan, layout = self.plan, self.layout(samples, self.loss_op, self.hits_op)
        self.sums[:] = 0
        batches, done = -(-samples // plan.batch), 0
        while done < batches:
            began = time.perf_counter()
            last = min(batches, done + self.pace)
            run(forward, plan.threads, plan.tables, plan.phases, params, self.acts, layout, done, last, self.sums)
            if batches > 1:
                seconds = (time.perf_counter() - began) / (last - done)
                self.pace = int(min(4 * self.pace, max(1, Team.SLICE / max(seconds, 1e-7))))
            done = last
        return float(self.sums[0]), float(self.sums[1])


class Direct(Memory):
    """Predictions of a few samples with as little around them as possible: one thread, one native call."""

    def __init__(self, plan: Plan, dtype):
        super().__init__(plan, dtype)
        self.most = plan.batch
        self.call = direct_call.compiled
        self.rest = (plan.tables, plan.phases)

    def __call__(self, x, outputs, params) -> bool:
        """Write the outputs of contiguous samples; False if an input is not finite."""
        return self.call(x, outputs, *self.rest, params, self.acts, self.plan.block)
