"""Going on from the files of a Checkpoint."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from numbanet.io import validation
from numbanet.network.serialization import load
from numbanet.training.callbacks import checkpoints

SAME = "input_shape", "dtype", "layers", "penalty"
"""What a checkpoint has in common with the network that goes on from it."""


def resume(network, folder, epochs: int, optimizer) -> int:
    """Put a network into the state of the newest checkpoint of a folder, if there is one.

    optimizer   what fit was given; the file may name its class, and those of the network's layers
    Returns how many of the epochs are left. Raises ValueError for a checkpoint of another network,
    or what is no folder; the network is then as it was.
    """
    end = network.epoch + validation.check_int(epochs, "epochs", 0)
    if not Path(folder).is_dir():
        if Path(folder).exists():
            raise ValueError(f"resume: {folder} is no folder; a Checkpoint writes into one")
        return epochs
    found = checkpoints(folder)
    if not found:
        return epochs
    saved = load(found[-1], _classes([network.specs, network.penalty, optimizer]))
    ours, theirs = network.to_config(), saved.to_config()
    for key in SAME:
        if ours[key] != theirs[key]:
            raise ValueError(
                f"resume: {found[-1]} holds another network: its {key} are {theirs[key]}, not "
                f"{ours[key]}; choose another folder"
            )
    if saved.epoch > network.epoch:
        network.take_state(saved)
    return max(0, end - network.epoch)


def _classes(value) -> dict[str, Any]:
    """The classes of descriptions, and the functions, that a value is made of, by name."""
    if isinstance(value, (list, tuple)):
        return {name: kind for one in value for name, kind in _classes(one).items()}
    if isinstance(value, FunctionType) or (isinstance(value, type) and is_dataclass(value)):
        return {value.__name__: value}
    if not is_dataclass(value):
        return {}
    inside = [getattr(value, field.name, None) for field in fields(value)]
    return {type(value).__name__: type(value), **_classes(inside)}
