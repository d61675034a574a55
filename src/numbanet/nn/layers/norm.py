"""BatchNorm and LayerNorm: numbers brought to mean 0 and variance 1, then scaled and shifted by what is learned.

    x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β
    dx = γ / √(σ² + ε) (dy − mean dy − x̂ mean(dy x̂))        dγ = Σ dy x̂        dβ = Σ dy

BatchNorm takes μ and σ² of each channel over the batch (and the pixels); in prediction it uses running means, which are kept with
the network: r ← (1 − momentum) r + momentum · batch, with the unbiased variance. LayerNorm takes them over the channels of each
sample (and pixel). Formulas and defaults are PyTorch's.

Source   Ioffe, Szegedy 2015; Ba, Kiros, Hinton 2016; Chan, Golub, LeVeque 1979 (joining means and variances of shards)
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from numbanet.backend.intrinsics import const_like, float_attr, num_threads, ptr_add, thread_rank
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import ATTRS, BUFFERS, CHUNKS, N_IN, N_OUT, PARTIAL_GRADS, PARTIAL_STRIDE, SAMPLES, Op, W, X, Y, context

CHANNELS, EPSILON, MOMENTUM = range(ATTRS, ATTRS + 3)


@dataclass(frozen=True, eq=False)
class _Norm(Layer):
    """What both have in common: a scale γ ("weights", from 1) and a shift β ("bias", from 0) per channel, and ε."""

    epsilon: Annotated[float, Real(above=0)] = 1e-5

    def parameters(self, shape: Shape) -> dict[str, Shape]:
        return {"weights": (shape[-1],), "bias": (shape[-1],)}

    def initializers(self, following) -> dict:
        return {"weights": _ones, "bias": "zeros"}

    def _op(self, shape: Shape, forward, backward, accumulate_gradient, statistics=None, statistics_size: int = 0,
            buffers: int = 0) -> Op:
        c, n = shape[-1], size(shape)
        own = (c, float(self.epsilon), float(getattr(self, "momentum", 0.0)))
        return Op(type(self).__name__, n, n, forward, backward, accumulate_gradient=accumulate_gradient, statistics=statistics, statistics_size=statistics_size, buffers=buffers,
                  param_rows=2, param_cols=c, attrs=own)


def _ones(shape, generator):
    return generator.random(shape) * 0 + 1


# --- batch --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BatchNorm(_Norm):
    """Batch normalisation of a vector or, channel by channel, of a picture. `momentum` is the weight of the newest batch.

    Training needs at least two numbers per channel in every batch: fit raises ValueError for a batch of one vector.
    """

    momentum: Annotated[float, Real(above=0, most=1)] = 0.1
    needs_batch: ClassVar[bool] = True

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        return {"mean": (shape[-1],), "variance": (shape[-1],)}

    def initialize_buffers(self, views) -> None:
        views["mean"][:], views["variance"][:] = 0, 1

    def ops(self, shape: Shape) -> list[Op]:
        c = shape[-1]
        return [self._op(shape, batch_forward, batch_backward, accumulate_gradient=batch_accumulate_gradient, statistics=batch_statistics, statistics_size=2 * c,
                         buffers=2 * c)]

    def inference_ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, running_forward, running_backward, accumulate_gradient=running_accumulate_gradient, buffers=2 * shape[-1])]


@inline
def _merge_statistics(op, acts, c):
    """(numbers, mean, Σ squared deviations) of channel c over the batch, from those of the shards in their order."""
    n, channels = context(op, SAMPLES), op[CHANNELS]
    pixels, shards = op[N_IN] // channels, context(op, CHUNKS)
    count, mean, squares = const_like(acts, 0), const_like(acts, 0), const_like(acts, 0)
    for shard in range(shards):
        more = const_like(acts, (n * (shard + 1) // shards - n * shard // shards) * pixels)
        if more > const_like(acts, 0):
            place = op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE] + 2 * channels + c
            apart = acts[place] - mean
            total = count + more
            mean += apart * more / total
            squares += acts[place + channels] + apart * apart * count * more / total
            count = total
    return count, mean, squares


@kernel
def batch_statistics(op, params, grads, acts, deltas, lo, hi):
    """Mean and squared deviations of each channel over samples lo ≤ i < hi        grads[2c …] overwritten"""
    channels, count = op[CHANNELS], (hi - lo) * op[N_IN] // op[CHANNELS]
    x, mean, squares = ptr_add(acts, op[X] + lo * op[N_IN]), ptr_add(grads, 2 * channels), ptr_add(grads, 3 * channels)
    for c in range(channels):
        mean[c] = const_like(acts, 0)
        squares[c] = const_like(acts, 0)
    for p in range(count):
        for c in range(channels):
            mean[c] += x[p * channels + c]
    for c in range(channels):
        mean[c] /= const_like(acts, count)
    for p in range(count):
        for c in range(channels):
            apart = x[p * channels + c] - mean[c]
            squares[c] += apart * apart


@batch_statistics.cuda
def batch_statistics(op, params, grads, acts, deltas, lo, hi):
    channels, count = op[CHANNELS], (hi - lo) * op[N_IN] // op[CHANNELS]
    for c in range(thread_rank(), channels, num_threads()):
        x, mean, squares = ptr_add(acts, op[X] + lo * op[N_IN] + c), const_like(acts, 0), const_like(acts, 0)
        for p in range(count):
            mean += x[p * channels]
        mean /= const_like(acts, count)
        for p in range(count):
            squares += (x[p * channels] - mean) * (x[p * channels] - mean)
        grads[2 * channels + c], grads[3 * channels + c] = mean, squares


@kernel
def batch_forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β with the batch's mean and variance        acts[y] overwritten; the thread of sample 0 moves the running means"""
    channels = op[CHANNELS]
    for c in range(channels):
        count, mean, squares = _merge_statistics(op, acts, c)
        scale = params[op[W] + c] / math.sqrt(squares / count + const_like(acts, float_attr(op, EPSILON)))
        shift = params[op[W] + channels + c] - scale * mean
        if lo == 0:
            newest, place = const_like(acts, float_attr(op, MOMENTUM)), op[BUFFERS] + c
            params[place] += newest * (mean - params[place])
            params[place + channels] += newest * (squares / (count - const_like(acts, 1)) - params[place + channels])
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            acts[op[Y] + p] = scale * acts[op[X] + p] + shift


