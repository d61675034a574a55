"""numbanet on the GPU: a whole call of fit, a whole call of predict."""

import numpy as np

from benchmarks.peers import with_numbanet
from benchmarks.peers.with_numbanet import network, optimizer, set_weights
from benchmarks.peers.worker import Contender

NAME, ASIDE = "numbanet", ()


def variants(line) -> tuple[str, ...]:
    return ("fit" if line.trains else "predict",)


class Training(with_numbanet.Training):
    """A whole call of fit, of some epochs, on the GPU."""

    def __init__(self, case):
        super().__init__(case, 1)
        self.net.to("cuda")

    def ready(self, x_test, y_test) -> None:
        """Take a test set."""
        self.test = x_test, y_test

    def learn(self, wanted: float, most: int) -> tuple[int, float]:
        """Train until the accuracy on the test set is reached, at most so many epochs.

        Epochs taken and the last accuracy.
        """
        line, reached = self.case.line, []

        def enough(epoch, logs, network):
            reached.append(logs["val_accuracy"])
            return reached[-1] >= wanted

        self.net.fit(
            self.case.x,
            self.case.y,
            loss=line.loss,
            optimizer=optimizer(line),
            batch_size=line.batch,
            epochs=most,
            validation_data=self.test,
            callbacks=[enough],
            verbose=0,
        )
        return len(reached), reached[-1]


class Predicting(Contender):
    """A call of predict, from the host's memory to the host's memory."""

    def __init__(self, case):
        self.net, self.x = network(case.line), case.x
        set_weights(self.net, case.weights)
        self.net.to("cuda")

    def call(self) -> None:
        self.net.predict(self.x)

    def outputs(self) -> np.ndarray:
        return self.net.predict(self.x)


def start(case, variant: str):
    """A contender for the line."""
    return (Training if case.line.trains else Predicting)(case)
