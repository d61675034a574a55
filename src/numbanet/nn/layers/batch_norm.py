"""BatchNorm: each channel normalised over the batch to mean 0 and variance 1.

It is then scaled and shifted.

    x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β
    dx = γ / √(σ² + ε) (dy − mean dy − x̂ mean(dy x̂))        dγ = Σ dy x̂        dβ = Σ dy

μ and σ² are those of each channel over the batch (and the pixels); in prediction they are running
means, which are kept with the network: r ← (1 − momentum) r + momentum · batch, with the unbiased
variance. Formulas and defaults are PyTorch's.

In training each chunk of the batch leaves, behind its partial gradient (dγ, dβ), the mean of each
channel and m2, the sum of its squared deviations; their merger is the batch's.

On the CPU a kernel reads its samples as one long vector, a *group* of pixels after the other: what
belongs to a channel, a coefficient or a sum, stands in scratch memory as often as a group has
pixels, so any number of channels fills the vector registers.

Source   Ioffe, Szegedy 2015; Chan, Golub, LeVeque 1979 (merging means and variances of chunks)
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from numbanet.backend.intrinsics import (
    VECTOR_BYTES,
    const_like,
    float_attr,
    lanes,
    load,
    num_threads,
    ptr_add,
    store,
    thread_rank,
)
from numbanet.backend.jit import inline, kernel
from numbanet.io.fields import Real
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.normalization import NORM, Normalization, inverse_std
from numbanet.plan.columns import (
    BUFFERS,
    CHUNKS,
    N_IN,
    PARTIAL_GRADS,
    PARTIAL_STRIDE,
    SAMPLES,
    SCRATCH,
    TANGENTS,
    W,
    X,
    Y,
    context,
)
from numbanet.plan.op import Op

LEAST_VECTORS = 8
"""Vectors of a group of few channels: sums that wait for one another's addition."""
MANY_VECTORS = 4
"""From so many vectors of channels on, a group is one pixel."""
PIVOT_PIXELS = 64
"""Pixels whose mean `statistics` subtracts from all."""
SCRATCH_ARRAYS = 4


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
        verbs = forward, backward, accumulate_gradient
        options = self._memory(shape) | {"statistics_size": 2 * shape[-1]}
        return [self._op(shape, *verbs, statistics=statistics, **options)]

    def inference_ops(self, shape: Shape) -> list[Op]:
        verbs = running_forward, running_backward, running_accumulate_gradient
        options = self._memory(shape) | {"tangent": running_tangent}
        options |= {"linear": True, "second_gradient": running_second}
        return [self._op(shape, *verbs, **options)]

    def _memory(self, shape: Shape) -> dict[str, Any]:
        """Elements of the running means and of the scratch memory, the most of any dtype."""
        channels, width = shape[-1], VECTOR_BYTES // 4
        size = channels * _group_pixels.py_func(channels, width) + width
        return {"buffers": 2 * channels, "scratch": SCRATCH_ARRAYS * size}


# --- groups of pixels ---------------------------------------------------------------------------


@inline
def _group_pixels(channels, width):
    """Pixels of a group, for vectors of so many lanes."""
    if channels >= MANY_VECTORS * width:
        return 1
    return width * (1 + (LEAST_VECTORS - 1) // channels)


@inline
def _group_size(op, acts, lo, hi):
    """Elements of a group in samples lo ≤ i < hi, whole pixels."""
    channels = op[NORM.channels]
    return min((hi - lo) * op[N_IN], channels * _group_pixels(channels, lanes(acts)))


@inline
def _scratch_array(op, acts, group, k):
    """The k-th array of `group` elements in this thread's scratch memory, whole vectors."""
    width = lanes(acts)
    return ptr_add(acts, op[SCRATCH] + k * ((group + width - 1) // width * width))


@inline
def _repeat(values, channels, group):
    """Repeat the values of the channels for every pixel of a group."""
    for j in range(channels, group):
        values[j] = values[j - channels]


@inline
def _clear(values, group):
    """Set a scratch array to zero, whole vectors."""
    for j in range(0, group, lanes(values)):
        store(ptr_add(values, j), const_like(load(ptr_add(values, j), 0), 0), lanes(values))


@inline
def _fold(sums, channels, group):
    """Add the sums of a group's pixels, in their order, to those of its first."""
    for p in range(channels, group, channels):
        for c in range(channels):
            sums[c] += sums[p + c]


# --- statistics of the batch ------------------------------------------------------------------


@inline
def _chunk_size(op, chunk):
    """Values of a channel in a chunk of the batch."""
    n, chunks = context(op, SAMPLES), context(op, CHUNKS)
    samples = n * (chunk + 1) // chunks - n * chunk // chunks
    return samples * (op[N_IN] // op[NORM.channels])


@inline
def _batch_size(op):
    """Values of a channel in the batch."""
    return context(op, SAMPLES) * (op[N_IN] // op[NORM.channels])


@inline
def _chunk_mean(op, acts, chunk):
    """Where the means of the channels over a chunk stand; their m2 follow."""
    place = op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] + 2 * op[NORM.channels]
    return ptr_add(acts, place)


@inline
def _merge_statistics(op, acts, mean, variance):
    """Mean and variance of each channel over the batch, from those of the chunks in their order.

    The last chunk is never empty.
    """
    channels, chunks, n = op[NORM.channels], context(op, CHUNKS), _batch_size(op)
    pivot = _chunk_mean(op, acts, chunks - 1)
    for c in range(channels):
        mean[c], variance[c] = pivot[c], const_like(acts, 0)
    for chunk in range(chunks - 1):
        weight, mean_b = const_like(acts, _chunk_size(op, chunk) / n), _chunk_mean(op, acts, chunk)
        for c in range(channels):
            mean[c] += weight * (mean_b[c] - pivot[c])
    for chunk in range(chunks):
        weight, mean_b = const_like(acts, _chunk_size(op, chunk) / n), _chunk_mean(op, acts, chunk)
        for c in range(channels):
            delta = mean_b[c] - mean[c]
            variance[c] += const_like(acts, 1 / n) * mean_b[channels + c] + weight * delta * delta


@kernel
def statistics(op, params, grads, acts, deltas, lo, hi):
    """Mean and m2 of each channel over samples lo ≤ i < hi        grads[2c …] overwritten

    mean = k + Σ d / n        m2 = Σ d² − (Σ d)² / n        d = x − k
    Rounding errs by at most 1 + n/m times what it does for k = mean, with k the mean of m pixels.
    """
    channels, size, width = op[NORM.channels], (hi - lo) * op[N_IN], lanes(acts)
    group, x = _group_size(op, acts, lo, hi), ptr_add(acts, op[X] + lo * op[N_IN])
    pivot = _scratch_array(op, acts, group, 0)
    sums, squares = _scratch_array(op, acts, group, 1), _scratch_array(op, acts, group, 2)
    _clear(pivot, group)
    _clear(sums, group)
    _clear(squares, group)
    pivot_size = min(size, PIVOT_PIXELS * channels)
    for p in range(0, pivot_size, group):
        end = min(group, pivot_size - p)
        for j in range(0, end, width):
            total = load(ptr_add(pivot, j), width) + load(ptr_add(x, p + j), end - j)
            store(ptr_add(pivot, j), total, width)
    _fold(pivot, channels, group)
    scale = const_like(acts, channels / pivot_size)
    for c in range(channels):
        pivot[c] *= scale
    _repeat(pivot, channels, group)
    for p in range(0, size, group):
        end = min(group, size - p)
        for j in range(0, end, width):
            k = load(ptr_add(pivot, j), end - j)
            d = load(ptr_add(x, p + j), end - j) - k
            store(ptr_add(sums, j), load(ptr_add(sums, j), width) + d, width)
            store(ptr_add(squares, j), load(ptr_add(squares, j), width) + d * d, width)
    _fold(sums, channels, group)
    _fold(squares, channels, group)
    scale = const_like(acts, channels / size)
    for c in range(channels):
        grads[2 * channels + c] = pivot[c] + scale * sums[c]
        m2 = squares[c] - scale * sums[c] * sums[c]
        grads[3 * channels + c] = const_like(acts, 0) if m2 < const_like(acts, 0) else m2


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
        mean /= const_like(acts, max(1, count))  # a chunk may be empty
        for p in range(count):
            m2 += (x[p * channels] - mean) * (x[p * channels] - mean)
        grads[2 * channels + c], grads[3 * channels + c] = mean, m2


@inline
def _update_running(op, params, acts, c, mean, variance):
    """r ← r + momentum (batch − r) for the running mean and the running, unbiased variance"""
    momentum, r = const_like(acts, float_attr(op, NORM.momentum)), op[BUFFERS] + c
    unbiased = const_like(acts, _batch_size(op) / (_batch_size(op) - 1))
    params[r] += momentum * (mean - params[r])
    r += op[NORM.channels]
    params[r] += momentum * (unbiased * variance - params[r])


# --- the steps of the kernels, from a mean and a variance for each channel ---------------------


@inline
def _normalize(op, params, acts, mean, variance, lo, hi):
    """y = γ x̂ + β as scale · x + shift        scratch arrays 2 and 3"""
    channels, size, width = op[NORM.channels], (hi - lo) * op[N_IN], lanes(acts)
    group, start = _group_size(op, acts, lo, hi), lo * op[N_IN]
    scale, shift = _scratch_array(op, acts, group, 2), _scratch_array(op, acts, group, 3)
    for c in range(channels):
        scale[c] = params[op[W] + c] * inverse_std(op, acts, variance[c])
        shift[c] = params[op[W] + channels + c] - scale[c] * mean[c]
    _repeat(scale, channels, group)
    _repeat(shift, channels, group)
    x, y = ptr_add(acts, op[X] + start), ptr_add(acts, op[Y] + start)
    for p in range(0, size, group):
        end = min(group, size - p)
        for j in range(0, end, width):
            scaled = load(ptr_add(scale, j), width) * load(ptr_add(x, p + j), end - j)
            store(ptr_add(y, p + j), scaled + load(ptr_add(shift, j), width), end - j)


@inline
def _accumulate(op, grads, acts, deltas, mean, variance, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        scratch arrays 0, 2 and 3; the mean may stand in 0"""
    channels, size, width = op[NORM.channels], (hi - lo) * op[N_IN], lanes(acts)
    group, start = _group_size(op, acts, lo, hi), lo * op[N_IN]
    pivot = _scratch_array(op, acts, group, 0)
    products, sums = _scratch_array(op, acts, group, 2), _scratch_array(op, acts, group, 3)
    for c in range(channels):
        pivot[c] = mean[c]
    _repeat(pivot, channels, group)
    _clear(products, group)
    _clear(sums, group)
    x, dy = ptr_add(acts, op[X] + start), ptr_add(deltas, op[Y] + start)
    for p in range(0, size, group):
        end = min(group, size - p)
        for j in range(0, end, width):
            dy_here = load(ptr_add(dy, p + j), end - j)
            d = load(ptr_add(x, p + j), end - j) - load(ptr_add(pivot, j), end - j)
            store(ptr_add(products, j), load(ptr_add(products, j), width) + dy_here * d, width)
            store(ptr_add(sums, j), load(ptr_add(sums, j), width) + dy_here, width)
    _fold(products, channels, group)
    _fold(sums, channels, group)
    for c in range(channels):
        grads[op[W] + c] += inverse_std(op, acts, variance[c]) * products[c]
        grads[op[W] + channels + c] += sums[c]


# --- the same for one channel, on a GPU --------------------------------------------------------


@inline
def _merge_channel(op, acts, c):
    """(mean, variance) of channel c over the batch: `_merge_statistics` for one."""
    chunks, n = context(op, CHUNKS), _batch_size(op)
    pivot, variance = _chunk_mean(op, acts, chunks - 1)[c], const_like(acts, 0)
    mean = pivot
    for chunk in range(chunks - 1):
        weight = const_like(acts, _chunk_size(op, chunk) / n)
        mean += weight * (_chunk_mean(op, acts, chunk)[c] - pivot)
    for chunk in range(chunks):
        weight, mean_b = const_like(acts, _chunk_size(op, chunk) / n), _chunk_mean(op, acts, chunk)
        delta, m2 = mean_b[c] - mean, mean_b[op[NORM.channels] + c]
        variance += const_like(acts, 1 / n) * m2 + weight * delta * delta
    return mean, variance


@inline
def _running_channel(op, params, c):
    """(mean, variance) of channel c in prediction."""
    return params[op[BUFFERS] + c], params[op[BUFFERS] + op[NORM.channels] + c]


@inline
def _share_channels(channels):
    """(first channel, part, parts) of this GPU thread: `parts` threads share a channel."""
    parts = max(1, num_threads() // channels)
    part = thread_rank() // channels if parts > 1 else 0
    return thread_rank() - part * channels if part < parts else channels, part, parts


@inline
def _normalize_channel(op, params, acts, c, mean, variance, first, end, stride):
    """y = γ x̂ + β for every stride-th element first ≤ p < end, all of channel c"""
    scale = params[op[W] + c] * inverse_std(op, acts, variance)
    shift = params[op[W] + op[NORM.channels] + c] - scale * mean
    for p in range(first, end, stride):
        acts[op[Y] + p] = scale * acts[op[X] + p] + shift


@inline
def _accumulate_channel(op, grads, acts, deltas, c, mean, variance, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy for channel c"""
    channels, dgamma, dbeta = op[NORM.channels], const_like(acts, 0), const_like(acts, 0)
    for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
        dgamma += deltas[op[Y] + p] * (acts[op[X] + p] - mean)
        dbeta += deltas[op[Y] + p]
    grads[op[W] + c] += inverse_std(op, acts, variance) * dgamma
    grads[op[W] + channels + c] += dbeta


# --- training: the batch's mean and variance --------------------------------------------------


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β        acts[y] overwritten; the thread of sample 0 updates the running means"""
    group = _group_size(op, acts, lo, hi)
    mean, variance = _scratch_array(op, acts, group, 0), _scratch_array(op, acts, group, 1)
    _merge_statistics(op, acts, mean, variance)
    if lo == 0:
        for c in range(op[NORM.channels]):
            _update_running(op, params, acts, c, mean[c], variance[c])
    _normalize(op, params, acts, mean, variance, lo, hi)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    channels, end = op[NORM.channels], hi * op[N_IN]
    first_channel, part, parts = _share_channels(channels)
    for c in range(first_channel, channels, num_threads()):
        mean, variance = _merge_channel(op, acts, c)
        if lo == 0 and hi > 0 and part == 0:  # the first chunk that has samples
            _update_running(op, params, acts, c, mean, variance)
        first = lo * op[N_IN] + part * channels + c
        _normalize_channel(op, params, acts, c, mean, variance, first, end, parts * channels)


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        grads[W] added to"""
    group = _group_size(op, acts, lo, hi)
    mean, variance = _scratch_array(op, acts, group, 0), _scratch_array(op, acts, group, 1)
    _merge_statistics(op, acts, mean, variance)
    _accumulate(op, grads, acts, deltas, mean, variance, lo, hi)


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for c in range(thread_rank(), op[NORM.channels], num_threads()):
        mean, variance = _merge_channel(op, acts, c)
        _accumulate_channel(op, grads, acts, deltas, c, mean, variance, lo, hi)


@inline
def _backward_coefficients(op, params, acts, c, variance):
    """(a, b, d) of channel c in dx = a dy − b (x − μ) − d, from the sums of all chunks."""
    dgamma, dbeta, n = const_like(acts, 0), const_like(acts, 0), _batch_size(op)
    for chunk in range(context(op, CHUNKS)):
        place = op[PARTIAL_GRADS] + chunk * op[PARTIAL_STRIDE] + c
        dgamma += acts[place]
        dbeta += acts[place + op[NORM.channels]]
    scale = inverse_std(op, acts, variance)
    a = params[op[W] + c] * scale
    return a, a * scale * dgamma / const_like(acts, n), a * dbeta / const_like(acts, n)


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = γ / √(σ² + ε) (dy − mean dy − x̂ mean(dy x̂))        deltas[x] overwritten"""
    channels, size, width = op[NORM.channels], (hi - lo) * op[N_IN], lanes(acts)
    group, start = _group_size(op, acts, lo, hi), lo * op[N_IN]
    mean, a = _scratch_array(op, acts, group, 0), _scratch_array(op, acts, group, 1)
    b, d = _scratch_array(op, acts, group, 2), _scratch_array(op, acts, group, 3)
    _merge_statistics(op, acts, mean, a)
    for c in range(channels):
        a[c], b[c], d[c] = _backward_coefficients(op, params, acts, c, a[c])
    for values in (mean, a, b, d):
        _repeat(values, channels, group)
    x = ptr_add(acts, op[X] + start)
    dx, dy = ptr_add(deltas, op[X] + start), ptr_add(deltas, op[Y] + start)
    for p in range(0, size, group):
        end = min(group, size - p)
        for j in range(0, end, width):
            centered = load(ptr_add(x, p + j), end - j) - load(ptr_add(mean, j), width)
            scaled = load(ptr_add(a, j), width) * load(ptr_add(dy, p + j), end - j)
            means = load(ptr_add(b, j), width) * centered + load(ptr_add(d, j), width)
            store(ptr_add(dx, p + j), scaled - means, end - j)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    channels, end = op[NORM.channels], hi * op[N_IN]
    first_channel, part, parts = _share_channels(channels)
    for c in range(first_channel, channels, num_threads()):
        mean, variance = _merge_channel(op, acts, c)
        a, b, d = _backward_coefficients(op, params, acts, c, variance)
        for p in range(lo * op[N_IN] + part * channels + c, end, parts * channels):
            means = b * (acts[op[X] + p] - mean) + d
            deltas[op[X] + p] = a * deltas[op[Y] + p] - means


# --- prediction: the running mean and variance ------------------------------------------------


@kernel
def running_forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β with the running means        acts[y] overwritten"""
    mean = ptr_add(params, op[BUFFERS])
    _normalize(op, params, acts, mean, ptr_add(mean, op[NORM.channels]), lo, hi)


@running_forward.cuda
def running_forward(op, params, grads, acts, deltas, lo, hi):
    channels, end = op[NORM.channels], hi * op[N_IN]
    first_channel, part, parts = _share_channels(channels)
    for c in range(first_channel, channels, num_threads()):
        mean, variance = _running_channel(op, params, c)
        first = lo * op[N_IN] + part * channels + c
        _normalize_channel(op, params, acts, c, mean, variance, first, end, parts * channels)


@kernel
def running_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy with the running means        grads[W] added to"""
    mean = ptr_add(params, op[BUFFERS])
    variance = ptr_add(mean, op[NORM.channels])
    _accumulate(op, grads, acts, deltas, mean, variance, lo, hi)


@running_accumulate_gradient.cuda
def running_accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    for c in range(thread_rank(), op[NORM.channels], num_threads()):
        mean, variance = _running_channel(op, params, c)
        _accumulate_channel(op, grads, acts, deltas, c, mean, variance, lo, hi)


@kernel
def running_backward(op, params, grads, acts, deltas, lo, hi):
    """dx = γ / √(σ² + ε) dy with the running variance        deltas[x] overwritten"""
    channels, size, width = op[NORM.channels], (hi - lo) * op[N_IN], lanes(acts)
    group, start = _group_size(op, acts, lo, hi), lo * op[N_IN]
    scale = _scratch_array(op, acts, group, 0)
    for c in range(channels):
        _, variance = _running_channel(op, params, c)
        scale[c] = params[op[W] + c] * inverse_std(op, acts, variance)
    _repeat(scale, channels, group)
    dx, dy = ptr_add(deltas, op[X] + start), ptr_add(deltas, op[Y] + start)
    for p in range(0, size, group):
        end = min(group, size - p)
        for j in range(0, end, width):
            scaled = load(ptr_add(scale, j), width) * load(ptr_add(dy, p + j), end - j)
            store(ptr_add(dx, p + j), scaled, end - j)


@running_backward.cuda
def running_backward(op, params, grads, acts, deltas, lo, hi):
    channels, end = op[NORM.channels], hi * op[N_IN]
    first_channel, part, parts = _share_channels(channels)
    for c in range(first_channel, channels, num_threads()):
        _, variance = _running_channel(op, params, c)
        scale = params[op[W] + c] * inverse_std(op, acts, variance)
        for p in range(lo * op[N_IN] + part * channels + c, end, parts * channels):
            deltas[op[X] + p] = scale * deltas[op[Y] + p]


@kernel(independent=True)
def running_tangent(op, params, grads, acts, deltas, lo, hi):
    """ẏ = γ / √(σ² + ε) ẋ with the running variance        deltas[y] overwritten"""
    channels = op[NORM.channels]
    for c in range(channels):
        _, variance = _running_channel(op, params, c)
        scale = params[op[W] + c] * inverse_std(op, acts, variance)
        for p in range(lo * op[N_IN] + c, hi * op[N_IN], channels):
            deltas[op[Y] + p] = scale * deltas[op[X] + p]


@kernel
def running_second(op, params, grads, acts, deltas, lo, hi):
    """ḋγ += Σ dy ẋ / √(σ² + ε) with the running variance        grads[W] added to"""
    for c in range(op[NORM.channels]):
        _running_second_channel(op, params, grads, acts, deltas, c, lo, hi)


@running_second.cuda
def running_second(op, params, grads, acts, deltas, lo, hi):
    for c in range(thread_rank(), op[NORM.channels], num_threads()):
        _running_second_channel(op, params, grads, acts, deltas, c, lo, hi)


@inline
def _running_second_channel(op, params, grads, acts, deltas, c, lo, hi):
    """The same for channel c."""
    _, variance = _running_channel(op, params, c)
    dx, total = ptr_add(acts, context(op, TANGENTS) + op[X]), const_like(acts, 0)
    for p in range(lo * op[N_IN] + c, hi * op[N_IN], op[NORM.channels]):
        total += deltas[op[Y] + p] * dx[p]
    grads[op[W] + c] += inverse_std(op, acts, variance) * total
