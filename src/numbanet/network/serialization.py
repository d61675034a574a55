"""Save a network or an ensemble to one file and load it again: architecture, parameters and the optimiser's state.

    metadata   "format"        "numbanet"
               "version"       "1"
               "network"       JSON: input_shape dtype seed threads epoch penalty layers optimizer optimizer_steps
               "ensemble"      instead of "network", JSON: combine, and the list of networks
    tensors    "0.weights"     the parameters and buffers of layers[0], by name, and so on for every layer that has some
               "optimizer.mean"  the optimiser's state vectors, by name, each in the order of the flat vector
               "2/0.weights"   in an ensemble the tensors of network 2, and so on

A layer, penalty, initialiser or optimiser stands in the JSON as {"type": name of its class, field: value, …}. Classes are found
in a table of numbanet's own and in the one that the caller passes; nothing is imported or executed because a file says so.
A loaded network trains on as if it had never been away, bit for bit.
"""

import json
import numbers
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

import numpy as np

from numbanet.io import safetensors
from numbanet.io.fields import Count
from numbanet.network.ensemble import Ensemble
from numbanet.network.sequential import Sequential
from numbanet.nn import initializers, layers, optimizers, regularizers

FORMAT = {"format": "numbanet", "version": "1"}
MODULES = (layers, initializers, regularizers, optimizers)
"""Where the classes that a file may name are public."""
ABSTRACT = {"Layer", "Activation", "Initializer", "Penalty", "Optimizer"}
KEYS = {"input_shape", "dtype", "seed", "threads", "epoch", "penalty", "layers", "optimizer", "optimizer_steps"}


@cache
def known() -> dict[str, type]:
    """The classes of numbanet that a file may name."""
    return {name: kind for module in MODULES for name, kind in vars(module).items()
            if isinstance(kind, type) and is_dataclass(kind) and name not in ABSTRACT}


# --- saving -----------------------------------------------------------------------------------------------------------


def save(network, path) -> None:
    """Write the network or the ensemble to a file, whole or not at all.

    Initial values given as arrays or functions are left out, because the parameters themselves are in the file.
    Raises   ValueError for a layer with a field that is no number, text, layer or list of them; OSError from the disk
    """
    if isinstance(network, Ensemble):
        described = [_to_config(one) for one in network.networks]
        tensors = {f"{i}/{name}": values for i, (_, own) in enumerate(described) for name, values in own.items()}
        content: dict[str, Any] = {"combine": network.combine, "networks": [one for one, _ in described]}
        safetensors.write(path, tensors, {**FORMAT, "ensemble": json.dumps(content)})
    else:
        content, tensors = _to_config(network)
        safetensors.write(path, tensors, {**FORMAT, "network": json.dumps(content)})


def _to_config(network) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A network as JSON has it, and its tensors by name."""
    content = {
        "input_shape": list(network.input_shape), "dtype": str(network.dtype), "seed": network.seed,
        "threads": network.threads, "epoch": network.epoch, "penalty": _encode(network.penalty, "penalty"),
        "layers": [_encode(layer, f"layer {i}") for i, layer in enumerate(network.description)],
        "optimizer": _encode(network.optimizer, "optimizer"), "optimizer_steps": network.optimizer_steps,
    }
    tensors = _named_tensors(network)
    state = np.reshape(network.optimizer_state, (-1, network.parameters.size)) if network.optimizer_state.size else ()
    for name, vector in zip(getattr(network.optimizer, "state_names", ()), state, strict=True):
        tensors[f"optimizer.{name}"] = vector
    return content, tensors


def _named_tensors(network) -> dict[str, np.ndarray]:
    """Views of all parameters and buffers by the names they have in a file."""
    return {f"{i}.{name}": values for i, placed in enumerate(network.layers)
            for name, values in {**placed.parameters, **placed.buffers}.items()}


def _encode(value, where: str) -> Any:
    """The value as JSON has it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, (list, tuple)):
        return [_encode(one, where) for one in value]
    if isinstance(value, type) and is_dataclass(value):
        value = value()
    if not is_dataclass(value):
        raise ValueError(f"{where} holds {_describe(value)}, which a file cannot; use numbers, text, layers or lists of them")
    name = type(value).__name__
    if known().get(name, type(value)) is not type(value):
        raise ValueError(f"{where}: the class {name} has the name of one of numbanet's; give it another to save it")
    config = _config(value)
    if "type" in config:
        raise ValueError(f"{where}: {name} has a field called type, which the file needs for itself; rename it")
    return {"type": name, **{key: _encode(one, f"{where} ({name}), {key}") for key, one in config.items()}}


def _config(value) -> dict[str, Any]:
    """What the constructor takes, without the user's own initial arrays and functions."""
    own = {f.name: f for f in fields(value)}
    if hasattr(value, "config"):
        config = {key: one for key, one in value.config().items() if key not in own or own[key].init}
    else:
        config = {key: getattr(value, key) for key, f in own.items() if f.init}
    for key, one in config.items():
        if key.endswith("initializer") and not (one is None or isinstance(one, str) or is_dataclass(one)):
            default = own[key].default if key in own else None
            config[key] = None if default is MISSING else default
    return config


def _describe(value) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


# --- loading ----------------------------------------------------------------------------------------------------------


class _Unfilled(Sequential):
    """A network that draws no parameters yet: the file's tensors are compared with its shapes first."""

    def initialize(self, seed: int | None = None) -> None:
        """Wait."""


