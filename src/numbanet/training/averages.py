"""The averages of the parameters around the epochs: what is measured, kept and put back."""

from typing import Any

import numpy as np

Snapshot = tuple[np.ndarray, np.ndarray | None]
"""The memory of a network, and its averaged parameters if there are any."""


def measured_network(network, optimizer) -> Any:
    """The network that validation data are measured on: one of its averages, if there are any."""
    return network.averaged() if optimizer.average else network


def refresh(measured, network) -> None:
    """Bring the network of the averages up to date, buffers too."""
    if measured is not network:
        measured.memory[:] = network.memory
        measured.parameters = network.averaged_parameters


def snapshot(network) -> Snapshot:
    """Copies of the parameters and buffers and of the averages."""
    averages = network.averaged_parameters
    return network.memory.copy(), None if averages is None else averages.copy()


def restore(network, found: Snapshot) -> None:
    """Put a snapshot back."""
    network.memory[:], averages = found
    if averages is not None:
        network.averaged_parameters[:] = averages
