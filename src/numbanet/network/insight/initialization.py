"""What initial values do: how far signals and gradients come through a fresh network."""

from dataclasses import dataclass, fields, replace

import numpy as np

from numbanet.network import scaling, transfer
from numbanet.network.insight.layerwise import checked, layer_name, spaced, with_outputs
from numbanet.network.insight.learning import SPEED_BATCH, SPEED_BATCHES, speeds

COMMON = ("normal", "lecun", "glorot", "he", "orthogonal")
"""Initialisers that are compared by default."""


@dataclass(frozen=True, eq=False)
class InitializationEffect:
    """Fresh networks that differ in the initial values of their weights.

    initializers   (n,) their names
    names          (layers,) of all layers
    deviation      (n, layers) deviation of each layer's outputs, over samples and elements
    trained        (trained,) the numbers of the layers with parameters
    gradient       (n, trained) the norm of the gradient by each layer's parameters, as in Speeds
    loss           (n,) the loss before the first step
    """

    initializers: tuple[str, ...]
    names: tuple[str, ...]
    deviation: np.ndarray
    trained: np.ndarray
    gradient: np.ndarray
    loss: np.ndarray


def initializations(network, x, y, initializers=COMMON, *, loss=None) -> InitializationEffect:
    """Compare initialisers: fresh networks of these layers, with the network's seed.

    initializers   names, as in `nn.initializers`; of the weights of all layers
    loss           by default the one that belongs to the last activation
    At most 256 samples, evenly spaced, are taken. Standardize layers are measured on them. Raises
    ValueError for data that do not fit and for an unknown name.
    """
    chosen, rows = network.resolve_loss(loss), []
    x, y, _ = checked(network, x, y, chosen)
    some = spaced(len(x), SPEED_BATCH * SPEED_BATCHES)
    x, y = x[some], y[some]
    for name in initializers:
        layers = [_with(transfer.without_activation(built.layer), name) for built in network.layers]
        fresh = transfer.alike(network, layers, network.input_shape)
        scaling.adapt(fresh, x, again=False)
        transfer.copy_outputs(fresh, network)
        found = speeds(fresh, x, y, chosen)
        deviation = [float(outputs.std()) for _, _, outputs in with_outputs(fresh, x)]
        rows.append((deviation, found, fresh.evaluate(x, y, loss=chosen)["loss"]))
    return InitializationEffect(
        tuple(initializers),
        tuple(layer_name(network, k) for k in range(len(network.layers))),
        np.array([row[0] for row in rows]),
        rows[0][1].layers,
        np.array([row[1].gradient for row in rows]),
        np.array([row[2] for row in rows]),
    )


def _with(layer, name: str):
    """The layer with this initialiser of its weights, if it has any."""
    has = any(field.name == "initializer" for field in fields(layer))
    return replace(layer, initializer=name) if has else layer
