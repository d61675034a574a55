"""Single layers: each verb on one thread, forward and gradient by threads, ratio to the peak."""

from functools import cache

import numpy as np

import numbanet as nn

from .verbs import Machine, enough_threads, or_skip

VECTOR, IMAGE = (512,), (16, 16, 32)
LAYERS = {
    "Dense 8-64": ("Dense", (8,), lambda: [nn.Dense(64)]),
    "Dense 784-30": ("Dense", (784,), lambda: [nn.Dense(30)]),
    "Dense 512-512": ("Dense", (512,), lambda: [nn.Dense(512)]),
    "Conv2D 12x12x6-16, 5x5": ("Conv2D", (12, 12, 6), lambda: [nn.Conv2D(16, 5)]),
    "Conv2D 16x16x32-32, 3x3": ("Conv2D", IMAGE, lambda: [nn.Conv2D(32, 3, padding="same")]),
    "MaxPool2D 24x24x6": ("MaxPool2D", (24, 24, 6), lambda: [nn.MaxPool2D(2)]),
    "MaxPool2D 16x16x32": ("MaxPool2D", IMAGE, lambda: [nn.MaxPool2D(2)]),
    "AvgPool2D 16x16x32": ("AvgPool2D", IMAGE, lambda: [nn.AvgPool2D(2)]),
    "LpPool2D 16x16x32": ("LpPool2D", IMAGE, lambda: [nn.LpPool2D(2)]),
    "BatchNorm 512": ("BatchNorm", VECTOR, lambda: [nn.BatchNorm()]),
    "BatchNorm 16x16x32": ("BatchNorm", IMAGE, lambda: [nn.BatchNorm()]),
    "LayerNorm 512": ("LayerNorm", VECTOR, lambda: [nn.LayerNorm()]),
    "LayerNorm 16x16x32": ("LayerNorm", IMAGE, lambda: [nn.LayerNorm()]),
    "Dropout 512": ("Dropout", VECTOR, lambda: [nn.Dropout(0.5)]),
    "Sigmoid 512": ("Sigmoid", VECTOR, lambda: [nn.Sigmoid()]),
    "Tanh 512": ("Tanh", VECTOR, lambda: [nn.Tanh()]),
    "ReLU 512": ("ReLU", VECTOR, lambda: [nn.ReLU()]),
    "ReLU 16x16x32": ("ReLU", IMAGE, lambda: [nn.ReLU()]),
    "LeakyReLU 512": ("LeakyReLU", VECTOR, lambda: [nn.LeakyReLU(0.1)]),
    "Softmax 10": ("Softmax", (10,), lambda: [nn.Softmax()]),
}
PLANES = "Conv2D 28x28x1-6, 5x5, on planes"
FIRST = {
    PLANES: ("Conv2D", (28, 28, 1), lambda: [nn.Conv2D(6, 5), nn.MaxPool2D(2)]),
    "MaxPool2D 24x24x6, on planes": (
        "MaxPool2D",
        (28, 28, 1),
        lambda: [nn.Conv2D(6, 5), nn.MaxPool2D(2)],
    ),
}
"""Layers at the beginning of a network.

Before all others stands a LayerNorm, so that an error passes back through them.
"""
WITH_WEIGHTS = [
    name
    for name, (kind, *_) in LAYERS.items()
    if kind in ("Dense", "Conv2D", "BatchNorm", "LayerNorm")
]
BATCHES = {1: 1000, 10: 1000, 128: 100}
"""Samples in a batch, and how many batches a benchmark of a verb counts."""


def network(name):
    """The layers of a row with what they stand between, and the input's shape."""
    _, shape, build = {**LAYERS, **FIRST}[name]
    return [*([] if name in FIRST else [nn.LayerNorm()]), *build(), nn.Flatten()], shape


@cache
def prepared(name, verb, batch):
    """A verb, ready: asv sets up before every call."""
    return Machine(*network(name), batch).verb({**LAYERS, **FIRST}[name][0], verb)


class _Verb:
    """1,000 batches of 1 or 10 samples, or 100 of 128: one thread, data in cache."""

    param_names = ("layer", "batch")
    verb = ""

    @or_skip
    def setup(self, name, batch):
        if name == "BatchNorm 512" and batch == 1:
            raise NotImplementedError("one number has no variance")
        self.run = prepared(name, self.verb, batch)

    def time_batches(self, name, batch):
        self.run.batches(BATCHES[batch])


class Forward(_Verb):
    """BP1"""

    params = ([*LAYERS, *FIRST], list(BATCHES))
    verb = "forward"


class Backward(_Verb):
    """BP2"""

    params = ([*LAYERS, *(name for name in FIRST if name != PLANES)], list(BATCHES))
    verb = "backward"


class Gradient(_Verb):
    """BP3 and BP4"""

    params = ([*WITH_WEIGHTS, PLANES], list(BATCHES))
    verb = "gradient"


class Peak:
    """How many times longer a layer takes than at the peak.

    The peak is the speed of the matrix tile alone in the same process.
    """

    params = (
        [
            "Dense 784-30",
            "Dense 512-512",
            "Conv2D 12x12x6-16, 5x5",
            "Conv2D 16x16x32-32, 3x3",
            PLANES,
        ],
        ["forward", "gradient"],
    )
    param_names = ("layer", "verb")
    unit = "times the peak's time"

    @or_skip
    def setup(self, name, verb):
        from numbanet.network import profiler

        self.run, self.peak, self.seconds = (
            prepared(name, verb, 128),
            profiler.peak,
            profiler._seconds,
        )

    def track_times_the_peak(self, name, verb):
        return self.seconds(self.run.calls) * self.peak("float32") / self.run.flops


@cache
def passes(name, batch, threads):
    """Forward and whole gradient of a layer, by a number of threads."""
    layers, shape = network(name)
    net = nn.Sequential(layers, shape, seed=0)
    x = np.random.default_rng(0).random((batch, *net.input_shape), np.float32)
    net.predict(x, threads=threads)
    machine = Machine(layers, shape, batch, threads)
    return (lambda: net.predict(x, threads=threads)), machine.step


class Threads:
    """A layer behind a LayerNorm, on all the threads given.

    Ten times `predict`, or ten times the gradient of a batch.
    """

    params = (
        [
            "Dense 784-30",
            "Dense 512-512",
            "Conv2D 12x12x6-16, 5x5",
            "Conv2D 16x16x32-32, 3x3",
            "MaxPool2D 16x16x32",
        ],
        [128, 1024],
        [1, 2],
    )
    param_names = ("layer", "batch", "threads")

    @or_skip
    def setup(self, name, batch, threads):
        enough_threads(threads)
        self.predict, self.gradient = passes(name, batch, threads)

    def time_10_predictions(self, name, batch, threads):
        for _ in range(10):
            self.predict()

    def time_10_gradients(self, name, batch, threads):
        for _ in range(10):
            self.gradient()
