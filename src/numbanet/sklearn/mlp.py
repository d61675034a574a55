"""MLPClassifier and MLPRegressor: scikit-learn's multi-layer perceptrons on numbanet's kernels.

Parameters, fitted attributes, initial weights, the order of the samples and the steps are
scikit-learn's, so that the same `random_state` gives the same training but for rounding. What
differs stands in docs/sklearn.md.
"""

import warnings
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight

from numbanet.network.sequential import Sequential
from numbanet.nn import losses
from numbanet.nn.data import bind_inputs
from numbanet.nn.layers import Dense
from numbanet.nn.optimizers import SGD, AdamEpsilonHat
from numbanet.nn.regularizers import L2, penalties
from numbanet.plan.columns import PENALTY_FACTORS, TARGETS, WEIGHTS
from numbanet.sklearn.base import ClassesMixin, NetworkEstimator, TargetsMixin
from numbanet.training import lbfgs
from numbanet.training.epoch import reuse_optimizer_state, take_epoch
from numbanet.training.weights import relative_weights

STOCHASTIC = ("sgd", "adam")
"""Solvers that take steps by mini-batches."""
STOP_AT = 1e-6
"""At this learning rate, learning_rate="adaptive" stops."""
EXTRA_CONSTRAINTS = {
    "dtype": [StrOptions({"float32", "float64"}), None],
    "threads": [Interval(Integral, 1, None, closed="left"), None],
}


def _stochastic(estimator) -> bool:
    """AttributeError unless the solver takes steps: what `partial_fit` needs."""
    if estimator.solver not in STOCHASTIC:
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. "
            f"{estimator.solver} is not stochastic."
        )
    return True


