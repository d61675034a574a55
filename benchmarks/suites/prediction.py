"""Latency of one row and time of many, from Python and from inside compiled code."""

import numba
import numpy as np

import numbanet as nn

NETWORKS = {
    "8-64-64-1": lambda: nn.Sequential([nn.Dense(64, activation="tanh"), nn.Dense(64, activation="tanh"), nn.Dense(1)], 8),
    "784-100-10": lambda: nn.Sequential([nn.Dense(100, activation="relu"), nn.Dense(10, activation="softmax")], 784),
    "lenet5": nn.models.lenet5,
}


class Predict:
    """predict of 1 and of 1,024 rows."""

    params = (list(NETWORKS), [1, 1024])
    param_names = ("network", "rows")

    def setup(self, name, rows):
        self.network = NETWORKS[name]()
        self.x = np.random.default_rng(0).random((rows, *self.network.input_shape), np.float32)
        self.network.predict(self.x)

    def time_predict(self, name, rows):
        self.network.predict(self.x)


class Inside:
    """A thousand rows, one by one, in the user's own compiled loop."""

    params = (list(NETWORKS),)
    param_names = ("network",)

    def setup(self, name):
        network = NETWORKS[name]()
        row, out = np.random.default_rng(0).random(network.input_shape, np.float32), np.empty(network.output_shape, np.float32)
        predict_row = network.compiled()

        @numba.njit
        def thousand(row, out):
            for _ in range(1000):
                predict_row(row, out)

        thousand(row, out)
        self.run = lambda: thousand(row, out)

    def time_thousand_rows(self, name):
        self.run()
