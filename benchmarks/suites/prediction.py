"""Latency of one row and time of many, from Python and from inside compiled code.

What a call costs that has nothing to do.
"""

from functools import cache

import numba
import numpy as np

import numbanet as nn

from .verbs import enough_threads, or_skip

NETWORKS = {
    "8-64-64-1": lambda: nn.Sequential(
        [nn.Dense(64, activation="tanh"), nn.Dense(64, activation="tanh"), nn.Dense(1)], 8
    ),
    "784-100-10": lambda: nn.Sequential(
        [nn.Dense(100, activation="relu"), nn.Dense(10, activation="softmax")], 784
    ),
    "lenet5": lambda: nn.models.lenet5(),
}


@cache
def predictor(name, rows):
    """A network that has predicted once, and its inputs."""
    network = NETWORKS[name]()
    x = np.random.default_rng(0).random((rows, *network.input_shape), np.float32)
    network.predict(x)
    return network, x


class Latency:
    """One row a call, with the threads that predict chooses."""

    params = (list(NETWORKS),)
    param_names = ("network",)

    @or_skip
    def setup(self, name):
        self.network, self.x = predictor(name, 1)

    def time_1000_calls(self, name):
        for _ in range(1000):
            self.network.predict(self.x)


class Rows:
    """1,024 rows a call, and the memory for 20,000."""

    params = (list(NETWORKS), [1, 2])
    param_names = ("network", "threads")

    @or_skip
    def setup(self, name, threads):
        enough_threads(threads)
        self.network, self.x = predictor(name, 1024)
        self.network.predict(self.x, threads=threads)

    def time_10_calls(self, name, threads):
        for _ in range(10):
            self.network.predict(self.x, threads=threads)

    def peakmem_many_rows(self, name, threads):
        self.network.predict(
            np.zeros((20_000, *self.network.input_shape), np.float32), threads=threads
        )


@cache
def thousand(name):
    """A thousand rows, one by one, in the user's own compiled loop."""
    network = NETWORKS[name]()
    row, out = (
        np.random.default_rng(0).random(network.input_shape, np.float32),
        np.empty(network.output_shape, np.float32),
    )
    predict_row = network.compiled()

    @numba.njit
    def loop(row, out):
        for _ in range(1000):
            predict_row(row, out)

    loop(row, out)
    return lambda: loop(row, out)


class Inside:
    """One row a call, from compiled code."""

    params = (list(NETWORKS),)
    param_names = ("network",)

    @or_skip
    def setup(self, name):
        self.run = thousand(name)

    def time_1000_rows(self, name):
        self.run()


@cache
def least():
    """A network of one weight and one bias, trained and asked once."""
    network = nn.Sequential([nn.Dense(1)], 1, seed=0)
    x = np.ones((1, 1), np.float32)
    for work in (fit, network.gradient, network.evaluate):
        work(network, x) if work is fit else work(x, x)
    network.predict(x)
    return network, x


def fit(network, x, epochs=1):
    """Train on one sample, without a trace."""
    network.fit(x, x, optimizer=nn.SGD(0.0), batch_size=1, epochs=epochs, verbose=0, threads=1)


class Dispatch:
    """What calls cost on a network of 1-1, where next to nothing is computed."""

    @or_skip
    def setup(self):
        self.network, self.x = least()

    def time_1000_predictions(self):
        for _ in range(1000):
            self.network.predict(self.x)

    def time_100_gradients(self):
        for _ in range(100):
            self.network.gradient(self.x, self.x)

    def time_100_evaluations(self):
        for _ in range(100):
            self.network.evaluate(self.x, self.x)

    def time_100_fits_of_no_epoch(self):
        for _ in range(100):
            fit(self.network, self.x, 0)

    def time_100_epochs_of_one_step(self):
        fit(self.network, self.x, 100)
