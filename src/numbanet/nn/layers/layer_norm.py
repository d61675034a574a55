"""LayerNorm: each sample (or pixel) normalised to mean 0 and variance 1, then scaled and shifted.

    x̂ = (x − μ) / √(σ² + ε)        y = γ x̂ + β
    dx = (g − mean g − x̂ mean(g x̂)) / √(σ² + ε),  g = γ dy        dγ = Σ dy x̂        dβ = Σ dy

Formulas and defaults are PyTorch's.

Source   Ba, Kiros, Hinton 2016
"""

from numbanet.backend.intrinsics import const_like, num_threads, thread_rank
from numbanet.backend.jit import inline, kernel
from numbanet.nn.layers.base import Shape
from numbanet.nn.layers.normalization import NORM, Normalization, inverse_std
from numbanet.plan.columns import N_IN, N_OUT, W, X, Y
from numbanet.plan.op import Op


class LayerNorm(Normalization):
    """Layer normalisation over the last axis: the whole vector, or the channels of each pixel."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, forward, backward, accumulate_gradient)]


@inline
def _moments(op, acts, x):
    """Mean and 1 / √(σ² + ε) of the elements acts[x … x + channels)."""
    channels, mean, m2 = op[NORM.channels], const_like(acts, 0), const_like(acts, 0)
    for c in range(channels):
        mean += acts[x + c]
    mean /= const_like(acts, channels)
    for c in range(channels):
        m2 += (acts[x + c] - mean) * (acts[x + c] - mean)
    return mean, inverse_std(op, acts, m2 / const_like(acts, channels))


@kernel(independent=True)
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = γ x̂ + β        acts[y] overwritten"""
    channels, w = op[NORM.channels], op[W]
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, y = op[X] + p, op[Y] + p
        mean, scale = _moments(op, acts, x)
        for c in range(channels):
            acts[y + c] = params[w + c] * (acts[x + c] - mean) * scale + params[w + channels + c]


@kernel(independent=True)
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = (g − mean g − x̂ mean(g x̂)) / √(σ² + ε) with g = γ dy        deltas[x] overwritten"""
    channels, w = op[NORM.channels], op[W]
    for p in range(lo * op[N_IN], hi * op[N_IN], channels):
        x, y = op[X] + p, op[Y] + p
        mean, scale = _moments(op, acts, x)
        g_sum, g_dot_x_hat = const_like(acts, 0), const_like(acts, 0)
        for c in range(channels):
            g = params[w + c] * deltas[y + c]
            g_sum += g
            g_dot_x_hat += g * (acts[x + c] - mean) * scale
        for c in range(channels):
            x_hat = (acts[x + c] - mean) * scale
            g = params[w + c] * deltas[y + c]
            means = (g_sum + x_hat * g_dot_x_hat) / const_like(acts, channels)
            deltas[x + c] = scale * (g - means)


@kernel
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    """dγ += Σ dy x̂, dβ += Σ dy        grads[W] added to"""
    channels, w = op[NORM.channels], op[W]
    for p in range(lo * op[N_OUT], hi * op[N_OUT], channels):
        x, y = op[X] + p, op[Y] + p
        mean, scale = _moments(op, acts, x)
        for c in range(channels):
            grads[w + c] += deltas[y + c] * (acts[x + c] - mean) * scale
            grads[w + channels + c] += deltas[y + c]


@accumulate_gradient.cuda
def accumulate_gradient(op, params, grads, acts, deltas, lo, hi):
    channels, w = op[NORM.channels], op[W]
    for c in range(thread_rank(), channels, num_threads()):
        dgamma, dbeta = const_like(acts, 0), const_like(acts, 0)
        for p in range(lo * op[N_OUT], hi * op[N_OUT], channels):
            mean, scale = _moments(op, acts, op[X] + p)
            dgamma += deltas[op[Y] + p + c] * (acts[op[X] + p + c] - mean) * scale
            dbeta += deltas[op[Y] + p + c]
        grads[w + c] += dgamma
        grads[w + channels + c] += dbeta
