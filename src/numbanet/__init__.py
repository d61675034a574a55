"""Neural networks on flat arrays, compiled by Numba."""

from numbanet import _jit

_jit.prefer_openmp()

from numbanet import callbacks, datasets, initializers, metrics, models, plotting  # noqa: E402
from numbanet._cuda import CudaError  # noqa: E402
from numbanet._jit import kernel  # noqa: E402
from numbanet.augment import Augment, expand  # noqa: E402
from numbanet.ensemble import Ensemble  # noqa: E402
from numbanet.layers import (  # noqa: E402
    Activation,
    AvgPool1D,
    AvgPool2D,
    BatchNorm,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    GlobalMaxPool2D,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    LpPool2D,
    MaxPool1D,
    MaxPool2D,
    PerNeuron,
    ReLU,
    Reshape,
    Sigmoid,
    Softmax,
    Step,
    Tanh,
    ZeroPadding2D,
)
from numbanet.losses import (  # noqa: E402
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Quadratic,
)
from numbanet.network import Sequential  # noqa: E402
from numbanet.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop  # noqa: E402
from numbanet.plan import Op  # noqa: E402
from numbanet.regularizers import L1, L2  # noqa: E402
from numbanet.saving import load  # noqa: E402
from numbanet.training import DivergenceError, History  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "Augment",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNorm",
    "BinaryCrossEntropy",
    "Conv1D",
    "Conv2D",
    "CrossEntropy",
    "CudaError",
    "Dense",
    "DivergenceError",
    "Dropout",
    "Ensemble",
    "Flatten",
    "GlobalAvgPool2D",
    "GlobalMaxPool2D",
    "History",
    "Huber",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Loss",
    "LpPool2D",
    "MaxPool1D",
    "MaxPool2D",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Op",
    "Optimizer",
    "PerNeuron",
    "Quadratic",
    "RMSprop",
    "ReLU",
    "Reshape",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Step",
    "Tanh",
    "ZeroPadding2D",
    "callbacks",
    "datasets",
    "expand",
    "initializers",
    "kernel",
    "load",
    "metrics",
    "models",
    "plotting",
]
