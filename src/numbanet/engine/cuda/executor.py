"""Machines of the CUDA engine: a plan with its memories on the card, and the launches that work on them.

They have the methods of `machines.py`. Parameters and the optimiser's state go to the card when an epoch begins and come back when
it ends, or is interrupted between two calls; an error on the card leaves the host's as they were before the epoch.
"""

import os
import time

import numpy as np

from numbanet.backend.cuda import driver
from numbanet.backend.cuda.driver import CudaError, DeviceBuffer, multiprocessors
from numbanet.backend.cuda.gemm import TILE_M
from numbanet.engine.cuda import kernels as cuda
from numbanet.nn.optimizers import N_STATE
from numbanet.plan.columns import ATTRS, OUTPUTS, Plan, float64_bits
from numbanet.plan.lower import lower

ONE, WALK, APART = "one", "walk", "apart"
"""How much one launch does; see cuda.py."""
EVALUATION_BATCH = 4096
"""Samples that a prediction or an evaluation carries at once."""

SINGLE_BLOCK_FLOPS = 3_000_000
"""Floating-point operations of a step up to which one block alone is expected to be faster than three launches."""
FUSED_WEIGHT_READS = 32_000_000
"""Weights that the rows of a WALK may read together: every row reads all of them."""


def choose_launch_mode(ops, batch: int, training: bool) -> str:
    """ONE, WALK or APART for these ops and batch size."""
    if training and 3 * batch * sum(op.flops for op in ops) <= SINGLE_BLOCK_FLOPS:
        return ONE
    return WALK if sum(op.n_weights for op in ops) * fused_groups(ops, batch) <= FUSED_WEIGHT_READS else APART


