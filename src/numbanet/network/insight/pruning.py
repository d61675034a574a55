"""Pruning: a smaller network without the units that matter least.

Units are neurons of dense layers and channels of convolutions. A unit goes with its weights, with
what belongs to it in the layers behind (the scale of a BatchNorm, an activation of its own), and
with the weights that read it. Whether a layer behind works on what is left is measured: it is run
on random inputs before and after, and a layer whose outputs differ is refused by its name.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from numbanet.io.fields import Real, shown
from numbanet.io.tables import Table
from numbanet.io.validation import check_inputs
from numbanet.network import transfer
from numbanet.network.insight.importance import importance, layer_number
from numbanet.network.insight.layerwise import has_matrix, layer_name, unscaled_part
from numbanet.nn.layers import Activation, Conv1D, Conv2D, Dense, PerNeuron

UNITS = {Dense: "units", Conv1D: "filters", Conv2D: "filters"}
"""Layers whose units can be left out, and the field that counts them."""
TOLERANCE = 1e-4
"""How far outputs may differ, of their largest, by the order of a sum in float32."""
TRIALS = 3
"""Random samples on which layers are compared."""
TIMED_ROUNDS, TIMED_SECONDS = 7, 0.02
"""Rounds of predictions that are timed, and the least duration of one."""


def prune(network, keep=0.5, *, layers=None, neurons=None, by="weights", x=None, y=None, loss=None):
    """Return a smaller network without the least important units; this one is left as it is.

    keep      the fraction of each layer's units that stays, above 0 and at most 1; at least one
    layers    numbers of dense and convolutional layers, as in `summary`, or one; by default all
              but the last one with weights
    neurons   instead of keep: a dict of the units to leave out by layer, {0: [3, 5]}; an array of
              bool (units,) is True where one is left out
    by        how `importance` measures the units, with x, y and the loss: "weights" needs no data
    x         with it, the mean of every unit left out goes into the bias of the layer that reads it
    The outputs are the same where the units left out give 0 for every input, or with x the same for
    all of x, but for the border of a padded convolution that reads them: there no bias makes up for
    them. Train a few epochs after leaving out others. The optimiser's state is not kept. Raises
    ValueError for units that are not there, and for layers that cannot be pruned, or that do not
    work on fewer inputs, by name.
    """
    if neurons is None:
        keep = Real(above=0, most=1)(keep, "keep", "prune")
        named = list(layers) if np.iterable(layers) else [layers]
        chosen = _prunable(network) if layers is None else transfer.selected(network, named)
        neurons = {k: _least(network, k, keep, by, x, y, loss) for k in chosen}
    elif layers is not None:
        raise ValueError("pass layers or neurons, not both: neurons names its layers")
    if not isinstance(neurons, Mapping):
        raise TypeError(f"neurons is a dict of units by layer, {{0: [3, 5]}}, got {shown(neurons)}")
    if not neurons:
        raise ValueError("no layer is named: neurons is a dict of units by layer, {0: [3, 5]}")
    if x is not None:
        x = check_inputs(x, network.input_shape, network.dtype)
    removed = {layer_number(network, k): units for k, units in neurons.items()}
    if len(removed) < len(neurons):
        raise ValueError(f"neurons names a layer twice: {', '.join(map(str, neurons))}")
    for k, units in removed.items():
        network = _cut(network, k, _kept(network, k, units), x)
    return network


def _prunable(network) -> list[int]:
    weighted = [k for k, built in enumerate(network.layers) if has_matrix(built)]
    found = [k for k in weighted[:-1] if type(network.layers[k].layer) in UNITS]
    if not found:
        raise ValueError(
            "the network has no dense or convolutional layer before its last layer with weights, "
            "so nothing can be pruned"
        )
    return found


def _least(network, k: int, keep: float, by: str, x, y, loss) -> np.ndarray:
    """The units of layer k that matter least, behind its activation."""
    last = k
    while last + 1 < len(network.layers) and isinstance(network.layers[last + 1].layer, Activation):
        last += 1
    found = importance(network, x, y, k if by == "weights" else last, by, loss=loss)
    return found.order[max(1, round(keep * found.values.size)) :]


def _kept(network, k: int, units) -> np.ndarray:
    """The indices of the units that stay; ValueError for units that are not there, or all."""
    built = network.layers[k]
    if type(built.layer) not in UNITS or getattr(built.layer, "groups", 1) > 1:
        raise ValueError(
            f"layer {layer_name(network, k)} cannot be pruned: its units depend on one another; "
            "dense layers and convolutions without groups can"
        )
    n = built.output_shape[-1]
    units = _indices(units, n, f"the units of layer {layer_name(network, k)}")
    if len(units) and not 0 <= units[0] <= units[-1] < n:
        raise ValueError(f"layer {layer_name(network, k)} has units 0 … {n - 1}, got {units}")
    if len(units) == n:
        raise ValueError(f"layer {layer_name(network, k)}: at least one unit has to stay")
    return np.setdiff1d(np.arange(n), units)


def _indices(units, n: int, name: str) -> np.ndarray:
    """Sorted indices for those of n units that are given by number, or True in an array of bool."""
    found = np.atleast_1d(np.asarray(units))
    if found.dtype == bool and found.shape == (n,):
        return np.flatnonzero(found)
    if found.ndim > 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(f"{name} are integers, or a bool for each of {n}, got {shown(units)}")
    return np.unique(found.astype(np.int64))


def _cut(network, k: int, kept: np.ndarray, x):
    """The network with the units `kept` of layer k; x checked inputs, or None."""
    layers = [_plain(transfer.without_activation(built.layer)) for built in network.layers]
    tensors = [{**built.parameters, **built.buffers} for built in network.layers]
    layers[k] = replace(layers[k], **{UNITS[type(layers[k])]: len(kept)})
    tensors[k] = {name: values[..., kept] for name, values in tensors[k].items()}
    shape, read = layers[k].output_shape(network.layers[k].input_shape), False
    for j in range(k + 1, len(layers)):
        if isinstance(layers[j], PerNeuron):
            layers[j] = PerNeuron(tuple(layers[j].activations[unit] for unit in kept))
        part = _narrowed(network, j, layers[j], shape, kept)
        tensors[j] = {**part.layers[0].parameters, **part.layers[0].buffers}
        read = part.output_shape == network.layers[j].output_shape
        if read:
            if x is not None and "bias" in tensors[j]:
                tensors[j]["bias"] += _mean_left_out(network, j, kept, x)
            break
        kept = _behind(network.layers[j], kept)
        shape = part.output_shape
    if not read:
        raise ValueError(
            f"the units of layer {layer_name(network, k)} are the network's outputs; "
            "prune a layer before it"
        )
    made = transfer.alike(network, layers, network.input_shape)
    for built, source, values in zip(made.layers, network.layers, tensors, strict=True):
        built.copy_settings(source)
        for name, view in {**built.parameters, **built.buffers}.items():
            view[...] = values[name]
    transfer.copy_outputs(made, network)
    made.feature_names = network.feature_names
    return made


def _plain(layer):
    """The layer with default initialisers where it had arrays, whose shapes would not fit."""
    arrays = (np.ndarray, list, tuple)
    changed = {
        field.name: field.default
        for field in fields(layer)
        if "initializer" in field.name and isinstance(getattr(layer, field.name), arrays)
    }
    return replace(layer, **changed)


def _behind(built, kept: np.ndarray) -> np.ndarray:
    """The indices on the last axis of a layer's outputs that come from those kept of its inputs."""
    n = built.input_shape[-1]
    if built.output_shape[-1] == n:
        return kept
    return np.flatnonzero(np.isin(np.arange(built.output_shape[-1]) % n, kept))


