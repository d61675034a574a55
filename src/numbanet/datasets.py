"""Load the data sets of the examples, and a user's own table (`read_csv`).

The file of a data set is looked for in the folder named by the environment variable NUMBANET_DATA,
then in the cache folder, then, where a public address exists, on the network. Existing files are
never changed.
"""

import csv
import gzip
import hashlib
import math
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numbanet.io.tabular import Table, number, read_csv

__all__ = [
    "Dataset",
    "Standardization",
    "Table",
    "breast_cancer",
    "cats",
    "digits",
    "houses",
    "mnist",
    "read_csv",
    "read_idx",
    "split_indices",
]

MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_MD5 = {  # of the unpacked files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
MNIST_VALIDATION = 10_000
HOUSES_SOURCE = (
    "Kaggle, Melbourne housing snapshot, "
    "https://www.kaggle.com/datasets/dansbecker/melbourne-housing-snapshot"
)
IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True, eq=False)
class Standardization:
    """Shift and scale columns: `apply` gives (v - mean) / scale, `invert` undoes it, in float64."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Standardization":
        """Measure mean and standard deviation of each column; a constant one gets scale 1."""
        mean = np.asarray(np.mean(values, axis=0, dtype=np.float64))
        deviation = np.std(values, axis=0, dtype=np.float64)
        return cls(mean, np.where(deviation > 0, deviation, 1.0))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the standardised values, float64."""
        return (np.asarray(values, np.float64) - self.mean) / self.scale

    def invert(self, values: np.ndarray) -> np.ndarray:
        """Return standardised values in their own unit again, float64."""
        return np.asarray(values, np.float64) * self.scale + self.mean


@dataclass(frozen=True, eq=False)
class Dataset:
    """Hold inputs and targets for training, validation (or None) and test; samples come first.

    names are the classes' names, or the inputs' names where the target is a real number. The
    scalings are None where nothing was standardised.
    """

    x: np.ndarray
    y: np.ndarray
    x_validation: np.ndarray | None
    y_validation: np.ndarray | None
    x_test: np.ndarray
    y_test: np.ndarray
    names: tuple[str, ...]
    x_scaling: Standardization | None = None
    y_scaling: Standardization | None = None


class _House(NamedTuple):
    area: float
    bedrooms: float
    distance: float
    age: float
    price: float


def digits(seed: int = 0) -> Dataset:
    """Load 1797 handwritten digits of 8×8 pixels, four fifths for training, class by class.

    Shapes   x (1438, 64) float32, ink 0..1 · y (1438,) int64, 0..9 · test (359, 64), (359,)
    Raises   ImportError without scikit-learn
    Source   Alpaydin and Kaynak, UCI Machine Learning Repository, CC BY 4.0; part of scikit-learn
    """
    bunch = _import_optional("sklearn.datasets", "sklearn").load_digits()
    x, y = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    train, test = split_indices(len(x), seed, y)
    return Dataset(x[train], y[train], None, None, x[test], y[test], tuple("0123456789"))


def breast_cancer(seed: int = 0) -> Dataset:
    """Load 569 tumours with 30 measured features, four fifths for training, class by class.

    Shapes   x (456, 30) float32, standardised by the training part ·
             y (456,) int64, 0 malignant, 1 benign · test (113, 30), (113,)
    Raises   ImportError without scikit-learn
    Source   Wolberg, Mangasarian, Street, UCI Machine Learning Repository, CC BY 4.0; part of
             scikit-learn
    """
    bunch = _import_optional("sklearn.datasets", "sklearn").load_breast_cancer()
    y = bunch.target.astype(np.int64)
    train, test = split_indices(len(y), seed, y)
    scaling = Standardization.of(bunch.data[train])
    x, names = scaling.apply(bunch.data).astype(np.float32), tuple(map(str, bunch.target_names))
    return Dataset(x[train], y[train], None, None, x[test], y[test], names, scaling)


