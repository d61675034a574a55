"""Layers, one file each (or each family)."""

from numbanet.layers.activations import (
    Activation,
    Identity,
    LeakyReLU,
    PerNeuron,
    ReLU,
    Sigmoid,
    Softmax,
    Step,
    Tanh,
    activation,
)
from numbanet.layers.base import Layer
from numbanet.layers.dense import Dense
from numbanet.layers.shape import Flatten

__all__ = ["Activation", "Dense", "Flatten", "Identity", "Layer", "LeakyReLU", "PerNeuron", "ReLU", "Sigmoid", "Softmax", "Step",
           "Tanh", "activation"]
