"""What all estimators share: checks of X and y, class labels as a network's targets, predictions.

A fitted estimator has its network as `network_`. Data are checked by scikit-learn's own functions,
so that errors are those that its users know.
"""

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_regressor
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from numbanet.io.fields import shown
from numbanet.training.weights import WEIGHT

SPARSE = "csr"
"""The format that a sparse X comes in; scikit-learn converts others."""
DTYPES = [StrOptions({"float32", "float64"}), type, np.dtype, None]
"""What a dtype may be; the network refuses other types than float32 and float64."""
THREADS = [Interval(Integral, 1, None, closed="left"), None]
"""What a number of threads may be."""


def check_monitors(watching, validated: bool, way: str) -> None:
    """ValueError for a metric of validation data that is watched where there are none.

    watching    callbacks, and a schedule or None
    validated   whether there are validation data
    way         what to pass instead
    """
    for one in watching:
        monitor = getattr(one, "monitor", None) or ""
        if monitor.startswith("val_") and not validated:
            raise ValueError(
                f"{type(one).__name__} watches {monitor!r}, and no data are set aside for "
                f"validation; pass {way}"
            )


class NetworkEstimator(BaseEstimator):
    """An estimator with a network in it.

    `allow_nd`   whether samples may have more than one dimension
    `dtypes`     types of X that are read as they are; others are converted to the first
    """

    allow_nd = False
    dtypes: tuple = (np.float64, np.float32)

    def _keep(self, parameters: dict) -> None:
        """Store the constructor's arguments, its `locals()`."""
        given = {k: v for k, v in parameters.items() if k not in ("self", "__class__")}
        self.__dict__.update(given)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        return tags

    def _check_X_y(self, X, y, reset: bool):
        """Return X and y as they were given; ValueError for what cannot be trained on."""
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=SPARSE,
            multi_output=True,
            y_numeric=is_regressor(self),
            allow_nd=self.allow_nd,
            dtype=self.dtypes,
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _outputs(self, X) -> np.ndarray:
        """The network's outputs (samples, outputs) for X."""
        fitted = vars(self)
        if "network_" not in fitted:
            check_is_fitted(self)
        network = fitted["network_"]
        simple = type(X) is np.ndarray and X.dtype in self.dtypes and len(X) > 0
        if not (
            simple and X.shape[1:] == network.input_shape and "feature_names_in_" not in fitted
        ):
            X = validate_data(
                self,
                X,
                accept_sparse=SPARSE,
                allow_nd=self.allow_nd,
                dtype=self.dtypes,
                reset=False,
            )
        return network.predict(X)


class ClassesMixin(ClassifierMixin):
    """Labels of classes as a network's targets, and outputs as labels.

    `class_weight`   a parameter of the estimator: weights by class, "balanced", or None
    """

    class_weight: Any = None

    def _weigh_classes(self, y, sample_weight):
        """The weights of the samples times those of their classes, if there are any."""
        if self.class_weight is None:
            return sample_weight
        self._check_class_weight()
        by_class = compute_sample_weight(self.class_weight, y)
        weights = by_class if sample_weight is None else by_class * sample_weight
        if not weights.any():
            raise ValueError("class_weight leaves every sample a weight of 0")
        return weights

    def _check_class_weight(self) -> None:
        """ValueError unless the weights of classes are what they may be."""
        given, several = self.class_weight, isinstance(self.class_weight, list)
        each = given if several else [given]
        if given != "balanced" and not all(isinstance(one, dict) for one in each):
            raise ValueError(
                'class_weight is a dict, "balanced" or None, or for several labels a sample a list '
                f"of dicts, one for each, got {shown(given)}"
            )
        for k, weights in enumerate(each if given != "balanced" else []):
            for key, weight in weights.items():
                WEIGHT(weight, f"class_weight{f'[{k}]' if several else ''}[{key!r}]")

    def _learn_classes(self, y) -> None:
        self._binarizer = LabelBinarizer().fit(y)
        self.classes_ = self._binarizer.classes_

    def _check_known(self, y, all_of_them: bool) -> None:
        """ValueError unless the classes of y are (`all_of_them`) or are among those learnt."""
        found = unique_labels(y)
        if all_of_them and set(found) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {found}"
            )
        unknown = np.setdiff1d(found, self.classes_)
        if len(unknown):
            raise ValueError(
                f"`y` has classes not in `self.classes_`: {unknown}. `self.classes_` has "
                f"{self.classes_}; pass all classes to the first partial_fit"
            )

    @property
    def _n_outputs(self) -> int:
        return 1 if self._binarizer.y_type_ == "binary" else len(self.classes_)

    def _encode(self, y, dtype) -> np.ndarray:
        """Labels 0, 1, … of exclusive classes, int64, or rows of 0 and 1."""
        if self._binarizer.y_type_.startswith("multilabel"):
            return self._binarizer.transform(y).astype(dtype)
        labels = np.searchsorted(self.classes_, y)
        multiclass = self._binarizer.y_type_ == "multiclass"
        return labels.astype(np.int64) if multiclass else labels.astype(dtype)[:, None]

    def _decide(self, outputs: np.ndarray) -> np.ndarray:
        """The targets that outputs stand for, in the manner of `_encode`."""
        if self._binarizer.y_type_ == "multiclass":
            return outputs.argmax(axis=1)
        return outputs > 0.5

    def predict(self, X) -> np.ndarray:
        """Return the classes (samples,), or for several labels a sample 0 and 1 (samples, n).

        X   (samples, n_features)
        """
        outputs = self._outputs(X)
        kind = self._binarizer.y_type_
        if kind.startswith("multilabel"):
            return self._binarizer.inverse_transform(outputs)
        index = self._decide(outputs)
        if kind == "binary":
            index = np.minimum(index[:, 0], len(self.classes_) - 1)
        return self.classes_[index]

    def predict_proba(self, X) -> np.ndarray:
        """Return the probabilities (samples, n_classes) of the classes in the order of `classes_`.

        X   (samples, n_features)
        """
        outputs = self._outputs(X)
        return np.column_stack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs

    def predict_log_proba(self, X) -> np.ndarray:
        """Return the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))


class TargetsMixin(RegressorMixin):
    """Real targets."""

    def _weigh_classes(self, y, sample_weight):
        return sample_weight

    def _encode(self, y, dtype) -> np.ndarray:
        return y.reshape(len(y), -1).astype(dtype, copy=False)

    def predict(self, X) -> np.ndarray:
        """Return the predictions (samples,), or (samples, n_outputs) for several targets.

        X   (samples, n_features)
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs
