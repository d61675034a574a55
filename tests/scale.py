"""Scale, a layer of the tests' own: z = w ∘ a for a sample of any shape, a weight for each number.

Put before another layer, its gradient needs that layer's delta for every element of its input. It
is also an example of a layer that a user adds.
"""

from dataclasses import dataclass

import numbanet as nn
from numbanet.backend.intrinsics import const_like
from numbanet.nn.layers.base import size
from numbanet.plan.columns import N_IN, SAMPLES, W, X, Y, context
from numbanet.plan.op import Op


@nn.kernel(independent=True)
def forward(op, params, grads, acts, deltas, lo, hi):
    """z = w a"""
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            acts[op[Y] + i * n + k] = params[op[W] + k] * acts[op[X] + i * n + k]


@nn.kernel(independent=True)
def backward(op, params, grads, acts, deltas, lo, hi):
    """da = w dz"""
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            deltas[op[X] + i * n + k] = params[op[W] + k] * deltas[op[Y] + i * n + k]


@nn.kernel(independent=True)
def gradient(op, params, grads, acts, deltas, lo, hi):
    """dw = Σ a dz, for weights lo ≤ k < hi"""
    n = op[N_IN]
    for k in range(lo, hi):
        grads[op[W] + k] = const_like(grads, 0)
        for i in range(context(op, SAMPLES)):
            grads[op[W] + k] += acts[op[X] + i * n + k] * deltas[op[Y] + i * n + k]


@dataclass(frozen=True, eq=False)
class Scale(nn.Layer):
    """A weight for each number of a sample; shape unchanged."""

    def parameters(self, shape):
        return {"weights": shape}

    def initializers(self, next_activation):
        return {"weights": nn.initializers.Uniform(0.5, 1.5)}

    def ops(self, shape):
        n = size(shape)
        return [
            Op(
                "Scale",
                n,
                n,
                forward,
                backward,
                gradient,
                linear=True,
                param_rows=n,
                param_cols=1,
                n_weights=n,
            )
        ]