def _narrowed(network, j: int, layer, shape, kept: np.ndarray):
    """A network of layer j alone for inputs of which only those kept are left, or are not 0.

    Raises ValueError with the layer's name where it does not give what it gave.
    """
    whole, name = unscaled_part(network, j, j + 1), layer_name(network, j)
    refused = f"layer {name} does not work on fewer units"
    try:
        part = transfer.alike(network, [layer], shape)
        for built in part.layers:
            for name, view in {**built.parameters, **built.buffers}.items():
                view[...] = _taken(getattr(whole.layers[0], name), view.shape, kept)
        z = np.random.default_rng(0).normal(size=(TRIALS, *whole.input_shape))
        z = z.astype(network.dtype)
        found, reads = part.predict(z[..., kept]), part.output_shape == whole.output_shape
        if reads:
            z[..., np.setdiff1d(np.arange(z.shape[-1]), kept)] = 0
        expected = whole.predict(z)
        if not reads:
            expected = expected[..., _behind(whole.layers[0], kept)]
        same = np.allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    except (ValueError, IndexError) as error:
        raise ValueError(f"{refused}: {error}") from None
    if not same:
        raise ValueError(
            f"{refused}: its outputs mix them; prune a layer behind it, or name other layers"
        )
    return part


def _mean_left_out(network, j: int, kept: np.ndarray, x) -> np.ndarray | float:
    """What the inputs of layer j that are left out add to its outputs in the mean, (units,).

    Of positions that of the middle: at the border of a padded convolution it is less. 0 for a layer
    that does not add its inputs up, as a recurrent one.
    """
    whole, z = unscaled_part(network, j, j + 1), network[:j].predict(x)
    mean = z.mean(axis=tuple(range(z.ndim - 1)), dtype=np.float64)
    mean[kept] = 0
    at = np.stack([np.broadcast_to(n * mean, whole.input_shape) for n in (0, 1, 2)])
    nothing, once, twice = whole.predict(at.astype(network.dtype)).astype(np.float64)
    limit = TOLERANCE * np.abs(twice).max()
    if not np.allclose(twice - nothing, 2 * (once - nothing), rtol=0, atol=limit):
        return 0.0
    return (once - nothing)[tuple(n // 2 for n in once.shape[:-1])]


def _taken(values: np.ndarray, shape, kept: np.ndarray) -> np.ndarray:
    """The elements that belong to the units kept, along the axis that is to be shorter."""
    shorter = [axis for axis in range(values.ndim) if values.shape[axis] != shape[axis]]
    for axis in shorter:
        values = np.take(values, kept, axis)
    return values


# --- what it costs --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Comparison:
    """Networks side by side.

    parameters   (networks,) how many there are
    bytes        (networks,) of the parameters and buffers, as in a file
    seconds      (networks,) of a prediction of all samples, the best of several rounds
    loss         (networks,) the mean loss on the samples
    """

    parameters: np.ndarray
    bytes: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray

    def table(self) -> Table:
        """Return one line for each network; the last one divides the last network by the first."""
        columns = (self.parameters, self.bytes, self.seconds, self.loss)
        rows = [
            (str(k), f"{n:,}", f"{size:,}", f"{seconds:.3g}", f"{loss:.4g}")
            for k, (n, size, seconds, loss) in enumerate(zip(*columns, strict=True))
        ]
        head = ("network", "parameters", "bytes", "seconds", "loss")
        ratio = ("last : first", *(f"{column[-1] / column[0]:.2f}" for column in columns))
        return Table([head, *rows, ratio], left=1)

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def compare(networks, x, y, loss=None) -> Comparison:
    """Measure size, time and loss of several networks on the same samples.

    networks   a list of them
    Raises TypeError for anything else.
    """
    if isinstance(networks, Mapping) or hasattr(networks, "evaluate"):
        way = "list(networks.values())" if isinstance(networks, Mapping) else "[network]"
        raise TypeError(f"networks is a list of networks, got {shown(networks)}; pass {way}")
    networks = list(networks)
    losses = [network.evaluate(x, y, loss=loss)["loss"] for network in networks]
    return Comparison(
        np.array([network.parameters.size for network in networks]),
        np.array([network.memory.nbytes for network in networks]),
        np.array([_seconds(network, x) for network in networks]),
        np.array(losses),
    )


def _seconds(network, x) -> float:
    """The time of a prediction, the best of some rounds."""
    network.predict(x)
    times = 1
    found: list[float] = []
    while len(found) < TIMED_ROUNDS:
        began = time.perf_counter()
        for _ in range(times):
            network.predict(x)
        spent = time.perf_counter() - began
        if spent < TIMED_SECONDS:
            times *= 2
        else:
            found.append(spent / times)
    return min(found)