def load(path, custom: dict[str, type] | None = None) -> Any:
    """Read what `save` has written: a Sequential, or an Ensemble.

    custom   your own classes of layers, penalties, initialisers and optimisers by name: {"Mine": Mine}
    Raises   ValueError that names the path and what is wrong: damaged, not written by numbanet, an unknown class, tensors that
             do not fit the layers; OSError from the disk
    """
    if not all(isinstance(name, str) and isinstance(kind, type) for name, kind in (custom or {}).items()):
        raise TypeError(f'custom maps names to classes, as in {{"Mine": Mine}}, got {custom!r}')
    try:
        tensors, metadata = safetensors.read(path)
    except ValueError as error:  # its way out, foreign=True, is none for a network
        raise ValueError(str(error).partition("; pass foreign=True")[0]) from None
    kind, content = _content(path, metadata)
    classes = {**known(), **(custom or {})}
    if kind == "network":
        return _from_config(path, content, classes, tensors)
    described = content["networks"]
    own: list[dict[str, np.ndarray]] = [{} for _ in described]
    for name, values in tensors.items():
        number, _, rest = name.partition("/")
        if number not in map(str, range(len(described))):
            raise ValueError(f"{path}: tensor {name!r} belongs to none of the {len(described)} networks")
        own[int(number)][rest] = values
    networks = [_from_config(f"{path}, network {i}", one, classes, own[i]) for i, one in enumerate(described)]
    try:
        return Ensemble(networks, content["combine"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _from_config(path, content: dict[str, Any], classes: dict[str, type], tensors: dict[str, np.ndarray]) -> Sequential:
    """The network of a description, with its tensors; `path` stands in errors."""
    try:
        parts = (_decode(content[key], classes, key) for key in ("layers", "input_shape", "penalty", "optimizer"))
        described, shape, penalty, optimizer = parts
        network: Sequential = _Unfilled(described, shape, content["dtype"], content["seed"], penalty, content["threads"])
        if optimizer is not None:
            optimizer = optimizers.optimizer(optimizer)
        epoch, steps = (Count(0, 2**62 - 1)(content[key], key) for key in ("epoch", "optimizer_steps"))
        network._ops()
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error
    _check_tensors(path, network, optimizer, tensors)
    network.__class__ = Sequential
    network.initialize()
    for name, values in _named_tensors(network).items():
        values[...] = tensors[name]
    network.epoch, network.optimizer, network.optimizer_steps = epoch, optimizer, steps
    vectors = [tensors[f"optimizer.{name}"] for name in getattr(optimizer, "state_names", ())]
    network.optimizer_state = np.concatenate([np.zeros(0, network.dtype), *vectors])
    return network


def _content(path, metadata: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Whether it is a "network" or an "ensemble", and the description, after a look at who wrote it."""
    kind = "ensemble" if "ensemble" in metadata else "network"
    if metadata.get("format") != FORMAT["format"] or kind not in metadata:
        raise ValueError(f"{path}: a container without a network; nn.load reads what net.save has written")
    if metadata.get("version") != FORMAT["version"]:
        found = metadata.get("version")
        raise ValueError(f"{path}: version {found!r} of the file layout; this numbanet reads {FORMAT['version']!r}")
    try:
        content = json.loads(metadata[kind])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the {kind}'s description is not JSON: {error}") from None
    if kind == "network":
        _check_keys(path, content, kind, KEYS)
        return kind, content
    _check_keys(path, content, kind, {"combine", "networks"})
    if not isinstance(content["networks"], list):
        raise ValueError(f"{path}: the ensemble's networks must be a list, got {type(content['networks']).__name__}")
    for i, one in enumerate(content["networks"]):
        _check_keys(f"{path}, network {i}", one, "network", KEYS)
    return kind, content


def _check_keys(path, content, kind: str, keys: set[str]) -> None:
    """ValueError where a description is not a dict with just those keys."""
    if not isinstance(content, dict) or set(content) != keys:
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: the {kind}'s description must have {', '.join(sorted(keys))}, got {found}")


def _decode(value, classes: dict[str, type], where: str) -> Any:
    """The value that JSON stands for; lists become tuples."""
    if isinstance(value, list):
        return tuple(_decode(one, classes, where) for one in value)
    if not isinstance(value, dict):
        return value
    name = value.get("type")
    if not isinstance(name, str):
        raise ValueError(f"{where}: an object without a type")
    if name not in classes:
        raise ValueError(f"{where}: unknown type {name!r}; pass custom={{{name!r}: the class}} to load")
    config = {key: _decode(one, classes, f"{where}, {name}") for key, one in value.items() if key != "type"}
    try:
        return classes[name](**config)
    except TypeError as error:
        raise ValueError(f"{where}: {name} cannot be built: {error}") from None


def _check_tensors(path, network, optimizer, tensors) -> None:
    """ValueError where the tensors are not exactly those that the layers and the optimiser need."""
    shapes = {name: values.shape for name, values in _named_tensors(network).items()}
    shapes |= {f"optimizer.{name}": (network.parameters.size,) for name in getattr(optimizer, "state_names", ())}
    for name in shapes.keys() - tensors.keys():
        raise ValueError(f"{path}: tensor {name!r} is missing")
    for name in tensors.keys() - shapes.keys():
        raise ValueError(f"{path}: tensor {name!r} belongs to no layer; the network has {', '.join(shapes) or 'none'}")
    for name, shape in shapes.items():
        found = tensors[name]
        if found.shape != shape or found.dtype != network.dtype:
            raise ValueError(f"{path}: tensor {name!r} is {found.dtype} {found.shape}, the network needs {network.dtype} {shape}")
