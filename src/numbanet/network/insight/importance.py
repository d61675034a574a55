"""How much inputs and neurons matter: by their weights, by permutation, by ablation."""

from dataclasses import dataclass

import numpy as np

from numbanet.io.registry import nearest
from numbanet.io.tables import Table
from numbanet.io.validation import check_int
from numbanet.network import transfer
from numbanet.network.insight.layerwise import checked, has_matrix, layer_name, with_outputs

WAYS = ("permutation", "ablation", "weights")
SHOWN = 20
"""Most lines of a table."""


@dataclass(frozen=True, eq=False)
class Importance:
    """How much each unit matters.

    name     what the units are: "inputs" or a layer
    by       "permutation" and "ablation": the rise of the loss; "weights": a product of norms
    values   (units,) of a vector or of channels, (height, width) for the pixels of images
    std      the deviation of the rise over repeated permutations, else zeros; of the same shape
    units    their names, by default their indices
    loss     the loss that the rise is counted from, NaN for "weights"
    """

    name: str
    by: str
    values: np.ndarray
    std: np.ndarray
    units: tuple[str, ...]
    loss: float

    @property
    def order(self) -> np.ndarray:
        """The flat indices of the units, the most important first."""
        return np.argsort(-self.values, axis=None, kind="stable")

    def table(self) -> Table:
        """Return the most important units, at most 20, with their sum."""
        flat, rows = self.values.ravel(), [(self.name, self.by)]
        chosen = self.order[:SHOWN]
        rows += [(self.units[k], f"{flat[k]:.4g}") for k in chosen]
        return Table([*rows, (f"{len(chosen)} of {flat.size}", "")], left=1)

    def __repr__(self):
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def importance(
    network, x=None, y=None, layer=None, by="permutation", *, loss=None, repeats=5, seed=0
) -> Importance:
    """Measure how much each input, or each unit of a layer, matters.

    layer     None for the inputs; else a layer's number, as in `summary`: the units are those of
              its last axis, neurons or channels
    by        "permutation": how much the loss on x and y rises when the unit's values change places
              among the samples, the mean of `repeats` times. "ablation": when they are replaced by
              their mean, of a channel over all positions. "weights": the norm of the weights into
              a unit times that of the weights out of it, in the next layer with weights; without x
              and y
    seed      of the permutations
    Inputs that say the same stand in for one another, so that each of them alone seems unimportant.
    The inputs of images are pixels, with all their channels; of sequences, features at all steps.
    Raises ValueError for data that do not fit, for an unknown way, and for weights where there are
    none.
    """
    if by not in WAYS:
        raise ValueError(f"unknown way {by!r}{nearest(str(by), WAYS)} (known: {', '.join(WAYS)})")
    if by == "weights":
        return _of_weights(network, layer)
    if x is None or y is None:
        raise ValueError(f"importance by {by} is measured on data: pass x and y")
    repeats, seed = check_int(repeats, "repeats"), check_int(seed, "seed", 0)
    chosen = network.resolve_loss(loss)
    x, y, _ = checked(network, x, y, chosen)
    x = x.astype(network.dtype) if x.dtype == np.uint8 else x  # bytes hold no means
    rest, name, pixels = network, "inputs", layer is None and len(network.input_shape) == 3
    if layer is not None:
        k = layer_number(network, layer)
        if k == len(network.layers) - 1:
            raise ValueError(f"layer {k} is the last one: its units are the outputs")
        name, rest = layer_name(network, k), network[k + 1 :]
        x = next(outputs for j, _, outputs in with_outputs(network, x) if j == k)
    base = rest.evaluate(x, y, loss=chosen)["loss"]
    x = x.reshape(len(x), *rest.input_shape)
    shape = x.shape[1:3] if pixels else x.shape[-1:]
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    rises = []
    for unit in np.ndindex(shape):
        place = (slice(None), *unit) if pixels else (..., *unit)
        rises.append(_rise(rest, x, y, chosen, place, by, base, repeats, generator))
    found = np.array(rises).reshape(*shape, -1)
    return Importance(name, by, found.mean(-1), found.std(-1), _names(network, layer, shape), base)


def _rise(rest, x, y, loss, place, by, base, repeats, generator) -> list[float]:
    """How much the loss rises when the unit at `place` is changed, `repeats` times."""
    rises = []
    for _ in range(repeats if by == "permutation" else 1):
        changed = x.copy()
        if by == "permutation":
            changed[place] = x[generator.permutation(len(x))][place]
        else:
            changed[place] = x[place].mean()
        rises.append(rest.evaluate(changed, y, loss=loss)["loss"] - base)
    return rises if by == "permutation" else rises * repeats


def layer_number(network, layer) -> int:
    """A layer's number; IndexError or TypeError for what is none."""
    (found,) = transfer.selected(network, [layer])
    return found


def _names(network, layer, shape) -> tuple[str, ...]:
    if layer is None and network.feature_names and len(shape) == len(network.input_shape):
        return network.feature_names
    return tuple(", ".join(map(str, unit)) for unit in np.ndindex(shape))


def _of_weights(network, layer) -> Importance:
    if layer is None:
        (n,), start, incoming, name = network.input_shape[-1:], 0, 1.0, "inputs"
        if len(network.input_shape) == 3:
            raise ValueError(
                "importance by weights is that of channels, not of pixels; use by='permutation'"
            )
    else:
        k = weights_before(network, layer_number(network, layer))
        name, start = layer_name(network, k), k + 1
        matrix = network.layers[k].parameters["weights"].astype(np.float64)
        n, incoming = matrix.shape[-1], np.linalg.norm(matrix.reshape(-1, matrix.shape[-1]), axis=0)
    outgoing = _outgoing(network, start, n, name)
    values = incoming * np.linalg.norm(outgoing, axis=1)
    names = _names(network, layer, (n,))
    return Importance(name, "weights", values, np.zeros(n), names, float("nan"))


def weights_before(network, k: int) -> int:
    """The layer whose weights give the units of layer k: itself, or one before it."""
    while k >= 0 and not has_matrix(network.layers[k]):
        k -= 1
    if k < 0:
        raise ValueError("there are no weights up to this layer; choose a later one")
    return k


def _outgoing(network, start: int, n: int, name: str) -> np.ndarray:
    """The weights that the n units before layer `start` meet next, (n, weights), float64."""
    for built in network.layers[start:]:
        if has_matrix(built):
            matrix = built.parameters["weights"].astype(np.float64)
            rows = np.moveaxis(matrix, -2, 0)  # behind a Flatten: positions × units
            if rows.shape[0] % n == 0:
                rows = rows.reshape(rows.shape[0] // n, n, -1)
                return np.moveaxis(rows, 1, 0).reshape(n, -1)
            break
    raise ValueError(f"no weights follow the units of {name} one by one; use by='ablation'")
