"""What executes plans, on the CPU and on a GPU alike, and the executors that a network keeps."""

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numba
import numpy as np

from numbanet.backend.threads import max_threads
from numbanet.engine.cpu import executor as cpu
from numbanet.engine.cpu.kernels import usable_threads
from numbanet.io import validation
from numbanet.nn import data, dense_sparse, losses
from numbanet.nn.layers.base import size
from numbanet.plan.op import Op
from numbanet.plan.plan import Plan

FLOPS_PER_THREAD = 300_000
"""Floating-point operations in a call above which one more thread is faster."""
SMALL_FLOPS = 2_000_000
"""Floating-point operations in a prediction that one thread has done before others have begun."""
MAX_EXECUTORS = 8
"""Executors that a network keeps."""

# --- the interface -----------------------------------------------------------------------------


class Executor(Protocol):
    """A plan with its memories on a device."""

    plan: Plan

    def bind(self, column: int, array: np.ndarray | None) -> None:
        """Let the plan read, or write, an array of the caller's under a column of the context."""

    def release(self) -> None:
        """Let go of all the caller's arrays."""


class TrainingExecutor(Executor, Protocol):
    """Steps of training by mini-batches.

    sums           those of loss and correct answers (epochs, 2), of as many epochs as a call of
                   steps may go through
    metric_sums    sums of the first of these epochs
    reached        the batch that the last call of steps reached, if it was interrupted and that is
                   known; else any batch before
    penalty_sums   what the L2 penalty of each task adds to the summed loss (epochs, tasks)
    """

    sums: np.ndarray
    metric_sums: np.ndarray
    penalty_sums: np.ndarray
    correct_op: Op | None
    reached: int

    def set_optimizer(self, optimizer) -> None:
        """Write the optimiser's hyper-parameters."""

    def sum_penalties(self) -> None:
        """From now on, add to penalty_sums what the L2 penalties add to the summed loss."""

    def steps_per_call(self) -> int:
        """How many steps the next call should take, so that Ctrl-C and progress are never far."""

    def steps(self, params, state, samples: int, first: int, last: int, steps_done: int) -> int:
        """Take batches first … last − 1 of an epoch and return how far it came.

        They count on through the next epochs, whose orders of samples follow in memory.
        steps_done   updates before: an epoch's begin with its first batch
        """

    def publish(self) -> None:
        """Let the network's own arrays hold parameters and state, to be read and written."""


class GradientExecutor(Executor, Protocol):
    """The gradient of a loss over given samples."""

    grads: np.ndarray

    def gradient(self, params, samples: int) -> float:
        """Fill grads and return the summed loss."""


class InferenceExecutor(Executor, Protocol):
    """Forward passes: outputs, or the sums of loss and correct answers."""

    checks_finite: bool
    evaluation_batch: int

    def infer(self, params, samples: int) -> tuple[float, float]:
        """Carry all samples through; the sums of loss and correct answers (0 without a loss)."""

    def inputs_finite(self) -> bool:
        """Whether all inputs of the last call were finite, where the executor `checks_finite`."""


class Backend(Protocol):
    """A module that makes executors for a device."""

    TrainingExecutor: Callable[..., Any]
    GradientExecutor: Callable[..., Any]
    InferenceExecutor: Any


def backend(device: str) -> Any:
    """The module that makes executors for "cpu" or "cuda"."""
    if device == "cuda":
        from numbanet.engine.cuda import executor as cuda

        return cuda
    return cpu


# --- a network's executors ---------------------------------------------------------------------


