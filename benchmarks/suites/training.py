"""Whole steps and whole epochs, and the memory they need."""

from functools import cache

import numpy as np

import numbanet as nn

from .verbs import enough_threads, or_skip

NETWORKS = {
    "784-30-10 sigmoid, batch 10": (
        lambda: nn.Sequential(
            [nn.Dense(30, activation="sigmoid"), nn.Dense(10, activation="sigmoid")], 784, seed=0
        ),
        "quadratic",
        lambda: nn.SGD(3.0),
        10,
    ),
    "784-100-10 relu, Adam, batch 32": (
        lambda: nn.Sequential(
            [nn.Dense(100, activation="relu"), nn.Dense(10, activation="softmax")], 784, seed=0
        ),
        "cross_entropy",
        lambda: nn.Adam(),
        32,
    ),
    "784-512-512-10 relu, batch 128": (
        lambda: nn.Sequential(
            [
                nn.Dense(512, activation="relu"),
                nn.Dense(512, activation="relu"),
                nn.Dense(10, activation="softmax"),
            ],
            784,
            seed=0,
        ),
        "cross_entropy",
        lambda: nn.SGD(0.1),
        128,
    ),
    "lenet5, Adam, batch 128": (
        lambda: nn.models.lenet5(seed=0),
        "cross_entropy",
        lambda: nn.Adam(),
        128,
    ),
}
LARGE = ("784-512", "lenet5")


class Trained:
    """A network that has been trained for an epoch of random data with the sizes of MNIST."""

    def __init__(self, name, threads):
        build, self.loss, optimizer, self.batch = NETWORKS[name]
        self.network, self.optimizer, self.threads = build(), optimizer(), threads
        self.steps, rng = 20 if name.startswith(LARGE) else 300, np.random.default_rng(0)
        self.x = rng.random((self.steps * self.batch, *self.network.input_shape), np.float32)
        self.y = rng.integers(0, 10, len(self.x))
        self.start = self.network.parameters.copy()
        self.epochs(1)

    def epochs(self, epochs) -> None:
        """Train from the start."""
        self.network.parameters[:] = self.start
        self.network.fit(
            self.x,
            self.y,
            loss=self.loss,
            optimizer=self.optimizer,
            batch_size=self.batch,
            epochs=epochs,
            threads=self.threads,
            verbose=0,
        )

    @property
    def trainer(self):
        """The plan and the memories of this training."""
        (found,) = self.network.executors.executors.values()
        return found


@cache
def trained(name, threads) -> Trained:
    return Trained(name, threads)


class Epoch:
    """Five epochs of 20 or 300 steps by `fit`, which chooses one or several threads."""

    params = (list(NETWORKS), [1, 2])
    param_names = ("network", "threads")
    timeout = 300

    @or_skip
    def setup(self, name, threads):
        enough_threads(threads)
        self.trained = trained(name, threads)

    def time_5_epochs(self, name, threads):
        self.trained.epochs(5)

    def peakmem_epoch(self, name, threads):
        self.trained.epochs(1)


class Step:
    """Twenty steps in one native call, with exactly the threads given, from the same weights."""

    params = (list(NETWORKS), [1, 2])
    param_names = ("network", "threads")

    @or_skip
    def setup(self, name, threads):
        from numbanet.plan.columns import INPUTS, PERMUTATION, TARGETS

        enough_threads(threads)
        self.trained = trained(name, threads)
        self.trainer, network = self.trained.trainer, self.trained.network
        self.trainer.tuner.size = threads
        for column, array in (
            (INPUTS, self.trained.x),
            (TARGETS, self.trained.y),
            (PERMUTATION, None),
        ):
            self.trainer.bind(column, array)
        self.memory, self.state = network.memory.copy(), np.zeros_like(network.optimizer_state)
        self.steps()

    def steps(self):
        """From the start, with the optimiser's state at zero."""
        self.memory[: self.trained.start.size] = self.trained.start
        self.state[:] = 0
        reached = self.trainer.steps(self.memory, self.state, len(self.trained.x), 0, 20, 0)
        assert reached == 20

    def time_20_steps(self, name, threads):
        self.steps()

    def teardown(self, name, threads):
        self.trainer.release()


class Memory:
    """What training allocates: activations, deltas, gradients and tables of the plan."""

    params = (list(NETWORKS), [1, 2])
    param_names = ("network", "threads")

    @or_skip
    def setup(self, name, threads):
        enough_threads(threads)
        trainer = trained(name, threads).trainer
        self.arrays = (
            trainer.acts,
            trainer.deltas,
            trainer.grads,
            trainer.plan.tables,
            trainer.plan.tasks,
        )

    def track_bytes_of_the_plan(self, name, threads):
        return sum(array.nbytes for array in self.arrays)

    track_bytes_of_the_plan.unit = "bytes"
