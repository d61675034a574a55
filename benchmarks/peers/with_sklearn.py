"""scikit-learn: the fit of MLPClassifier and MLPRegressor, for the lines that they can express.

They have dense layers, a softmax with cross-entropy for classes, the quadratic cost after an
identity for numbers; float32 stays. The weights are put into an estimator that has seen a few
samples, and `warm_start` keeps them. For the check the samples lie in the common order; while
timed, it shuffles by itself.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from benchmarks.peers import work
from benchmarks.peers.worker import Contender, whole_epochs

NAME, PACKAGES = "scikit-learn", ("scikit-learn",)
ACTIVATIONS = {"sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}


def variants(line: work.Line) -> tuple[str, ...]:
    """Dense layers with one activation inside.

    The pairs of last activation and loss that scikit-learn has.
    """
    hidden = {own[1] for kind, *own in line.layers[:-1] if kind == "dense"}
    last = (line.layers[-1][2], line.loss)
    known = last in (("softmax", "cross_entropy"), ("", "quadratic"))
    return ("fit",) if line.trains and not line.has_images and len(hidden) == 1 and known else ()


class Training(Contender):
    """A whole call of fit, of some epochs."""

    def __init__(self, case: work.Case):
        warnings.simplefilter("ignore", ConvergenceWarning)
        self.case, line = case, case.line
        self.first = line.steps
        name, rate = line.optimizer
        kind = MLPClassifier if line.has_classes else MLPRegressor
        self.y = case.y if line.has_classes else case.y.ravel()
        hidden = [own[0] for _, *own in line.layers[:-1]]
        self.net = kind(
            hidden_layer_sizes=hidden,
            activation=ACTIVATIONS[line.layers[0][2]],
            solver=name,
            alpha=0.0,
            batch_size=line.batch,
            learning_rate_init=rate,
            momentum=0.0,
            nesterovs_momentum=False,
            max_iter=1,
            tol=0.0,
            n_iter_no_change=1 << 40,
            random_state=work.SEED,
            warm_start=True,
        )
        self.net.fit(case.x[:2000], self.y[:2000])

    def reset(self) -> None:
        """The weights; every fit starts its optimiser anew."""
        for k, (w, b) in enumerate(
            zip(self.case.weights[0::2], self.case.weights[1::2], strict=True)
        ):
            self.net.coefs_[k][...], self.net.intercepts_[k][...] = w, b

    def piece(self, step: float, seconds: float) -> int:
        """Whole epochs, for all the turn."""
        return whole_epochs(self.case.line, step, seconds)

    def run(self, steps: int) -> float:
        line, x, y, epochs = self.case.line, self.case.x, self.y, steps // self.case.line.steps
        self.net.set_params(max_iter=max(1, epochs), shuffle=epochs > 0)
        if not epochs:  # the check's few steps
            chosen = work.Batches(line).take(steps).ravel()
            x, y = x[chosen], y[chosen]
        self.net.fit(x, y)
        return float(self.net.loss_)

    def weights(self) -> list:
        return [
            np.array(a)
            for pair in zip(self.net.coefs_, self.net.intercepts_, strict=True)
            for a in pair
        ]


def start(case: work.Case, variant: str, threads: int):
    """A contender for the line.

    Its threads are those of the linear algebra, set by the environment.
    """
    return Training(case)
