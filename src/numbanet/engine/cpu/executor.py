"""Executors of the CPU engine: a plan with its memories, and the calls that use them.

The memories are allocated once."""

import math
import time

import numpy as np

from numbanet.backend.ahead import Unit
from numbanet.backend.intrinsics import CACHE_LINE
from numbanet.backend.jit import Kernel, units
from numbanet.backend.permutation import shuffle_unit
from numbanet.backend.threads import max_threads
from numbanet.engine.cpu import kernels
from numbanet.engine.cpu.kernels import APPLY_GRADIENTS, CALL, TAKE_GRADIENTS
from numbanet.engine.cpu.tuner import CALL_SECONDS, ThreadTuner
from numbanet.io.fields import fits
from numbanet.nn import data
from numbanet.plan.columns import EPOCH, PERMUTATION
from numbanet.plan.lower import lower

MOST_EPOCHS = 16
"""Epochs that one native call of a training may go through."""
CONTEXT = [EPOCH, PERMUTATION]
"""What changes from epoch to epoch in the context of a call."""
SURE_FLOPS = 5e9
"""Operations per second that any core reaches: a step that would last long at this rate is cut."""


def allocate(n_elements: int, dtype) -> np.ndarray:
    """A memory of the engine, zeros; it begins with a cache line."""
    padding = CACHE_LINE // np.dtype(dtype).itemsize
    memory = np.zeros(n_elements + padding, dtype)
    first = -memory.ctypes.data % CACHE_LINE // memory.itemsize
    return memory[first : first + n_elements]


