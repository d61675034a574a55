"""How weights and activations are distributed, and which units are dead or saturated."""

from dataclasses import dataclass

import numpy as np

from numbanet.io import validation
from numbanet.io.tables import Table
from numbanet.network.insight.layerwise import (
    FLAT,
    layer_name,
    limits,
    slopes,
    spaced,
    with_outputs,
)

BINS = 40
"""Bars of a histogram."""
ACTIVITY_SAMPLES = 512
"""Most samples on which activations are measured."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """How the elements of an array are distributed.

    name        "0 Dense weights", or the layer: "1 ReLU"
    mean, std, low, high
    zeros       the fraction of elements that are exactly 0
    edges       (bins + 1,), from low to high
    counts      (bins,), elements between them
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    zeros: float
    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Activity:
    """The outputs of one layer.

    layer       its number, as in `summary`
    outputs     a Distribution over all samples and elements
    dead        (units,) bool: units of the last axis whose slope is 0 for every sample, through
                which nothing is learned; empty where the layer is no activation
    saturated   fraction of elements on which a bounded activation is flat, its slope below a tenth
                of its largest (sigmoid below 0.03 or above 0.97, tanh beyond ±0.95); NaN where the
                layer is none
    """

    layer: int
    outputs: Distribution
    dead: np.ndarray
    saturated: float


class Activities(tuple):
    """The Activity of every layer; a prompt and a notebook show it as a table."""

    def table(self) -> Table:
        """Return one line for each layer; the last one counts dead units of all."""
        rows = [("layer", "mean", "deviation", "zeros", "dead units", "saturated")]
        for one in self:
            dead = f"{one.dead.sum()} of {one.dead.size}" if one.dead.size else ""
            saturated = "" if np.isnan(one.saturated) else f"{one.saturated:.0%}"
            found = one.outputs
            figures = (f"{found.mean:.3g}", f"{found.std:.3g}", f"{found.zeros:.0%}")
            rows.append((found.name, *figures, dead, saturated))
        total = sum(int(one.dead.sum()) for one in self)
        rows.append(("all", "", "", "", f"{total}", ""))
        return Table(rows, left=1)

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def distribution(name: str, values) -> Distribution:
    """The Distribution of an array's elements."""
    values = np.asarray(values, np.float64).reshape(-1)
    counts, edges = np.histogram(values, BINS)
    return Distribution(
        name,
        float(values.mean()),
        float(values.std()),
        float(values.min()),
        float(values.max()),
        float((values == 0).mean()),
        edges,
        counts,
    )


def weights(network) -> tuple[Distribution, ...]:
    """Return the Distribution of every parameter array, layer by layer."""
    return tuple(
        distribution(f"{layer_name(network, k)} {name}", values)
        for k, built in enumerate(network.layers)
        for name, values in built.parameters.items()
    )


def activations(network, x) -> Activities:
    """Measure the outputs of every layer for inputs x (samples, *input_shape), in prediction.

    At most 512 samples, evenly spaced, are taken. The activations inside recurrent layers are not
    seen from outside: only the layer's outputs count. Raises ValueError for inputs that do not fit.
    """
    x = validation.check_inputs(x, network.input_shape, network.dtype)
    x = x[spaced(len(x), ACTIVITY_SAMPLES)]
    return Activities(_activity(network, *one) for one in with_outputs(network, x))


def _activity(network, k: int, inputs, outputs) -> Activity:
    dead, saturated, found = np.zeros(0, bool), float("nan"), slopes(network, k, inputs)
    if found is not None:
        each = np.abs(found).reshape(-1, found.shape[-1])
        dead = (each == 0).all(axis=0)
        largest, bounded = limits(network, k)
        if bounded.any():
            saturated = float((each < FLAT * largest)[:, bounded].mean())
    return Activity(k, distribution(layer_name(network, k), outputs), dead, saturated)
