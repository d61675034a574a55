"""NetworkClassifier and NetworkRegressor: any layers as an estimator of scikit-learn."""

from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight

from numbanet.io.attributes import instance
from numbanet.io.fields import shown
from numbanet.network.sequential import Sequential
from numbanet.network.transfer import alike
from numbanet.nn.layers import Dense, Flatten
from numbanet.nn.layers.base import Layer, size
from numbanet.nn.optimizers import Optimizer, optimizer
from numbanet.sklearn.base import (
    DTYPES,
    THREADS,
    ClassesMixin,
    NetworkEstimator,
    TargetsMixin,
    check_monitors,
)
from numbanet.training.callbacks import as_callbacks
from numbanet.training.lbfgs import LBFGS


class _Network(NetworkEstimator):
    """What both estimators share: parameters, the network and its training."""

    _parameter_constraints: ClassVar[dict] = {
        "layers": [list, tuple, callable, None],
        "epochs": [Interval(Integral, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "shuffle": ["boolean"],
        "validation_split": [Interval(Real, 0, 1, closed="left")],
        "dtype": DTYPES,
        "threads": THREADS,
        "device": [StrOptions({"cpu", "cuda"})],
        "random_state": ["random_state"],
        "warm_start": ["boolean"],
    }
    layers: Any
    optimizer: Any
    allow_nd = True
    dtypes = (np.float64, np.float32, np.uint8)

    # --- nested parameters ---

    def get_params(self, deep=True) -> dict[str, Any]:
        """Return the parameters by name; if deep, layers and the fields of theirs and of optimiser.

        They are called layers__0, layers__0__units, optimizer__learning_rate and so on.
        """
        found = super().get_params(deep)
        parts = {"optimizer": self.optimizer} if deep else {}
        if deep and isinstance(self.layers, (list, tuple)):
            parts |= {f"layers__{i}": layer for i, layer in enumerate(self.layers)}
            found |= {name: layer for name, layer in parts.items() if name != "optimizer"}
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
        for key, value in sorted(nested.items(), key=lambda one: one[0].count("__")):
            try:
                self._set_nested(key.split("__"), value)
            except (LookupError, TypeError) as error:
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}: {error}"
                ) from error
        return self

    def _set_nested(self, names: list[str], value) -> None:
        """Set optimizer__field, layers__number or layers__number__field."""
        if names[0] == "optimizer":
            if len(names) != 2:
                raise LookupError("the optimizer's fields have no parameters of their own")
            given = LBFGS() if self.optimizer == "lbfgs" else self.optimizer
            given = given if isinstance(given, LBFGS) else optimizer(given)
            self.optimizer = _changed(given, names[1], value)
            return
        if not isinstance(self.layers, (list, tuple)):
            raise LookupError(f"layers is {shown(self.layers)}, and no list of layers")
        layers = list(self.layers)
        if not names[1].isdecimal() or int(names[1]) >= len(layers):
            raise LookupError(f"there are the layers 0 … {len(layers) - 1}")
        number = int(names[1])
        if len(names) > 3:
            raise LookupError("a layer's fields have no parameters of their own")
        if len(names) == 3:
            value = _changed(instance(layers[number], Layer), names[2], value)
        layers[number] = value
        self.layers = layers

    # --- fitting ---

    def fit(self, X, y, sample_weight=None):
        """Train on X (samples, …) and y, and return the estimator.

        y               (samples,), or (samples, n_outputs) for several labels or targets
        sample_weight   weights (samples,) of at least 0, or None
        Raises ValueError or TypeError for what does not fit, DivergenceError where the loss does
        not stay finite.
        """
        self._validate_params()
        first = "network_" not in vars(self) or not self.warm_start
        watching = [*as_callbacks(self.callbacks), getattr(self.optimizer, "schedule", None)]
        check_monitors(watching, self.validation_split > 0, "validation_split=0.1")
        X, y = self._check_X_y(X, y, first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        sample_weight = self._weigh_classes(y, sample_weight)
        y = self._targets(y, first)
        self._take(self._build(X), first)
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
            **self._fit_options(),
        )
        self.history_, self.n_iter_ = history.history, len(history.seconds)
        return self

    def _build(self, X) -> Sequential:
        """The network for samples like those of X; ValueError where its outputs do not fit y."""
        shapes = X.shape[1:], (self.n_outputs_,)
        dtype = self.dtype
        if dtype is None:
            dtype = "float64" if X.dtype == np.float64 else "float32"
        seed = int(check_random_state(self.random_state).randint(1 << 31))
        options: Any = seed, self.penalty, self.threads, self.device
        activation = self._last_activation()
        if not callable(self.layers):
            hidden = self.layers
            if hidden is None:
                hidden = [Flatten(), Dense(100, activation="relu")]
            last = Dense(self.n_outputs_, activation=activation)
            return Sequential([*hidden, Flatten(), last], shapes[0], dtype, *options)
        given = self.layers(*shapes)
        if isinstance(given, Sequential):
            made = self._copy(given, seed)
        elif isinstance(given, (list, tuple)):
            made = Sequential(given, shapes[0], dtype, *options)
        else:
            raise TypeError(f"layers() returned {shown(given)}, not a list or a Sequential")
        if size(made.output_shape) != self.n_outputs_:
            raise ValueError(
                f"y needs a network with {self.n_outputs_} outputs, the one that layers() made has "
                f"{size(made.output_shape)}; use the output_shape that it is given"
            )
        final = type(made.layers[-1].layer).__name__
        if activation != "identity" and final.lower() != activation:
            raise ValueError(
                f"the classes of y need a network that ends in {activation}, the one that layers() "
                f"made ends in {final}; give its last layer activation={activation!r}"
            )
        return made

    def _copy(self, given: Sequential, seed: int) -> Sequential:
        """A network that a function returned, by the parameters that are given here.

        Weights that are not those of its seed were learnt or set, and stay.
        """
        initial = alike(given, given.specs, given.input_shape)
        made = Sequential(
            given.specs,
            given.input_shape,
            given.dtype if self.dtype is None else self.dtype,
            seed,
            list(given.penalty) if self.penalty is None else self.penalty,
            given.threads if self.threads is None else self.threads,
            given.device if self.device == "cpu" else self.device,
        )
        if not np.array_equal(given.memory, initial.memory):
            made.memory[...] = given.memory
            made.scales_targets = given.scales_targets
        for built, source in zip(made.layers, given.layers, strict=True):
            built.copy_settings(source)
        return made

    def _take(self, made: Sequential, first: bool) -> None:
        """Train this network, or go on with that of the last fit if it is described alike."""
        if first:
            self.network_ = made
            return
        before = self.network_
        other_dtype = self.dtype is not None and made.dtype != before.dtype
        if repr(made.specs) != repr(before.specs) or other_dtype:
            raise ValueError(
                "layers or dtype are not those of the network that warm_start goes on with; set "
                "them back, or fit anew with warm_start=False"
            )
        before.penalty, before.threads = made.penalty, made.threads
        before.executors.clear()
        before.to(made.device)


