"""Layers, one file each (or each family)."""

from numbanet.nn.layers.activations import (
    Activation,
    Exp,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softmax,
    Step,
    Tanh,
)
from numbanet.nn.layers.base import Layer
from numbanet.nn.layers.batch_norm import BatchNorm
from numbanet.nn.layers.conv1d import (
    AvgPool1D,
    Conv1D,
    GlobalAvgPool1D,
    GlobalMaxPool1D,
    MaxPool1D,
)
from numbanet.nn.layers.conv2d import Conv2D
from numbanet.nn.layers.dense import Dense
from numbanet.nn.layers.dropout import Dropout
from numbanet.nn.layers.embedding import Embedding
from numbanet.nn.layers.layer_norm import LayerNorm
from numbanet.nn.layers.padding2d import ZeroPadding2D
from numbanet.nn.layers.per_neuron import PerNeuron, activation
from numbanet.nn.layers.pool2d import (
    AvgPool2D,
    GlobalAvgPool2D,
    GlobalMaxPool2D,
    LpPool2D,
    MaxPool2D,
)
from numbanet.nn.layers.recurrent import GRU, LSTM, RNN, Bidirectional
from numbanet.nn.layers.rescale import Rescale
from numbanet.nn.layers.shape import Flatten, Reshape
from numbanet.nn.layers.standardize import Standardize

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNorm",
    "Bidirectional",
    "Conv1D",
    "Conv2D",
    "Dense",
    "Dropout",
    "Embedding",
    "Exp",
    "Flatten",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LpPool2D",
    "MaxPool1D",
    "MaxPool2D",
    "PerNeuron",
    "ReLU",
    "Rescale",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Standardize",
    "Step",
    "Tanh",
    "ZeroPadding2D",
    "activation",
]
