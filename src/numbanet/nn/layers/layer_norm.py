"""LayerNorm: each sample (or pixel) normalised to mean 0 and variance 1, then scaled and shifted.

    x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β
    dx = (g − mean g − x̂ mean(g x̂)) / √(σ² + ε),  g = γ dy        dγ = Σ dy x̂        dβ = Σ dy

The tangent of x̂ is (ẋ − mean ẋ − x̂ mean(x̂ ẋ)) / √(σ² + ε), that of 1 / √(σ² + ε) is
− mean(x̂ ẋ) / (σ² + ε).

Formulas and defaults are PyTorch's.

Source   Ba, Kiros, Hinton 2016
"""

from numbanet.backend.intrinsics import (
    const_like,
    lanes,
    load,
    load_or,
    num_threads,
    ptr_add,
    reduce_sum,
    splat,
    store,
    thread_rank,
)
from numbanet.backend.jit import inline, kernel
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.normalization import NORM, Normalization, inverse_std
from numbanet.plan.columns import N_IN, N_OUT, TANGENTS, W, X, Y, context
from numbanet.plan.op import Op


class LayerNorm(Normalization):
    """Layer normalisation over the last axis: the whole vector, or the channels of each pixel."""

    def ops(self, shape: Shape) -> list[Op]:
        verbs = forward, backward, accumulate_gradient
        tangents = {
            "tangent": tangent,
            "second_backward": second_backward,
            "second_gradient": second_gradient,
        }
        return [self._op(shape, *verbs, **tangents)]


@inline
def _moments(op, x):
    """Mean and 1 / √(σ² + ε) of the `channels` elements at x.

    mean = k + Σ d / n        σ² = Σ d² / n − (Σ d / n)²        d = x − k, with k the first element
    As σ² is at least (k − mean)² / n, the difference loses at most log₂ (n + 1) bits.
    """
    channels, width = op[NORM.channels], lanes(x)
    pivot, sums, squares = splat(x, x[0]), splat(x, 0), splat(x, 0)
    more_sums, more_squares = sums, squares  # a second chain of additions, for long rows
    paired = channels // (2 * width) * (2 * width)
    for c in range(0, paired, 2 * width):
        d, e = load(ptr_add(x, c), width) - pivot, load(ptr_add(x, c + width), width) - pivot
        sums, squares = sums + d, squares + d * d
        more_sums, more_squares = more_sums + e, more_squares + e * e
    for c in range(paired, channels, width):
        d = load_or(ptr_add(x, c), channels - c, pivot) - pivot
        sums, squares = sums + d, squares + d * d
    sums, squares = sums + more_sums, squares + more_squares
    offset = reduce_sum(sums) / const_like(x, channels)
    variance = reduce_sum(squares) / const_like(x, channels) - offset * offset
    variance = const_like(x, 0) if variance < const_like(x, 0) else variance
    return x[0] + offset, inverse_std(op, x, variance)


@inline
def _moments_scalar(op, x):
    """The same with scalars, for a GPU thread alone."""
    channels, mean, m2 = op[NORM.channels], const_like(x, 0), const_like(x, 0)
    for c in range(channels):
        mean += x[c]
    mean /= const_like(x, channels)
    for c in range(channels):
        m2 += (x[c] - mean) * (x[c] - mean)
    return mean, inverse_std(op, x, m2 / const_like(x, channels))


