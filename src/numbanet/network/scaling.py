"""Scalings that a network learns from its training data before the first epoch.

Inputs are standardised by its Standardize layers; targets, where `fit(scale_targets=True)` asked
for it, before the loss, and predictions are given back in the targets' own unit.
"""

import numpy as np

from numbanet.io import validation
from numbanet.io.sparse import SparseRows
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


class Undo:
    """Scalings and names of a network as they are, to be put back if a training does not begin.

    As a context it puts them back where an error leaves it.
    """

    def __init__(self, network):
        self.network, self.scales_targets = network, network.scales_targets
        self.names = network.class_names, network.feature_names
        self.buffers = network.memory[network.parameters.size :].copy()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            self()

    def __call__(self) -> None:
        """Put them back."""
        network = self.network
        network.class_names, network.feature_names = self.names
        network.memory[network.parameters.size :] = self.buffers
        if network.scales_targets != self.scales_targets:
            network.scales_targets = self.scales_targets
            network.executors.clear()


def adapt(network, x, *, again: bool = True) -> None:
    """Measure the inputs of Standardize layers, one after the other; of new ones without `again`.

    A layer is new where it was never adapted and mean and deviation are still 0 and 1.
    """
    kinds = [(k, one) for k, one in enumerate(network.layers) if isinstance(one.layer, Standardize)]
    wanted = [(k, built) for k, built in kinds if again or _is_new(built)]
    if not wanted and not again:
        return
    x = validation.check_inputs(x, network.input_shape, network.dtype)
    with Undo(network):
        for k, built in wanted:
            where = f"layer {k} (Standardize): channel"
            measured = measure(_inputs_of(network, k, x))
            mean, deviation = _held(*measured, network.dtype, where)
            built.mean, built.deviation, built.adapted = mean, deviation, 1


def check_measured(network, scale_targets: bool) -> None:
    """ValueError where a training in blocks would have to measure all its data first."""
    if scale_targets:
        raise ValueError(
            "scale_targets measures all targets before the first epoch, and the data come in "
            "blocks; pass targets that are scaled"
        )
    for k, built in enumerate(network.layers):
        if isinstance(built.layer, Standardize) and _is_new(built):
            raise ValueError(
                f"layer {k} (Standardize) measures all inputs before the first epoch, and the data "
                "come in blocks; call network.adapt with some of the inputs first"
            )


def _is_new(built) -> bool:
    changed = built.adapted[0] or built.mean.any() or (built.deviation != 1).any()
    return not changed


def _inputs_of(network, k: int, x: np.ndarray):
    """The inputs of layer k, whose predecessors have no parameters, piece by piece."""
    shape, ops = network.layers[k].input_shape, network.layer_ops(0, k)
    if not ops:
        for start in range(0, len(x), PIECE):
            yield _dense(x, start).reshape(-1, *shape)
        return
    ops = [data.inputs(size(network.input_shape), x.dtype), *ops, data.outputs(size(shape))]
    build = network.executors.backend.InferenceExecutor
    executor = build(ops, network.dtype, batch=min(len(x), PIECE), threads=1)
    buffers = network.memory[network.parameters.size :]
    for start in range(0, len(x), PIECE):
        piece = _dense(x, start)
        outputs = np.empty((len(piece), *shape), network.dtype)
        executor.bind(INPUTS, piece)
        executor.bind(OUTPUTS, outputs)
        executor.infer(buffers, len(piece))
        executor.release()
        yield outputs


def _dense(x, start: int) -> np.ndarray:
    """A piece of the inputs, an array or SparseRows."""
    rows = slice(start, start + PIECE)
    return x.dense(rows) if isinstance(x, SparseRows) else x[rows]


def check_last_layer(network) -> None:
    """ValueError for a last activation that gives classes, for a network that scales targets."""
    last = network.layers[-1].layer
    if isinstance(last, (Sigmoid, Softmax, Step)):
        raise ValueError(
            "scale_targets is for real targets; the last activation here, "
            f"{type(last).__name__}, is that of classes: leave it out"
        )


def check_targets(network, y, loss) -> None:
    """ValueError where targets cannot be standardised, or not any more."""
    check_last_layer(network)
    if network.output_steps:
        raise ValueError(
            "scale_targets measures the targets of samples, and here every step of a sample has "
            "some; scale them before fit"
        )
    if loss.fused_activation or y.dtype.kind != "f":
        raise ValueError(
            "scale_targets is for real targets; these name classes, or the loss "
            f"({type(loss).__name__}) is for classes: leave it out"
        )
    if network.epoch:
        raise ValueError(
            f"scale_targets begins with the first fit; this network was trained for "
            f"{network.epoch} epochs on targets as they were. network.initialize() begins anew"
        )


def measure_targets(network, y: np.ndarray) -> None:
    """Measure mean and deviation of every target; the network predicts in their unit from now."""
    if validation.has_missing(y):
        columns = [column[~np.isnan(column), None] for column in y.T]
        each = [measure([known if len(known) else np.zeros((1, 1))]) for known in columns]
        mean, deviation = (np.concatenate(values) for values in zip(*each, strict=True))
    else:
        pieces = (y[start : start + PIECE] for start in range(0, len(y), PIECE))
        mean, deviation = measure(pieces)
    mean, deviation = _held(mean, deviation, network.dtype, "y: target")
    built = network.target_scaling
    built.mean, built.deviation = mean, deviation
    network.scales_targets = True
    network.executors.clear()


def _held(mean, deviation, dtype, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation, 1 where nothing varies; ValueError where the dtype does not hold them."""
    limits, constant = np.finfo(dtype), deviation == 0
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(np.maximum(np.abs(mean), deviation).astype(dtype)) | ~constant & (
            (deviation < LEAST_STEPS * limits.eps * np.abs(mean)) | (deviation < limits.tiny)
        )
    if wrong.any():
        c = int(np.flatnonzero(wrong)[0])
        way_out = "dtype='float64', or subtract a constant" if limits.bits < 64 else "another unit"
        raise ValueError(
            f"{where} {c} has mean {mean[c]:.6g} and deviation {deviation[c]:.3g}, which {dtype} "
            f"does not hold well enough; use {way_out}"
        )
    return mean, np.where(constant, 1.0, deviation)
