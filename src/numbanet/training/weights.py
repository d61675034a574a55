"""Weights: of samples and classes as the user gives them, and of the samples of each batch."""

from collections.abc import Mapping

import numpy as np

from numbanet.io import arrays, validation
from numbanet.io.fields import Real, shown
from numbanet.io.registry import nearest

WEIGHT = Real(0)


def class_weights(network, class_weight, y: np.ndarray, classes: bool) -> np.ndarray | None:
    """Return a weight for every class, float64 (classes,), or None where none are given.

    class_weight   "balanced": samples / (classes that occur · samples of the class); a dict (or
                   pandas Series) of weights by label or name, 1 for what it leaves out; or an array
                   (classes,)
    y, classes     checked targets, and whether they name classes
    Raises ValueError for targets without classes, unknown classes and weights below 0.
    """
    if class_weight is None:
        return None
    if network.output_steps:
        raise ValueError(
            "class_weight weighs samples, and here every step of a sample has a class; pass "
            "sample_weight"
        )
    if not classes:
        raise ValueError(
            "class_weight needs targets that name one class for each sample; pass sample_weight"
        )
    n = max(2, network.output_shape[0])
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(
                f'class_weight is "balanced", a dict or an array, not {class_weight!r}'
            )
        counts = np.bincount(_labels(y), minlength=n)
        balanced = len(y) / ((counts > 0).sum() * np.maximum(counts, 1))
        return np.where(counts > 0, balanced, 1.0)
    if hasattr(class_weight, "to_dict"):  # a pandas Series: by its index
        class_weight = class_weight.to_dict()
    if isinstance(class_weight, Mapping):
        weights = np.ones(n)
        for key, weight in class_weight.items():
            label = _label(network, key, n)
            weights[label] = WEIGHT(weight, f"class_weight[{key!r}]")
        return weights
    weights = arrays.as_numbers(class_weight, "class_weight")
    if weights.shape != (n,):
        raise ValueError(
            f"class_weight must have a weight for each of {n} classes, got {shown(class_weight)}"
        )
    return validation.check_weights(weights, n, "class_weight")


def _label(network, key, n: int) -> int:
    """The label of a class that is given by label or name."""
    names = network.class_names
    if isinstance(key, str):
        if key not in names:
            known = ", ".join(names) or "none"
            raise ValueError(
                f"class_weight: no class is called {key!r}, class_names are {known}"
                f"{nearest(key, names)}"
            )
        return names.index(key)
    is_bool = isinstance(key, (bool, np.bool_))
    if key not in range(n) or (is_bool and n > 2):
        raise ValueError(f"class_weight has the class {shown(key)}; there are 0 … {n - 1}")
    return int(key)


def _labels(y: np.ndarray) -> np.ndarray:
    """The labels of targets that name classes."""
    if y.ndim == 1:
        return y
    return y.argmax(axis=1) if y.shape[1] > 1 else (y[:, 0] > 0.5).astype(np.int64)


def sample_weights(y: np.ndarray, given, by_class, part: str = "", steps=None) -> np.ndarray | None:
    """Return the weights of samples, float64 (samples,): those given times those of their classes.

    y          checked targets
    given      checked weights (samples,), or None
    by_class   what `class_weights` returned
    part       which part of the data they are, for the message
    steps      a further factor: the samples' numbers of steps, where each of these counts, or None
    Raises ValueError where all are 0.
    """
    if given is None and by_class is None:
        return None if steps is None else steps.astype(np.float64)
    if by_class is None:
        name, weights = "sample_weight", given
    elif given is None:
        name, weights = "class_weight", by_class[_labels(y)]
    else:
        name, factors = "sample_weight times class_weight", by_class[_labels(y)]
        with np.errstate(over="ignore"):
            weights = given * factors
        if not 0 < weights.max() < np.inf:
            weights = arrays.near_one(given) * factors
    if not weights.any():
        where = f" of the {part} data" if part else ""
        raise ValueError(f"{name} is 0 for every sample{where}; there must be a weight above 0")
    return weights if steps is None else arrays.near_one(weights) * steps


def relative_weights(weights, order, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of samples divided by the mean of their batch, and the batches' sums of weights.

    The loss of a batch is then the weighted mean of its samples' losses. A batch of weights that
    are all 0 has a loss of 0.
    """
    ordered = weights if order is None else weights[order]
    starts = np.arange(0, len(weights), batch)
    counts = np.diff([*starts, len(weights)])
    exponents = np.frexp(np.maximum.reduceat(ordered, starts))[1]
    ordered = np.ldexp(ordered, -np.repeat(exponents, counts))  # as arrays.near_one, by batches
    sums = np.add.reduceat(ordered, starts)
    factors = np.divide(counts, sums, out=np.zeros(len(sums)), where=sums > 0)
    relative = np.empty(len(weights))
    relative[slice(None) if order is None else order] = ordered * np.repeat(factors, counts)
    with np.errstate(over="ignore"):
        return relative, np.ldexp(sums, exponents)
