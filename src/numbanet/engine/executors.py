"""A network's machines: plans with their memories for training, gradients, prediction and evaluation, made when first needed."""

import threading

import numba
import numpy as np

from numbanet.engine.cpu import executor as cpu
from numbanet.engine.cpu.kernels import usable_threads
from numbanet.io import validation
from numbanet.io.fields import fits
from numbanet.nn import data, losses
from numbanet.nn.layers.base import size
from numbanet.plan.lower import lower

EVALUATION_BATCH = 1024
"""Samples that a prediction or an evaluation carries at once."""
FLOPS_PER_THREAD = 300_000
"""Floating-point operations in a call for which another thread is worth its while."""
MAX_EXECUTORS = 8
"""Machines that a network keeps."""


class ExecutorCache:
    """The machines of one network on one device, "cpu" or "cuda"; one call at a time uses them (`lock`)."""

    def __init__(self, network):
        self.network, self.device = network, network.device
        self.made: dict = {}
        self.direct: dict[np.dtype, cpu.SmallBatchInference] = {}
        self.flops = sum(op.flops for op in network._ops())
        self.lock = threading.RLock()

    def threads(self, wanted, flops: int) -> int:
        """Threads for a call of that much arithmetic: a parallel region costs about as much as 100,000 operations."""
        wanted = validation.check_threads(wanted)
        most = wanted or self.network.threads or numba.get_num_threads()
        return usable_threads(most if wanted or self.network.threads else max(1, min(most, flops // FLOPS_PER_THREAD)))

    def _kept(self, key, kind: str, ops, batch: int, threads: int, training: bool, *rest):
        """The machine for a use, from an earlier call or new; `ops` gives its ops, `rest` whatever else the kind is made of."""
        key = (kind, *key, batch, threads)
        if key not in self.made:
            if len(self.made) >= MAX_EXECUTORS:
                self.made.pop(next(iter(self.made)))
            found, *others = ops()
            if self.device == "cuda":
                from numbanet.engine.cuda import executor as cuda

                self.made[key] = getattr(cuda, kind)(found, self.network.dtype, batch, *others, *rest)
            else:
                plan = lower(found, self.network.dtype, batch=batch, threads=threads, train=training)
                elements = plan.n_acts + plan.n_deltas
                fits(elements, elements * self.network.dtype.itemsize, f"the activations of {batch} samples")
                self.made[key] = getattr(cpu, kind)(plan, self.network.dtype, *others, *rest)
        return self.made[key]

    def _batch(self, samples: int) -> int:
        """Samples that a call without training carries at once."""
        most = EVALUATION_BATCH
        if self.device == "cuda":
            from numbanet.engine.cuda import executor as cuda

            most = cuda.EVALUATION_BATCH
        return min(most, 1 << (samples - 1).bit_length())

    def trainer(self, loss, optimizer, x, y, classes, batch, batches, threads, augment):
        """For fit: mini-batches of `batch` of samples like x and y."""

        def ops():
            found = self.network._with_loss(loss, x.dtype, y.dtype, classes, len(x), batches, True, augment)
            if not any(op.n_params for op in found[0]):
                raise ValueError("the network has no parameters to train")
            return found

        threads = self.threads(threads, 3 * self.flops * batch)
        key = (loss, type(optimizer), optimizer.update, x.dtype, y.dtype, classes, batches, len(x), augment)
        return self._kept(key, "TrainingExecutor", ops, batch, threads, True, optimizer)

    def differentiator(self, loss, x, y, threads):
        """For the gradient over all samples of x and y."""

        def ops():
            return self.network._with_loss(loss, x.dtype, y.dtype, False, len(x), 1)[:2]

        threads = self.threads(threads, 3 * self.flops * len(x))
        return self._kept((loss, x.dtype, y.dtype), "GradientExecutor", ops, len(x), threads, True)

    def predictor(self, x_dtype, samples: int, threads=None):
        """For the outputs of any number of samples."""
        batch = self._batch(samples)
        threads = self.threads(threads, self.flops * min(samples, batch))
        return self._kept((x_dtype,), "InferenceExecutor", lambda: (self._prediction(x_dtype),), batch, threads, False)

    def evaluator(self, loss: losses.Loss, x_dtype, y_dtype, classes, samples: int, threads=None):
        """For loss and hits of any number of samples."""
        batch = self._batch(samples)
        threads = self.threads(threads, self.flops * min(samples, batch))

        def ops():
            return self.network._with_loss(loss, x_dtype, y_dtype, classes)

        return self._kept((loss, x_dtype, y_dtype, classes, "score"), "InferenceExecutor", ops, batch, threads, False)

    def build_small_batch(self, x_dtype) -> None:
        """Have a machine for as many samples as one thread carries through before a second would be worth its while."""
        if x_dtype not in self.direct and self.device == "cpu":
            batch = max(1, min(64, FLOPS_PER_THREAD // max(1, self.flops)))
            plan = lower(self._prediction(x_dtype), self.network.dtype, batch=batch, threads=1, train=False)
            self.direct[x_dtype] = cpu.SmallBatchInference(plan, self.network.dtype)

    def _prediction(self, x_dtype) -> list:
        """Ops from the data to the caller's outputs."""
        n_in, n_out = size(self.network.input_shape), size(self.network.output_shape)
        body = [*self.network._ops(), data.outputs(n_out)]
        return [data.inference_inputs(n_in, x_dtype, self.network.dtype, body[0]), *body]