class Executor:
    """A plan with its memories: what one kind of call on one network needs.

    ops             from the op that copies the inputs to the loss or the op that writes outputs
    batch, threads  most samples at once, and copies of the table; see `lower`
    also            kernels that are compiled beside those of the ops
    """

    kernel: Kernel
    """The engine's kernel that does the batches."""

    def __init__(
        self,
        ops,
        dtype,
        *,
        batch: int,
        threads: int,
        train: bool = False,
        loss_op=None,
        correct_op=None,
        also=(),
    ):
        self.loss_op, self.correct_op = loss_op, correct_op
        also = [*self.engine_units(dtype, threads), *units(also, dtype)]
        self.plan = plan = lower(ops, dtype, batch=batch, threads=threads, train=train, also=also)
        elements = plan.n_acts + plan.n_deltas
        fits(elements, elements * np.dtype(dtype).itemsize, f"the activations of {batch} samples")
        self.acts = allocate(plan.n_acts, dtype)
        self.deltas = allocate(plan.n_deltas, dtype)
        self.grads = allocate(0, dtype)
        self.sums = np.zeros((MOST_EPOCHS if train else 1, kernels.N_SUMS))
        self.metric_sums = self.sums[0]
        self.tuner = ThreadTuner(plan.threads)
        self.barrier = np.zeros(kernels.BARRIER_SIZE, np.int64)
        self._bound: dict[int, np.ndarray] = {}
        self.call = np.zeros(len(CALL), np.int64)
        for column, array in (
            (CALL.tables, plan.tables),
            (CALL.schedule, plan.schedule),
            (CALL.phases, plan.phases),
            (CALL.tasks, plan.tasks),
            (CALL.task_bounds, plan.task_bounds),
            (CALL.metric_sums, self.metric_sums),
            (CALL.barrier, self.barrier),
        ):
            self.call[column] = array.ctypes.data
        self.call[CALL.table_rows], self.call[CALL.n_phases] = (
            plan.tables.shape[1],
            len(plan.phases),
        )
        self.call[CALL.by_chunk], self.call[CALL.threads] = plan.by_chunk, plan.threads
        self.call[CALL.n_tasks], self.call[CALL.accumulate] = len(plan.tasks), 1
        self.call[CALL.optimizer_row] = plan.tables.shape[1] - len(plan.groups)
        self.call[CALL.batch], self.call[CALL.micro_batch] = plan.batch, plan.micro_batch
        for column, op in ((CALL.losses, loss_op), (CALL.correct, correct_op)):
            self.call[column] = plan.offsets[op] if op is not None else -1

    def engine_units(self, dtype, threads: int) -> list[Unit]:
        """What has to be compiled besides kernels of the ops."""
        return kernels.engine_units(self.kernel, dtype, threads)

    def bind(self, column: int, array: np.ndarray | None) -> None:
        """Let the plan read (or write) a contiguous array of the caller's; None unbinds."""
        if self._bound.get(column) is array:
            return
        if array is None:
            del self._bound[column]
        else:
            self._bound[column] = array
        self.plan.set_context(column, array.ctypes.data if array is not None else 0)

    def release(self) -> None:
        """Unbind all data: neither the network nor the plan keeps the caller's arrays."""
        for column in self._bound:
            self.plan.set_context(column, 0)
        self._bound.clear()

    def run_batches(self, kernel, params, first: int, last: int, workers: int) -> int:
        """Let a kernel of the engine do batches first … last − 1 and return the one it reached.

        Where the workers do not all come (the machine is busy, or the threading layer has fewer
        threads than it said), one does it.
        """
        workers = min(kernels.usable_threads(workers), max_threads(), kernels.MAX_WORKERS)
        reached = self.try_batches(kernel, params, first, last, workers)
        if reached < 0 and workers > 1:
            reached = self.try_batches(kernel, params, first, last, 1)
        return reached

    def timed_batches(self, params, first: int, last: int) -> int:
        """Do batches with the tuner's choice of threads, which learns how long one took."""
        began = time.perf_counter()
        reached = self.run_batches(self.kernel, params, first, last, self.tuner.size)
        done = reached - first
        self.tuner.record((time.perf_counter() - began) / max(1, done), done)
        return reached

    def try_batches(self, kernel, params, first: int, last: int, workers: int) -> int:
        """The same with exactly so many workers; −1, and nothing done, if they do not all come."""
        self._check_array(params, self.plan.n_memory, "parameters")
        self.call[CALL.first], self.call[CALL.last] = first, last
        kernel_address = kernel.address(self.acts.dtype)
        memories = params, self.grads, self.acts, self.deltas
        self.barrier[: kernels.CPU_IDS] = 0
        self.barrier[kernels.BATCHES_DONE] = -1
        kernels.run_parallel(kernel_address, self.call, memories, workers, self.plan.threads)
        return int(self.barrier[kernels.BATCHES_DONE])

    def _check_array(self, array, n_elements: int, what: str) -> None:
        """RuntimeError unless an array has at least the size that the plan was made for.

        Native code does not check it.
        """
        if (
            array.size < n_elements
            or array.dtype != self.acts.dtype
            or not array.flags.c_contiguous
        ):
            raise RuntimeError(
                f"the network's {what} were replaced while it was in use: {n_elements} elements of "
                f"{self.acts.dtype} are needed, got {array.size} of {array.dtype}; write into the "
                "array instead"
            )


