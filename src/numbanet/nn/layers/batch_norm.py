"""BatchNorm: each channel normalised over the batch to mean 0 and variance 1.

It is then scaled and shifted.

    x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β
    dx = γ / √(σ² + ε) (dy − mean dy − x̂ mean(dy x̂))        dγ = Σ dy x̂        dβ = Σ dy

μ and σ² are those of each channel over the batch (and the pixels); in prediction they are running
means, which are kept with the network: r ← (1 − momentum) r + momentum · batch, with the unbiased
variance. Formulas and defaults are PyTorch's.

In training each chunk of the batch leaves, behind its partial gradient (dγ, dβ), the mean of each
channel and m2, the sum of its squared deviations; `merge_statistics` joins them.

Source   Ioffe, Szegedy 2015; Chan, Golub, LeVeque 1979 (merging means and variances of chunks)
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from numbanet.backend.intrinsics import const_like, float_attr, num_threads, ptr_add, thread_rank
from numbanet.backend.jit import inline, kernel, specialize
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.normalization import (
    NORM,
    Normalization,
    inverse_std,
)
from numbanet.plan.columns import (
    BUFFERS,
    CHUNKS,
    N_IN,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    SAMPLES,
    W,
    X,
    Y,
    context,
)
from numbanet.plan.op import Op


@dataclass(frozen=True, eq=False)
class BatchNorm(Normalization):
    """Batch normalisation of a vector or, channel by channel, of an image.

    `momentum` is the weight of the newest batch. Training needs at least two values per channel in
    every batch: fit raises ValueError for a batch of one vector.
    """

    momentum: Annotated[float, Real(above=0, most=1)] = 0.1
    needs_batch: ClassVar[bool] = True

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        return {"mean": (shape[-1],), "variance": (shape[-1],)}

    def initialize_buffers(self, views) -> None:
        views["mean"][:], views["variance"][:] = 0, 1

    def ops(self, shape: Shape) -> list[Op]:
        size = {"statistics_size": 2 * shape[-1], "buffers": 2 * shape[-1]}
        return [
            self._op(shape, forward, backward, accumulate_gradient, statistics=statistics, **size)
        ]

    def inference_ops(self, shape: Shape) -> list[Op]:
        verbs = running_forward, running_backward, running_accumulate_gradient
        return [self._op(shape, *verbs, buffers=2 * shape[-1])]


# --- statistics of the batch ------------------------------------------------------------------


@inline
def merge_statistics(op, acts, c):
    """(count, mean, m2) of channel c over the batch, from those of the chunks in their order."""
    n, channels, chunks = context(op, SAMPLES), op[NORM.channels], context(op, CHUNKS)
    pixels = op[N_IN] // channels
    count, mean, m2 = const_like(acts, 0), const_like(acts, 0), const_like(acts, 0)
    for chunk in range(chunks):
        n_b = const_like(acts, (n * (chunk + 1) // chunks - n * chunk // chunks) * pixels)
        if n_b > const_like(acts, 0):
            place = op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] + 2 * channels + c
            delta = acts[place] - mean
            total = count + n_b
            mean += delta * n_b / total
            m2 += acts[place + channels] + delta * delta * count * n_b / total
            count = total
    return count, mean, m2


@inline
def _batch(op, params, acts, c):
    """(mean, variance) of channel c"""
    count, mean, m2 = merge_statistics(op, acts, c)
    return mean, m2 / count


@kernel
def statistics(op, params, grads, acts, deltas, lo, hi):
    """Mean and m2 of each channel over samples lo ≤ i < hi        grads[2c …] overwritten"""
    channels, count = op[NORM.channels], (hi - lo) * op[N_IN] // op[NORM.channels]
    x = ptr_add(acts, op[X] + lo * op[N_IN])
    mean, m2 = ptr_add(grads, 2 * channels), ptr_add(grads, 3 * channels)
    for c in range(channels):
        mean[c] = const_like(acts, 0)
        m2[c] = const_like(acts, 0)
    for p in range(count):
        for c in range(channels):
            mean[c] += x[p * channels + c]
    for c in range(channels):
        mean[c] /= const_like(acts, count)
    for p in range(count):
        for c in range(channels):
            delta = x[p * channels + c] - mean[c]
            m2[c] += delta * delta


@statistics.cuda
def statistics(op, params, grads, acts, deltas, lo, hi):
    channels, count = op[NORM.channels], (hi - lo) * op[N_IN] // op[NORM.channels]
    for c in range(thread_rank(), channels, num_threads()):
        x, mean, m2 = (
            ptr_add(acts, op[X] + lo * op[N_IN] + c),
            const_like(acts, 0),
            const_like(acts, 0),
        )
        for p in range(count):
            mean += x[p * channels]
        mean /= const_like(acts, count)
        for p in range(count):
            m2 += (x[p * channels] - mean) * (x[p * channels] - mean)
        grads[2 * channels + c], grads[3 * channels + c] = mean, m2


# --- one channel ------------------------------------------------------------------------------


@inline
def _normalize(op, params, acts, c, mean, variance, first, end, stride):
    """y = γ x̂ + β for every stride-th element first ≤ p < end, all of channel c"""
    scale = params[op[W] + c] / math.sqrt(variance + const_like(acts, float_attr(op, NORM.epsilon)))
    shift = params[op[W] + op[NORM.channels] + c] - scale * mean
    for p in range(first, end, stride):
        acts[op[Y] + p] = scale * acts[op[X] + p] + shift


@inline
def _update_running(op, params, acts, c, count, mean, m2):
    """r ← r + momentum (batch − r) for the running mean and the running, unbiased variance"""
    momentum, r = const_like(acts, float_attr(op, NORM.momentum)), op[BUFFERS] + c
    params[r] += momentum * (mean - params[r])
    r += op[NORM.channels]
    params[r] += momentum * (m2 / (count - const_like(acts, 1)) - params[r])


@inline
def _backward(op, params, acts, deltas, c, first, end, stride):
    """dx for every stride-th element first ≤ p < end, all of channel c"""
    count, mean, m2 = merge_statistics(op, acts, c)
    scale = inverse_std(op, acts, m2 / count)
    dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
    for chunk in range(context(op, CHUNKS)):
        place = op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] + c
        dgamma += acts[place]
        dbeta += acts[place + op[NORM.channels]]
    gamma = params[op[W] + c]
    for p in range(first, end, stride):
        x_hat = (acts[op[X] + p] - mean) * scale
        deltas[op[X] + p] = (
            gamma * scale * (deltas[op[Y] + p] - dbeta / count - x_hat * dgamma / count)
        )


@inline
def _share_channels(channels):
    """(first channel, part, parts) of this GPU thread: `parts` threads share a channel."""
    parts = max(1, num_threads() // channels)
    part = thread_rank() // channels if parts > 1 else 0
    return thread_rank() - part * channels if part < parts else channels, part, parts


# --- training: the batch's mean and variance --------------------------------------------------


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β        acts[y] overwritten; the thread of sample 0 updates the running means"""
    channels = op[NORM.channels]
    for c in range(channels):
        count, mean, m2 = merge_statistics(op, acts, c)
        if lo == 0:
            _update_running(op, params, acts, c, count, mean, m2)
        first, end = lo * op[N_IN] + c, hi * op[N_IN]
        _normalize(op, params, acts, c, mean, m2 / count, first, end, channels)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    channels, end = op[NORM.channels], hi * op[N_IN]
    first_channel, part, parts = _share_channels(channels)
    for c in range(first_channel, channels, num_threads()):
        count, mean, m2 = merge_statistics(op, acts, c)
        if lo == 0 and hi > 0 and part == 0:  # the first chunk that has samples
            _update_running(op, params, acts, c, count, mean, m2)
        first = lo * op[N_IN] + part * channels + c
        _normalize(op, params, acts, c, mean, m2 / count, first, end, parts * channels)


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = γ / √(σ² + ε) (dy − mean dy − x̂ mean(dy x̂))        deltas[x] overwritten"""
    channels = op[NORM.channels]
    for c in range(channels):
        _backward(op, params, acts, deltas, c, lo * op[N_IN] + c, hi * op[N_IN], channels)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    channels, end = op[NORM.channels], hi * op[N_IN]
    first_channel, part, parts = _share_channels(channels)
    for c in range(first_channel, channels, num_threads()):
        first = lo * op[N_IN] + part * channels + c
        _backward(op, params, acts, deltas, c, first, end, parts * channels)


# --- prediction: the running mean and variance ------------------------------------------------


@inline
def _running(op, params, acts, c):
    """(mean, variance) of channel c"""
    return params[op[BUFFERS] + c], params[op[BUFFERS] + op[NORM.channels] + c]


@kernel(independent=True)
def running_forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β with the running means        acts[y] overwritten"""
    channels = op[NORM.channels]
    for c in range(channels):
        mean, variance = _running(op, params, acts, c)
        first, end = lo * op[N_IN] + c, hi * op[N_IN]
        _normalize(op, params, acts, c, mean, variance, first, end, channels)