class ExecutorCache:
    """The executors of one network on one device; one call at a time uses them (`lock`)."""

    def __init__(self, network):
        self.network, self.device = network, network.device
        self.backend: Backend = backend(self.device)
        self.executors: dict = {}
        self.small_batch: dict[np.dtype, cpu.SmallBatchInference] = {}
        self.flops = sum(op.flops for op in network.layer_ops())
        self.lock = threading.RLock()

    def clear(self) -> None:
        """Forget all executors: the ops of the network have changed."""
        with self.lock:
            self.executors.clear()
            self.small_batch.clear()

    def threads(self, wanted, flops: int) -> int:
        """Threads for a call of that much arithmetic, unless a number is asked for.

        Never more than there are CPUs: more would only cut the work into smaller pieces.
        """
        wanted = validation.check_threads(wanted)
        most = min(wanted or self.network.threads or numba.get_num_threads(), max_threads())
        if not (wanted or self.network.threads):
            most = max(1, min(most, flops // FLOPS_PER_THREAD))
        return usable_threads(most)

    def _get_or_build(self, key: tuple, build: Callable[[], Any]) -> Any:
        """The executor of an earlier call of this kind, or a new one."""
        if key not in self.executors:
            if len(self.executors) >= MAX_EXECUTORS:
                self.executors.pop(next(iter(self.executors)))
            self.executors[key] = build()
        return self.executors[key]

    def _settings(self) -> tuple:
        """Which layers are trained, and how."""
        return tuple((built.trainable, built.group) for built in self.network.layers)

    def training(
        self,
        loss,
        optimizer,
        x,
        y,
        classes,
        *,
        batch,
        batches,
        threads,
        samples=None,
        augment=None,
        weighted: int = 0,
    ) -> TrainingExecutor:
        """For fit: mini-batches of `batch` of samples like x and y, `weighted` as of loss_ops.

        samples   in an epoch, by default all of x
        """
        samples = samples or len(x)
        threads = self.threads(threads, 3 * self.flops * batch)
        missing = validation.has_missing(y)

        def build():
            ops, loss_op, correct_op = self.network.loss_ops(
                loss,
                data.layout(x),
                y.dtype,
                classes,
                samples=samples,
                batches=batches,
                training=True,
                augment=augment,
                weighted=weighted,
                missing=missing,
            )
            if not any(op.trained for op in ops):
                frozen = any(op.n_params for op in ops)
                reason = "all its layers are frozen: unfreeze one" if frozen else "it has none"
                raise ValueError(f"the network has no parameters to train; {reason}")
            return self.backend.TrainingExecutor(
                ops,
                self.network.dtype,
                batch=batch,
                threads=threads,
                loss_op=loss_op,
                correct_op=correct_op,
                optimizer=optimizer,
            )

        key = (
            "training",
            self._settings(),
            loss,
            type(optimizer),
            optimizer.update,
            *optimizer.around.items(),
            data.layout(x),
            y.dtype,
            classes,
            batches,
            samples,
            augment,
            weighted,
            missing,
            batch,
            threads,
        )
        return self._get_or_build(key, build)

    def gradient(self, loss, x, y, threads, training: bool, weighted=0) -> GradientExecutor:
        """For the gradient over all samples of x and y, with the ops of training or prediction."""
        threads = self.threads(threads, 3 * self.flops * len(x))
        missing = validation.has_missing(y)

        def build():
            ops, loss_op, _ = self.network.loss_ops(
                loss,
                data.layout(x),
                y.dtype,
                False,
                samples=len(x),
                batches=1,
                training=training,
                weighted=weighted,
                missing=missing,
            )
            return self.backend.GradientExecutor(
                ops, self.network.dtype, batch=len(x), threads=threads, loss_op=loss_op
            )

        settings = self._settings() if training else ()
        data_key = data.layout(x), y.dtype, len(x), weighted, missing
        key = ("gradient", loss, data_key, threads, training, settings)
        return self._get_or_build(key, build)

    def inference(self, layout, samples: int, threads=None, batch=None) -> InferenceExecutor:
        """For the outputs of any number of samples, in batches of `batch` where that matters."""
        batch = batch or self._evaluation_batch(samples)
        threads = self.threads(threads, self.flops * min(samples, batch))

        def build():
            return self.backend.InferenceExecutor(
                self.inference_ops(layout), self.network.dtype, batch=batch, threads=threads
            )

        return self._get_or_build(("inference", layout, batch, threads), build)

    def evaluation(
        self,
        loss: losses.Loss,
        layout,
        y_dtype,
        classes,
        samples: int,
        threads=None,
        *,
        batch: int | None = None,
        weighted: int = 0,
        missing: bool = False,
    ) -> InferenceExecutor:
        """For loss and correct answers of any number of samples.

        batch      samples of a batch, where that matters
        weighted   the axes of the weights: 1 for samples, 2 for their steps, 0 for none
        missing    whether targets are missing
        """
        batch = batch or self._evaluation_batch(samples)
        threads = self.threads(threads, self.flops * min(samples, batch))

        def build():
            ops, loss_op, correct_op = self.network.loss_ops(
                loss, layout, y_dtype, classes, weighted=weighted, missing=missing
            )
            return self.backend.InferenceExecutor(
                ops,
                self.network.dtype,
                batch=batch,
                threads=threads,
                loss_op=loss_op,
                correct_op=correct_op,
            )

        data_key = layout, y_dtype, classes, weighted, missing
        return self._get_or_build(("evaluation", loss, data_key, batch, threads), build)

    def build_small_batch(self, x_dtype) -> None:
        """Prepare an executor for as many samples as one thread should process alone."""
        if x_dtype not in self.small_batch and self.device == "cpu":
            most = self.backend.InferenceExecutor.evaluation_batch
            read = size(self.network.input_shape)  # pooling reads far more than it computes
            batch = max(1, min(most, SMALL_FLOPS // (self.flops + read)))
            self.small_batch[x_dtype] = cpu.SmallBatchInference(
                self.inference_ops(x_dtype), self.network.dtype, batch=batch
            )

    def inference_ops(self, layout) -> list[Op]:
        """Ops from the data to the caller's outputs."""
        n_in, dtype = size(self.network.input_shape), self.network.dtype
        scale, done = self.network.input_scale()
        body = [*self.network.layer_ops(done), *self.network.output_ops()]
        first = dense_sparse.first_op(body[0], str(layout), scale)
        if first is not None:
            return [first, *body[1:]]
        return [data.inference_inputs(n_in, layout, dtype, scale, body[0]), *body]

    def _evaluation_batch(self, samples: int) -> int:
        """Samples in a batch of a call without training."""
        return min(self.backend.InferenceExecutor.evaluation_batch, 1 << (samples - 1).bit_length())
