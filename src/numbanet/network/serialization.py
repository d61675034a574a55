"""Save a network or an ensemble to one file and load it again.

    metadata   "format"        "numbanet"
               "version"       "2": bytes are the numbers 0 … 255 ("1": they were divided by 255)
               "network"       JSON: input_shape dtype seed threads epoch penalty layers
                               optimizer optimizer_steps schedule_state scales_targets
                               class_names feature_names target_name frozen
                               groups: [layer, learning_rate_factor, weight_decay] of those
                               that have one of their own
               "ensemble"      instead of "network", JSON: combine, and the list of networks
    tensors    "0.weights"     the parameters and buffers of layers[0], by name, and so on for
                               every layer that has some
               "optimizer.mean"  the optimiser's state vectors, by name, each in the order of
                               the flat vector
               "targets.mean", "targets.deviation"  where scales_targets is true
               "2/0.weights"   in an ensemble the tensors of network 2, and so on

Which class "network" or "ensemble" stands for is found by name in `io.registry`; how a layer is
written in the JSON stands in `network.config`. A loaded network resumes training bit-identically.
"""

import json
import os
from typing import Any

from numbanet.io import registry, safetensors
from numbanet.network import config

FORMAT = {"format": "numbanet", "version": "2"}


def save(network, path) -> None:
    """Write a network or an ensemble to a file, completely or not at all.

    Initial values given as arrays or functions are left out: the parameters are in the file.
    Raises   ValueError for a layer with a field that is no number, text, layer or list of them;
             OSError from the disk
    """
    content = json.dumps(network.to_config())
    metadata = {**FORMAT, registry.registered_name(network): content}
    tensors = {name: values.copy() for name, values in network.tensors().items()}
    safetensors.write(path, tensors, metadata)  # another thread may be training it


def load(path, custom: dict[str, Any] | None = None) -> Any:
    """Read what `save` has written: a Sequential, or an Ensemble.

    custom   your own classes of layers, penalties, initialisers, optimisers and schedules, and
             functions of schedules, by name: {"Mine": Mine}
    Raises   ValueError that names the path and what is wrong: damaged, not written by numbanet,
             an unknown class, tensors that do not fit the layers; OSError from the disk
    """
    path = os.fsdecode(path)
    pairs = (custom or {}).items()
    if not all(isinstance(name, str) and callable(one) for name, one in pairs):
        raise TypeError(f'custom maps names to classes, as in {{"Mine": Mine}}, got {custom!r}')
    try:
        tensors, metadata = safetensors.read(path)
    except ValueError as error:  # its hint, foreign=True, does not help for a network
        raise ValueError(str(error).partition("; pass foreign=True")[0]) from None
    kind, content = _parse(path, metadata)
    return kind.from_config(content, tensors, {**config.known(), **(custom or {})}, str(path))


def _parse(path, metadata: dict[str, str]) -> tuple[Any, Any]:
    """The class that a file holds and its description, if this version wrote the file."""
    found = registry.registered_class(metadata)
    if metadata.get("format") != FORMAT["format"] or found is None:
        raise ValueError(
            f"{path}: a container without a network; nn.load reads what net.save has written"
        )
    if metadata.get("version") != FORMAT["version"]:
        version, readable = metadata.get("version"), FORMAT["version"]
        raise ValueError(
            f"{path}: version {version!r} of the file layout; this numbanet reads {readable!r}. "
            "Load it with the numbanet that wrote it, or train again"
        )
    name, kind = found
    try:
        return kind, json.loads(metadata[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the {name}'s description is not JSON: {error}") from None
