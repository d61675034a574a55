"""Names of a network's columns and classes: learned from the first fit's data, then compared."""

import numpy as np

from numbanet.io import arrays
from numbanet.io.fields import shown
from numbanet.nn.layers.base import size


def checked(names, count: int, what: str) -> tuple[str, ...]:
    """Different names, `count` of them or none; ValueError for anything else."""
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise ValueError(f"{what} is a list of names, got {shown(names)}")
    names = tuple(names)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{what} must be text, got {shown(names)}")
    if any(not name.isprintable() for name in names):
        raise ValueError(f"{what} must be printable, got {shown(names)}")
    if len(set(names)) != len(names) or len(names) not in (0, count):
        raise ValueError(f"{what} must be {count} different names, got {shown(names)}")
    return names


def of_columns(x) -> tuple[str, ...]:
    """The names of a data frame's columns; none for anything else, or where they are not text."""
    columns = list(getattr(x, "columns", ())) if hasattr(x, "iloc") else []
    return tuple(columns) if all(isinstance(name, str) for name in columns) else ()


def learn(network, x, y) -> None:
    """Take names from a data frame's columns and from text labels, where the network has none."""
    columns, labels = of_columns(x), arrays.text_labels(y)
    if columns and not network.feature_names and (len(columns),) == network.input_shape:
        network.feature_names = columns
    if labels is not None and not network.class_names:
        found = sorted(set(labels))
        if len(found) == n_classes(network):
            network.class_names = found


def check_columns(network, x, name: str) -> None:
    """ValueError where a data frame has other columns than the network was trained on."""
    found, known = of_columns(x), network.feature_names
    if found and known and found != known:
        way = (
            f"pass {name}[list(network.feature_names)]"
            if set(known) <= set(found)
            else (f"missing: {', '.join(sorted(set(known) - set(found)))}")
        )
        raise ValueError(
            f"{name} has the columns {shown(found)}, the network was trained on {shown(known)}; "
            f"{way}"
        )


def encode(network, y, name: str):
    """Text labels as places in the network's class_names; anything else as it is."""
    labels = arrays.text_labels(y) if network.class_names else None
    if labels is None:
        return y
    places = {label: k for k, label in enumerate(network.class_names)}
    for i, label in enumerate(labels):
        if label not in places:
            raise ValueError(
                f"{name} has the label {label!r} at [{i}]; the network's classes are "
                f"{', '.join(network.class_names)}"
            )
    return np.array([places[label] for label in labels], np.int64)


def n_classes(network) -> int:
    """How many classes the network's outputs can name."""
    shape = network.output_shape
    return max(2, shape[-1] if network.output_steps else size(shape))
