"""Checks of everything that comes from the user, before any kernel runs."""

import math
from typing import Any

import numpy as np

from numbanet.io import arrays, fields
from numbanet.io.sparse import SparseRows


def check_int(value, name: str, least: int = 1) -> int:
    """An integer of at least `least` that fits 63 bits."""
    return fields.Count(least, (1 << 63) - 1)(value, name)


THREADS = fields.Count(1, 1024, optional=True)


def check_threads(value) -> int | None:
    """A number of threads, or None."""
    return None if value is None else THREADS(value, "threads")


READ_AS_THEY_ARE = frozenset(map(np.dtype, ("float32", "float64", "uint8")))
"""Types of inputs that kernels read where they lie; others are converted first."""
PIECE_BYTES = 1 << 19
"""Data that are looked through at a time."""
FILL = "remove or fill such values first"
FILL_OR_MASK = f"{FILL}, or leave them out by np.ma.masked_invalid"


def assert_all_finite(array, name: str, dtype, way: str = FILL) -> None:
    """ValueError that says where, if an element of a float array is not finite in `dtype`."""
    if isinstance(array, SparseRows):
        _assert_stored_finite(array, name, dtype)
        return
    if array.dtype.kind != "f" or array.size == 0:
        return
    limit = min(np.finfo(array.dtype).max, np.finfo(dtype).max)
    rows = max(1, PIECE_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):  # what is read twice lies in the cache
        piece = array[start : start + rows]
        if piece.min() >= -limit and piece.max() <= limit:  # False for NaN too
            continue
        index = np.argwhere(~(np.abs(piece) <= limit))[0]
        raise _not_finite(piece[tuple(index)], (index[0] + start, *index[1:]), name, dtype, way)


def _assert_stored_finite(rows: SparseRows, name: str, dtype) -> None:
    first, last = rows.starts[0], rows.starts[-1]
    limit = min(np.finfo(rows.dtype).max, np.finfo(dtype).max)
    wrong = np.flatnonzero(~(np.abs(rows.values[first:last]) <= limit))
    if len(wrong):
        k = first + wrong[0]
        place = np.searchsorted(rows.starts, k, side="right") - 1, rows.columns[k]
        raise _not_finite(rows.values[k], place, name, dtype)


def _not_finite(value, index, name: str, dtype, way: str = FILL) -> ValueError:
    """The error for a value at a place."""
    place = ", ".join(str(int(i)) for i in index)
    if np.isfinite(value):
        return ValueError(
            f"{name} has {value} at [{place}], too large for {np.dtype(dtype)}, the "
            "network's dtype; scale it, or use dtype='float64'"
        )
    kind = "NaN" if np.isnan(value) else "infinity"
    return ValueError(f"{name} has {kind} at [{place}]; {way}")


