"""Weights: of samples and classes as the user gives them, and of the samples of each batch."""

from collections.abc import Mapping

import numpy as np

from numbanet.io import arrays, validation
from numbanet.io.fields import Real, shown
from numbanet.io.registry import nearest

WEIGHT = Real(0)


def class_weights(
    network, class_weight, y: np.ndarray, classes: bool, lengths=None
) -> np.ndarray | None:
    """Return a weight for every class, float64 (classes,), or None where none are given.

    class_weight   "balanced": samples / (classes that occur · samples of the class); a dict (or
                   pandas Series) of weights by label or name, 1 for what it leaves out; or an array
                   (classes,)
    y, classes     checked targets, and whether they name classes
    lengths        checked ones; where every step has a target, steps are counted for "balanced"
    Raises ValueError for targets without classes, unknown classes and weights below 0.
    """
    if class_weight is None:
        return None
    if not classes:
        raise ValueError(
            "class_weight needs targets that name one class for each sample; pass sample_weight"
        )
    n = max(2, network.output_shape[-1])
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(
                f'class_weight is "balanced", a dict or an array, not {class_weight!r}'
            )
        labels = labels_of(y, network.output_shape)
        if network.output_steps:
            labels = labels[network.steps_with_targets(y, lengths)]
        counts = np.bincount(labels, minlength=n)
        balanced = len(labels) / ((counts > 0).sum() * np.maximum(counts, 1))
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


def labels_of(y: np.ndarray, output_shape) -> np.ndarray:
    """The labels of checked targets that name classes, (samples,) or (samples, steps)."""
    if y.dtype.kind != "f":
        return y
    y = y.reshape(len(y), *output_shape)
    return y.argmax(axis=-1) if y.shape[-1] > 1 else (y[..., 0] > 0.5).astype(np.int64)


def sample_weights(labels, given, by_class, part: str = "") -> np.ndarray | None:
    """Return the weights of samples, float64 (samples,): those given times those of their classes.

    labels     those of the samples, where there are weights of classes
    given      checked weights (samples,), or None
    by_class   what `class_weights` returned
    part       which part of the data they are, for the message
    Raises ValueError where all are 0.
    """
    if given is None and by_class is None:
        return None
    if by_class is None:
        name, weights = "sample_weight", given
    elif given is None:
        name, weights = "class_weight", by_class[labels]
    else:
        name, factors = "sample_weight times class_weight", by_class[labels]
        with np.errstate(over="ignore"):
            weights = given * factors
        if not 0 < weights.max() < np.inf:
            weights = arrays.near_one(given) * factors
    if not weights.any():
        raise _all_zero(name, "sample", part)
    return weights


def _all_zero(name: str, what: str, part: str) -> ValueError:
    where = f" of the {part} data" if part else ""
    return ValueError(f"{name} is 0 for every {what}{where}; there must be a weight above 0")


def step_weights(
    labels, given, by_class, inside: np.ndarray, lengths, part: str = ""
) -> np.ndarray | None:
    """Return the same where every step has a target: float64 (samples,) or (samples, steps).

    given     checked weights of the samples, or of their steps, or None
    inside    which steps have a target, bool (samples, steps)
    lengths   checked ones, or None
    They are those of samples, times their numbers of steps, where all steps up to the lengths have
    targets and weigh alike.
    """
    counts = np.full(len(inside), inside.shape[1]) if lengths is None else lengths
    if by_class is None and np.ndim(given) < 2 and (inside.sum(axis=1) == counts).all():
        weights = sample_weights(None, given, None, part)
        if lengths is None:
            return weights
        return lengths * (1.0 if weights is None else arrays.near_one(weights))
    weights = inside.astype(np.float64)
    if given is not None:
        weights *= arrays.near_one(given).reshape(len(inside), -1)
    if by_class is not None:
        weights *= by_class[labels]
    if not weights.any():
        raise _all_zero("sample_weight times class_weight", "step with a target", part)
    return weights


def axes(weights: np.ndarray | None) -> int:
    """The axes of weights: 1 for those of samples, 2 for those of steps, 0 for none."""
    return 0 if weights is None else weights.ndim


def relative_weights(weights, order, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of samples divided by the mean of their batch, and the batches' sums of weights.

    The loss of a batch is then the weighted mean of its samples' losses. A batch of weights that
    are all 0 has a loss of 0. Of weights (samples, steps) it is that of the steps: they are divided
    by the mean over the batch's samples of their sums.
    """
    if weights.ndim == 2:
        weights = arrays.near_one(weights)
        of_samples = weights.sum(axis=1)
        relative, sums = relative_weights(of_samples, order, batch)
        factors = np.divide(relative, of_samples, out=np.zeros_like(relative), where=of_samples > 0)
        return weights * factors[:, None], sums
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
