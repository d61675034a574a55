"""Metrics on plain arrays: targets first, then the network's outputs."""

import numpy as np


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


def accuracy(y, outputs) -> float:
    """Return the fraction of samples, 0 … 1, that were put in the right class."""
    return 1 - mistakes(y, outputs) / len(y)


def confusion_matrix(y, outputs) -> np.ndarray:
    """Return counts (classes, classes): row the true class, column the predicted class."""
    y, outputs = _check_pair(y, outputs)
    true, given = _to_labels(y).astype(np.int64), _to_labels(outputs).astype(np.int64)
    n = int(max(true.max(), given.max())) + 1
    return np.bincount(true * n + given, minlength=n * n).reshape(n, n)


def rmse(y, outputs) -> float:
    """Return the root of the mean squared error, in the unit of the targets."""
    y, outputs = _check_pair(y, outputs)
    return float(
        np.sqrt(np.mean((np.asarray(outputs, np.float64) - np.reshape(y, outputs.shape)) ** 2))
    )


def r2(y, outputs) -> float:
    """Return the fraction of the targets' variance that is explained.

    1 is perfect, 0 as good as their mean; NaN for constant targets.
    """
    y, outputs = _check_pair(y, outputs)
    y = np.asarray(y, np.float64).reshape(np.shape(outputs))
    spread = ((y - y.mean(axis=0)) ** 2).sum()
    return float(1 - ((y - outputs) ** 2).sum() / spread) if spread > 0 else float("nan")