@batch_forward.cuda
def batch_forward(op, params, grads, acts, deltas, lo, hi):
    channels, parts = op[CHANNELS], max(1, num_threads() // op[CHANNELS])  # threads that share a channel
    part = thread_rank() // channels if parts > 1 else 0
    for c in range(thread_rank() - part * channels if part < parts else channels, channels, num_threads()):
        count, mean, squares = _merge_statistics(op, acts, c)
        scale = params[op[W] + c] / math.sqrt(squares / count + const_like(acts, float_attr(op, EPSILON)))
        shift = params[op[W] + channels + c] - scale * mean
        if lo == 0 and hi > 0 and part == 0:  # the first shard that has samples
            newest, place = const_like(acts, float_attr(op, MOMENTUM)), op[BUFFERS] + c
            params[place] += newest * (mean - params[place])
            params[place + channels] += newest * (squares / (count - const_like(acts, 1)) - params[place + channels])
        for p in range(lo * op[N_IN] + part * channels + c, hi * op[N_IN], parts * channels):
            acts[op[Y] + p] = scale * acts[op[X] + p] + shift


@inline
def _accumulate_affine_grad(op, grads, acts, deltas, lo, hi, c, mean, scale):
    """dγ += Σ dy x̂, dβ += Σ dy for channel c of samples lo ≤ i < hi"""
    channels, dgamma, dbeta = op[CHANNELS], const_like(acts, 0), const_like(acts, 0)
    for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
        dgamma += deltas[op[Y] + p] * (acts[op[X] + p] - mean) * scale
        dbeta += deltas[op[Y] + p]
    grads[op[W] + c] += dgamma
    grads[op[W] + channels + c] += dbeta


@kernel
def batch_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        grads[W] added to"""
    channels = op[CHANNELS]
    for c in range(channels):
        count, mean, squares = _merge_statistics(op, acts, c)
        scale = const_like(acts, 1) / math.sqrt(squares / count + const_like(acts, float_attr(op, EPSILON)))
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            grads[op[W] + c] += deltas[op[Y] + p] * (acts[op[X] + p] - mean) * scale
            grads[op[W] + channels + c] += deltas[op[Y] + p]


@batch_accumulate_gradient.cuda
def batch_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    channels = op[CHANNELS]
    for c in range(thread_rank(), channels, num_threads()):
        count, mean, squares = _merge_statistics(op, acts, c)
        scale = const_like(acts, 1) / math.sqrt(squares / count + const_like(acts, float_attr(op, EPSILON)))
        _accumulate_affine_grad(op, grads, acts, deltas, lo, hi, c, mean, scale)


@kernel
def batch_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = γ / √(σ² + ε) (dy − mean dy − x̂ mean(dy x̂)), the means over the batch        deltas[x] overwritten"""
    channels = op[CHANNELS]
    for c in range(channels):
        count, mean, squares = _merge_statistics(op, acts, c)
        scale = const_like(acts, 1) / math.sqrt(squares / count + const_like(acts, float_attr(op, EPSILON)))
        dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
        for shard in range(context(op, CHUNKS)):
            place = op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE] + c
            dgamma += acts[place]
            dbeta += acts[place + channels]
        gamma = params[op[W] + c]
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            hat = (acts[op[X] + p] - mean) * scale
            deltas[op[X] + p] = gamma * scale * (deltas[op[Y] + p] - dbeta / count - hat * dgamma / count)