def check_lengths(lengths, samples: int, steps: int, name: str = "lengths") -> np.ndarray:
    """Return the lengths of sequences as int64 (samples,).

    Raises ValueError, with the place, unless there is an integer from 1 to `steps` for each sample;
    TypeError for anything but real numbers.
    """
    lengths = arrays.as_numbers(lengths, name)
    if lengths.shape != (samples,):
        raise ValueError(
            f"{name} must hold one length for each of {samples} samples, "
            f"got an array of shape {lengths.shape}"
        )
    wrong = np.flatnonzero(~((lengths >= 1) & (lengths <= steps) & (lengths == lengths // 1)))
    if len(wrong):
        k = int(wrong[0])
        raise ValueError(
            f"{name} has {lengths[k].item()} at [{k}]; a sequence has 1 to {steps} steps, "
            "as many as x has at most"
        )
    return np.ascontiguousarray(lengths, np.int64)


def check_inputs(x, shape, dtype, name: str = "x", check_finite: bool = True) -> Any:
    """Return x as a contiguous array (samples, *shape) of float32, float64 or uint8.

    A matrix of scipy.sparse (samples, features) becomes SparseRows of float32 or float64.

    float32, float64 and uint8 (images, 0 … 255) keep their dtype; other numbers are converted to
    `dtype`. A copy is made only where it is needed. A vector (samples,) serves where a sample is a
    single number.
    Raises ValueError for a wrong shape, no samples, and what is not finite in `dtype` (with
    `check_finite`, or where x is converted); TypeError for anything but real numbers.
    """
    features = math.prod(shape)
    if isinstance(x, SparseRows) or hasattr(x, "tocsr"):
        return _check_sparse(x, features, dtype, name, check_finite)
    x = arrays.as_numbers(x, name)
    if x.ndim == 1 and features == 1:
        x = x[:, None]
    if x.shape[1:] != tuple(shape) and not (x.ndim == 2 and x.shape[1:] == (features,)):
        expected = "(samples, " + ", ".join(map(str, shape)) + ")"
        hint = ""
        if x.shape == tuple(shape):
            hint = f"; a single sample goes in as {name}[None]"
        elif x.ndim == len(shape) + 1 and len(shape) == 3 and x.shape[1:] == (shape[2], *shape[:2]):
            hint = f"; this looks like channels first: pass {name}.transpose(0, 2, 3, 1)"
        elif x.ndim == 3 and len(shape) == 3 and shape[2] == 1 and x.shape[1:] == tuple(shape[:2]):
            hint = f"; add the channel axis: {name}[..., None]"
        elif x.ndim > 2 and x[:1].size == features:
            hint = f"; pass {name}.reshape(len({name}), -1), or begin the network with Flatten()"
        raise ValueError(f"{name} must have shape {expected}, got {x.shape}{hint}")
    if len(x) == 0:
        raise ValueError(f"{name} has no samples: its shape is {x.shape}")
    converted = x.dtype not in READ_AS_THEY_ARE
    if check_finite or converted:
        assert_all_finite(x, name, dtype)
    if converted:
        x = x.astype(dtype)
    whole = x.flags.c_contiguous and x.flags.aligned
    return x if whole else np.require(x, requirements=("C", "A"))


def check_dense(x, why: str, name: str = "x") -> None:
    """TypeError with the reason for a sparse matrix."""
    if hasattr(x, "tocsr"):
        raise TypeError(f"{name} is sparse; {why}: pass {name}.toarray()")


def _check_sparse(x, features: int, dtype, name: str, check_finite: bool) -> SparseRows:
    """The rows of a matrix of scipy.sparse; ValueError or TypeError for what is none."""
    if len(x.shape) != 2 or x.shape[1] != features:
        raise ValueError(
            f"{name} is sparse and must have shape (samples, {features}), got {x.shape}"
        )
    if x.shape[0] == 0:
        raise ValueError(f"{name} has no samples: its shape is {x.shape}")
    if isinstance(x, SparseRows):
        rows = x
    else:
        found = x.tocsr()
        columns, starts = found.indices, found.indptr.astype(np.int64, copy=False)
        inside = len(starts) == x.shape[0] + 1 and starts[0] >= 0 and (np.diff(starts) >= 0).all()
        inside = inside and starts[-1] <= min(len(found.data), len(columns))
        if not inside or (len(columns) and not 0 <= columns.min() <= columns.max() < features):
            raise ValueError(f"{name} is a damaged sparse matrix; {name}.check_format() says where")
        if not found.has_canonical_format:  # native code, which reads and writes at its indices
            found = found.copy()
            found.sum_duplicates()
        values = found.data
        if values.dtype.kind not in "fiub":
            raise TypeError(f"{name} is sparse and must hold real numbers, got {values.dtype}")
        if values.dtype not in (np.float32, np.float64) or not values.dtype.isnative:
            values = values.astype(dtype)
        values, columns, starts = (
            np.ascontiguousarray(one, kind)
            for one, kind in ((values, None), (found.indices, np.int32), (found.indptr, np.int64))
        )
        rows = SparseRows(values, columns, starts, features)
    if check_finite:
        assert_all_finite(rows, name, dtype)
    return rows


def check_targets(y, samples: int, outputs: int, dtype, name: str = "y", x_name: str = "x"):
    """Return y as kernels read it, and whether it names classes.

    The result is int64 labels (samples,) or rows (samples, outputs) of float32 or float64. Integers
    in one dimension are labels; with one output they must be 0 or 1 to count as classes. Rows of
    zeros with a single one name classes too. Masked elements of rows become NaN; such rows name no
    classes.
    Raises ValueError for lengths that differ, labels out of range or fractional, and what is not
    finite in `dtype`.
    """
    y, missing = _without_mask(y, samples, name, x_name)
    assert_all_finite(y, name, dtype, FILL_OR_MASK)
    if missing is not None and y.ndim == 1 and outputs > 1:
        raise ValueError(
            f"{name} masks {int(missing.sum())} labels, the first at [{int(missing.argmax())}]; "
            "leave such samples out, or give them a sample_weight of 0"
        )
    if y.ndim == 2 and y.shape[1] == 1 and outputs > 1:
        y = y[:, 0]
    if y.ndim == 1 and outputs > 1:
        return _check_labels(y, outputs, name), True
    if y.ndim == 1:
        y = y[:, None]
    if y.shape[1:] != (outputs,) and y[:1].size == outputs:
        y = y.reshape(samples, outputs)
    if y.shape[1:] != (outputs,):
        raise ValueError(
            f"{name} must have shape ({samples}, {outputs}), one target per output, got {y.shape}"
        )
    rows = y
    if y.dtype not in (np.float32, np.float64) or not y.dtype.isnative:
        rows = y.astype(dtype)
    if missing is not None:
        if missing.all():
            raise ValueError(f"{name} masks all targets: there is nothing to learn or to measure")
        return np.where(missing.reshape(rows.shape), rows.dtype.type(np.nan), rows), False
    return np.ascontiguousarray(rows), _name_classes(rows)


def _without_mask(y, samples: int, name: str, x_name: str) -> tuple[np.ndarray, Any]:
    """Return targets as an array, zeros where they are masked, and the mask, or None.

    ValueError unless there are as many as samples.
    """
    missing = np.ma.getmaskarray(y) if np.ma.is_masked(y) else None
    y = arrays.as_numbers(y if missing is None else y.filled(0), name, labels=True)
    if y.ndim == 0 or len(y) != samples:
        raise ValueError(
            f"{x_name} has {samples} samples and {name} has {len(y) if y.ndim else 'none'}; "
            "they must be as many"
        )
    return y, missing


def _name_classes(rows: np.ndarray) -> bool:
    """Whether rows of targets hold a single one among zeros, or of single targets zeros and ones"""
    classes = bool(((rows == 0) | (rows == 1)).all())
    return classes and (rows.shape[1] == 1 or bool((rows.sum(axis=1) == 1).all()))


def check_step_targets(
    y, samples: int, steps: int, outputs: int, dtype, lengths, name: str = "y", x_name: str = "x"
):
    """Return the targets of every step as kernels read them, and whether they name classes.

    y         labels (samples, steps), or rows (samples, steps, outputs); for one output (samples,
              steps) too
    lengths   the checked lengths of the sequences, or None; what stands behind the last step does
              not matter and becomes 0
    The result is int64 labels (samples, steps), NO_LABEL where they are masked, or rows (samples,
    steps · outputs) of float32 or float64, NaN where they are masked. Rows that name classes, but
    for steps whose targets are all masked, become labels. Raises ValueError as `check_targets`.
    """
    y, missing = _without_mask(y, samples, name, x_name)
    labels = outputs > 1 and y.shape[1:] in ((steps,), (steps, 1))
    if not labels and y.shape[1:] not in ((steps, outputs), *([(steps,)] if outputs == 1 else [])):
        either = f"({samples}, {steps}, {outputs})"
        if outputs > 1:
            either = f"({samples}, {steps}) of labels, or {either}"
        raise ValueError(
            f"{name} must have targets for each of {steps} steps, shape {either}, got {y.shape}; "
            "for one target of a whole sequence, the last recurrent layer has "
            "return_sequences=False"
        )
    inside = np.ones((samples, steps), bool)
    if lengths is not None:
        inside = np.arange(steps) < lengths[:, None]
        y = y.reshape(samples, steps, -1).copy()
        y[~inside] = 0
    y = y.reshape((samples, steps) if labels else (samples, steps, outputs))
    assert_all_finite(y, name, dtype, FILL_OR_MASK)
    if missing is not None:
        missing = missing.reshape(y.shape) & (inside if labels else inside[:, :, None])
    if missing is not None and missing[inside].all():
        raise ValueError(f"{name} masks all targets: there is nothing to learn or to measure")
    if labels:
        found = _check_labels(y, outputs, name)
        return found if missing is None else np.where(missing, NO_LABEL, found), True
    rows = y
    if y.dtype not in (np.float32, np.float64) or not y.dtype.isnative:
        rows = y.astype(dtype)
    if missing is not None and missing.any():
        absent = missing.all(axis=-1)
        if outputs > 1 and (absent == missing.any(axis=-1)).all():
            if _name_classes(rows[inside & ~absent]):
                return np.where(absent, NO_LABEL, rows.argmax(axis=-1)), True
        rows, classes = np.where(missing, rows.dtype.type(np.nan), rows), False
    else:
        classes = _name_classes(rows[inside])
    return np.ascontiguousarray(rows.reshape(samples, steps * outputs)), classes


NO_LABEL = -1
"""The label of a step without a target, in checked targets."""


def has_missing(y: np.ndarray) -> bool:
    """Whether checked targets have missing elements: NaN."""
    return y.dtype.kind == "f" and bool(np.isnan(y.min()))


def _check_labels(y: np.ndarray, outputs: int, name: str) -> np.ndarray:
    """Return labels 0 … outputs − 1 as int64; ValueError for others."""
    if y.dtype.kind == "f" and len(wrong := np.argwhere(y != np.floor(y))):
        raise ValueError(
            f"{name} has the fractional label {y[tuple(wrong[0])]} at {wrong[0].tolist()}; "
            f"the network has {outputs} outputs, "
            f"so {name} must hold labels 0 … {outputs - 1} or rows of {outputs} targets, of "
            "Quantile each target once for every level"
        )
    wrong = np.argwhere((y < 0) | (y >= outputs))
    if len(wrong):
        if y.min() == 1 and y.max() == outputs:
            raise ValueError(
                f"{name} has labels 1 … {outputs}, the network's {outputs} outputs stand for "
                f"labels 0 … {outputs - 1}; subtract 1, or use more outputs"
            )
        raise ValueError(
            f"{name} has label {y[tuple(wrong[0])]} at {wrong[0].tolist()}, "
            f"but the network's {outputs} outputs stand for labels 0 … {outputs - 1}"
        )
    return np.ascontiguousarray(y, np.int64)


def check_weights(
    weights,
    count: int,
    name: str = "sample_weight",
    some: bool = True,
    steps: int | None = None,
) -> np.ndarray:
    """Return weights (count,) as float64; ValueError unless they are finite and at least 0.

    some    whether one of them must be above 0
    steps   weights (count, steps) serve too
    """
    weights = arrays.as_numbers(weights, name)
    if weights.shape not in ((count,), *([(count, steps)] if steps else [])):
        either = f", or ({count}, {steps}) for every step" if steps else ""
        raise ValueError(f"{name} must have shape ({count},){either}, got {weights.shape}")
    assert_all_finite(weights, name, np.float64)
    wrong = np.argwhere(weights < 0)
    if len(wrong):
        place = wrong[0].tolist()
        raise ValueError(
            f"{name} has {weights[tuple(place)]} at {place}; weights must be at least 0"
        )
    if some and not weights.any():
        raise ValueError(f"{name} is 0 everywhere; there must be a weight above 0")
    return np.ascontiguousarray(weights, np.float64)


def check_target_range(rows, name: str, loss: str, least: float, most: float) -> None:
    """ValueError that says where, if a target lies outside least … most."""
    wrong = np.argwhere((rows < least) | (rows > most))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        needed = f"of at least {least}" if np.isinf(most) else f"between {least} and {most}"
        raise ValueError(
            f"{name} has {rows[place]} at {list(place)}, but {loss} needs targets {needed}"
        )
