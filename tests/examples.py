"""The tables that drive the laws: one row for each layer, loss, optimiser and penalty. A new layer joins by its row.

`network` builds the network that the laws look at: Scale, the layer of the row, a small dense layer with the activation that the
loss wants. Scale's gradient needs the layer's delta for every input, the dense layer gives it a delta at every output.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import numbanet as nn
from scale import Scale


@dataclass(frozen=True)
class Example:
    """A layer (or a few) to be put on an input of a given shape.

    `trains`   an error passes back through it
    `alone`    in training, too, a sample's output depends on that sample only
    """

    name: str
    layers: Callable[[], list]
    input_shape: tuple
    trains: bool = True
    alone: bool = True


@dataclass(frozen=True)
class LossExample:
    """A loss, the last activation before it, and its targets: real, unit (0 … 1), distribution, labels or bits."""

    name: str
    loss: nn.Loss
    activation: str | None
    targets: str


LAYERS = [
    Example("dense", lambda: [nn.Dense(5)], (7,)),
    Example("dense wide", lambda: [nn.Dense(37)], (3,)),
    Example("dense long", lambda: [nn.Dense(3)], (41,)),
    Example("dense without bias", lambda: [nn.Dense(4, bias=False)], (6,)),
    Example("dense of one unit", lambda: [nn.Dense(1)], (9,)),
    Example("dense on one input", lambda: [nn.Dense(6)], (1,)),
    Example("dense with a list of activations", lambda: [nn.Dense(4, activation=["tanh", "relu", "relu", "sigmoid"])], (5,)),
    Example("two dense layers", lambda: [nn.Dense(6, activation="tanh"), nn.Dense(5, activation="sigmoid")], (4,)),
    Example("sigmoid", lambda: [nn.Sigmoid()], (2, 3)),
    Example("tanh", lambda: [nn.Tanh()], (3, 2, 2)),
    Example("relu", lambda: [nn.ReLU()], (3, 5)),
    Example("leaky relu", lambda: [nn.LeakyReLU(0.2)], (11,)),
    Example("identity", lambda: [nn.Identity()], (5,)),
    Example("softmax", lambda: [nn.Softmax()], (6,)),
    Example("per neuron", lambda: [nn.PerNeuron([nn.LeakyReLU(0.3), "tanh", "identity", "relu", "sigmoid"])], (5,)),
    Example("flatten", lambda: [nn.Flatten()], (2, 3, 2)),
    Example("activations in a row", lambda: [nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.1)], (7,)),
    Example("step", lambda: [nn.Step()], (4, 2), trains=False),
    Example("per neuron with a step", lambda: [nn.PerNeuron(["step", "tanh", "step"])], (3,), trains=False),
]

LOSSES = [
    LossExample("quadratic", nn.Quadratic(), "sigmoid", "real"),
    LossExample("quadratic of weighted inputs", nn.Quadratic(), None, "real"),
    LossExample("mean squared error", nn.MeanSquaredError(), "tanh", "real"),
    LossExample("mean squared error of a softmax", nn.MeanSquaredError(), "softmax", "distribution"),
    LossExample("mean absolute error", nn.MeanAbsoluteError(), None, "real"),
    LossExample("huber", nn.Huber(0.4), "leaky_relu", "real"),
    LossExample("binary cross-entropy", nn.BinaryCrossEntropy(), "sigmoid", "unit"),
    LossExample("binary cross-entropy of bits", nn.BinaryCrossEntropy(), "sigmoid", "bits"),
    LossExample("cross-entropy of labels", nn.CrossEntropy(), "softmax", "labels"),
    LossExample("cross-entropy of distributions", nn.CrossEntropy(), "softmax", "distribution"),
]

PENALTIES = [
    None,
    nn.L2(0.1),
    nn.L1(0.05),
    [nn.L1(0.3, per="sample"), nn.L2(0.02)],
]

OPTIMIZERS = {
    "sgd": nn.SGD(0.1),
    "momentum": nn.SGD(0.05, momentum=0.9),
    "nesterov": nn.SGD(0.05, momentum=0.8, nesterov=True),
    "adagrad": nn.Adagrad(0.05),
    "rmsprop": nn.RMSprop(0.01, alpha=0.9),
    "rmsprop with momentum": nn.RMSprop(0.005, alpha=0.95, momentum=0.7),
    "adam": nn.Adam(0.01),
    "adamw": nn.AdamW(0.01, weight_decay=0.1),
}

TRAINABLE = [example for example in LAYERS if example.trains]


def named(rows):
    """Names for pytest."""
    return [row.name for row in rows]


def network(example, loss=None, *, width=3, penalty=None, dtype="float64", seed=1):
    """The row's layers between a Scale and a dense layer with the loss's activation. Biases are not zero."""
    head = [nn.Dense(width, activation=loss.activation)] if loss else []
    before = [Scale()] if example.trains else []
    net = nn.Sequential([*before, *example.layers(), nn.Flatten(), *head], example.input_shape, dtype, seed, penalty)
    for k, placed in enumerate(net.layers):
        if "bias" in placed.parameters:
            placed.bias = np.random.default_rng([seed, k]).uniform(-0.5, 0.5, placed.bias.shape)
    return net


def inputs(example, samples, seed=2, dtype="float64"):
    """Normal numbers of the row's shape; exact in float32, so that both precisions see the same."""
    return np.random.default_rng([seed, samples]).normal(size=(samples, *example.input_shape)).astype("float32").astype(dtype)


def targets(loss, samples, width=3, seed=3):
    """Targets as the loss wants them."""
    generator = np.random.default_rng([seed, samples, width])
    if loss.targets == "labels":
        return generator.integers(0, width, samples)
    if loss.targets == "bits":
        return generator.integers(0, 2, (samples, width)).astype("float64")
    if loss.targets == "real":
        return generator.normal(size=(samples, width)).astype("float32").astype("float64")
    unit = generator.uniform(0.05, 0.95, (samples, width))
    return unit / unit.sum(axis=1, keepdims=True) if loss.targets == "distribution" else unit
