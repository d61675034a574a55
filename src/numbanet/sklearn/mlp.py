"""MLPClassifier and MLPRegressor: scikit-learn's multi-layer perceptrons on numbanet's kernels.

Parameters, fitted attributes, initial weights, the order of the samples and the steps are
scikit-learn's, so that the same `random_state` gives the same training but for rounding. What
differs, and what is offered beyond, stands in docs/sklearn.md.
"""

import warnings
from contextlib import ExitStack
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import _check_sample_weight

from numbanet.backend.permutation import permute
from numbanet.network.sequential import Sequential
from numbanet.nn import losses, optimizers
from numbanet.nn.data import bind_inputs
from numbanet.nn.layers import BatchNorm, Dense, Dropout, Sigmoid, per_neuron
from numbanet.nn.layers.activations import Activation
from numbanet.nn.layers.base import Layer
from numbanet.nn.optimizers import SGD, AdamEpsilonHat, AdamW, Optimizer
from numbanet.nn.regularizers import L2, penalties
from numbanet.plan.columns import PENALTY_FACTORS, TARGETS, WEIGHTS
from numbanet.sklearn.base import (
    DTYPES,
    THREADS,
    ClassesMixin,
    NetworkEstimator,
    TargetsMixin,
    check_monitors,
)
from numbanet.training import lbfgs
from numbanet.training.callbacks import as_callbacks
from numbanet.training.data import Validation, check_last_batch
from numbanet.training.epoch import reuse_optimizer_state, take_epochs
from numbanet.training.weights import relative_weights

STOP_AT = 1e-6
"""At this learning rate, learning_rate="adaptive" stops."""
MOST_PLACES = 1 << 20
"""Samples in the orders of epochs that are trained without a look between them: 8 MiB."""
EXTRA_CONSTRAINTS = {
    "activation": [StrOptions({*per_neuron.NAMES, *per_neuron.SYNONYMS}), Activation, list, tuple],
    "solver": [StrOptions({"lbfgs", *optimizers.NAMES}), Optimizer, lbfgs.LBFGS],
    "dropout": [Interval(Real, 0, 1, closed="left"), list, tuple],
    "batch_norm": ["boolean"],
    "dtype": DTYPES,
    "threads": THREADS,
    "device": [StrOptions({"cpu", "cuda"})],
}
LOSS = [StrOptions({*losses.NAMES, *losses.SYNONYMS}), losses.Loss]
LAST_ACTIVATIONS = {"Sigmoid": "logistic", "Softmax": "softmax", "Exp": "exp", "": "identity"}
"""scikit-learn's name of the last activation for the one that a loss is fused with."""