def _changed(part: Layer | Optimizer | LBFGS, field: str, value):
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
        self._keep(locals())

    def _targets(self, y, first: bool) -> np.ndarray:
        if first:
            self._learn_classes(y)
            self.n_outputs_ = self._n_outputs
        else:
            self._check_known(y, all_of_them=True)
        return self._encode(y, np.float32)

    def _fit_options(self) -> dict[str, Any]:
        return {}

    def _last_activation(self) -> str:
        return "softmax" if self._binarizer.y_type_ == "multiclass" else "sigmoid"


class NetworkRegressor(TargetsMixin, _Network):
    """A regressor of any layers.

    The output layer that is added to `layers` has one linear unit for each target. Parameters and
    fitted attributes are those of NetworkClassifier, without `class_weight` and `classes_`, and

    scale_targets   whether y is standardised for the training, as by Sequential.fit
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
        scale_targets=False,
        validation_split=0.0,
        callbacks=None,
        dtype=None,
        threads=None,
        device="cpu",
        random_state=None,
        warm_start=False,
        verbose=0,
    ):
        self._keep(locals())

    def _targets(self, y, first: bool) -> np.ndarray:
        y = self._encode(y, np.float64)
        if first:
            self.n_outputs_ = y.shape[1]
        return y

    def _fit_options(self) -> dict[str, Any]:
        return {"scale_targets": self.scale_targets}

    def _last_activation(self) -> str:
        return "identity"

    def predict(self, X) -> np.ndarray:
        """Return the predictions (samples,) or (samples, n_outputs), float64."""
        return super().predict(X).astype(np.float64)
