"""Executors of the CUDA engine: a plan with its memories on the GPU, and its launches.

They have the interface of those of the CPU (engine/executors.py). Parameters and the optimiser's
state are copied to the GPU when an epoch begins, and to the host when it ends or is interrupted
between two calls. After an error on the GPU the host's are those from before the epoch.
"""

import time

import numpy as np

from numbanet.backend.cuda import driver
from numbanet.backend.cuda.driver import CudaError, DeviceBuffer
from numbanet.engine.cuda import kernels, launch
from numbanet.engine.cuda.kernels import CALL, CONTEXT_COLUMNS
from numbanet.engine.cuda.launch import LaunchMode
from numbanet.nn.steering import AVERAGE, CLIP, DECAY, UPDATE
from numbanet.plan.columns import OUTPUTS, STATE
from numbanet.plan.lower import lower
from numbanet.plan.plan import Plan

CALL_SECONDS = 0.05
"""Seconds that one call of steps should last."""
UPDATE_BLOCKS = 4
"""Blocks for the update of a task."""


def lower_for_gpu(ops, dtype, batch: int, train: bool) -> tuple[Plan, LaunchMode, int]:
    """The plan of these ops for the GPU, its launch mode, and the number of blocks in a group."""
    mode = launch.choose_launch_mode(ops, batch, train)
    mode = LaunchMode.PER_OP if launch.SYNC_EVERY_OP else mode
    groups, blocks = launch.grid_shape(ops, batch, mode)
    return lower(ops, dtype, batch=batch, threads=groups, train=train, target="cuda"), mode, blocks


class Executor:
    """A plan with its memories on the GPU."""

    def __init__(
        self,
        ops,
        dtype,
        *,
        batch: int,
        threads: int = 1,
        train: bool = False,
        n_state_vectors: int = 0,
        accumulate: int = 1,
        loss_op=None,
        correct_op=None,
    ):
        driver.require_gpu()
        self.plan, self.mode, self.blocks = lower_for_gpu(ops, dtype, batch, train)
        plan, self.dtype, self.loss_op, self.correct_op = (
            self.plan,
            np.dtype(dtype),
            loss_op,
            correct_op,
        )
        self.gradient_verbs = kernels.gradient_verbs(plan) if train else ()
        sizes = {
            CALL.params: plan.n_memory,
            CALL.grads: plan.n_params * (1 + (accumulate > 1)) if train else 0,
            CALL.acts: plan.n_acts,
            CALL.deltas: plan.n_deltas,
            CALL.state: n_state_vectors * plan.n_params,
        }
        check_memory(
            sum(sizes.values()) * self.dtype.itemsize + plan.tables.nbytes + plan.tasks.nbytes,
            f"this network with batches of {batch}",
            "a smaller batch_size",
        )
        self.buffers = {column: DeviceBuffer(size, dtype) for column, size in sizes.items()}
        self.buffers[CALL.metric_sums] = DeviceBuffer(2, np.float64)
        self.buffers[CALL.tables] = DeviceBuffer(plan.tables.size, np.int64)
        self.buffers[CALL.tasks] = DeviceBuffer(plan.tasks.size, np.int64)
        self.buffers[CALL.tasks].upload(plan.tasks)
        self.buffers[CALL.square_sums] = DeviceBuffer(len(plan.tasks), np.float64)
        self.call, self.device_call = (
            np.zeros(len(CALL), np.int64),
            DeviceBuffer(len(CALL), np.int64),
        )
        for column, buffer in self.buffers.items():
            self.call[column] = buffer.address
        self.call[CALL.table_rows], self.call[CALL.n_tasks] = plan.tables.shape[1], len(plan.tasks)
        self.call[CALL.batch], self.call[CALL.n_chunks] = plan.batch, plan.chunks
        self.call[CALL.accumulate], self.call[CALL.n_params] = accumulate, plan.n_params
        self.call[CALL.optimizer_row] = plan.tables.shape[1] - len(plan.groups)
        for column, op in ((CALL.losses, loss_op), (CALL.correct, correct_op)):
            self.call[column] = plan.offsets[op] if op is not None else -1
        self.sums, self.penalty_sums = np.zeros((1, 2)), np.zeros((1, len(plan.tasks)))
        self.metric_sums = self.sums[0]
        self._bound: dict = {}
        self.phases = [kernels.steps(plan, phase) for phase in range(len(plan.phases))]
        self.tables_written = False

    def bind(self, column: int, array: np.ndarray | None) -> None:
        """Copy an array of the caller to the GPU; None unbinds it.

        For OUTPUTS, device memory is allocated and nothing is copied.
        """
        self._bound.pop(column, None)
        if array is not None:
            check_memory(array.nbytes, f"data of shape {array.shape}", "fewer samples at a time")
            buffer = DeviceBuffer(array.size, array.dtype)
            if column != OUTPUTS:
                buffer.upload(array)
            self._bound[column] = (array, buffer)
        self.plan.set_context(column, self._bound[column][1].address if array is not None else 0)

    def download_state(self) -> None:
        """Copy the state of the sequences to the caller's array, where one is bound."""
        if STATE in self._bound:
            state, buffer = self._bound[STATE]
            buffer.download(state)

    def release(self) -> None:
        """Free the copies of the data on the GPU."""
        for column in list(self._bound):
            self.bind(column, None)

    def upload_call(self, samples: int, steps_done: int = 0) -> None:
        """Write tables, call and sums to the GPU."""
        if not self.tables_written:
            self.buffers[CALL.tables].upload(self.plan.tables)
            self.tables_written = True
        self.call[CALL.epoch_samples], self.call[CALL.steps_done] = samples, steps_done
        self.call[CALL.stopped], self.call[CALL.batches_done] = 0, -1
        for column, place in CONTEXT_COLUMNS.items():
            self.call[place] = self.plan.tables[0, 0, column]
        self.device_call.upload(self.call)
        for column, sums in self._sums():
            self.buffers[column].upload(sums)

    def download_call(self) -> None:
        """Wait for the GPU, and read what it wrote into call and sums."""
        self.device_call.download(self.call)
        for column, sums in self._sums():
            self.buffers[column].download(sums)

    def _sums(self) -> list[tuple[int, np.ndarray]]:
        """Sums over batches, on the GPU and here."""
        penalties = [(CALL.penalty_sums, self.penalty_sums)]
        return [
            (CALL.metric_sums, self.metric_sums),
            *(penalties * bool(self.call[CALL.penalty_sums])),
        ]

    def forward_backward(self, begin_step=None):
        """The phases as a function of the batch: the launches of the mode."""
        names = {row: op.name for op, row in self.plan.rows.items()}
        self.launches = []
        for phase in self.phases:
            for found in [[step] for step in phase] if self.mode is LaunchMode.PER_OP else [phase]:
                per_op = self.mode is LaunchMode.PER_OP
                part = kernels.one_step(*found[0][:2]) if per_op else kernels.chain(tuple(found))
                ops = ", ".join(sorted({names[row] for _, _, row in found}))
                kernel = kernels.forward_backward(part, self.dtype.type, begin_step)
                self.launches.append((kernel, found[0][2], ops))

        def run(batch):
            for kernel, row, ops in self.launches:
                self.run_checked(
                    ops,
                    kernel,
                    self.plan.threads,
                    self.blocks,
                    self.device_call.address,
                    batch,
                    row,
                )

        return run

    def run_checked(self, ops: str, work, *args):
        """Run something on the GPU; an error there becomes a CudaError that names the op."""
        try:
            result = work(*args)
            if launch.SYNC_EVERY_OP:
                driver.module().synchronize()
            return result
        except (KeyboardInterrupt, CudaError):
            raise
        except Exception as error:
            hint = (
                ""
                if launch.SYNC_EVERY_OP
                else "; set NUMBANET_CUDA_SYNC=1 to learn which op it was"
            )
            raise CudaError(
                f"the GPU reported an error in {ops}: {error}. The network's parameters are "
                f"those from before it{hint}"
            ) from error


