"""Metrics on plain arrays: targets first, then the network's outputs, then weights of the samples.

    accuracy               weighted share of the samples with the right class, or all labels right
    top_k                  the same of those whose class is among the k largest outputs
    precision              TP / (TP + FP)          recall    TP / (TP + FN)
    f1                     2 TP / (2 TP + FP + FN)
    auc                    area under the ROC curve: P(output of a positive > of a negative)
    rmse                   √ Σ w r² / Σ w          r2        1 − Σ w r² / Σ w (y − ȳ)²
    mean_squared_error     Σ w r² / Σ w            mean_absolute_error    Σ w |r| / Σ w

`y` holds labels (samples,), or rows (samples, outputs): one-hot, 0 and 1 for several labels a
sample, or real targets. `outputs` are what `predict` gives. With one output, class 1 is where it is
above 0.5, and precision, recall, f1 and auc are those of class 1; with several they are means over
the classes or labels. A fraction without a denominator is 0. r = y − outputs; real targets that are
NaN are missing, and count for nothing.

Source   scikit-learn's functions of these names, with average="macro" and multi_class="ovr"
"""

import inspect
import re
from collections.abc import Callable
from functools import partial

import numpy as np

from numbanet.io.arrays import near_one
from numbanet.io.fields import Choice, shown
from numbanet.io.registry import lookup, nearest

# --- classes ----------------------------------------------------------------------------------


def _to_labels(array) -> np.ndarray:
    """Labels from labels, one-hot rows, probabilities, or one output with a threshold of 0.5."""
    array = np.asarray(array)
    if array.ndim == 2 and array.shape[1] > 1:
        return array.argmax(axis=1)
    array = array.reshape(-1)
    return (
        (array > 0.5).astype(np.int64)
        if array.dtype.kind == "f" and ((array >= 0) & (array <= 1)).all()
        else array
    )


def _check_pair(y, outputs):
    y, outputs = np.asarray(y), np.asarray(outputs)
    if len(y) != len(outputs) or len(y) == 0:
        raise ValueError(
            f"targets and outputs must be as many and not empty, got {len(y)} and {len(outputs)}"
        )
    return y, outputs


def mistakes(y, outputs) -> int:
    """Return how many samples were put in the wrong class.

    Both arguments: labels, one-hot rows, probabilities, or one output.
    """
    y, outputs = _check_pair(y, outputs)
    return int((_to_labels(y) != _to_labels(outputs)).sum())


def confusion_matrix(y, outputs) -> np.ndarray:
    """Return counts (classes, classes): row the true class, column the predicted class."""
    y, outputs = _check_pair(y, outputs)
    true, given = _to_labels(y).astype(np.int64), _to_labels(outputs).astype(np.int64)
    n = int(max(true.max(), given.max())) + 1
    return np.bincount(true * n + given, minlength=n * n).reshape(n, n)


def _has_several_labels(y: np.ndarray) -> bool:
    """Whether rows of 0 and 1 name several labels a sample, and not one class or probabilities."""
    if y.ndim != 2 or y.shape[1] == 1 or (abs(y.sum(axis=1) - 1) < 1e-6).all():
        return False
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(f"this metric needs targets that name classes, y has rows such as {y[0]}")
    return True


def _classes_of(y: np.ndarray) -> np.ndarray:
    """The classes that targets name, int64 (samples,)."""
    labels = _to_labels(y)
    wrong = np.flatnonzero(~(labels == np.floor(labels)))
    if len(wrong):
        raise ValueError(
            f"this metric needs targets that name classes, y has {labels[wrong[0]]} at [{wrong[0]}]"
        )
    return labels.astype(np.int64)


def _members(y, outputs) -> tuple[np.ndarray, np.ndarray]:
    """Which samples belong to which class, by y and by the outputs: bool (samples, classes) each.

    There is one column for class 1 of two classes, else one for each class that occurs, or for each
    of several labels a sample.
    """
    y, outputs = _check_pair(y, outputs)
    if _has_several_labels(y):
        return y == 1, outputs > 0.5
    true = _classes_of(y)
    single = outputs.ndim == 2 and outputs.shape[1] == 1
    given = outputs[:, 0] > 0.5 if single else _classes_of(outputs)
    classes = np.union1d(true, given)
    if single or (outputs.ndim == 1 and classes.max() <= 1):
        classes = np.array([1])
    return true[:, None] == classes, given[:, None] == classes


def _weights(sample_weight, samples: int) -> np.ndarray:
    """Weights of the samples, of which only the proportions count."""
    if sample_weight is None:
        return np.ones(samples)
    return near_one(np.asarray(sample_weight, np.float64))


