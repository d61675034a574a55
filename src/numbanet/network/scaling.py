"""Scalings that a network learns from its training data before the first epoch.

Inputs are standardised by its Standardize layers; targets, where `fit(scale_targets=True)` asked
for it, before the loss, and predictions are given back in the targets' own unit.
"""

import numpy as np

from numbanet.io import validation
from numbanet.nn import data
from numbanet.nn.layers import Sigmoid, Softmax, Standardize, Step
from numbanet.nn.layers.base import size
from numbanet.nn.layers.standardize import measure
from numbanet.plan.columns import INPUTS, OUTPUTS

PIECE = 4096
"""Samples that are measured at once."""
LEAST_STEPS = 16
"""A deviation is at least so many of the smallest differences that the dtype can represent."""


def check_layers(layers) -> None:
    """ValueError for a Standardize behind a layer with parameters."""
    for k, built in enumerate(layers):
        if isinstance(built.layer, Standardize) and any(b.n_parameters for b in layers[:k]):
            raise ValueError(
                f"layer {k} (Standardize) stands behind a layer with parameters, whose outputs "
                "change while it is trained; put it in front, or use BatchNorm here"
            )


def adapt(network, x) -> None:
    """Measure the inputs of every Standardize layer, one after the other."""
    x = validation.check_inputs(x, network.input_shape, network.dtype)
    for k, built in enumerate(network.layers):
        if isinstance(built.layer, Standardize):
            mean, deviation = measure(_inputs_of(network, k, x))
            _check_resolution(mean, deviation, network.dtype, f"layer {k} (Standardize): channel")
            built.mean, built.deviation, built.adapted = mean, deviation, 1


def adapt_once(network, x) -> None:
    """Measure the inputs x if there is a Standardize layer that was never adapted."""
    layers = [built for built in network.layers if isinstance(built.layer, Standardize)]
    if any(built.adapted[0] == 0 for built in layers):
        adapt(network, x)


def _inputs_of(network, k: int, x: np.ndarray):
    """The inputs of layer k, whose predecessors have no parameters, piece by piece."""
    shape, ops = network.layers[k].input_shape, network.layer_ops(0, k)
    if not ops:
        for start in range(0, len(x), PIECE):
            yield x[start : start + PIECE].reshape(-1, *shape)
        return
    ops = [data.inputs(size(network.input_shape), x.dtype), *ops, data.outputs(size(shape))]
    build = network.executors.backend.InferenceExecutor
    executor = build(ops, network.dtype, batch=min(len(x), PIECE), threads=1)
    buffers = network.memory[network.parameters.size :]
    for start in range(0, len(x), PIECE):
        piece = x[start : start + PIECE]
        outputs = np.empty((len(piece), *shape), network.dtype)
        executor.bind(INPUTS, piece)
        executor.bind(OUTPUTS, outputs)
        executor.infer(buffers, len(piece))
        executor.release()
        yield outputs


def check_targets(network, y, loss) -> None:
    """ValueError where targets cannot be standardised: they name classes, or outputs are bound."""
    last = network.layers[-1].layer
    if loss.fused_activation or y.dtype.kind != "f" or isinstance(last, (Sigmoid, Softmax, Step)):
        raise ValueError(
            "scale_targets is for real targets; here the targets, the loss or the last activation "
            f"({type(last).__name__}, {type(loss).__name__}) are those of classes: leave it out"
        )


def measure_targets(network, y: np.ndarray) -> None:
    """Measure mean and deviation of every target; the network predicts in their unit from now."""
    mean, deviation = measure(y[start : start + PIECE] for start in range(0, len(y), PIECE))
    _check_resolution(mean, deviation, network.dtype, "y: target")
    built = network.target_scaling
    built.mean, built.deviation = mean, deviation
    network.scales_targets = True
    network.executors.clear()


def _check_resolution(mean, deviation, dtype, where: str) -> None:
    """ValueError for values that the dtype cannot tell apart well enough."""
    limits = np.finfo(dtype)
    with np.errstate(over="ignore"):
        wrong = (
            (deviation < LEAST_STEPS * limits.eps * np.abs(mean))
            | (deviation < limits.tiny)
            | ~np.isfinite(np.maximum(np.abs(mean), deviation).astype(dtype))
        )
    if wrong.any():
        c = int(np.flatnonzero(wrong)[0])
        way_out = "dtype='float64', or subtract a constant" if limits.bits < 64 else "another unit"
        raise ValueError(
            f"{where} {c} has mean {mean[c]:.6g} and deviation {deviation[c]:.3g}, which {dtype} "
            f"does not hold well enough; use {way_out}"
        )