class _StepExecutor(Executor):
    """An executor whose step may take so long that it is cut into several native calls.

    Between two calls Ctrl-C is heard. Until the last one, which applies the gradients, nothing of
    the network has changed, so an interrupted step leaves no trace.
    """

    def __init__(self, ops, dtype, *, batch, threads, loss_op, correct_op=None, also=()):
        super().__init__(
            ops,
            dtype,
            batch=batch,
            threads=threads,
            train=True,
            loss_op=loss_op,
            correct_op=correct_op,
            also=also,
        )
        flops = 3 * batch * sum(op.flops for op in self.plan.ops)
        self.step_seconds = flops / SURE_FLOPS / threads
        parts = self.plan.chunks if self.plan.by_chunk else -(-batch // self.plan.micro_batch)
        self.most_pieces = max(1, parts // threads, len(self.plan.tasks) // threads)

    @property
    def long_steps(self) -> bool:
        """Whether a step lasts longer than a native call should."""
        return self.step_seconds > 2 * CALL_SECONDS

    def run_in_pieces(self, params, batch: int, *, apply: bool) -> bool:
        """One step in pieces; False, and nothing changed, if its loss is not finite."""
        began = time.perf_counter()
        wanted = math.ceil(self.step_seconds / CALL_SECONDS)
        n_pieces = max(1, min(wanted, self.most_pieces))
        self.allocate_grads(keep=True)
        for stage in range(len(self.plan.phases)):
            self._run_stage(params, batch, stage, n_pieces)
        if not math.isfinite(kernels.batch_loss(self.call, self.acts)):
            return False
        self._run_stage(params, batch, TAKE_GRADIENTS, n_pieces)
        if apply:
            self._run_stage(params, batch, APPLY_GRADIENTS, 1)
        self.step_seconds = time.perf_counter() - began
        return True

    def allocate_grads(self, *, keep: bool) -> None:
        """Make room for all gradients, or for one task of each thread, or for both."""
        needed = self.arrange_grads(keep=keep)
        if self.grads.size < needed:
            self.grads = allocate(needed, self.acts.dtype)

    def arrange_grads(self, *, keep: bool) -> int:
        """Write what lies in the memory of the gradients; the number of its elements.

        A thread needs room of its own unless all gradients are kept, and even then where those of
        several batches are added up.
        """
        buffered = not keep or self.call[CALL.accumulate] > 1
        n_kept = self.plan.n_params if keep else 0
        task_size = self.plan.task_size if buffered else 0
        self.call[CALL.n_kept], self.call[CALL.task_size] = n_kept, task_size
        return n_kept + task_size * self.plan.threads

    def _run_stage(self, params, batch: int, stage: int, n_pieces: int) -> None:
        self.call[CALL.stage], self.call[CALL.n_pieces] = stage, n_pieces
        for piece in range(n_pieces):
            self.call[CALL.piece] = piece
            self.run_batches(kernels.run_stage, params, batch, batch + 1, self.plan.threads)


class TrainingExecutor(_StepExecutor):
    """Training by mini-batches: a plan with a loss, and an optimiser in its last rows."""

    kernel = kernels.train

    def __init__(self, ops, dtype, *, batch, threads, loss_op, correct_op, optimizer):
        groups = {op.group for op in ops if op.trained}
        super().__init__(
            ops,
            dtype,
            batch=batch,
            threads=threads,
            loss_op=loss_op,
            correct_op=correct_op,
            also=[found for group in groups for found in optimizer.kernels(group).values()],
        )
        plan = self.plan
        self.n_state = len(optimizer.vectors) * plan.n_params
        self.keeps_gradients = optimizer.keeps_gradients
        self.call[CALL.accumulate], self.updates = optimizer.accumulate, optimizer.updates
        self.square_sums = np.zeros(len(plan.tasks))
        self.penalty_sums = np.zeros((MOST_EPOCHS, len(plan.tasks)))
        if optimizer.clip_norm is not None:
            self.call[CALL.sum_squares] = kernels.sum_squares.address(dtype)
            self.call[CALL.square_sums] = self.square_sums.ctypes.data
        for k, group in enumerate(plan.groups):
            for column, kernel in optimizer.kernels(group).items():
                plan.optimizer_rows[:, k, column] = kernel.address(dtype)
        self.set_optimizer(optimizer)

    def engine_units(self, dtype, threads: int) -> list[Unit]:
        """The same, and what shuffles the samples of an epoch."""
        return [*super().engine_units(dtype, threads), shuffle_unit()]

    @property
    def reached(self) -> int:
        """The batch that the last call of steps reached, in a call that was interrupted too."""
        return int(self.barrier[kernels.BATCHES_DONE])

    def set_optimizer(self, optimizer) -> None:
        """Write the optimiser's hyper-parameters."""
        optimizer.write_rows(self.plan.optimizer_rows, self.plan.groups, self.plan.n_params)

    def sum_penalties(self) -> None:
        """From now on, add to penalty_sums what the L2 penalties add to the summed loss."""
        self.call[CALL.sum_squares] = kernels.sum_squares.address(self.acts.dtype)
        self.call[CALL.penalty_sums] = self.penalty_sums.ctypes.data

    def steps_per_call(self) -> int:
        """How many steps the next call should take."""
        return 1 if self.long_steps else self.tuner.steps_per_call()

    def steps(self, params, state, samples: int, first: int, last: int, steps_done: int) -> int:
        """Take steps first … last − 1 and return how far it came.

        They go on through the epochs after the bound one. sums collects those of the losses and of
        the correct answers of each.
        """
        self.barrier[kernels.BATCHES_DONE] = -1  # what an earlier epoch reached says nothing
        self._check_array(state, self.n_state, "optimizer_state")
        self.call[CALL.state], self.call[CALL.epoch_samples] = state.ctypes.data, samples
        batches = -(-samples // self.plan.batch)
        before = self.updates(first, batches)
        self.call[CALL.steps_done] = steps_done - before
        several, bound = last > batches, self.plan.tables[0, 0, CONTEXT]
        if several:
            assert last <= len(self.sums) * batches
            self.call[[CALL.epoch, CALL.permutation]] = bound
        try:
            apply = self.updates(first + 1, batches) > before
            return self._steps(params, first, last, apply)
        finally:
            if several:
                self.plan.tables[:, 0, CONTEXT] = bound

    def _steps(self, params, first: int, last: int, apply: bool) -> int:
        """Take them, and return how far it came; `apply` the gradients of a long one."""
        if self.long_steps:
            assert last == first + 1
            return last if self.run_in_pieces(params, first, apply=apply) else first
        self.allocate_grads(keep=self.keeps_gradients)
        reached = self.timed_batches(params, first, last)
        if self.tuner.calls > 1:
            self.step_seconds = self.tuner.latest[self.tuner.size]
        return reached

    def publish(self) -> None:
        """Nothing: steps work on the network's own arrays."""


class GradientExecutor(_StepExecutor):
    """The gradient of a loss over given samples."""

    kernel = kernels.differentiate

    def __init__(self, ops, dtype, *, batch, threads, loss_op):
        super().__init__(ops, dtype, batch=batch, threads=threads, loss_op=loss_op)
        self.allocate_grads(keep=True)

    def gradient(self, params, samples: int) -> float:
        """Fill grads and return the summed loss."""
        self.metric_sums[:] = 0
        self.call[CALL.epoch_samples] = samples
        if not self.long_steps:
            self.tuner.steps_per_call()  # one: for the size
            self.timed_batches(params, 0, 1)
        elif not self.run_in_pieces(params, 0, apply=False):
            self._run_stage(params, 0, TAKE_GRADIENTS, 1)
        return float(self.metric_sums[0])


class InferenceExecutor(Executor):
    """Forward passes: outputs, or the sums of loss and correct answers."""

    kernel = kernels.infer
    evaluation_batch = 1024
    """Samples that a prediction or an evaluation carries at once."""

    def __init__(self, ops, dtype, *, batch, threads, loss_op=None, correct_op=None):
        super().__init__(
            ops, dtype, batch=batch, threads=threads, loss_op=loss_op, correct_op=correct_op
        )
        self.checks_finite = self.plan.ops[0].forward is data.inputs_zero_copy

    def infer(self, params, samples: int) -> tuple[float, float]:
        """Carry all samples through; the sums of loss and correct answers (0 without a loss)."""
        self.metric_sums[:] = 0
        self.call[CALL.epoch_samples] = samples
        batches, done = -(-samples // self.plan.batch), 0
        while done < batches:
            last = min(batches, done + self.tuner.steps_per_call())
            self.timed_batches(params, done, last)
            done = last
        return float(self.metric_sums[0]), float(self.metric_sums[1])

    def inputs_finite(self) -> bool:
        """Whether all inputs of the last call were finite, where the executor `checks_finite`."""
        nonfinite = self.plan.tables[:, 1, data.NONFINITE]
        if nonfinite.any():
            nonfinite[:] = 0
            return False
        return True


class SmallBatchInference(InferenceExecutor):
    """Predictions of a few samples with little overhead: one thread, one native call."""

    def __init__(self, ops, dtype, *, batch):
        super().__init__(ops, dtype, batch=batch, threads=1)
        self.most = batch
        self._predict = kernels.predict_small.compiled
        self._nonfinite = self.plan.tables[0, 1, data.NONFINITE :]

    def engine_units(self, dtype, threads: int) -> list[Unit]:
        """Nothing: `predict_small` is compiled for its arguments."""
        return []

    def __call__(self, x, outputs, params) -> bool:
        """Write the outputs of contiguous samples; False if an input or output is not finite."""
        if not self._predict(x, outputs, self.call, params, self.acts, not self.checks_finite):
            return False
        if self.checks_finite and self._nonfinite[0]:
            self._nonfinite[0] = 0
            return False
        return True