class _Perceptron(NetworkEstimator):
    """What both perceptrons share: building, training and the fitted attributes."""

    loss_curve_: list[float]
    best_loss_: Any
    validation_scores_: Any
    best_validation_score_: Any

    def _keep(self, parameters: dict) -> None:
        """Store the constructor's arguments, its `locals()`."""
        given = {k: v for k, v in parameters.items() if k not in ("self", "__class__")}
        self.__dict__.update(given)

    # --- fitted attributes ---

    def _dense_layers(self) -> list:
        if "network_" not in vars(self):
            raise AttributeError(f"this {type(self).__name__} is not fitted yet; call fit")
        return [built for built in self.network_.layers if built.parameters]

    @property
    def coefs_(self) -> list[np.ndarray]:
        """The weights (n_in, n_out) of every layer: views, writing to one changes the network."""
        return [built.parameters["weights"] for built in self._dense_layers()]

    @property
    def intercepts_(self) -> list[np.ndarray]:
        """The biases (n_out,) of every layer, views."""
        return [built.parameters["bias"] for built in self._dense_layers()]

    # --- fitting ---

    def fit(self, X, y, sample_weight=None):
        """Train on X (samples, n_features) and y, and return the estimator.

        y               (samples,), or (samples, n_outputs) for several labels or targets
        sample_weight   weights (samples,) of at least 0, or None
        Raises ValueError for data or parameters that do not fit, and for a training that diverges.
        """
        return self._fit(X, y, sample_weight, incremental=False)

    def _fit(self, X, y, sample_weight, incremental: bool):
        self._validate_params()
        hidden = np.atleast_1d(np.asarray(self.hidden_layer_sizes, dtype=int)).tolist()
        if any(units <= 0 for units in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        first = "network_" not in vars(self) or not (self.warm_start or incremental)
        X, y = self._check_X_y(X, y, first)
        dtype = np.dtype(self.dtype or X.dtype)
        y = self._targets(y, incremental, dtype)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        self._random_state = check_random_state(self.random_state)
        if first:
            self._initialize(X.shape[1], hidden, y, dtype)
        if self.solver in STOCHASTIC:
            self._fit_stochastic(X, y, sample_weight, incremental)
        else:
            self._fit_lbfgs(X, y, sample_weight)
        if not np.isfinite(self.network_.parameters).all():
            raise self._diverged()
        return self

    def _diverged(self) -> ValueError:
        return ValueError(
            "Solver produced non-finite parameter weights. The input data may contain large "
            "values and need to be preprocessed."
        )

    def _initialize(self, n_features: int, hidden: list[int], y, dtype) -> None:
        """Build the network; its initial weights are scikit-learn's for this random state."""
        self.out_activation_, self.n_outputs_ = self._last_layer(y)
        units = [*hidden, self.n_outputs_]
        activations = [self.activation] * len(hidden) + [self.out_activation_]
        layers = [
            Dense(n, activation=name, initializer="zeros")
            for n, name in zip(units, activations, strict=True)
        ]
        self.network_ = Sequential(layers, n_features, dtype, threads=self.threads)
        self.n_layers_ = len(units) + 1
        factor = 2.0 if self.activation == "logistic" else 6.0
        for weights, bias in zip(self.coefs_, self.intercepts_, strict=True):
            bound = np.sqrt(factor / sum(weights.shape))
            weights[...] = self._random_state.uniform(-bound, bound, weights.shape)
            bias[...] = self._random_state.uniform(-bound, bound, bias.shape)
        self.n_iter_ = self.t_ = 0
        if self.solver in STOCHASTIC:
            self.loss_curve_, self._without_improvement = [], 0
            self.best_loss_ = None if self.early_stopping else np.inf
            self.validation_scores_ = [] if self.early_stopping else None
            self.best_validation_score_ = -np.inf if self.early_stopping else None

    def _optimizer(self):
        if self.solver == "adam":
            return AdamEpsilonHat(self._rate, self.beta_1, self.beta_2, self.epsilon)
        nesterov = self.nesterovs_momentum and self.momentum > 0
        return SGD(self._rate, self.momentum, nesterov)

    def _fit_lbfgs(self, X, y, weights) -> None:
        network, loss = self.network_, losses.loss(self._loss)
        X, y, _ = network.check_data(X, y, loss)
        network.penalty = penalties(L2(self.alpha))
        network.executors.clear()
        found = lbfgs.minimize(
            network,
            X,
            y,
            loss,
            tol=self.tol,
            max_iter=self.max_iter,
            max_fun=self.max_fun,
            weights=weights,
            penalty_factor=1 / (len(X) if weights is None else weights.sum()),
        )
        network.executors.clear()
        self.n_iter_ = _check_optimize_result("lbfgs", found, self.max_iter)
        self.loss_ = float(found.fun)

    def _fit_stochastic(self, X, y, weights, incremental: bool) -> None:
        validation = None
        if self.early_stopping:
            X, y, weights, validation = self._split(X, y, weights)
        network, loss = self.network_, losses.loss(self._loss)
        X, y, _ = network.check_data(X, y, loss)
        samples = len(X)
        batch = min(200, samples) if self.batch_size == "auto" else self.batch_size
        if batch > samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be "
                "clipped",
                stacklevel=4,
            )
            batch = samples
        if not incremental or "_rate" not in vars(self):
            self._rate, network.optimizer = float(self.learning_rate_init), None
        optimizer = self._optimizer()
        reuse_optimizer_state(network, optimizer)
        network.penalty = penalties(L2(self.alpha))
        network.executors.clear()
        trainer = network.executors.training(
            loss,
            optimizer,
            X,
            y,
            False,
            batch=batch,
            batches=-(-samples // batch),
            threads=None,
            weighted=weights is not None,
        )
        trainer.set_optimizer(optimizer)
        bind_inputs(trainer, X)
        trainer.bind(TARGETS, y)
        try:
            self._epochs(trainer, samples, weights, validation, incremental)
        finally:
            trainer.release()
            network.executors.clear()

    def _epochs(self, trainer, samples: int, weights, validation, incremental: bool) -> None:
        """Train until the loss or the validation score stops improving, or max_iter is reached.

        In the loss of an epoch, the norm of the weights is taken to go evenly from that before the
        epoch to that after it.
        """
        network, batch = self.network_, trainer.plan.batch
        order, best = np.arange(samples), None
        counts = np.minimum(batch, samples - np.arange(0, samples, batch)).astype(np.float64)
        factors = 1 / counts
        trainer.bind(PENALTY_FACTORS, factors)
        self.n_iter_ = 0
        norm = self._squared_norm()
        try:
            while self.n_iter_ < self.max_iter:
                if self.shuffle:
                    order = order[self._random_state.permutation(samples)]
                if weights is not None:
                    relative, sums = relative_weights(weights, order, batch)
                    trainer.bind(WEIGHTS, relative)
                    factors = np.divide(1, sums, out=np.zeros(len(sums)), where=sums > 0)
                    trainer.bind(PENALTY_FACTORS, factors)
                if take_epoch(network, trainer, samples, order, None) < len(counts):
                    raise self._diverged()
                before, norm = norm, self._squared_norm()
                mean = before + (norm - before) * (len(counts) - 1) / (2 * len(counts))
                penalty = 0.5 * self.alpha * mean * float(np.vdot(factors, counts))
                self._end_epoch(samples, float(trainer.metric_sums[0]), penalty)
                improved = self._record(validation)
                if improved and validation is not None:
                    best = network.memory.copy()
                if self.solver == "sgd" and self.learning_rate == "invscaling":
                    rate = self.learning_rate_init / (self.t_ + 1) ** self.power_t
                    self._change_rate(trainer, rate)
                if self._without_improvement > self.n_iter_no_change and self._stops(trainer):
                    break
                if incremental:
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and "
                        "the optimization hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=5,
                    )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=5)
        if best is not None:
            network.memory[:] = best

    def _squared_norm(self) -> float:
        return sum(float(np.vdot(weights, weights)) for weights in self.coefs_)

    def _end_epoch(self, samples: int, loss: float, penalty: float) -> None:
        """Record the epoch's loss and penalty, which are sums over its samples."""
        self.loss_ = (loss / self._loss_divisor() + penalty) / samples
        self.n_iter_ += 1
        self.t_ += samples
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")

    def _loss_divisor(self) -> int:
        return 1

    def _record(self, validation) -> bool:
        """Count epochs without improvement; whether this one is the best so far."""
        if validation is None:
            loss, best = self.loss_, self.best_loss_
            worse, better = loss > best - self.tol, loss < best
            self.best_loss_ = min(best, loss)
        else:
            score, best = self._validation_score(*validation), self.best_validation_score_
            self.validation_scores_.append(score)
            if self.verbose:
                print(f"Validation score: {score:f}")
            worse, better = score < best + self.tol, score > best
            self.best_validation_score_ = score if better else best
        self._without_improvement = self._without_improvement + 1 if worse else 0
        return better

    def _stops(self, trainer) -> bool:
        """Whether training ends here; an adaptive learning rate may fall instead."""
        what = "Validation score" if self.early_stopping else "Training loss"
        said = (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} "
            "consecutive epochs."
        )
        adaptive = self.solver == "sgd" and self.learning_rate == "adaptive"
        if adaptive and self._rate > STOP_AT:
            self._change_rate(trainer, self._rate / 5)
            self._without_improvement = 0
            if self.verbose:
                print(f"{said} Setting learning rate to {self._rate:f}")
            return False
        if self.verbose:
            print(f"{said}{' Learning rate too small.' if adaptive else ''} Stopping.")
        return True

    def _change_rate(self, trainer, rate: float) -> None:
        """Set SGD's learning rate; what the momentum has gathered keeps its length as a step."""
        self.network_.optimizer_state *= self._rate / rate
        self._rate = rate
        self.network_.optimizer = self._optimizer()
        trainer.set_optimizer(self.network_.optimizer)

    def _split(self, X, y, weights):
        """(X, y, weights, validation): a part of the data is set aside for early stopping."""
        given = [X, y] if weights is None else [X, y, weights]
        parts = train_test_split(
            *given,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._strata(y),
        )
        train, validation = parts[::2], parts[1::2]
        if validation[0].shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return *train, *([None] if weights is None else []), validation

    def _strata(self, y):
        return None


