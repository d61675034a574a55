"""Standardize: each channel with mean 0 and deviation 1, as measured on the training data.

    y = (x − mean) / deviation        dx = dy / deviation

Mean and deviation are buffers: they are measured once (`Sequential.adapt`), saved with the network
and not trained. `UnscaleTargets` is the way back, for targets that were standardised in training.

    y = mean + deviation · t
"""

from dataclasses import dataclass

import numpy as np

from numbanet.backend.jit import kernel
from numbanet.nn.layers.base import Layer, Shape, size
from numbanet.plan.columns import BUFFERS, N_OUT, Attrs, Y
from numbanet.plan.op import Op

STANDARDIZE = Attrs("channels")
CONSTANT = 16 * np.finfo(np.float64).eps
"""A channel that varies by less than this part of its mean counts as constant: it is rounding."""


@dataclass(frozen=True, eq=False)
class _Affine(Layer):
    """Buffers for a mean and a deviation per channel, and an op in place that uses them."""

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        return {"mean": (shape[-1],), "deviation": (shape[-1],)}

    def initialize_buffers(self, views) -> None:
        views["mean"][:], views["deviation"][:] = 0, 1

    def _op(self, shape: Shape, forward, backward=None) -> Op:
        n, attrs = size(shape), STANDARDIZE.pack(channels=shape[-1])
        buffers = sum(map(size, self.buffers(shape).values()))
        return Op(
            type(self).__name__,
            n,
            n,
            forward,
            backward,
            linear=True,
            tangent=backward,  # a factor for each channel
            in_place=True,
            buffers=buffers,
            attrs=attrs,
        )


@dataclass(frozen=True, eq=False)
class Standardize(_Affine):
    """Standardise the inputs: subtract each channel's mean and divide by its deviation.

    For a vector every element is a channel, for an image the last axis. Both are measured on the
    training data before the first epoch, or by `network.adapt(x)`; a channel that does not vary is
    only centred. It stands before the first layer with parameters.
    """

    def buffers(self, shape: Shape) -> dict[str, Shape]:
        return {**super().buffers(shape), "adapted": (1,)}

    def initialize_buffers(self, views) -> None:
        super().initialize_buffers(views)
        views["adapted"][:] = 0

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, forward, backward)]


@dataclass(frozen=True, eq=False)
class UnscaleTargets(_Affine):
    """The last step of a prediction: from standardised targets to their own unit."""

    def ops(self, shape: Shape) -> list[Op]:
        return [self._op(shape, unscale, unscale_backward)]


@kernel(independent=True)
def forward(op, params, grads, acts, deltas, lo, hi):
    """y = (x − mean) / deviation        acts[y] in place"""
    channels, mean = op[STANDARDIZE.channels], op[BUFFERS]
    for p in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], channels):
        for c in range(channels):
            acts[p + c] = (acts[p + c] - params[mean + c]) / params[mean + channels + c]


@kernel(independent=True)
def backward(op, params, grads, acts, deltas, lo, hi):
    """dx = dy / deviation        deltas[y] in place"""
    channels, mean = op[STANDARDIZE.channels], op[BUFFERS]
    for p in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], channels):
        for c in range(channels):
            deltas[p + c] /= params[mean + channels + c]


@kernel(independent=True)
def unscale(op, params, grads, acts, deltas, lo, hi):
    """y = mean + deviation · t        acts[y] in place"""
    channels, mean = op[STANDARDIZE.channels], op[BUFFERS]
    for p in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], channels):
        for c in range(channels):
            acts[p + c] = params[mean + c] + params[mean + channels + c] * acts[p + c]


@kernel(independent=True)
def unscale_backward(op, params, grads, acts, deltas, lo, hi):
    """dt = deviation · dy        deltas[y] in place"""
    channels, mean = op[STANDARDIZE.channels], op[BUFFERS]
    for p in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT], channels):
        for c in range(channels):
            deltas[p + c] *= params[mean + channels + c]


def measure(pieces) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation (channels,) of arrays (…, channels), in float64.

    pieces   the data, piece by piece; a channel that does not vary has deviation 0
    """
    count, origin, total, squares = 0, np.zeros(1), np.zeros(1), np.zeros(1)
    for piece in pieces:
        rows = piece.reshape(-1, piece.shape[-1]).astype(np.float64)
        if not count:
            origin = rows.mean(axis=0)  # sums about it lose no digits
        count, rows = count + len(rows), rows - origin
        total, squares = total + rows.sum(axis=0), squares + (rows * rows).sum(axis=0)
    offset = total / count
    mean, deviation = origin + offset, np.sqrt(np.maximum(squares / count - offset**2, 0))
    return mean, np.where(deviation > CONSTANT * np.abs(mean), deviation, 0.0)
