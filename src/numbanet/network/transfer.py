"""Transfer learning: choosing layers, copying their weights, and cutting a network in two.

Layers are counted as in `network.layers` and `summary`: an activation given to a layer counts as a
layer of its own.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from numbanet.io.fields import shown
from numbanet.nn.layers import Identity, activation


def selected(network, layers) -> list[int]:
    """Numbers of layers for integers (negative ones count from the end), slices or lists of them.

    Raises TypeError for anything else, IndexError for a layer that is not there.
    """
    count = len(network.layers)
    found: list[int] = []
    for one in layers:
        if isinstance(one, slice):
            found += range(*one.indices(count))
        elif isinstance(one, (list, tuple, range)):
            found += selected(network, one)
        elif isinstance(one, (int, np.integer)) and not isinstance(one, bool):
            if not -count <= one < count:
                raise IndexError(f"there is no layer {one}; the network has {count} layers")
            found.append(int(one) % count)
        else:
            raise TypeError(f"layers are integers or slices, got {shown(one)}")
    return found


def set_trainable(network, layers, value: bool) -> None:
    """Let training change these layers, or all, or leave them as they are.

    Raises ValueError where none of the layers named has parameters.
    """
    chosen = selected(network, layers) if layers else range(len(network.layers))
    if layers and chosen and not any(network.layers[k].n_parameters for k in chosen):
        named = ", ".join(_called(network, k) for k in chosen)
        raise ValueError(
            f"there is nothing to freeze or train in {named}{_with_parameters(network, chosen[0])}"
        )
    for k in chosen:
        network.layers[k].trainable = value


def _called(network, k: int) -> str:
    return f"layer {k} ({type(network.layers[k].layer).__name__})"


def _with_parameters(network, k: int) -> str:
    """The end of a message: the nearest layer with parameters, of two the one before layer k."""
    found = [j for j, built in enumerate(network.layers) if built.n_parameters]
    if not found:
        return ""
    nearest = min(found, key=lambda j: (abs(j - k), j))
    return f"; the nearest parameters are those of {_called(network, nearest)}: see summary"


def copy_weights(network, other, layers=None) -> None:
    """Copy parameters and buffers of another network's layers; nothing is changed by an error.

    layers   which: None for all that have parameters or buffers, numbers or slices, or a dict of
             the other network's layer by this one's
    """
    if layers is None:
        layers = [k for k, b in enumerate(network.layers) if b.n_parameters or b.n_buffers]
    elif not isinstance(layers, dict):
        layers = selected(network, layers if isinstance(layers, (list, tuple)) else [layers])
    pairs = layers.items() if isinstance(layers, dict) else ((k, k) for k in layers)
    copies: list[tuple[np.ndarray, np.ndarray]] = []
    for k, j in pairs:
        if j >= len(other.layers) and not isinstance(layers, dict):
            raise ValueError(f"the other network has no layer {j}; name the layers: layers=…")
        (ours,), (theirs,) = selected(network, [k]), selected(other, [j])
        built, source = network.layers[ours], other.layers[theirs]
        views, values = (
            {**built.parameters, **built.buffers},
            {**source.parameters, **source.buffers},
        )
        if {n: v.shape for n, v in views.items()} != {n: v.shape for n, v in values.items()}:
            raise ValueError(
                f"layer {ours} ({_shapes(built)}) cannot take the weights of the other network's "
                f"layer {theirs} ({_shapes(source)}); choose layers that fit: layers=…"
            )
        copies += [(view, values[name]) for name, view in views.items()]
    for view, value in copies:
        view[...] = value


def _shapes(built) -> str:
    parts = [f"{name} {view.shape}" for name, view in {**built.parameters, **built.buffers}.items()]
    return " ".join([type(built.layer).__name__, *parts])


def part(network, key) -> Any:
    """A new network of some neighbouring layers, with copies of their weights."""
    if not isinstance(key, slice) or key.step not in (None, 1):
        raise TypeError(
            f"network[a:b] is a part of a network, got [{shown(key)}]; its layers one by one are "
            "network.layers"
        )
    first, last, _ = key.indices(len(network.layers))
    if first >= last:
        raise ValueError(f"network[{first}:{last}] has no layers")
    chosen = network.layers[first:last]
    layers = [without_activation(built.layer) for built in chosen]
    made = alike(network, layers, chosen[0].input_shape)
    copy_weights(made, network, {k: first + k for k in range(last - first)})
    for built, source in zip(made.layers, chosen, strict=True):
        built.copy_settings(source)
    if last == len(network.layers):
        copy_outputs(made, network)
    return made


def copy_outputs(made, network) -> None:
    """Take the names of another network's classes, and how its targets are scaled."""
    made.class_names, made.target_name = network.class_names, network.target_name
    made.scales_targets = network.scales_targets
    made.target_scaling.mean = network.target_scaling.mean
    made.target_scaling.deviation = network.target_scaling.deviation


def alike(network, layers, input_shape) -> Any:
    """A new network of other layers with this one's dtype, seed, penalty, threads and device."""
    options: dict[str, Any] = {"seed": network.seed, "penalty": list(network.penalty) or None}
    options |= {"threads": network.threads, "device": network.device}
    return type(network)(layers, input_shape, str(network.dtype), **options)


def without_activation(layer):
    """The layer without the activation that stands after it as a layer of its own."""
    if isinstance(activation(layer.following_activation()), Identity):
        return layer
    return replace(layer, activation=None)
