"""Neural networks on flat arrays, compiled by Numba."""

from numbanet.backend.threads import prefer_openmp as _prefer_openmp

_prefer_openmp()

from numbanet import datasets, diagnostics, plotting  # noqa: E402
from numbanet.backend.cuda.driver import CudaError  # noqa: E402
from numbanet.backend.jit import kernel  # noqa: E402
from numbanet.network import zoo as models  # noqa: E402
from numbanet.network.ensemble import Ensemble  # noqa: E402
from numbanet.network.population import Population, bootstrap, evaluate_parameters  # noqa: E402
from numbanet.network.sequential import Sequential  # noqa: E402
from numbanet.network.serialization import load  # noqa: E402
from numbanet.network.warmup import warmup  # noqa: E402
from numbanet.nn import initializers, metrics, schedules  # noqa: E402
from numbanet.nn.augment import Augment, shift_copies  # noqa: E402
from numbanet.nn.layers import (  # noqa: E402
    GRU,
    LSTM,
    RNN,
    Activation,
    AvgPool1D,
    AvgPool2D,
    BatchNorm,
    Bidirectional,
    Conv1D,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Exp,
    Flatten,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalMaxPool1D,
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
    Rescale,
    Reshape,
    Sigmoid,
    Softmax,
    Standardize,
    Step,
    Tanh,
    ZeroPadding2D,
)
from numbanet.nn.losses import (  # noqa: E402
    BinaryCrossEntropy,
    CrossEntropy,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    Poisson,
    Quadratic,
    Quantile,
)
from numbanet.nn.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop  # noqa: E402
from numbanet.nn.regularizers import L1, L2  # noqa: E402
from numbanet.plan.op import Op  # noqa: E402
from numbanet.training import callbacks  # noqa: E402
from numbanet.training.diagnosis import NotLearningWarning  # noqa: E402
from numbanet.training.epoch import DivergenceError  # noqa: E402
from numbanet.training.history import History  # noqa: E402
from numbanet.training.lbfgs import LBFGS  # noqa: E402
from numbanet.training.rate_finder import LearningRates  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "L1",
    "L2",
    "LBFGS",
    "LSTM",
    "RNN",
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "Augment",
    "AvgPool1D",
    "AvgPool2D",
    "BatchNorm",
    "Bidirectional",
    "BinaryCrossEntropy",
    "Conv1D",
    "Conv2D",
    "CrossEntropy",
    "CudaError",
    "Dense",
    "DivergenceError",
    "Dropout",
    "Embedding",
    "Ensemble",
    "Exp",
    "Flatten",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "History",
    "Huber",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "LearningRates",
    "Loss",
    "LpPool2D",
    "MaxPool1D",
    "MaxPool2D",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "NotLearningWarning",
    "Op",
    "Optimizer",
    "PerNeuron",
    "Poisson",
    "Population",
    "Quadratic",
    "Quantile",
    "RMSprop",
    "ReLU",
    "Rescale",
    "Reshape",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Standardize",
    "Step",
    "Tanh",
    "ZeroPadding2D",
    "bootstrap",
    "callbacks",
    "datasets",
    "diagnostics",
    "evaluate_parameters",
    "initializers",
    "kernel",
    "load",
    "metrics",
    "models",
    "plotting",
    "schedules",
    "shift_copies",
    "warmup",
]