class MLPClassifier(ClassesMixin, _Perceptron):
    """scikit-learn's MLPClassifier, trained by numbanet.

    Every parameter has scikit-learn's meaning and default. In addition:

    dtype     "float32", about twice as fast, or "float64"; None takes that of X
    threads   most threads; by default Numba's number, fewer for little work

    Fitted, it has scikit-learn's attributes, `coefs_` and `intercepts_` as views of the network's
    parameters, and `network_`, the Sequential itself: to save, compile or profile.
    """

    _parameter_constraints: ClassVar[dict] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **EXTRA_CONSTRAINTS,
    }

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dtype=None,
        threads=None,
    ):
        self._keep(locals())

    @available_if(_stochastic)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch, and return the estimator.

        classes   all classes that any call will see; the first call needs them
        The other arguments are those of `fit`.
        """
        if _check_partial_fit_first_call(self, classes):
            several = np.ndim(y) == 2 and np.shape(y)[1] > 1
            self._learn_classes(y if several else classes)
        return self._fit(X, y, sample_weight, incremental=True)

    def _targets(self, y, incremental: bool, dtype) -> np.ndarray:
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._learn_classes(y)
        else:
            self._check_known(y, all_of_them=self.warm_start)
        return self._encode(y, dtype)

    def _last_layer(self, y) -> tuple[str, int]:
        exclusive = self._binarizer.y_type_ == "multiclass"
        return "softmax" if exclusive else "logistic", self._n_outputs

    @property
    def _loss(self) -> str:
        return "cross_entropy" if self.out_activation_ == "softmax" else "binary_cross_entropy"

    def _strata(self, y):
        return y if self.n_outputs_ == 1 else None

    def _validation_score(self, X, y, weights=None) -> float:
        outputs = self.network_.predict(X)
        correct = self._decide(outputs) == y
        correct = correct.all(axis=1) if correct.ndim == 2 else correct
        return float(np.average(correct, weights=weights))


class MLPRegressor(TargetsMixin, _Perceptron):
    """scikit-learn's MLPRegressor, trained by numbanet.

    Every parameter has scikit-learn's meaning and default; dtype, threads and the fitted attributes
    are as for MLPClassifier.
    """

    _parameter_constraints: ClassVar[dict] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **EXTRA_CONSTRAINTS,
    }

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dtype=None,
        threads=None,
    ):
        self._keep(locals())

    @available_if(_stochastic)
    def partial_fit(self, X, y, sample_weight=None):
        """Train for one epoch, and return the estimator; the arguments are those of `fit`."""
        return self._fit(X, y, sample_weight, incremental=True)

    def _targets(self, y, incremental: bool, dtype) -> np.ndarray:
        y = self._encode(y, dtype)
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError("loss='poisson' needs targets y >= 0")
        return y

    def _last_layer(self, y) -> tuple[str, int]:
        return "exp" if self.loss == "poisson" else "identity", y.shape[1]

    @property
    def _loss(self) -> str:
        return "poisson" if self.loss == "poisson" else "quadratic"

    def _loss_divisor(self) -> int:
        return self.n_outputs_ if self.loss == "squared_error" else 1

    def _validation_score(self, X, y, weights=None) -> float:
        outputs = self.network_.predict(X)
        if not np.isfinite(outputs).all():
            return np.nan
        return float(r2_score(y, outputs, sample_weight=weights))