@kernel
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β        acts[y] overwritten"""
    channels, width = op[NORM.channels], lanes(acts)
    gamma, beta = ptr_add(params, op[W]), ptr_add(params, op[W] + channels)
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, y = ptr_add(acts, op[X] + p), ptr_add(acts, op[Y] + p)
        mean, scale = _moments(op, x)
        mean_, scale_ = splat(acts, mean), splat(acts, scale)
        for c in range(0, channels, width):
            n = channels - c
            x_hat = (load(ptr_add(x, c), n) - mean_) * scale_
            y_here = load(ptr_add(gamma, c), n) * x_hat + load(ptr_add(beta, c), n)
            store(ptr_add(y, c), y_here, n)


@forward.cuda
def forward(op, params, grads, acts, deltas, lo, hi):
    channels, w = op[NORM.channels], op[W]
    first, stride = lo * op[N_IN] + thread_rank() * channels, num_threads() * channels
    for p in range(first, hi * op[N_IN], stride):
        x, y = ptr_add(acts, op[X] + p), ptr_add(acts, op[Y] + p)
        mean, scale = _moments_scalar(op, x)
        for c in range(channels):
            y[c] = params[w + c] * (x[c] - mean) * scale + params[w + channels + c]


@kernel
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = (g − mean g − x̂ mean(g x̂)) / √(σ² + ε) with g = γ dy        deltas[x] overwritten"""
    channels, width, gamma = op[NORM.channels], lanes(acts), ptr_add(params, op[W])
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, dx = ptr_add(acts, op[X] + p), ptr_add(deltas, op[X] + p)
        dy = ptr_add(deltas, op[Y] + p)
        mean, scale = _moments(op, x)
        mean_, g_sums, g_products = splat(acts, mean), splat(acts, 0), splat(acts, 0)
        for c in range(0, channels, width):
            n = channels - c
            g = load(ptr_add(gamma, c), n) * load(ptr_add(dy, c), n)
            g_sums, g_products = g_sums + g, g_products + g * (load(ptr_add(x, c), n) - mean_)
        g_mean = splat(acts, reduce_sum(g_sums) / const_like(acts, channels))
        slope = scale * scale * reduce_sum(g_products) / const_like(acts, channels)
        scale_, slope_ = splat(acts, scale), splat(acts, slope)
        for c in range(0, channels, width):
            n = channels - c
            g = load(ptr_add(gamma, c), n) * load(ptr_add(dy, c), n)
            dx_here = g - g_mean - (load(ptr_add(x, c), n) - mean_) * slope_
            store(ptr_add(dx, c), dx_here * scale_, n)