def check_memory(needed: int, what: str, instead: str) -> None:
    """CudaError where the GPU has less memory free than that."""
    free = driver.free_bytes()
    if needed > free:
        raise CudaError(
            f"{what} needs {needed:,} bytes of the GPU's memory, {free:,} are free; choose "
            f'{instead}, or device="cpu"'
        )


class TrainingExecutor(Executor):
    """Training by mini-batches."""

    reached = 0  # the GPU goes on where a call is interrupted: the host's arrays are as before

    def __init__(self, ops, dtype, *, batch, threads, loss_op, correct_op, optimizer):
        super().__init__(
            ops,
            dtype,
            batch=batch,
            train=True,
            n_state_vectors=len(optimizer.vectors),
            accumulate=optimizer.accumulate,
            loss_op=loss_op,
            correct_op=correct_op,
        )
        self.set_optimizer(optimizer)
        kind, begin_step = self.dtype.type, optimizer.begin_step
        found: dict = {}
        for group in self.plan.groups:
            found |= optimizer.kernels(group)
        verbs = tuple(found[c] for c in (CLIP, DECAY, UPDATE, AVERAGE) if c in found)
        accumulates, self.norm = optimizer.accumulate > 1, optimizer.clip_norm is not None
        if self.mode is LaunchMode.SINGLE_BLOCK:
            whole = kernels.chain(tuple(step for phase in self.phases for step in phase))
            self.single_block = kernels.single_block(
                whole, self.gradient_verbs, kind, begin_step, verbs, accumulates, self.norm
            )
        else:
            self.run_phases = self.forward_backward(begin_step)
            self.gradients = kernels.gradients(self.gradient_verbs, kind)
            self.updates = kernels.updates(kind, verbs, accumulates, self.norm)
            if self.norm:
                self.square_sums = kernels.square_sums(kind, accumulates)
                self.gradient_factor = kernels.gradient_factor()
        self.batches_per_call, self.timed = 1, False
        self.device_is_newer: tuple | None = None  # then, the host's parameters and state
        self.host_was_read = True  # and perhaps written: the next call uploads it

    def set_optimizer(self, optimizer) -> None:
        """Write the optimiser's hyper-parameters."""
        optimizer.write_rows(self.plan.optimizer_rows, self.plan.groups, self.plan.n_params)
        self.tables_written = False

    def sum_penalties(self) -> None:
        """From now on, add to penalty_sums what the L2 penalties add to the summed loss."""
        buffer = DeviceBuffer(self.penalty_sums.size, np.float64)
        self.buffers[CALL.penalty_sums], self.call[CALL.penalty_sums] = buffer, buffer.address

    def steps_per_call(self) -> int:
        """How many steps the next call should take, so that Ctrl-C and progress are never far."""
        return self.batches_per_call

    def steps(self, params, state, samples: int, first: int, last: int, steps_done: int) -> int:
        """Take steps first … last − 1 of the epoch and return how far it came.

        Its losses and correct answers are added to metric_sums.
        """
        began = time.perf_counter()
        self.device_is_newer = None  # an error from here on leaves the host's arrays alone
        self.run_checked(
            "the copy to the GPU", self._upload, params, state, samples, first, steps_done
        )
        call = self.device_call.address
        if self.mode is LaunchMode.SINGLE_BLOCK:
            self.run_checked("a small network's steps", self.single_block, 1, 1, call, first, last)
        else:
            tasks = len(self.plan.tasks)
            for batch in range(first, last):
                self.run_phases(batch)
                self.run_checked("a gradient", self.gradients, tasks + 1, self.blocks, call, batch)
                if self.norm:
                    self.run_checked("a norm", self.square_sums, tasks, 1, call, batch)
                    self.run_checked("a norm", self.gradient_factor, 1, 1, call, batch)
                self.run_checked("an update", self.updates, tasks, UPDATE_BLOCKS, call, batch)
        self.run_checked("a step", self.download_call)
        reached = int(self.call[CALL.batches_done]) if self.call[CALL.stopped] else last
        if reached == last:
            self.device_is_newer = params[: self.plan.n_memory], state
            if last * self.plan.batch >= samples:
                self._copy_to_host()
        if self.timed:
            seconds = max(1e-6, time.perf_counter() - began)
            self.batches_per_call = max(1, int(CALL_SECONDS * (last - first) / seconds))
        self.timed = True  # the first call compiles; what it took says nothing
        return reached

    def _upload(self, params, state, samples, first, steps_done):
        if first == 0 or self.host_was_read:
            self.host_was_read = False
            self.buffers[CALL.params].upload(params[: self.plan.n_memory])
            self.buffers[CALL.state].upload(state)
            if STATE in self._bound:
                carried, buffer = self._bound[STATE]
                buffer.upload(carried)
        self.upload_call(samples, steps_done - first // int(self.call[CALL.accumulate]))

    def _copy_to_host(self) -> None:
        """Copy parameters and state to the host, if those on the GPU are newer."""
        if self.device_is_newer is not None:
            params, state = self.device_is_newer
            self.device_is_newer = None
            for column, values in ((CALL.params, params), (CALL.state, state)):
                self.run_checked("the copy from the GPU", self.buffers[column].download, values)
            self.download_state()

    def publish(self) -> None:
        """Copy parameters and state to the host; the next call reads them from there."""
        self._copy_to_host()
        self.host_was_read = True

    def release(self) -> None:
        """Copy the parameters of an interrupted epoch to the host, and free the data on the GPU."""
        self.publish()
        super().release()


class GradientExecutor(Executor):
    """The gradient of a loss over given samples."""

    def __init__(self, ops, dtype, *, batch, threads, loss_op):
        super().__init__(ops, dtype, batch=batch, train=True, loss_op=loss_op)
        self.run_phases, kind = self.forward_backward(), self.dtype.type
        self.gradients, self.updates = (
            kernels.gradients(self.gradient_verbs, kind),
            kernels.updates(kind),
        )
        self.grads = np.zeros(self.plan.n_params, dtype)

    def gradient(self, params, samples: int) -> float:
        """Fill grads and return the summed loss."""
        self.metric_sums[:] = 0
        self.buffers[CALL.params].upload(params[: self.plan.n_memory])
        self.upload_call(samples)
        call, tasks = self.device_call.address, len(self.plan.tasks)
        self.run_phases(0)
        self.run_checked("a gradient", self.gradients, tasks + 1, self.blocks, call, 0)
        self.run_checked("a penalty", self.updates, tasks, UPDATE_BLOCKS, call, 0)
        self.run_checked("a gradient", self.download_call)
        self.buffers[CALL.grads].download(self.grads)
        return float(self.metric_sums[0])


class InferenceExecutor(Executor):
    """Forward passes: outputs, or the sums of loss and correct answers."""

    evaluation_batch = 4096
    """Samples that a prediction or an evaluation carries at once."""

    checks_finite = False

    def __init__(self, ops, dtype, *, batch, threads, loss_op=None, correct_op=None):
        super().__init__(ops, dtype, batch=batch, loss_op=loss_op, correct_op=correct_op)
        self.run_phases, self.add_metrics = (
            self.forward_backward(),
            kernels.metrics(self.dtype.type),
        )

    def infer(self, params, samples: int) -> tuple[float, float]:
        """Process all samples; return the sums of loss and correct answers (0 without a loss)."""
        self.metric_sums[:] = 0
        self.buffers[CALL.params].upload(params[: self.plan.n_memory])
        self.upload_call(samples)
        for batch in range(-(-samples // self.plan.batch)):
            self.run_phases(batch)
            if self.loss_op is not None:
                self.run_checked("a sum", self.add_metrics, 1, 1, self.device_call.address, batch)
        self.run_checked("a forward pass", self.download_call)
        if OUTPUTS in self._bound:
            outputs, buffer = self._bound[OUTPUTS]
            buffer.download(outputs)
        self.download_state()
        return float(self.metric_sums[0]), float(self.metric_sums[1])

    def inputs_finite(self) -> bool:
        """Whether all inputs of the last call were finite.

        This is not known here, so they are checked before.
        """
        return True
