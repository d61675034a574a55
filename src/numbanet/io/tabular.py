"""The user's tables: inputs and targets from .npz and .csv files."""

import csv
import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
"""What a damaged .npz file raises besides ValueError."""


def load_table(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read inputs and targets from FILE.npz or FILE.csv.

    npz      the arrays x and y, as they are stored
    csv      numbers between commas; the last column is y. A first line without any number is a
             header
    Returns  x (samples, …), y (samples, …); of a CSV file x (samples, columns - 1), y (samples,),
             float64
    Raises   ValueError that names the file and the line and column, or the two numbers that
             disagree
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        table = read_table(path)
        return np.ascontiguousarray(table[:, :-1]), table[:, -1].copy()
    if path.suffix.lower() != ".npz":
        raise ValueError(f"{path}: a table is a .npz or a .csv file, got {path.suffix!r}")
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (LookupError, ValueError, AttributeError, TypeError, EOFError, *ZIP_ERRORS) as error:
        raise ValueError(f"{path}: not an .npz file with the arrays x and y: {error}") from None
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{path}: x and y need the same number of samples, got x {x.shape} and y {y.shape}"
        )
    return x, y


def read_table(path: Path, min_columns: int = 2) -> np.ndarray:
    """Read a CSV file of at least `min_columns` columns of numbers, float64 (rows, columns)."""
    rows: list[list[float]] = []
    header: list[str] | None = None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for cells in reader:
                if not cells:
                    continue
                if header is None:
                    named = not any(map(is_number, cells))
                    header = [repr(cell) if named else str(j + 1) for j, cell in enumerate(cells)]
                    if named:
                        continue
                where = f"line {reader.line_num}"
                if len(cells) != len(header):
                    raise ValueError(f"{where} has {len(cells)} cells, expected {len(header)}")
                rows.append(
                    [number(c, f"{where}, column {n}") for c, n in zip(cells, header, strict=True)]
                )
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from None
    if not rows or len(rows[0]) < min_columns:
        raise ValueError(
            f"{path}: expected rows and {min_columns} or more columns, "
            f"got {len(rows)}, {len(header or ())}"
        )
    return np.array(rows, np.float64)


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def number(text: str, where: str) -> float:
    """The finite number that a cell holds; ValueError that says where it does not."""
    if not is_number(text) or "_" in text or not math.isfinite(float(text)):
        raise ValueError(f"{where}: {text!r} is not a finite number")
    return float(text)