def fused_groups(ops, batch: int) -> int:
    """Rows of blocks of a WALK: two for each multiprocessor, but fewer where a sample has little work for a whole block."""
    at_once = 8 if sum(op.flops for op in ops) < 200_000 else 1
    return max(1, min(-(-batch // at_once), 2 * multiprocessors()))


def grid_shape(ops, batch: int, chosen: str) -> tuple[int, int]:
    """Rows of blocks and blocks in a row for a way."""
    if chosen == ONE:
        return 1, 1
    if chosen == WALK:
        return fused_groups(ops, batch), 1
    across = max(1, min(-(-batch // TILE_M), 4 * multiprocessors()))
    return across, max(1, min(64, -(-4 * multiprocessors() // across)))


def plan_for(ops, dtype, batch: int, training: bool) -> tuple[Plan, str, int]:
    """The plan of these ops for the card, the way it is run and the blocks in a row."""
    chosen = choose_launch_mode(ops, batch, training) if not SYNC_EVERY_OP else APART
    across, down = grid_shape(ops, batch, chosen)
    return lower(ops, dtype, batch=batch, threads=across, train=training, card=True), chosen, down


SYNC_EVERY_OP = os.environ.get("NUMBANET_CUDA_SYNC", "0") not in ("", "0")
"""Wait after every op, so that an error on the card is reported with the op that made it; slow."""


class Executor:
    """A plan with its memories on the card."""

    def __init__(self, ops, dtype, batch: int, training: bool, n_grads: int = 0, n_state: int = 0, loss_op=None, hits_op=None):
        driver.require_gpu()
        self.plan, self.way, self.columns = plan_for(ops, dtype, batch, training)
        plan, self.dtype, self.loss_op, self.correct_op = self.plan, np.dtype(dtype), loss_op, hits_op
        self.verbs = cuda.gradient_verbs(plan) if training else ()
        self.n_memory = plan.n_params + sum(op.buffers for op in plan.ops)
        sizes = {cuda.PARAMS: self.n_memory, cuda.GRADS: n_grads, cuda.ACTS: plan.n_acts, cuda.DELTAS: plan.n_deltas,
                 cuda.STATE: n_state}
        check_memory(sum(sizes.values()) * self.dtype.itemsize + plan.tables.nbytes + plan.tasks.nbytes,
                  f"this network with batches of {batch}", "a smaller batch_size")
        self.buffers = {column: DeviceBuffer(size, dtype) for column, size in sizes.items()}
        self.buffers[cuda.SUMS] = DeviceBuffer(2, np.float64)
        self.buffers[cuda.TABLES], self.buffers[cuda.TASKS] = DeviceBuffer(plan.tables.size, np.int64), DeviceBuffer(plan.tasks.size, np.int64)
        self.buffers[cuda.TASKS].upload(plan.tasks)
        self.run, self.device_call, self.metric_sums = np.zeros(cuda.RUN_SIZE, np.int64), DeviceBuffer(cuda.RUN_SIZE, np.int64), np.zeros(2)
        for column, buffer in self.buffers.items():
            self.run[column] = buffer.address
        self.run[cuda.TABLE_ROWS], self.run[cuda.N_TASKS] = plan.tables.shape[1], len(plan.tasks)
        self.run[cuda.BATCH], self.run[cuda.N_CHUNKS] = plan.batch, plan.chunks
        for column, op in ((cuda.LOSSES, loss_op), (cuda.CORRECT, hits_op)):
            self.run[column] = plan.offsets[op] if op is not None else -1
        self._keep: dict = {}
        self.parts = cuda.schedule(plan, training)
        self.tables_written = False

    def bind(self, column: int, array: np.ndarray | None) -> None:
        """Bring a contiguous array of the caller's to the card (for OUTPUTS, make room for it); None unbinds."""
        self._keep.pop(column, None)
        if array is not None:
            check_memory(array.nbytes, f"data of shape {array.shape}", "fewer samples at a time")
            buffer = DeviceBuffer(array.size, array.dtype)
            if column != OUTPUTS:
                buffer.upload(array)
            self._keep[column] = (array, buffer)
        self.plan.set_context(column, self._keep[column][1].address if array is not None else 0)

    def release(self) -> None:
        """Give the card's copies of the data back."""
        for column in list(self._keep):
            self.bind(column, None)

    def begin(self, samples: int, taken: int = 0) -> None:
        """Write tables, run and sums to the card."""
        if not self.tables_written:
            self.buffers[cuda.TABLES].upload(self.plan.tables)
            self.tables_written = True
        self.run[cuda.EPOCH_SAMPLES], self.run[cuda.STEPS_DONE] = samples, taken
        self.run[cuda.STOPPED], self.run[cuda.BATCHES_DONE] = 0, -1
        for k, column in enumerate(cuda.SHARED_CONTEXT):
            self.run[cuda.CONTEXT + k] = self.plan.tables[0, 0, column]
        self.device_call.upload(self.run)
        self.buffers[cuda.SUMS].upload(self.metric_sums)

    def end(self) -> None:
        """Wait for the card, and read what it wrote into run and sums."""
        self.device_call.download(self.run)
        self.buffers[cuda.SUMS].download(self.metric_sums)

    def region(self, prepare=None):
        """Region A as a function of the batch: the launches that the way asks for."""
        op_names = {row: op.name for row, op in cuda.rows(self.plan).items()}
        self.launches = []
        for phase in self.parts:
            for found in ([phase] if self.way != APART else [[part] for part in phase]):
                part = cuda.chain(tuple(found)) if self.way != APART else cuda.single(*found[0][:2])
                names = ", ".join(sorted({op_names[row] for _, _, row in found}))
                self.launches.append((cuda.region(part, self.dtype.type, prepare), found[0][2], names))

        def region(batch):
            for launch, row, names in self.launches:
                self.run_checked(names, launch, self.plan.threads, self.columns, self.device_call.address, batch, row)

        return region

    def run_checked(self, names: str, work, *args):
        """Do some work on the card; an error there becomes a CudaError that says where."""
        try:
            result = work(*args)
            if SYNC_EVERY_OP:
                driver.module().synchronize()
            return result
        except (KeyboardInterrupt, CudaError):
            raise
        except Exception as error:
            hint = "" if SYNC_EVERY_OP else "; set NUMBANET_CUDA_SYNC=1 to learn which op it was"
            raise CudaError(f"the card reported an error in {names}: {error}. The network's parameters are those from before it"
                            f"{hint}") from error


def check_memory(needed: int, what: str, instead: str) -> None:
    """CudaError where the card has less memory free than that."""
    free = driver.free_bytes()
    if needed > free:
        raise CudaError(f"{what} needs {needed:,} bytes of the card's memory, {free:,} are free; choose {instead}, or "
                        'device="cpu"')


class TrainingExecutor(Executor):
    """Training by mini-batches."""

    def __init__(self, ops, dtype, batch, loss_op, hits_op, optimizer):
        n_params = sum(op.n_params for op in ops)
        super().__init__(ops, dtype, batch, True, n_params, n_params * len(optimizer.state_names), loss_op, hits_op)
        self.plan.tables[:, -1, N_STATE] = n_params
        self.set_attrs(optimizer.attrs)
        kind = self.dtype.type
        if self.way == ONE:
            whole = cuda.chain(tuple(part for phase in self.parts for part in phase))
            self.steps_of_one = cuda.steps(whole, self.verbs, kind, optimizer.begin_step, optimizer.update)
        else:
            self.samples = self.region(optimizer.begin_step)
            self.gradients, self.updates = cuda.gradients(self.verbs, kind), cuda.updates(kind, optimizer.update)
        self.batches_per_call, self.timed = 1, False
        self.device_is_newer: tuple | None = None  # the host's parameters and state, while the card's are newer

    def set_attrs(self, values) -> None:
        """Write the optimiser's hyper-parameters."""
        for i, value in enumerate(values):
            self.plan.tables[:, -1, ATTRS + i] = float64_bits(value)
        self.tables_written = False

    def steps(self, params, state, samples: int, first: int, last: int, step: int) -> int:
        """Take steps first … last − 1 of the epoch and return how far it came; sums collects loss and hits."""
        began = time.perf_counter()
        self.device_is_newer = None  # an error from here on leaves the host's numbers alone
        self.run_checked("the copy to the card", self._upload, params, state, samples, first, step)
        run = self.device_call.address
        if self.way == ONE:
            self.run_checked("a small network's steps", self.steps_of_one, 1, 1, run, first, last)
        else:
            tasks = len(self.plan.tasks)
            for batch in range(first, last):
                self.samples(batch)
                self.run_checked("a gradient", self.gradients, tasks + 1, self.columns, run, batch)
                self.run_checked("an update", self.updates, tasks, 4, run)
        self.run_checked("a step", self.end)
        reached = int(self.run[cuda.BATCHES_DONE]) if self.run[cuda.STOPPED] else last
        if reached == last:
            self.device_is_newer = params, state
            if last * self.plan.batch >= samples:
                self._copy_to_host()
        if self.timed:
            self.batches_per_call = max(1, int(0.05 * (last - first) / max(1e-6, time.perf_counter() - began)))
        self.timed = True  # the first call compiles; what it took says nothing
        return reached

    def _upload(self, params, state, samples, first, step):
        if first == 0:
            self.buffers[cuda.PARAMS].upload(params)
            self.buffers[cuda.STATE].upload(state)
        self.begin(samples, step - first)

    def _copy_to_host(self) -> None:
        """Bring parameters and state to the host, if the card's are newer."""
        if self.device_is_newer is not None:
            params, state = self.device_is_newer
            self.device_is_newer = None
            for column, values in ((cuda.PARAMS, params), (cuda.STATE, state)):
                self.run_checked("the copy from the card", self.buffers[column].download, values)

    def release(self) -> None:
        """Bring back what an interrupted epoch has learned, and give the card's copies of the data back."""
        self._copy_to_host()
        super().release()

    def slice(self) -> int:
        """How many steps the next call should take, so that Ctrl-C and progress are never far."""
        return self.batches_per_call


class GradientExecutor(Executor):
    """The gradient of a loss over given samples."""

    def __init__(self, ops, dtype, batch, loss_op):
        n_params = sum(op.n_params for op in ops)
        super().__init__(ops, dtype, batch, True, n_params, 0, loss_op)
        self.samples, kind = self.region(), self.dtype.type
        self.gradients, self.updates, self.grads = cuda.gradients(self.verbs, kind), cuda.updates(kind), np.zeros(n_params, dtype)

    def gradient(self, params, samples: int) -> float:
        """Fill grads and return the summed loss."""
        self.metric_sums[:] = 0
        self.buffers[cuda.PARAMS].upload(params)
        self.begin(samples)
        self.samples(0)
        self.run_checked("a gradient", self.gradients, len(self.plan.tasks) + 1, self.columns, self.device_call.address, 0)
        self.run_checked("a penalty", self.updates, len(self.plan.tasks), 4, self.device_call.address)
        self.run_checked("a gradient", self.end)
        self.buffers[cuda.GRADS].download(self.grads)
        return float(self.metric_sums[0])


class InferenceExecutor(Executor):
    """Forward passes: outputs, or the sums of loss and hits."""

    looks = False

    def __init__(self, ops, dtype, batch, loss_op=None, hits_op=None):
        super().__init__(ops, dtype, batch, False, 0, 0, loss_op, hits_op)
        self.samples, self.add = self.region(), cuda.sums(self.dtype.type)

    def forward(self, params, samples: int) -> tuple[float, float]:
        """Carry all samples through and return the sums of loss and hits (0 without a loss)."""
        self.metric_sums[:] = 0
        self.buffers[cuda.PARAMS].upload(params)
        self.begin(samples)
        for batch in range(-(-samples // self.plan.batch)):
            self.samples(batch)
            if self.loss_op is not None:
                self.run_checked("a sum", self.add, 1, 1, self.device_call.address, batch)
        self.run_checked("a forward pass", self.end)
        if OUTPUTS in self._keep:
            outputs, buffer = self._keep[OUTPUTS]
            buffer.download(outputs)
        return float(self.metric_sums[0]), float(self.metric_sums[1])