@kernel(independent=True)
def running_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = γ / √(σ² + ε) dy with the running variance        deltas[x] overwritten"""
    channels, epsilon = op[NORM.channels], const_like(acts, float_attr(op, NORM.epsilon))
    for c in range(channels):
        _, variance = _running(op, params, acts, c)
        scale = params[op[W] + c] / math.sqrt(variance + epsilon)
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            deltas[op[X] + p] = scale * deltas[op[Y] + p]


# --- gradient of γ and β, for either ----------------------------------------------------------

mean_and_variance: Any = None
"""In the templates: `_batch` or `_running`."""


def _accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        grads[W] added to"""
    channels = op[NORM.channels]
    for c in range(channels):
        mean, variance = mean_and_variance(op, params, acts, c)
        scale = inverse_std(op, acts, variance)
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            grads[op[W] + c] += deltas[op[Y] + p] * (acts[op[X] + p] - mean) * scale
            grads[op[W] + channels + c] += deltas[op[Y] + p]


def _accumulate_gradient_cuda(op, params, grads, acts, deltas, lo, hi):
    channels = op[NORM.channels]
    for c in range(thread_rank(), channels, num_threads()):
        mean, variance = mean_and_variance(op, params, acts, c)
        scale = inverse_std(op, acts, variance)
        dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            dgamma += deltas[op[Y] + p] * (acts[op[X] + p] - mean) * scale
            dbeta += deltas[op[Y] + p]
        grads[op[W] + c] += dgamma
        grads[op[W] + channels + c] += dbeta


def _accumulate_with(source, name):
    """The kernel that takes mean and variance from a source, for CPU and GPU."""
    made = kernel(specialize(_accumulate_gradient, name, mean_and_variance=source))
    return made.cuda(specialize(_accumulate_gradient_cuda, name, mean_and_variance=source))


accumulate_gradient = _accumulate_with(_batch, "accumulate_gradient")
running_accumulate_gradient = _accumulate_with(_running, "running_accumulate_gradient")
