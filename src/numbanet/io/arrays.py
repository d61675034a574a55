"""The user's arrays, from whatever library, as NumPy arrays of real numbers.

A library is recognised by the methods of its objects; none is imported. What has one meaning is
converted, anything else is refused with the place and the way out.
"""

import numbers
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from numbanet.io.fields import shown

TEXT_KINDS = "UST"
"""NumPy's kinds of text: str, bytes, and strings of variable width."""
LABELS_WAY = "names, {name} = np.unique({name}, return_inverse=True) makes integer labels of it"
FEATURES_WAY = "encode it as numbers first"


def as_numbers(value, name: str, labels: bool = False) -> np.ndarray:
    """Return an array, list, data frame or tensor as a NumPy array of real numbers.

    Converted   lists; arrays of objects that are all numbers; pandas objects whose columns are
                numeric or nullable; tensors and arrays of other libraries on the CPU; masked arrays
                in which nothing is masked
    labels      whether text would be labels, which the message then says how to encode
    Raises      TypeError for what is not an array of real numbers, ValueError for missing or masked
                elements; `name` and the first place stand in the message
    """
    if type(value) is np.ndarray and value.dtype.kind in "fiub":
        return value
    if hasattr(value, "iloc"):
        return _from_pandas(value, name, labels)
    if hasattr(value, "toarray"):
        raise TypeError(f"{name} is a sparse matrix; pass {name}.toarray()")
    if getattr(value, "requires_grad", False) is True:
        raise TypeError(f"{name} is a tensor that requires a gradient; pass {name}.detach()")
    if np.ma.is_masked(value):
        place = _place(np.argwhere(np.ma.getmaskarray(value))[0])
        count = int(np.ma.count_masked(value))
        raise ValueError(
            f"{name} is a masked array, with {count} masked, the first at {place}; fill it, as in "
            f"{name}.filled(0), or drop such samples"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: {error}") from None
    except (TypeError, RuntimeError) as error:  # a tensor on a GPU, or of a type NumPy lacks
        raise TypeError(f"{name} cannot be read as an array: {error}") from None
    if array.dtype.kind in "fiub":
        return array
    return _from_other_kind(array, value, name, labels)


def _from_other_kind(array: np.ndarray, value, name: str, labels: bool) -> np.ndarray:
    """An array of objects that are all numbers, converted; TypeError for any other."""
    kind = array.dtype.kind
    if kind == "c":
        raise TypeError(
            f"{name} is complex ({array.dtype}); pass real numbers, for example {name}.real"
        )
    if array.ndim == 0 and not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must hold numbers in an array, got {_described(value, name)}")
    if kind in TEXT_KINDS:
        way = LABELS_WAY.format(name=name) if labels else FEATURES_WAY
        if not labels and _is_numeric_text(array):
            way = f"convert it, as in np.array({name}, float)"
        first = f" such as {_first(array)!r}" if array.size else ""
        raise TypeError(f"{name} must hold numbers, got text{first}; {way}")
    if kind == "O":
        return _from_objects(array, name, labels)
    if kind in "Mm":
        way = f"subtract a date and divide, as in {name} / np.timedelta64(1, 'D')"
    elif array.dtype.names:
        way = "numpy.lib.recfunctions.structured_to_unstructured makes columns of it"
    else:
        way = f"convert it, as in {name}.astype('float32')"
    raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}; {way}")


def _is_numeric_text(array: np.ndarray) -> bool:
    try:
        array.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return array.size > 0


