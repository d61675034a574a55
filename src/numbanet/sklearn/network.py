"""NetworkClassifier and NetworkRegressor: any layers as an estimator of scikit-learn."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight

from numbanet.io.attributes import instance
from numbanet.network.sequential import Sequential
from numbanet.nn.layers import Dense, Flatten
from numbanet.nn.layers.base import Layer, size
from numbanet.nn.optimizers import Optimizer, optimizer
from numbanet.sklearn.base import ClassesMixin, NetworkEstimator, TargetsMixin


class _Network(NetworkEstimator):
    """What both estimators share: parameters, the network and its training."""

    allow_nd = True
    dtypes = (np.float64, np.float32, np.uint8)

    def __init__(
        self,
        layers=None,
        *,
        loss=None,
        optimizer="adam",
        epochs=100,
        batch_size=32,
        shuffle=True,
        penalty=None,
        validation_split=0.0,
        callbacks=None,
        dtype=None,
        threads=None,
        device="cpu",
        random_state=None,
        warm_start=False,
        verbose=0,
    ):
        self.layers = layers
        self.loss = loss
        self.optimizer = optimizer
        self.epochs = epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.penalty = penalty
        self.validation_split = validation_split
        self.callbacks = callbacks
        self.dtype = dtype
        self.threads = threads
        self.device = device
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    # --- nested parameters ---

    def get_params(self, deep=True) -> dict[str, Any]:
        """Return the parameters by name; if deep, the fields of layers and optimiser too.

        They are called layers__0__units, optimizer__learning_rate and so on.
        """
        found = super().get_params(deep)
        parts = {"optimizer": self.optimizer} if deep else {}
        if deep and isinstance(self.layers, (list, tuple)):
            parts |= {f"layers__{i}": layer for i, layer in enumerate(self.layers)}
        for name, part in parts.items():
            if is_dataclass(part) and not isinstance(part, type):
                found |= {f"{name}__{f.name}": getattr(part, f.name) for f in fields(part)}
        return found

    def set_params(self, **params):
        """Set parameters, those of `get_params(deep=True)` too, and return the estimator.

        Layers and optimiser are replaced by changed copies. Raises ValueError for an unknown name.
        """
        nested = {k: v for k, v in params.items() if k.startswith(("layers__", "optimizer__"))}
        super().set_params(**{k: v for k, v in params.items() if k not in nested})
        for key, value in nested.items():
            *place, field = key.split("__")
            try:
                if place == ["optimizer"]:
                    self.optimizer = _changed(optimizer(self.optimizer), field, value)
                else:
                    layers, number = list(self.layers), int(place[1])
                    layers[number] = _changed(instance(layers[number], Layer), field, value)
                    self.layers = layers
            except (LookupError, TypeError) as error:
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}: {error}"
                ) from error
        return self

    # --- fitting ---

    def fit(self, X, y, sample_weight=None):
        """Train on X (samples, …) and y, and return the estimator.

        y               (samples,), or (samples, n_outputs) for several labels or targets
        sample_weight   weights (samples,) of at least 0, or None
        Raises ValueError or TypeError for what does not fit, DivergenceError where the loss does
        not stay finite.
        """
        first = "network_" not in vars(self) or not self.warm_start
        X, y = self._check_X_y(X, y, first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        sample_weight = self._weigh_classes(y, sample_weight)
        y = self._targets(y, first)
        if first:
            self.network_ = self._build(X)
        history = self.network_.fit(
            X,
            y,
            loss=self.loss,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            epochs=self.epochs,
            shuffle=self.shuffle,
            validation_split=self.validation_split,
            callbacks=self.callbacks,
            verbose=self.verbose,
            sample_weight=sample_weight,
        )
        self.history_, self.n_iter_ = history.history, len(history.seconds)
        return self

    def _build(self, X) -> Sequential:
        """The network for samples like those of X; ValueError where its outputs do not fit y."""
        input_shape = X.shape[1:]
        dtype = self.dtype or ("float64" if X.dtype == np.float64 else "float32")
        seed = int(check_random_state(self.random_state).randint(1 << 31))
        n_outputs, activation = self.n_outputs_, self._last_activation()
        if callable(self.layers):
            made = self.layers(input_shape, (n_outputs,))
        else:
            hidden = self.layers
            if hidden is None:
                hidden = [Flatten(), Dense(100, activation="relu")]
            made = [*hidden, Flatten(), Dense(n_outputs, activation=activation)]
        if not isinstance(made, Sequential):
            options = dtype, seed, self.penalty, self.threads, self.device
            made = Sequential(made, input_shape, *options)
        if size(made.output_shape) != n_outputs:
            raise ValueError(
                f"y needs a network with {n_outputs} outputs, the one that layers() made has "
                f"{size(made.output_shape)}; use the output_shape that it is given"
            )
        return made


def _changed(part: Layer | Optimizer, field: str, value):
    """A copy with another value of a field; TypeError for an unknown field."""
    return replace(part, **{field: value})


class NetworkClassifier(ClassesMixin, _Network):
    """A classifier of any layers.

    The output layer that is added to `layers` is a softmax, or a sigmoid for two classes and for
    several labels per sample: one output for each class, a single one for two. A function as
    `layers` is given the shape of these outputs, and ends in such an activation.

    layers            the layers before the output layer, as a list; or a function (input_shape,
                      output_shape) that returns all layers, or a Sequential; None stands for one
                      hidden layer of 100 rectifiers
    loss … verbose    as for Sequential and its fit; epochs counts the passes of one fit
    dtype             "float32", about twice as fast, or "float64"; None takes that of X, for bytes
                      "float32"
    class_weight      weights by class, "balanced", or None, as in scikit-learn
    random_state      an int for the same result in every fit
    warm_start        whether fit goes on with the network of the last one

    Fitted, it has `network_`, the Sequential; `history_`, the metrics of every epoch by name;
    `n_iter_`, the number of epochs; `classes_`.
    """

    def __init__(
        self,
        layers=None,
        *,
        loss=None,
        optimizer="adam",
        epochs=100,
        batch_size=32,
        shuffle=True,
        penalty=None,
        class_weight=None,
        validation_split=0.0,
        callbacks=None,
        dtype=None,
        threads=None,
        device="cpu",
        random_state=None,
        warm_start=False,
        verbose=0,
    ):
        super().__init__(
            layers,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            shuffle=shuffle,
            penalty=penalty,
            validation_split=validation_split,
            callbacks=callbacks,
            dtype=dtype,
            threads=threads,
            device=device,
            random_state=random_state,
            warm_start=warm_start,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def _targets(self, y, first: bool) -> np.ndarray:
        if first:
            self._learn_classes(y)
            self.n_outputs_ = self._n_outputs
        else:
            self._check_known(y, all_of_them=True)
        return self._encode(y, np.float32)

    def _last_activation(self) -> str:
        return "softmax" if self._binarizer.y_type_ == "multiclass" else "sigmoid"


class NetworkRegressor(TargetsMixin, _Network):
    """A regressor of any layers.

    The output layer that is added to `layers` has one linear unit for each target. Parameters and
    fitted attributes are those of NetworkClassifier, without `class_weight` and `classes_`.
    """

    def _targets(self, y, first: bool) -> np.ndarray:
        y = self._encode(y, np.float64)
        if first:
            self.n_outputs_ = y.shape[1]
        return y

    def _last_activation(self) -> str:
        return "identity"

    def predict(self, X) -> np.ndarray:
        """Return the predictions (samples,) or (samples, n_outputs), float64."""
        return super().predict(X).astype(np.float64)
