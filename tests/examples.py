"""The tables that drive the laws: one row for each layer, loss, optimiser and penalty.

A new layer is tested once it has a row. Tests refer to a row by its name.

`network` builds the network that the laws test: Scale, the layer of the row, a small dense layer
with the activation that the loss wants. Scale's gradient needs the layer's delta for every input,
the dense layer gives it a delta at every output.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scale import Scale

import numbanet as nn
from numbanet.nn.optimizers import AdamEpsilonHat
from numbanet.nn.schedules import Schedule


@dataclass(frozen=True)
class Example:
    """A layer (or a few) to be put on an input of a given shape.

    `trains`   an error passes back through it
    `first`    the layer is the first with parameters: there is no Scale before it
    `vocabulary`   the inputs are integers below this
    `alone`    training is as prediction: a sample's output depends on that sample only, and on
               nothing random
    """

    name: str
    layers: Callable[[], list]
    input_shape: tuple
    trains: bool = True
    alone: bool = True
    first: bool = False
    vocabulary: int = 0


@dataclass(frozen=True)
class LossExample:
    """A loss, the last activation before it, and its targets.

    targets    real, unit (0 … 1), distribution, labels or bits
    multiple   outputs are a multiple of it
    """

    name: str
    loss: nn.Loss
    activation: str | None
    targets: str
    multiple: int = 1

    def outputs(self, least):
        """The number of outputs that the loss takes, from `least` on."""
        return -(-least // self.multiple) * self.multiple


LAYERS = [
    Example("dense", lambda: [nn.Dense(5)], (7,)),
    Example("dense wide", lambda: [nn.Dense(37)], (3,)),
    Example("dense long", lambda: [nn.Dense(3)], (41,)),
    Example("dense without bias", lambda: [nn.Dense(4, bias=False)], (6,)),
    Example("dense of one unit", lambda: [nn.Dense(1)], (9,)),
    Example("dense of one unit, many inputs", lambda: [nn.Dense(1)], (45,)),
    Example("dense on one input", lambda: [nn.Dense(6)], (1,)),
    Example("dense over time", lambda: [nn.Dense(5, activation="tanh")], (7, 3)),
    Example("dense over time without bias", lambda: [nn.Dense(3, bias=False)], (2, 41)),
    Example(
        "dense with a list of activations",
        lambda: [nn.Dense(4, activation=["tanh", "relu", "relu", "sigmoid"])],
        (5,),
    ),
    Example(
        "two dense layers",
        lambda: [nn.Dense(6, activation="tanh"), nn.Dense(5, activation="sigmoid")],
        (4,),
    ),
    Example("sigmoid", lambda: [nn.Sigmoid()], (2, 3)),
    Example("exp", lambda: [nn.Exp()], (5,)),
    Example("tanh", lambda: [nn.Tanh()], (3, 2, 2)),
    Example("relu", lambda: [nn.ReLU()], (3, 5)),
    Example("leaky relu", lambda: [nn.LeakyReLU(0.2)], (11,)),
    Example("identity", lambda: [nn.Identity()], (5,)),
    Example("softmax", lambda: [nn.Softmax()], (6,)),
    Example("softmax over time", lambda: [nn.Softmax()], (3, 4)),
    Example(
        "per neuron",
        lambda: [nn.PerNeuron([nn.LeakyReLU(0.3), "tanh", "identity", "relu", "sigmoid"])],
        (5,),
    ),
    Example(
        "per neuron, smooth",
        lambda: [nn.PerNeuron(["tanh", "exp", "identity", "sigmoid", "sigmoid"])],
        (5,),
    ),
    Example("flatten", lambda: [nn.Flatten()], (2, 3, 2)),
    Example("reshape", lambda: [nn.Reshape((3, 2, 2))], (2, 6)),
    Example("conv", lambda: [nn.Conv2D(3, (3, 2))], (5, 6, 2)),
    Example("conv on one channel", lambda: [nn.Conv2D(5, 3, activation="relu")], (6, 7, 1)),
    Example("conv to one filter, same size", lambda: [nn.Conv2D(1, 3, padding="same")], (4, 5, 3)),
    Example(
        "conv with strides and padding",
        lambda: [nn.Conv2D(2, 3, stride=(2, 3), padding=((1, 0), (2, 1)))],
        (6, 7, 2),
    ),
    Example(
        "conv with dilation",
        lambda: [nn.Conv2D(2, (2, 3), stride=(3, 1), dilation=(2, 2))],
        (8, 7, 2),
    ),
    Example("conv with groups", lambda: [nn.Conv2D(4, 2, groups=2, bias=False)], (4, 3, 6)),
    Example(
        "conv with two filters for each channel",
        lambda: [nn.Conv2D(6, (3, 2), stride=2, groups=3, dilation=(1, 2))],
        (6, 5, 3),
    ),
    Example(
        "depthwise conv",
        lambda: [nn.Conv2D(3, (3, 2), stride=(1, 2), groups=3, dilation=(1, 2))],
        (6, 9, 3),
    ),
    Example(
        "depthwise conv of many channels",
        lambda: [nn.Conv2D(18, 3, stride=2, groups=18, padding="same", bias=False)],
        (4, 6, 18),
    ),
    Example(
        "conv after conv",
        lambda: [nn.Conv2D(3, 2, activation="tanh"), nn.Conv2D(2, (2, 3), stride=2)],
        (5, 6, 2),
    ),
    Example(
        "conv and pool on planes",
        lambda: [nn.Conv2D(3, (2, 3), activation="tanh"), nn.MaxPool2D(2)],
        (6, 8, 1),
        first=True,
    ),
    Example(
        "conv and pool on long planes",
        lambda: [nn.Conv2D(6, 3, dilation=(1, 2)), nn.ReLU(), nn.MaxPool2D(2)],
        (7, 23, 1),
        first=True,
    ),
    Example("zero padding", lambda: [nn.ZeroPadding2D(((1, 2), (0, 3)))], (2, 3, 2)),
    Example("max pool", lambda: [nn.MaxPool2D(2)], (4, 6, 3)),
    Example("max pool of odd sizes", lambda: [nn.MaxPool2D(2)], (5, 7, 9)),
    Example(
        "max pool that overlaps",
        lambda: [nn.MaxPool2D((3, 2), stride=(2, 1), padding=(1, 0))],
        (5, 4, 2),
    ),
    Example("max pool before a sigmoid", lambda: [nn.MaxPool2D(2), nn.Sigmoid()], (4, 6, 3)),
    Example("l2 pool before a sigmoid", lambda: [nn.LpPool2D(2), nn.Sigmoid()], (4, 6, 3)),
    Example(
        "planes before a tanh",
        lambda: [nn.Conv2D(3, 3), nn.MaxPool2D(2), nn.Tanh()],
        (6, 8, 1),
        first=True,
    ),
    Example("average pool", lambda: [nn.AvgPool2D((2, 3))], (5, 6, 3)),
    Example(
        "average pool that overlaps", lambda: [nn.AvgPool2D(3, stride=2, padding="same")], (5, 4, 2)
    ),
    Example("l2 pool", lambda: [nn.LpPool2D(2)], (4, 5, 2)),
    Example("l2 pool of many channels", lambda: [nn.LpPool2D(2)], (2, 2, 19)),
    Example("l1 pool", lambda: [nn.LpPool2D(2, p=1.0)], (4, 2, 3)),
    Example("l3 pool that overlaps", lambda: [nn.LpPool2D(2, stride=1, p=3.0)], (3, 4, 2)),
    Example("global average pool", lambda: [nn.GlobalAvgPool2D()], (4, 3, 5)),
    Example("global max pool", lambda: [nn.GlobalMaxPool2D()], (3, 4, 5)),
    Example(
        "conv of sequences",
        lambda: [nn.Conv1D(3, 3, stride=2, padding=(2, 1), activation="tanh")],
        (7, 2),
    ),
    Example(
        "conv of sequences with groups",
        lambda: [nn.Conv1D(4, 2, dilation=3, groups=2, padding="same")],
        (6, 4),
    ),
    Example("max pool of sequences", lambda: [nn.MaxPool1D(3, stride=2, padding=1)], (8, 3)),
    Example("average pool of sequences", lambda: [nn.AvgPool1D(2)], (7, 5)),
    Example("rnn", lambda: [nn.RNN(5)], (4, 3)),
    Example("rnn of states, reversed", lambda: [nn.RNN(3, True, True, activation="relu")], (5, 2)),
    Example("lstm", lambda: [nn.LSTM(4)], (5, 3)),
    Example("lstm of states, wide", lambda: [nn.LSTM(19, return_sequences=True)], (3, 2)),
    Example("lstm of one step, reversed", lambda: [nn.LSTM(2, reverse=True)], (1, 3)),
    Example("gru", lambda: [nn.GRU(4, reverse=True)], (5, 3)),
    Example("gru of states", lambda: [nn.GRU(17, return_sequences=True)], (3, 2)),
    Example(
        "two recurrent layers",
        lambda: [nn.LSTM(3, return_sequences=True), nn.GRU(4)],
        (4, 2),
    ),
    Example("rnn in both directions", lambda: [nn.Bidirectional(nn.RNN(3))], (4, 2)),
    Example("lstm in both directions", lambda: [nn.Bidirectional(nn.LSTM(3, True))], (4, 2)),
    Example("gru in both directions", lambda: [nn.Bidirectional(nn.GRU(3, True, True))], (4, 2)),
    Example("rnn from a trained state", lambda: [nn.RNN(3, initial_state="trained")], (3, 2)),
    Example(
        "lstm from a trained state",
        lambda: [nn.LSTM(17, True, True, initial_state="trained")],
        (3, 2),
    ),
    Example("gru from a trained state", lambda: [nn.GRU(4, initial_state="trained")], (4, 3)),
    Example(
        "both directions from a trained state",
        lambda: [
            nn.Bidirectional(nn.RNN(2, True, initial_state="trained")),
            nn.Bidirectional(nn.LSTM(3, initial_state="trained")),
        ],
        (4, 2),
    ),
    Example("embedding", lambda: [nn.Embedding(11, 3)], (4,), first=True, vocabulary=11),
    Example(
        "embedding before a gru",
        lambda: [nn.Embedding(5, 2, penalty=nn.L2(0.1)), nn.GRU(3)],
        (3,),
        first=True,
        vocabulary=5,
    ),
    Example("global average pool of sequences", lambda: [nn.GlobalAvgPool1D()], (5, 3)),
    Example("global max pool of sequences", lambda: [nn.GlobalMaxPool1D()], (4, 6)),
    Example("dropout", lambda: [nn.Dropout(0.3)], (23,), alone=False),
    Example(
        "dropout in place",
        lambda: [nn.Dense(9, activation="tanh"), nn.Dropout(0.5)],
        (5,),
        alone=False,
    ),
    Example(
        "dropout scaled in prediction",
        lambda: [nn.Dropout(0.4, inverted=False)],
        (23,),
        alone=False,
    ),
    Example("rescale", lambda: [nn.Rescale(0.25, -0.5)], (3, 4, 2)),
    Example("rescale first", lambda: [nn.Rescale(1 / 255)], (13,), first=True),
    Example("standardize", lambda: [nn.Standardize()], (6,), first=True),
    Example(
        "standardize after rescale",
        lambda: [nn.Rescale(0.5), nn.Standardize()],
        (3, 2, 3),
        first=True,
    ),
    Example("batch norm", lambda: [nn.BatchNorm()], (5,), alone=False),
    Example("batch norm of images", lambda: [nn.BatchNorm(momentum=0.3)], (2, 3, 4), alone=False),
    Example("batch norm of many pixels", lambda: [nn.BatchNorm()], (7, 9, 3), alone=False),
    Example("batch norm of many channels", lambda: [nn.BatchNorm()], (70,), alone=False),
    Example(
        "batch norm twice",
        lambda: [nn.BatchNorm(epsilon=0.01), nn.Conv2D(3, 2, activation="tanh"), nn.BatchNorm()],
        (3, 4, 2),
        alone=False,
    ),
    Example("layer norm", lambda: [nn.LayerNorm()], (7,)),
    Example("layer norm of many channels", lambda: [nn.LayerNorm()], (37,)),
    Example("layer norm of images", lambda: [nn.LayerNorm(epsilon=0.01)], (2, 3, 4)),
    Example("activations in a row", lambda: [nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.1)], (7,)),
    Example("step", lambda: [nn.Step()], (4, 2), trains=False),
    Example(
        "per neuron with a step",
        lambda: [nn.PerNeuron(["step", "tanh", "step"])],
        (3,),
        trains=False,
    ),
]

LOSSES = [
    LossExample("quadratic", nn.Quadratic(), "sigmoid", "real"),
    LossExample("quadratic of weighted inputs", nn.Quadratic(), None, "real"),
    LossExample("mean squared error", nn.MeanSquaredError(), "tanh", "real"),
    LossExample(
        "mean squared error of a softmax", nn.MeanSquaredError(), "softmax", "distribution"
    ),
    LossExample("mean absolute error", nn.MeanAbsoluteError(), None, "real"),
    LossExample("huber", nn.Huber(0.4), "leaky_relu", "real"),
    LossExample("quantile", nn.Quantile(0.7), None, "real"),
    LossExample("quantiles of two levels", nn.Quantile((0.9, 0.2)), "tanh", "real", multiple=2),
    LossExample("binary cross-entropy", nn.BinaryCrossEntropy(), "sigmoid", "unit"),
    LossExample("binary cross-entropy of bits", nn.BinaryCrossEntropy(), "sigmoid", "bits"),
    LossExample("poisson", nn.Poisson(), "exp", "unit"),
    LossExample("cross-entropy of labels", nn.CrossEntropy(), "softmax", "labels"),
    LossExample("cross-entropy of distributions", nn.CrossEntropy(), "softmax", "distribution"),
]

PENALTY = nn.L2(0.1)
TWO_PENALTIES = [nn.L1(0.3, per="sample"), nn.L2(0.02)]
PENALTIES = [None, PENALTY, nn.L1(0.05), TWO_PENALTIES]

OPTIMIZERS = {
    "sgd": nn.SGD(0.1),
    "momentum": nn.SGD(0.05, momentum=0.9),
    "nesterov": nn.SGD(0.05, momentum=0.8, nesterov=True),
    "adagrad": nn.Adagrad(0.05),
    "rmsprop": nn.RMSprop(0.01, alpha=0.9),
    "rmsprop with momentum": nn.RMSprop(0.005, alpha=0.95, momentum=0.7),
    "adam": nn.Adam(0.01),
    "adam with epsilon hat": AdamEpsilonHat(0.01, epsilon=1e-3),
    "adamw": nn.AdamW(0.01, weight_decay=0.1),
    "adam with a schedule": nn.Adam(nn.schedules.WarmUp(nn.schedules.Cosine(0.02, epochs=4))),
    "momentum with a schedule": nn.SGD(nn.schedules.StepDecay(0.1, 0.5), momentum=0.9),
    "sgd, clipped values": nn.SGD(0.2, clip_value=0.05),
    "momentum, clipped norm": nn.SGD(0.1, momentum=0.9, clip_norm=0.2),
    "adam, two batches": nn.Adam(0.02, accumulate=2),
    "rmsprop, averages": nn.RMSprop(0.01, alpha=0.9, average=0.7),
    "adamw, all of it": nn.AdamW(
        nn.schedules.Exponential(0.02, 0.9), clip_norm=0.1, accumulate=2, average=0.9
    ),
}

STEPPED = {
    name: one
    for name, one in OPTIMIZERS.items()
    if not (isinstance(one.learning_rate, Schedule) or one.around)
}
"""Those that a handle takes."""


def set_groups(net):
    """Give the layers of a network rates and decays of their own, and return it."""
    settings = [(0.3, None), (1.0, 0.5), (2.0, 0.0), (1.0, None), (0.3, 0.2)]
    layers = [built for built in net.layers if built.n_parameters]
    for k, built in enumerate(layers):
        built.learning_rate_factor, built.weight_decay = settings[k % len(settings)]
    assert len({built.group for built in layers}) > 1
    return net


TRAINABLE = [example for example in LAYERS if example.trains]


def example_named(name):
    """The example of that name; LookupError where there is none or more than one."""
    return _only(LAYERS, name)


def loss_named(name):
    """The loss example of that name; LookupError where there is none or more than one."""
    return _only(LOSSES, name)


def _only(rows, name):
    found = [row for row in rows if row.name == name]
    if len(found) != 1:
        raise LookupError(f"{len(found)} examples are named {name!r}")
    return found[0]


def named(rows):
    """Names for pytest."""
    return [row.name for row in rows]


def network(example, loss=None, *, width=3, penalty=None, dtype="float64", seed=1):
    """The row's layers between a Scale and a dense layer with the loss's activation.

    Neither biases nor running means are zero.
    """
    head = [nn.Dense(loss.outputs(width), activation=loss.activation)] if loss else []
    before = [Scale()] if example.trains and not example.first else []
    net = nn.Sequential(
        [*before, *example.layers(), nn.Flatten(), *head], example.input_shape, dtype, seed, penalty
    )
    for k, built in enumerate(net.layers):
        generator = np.random.default_rng([seed, k])
        for name, values in built.parameters.items():
            if name.endswith("bias") or "initial" in name:
                values[...] = generator.uniform(-0.5, 0.5, values.shape)
        for values in built.buffers.values():
            values[...] = generator.uniform(0.5, 1.5, values.shape)
        if "Norm" in type(built.layer).__name__:
            built.weights = generator.uniform(0.5, 1.5, built.weights.shape)
    return net


def inputs(example, samples, seed=2, dtype="float64"):
    """Normal random values of the row's shape, or its indices.

    Exact in float32, so both precisions see the same.
    """
    generator, shape = np.random.default_rng([seed, samples]), (samples, *example.input_shape)
    if example.vocabulary:
        return generator.integers(0, example.vocabulary, shape).astype(dtype)
    return generator.normal(size=shape).astype("float32").astype(dtype)


def targets(loss, samples, width=3, seed=3):
    """Targets as the loss wants them."""
    width = loss.outputs(width)
    generator = np.random.default_rng([seed, samples, width])
    if loss.targets == "labels":
        return generator.integers(0, width, samples)
    if loss.targets == "bits":
        return generator.integers(0, 2, (samples, width)).astype("float64")
    if loss.targets == "real":
        return generator.normal(size=(samples, width)).astype("float32").astype("float64")
    unit = generator.uniform(0.05, 0.95, (samples, width))
    return unit / unit.sum(axis=1, keepdims=True) if loss.targets == "distribution" else unit


WITHOUT_SECOND = {
    *(nn.MaxPool2D, nn.MaxPool1D, nn.GlobalMaxPool2D, nn.GlobalMaxPool1D),
    *(nn.ReLU, nn.LeakyReLU),
}


def is_smooth(example):
    """Whether no layer, and no activation of a single neuron, has an edge."""
    layers = [built.layer for built in network(example).layers]
    layers += [one for layer in layers for one in getattr(layer, "activations", ())]
    edges = [getattr(one, "p", 2) < 2 or getattr(one, "activation", 0) == "relu" for one in layers]
    return not (any(edges) or {type(layer) for layer in layers} & WITHOUT_SECOND)


SMOOTH = [one for one in TRAINABLE if is_smooth(one)]
"""Those that have second derivatives."""