def _first(array: np.ndarray) -> str:
    value = array.flat[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _described(value, name: str) -> str:
    """What a value is that is no array, and the way out."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__}; pass np.column_stack(list({name}.values()))"
    if isinstance(value, Iterator):
        return f"a {type(value).__name__}, which is read only once; pass list({name})"
    if isinstance(value, (set, frozenset)):
        return f"a {type(value).__name__}, which has no order; pass a list or an array"
    if isinstance(value, (str, bytes)):
        return f"{shown(value)}; read a file first, for example with numbanet.datasets.read_csv"
    return f"{shown(value)}; pass an array or a list"


def _place(index) -> str:
    return f"[{', '.join(str(int(i)) for i in index)}]"


def _is_number(value) -> bool:
    return isinstance(value, (numbers.Real, Decimal, np.bool_))


def _from_objects(array: np.ndarray, name: str, labels: bool = False) -> np.ndarray:
    """An array of objects as float64; TypeError or ValueError for the first that is no number."""
    result = np.empty(array.shape, np.float64)
    for index, value in np.ndenumerate(array):
        if not _is_number(value):
            raise _no_number(value, _place(index), name, labels)
        try:
            result[index] = float(value)
        except OverflowError:
            raise ValueError(
                f"{name} has {shown(value)} at {_place(index)}, beyond float64; scale it"
            ) from None
    return result


def _no_number(value, place: str, name: str, labels: bool) -> Exception:
    if value is None or str(value) in ("<NA>", "NaT"):
        return ValueError(f"{name} has {value} at {place}; remove or fill such values first")
    if isinstance(value, complex):
        return TypeError(f"{name} has the complex {value} at {place}; pass real numbers")
    if isinstance(value, (str, bytes)):
        way = LABELS_WAY.format(name=name) if labels else FEATURES_WAY
    elif isinstance(value, (np.ndarray, list, tuple)):
        way = f"if all have one shape, pass np.stack({name})"
    else:
        way = FEATURES_WAY
    return TypeError(f"{name} must hold numbers, got {shown(value)} at {place}; {way}")


# --- pandas -----------------------------------------------------------------------------------


def _from_pandas(value, name: str, labels: bool) -> np.ndarray:
    """A data frame or series as an array, column by column."""
    if not hasattr(value, "columns"):
        return _from_column(value, name, "", labels)
    columns = [
        _from_column(value.iloc[:, j], name, f"column {str(label)!r}", labels)
        for j, label in enumerate(value.columns)
    ]
    return np.column_stack(columns) if columns else np.empty(value.shape, np.float64)


def _from_column(column: Any, name: str, where: str, labels: bool) -> np.ndarray:
    """A column of pandas as a vector; errors name the column (`where`) and the row."""
    label = f"{name}, {where}" if where else name
    kind = getattr(column.dtype, "kind", "O")
    if kind not in "biufO":
        raise TypeError(f"{label} must hold numbers, got dtype {column.dtype}; {FEATURES_WAY}")
    missing = np.asarray(column.isna())
    objects = np.asarray(column.to_numpy(), dtype=object) if kind == "O" else missing[:0]
    if hasattr(column, "cat") or any(isinstance(one, (str, bytes)) for one in objects):
        way = LABELS_WAY.format(name=name) if labels else "encode it, e.g. pandas.get_dummies"
        holds = "categories" if hasattr(column, "cat") else "text"
        raise TypeError(f"{label} holds {holds}: {way}")
    if missing.any():
        row = column.index[int(missing.argmax())]
        raise ValueError(
            f"{label} has a missing value in row {row}; drop such rows (dropna) or fill them "
            "(fillna)"
        )
    if kind == "O":
        return _from_objects(objects, label)
    return np.asarray(column.to_numpy(getattr(column.dtype, "numpy_dtype", None)))


def text_labels(value) -> list[str] | None:
    """The labels of a list, array or column (samples,) or (samples, 1) of text, else None."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return None
    if not (hasattr(value, "iloc") or isinstance(value, (list, tuple, np.ndarray))):
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in f"O{TEXT_KINDS}" or not len(array):
        return None
    found = array.tolist()
    return found if all(isinstance(one, str) for one in found) else None


def near_one(weights: np.ndarray) -> np.ndarray:
    """Weights times the power of two, which rounds nothing, that brings the largest near 1.

    Their sums and products with losses then neither overflow nor vanish.
    """
    return np.ldexp(weights, -int(np.frexp(weights.max())[1]))