def mnist(flat: bool = True, dtype: str = "uint8") -> Dataset:
    """Load 70,000 handwritten digits of 28×28 pixels, split as in Nielsen's book.

    Shapes   x (50000, 784) if flat, else (50000, 28, 28, 1): uint8, ink 0..255, for a network that
             begins with Rescale(1 / 255), or float32, ink 0..1 · y (50000,) int64, 0..9 ·
             validation, the last of the training file, and test: 10,000 each
    Raises   ValueError for a dtype that is neither or a damaged file; FileNotFoundError
    Source   LeCun, Cortes, Burges, CC BY-SA 3.0
    """
    if dtype not in ("uint8", "float32"):
        raise ValueError(f"mnist has dtype 'uint8' or 'float32', got {dtype!r}")
    x, y = _mnist_part("train-images-idx3-ubyte", "train-labels-idx1-ubyte", flat, dtype)
    x_test, y_test = _mnist_part("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", flat, dtype)
    cut = len(x) - MNIST_VALIDATION
    return Dataset(x[:cut], y[:cut], x[cut:], y[cut:], x_test, y_test, tuple("0123456789"))


def houses(seed: int = 0, standardize: bool = True) -> Dataset:
    """Load sales of houses in Melbourne, 2016 and 2017, four fifths for training.

    Inputs   area (m²), bedrooms, distance to the centre (km), age (years: year of sale less year of
             building, below zero for a house sold before it was built)
    Target   price (Australian dollars)
    Shapes   x (n, 4) float32 · y (n, 1) float32; y_scaling.invert converts a price back to dollars
    Dropped  rows with an empty cell among these, an area below 10 m² or above 1000 m², no bedroom,
             or built before 1800. Of 7448 rows 6152 remain: 4922 for training, 1230 for test
    Raises   FileNotFoundError; ValueError for a column that is absent or text that is no number
    Source   Kaggle, Melbourne housing snapshot (melb_data.csv), CC BY-NC-SA 4.0
    """
    path = _find("melbourne", "melb_data.csv", source=HOUSES_SOURCE)
    rows = np.array(_read_houses(path), np.float64).reshape(-1, 5)
    if len(rows) < 2:
        raise ValueError(f"melb_data.csv: {len(rows)} usable rows; a split needs at least 2")
    x, y = rows[:, :4], rows[:, 4:]
    train, test = split_indices(len(rows), seed)
    x_scaling = y_scaling = None
    if standardize:
        x_scaling, y_scaling = Standardization.of(x[train]), Standardization.of(y[train])
        x, y = x_scaling.apply(x), y_scaling.apply(y)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return Dataset(
        x[train], y[train], None, None, x[test], y[test], _House._fields[:4], x_scaling, y_scaling
    )


