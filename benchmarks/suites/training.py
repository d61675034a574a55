"""Whole epochs of a few hundred steps, and the memory they need."""

import numpy as np

import numbanet as nn

RNG = np.random.default_rng(0)
NETWORKS = {
    "784-30-10 sigmoid, batch 10": (
        lambda: nn.Sequential([nn.Dense(30, activation="sigmoid"), nn.Dense(10, activation="sigmoid")], 784),
        "quadratic", nn.SGD(3.0), 10),
    "784-100-10 relu, Adam, batch 32": (
        lambda: nn.Sequential([nn.Dense(100, activation="relu"), nn.Dense(10, activation="softmax")], 784),
        "cross_entropy", nn.Adam(), 32),
    "784-512-512-10 relu, batch 128": (
        lambda: nn.Sequential([nn.Dense(512, activation="relu"), nn.Dense(512, activation="relu"),
                               nn.Dense(10, activation="softmax")], 784), "cross_entropy", nn.SGD(0.1), 128),
    "lenet5, Adam, batch 128": (nn.models.lenet5, "cross_entropy", nn.Adam(), 128),
}


class Epoch:
    """An epoch of random data with the sizes of MNIST."""

    params = (list(NETWORKS), [1, 2])
    param_names = ("network", "threads")
    timeout = 300

    def setup(self, name, threads):
        build, self.loss, self.optimizer, self.batch = NETWORKS[name]
        self.network = build()
        steps = 20 if "512" in name or "lenet" in name else 300
        self.x = RNG.random((steps * self.batch, *self.network.input_shape), np.float32)
        self.y = RNG.integers(0, 10, len(self.x))
        self.epoch(threads)

    def epoch(self, threads, epochs=1):
        self.network.fit(self.x, self.y, loss=self.loss, optimizer=self.optimizer, batch_size=self.batch, epochs=epochs,
                         threads=threads, verbose=0)

    def time_epochs(self, name, threads):
        self.epoch(threads, 5)

    def peakmem_epoch(self, name, threads):
        self.epoch(threads)