def _stochastic(estimator) -> bool:
    """AttributeError unless the solver takes steps: what `partial_fit` needs."""
    if lbfgs.is_lbfgs(estimator.solver):
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
    validation_loss_curve_: Any
    best_validation_score_: Any

    # --- fitted attributes ---

    def _dense_layers(self) -> list:
        if "network_" not in vars(self):
            raise AttributeError(f"this {type(self).__name__} is not fitted yet; call fit")
        return [built for built in self.network_.layers if isinstance(built.layer, Dense)]

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
        hidden = self._hidden_units()
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        callbacks = as_callbacks(self.callbacks)
        for callback in callbacks:
            if callback.called_at_steps():
                raise ValueError(
                    f"{type(self).__name__} calls callbacks after epochs, not after steps as "
                    f"{type(callback).__name__} asks; the estimators of any layers do"
                )
        measured = self.early_stopping and not self._uses_lbfgs
        way = "" if self._uses_lbfgs else "early_stopping=True or "
        watching = [*callbacks, getattr(self.solver, "schedule", None)]
        check_monitors(watching, measured, f"{way}monitor='loss'")
        first = "network_" not in vars(self) or not (self.warm_start or incremental)
        X, y = self._check_X_y(X, y, first)
        dtype = np.dtype(X.dtype if self.dtype is None else self.dtype)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        sample_weight = self._weigh_classes(y, sample_weight)
        y = self._targets(y, incremental, dtype)
        self._random_state = check_random_state(self.random_state)
        if first:
            self._initialize(X.shape[1], hidden, y, dtype)
        else:
            self._follow_parameters(hidden)
        network = self.network_
        with ExitStack() as at_end:
            at_end.enter_context(network.in_training())
            for callback in callbacks:
                callback.on_fit_begin(network)
                at_end.callback(callback.on_fit_end, network)
            if self._uses_lbfgs:
                self._fit_lbfgs(X, y, sample_weight, callbacks)
            else:
                self._fit_stochastic(X, y, sample_weight, incremental, callbacks)
        if not np.isfinite(network.parameters).all():
            raise self._diverged()
        return self

    def _diverged(self) -> ValueError:
        return ValueError(
            "Solver produced non-finite parameter weights. The input data may contain large "
            "values and need to be preprocessed."
        )

    @property
    def _uses_lbfgs(self) -> bool:
        return lbfgs.is_lbfgs(self.solver)

    def _hidden_units(self) -> list[int]:
        """The units of every hidden layer; TypeError unless they are integers."""
        given = self.hidden_layer_sizes
        each = np.atleast_1d(np.asarray(given, dtype=object)).tolist()
        for units in each:
            if isinstance(units, (bool, np.bool_)) or not isinstance(units, Integral):
                raise TypeError(
                    f"hidden_layer_sizes is an integer, or a list of one for each hidden layer, "
                    f"got {given!r}"
                )
        if any(units <= 0 for units in each):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {each}.")
        return [int(units) for units in each]

    def _layers(self, hidden: list[int]) -> list[Layer]:
        """All layers, by the parameters of now."""
        activations = self._activations(len(hidden))
        rates = self._each("dropout", len(hidden))
        layers: list[Layer] = []
        for units, activation, rate in zip(hidden, activations, rates, strict=True):
            if self.batch_norm:
                layers += [Dense(units, activation=None, initializer="zeros"), BatchNorm()]
                layers.append(activation)
            else:
                layers.append(Dense(units, activation=activation, initializer="zeros"))
            layers += [Dropout(rate)] if rate else []
        last = Dense(self.n_outputs_, activation=self.out_activation_, initializer="zeros")
        return [*layers, last]

    def _activations(self, n: int) -> list[Layer]:
        """Those of the hidden layers; ValueError for a layer that is none."""
        found = [per_neuron.activation(one) for one in self._each("activation", n)]
        for one in found:
            if not isinstance(one, Activation):
                raise ValueError(f"activation: {one} is a layer, and no activation")
        return found

    def _initialize(self, n_features: int, hidden: list[int], y, dtype) -> None:
        """Build the network; its initial weights are scikit-learn's for this random state."""
        self.out_activation_, self.n_outputs_ = self._last_layer(y)
        layers = self._layers(hidden)
        self.network_ = network = Sequential(
            layers, n_features, dtype, threads=self.threads, device=self.device
        )
        self._learn_names()
        self.n_layers_ = len(hidden) + 2
        activations = self._activations(len(hidden))
        activations += activations[-1:] or self._activations(1)
        for weights, bias, activation in zip(
            self.coefs_, self.intercepts_, activations, strict=True
        ):
            bound = np.sqrt((2.0 if isinstance(activation, Sigmoid) else 6.0) / sum(weights.shape))
            weights[...] = self._random_state.uniform(-bound, bound, weights.shape)
            bias[...] = self._random_state.uniform(-bound, bound, bias.shape)
        if any(isinstance(layer, Dropout) for layer in layers):
            network.seed = int(self._random_state.randint(1 << 31))
        self.n_iter_ = self.t_ = 0
        if not self._uses_lbfgs:
            self.loss_curve_ = []
            self._begin_records()

    def _begin_records(self) -> None:
        """Forget what was best, and the measures of a validation part."""
        stops, self._without_improvement = self.early_stopping, 0
        self.best_loss_ = None if stops else np.inf
        self.validation_scores_ = [] if stops else None
        self.validation_loss_curve_ = [] if stops else None
        self.best_validation_score_ = -np.inf if stops else None

    def _follow_parameters(self, hidden: list[int]) -> None:
        """Let the network that goes on have the parameters of now.

        Raises ValueError for those that its weights do not fit.
        """
        network, kinds = self.network_, [type(built.layer) for built in self.network_.layers]
        fixed = {
            "hidden_layer_sizes": ([len(bias) for bias in self.intercepts_[:-1]], hidden),
            "batch_norm": (BatchNorm in kinds, bool(self.batch_norm and hidden)),
            "dtype": (
                str(network.dtype),
                str(network.dtype if self.dtype is None else np.dtype(self.dtype)),
            ),
        }
        for name, (before, now) in fixed.items():
            if before != now:
                raise ValueError(
                    f"{name} is {now}, and the network that warm_start or partial_fit goes on with "
                    f"was built with {before}; set {name} back, or fit anew with warm_start=False"
                )
        layers = self._layers(hidden)
        now = repr(layers), self.threads, self.device
        if now != (repr(network.specs), network.threads, network.device):
            self.network_ = made = Sequential(
                layers,
                network.input_shape,
                network.dtype,
                network.seed,
                threads=self.threads,
                device=self.device,
            )
            made.take_training(network)
            self._learn_names()
        if not self._uses_lbfgs:
            self.loss_curve_ = vars(self).get("loss_curve_", [])
            scores = vars(self).get("validation_scores_")
            if not self.loss_curve_ or self.early_stopping != (scores is not None):
                self._begin_records()

    def _each(self, name: str, n: int) -> list:
        """A parameter of the hidden layers: given once for all, or as a list, one for each."""
        given = getattr(self, name)
        each = list(given) if isinstance(given, (list, tuple)) else [given] * n
        if len(each) != n:
            raise ValueError(f"{name} has {len(each)} entries, for {n} hidden layers")
        return each

    def _optimizer(self) -> Optimizer:
        """The optimiser that the solver stands for, at the learning rate of now."""
        if isinstance(self.solver, Optimizer):
            return self.solver
        if self.solver == "sgd":
            nesterov = self.nesterovs_momentum and self.momentum > 0
            return SGD(self._rate, self.momentum, nesterov)
        kinds = {"adam": AdamEpsilonHat, "adamw": AdamW}
        if self.solver in kinds:
            return kinds[self.solver](self._rate, self.beta_1, self.beta_2, self.epsilon)
        return optimizers.NAMES[self.solver](self._rate)

    def _fit_lbfgs(self, X, y, weights, callbacks) -> None:
        network = self.network_

        def end_iteration(value: float) -> bool:
            network.epoch += 1
            logs = {"loss": value}
            return any([one.on_epoch_end(network.epoch, logs, network) for one in callbacks])

        X, y, _ = network.check_data(X, y, self._loss)
        network.penalty = penalties(L2(self.alpha))
        network.executors.clear()
        own = isinstance(self.solver, lbfgs.LBFGS)
        found = lbfgs.minimize(
            network,
            X,
            y,
            self._loss,
            tol=self.solver.tolerance if own else self.tol,
            max_iter=self.max_iter,
            max_fun=self.solver.max_evaluations if own else self.max_fun,
            weights=weights,
            penalty_factor=1 / (len(X) if weights is None else weights.sum()),
            callback=end_iteration,
        )
        network.executors.clear()
        self.n_iter_ = _check_optimize_result("lbfgs", found, self.max_iter)
        self.loss_ = float(found.fun)

    def _fit_stochastic(self, X, y, weights, incremental: bool, callbacks) -> None:
        network, loss, validation = self.network_, self._loss, None
        if self.early_stopping:
            X, y, weights, (X_val, y_val, *rest) = self._split(X, y, weights)
            found = network.check_data(X_val, y_val, loss)
            validation = Validation(*found, lengths=None, weights=rest[0] if rest else None)
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
        check_last_batch(network, samples, batch)
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
            self._epochs(trainer, samples, weights, validation, incremental, callbacks)
        finally:
            trainer.release()
            network.executors.clear()

    def _epochs(
        self,
        trainer,
        samples: int,
        weights,
        validation: Validation | None,
        incremental: bool,
        callbacks,
    ) -> None:
        """Train until the loss or the validation score stops improving, or max_iter is reached."""
        network, batch = self.network_, trainer.plan.batch
        order, best = np.arange(samples), None
        counts = np.minimum(batch, samples - np.arange(0, samples, batch)).astype(np.float64)
        trainer.bind(PENALTY_FACTORS, 1 / counts)
        trainer.sum_penalties()
        schedule = network.optimizer.schedule
        end = network.epoch + (1 if incremental else self.max_iter)
        self.n_iter_, loss = 0, self._loss
        watched = incremental or validation is not None or callbacks or schedule or self.verbose
        every = watched or weights is not None or self._rate_follows_epochs
        begin = self._random_state.get_state(legacy=False)
        epoch, steps = network.epoch, network.optimizer_steps
        try:
            while self.n_iter_ < self.max_iter:
                if schedule is not None and schedule.has_ended(network.schedule_state):
                    break
                for callback in callbacks:
                    callback.on_epoch_begin(network.epoch + 1, network)
                epochs = 1 if every else self._epochs_to_come(trainer, samples)
                orders = self._draw_orders(order, epochs)
                if weights is not None:
                    relative, sums = relative_weights(weights, order, batch)
                    trainer.bind(WEIGHTS, relative)
                    factors = np.divide(1, sums, out=np.zeros(len(sums)), where=sums > 0)
                    trainer.bind(PENALTY_FACTORS, factors)
                rates = network.optimizer.rates(
                    network.epoch, len(counts), end, network.schedule_state
                )
                epoch, steps = network.epoch, network.optimizer_steps
                whole = take_epochs(network, trainer, samples, orders, rates) // len(counts)
                for total in self._losses(trainer, whole):
                    logs = self._end_epoch(samples, total)
                    if validation is not None:
                        logs |= self._validate(validation, loss)
                    improved = self._record()
                if whole < epochs:
                    self._draw_again(begin, samples)
                    raise self._diverged()
                if improved and validation is not None:
                    best = network.memory.copy()
                if self._rate_follows_epochs:
                    rate = self.learning_rate_init / (self.t_ + 1) ** self.power_t
                    self._change_rate(trainer, rate)
                if schedule is not None:
                    network.schedule_state = schedule.observe(network.schedule_state, logs)
                stops = [one.on_epoch_end(network.epoch, logs, network) for one in callbacks]
                stuck = self._without_improvement > self.n_iter_no_change
                if (stuck and self._stops(trainer)) or any(stops) or incremental:
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and "
                        "the optimization hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=5,
                    )
        except KeyboardInterrupt:
            if not every:
                updates = network.optimizer.updates(len(counts), len(counts))
                whole = (network.optimizer_steps - steps) // updates
                for total in self._losses(trainer, whole)[network.epoch - epoch :]:
                    self._end_epoch(samples, total)
                    self._record()
            warnings.warn("Training interrupted by user.", stacklevel=5)
        if best is not None:
            network.memory[:] = best

    @property
    def _rate_follows_epochs(self) -> bool:
        return self.solver == "sgd" and self.learning_rate == "invscaling"

    def _epochs_to_come(self, trainer, samples: int) -> int:
        """How many epochs come for certain, up to one that may be the last."""
        sure = self.n_iter_no_change - self._without_improvement + 1
        few = min(len(trainer.sums), MOST_PLACES // samples)
        return max(1, int(min(sure, few, self.max_iter - self.n_iter_)))

    def _draw_orders(self, order: np.ndarray, epochs: int) -> np.ndarray:
        """The orders (epochs, samples) of the next epochs, the last of which becomes `order`."""
        orders = np.empty((epochs, len(order)), np.int64)
        if self.shuffle:
            permute(order, orders, self._random_state)
        else:
            orders[:] = order
        return orders

    def _draw_again(self, begin: dict, samples: int) -> None:
        """Leave the random state as if nothing was drawn after the order of the epoch of now."""
        self._random_state.set_state(begin)
        for _ in range(self.n_iter_ + 1):
            self._draw_orders(np.arange(samples), 1)

    def _losses(self, trainer, epochs: int) -> list[float]:
        """The loss, with the penalty, of each of the last epochs: a sum over its samples."""
        penalties_ = trainer.penalty_sums[:epochs].sum(axis=1)
        return (trainer.sums[:epochs, 0] / self._loss_divisor() + penalties_).tolist()

    def _end_epoch(self, samples: int, loss: float) -> dict[str, float]:
        """Record the epoch's loss, with the penalty, a sum over its samples; its metrics."""
        self.loss_ = loss / samples
        self.n_iter_ += 1
        self.t_ += samples
        self.network_.epoch += 1
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        return {"loss": self.loss_}

    def _loss_divisor(self) -> int:
        return 1

    def _validate(self, validation: Validation, loss: losses.Loss) -> dict[str, float]:
        """Record loss and score on the validation data; the same as metrics by their names."""
        x, y, classes, lengths, weights = validation
        value, accuracy = self.network_.score(x, y, classes, loss, None, lengths, weights)
        value /= self._loss_divisor()
        score = self._score(validation, accuracy)
        self.validation_loss_curve_.append(value)
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        return {"val_loss": value, self._score_name: score}

    def _record(self) -> bool:
        """Count epochs without improvement; whether this one is the best so far."""
        if self.early_stopping:
            score, best = self.validation_scores_[-1], self.best_validation_score_
            worse, better = score < best + self.tol, score > best
            self.best_validation_score_ = score if better else best
        else:
            loss, best = self.loss_, self.best_loss_
            worse, better = loss > best - self.tol, loss < best
            self.best_loss_ = min(best, loss)
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
        if weights is not None:
            for part, name in ((train, "training"), (validation, "validation")):
                if not part[2].any():
                    raise ValueError(
                        f"early_stopping: every sample of the {name} part has a weight of 0; weigh "
                        "more samples, or pass another validation_fraction or random_state"
                    )
        return *train, *([None] if weights is None else []), validation

    def _strata(self, y):
        return None


class MLPClassifier(ClassesMixin, _Perceptron):
    """scikit-learn's MLPClassifier, trained by numbanet.

    Every parameter of scikit-learn has its meaning and default. In addition:

    activation     any of numbanet's, by name or as a layer; or a list, one for each hidden layer
    solver         any of numbanet's optimisers: "adamw", "rmsprop", "adagrad" at the rate
                   learning_rate_init, or an Optimizer as it is, also with a schedule
    loss           any of numbanet's that goes with the last activation, by name or as a Loss; by
                   default a cross-entropy. The last activation is a softmax, and for two classes or
                   several labels a logistic one
    class_weight   weights by class, "balanced", or None, as in scikit-learn's other classifiers
    dropout        the probability with which outputs of a hidden layer are dropped in training; or
                   a list, one for each hidden layer
    batch_norm     whether each hidden layer has a BatchNorm before its activation
    callbacks      one or several of numbanet's, called around the training and its epochs, with
                   loss and, with early_stopping, val_loss and val_accuracy as metrics
    dtype          "float32", about twice as fast, or "float64"; None takes that of X
    threads        most threads; by default Numba's number, fewer for little work
    device         "cpu", or "cuda" for an NVIDIA GPU

    Fitted, it has scikit-learn's attributes, `coefs_` and `intercepts_` as views of the network's
    parameters, and

    network_                 the Sequential itself: to save, compile or profile
    validation_loss_curve_   with early_stopping the mean loss of the validation part after every
                             epoch, without the penalty; else None
    """

    _parameter_constraints: ClassVar[dict] = {
        **neural_network.MLPClassifier._parameter_constraints,
        **EXTRA_CONSTRAINTS,
        "loss": [*LOSS, None],
        "class_weight": [StrOptions({"balanced"}), dict, list, None],
    }
    _score_name = "val_accuracy"

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
        loss=None,
        class_weight=None,
        dropout=0.0,
        batch_norm=False,
        callbacks=None,
        dtype=None,
        threads=None,
        device="cpu",
    ):
        self._keep(locals())

    @available_if(_stochastic)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch, and return the estimator.

        classes   all classes that any call will see; the first call needs them
        The other arguments are those of `fit`.
        """
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' counts the classes in all samples, and partial_fit sees a "
                "part of them; pass a dict of weights"
            )
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
    def _loss(self) -> losses.Loss:
        default = "cross_entropy" if self.out_activation_ == "softmax" else "binary_cross_entropy"
        return losses.loss(default if self.loss is None else self.loss)

    def _strata(self, y):
        return y if self.n_outputs_ == 1 else None

    def _score(self, validation: Validation, accuracy) -> float:
        if self._binarizer.y_type_.startswith("multilabel"):
            correct = self._decide(self.network_.predict(validation.x)) == validation.y
            accuracy = np.average(correct.all(axis=1), weights=validation.weights)
        return float(accuracy)


class MLPRegressor(TargetsMixin, _Perceptron):
    """scikit-learn's MLPRegressor, trained by numbanet.

    Every parameter of scikit-learn has its meaning and default. `loss` may also be any other of
    numbanet's, by name ("huber", "mean_absolute_error") or as a Loss; the last activation is the
    one that it needs, mostly the identity. The other parameters and the fitted attributes are as
    for MLPClassifier; the metrics of callbacks are loss, val_loss and val_r2.
    """

    _parameter_constraints: ClassVar[dict] = {
        **neural_network.MLPRegressor._parameter_constraints,
        **EXTRA_CONSTRAINTS,
        "loss": LOSS,
    }
    _score_name = "val_r2"

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
        dropout=0.0,
        batch_norm=False,
        callbacks=None,
        dtype=None,
        threads=None,
        device="cpu",
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
        return LAST_ACTIVATIONS[self._loss.fused_activation], y.shape[1]

    @property
    def _loss(self) -> losses.Loss:
        return losses.loss("quadratic" if self.loss == "squared_error" else self.loss)

    def _loss_divisor(self) -> int:
        return self.n_outputs_ if self.loss == "squared_error" else 1

    def _score(self, validation: Validation, accuracy) -> float:
        outputs = self.network_.predict(validation.x)
        if not np.isfinite(outputs).all():
            return np.nan
        return _r2(validation.y, outputs, validation.weights)


def _r2(y, outputs, weights) -> float:
    """The mean of R² over the targets; that of a constant one is 1 where it is met, else 0.

    It is scikit-learn's `r2_score`, without its checks, which take longer than a small epoch.
    """
    weights = np.ones(len(y)) if weights is None else weights
    errors = weights @ (y - outputs) ** 2
    spreads = weights @ (y - weights @ y / weights.sum()) ** 2
    varies = spreads > 0
    scores = np.where(varies, 1 - errors / np.where(varies, spreads, 1), errors == 0)
    return float(scores.mean())