def _share(found: np.ndarray, of: np.ndarray) -> float:
    """The mean over the classes of found / of, 0 where there is nothing to divide by."""
    return float(np.divide(found, of, out=np.zeros(len(of)), where=of > 0).mean())


def accuracy(y, outputs, sample_weight=None) -> float:
    """Return the fraction of samples, 0 … 1, that were put in the right class.

    Of several labels a sample, all have to be right. Both arguments: labels, one-hot rows,
    probabilities, or one output.
    """
    true, given = _members(y, outputs)
    right = (true == given).all(axis=1)
    return float(np.average(right, weights=_weights(sample_weight, len(right))))


def precision(y, outputs, sample_weight=None) -> float:
    """Return the fraction, 0 … 1, of what was put in a class that belongs there."""
    true, given = _members(y, outputs)
    weights = _weights(sample_weight, len(true))
    return _share(weights @ (true & given), weights @ given)


def recall(y, outputs, sample_weight=None) -> float:
    """Return the fraction, 0 … 1, of what belongs in a class that was put there."""
    true, given = _members(y, outputs)
    weights = _weights(sample_weight, len(true))
    return _share(weights @ (true & given), weights @ true)


def f1(y, outputs, sample_weight=None) -> float:
    """Return the harmonic mean of precision and recall, class by class, 0 … 1."""
    true, given = _members(y, outputs)
    weights = _weights(sample_weight, len(true))
    return _share(2 * (weights @ (true & given)), weights @ given + weights @ true)


def top_k(y, outputs, sample_weight=None, *, k: int = 5) -> float:
    """Return the fraction of samples, 0 … 1, whose class is among the k largest outputs.

    Raises ValueError unless there are more than k outputs, and one class a sample.
    """
    y, outputs = _check_pair(y, outputs)
    n = outputs.shape[1] if outputs.ndim == 2 else 1
    if k >= n:
        raise ValueError(f"top_{k} needs more than {k} outputs, the network has {n}")
    if _has_several_labels(y):
        raise ValueError(f"top_{k} needs one class a sample, y has several labels in a row")
    largest = np.argsort(outputs, axis=1, kind="stable")[:, -k:]
    found = (largest == _classes_of(y)[:, None]).any(axis=1)
    return float(np.average(found, weights=_weights(sample_weight, len(found))))


def auc(y, outputs, sample_weight=None) -> float:
    """Return the area under the ROC curve, 0 … 1; 0.5 is as good as chance.

    NaN where a class has no sample, or all of them.
    """
    y, outputs = _check_pair(y, outputs)
    weights = _weights(sample_weight, len(y))
    outputs = outputs.reshape(len(outputs), -1)
    if _has_several_labels(y):
        true = y == 1
    else:
        classes = np.arange(outputs.shape[1]) if outputs.shape[1] > 1 else np.array([1])
        true = _classes_of(y)[:, None] == classes
    return float(np.mean([_area(true[:, c], outputs[:, c], weights) for c in range(true.shape[1])]))


