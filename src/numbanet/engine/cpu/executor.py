"""Machines: a plan with its memories, and the calls of the engine that work on them. Allocated once and used again."""

import time

import numpy as np

from numbanet.backend.threads import max_threads
from numbanet.engine.cpu import kernels as cpu
from numbanet.nn import data
from numbanet.nn.optimizers import N_STATE
from numbanet.plan.columns import ATTRS, FORWARD, GRADIENT, Plan, float64_bits


class Executor:
    """A plan with its memories: what one kind of call on one network needs, allocated once and used again."""

    def __init__(self, plan: Plan, dtype, grads: int = 0, loss_op=None, hits_op=None):
        self.plan, self.loss_op, self.correct_op = plan, loss_op, hits_op
        self.acts = np.zeros(plan.n_acts, dtype)
        self.deltas = np.zeros(plan.n_deltas, dtype)
        self.grads = np.zeros(grads, dtype)
        self.metric_sums = np.zeros(2)
        self.barrier = np.zeros(cpu.BARRIER_SIZE, np.int64)
        self._keep: dict = {}
        self.run = np.zeros(24, np.int64)
        arrays = ((cpu.TABLES, plan.tables), (cpu.PHASES, plan.phases), (cpu.TASKS, plan.tasks), (cpu.BOUNDS, plan.task_bounds),
                  (cpu.SUMS, self.metric_sums), (cpu.BARRIER, self.barrier))
        for column, array in arrays:
            self.run[column] = array.ctypes.data
        self.run[cpu.TABLE_ROWS], self.run[cpu.N_PHASES] = plan.tables.shape[1], len(plan.phases)
        self.run[cpu.N_SPLITS] = plan.n_split_k
        self.run[cpu.BATCH], self.run[cpu.MICRO_BATCH], self.run[cpu.THREADS] = plan.batch, plan.micro_batch, plan.threads
        for column, op in ((cpu.LOSSES, loss_op), (cpu.CORRECT, hits_op)):
            self.run[column] = plan.offsets[op] if op is not None else -1

    def bind(self, column: int, array: np.ndarray | None) -> None:
        """Let the plan read (or write) a contiguous array of the caller's; None unbinds."""
        self._keep[column] = array
        self.plan.set_context(column, array.ctypes.data if array is not None else 0)

    def release(self) -> None:
        """Unbind all data: neither the network nor the plan keeps the caller's arrays."""
        for column in self._keep:
            self.plan.set_context(column, 0)
        self._keep.clear()

    def work(self, kernel, params, first: int, last: int, workers: int) -> int:
        """Let a kernel of the engine do batches first … last − 1 and return the one it reached.

        Where the workers do not all come (the machine is busy, or the threading layer has fewer than it said), one does it.
        """
        plan, address = self.plan, kernel.address(self.acts.dtype)
        self._guard(params, plan.n_params + sum(op.buffers for op in plan.ops), "parameters")
        self.run[cpu.FIRST], self.run[cpu.LAST] = first, last
        workers = min(cpu.usable_threads(workers), max_threads())
        while True:
            self.barrier[: cpu.CPU_IDS] = 0
            self.barrier[cpu.BATCHES_DONE] = -1
            cpu.run_parallel(address, self.run, params, self.grads, self.acts, self.deltas, workers, plan.threads)
            if self.barrier[cpu.BATCHES_DONE] >= 0 or workers == 1:
                return int(self.barrier[cpu.BATCHES_DONE])
            workers = 1


    def _guard(self, array, count: int, what: str) -> None:
        """RuntimeError unless an array is what the plan was made for: native code trusts its size, and Python can replace it."""
        if array.size != count or array.dtype != self.acts.dtype or not array.flags.c_contiguous:
            raise RuntimeError(f"the network's {what} were replaced while it was in use: {count} numbers of {self.acts.dtype} are "
                               f"needed, got {array.size} of {array.dtype}; write into the array instead")


class TrainingExecutor(Executor):
    """Training by mini-batches: the plan with a loss, and an optimiser in its last row."""

    def __init__(self, plan: Plan, dtype, loss_op, hits_op, optimizer):
        super().__init__(plan, dtype, plan.buffer * plan.threads, loss_op, hits_op)
        self.n_state = len(optimizer.state_names) * plan.n_params
        self.tuner = ThreadTuner(plan.threads)
        self.run[cpu.BUFFER] = plan.buffer
        row = plan.tables[:, -1]
        row[:, FORWARD] = optimizer.begin_step.address(dtype) if optimizer.begin_step else 0
        row[:, GRADIENT] = optimizer.update.address(dtype)
        row[:, N_STATE] = plan.n_params
        self.set_attrs(optimizer.attrs)

    def set_attrs(self, values) -> None:
        """Write the optimiser's hyper-parameters."""
        for i, value in enumerate(values):
            self.plan.tables[:, -1, ATTRS + i] = float64_bits(value)

    def steps(self, params, state, samples: int, first: int, last: int, step: int) -> int:
        """Take steps first … last − 1 of the epoch and return how far it came; sums collects loss, hits and samples."""
        self._guard(state, self.n_state, "optimizer_state")
        self.run[cpu.STATE], self.run[cpu.EPOCH_SAMPLES], self.run[cpu.STEPS_DONE] = state.ctypes.data, samples, step
        began = time.perf_counter()
        reached = self.work(cpu.train, params, first, last, self.tuner.size)
        self.tuner.note((time.perf_counter() - began) / max(1, reached - first))
        return reached

    def slice(self) -> int:
        """How many steps the next native call should take."""
        return self.tuner.slice()


class ThreadTuner:
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
        if self.calls < 2:  # the first call compiles, the second starts threads: what they took says little
            self.size = self.most
            return (1, 8)[self.calls]
        best = min(self.seconds, key=self.seconds.__getitem__)
        if self.calls < 2 + len(choices):
            self.size = choices[self.calls - 2]
            return max(4, int(self.TRIAL / self.seconds[best]))
        trial = len(choices) > 1 and (self.calls + 1) % self.EVERY == 0
        self.size = next(n for n in choices if n != best) if trial else best
        return max(2 if trial else 1, int((self.TRIAL if trial else self.SLICE) / self.seconds[self.size]))

    def note(self, seconds: float) -> None:
        """Take in how long a step of the last call took; a call that was interrupted does not come here and does not count."""
        self.calls += 1
        if self.calls > 1:
            self.seconds[self.size] = max(seconds, 1e-7)


class GradientExecutor(Executor):
    """The gradient of a loss over given samples."""

    def __init__(self, plan: Plan, dtype, loss_op):
        super().__init__(plan, dtype, plan.n_params, loss_op)

    def gradient(self, params, samples: int) -> float:
        """Fill grads and return the summed loss."""
        self.metric_sums[:] = 0
        self.run[cpu.EPOCH_SAMPLES] = samples
        self.work(cpu.differentiate, params, 0, 1, self.plan.threads)
        return float(self.metric_sums[0])


class InferenceExecutor(Executor):
    """Forward passes: outputs, or the sums of loss and hits."""

    def __init__(self, plan: Plan, dtype, loss_op=None, hits_op=None):
        super().__init__(plan, dtype, 0, loss_op, hits_op)
        self.batches_per_call = 1  # batches per native call, adjusted to how long they take
        self.looks = checks_finite(plan)

    def forward(self, params, samples: int) -> tuple[float, float]:
        """Carry all samples through and return the sums of loss and hits (0 without a loss)."""
        self.metric_sums[:] = 0
        self.run[cpu.EPOCH_SAMPLES] = samples
        batches, done = -(-samples // self.plan.batch), 0
        while done < batches:
            began = time.perf_counter()
            last = min(batches, done + self.batches_per_call)
            self.work(cpu.forward, params, done, last, self.plan.threads)
            if batches > 1:
                seconds = (time.perf_counter() - began) / (last - done)
                self.batches_per_call = int(min(4 * self.batches_per_call, max(1, ThreadTuner.SLICE / max(seconds, 1e-7))))
            done = last
        return float(self.metric_sums[0]), float(self.metric_sums[1])


    def finite(self) -> bool:
        """Whether all inputs of the last call were finite, where the machine `looks`."""
        found = self.plan.tables[:, 1, data.NONFINITE]
        result = not found.any()
        found[:] = 0
        return result


def checks_finite(plan: Plan) -> bool:
    """Whether the plan's inputs are read where they lie and looked at for NaN and infinity."""
    return plan.ops[0].forward is data.inputs_zero_copy


class SmallBatchInference(Executor):
    """Predictions of a few samples with as little around them as possible: one thread, one native call."""

    def __init__(self, plan: Plan, dtype):
        super().__init__(plan, dtype)
        self.most = plan.batch
        self.call = cpu.predict_small.compiled
        self.looks, self.found = checks_finite(plan), plan.tables[0, 1, data.NONFINITE :]

    def __call__(self, x, outputs, params) -> bool:
        """Write the outputs of contiguous samples; False if an input is not finite."""
        if not self.call(x, outputs, self.run, params, self.acts, not self.looks):
            return False
        if self.looks and self.found[0]:
            self.found[0] = 0
            return False
        return True
