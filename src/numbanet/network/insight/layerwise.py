"""A network taken layer by layer: outputs, and derivatives by a layer's inputs."""

from collections.abc import Iterator

import numpy as np

from numbanet.io.validation import check_dense, has_missing
from numbanet.network import embedded
from numbanet.nn.layers import Activation
from numbanet.nn.layers.base import size

HANDLE_ROWS = 64
"""Most samples in a call that takes a derivative."""
PROBE = np.linspace(-20, 20, 401)
"""Inputs on which an activation is looked at: beyond them every bounded one is flat."""
FLAT, VERY_FLAT = 0.1, 0.01
"""An activation is flat where its slope is below this part of its largest: a sigmoid below 0.03
and above 0.97, a tanh beyond ±0.95. One is bounded if it is very flat at both ends of the probe."""


def layer_name(network, k: int) -> str:
    """How messages and tables call a layer: "3 Dense"."""
    return f"{k} {type(network.layers[k].layer).__name__}"


def has_matrix(built) -> bool:
    """Whether a layer multiplies its inputs by a matrix, `weights` (…, inputs, outputs)."""
    weights = built.parameters.get("weights")
    return weights is not None and weights.ndim > 1 and is_differentiable(built)


def spaced(count: int, most: int) -> np.ndarray:
    """At most so many of the indices 0 … count − 1, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def unscaled_part(network, first: int, last: int):
    """network[first:last], whose outputs are its last layer's even where targets are scaled."""
    part = network[first:last]
    part.scales_targets = False
    part.target_scaling.mean, part.target_scaling.deviation = 0, 0
    return part


def checked(network, x, y, loss) -> tuple[np.ndarray, np.ndarray, bool]:
    """Checked x and y, as fit and evaluate take them, and whether y names classes."""
    check_dense(x, "what it holds is examined")
    check_one_target(network)
    x, y, classes = network.check_data(x, y, loss)
    return x, own_targets(network, y), classes


def check_one_target(network) -> None:
    """ValueError for a network whose outputs have targets for every step."""
    if network.output_steps:
        raise ValueError(
            f"the network gives outputs {network.output_shape} with targets for each step, and "
            "samples with one target are examined: take a network whose last recurrent layer has "
            "return_sequences=False"
        )


def own_targets(network, y) -> np.ndarray:
    """Checked targets as fit takes them: in their own unit, missing ones masked."""
    y = network.unscale_targets(y)
    return np.ma.masked_invalid(y) if has_missing(y) else y


def with_outputs(network, x) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield every layer's number, inputs and outputs in prediction, (samples, …)."""
    for k in range(len(network.layers)):
        outputs = network[k : k + 1].predict(x)
        yield k, x, outputs
        x = outputs


def input_gradient(network, x, dout) -> np.ndarray:
    """dL/dx (samples, *input_shape) for dL/d outputs, in prediction.

    Raises ValueError for layers without a derivative.
    """
    rows = min(len(x), HANDLE_ROWS)
    model = network.handle(rows=rows)
    work = np.empty(embedded.work_size(model), network.dtype)
    nothing, found = np.empty(0, network.dtype), np.empty((len(x), size(network.input_shape)))
    for start in range(0, len(x), rows):
        chosen = np.minimum(np.arange(start, start + rows), len(x) - 1)  # the last one again
        row, dy = (np.asarray(array[chosen], network.dtype).reshape(-1) for array in (x, dout))
        drow = np.empty_like(row)
        embedded.vjp(model, network.memory, row, dy, nothing, drow, work)
        found[chosen] = drow.reshape(rows, -1)
    return found.reshape(len(x), *network.input_shape)


def is_differentiable(built) -> bool:
    """Whether an error passes back through a layer; not where its inputs are indices."""
    return all(op.backward is not None for op in built.layer.ops(built.input_shape))


def slopes(network, k: int, z) -> np.ndarray | None:
    """The slope f'(z) of the activation that is layer k, for its inputs z (samples, …).

    None where the layer is no activation that treats every element alone, as a softmax, or has no
    derivative.
    """
    built, shape = network.layers[k], network.layers[k].input_shape
    if not (
        isinstance(built.layer, Activation) and built.layer.ops(shape) and is_differentiable(built)
    ):
        return None
    part = unscaled_part(network, k, k + 1)
    some, mask = z[:2], np.arange(size(shape)).reshape(shape) % 2
    both = np.broadcast_to(mask, some.shape)
    alone = input_gradient(part, some, both) == both * input_gradient(part, some, 1 + 0 * both)
    return input_gradient(part, z, np.ones_like(z)) if alone.all() else None


def limits(network, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest |f'| of each unit of an activation, and whether it is flat at both ends.

    Both (units,), the last axis of the layer; they are measured on PROBE.
    """
    part = type(network)([network.layers[k].layer], network.layers[k].input_shape[-1:], "float64")
    z = np.repeat(PROBE[:, None], part.input_shape[0], axis=1)
    found = np.abs(input_gradient(part, z, np.ones_like(z)))
    largest = found.max(axis=0)
    return largest, (found[[0, -1]] < VERY_FLAT * largest).all(axis=0)