@batch_backward.cuda
def batch_backward(op, params, grads, acts, deltas, lo, hi):
    channels, parts = op[CHANNELS], max(1, num_threads() // op[CHANNELS])
    part = thread_rank() // channels if parts > 1 else 0
    for c in range(thread_rank() - part * channels if part < parts else channels, channels, num_threads()):
        count, mean, squares = _merge_statistics(op, acts, c)
        scale = const_like(acts, 1) / math.sqrt(squares / count + const_like(acts, float_attr(op, EPSILON)))
        dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
        for shard in range(context(op, CHUNKS)):
            place = op[PARTIAL_GRADS] + shard * op[PARTIAL_STRIDE] + c
            dgamma += acts[place]
            dbeta += acts[place + channels]
        gamma = params[op[W] + c]
        for p in range(lo * op[N_IN] + part * channels + c, hi * op[N_IN], parts * channels):
            hat = (acts[op[X] + p] - mean) * scale
            deltas[op[X] + p] = gamma * scale * (deltas[op[Y] + p] - dbeta / count - hat * dgamma / count)


@kernel(independent=True)
def running_forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β with the running means        acts[y] overwritten"""
    channels = op[CHANNELS]
    for c in range(channels):
        variance = params[op[BUFFERS] + channels + c]
        scale = params[op[W] + c] / math.sqrt(variance + const_like(acts, float_attr(op, EPSILON)))
        shift = params[op[W] + channels + c] - scale * params[op[BUFFERS] + c]
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            acts[op[Y] + p] = scale * acts[op[X] + p] + shift


@kernel(independent=True)
def running_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = γ / √(σ² + ε) dy with the running variance        deltas[x] overwritten"""
    channels = op[CHANNELS]
    for c in range(channels):
        scale = params[op[W] + c] / math.sqrt(params[op[BUFFERS] + channels + c] + const_like(acts, float_attr(op, EPSILON)))
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            deltas[op[X] + p] = scale * deltas[op[Y] + p]


@kernel
def running_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy with the running means        grads[W] added to"""
    channels = op[CHANNELS]
    for c in range(channels):
        mean = params[op[BUFFERS] + c]
        scale = const_like(acts, 1) / math.sqrt(params[op[BUFFERS] + channels + c] + const_like(acts, float_attr(op, EPSILON)))
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            grads[op[W] + c] += deltas[op[Y] + p] * (acts[op[X] + p] - mean) * scale
            grads[op[W] + channels + c] += deltas[op[Y] + p]


@running_accumulate_gradient.cuda
def running_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    channels = op[CHANNELS]
    for c in range(thread_rank(), channels, num_threads()):
        variance = params[op[BUFFERS] + channels + c]
        scale = const_like(acts, 1) / math.sqrt(variance + const_like(acts, float_attr(op, EPSILON)))
        _accumulate_affine_grad(op, grads, acts, deltas, lo, hi, c, params[op[BUFFERS] + c], scale)


# --- layer --------------------------------------------------------------------------------------------------------------


class LayerNorm(_Norm):
    """Layer normalisation over the last axis of each sample: the whole vector, or the channels of each pixel."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, layer_forward, layer_backward, accumulate_gradient=layer_accumulate_gradient)]


@inline
def _moments(op, acts, x):
    """Mean and 1 / √(σ² + ε) of the numbers acts[x … x + channels)."""
    channels, mean, squares = op[CHANNELS], const_like(acts, 0), const_like(acts, 0)
    for c in range(channels):
        mean += acts[x + c]
    mean /= const_like(acts, channels)
    for c in range(channels):
        squares += (acts[x + c] - mean) * (acts[x + c] - mean)
    return mean, const_like(acts, 1) / math.sqrt(squares / const_like(acts, channels) + const_like(acts, float_attr(op, EPSILON)))


@kernel(independent=True)
def layer_forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β, group of channels by group        acts[y] overwritten"""
    channels, w = op[CHANNELS], op[W]
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        mean, scale = _moments(op, acts, op[X] + p)
        for c in range(channels):
            acts[op[Y] + p + c] = params[w + c] * (acts[op[X] + p + c] - mean) * scale + params[w + channels + c]


@kernel(independent=True)
def layer_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = (g − mean g − x̂ mean(g x̂)) / √(σ² + ε) with g = γ dy        deltas[x] overwritten"""
    channels, w = op[CHANNELS], op[W]
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        mean, scale = _moments(op, acts, op[X] + p)
        plain, weighted = const_like(acts, 0), const_like(acts, 0)
        for c in range(channels):
            g = params[w + c] * deltas[op[Y] + p + c]
            plain += g
            weighted += g * (acts[op[X] + p + c] - mean) * scale
        for c in range(channels):
            hat = (acts[op[X] + p + c] - mean) * scale
            g = params[w + c] * deltas[op[Y] + p + c]
            deltas[op[X] + p + c] = scale * (g - (plain + hat * weighted) / const_like(acts, channels))


@kernel
def layer_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        grads[W] added to"""
    channels, w = op[CHANNELS], op[W]
    for p in range(lo * op[N_OUT], hi * op[N_OUT], channels):
        mean, scale = _moments(op, acts, op[X] + p)
        for c in range(channels):
            grads[w + c] += deltas[op[Y] + p + c] * (acts[op[X] + p + c] - mean) * scale
            grads[w + channels + c] += deltas[op[Y] + p + c]


@layer_accumulate_gradient.cuda
def layer_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    channels = op[CHANNELS]
    for c in range(thread_rank(), channels, num_threads()):
        dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
        for p in range(lo * op[N_OUT], hi * op[N_OUT], channels):
            mean, scale = _moments(op, acts, op[X] + p)
            dgamma += deltas[op[Y] + p + c] * (acts[op[X] + p + c] - mean) * scale
            dbeta += deltas[op[Y] + p + c]
        grads[op[W] + c] += dgamma
        grads[op[W] + channels + c] += dbeta