def cats(color: bool = True, flat: bool = True) -> Dataset:
    """Load 209 + 50 images of 64×64 pixels, cat or not; the source gives the split.

    Shapes   x (209, 64, 64, 3) uint8, or one channel of luminance (ITU-R BT.601) without color;
             flat makes it (209, 12288) or (209, 4096) · y (209,) int64, 1 is a cat · test 50
    Raises   ImportError without h5py; FileNotFoundError; ValueError for a damaged file
    Source   the material of a well-known introductory course; no licence is stated
    """
    h5py = _import_optional("h5py", "data")
    parts: list[np.ndarray] = []
    for part in ("train", "test"):
        path = _find("cats", f"{part}_catvnoncat.h5")
        try:
            with h5py.File(path, "r") as file:
                x, y = (
                    file[f"{part}_set_x"][:],
                    file[f"{part}_set_y"][:].reshape(-1).astype(np.int64),
                )
                names = tuple(name.decode() for name in file["list_classes"][:])
        except (OSError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from None
        if x.shape != (len(y), 64, 64, 3) or x.dtype != np.uint8:
            raise ValueError(
                f"{path}: expected uint8 ({len(y)}, 64, 64, 3), got {x.dtype} {x.shape}"
            )
        if not color:
            x = np.rint(x @ np.array([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)
        parts += [x.reshape(len(x), -1) if flat else x, y]
    return Dataset(parts[0], parts[1], None, None, parts[2], parts[3], names)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, packed by gzip or not, into a new array of native byte order.

    Raises   ValueError that names the file and both numbers: magic, type code, length
    Source   LeCun, the format of the MNIST files
    """
    return _parse_idx(path, _unpacked(path))


def _parse_idx(path: Any, content: bytes) -> np.ndarray:
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"{path}: an IDX file begins with the bytes 0000, got {content[:2].hex()!r}"
        )
    code, ndim = content[2], content[3]
    if code not in IDX_DTYPES:
        known = " ".join(f"{code:#04x}" for code in IDX_DTYPES)
        raise ValueError(f"{path}: unknown IDX type code {code:#04x}, known are {known}")
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(
            f"{path}: {ndim} axes need a head of {start} bytes, the file has {len(content)}"
        )
    shape, dtype = struct.unpack_from(f">{ndim}I", content, 4), np.dtype(IDX_DTYPES[code])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"{path}: IDX shape {shape} needs {expected} bytes, the file has {len(content)}"
        )
    return (
        np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
    )


def _unpacked(path: Any) -> bytes:
    content = Path(path).read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from None


def _mnist_part(images: str, labels: str, flat: bool, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name in (images, labels):
        path = _find("mnist", f"{name}.gz", name, url=MNIST_URL)
        content = _unpacked(path)
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != MNIST_MD5[name]:
            raise ValueError(f"{path}: MD5 is {found}, expected {MNIST_MD5[name]}; delete it")
        arrays.append(_parse_idx(path, content))
    x, y = arrays[0], arrays[1].astype(np.int64)
    if dtype == "float32":
        x = x.astype(np.float32) / np.float32(255)
    return x.reshape(len(x), -1) if flat else x[..., None], y


def _read_houses(path: Path) -> list[_House]:
    rows = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        for name in (
            columns := ("BuildingArea", "Bedroom2", "Distance", "YearBuilt", "Price", "Date")
        ):
            if name not in (reader.fieldnames or ()):
                raise ValueError(f"{path}: no column {name!r}, the columns are {reader.fieldnames}")
        for row in reader:
            if not all(row[name] for name in columns):
                continue
            where = f"{path}: line {reader.line_num}"
            numbers = [number(row[name], f"{where}, column {name!r}") for name in columns[:5]]
            area, bedrooms, distance, built, price = numbers
            sold = number(row["Date"].split("/")[-1], f"{where}, year in column 'Date'")
            if 10 <= area <= 1000 and bedrooms >= 1 and built >= 1800:
                rows.append(_House(area, bedrooms, distance, sold - built, price))
    return rows


def split_indices(
    n: int, seed: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return shuffled indices of four fifths and of the rest; with labels, of each class."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    groups = (
        [order]
        if labels is None
        else [order[labels[order] == label] for label in np.unique(labels)]
    )
    cuts = [round(0.8 * len(group)) for group in groups]
    train = np.concatenate([group[:cut] for group, cut in zip(groups, cuts, strict=True)])
    test = np.concatenate([group[cut:] for group, cut in zip(groups, cuts, strict=True)])
    return rng.permutation(train), rng.permutation(test)


def _import_optional(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module)
        raise ImportError(f"this data set needs {package}; install numbanet[{extra}]") from error


def _cache() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "numbanet"


def _find(folder: str, *names: str, url: str | None = None, source: str = "") -> Path:
    """Return the first file of one of these names; else fetch names[0] from the url, if given.

    source   where a user gets a file that has no free address
    """
    given = os.environ.get("NUMBANET_DATA")
    places = [Path(given).expanduser().absolute()] if given else []
    candidates = [
        p / sub / name for p in [*places, _cache()] for sub in (folder, "") for name in names
    ]
    for path in candidates:
        if path.is_file():
            return path
    network = "nowhere on the network: no free address is known"
    if url is not None:
        network = f"{url}{names[0]}"
        try:
            pooch = import_module("pooch")
            return Path(pooch.retrieve(network, None, names[0], _cache() / folder))
        except ImportError:
            network += " (not tried: install numbanet[data])"
        except OSError as error:
            network += f" (failed: {error})"
    first = f"NUMBANET_DATA is {given!r}" if given else "NUMBANET_DATA is not set"
    tried = [first, *map(str, candidates), network]
    raise FileNotFoundError(
        f"{names[0]} is not in any of the three places:\n  "
        + "\n  ".join(tried)
        + (f"\nDownload it from {source}." if source else "")
        + "\nSet the environment variable NUMBANET_DATA to a folder that holds "
        + f"{folder}/{names[0]}, or put it at {_cache() / folder / names[0]}."
    )