def _area(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """The area under the ROC curve of one class; equal scores are one point of it."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    found, false = (
        np.concatenate([[0.0], np.cumsum((weights * mine)[order])[ends]])
        for mine in (positive, ~positive)
    )
    if not (found[-1] > 0 and false[-1] > 0):
        return float("nan")
    area = (np.diff(false) * (found[1:] + found[:-1]) / 2).sum()
    return float(area / (found[-1] * false[-1]))


# --- real targets -----------------------------------------------------------------------------


def _errors(y, outputs, sample_weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets y, y − outputs, and weights, of the outputs' shape, float64; 0 where y is NaN."""
    y, outputs = _check_pair(y, outputs)
    if y.size != outputs.size:
        raise ValueError(
            f"this metric needs a real target for each output; y has shape {y.shape}, the outputs "
            f"{outputs.shape}: for labels take accuracy or f1, or pass rows of targets"
        )
    y = np.asarray(y, np.float64).reshape(outputs.shape)
    weights = _weights(sample_weight, len(y)).reshape(-1, *[1] * (y.ndim - 1))
    known = ~np.isnan(y)
    y = np.where(known, y, 0)
    return y, np.where(known, y - outputs, 0), weights * known


def mean_squared_error(y, outputs, sample_weight=None) -> float:
    """Return the mean squared error, in the square of the targets' unit."""
    _, r, w = _errors(y, outputs, sample_weight)
    return float((w * r * r).sum() / w.sum())


def mean_absolute_error(y, outputs, sample_weight=None) -> float:
    """Return the mean absolute error, in the unit of the targets."""
    _, r, w = _errors(y, outputs, sample_weight)
    return float((w * abs(r)).sum() / w.sum())


def rmse(y, outputs, sample_weight=None) -> float:
    """Return the root of the mean squared error, in the unit of the targets."""
    return float(np.sqrt(mean_squared_error(y, outputs, sample_weight)))


def r2(y, outputs, sample_weight=None) -> float:
    """Return the fraction of the targets' variance that is explained.

    1 is perfect, 0 as good as their mean; NaN for constant targets.
    """
    y, r, w = _errors(y, outputs, sample_weight)
    mean = (w * y).sum(axis=0) / np.maximum(w.sum(axis=0), np.finfo(float).tiny)
    spread = (w * (y - mean) ** 2).sum()
    return float(1 - (w * r * r).sum() / spread) if spread > 0 else float("nan")


# --- by name ----------------------------------------------------------------------------------

NAMES: dict[str, Callable] = {
    "accuracy": accuracy,
    "top_5": top_k,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "auc": auc,
    "r2": r2,
    "rmse": rmse,
    "mean_squared_error": mean_squared_error,
    "mean_absolute_error": mean_absolute_error,
}
"""The metrics that have names; "top_5" stands for top_1, top_2 and so on."""
SYNONYMS = {
    "acc": "accuracy",
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "r2_score": "r2",
    "f1_score": "f1",
    "roc_auc": "auc",
    "sparse_categorical_accuracy": "accuracy",
    "categorical_accuracy": "accuracy",
    "binary_accuracy": "accuracy",
}
"""Names in other libraries."""


def metrics(given) -> dict[str, Callable]:
    """The metrics for a name, a function (y, outputs) or a list of them, by name.

    Raises ValueError for an unknown name and two of the same name, TypeError for anything else.
    """
    several = isinstance(given, (list, tuple))
    found: dict[str, Callable] = {}
    for one in given if several else () if given is None else (given,):
        name, function = _named(one)
        if name in found or name in ("loss", "mistakes"):
            raise ValueError(f"metrics: there is another {name!r}; give the function another name")
        found[name] = function
    return found


def _named(given) -> tuple[str, Callable]:
    """The name of a metric and its function."""
    if isinstance(given, str):
        top = re.fullmatch(r"top_?([1-9]\d*)", given)
        if top:
            return f"top_{top[1]}", partial(top_k, k=int(top[1]))
        function = lookup("metric", given, NAMES, SYNONYMS)
        return function.__name__, function
    name = getattr(given, "__name__", "")
    if not callable(given) or isinstance(given, type):
        raise TypeError(f"a metric is a name or a function (y, outputs), not {shown(given)}")
    if not name.isidentifier():
        raise ValueError(f"metrics: {shown(given)} has no name for the history; define it by def")
    return name, given


def measure(chosen: dict[str, Callable], y, outputs, sample_weight=None) -> dict[str, float]:
    """Return the values of metrics by name.

    A function is given the weights if it has an argument `sample_weight`, and targets of which some
    are missing (NaN) as a masked array. TypeError for one that returns anything but a number.
    """
    found = {}
    if y.dtype.kind == "f" and np.isnan(y).any():
        y = np.ma.masked_invalid(y)
    for name, function in chosen.items():
        weighted = "sample_weight" in inspect.signature(function).parameters
        options = {"sample_weight": sample_weight} if weighted else {}
        value = function(y, outputs, **options)
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"the metric {name} returned {shown(value)}, not a number") from None
    return found


# --- better and worse -------------------------------------------------------------------------

MODE = Choice(("auto", "min", "max"))
UNDEFINED = {
    "auc": "a class has no sample in these data, or all of them: are they sorted by class?",
    "r2": "the targets are constant",
}
"""Why a metric can be NaN."""
UPWARDS = re.compile(r"(.*_)?(accuracy|precision|recall|f1|auc|r2|top_\d+)")
"""Names of metrics that improve upwards."""
DOWNWARDS = re.compile(r".*(loss|error|rmse|mse|mae|deviance)")
"""And downwards."""


def monitored(owner: str, monitor: str, mode: str, logs: dict[str, float]) -> float:
    """The value of a metric in the logs of an epoch, negative if it improves upwards.

    mode   "min" or "max"; "auto" decides by the name
    Raises ValueError for a metric that is not there, or whose name says nothing.
    """
    if monitor not in logs:
        validated = any(name.startswith("val_") for name in logs)
        hint = nearest(monitor, logs)
        if monitor.startswith("val_") and not validated:
            hint = "; pass validation_data"
        raise ValueError(
            f"{owner}: no metric {monitor!r} to watch, there are {', '.join(logs)}{hint}"
        )
    if mode == "auto":
        mode = "max" if UPWARDS.fullmatch(monitor) else "min"
        if mode == "min" and not DOWNWARDS.fullmatch(monitor):
            raise ValueError(f"{owner}: say by mode='min' or 'max' when {monitor} is better")
    return -logs[monitor] if mode == "max" else logs[monitor]