@backward.cuda
def backward(op, params, grads, acts, deltas, lo, hi):
    channels, w = op[NORM.channels], op[W]
    first, stride = lo * op[N_IN] + thread_rank() * channels, num_threads() * channels
    for p in range(first, hi * op[N_IN], stride):
        x, y = ptr_add(acts, op[X] + p), op[Y] + p
        mean, scale = _moments_scalar(op, x)
        g_sum, g_dot_x_hat = const_like(acts, 0), const_like(acts, 0)
        for c in range(channels):
            g = params[w + c] * deltas[y + c]
            g_sum += g
            g_dot_x_hat += g * (x[c] - mean) * scale
        for c in range(channels):
            x_hat, g = (x[c] - mean) * scale, params[w + c] * deltas[y + c]
            means = (g_sum + x_hat * g_dot_x_hat) / const_like(acts, channels)
            deltas[op[X] + p + c] = scale * (g - means)


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        grads[W] added to"""
    channels, width = op[NORM.channels], lanes(acts)
    dgamma, dbeta = ptr_add(grads, op[W]), ptr_add(grads, op[W] + channels)
    for p in range(lo * op[N_OUT], hi * op[N_OUT], channels):
        x, dy = ptr_add(acts, op[X] + p), ptr_add(deltas, op[Y] + p)
        mean, scale = _moments(op, x)
        mean_, scale_ = splat(acts, mean), splat(acts, scale)
        for c in range(0, channels, width):
            n, dy_here = channels - c, load(ptr_add(dy, c), channels - c)
            x_hat = (load(ptr_add(x, c), n) - mean_) * scale_
            store(ptr_add(dgamma, c), load(ptr_add(dgamma, c), n) + dy_here * x_hat, n)
            store(ptr_add(dbeta, c), load(ptr_add(dbeta, c), n) + dy_here, n)


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    channels, w = op[NORM.channels], op[W]
    for c in range(thread_rank(), channels, num_threads()):
        dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
        for p in range(lo * op[N_OUT], hi * op[N_OUT], channels):
            x, dy = ptr_add(acts, op[X] + p), deltas[op[Y] + p + c]
            mean, scale = _moments_scalar(op, x)
            dgamma += dy * (x[c] - mean) * scale
            dbeta += dy
        grads[w + c] += dgamma
        grads[w + channels + c] += dbeta


# --- tangents -----------------------------------------------------------------------------------


@inline
def _tangent_means(x, dx, channels, mean, scale):
    """mean ẋ and mean(x̂ ẋ) of the `channels` elements at x and their tangents at dx."""
    dx_mean, product = const_like(x, 0), const_like(x, 0)
    for c in range(channels):
        dx_mean += dx[c]
        product += (x[c] - mean) * scale * dx[c]
    return dx_mean / const_like(x, channels), product / const_like(x, channels)


@kernel(independent=True)
def tangent(op, params, grads, acts, deltas, lo, hi):
    """ẏ = γ (ẋ − mean ẋ − x̂ mean(x̂ ẋ)) / √(σ² + ε)        deltas[y] overwritten"""
    channels, gamma = op[NORM.channels], ptr_add(params, op[W])
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, dx, dy = ptr_add(acts, op[X] + p), ptr_add(deltas, op[X] + p), op[Y] + p
        mean, scale = _moments_scalar(op, x)
        dx_mean, product = _tangent_means(x, dx, channels, mean, scale)
        for c in range(channels):
            x_hat = (x[c] - mean) * scale
            deltas[dy + c] = gamma[c] * scale * (dx[c] - dx_mean - x_hat * product)


@kernel(independent=True)
def second_backward(op, params, grads, acts, deltas, lo, hi):
    """ḋx −= dx mean(x̂ ẋ) / √(σ² + ε) + (m dx̂ + x̂ mean(g dx̂)) / √(σ² + ε)

    dx̂ is the tangent of x̂, g = γ dy and m = mean(g x̂)        tangents of deltas[x] added to
    """
    channels, gamma, tangents = op[NORM.channels], ptr_add(params, op[W]), context(op, TANGENTS)
    n = const_like(acts, channels)
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, dy = ptr_add(acts, op[X] + p), ptr_add(deltas, op[Y] + p)
        dx, result = ptr_add(x, tangents), ptr_add(deltas, tangents + op[X] + p)
        mean, scale = _moments_scalar(op, x)
        dx_mean, product = _tangent_means(x, dx, channels, mean, scale)
        g_mean, m, change = const_like(acts, 0), const_like(acts, 0), const_like(acts, 0)
        for c in range(channels):
            g, x_hat = gamma[c] * dy[c], (x[c] - mean) * scale
            g_mean, m = g_mean + g / n, m + g * x_hat / n
            change += g * scale * (dx[c] - dx_mean - x_hat * product) / n
        for c in range(channels):
            g, x_hat = gamma[c] * dy[c], (x[c] - mean) * scale
            dx_hat = scale * (dx[c] - dx_mean - x_hat * product)
            before = scale * (g - g_mean - x_hat * m)
            result[c] -= scale * (before * product + m * dx_hat + x_hat * change)


@kernel
def second_gradient(op, params, grads, acts, deltas, lo, hi):
    """ḋγ += Σ dy dx̂ with the tangent dx̂ of x̂        grads[W] added to"""
    channels, dgamma, tangents = op[NORM.channels], ptr_add(grads, op[W]), context(op, TANGENTS)
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, dy = ptr_add(acts, op[X] + p), ptr_add(deltas, op[Y] + p)
        dx = ptr_add(x, tangents)
        mean, scale = _moments_scalar(op, x)
        dx_mean, product = _tangent_means(x, dx, channels, mean, scale)
        for c in range(channels):
            x_hat = (x[c] - mean) * scale
            dgamma[c] += dy[c] * scale * (dx[c] - dx_mean - x_hat * product)


@second_gradient.cuda
def second_gradient(op, params, grads, acts, deltas, lo, hi):
    channels, tangents = op[NORM.channels], context(op, TANGENTS)
    for c in range(thread_rank(), channels, num_threads()):
        for p in range(lo * op[N_IN], hi * op[N_IN], channels):
            x = ptr_add(acts, op[X] + p)
            dx = ptr_add(x, tangents)
            mean, scale = _moments_scalar(op, x)
            dx_mean, product = _tangent_means(x, dx, channels, mean, scale)
            x_hat = (x[c] - mean) * scale
            dx_hat = scale * (dx[c] - dx_mean - x_hat * product)
            grads[op[W] + c] += deltas[op[Y] + p + c] * dx_hat
