"""The user's tables: inputs and targets from .npz and .csv files.

A CSV file of numbers alone is read by NumPy. Any other is read by the csv module, which knows
missing cells and text; an error reads the file again, to tell the line.
"""

import csv
import math
import operator
import os
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

DELIMITERS = (",", ";", "\t")
DECIMALS = (".", ",")
MISSING = {"error": None, "drop": None, "mean": np.nanmean, "median": np.nanmedian}
"""What can be done about missing cells, and how a column's fill is computed."""
MISSING_CELLS = frozenset({"", "na", "n/a", "nan", "null", "?"})
"""Cells that stand for no value, in lower case."""
THOUSANDS = {
    ",": re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?"),
    ".": re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?"),
}
"""Numbers in which a sign may separate thousands, for both signs."""
COMMA_TO_POINT = str.maketrans({",": ".", ".": "?"})
"""Makes a number with a decimal comma readable, and one with a point not."""
SNIFFED_ROWS = 200
"""Rows from which the delimiter and the decimal sign are guessed."""
CHUNK_ROWS = 4096
DAMAGE = (
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a damaged .npz file raises."""


@dataclass(frozen=True, eq=False)
class Table:
    """Inputs and targets from a table.

    x               (samples, features) float64
    y               (samples,) float64; for text labels int64, places in class_names; None without
                    a target
    feature_names   of the columns of x, from the header or "column 3", …
    target_name     of the column of y
    class_names     text labels in sorted order; empty where y holds numbers
    dropped         the lines of the rows that were left out for a missing cell
    """

    x: np.ndarray
    y: np.ndarray | None
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    dropped: tuple[int, ...] = ()
    target_name: str = ""


def read_npz(path: str | os.PathLike[str], *names: str) -> list[np.ndarray]:
    """Read the arrays of those names from FILE.npz, as they are stored.

    Raises ValueError that names the file where an array is absent or the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[name] for name in names]
    except DAMAGE as error:
        wanted = f"the arrays {' and '.join(names)}" if len(names) > 1 else f"the array {names[0]}"
        raise ValueError(f"{path}: not an .npz file with {wanted}: {error}") from None


def read_csv(
    path: str | os.PathLike[str],
    *,
    target: str | int | None = -1,
    delimiter: str | None = None,
    decimal: str | None = None,
    missing: str = "error",
    columns=None,
) -> Table:
    """Read inputs and targets from a CSV file, UTF-8, with a header or without.

    target      the column of y, by name or index (from 0, −1 is the last); None for inputs alone.
                Text labels become integers, in sorted order
    delimiter   between cells, one character; by default the one of comma, semicolon and tab that
                fits the rows
    decimal     "." or ","; by default the one with which more cells are numbers
    missing     for empty cells, NA, N/A, NaN, null and ?: "error", "drop" the row, or fill it by
                the column's "mean" or "median"; a missing target is never filled
    columns     the columns of x, by name or index; by default all others

    A first line without any number is a header. Blank lines are skipped.
    Warns where the first line, taken for a sample, has a class of its own: it may be a header.
    Raises      ValueError that names the file, line and column of what is no number, or that the
                delimiter or decimal sign cannot be told; OSError from the disk
    """
    file = CsvFile(path, delimiter, decimal)
    place = None if target is None else file.index(target)
    chosen = [j for j in range(file.n_columns) if j != place]
    if columns is not None:
        if isinstance(columns, str):
            raise TypeError(f"columns is a list of names or indices, got {columns!r}")
        chosen = [file.index(column) for column in columns]
        if place in chosen:
            raise ValueError(f"{path}: {file.label(place)} is both the target and among columns")
    return file.read(chosen, place, missing)


class CsvFile:
    """A CSV file whose delimiter, decimal sign and header are known.

    names       of the columns
    n_columns   their number
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        delimiter: str | None = None,
        decimal: str | None = None,
    ):
        self.path, self._layout_known = Path(path), False
        self._decimal_given = decimal is not None
        if not (delimiter is None or (isinstance(delimiter, str) and len(delimiter) == 1)):
            raise ValueError(f"delimiter must be one character, got {delimiter!r}")
        if decimal not in (None, *DECIMALS):
            raise ValueError(f"decimal must be '.' or ',', got {decimal!r}")
        self.delimiter, self.decimal = self._guess(
            DELIMITERS if delimiter is None else (delimiter,),
            DECIMALS if decimal is None else (decimal,),
        )
        self._layout_known = True
        first = next((cells for cells, _ in self._rows(self.delimiter)), [])
        if not first:
            raise ValueError(f"{path}: the file is empty")
        self.n_columns = len(first)
        data = any(is_number(cell, self.decimal) for cell in first) or all(map(is_missing, first))
        self.has_header = not data
        self.names = tuple(
            cell.strip() if self.has_header else f"column {j + 1}" for j, cell in enumerate(first)
        )

    # --- the layout ---

    def _rows(self, delimiter: str) -> Iterator[tuple[list[str], int]]:
        """The cells of every line that is not blank, and the number of the line."""
        first = 1
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(
                    file,
                    delimiter=delimiter,
                    skipinitialspace=delimiter != " ",
                    strict=self._layout_known,
                )
                for cells in reader:
                    if cells:
                        yield cells, reader.line_num
                    first = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: not text in UTF-8 ({error.reason} at byte {error.start}); "
                "save it as CSV UTF-8"
            ) from None
        except csv.Error as error:
            lines = f"line {first}"
            if reader.line_num > first:
                lines += f" … {reader.line_num}, one cell since a quote was opened"
            raise ValueError(f"{self.path}: {lines}: {error}") from None

    def _guess(self, delimiters, decimals) -> tuple[str, str]:
        """The delimiter and the decimal sign that fit the first rows."""
        fits = {}
        for delimiter in delimiters:
            rows = [cells for cells, _ in islice(self._rows(delimiter), SNIFFED_ROWS)]
            body = [cell for cells in rows[1:] or rows for cell in cells]
            if len(delimiters) > 1 and decimals == (delimiter,):
                if not any(delimiter in cell and is_number(cell, delimiter) for cell in body):
                    continue  # no number in quotes has the sign: it separates no cells
            widths = {len(cells) for cells in rows}
            for decimal in decimals:
                numbers = sum(is_missing(cell) or is_number(cell, decimal) for cell in body)
                fits[delimiter, decimal] = (
                    max(widths, default=0) > 1,
                    len(widths) == 1,
                    numbers / max(1, len(body)),
                )
        best = max(fits.values())
        found = [pair for pair, fit in fits.items() if fit == best]
        among = list(dict.fromkeys(delimiter for delimiter, _ in found))
        if len(among) > 1 and best[0]:
            raise ValueError(
                f"{self.path}: the cells may be separated by "
                f"{' or '.join(map(repr, among))}; pass one as delimiter (--delimiter)"
            )
        delimiter, decimal = found[0]
        if decimal == "," and len(decimals) > 1:
            self._refuse_thousands(delimiter)
        return delimiter, decimal

    def _refuse_thousands(self, delimiter: str) -> None:
        """ValueError where every comma in a number may separate thousands."""
        rows = [cells for cells, _ in islice(self._rows(delimiter), SNIFFED_ROWS)]
        cells = [cell for row in rows for cell in row if "," in cell and is_number(cell, ",")]
        if all(may_have_thousands(cell, ",") for cell in cells):
            raise ValueError(
                f"{self.path}: {cells[0]!r} may be a decimal number or thousands; pass decimal=',' "
                "(--decimal), or remove the separators of thousands"
            )

    def label(self, j: int) -> str:
        """The name of column j for a message."""
        return f"column {self.names[j]!r}" if self.has_header else self.names[j]

    def index(self, column: str | int) -> int:
        """The place of a column given by name or index; ValueError for none, or for several."""
        if isinstance(column, str):
            found = [j for j, name in enumerate(self.names) if name == column]
            if len(found) == 1:
                return found[0]
            if found:
                places = " and ".join(map(str, found))
                raise ValueError(
                    f"{self.path}: {column!r} names the columns with index {places} (from 0); give "
                    "the index, or on the command line its number from 1"
                )
            shown = "without names: give an index (--target NUMBER), or add a first line of names"
            if self.has_header:
                shown = ", ".join(self.names)
            raise ValueError(f"{self.path}: no column {column!r}; the columns are {shown}")
        j = operator.index(column)
        if not -self.n_columns <= j < self.n_columns:
            number = f"no column {j + 1}, index {j} from 0" if j >= 0 else f"no column of index {j}"
            raise ValueError(f"{self.path}: {number}; there are {self.n_columns}")
        return j % self.n_columns

    # --- the cells ---

    def read(self, features: list[int], target: int | None, missing: str = "error") -> Table:
        """Read those columns; see `read_csv`."""
        if missing not in MISSING:
            raise ValueError(f"missing is one of {', '.join(MISSING)}; got {missing!r}")
        self._check_shape(features, target)
        whole = self._all_numbers()
        if whole is not None:
            y = None if target is None else whole[:, target].copy()
            names, target_name = self._names(features, target)
            return Table(whole[:, features], y, names, target_name=target_name)
        parts = [np.empty((0, len(features)))]
        labels: list[str] = []
        n_rows = 0
        rows = (cells for cells, _ in self._data_rows())
        while chunk := list(islice(rows, CHUNK_ROWS)):
            for i, cells in enumerate(chunk):
                if len(cells) != self.n_columns:
                    raise ValueError(
                        f"{self.path}: line {self._line(n_rows + i)} has {len(cells)} cells, "
                        f"expected {self.n_columns} as in the first line"
                    )
            parts.append(self._numbers(chunk, features, n_rows))
            if target is not None:
                labels += [cells[target] for cells in chunk]
            n_rows += len(chunk)
        x = np.concatenate(parts)
        y: np.ndarray | None = None
        class_names: tuple[str, ...] = ()
        holes, no_target = np.isnan(x), np.zeros(n_rows, bool)
        if target is not None:
            y, class_names, no_target = self._targets(labels, target)
            if class_names and not self.has_header:
                self._doubt_first_line(labels)
        self._check_missing(holes, no_target, features, target, missing)
        absent = holes.any(axis=1) | no_target
        dropped: tuple[int, ...] = ()
        if missing == "drop" and absent.any():
            dropped = self._lines(np.flatnonzero(absent))
            x, y = x[~absent], y if y is None else y[~absent]
        elif fill := MISSING[missing]:
            for j in np.flatnonzero(holes.any(axis=0)):
                with np.errstate(over="ignore"):
                    value = fill(x[:, j])
                if not np.isfinite(value):
                    raise ValueError(
                        f"{self.path}: {self.label(int(j))}: its {missing} is not finite"
                    )
                x[holes[:, j], j] = value
        names, target_name = self._names(features, target)
        if y is not None and class_names:  # a class may have lost all its rows
            kept, y = np.unique(y, return_inverse=True)
            class_names = tuple(class_names[k] for k in kept)
        return Table(x, y, names, class_names, dropped, target_name)

    def _check_shape(self, features: list[int], target: int | None) -> None:
        """ValueError without rows or inputs, or for a last column that each line only begins."""
        if next(self._data_rows(), None) is None:
            raise ValueError(f"{self.path}: there are no rows below the line of names")
        if not features:
            hint = ""
            if self.n_columns == 1:
                hint = (
                    f" between {self.delimiter!r}; where another character separates the cells, "
                    "pass it as delimiter (--delimiter)"
                )
            least = 1 if target is None else 2
            raise ValueError(
                f"{self.path}: expected {least} or more columns, got {self.n_columns}{hint}"
            )
        last = self.n_columns - 1
        if last in (*features, target) and not (self.has_header and self.names[last]):
            if all(is_missing("".join(cells[last:])) for cells, _ in self._data_rows()):
                raise ValueError(
                    f"{self.path}: column {last + 1}, the last, is empty and has no name; "
                    f"remove the {self.delimiter!r} at the end of the lines"
                )

    def _doubt_first_line(self, labels: list[str]) -> None:
        """Warn where only the first line, taken for a sample, has a class of its own."""
        counts = Counter(label.strip() for label in labels)
        first = labels[0].strip()
        if counts[first] == 1 < max(counts.values()) and not is_missing(first):
            warnings.warn(
                f"{self.path}: the first line has a number and is taken for a sample; no other one "
                f"has its class {first!r}. If it is a header, change names that are numbers",
                stacklevel=4,
            )

    def _names(self, features: list[int], target: int | None) -> tuple[tuple[str, ...], str]:
        names = tuple(self.names[j] for j in features)
        return names, "" if target is None else self.names[target]

    def _all_numbers(self) -> np.ndarray | None:
        """The whole file (rows, columns), if every cell is a finite number; else None."""
        if self.decimal == "," == self.delimiter:
            return None
        skipped = next(self._rows(self.delimiter))[1] if self.has_header else 0
        with open(self.path, newline="", encoding="utf-8-sig") as file:
            lines: Iterator[str] = islice(file, skipped, None)
            if self.decimal == ",":
                lines = (line.translate(COMMA_TO_POINT) for line in lines)
            try:
                values = np.loadtxt(
                    lines, delimiter=self.delimiter, quotechar='"', comments=None, ndmin=2
                )
            except ValueError:
                return None
        return values if values.shape[1] == self.n_columns and np.isfinite(values).all() else None

    def _floats(self, cells: list[str]) -> np.ndarray:
        """The numbers in cells, NaN or infinity where a cell holds no finite number."""
        if self.decimal == "." and "_" not in "".join(cells):
            with suppress(ValueError):
                return np.fromiter(map(float, cells), np.float64, len(cells))
        return np.array([parse(cell, self.decimal) for cell in cells], np.float64)

    def _numbers(self, rows: list[list[str]], columns: list[int], first: int) -> np.ndarray:
        """The cells of some rows as numbers, NaN where one is missing; `first` is the first row.

        Raises ValueError for a cell that is neither.
        """
        cells = [row[j] for row in rows for j in columns]
        values = self._floats(cells)
        for k in np.flatnonzero(~np.isfinite(values)).tolist():
            if not is_missing(cells[k]):
                i, j = divmod(k, len(columns))
                raise self._no_number(cells[k], first + i, columns[j])
        return values.reshape(len(rows), len(columns))

    def _no_number(self, cell: str, row: int, column: int) -> ValueError:
        """The error for a cell of a row that should hold a number."""
        hint = (
            "; encode it as a number, leave the column out (columns, --columns), or empty cells "
            "without a value (missing, --missing)"
        )
        other = DECIMALS[1 - DECIMALS.index(self.decimal)]
        sign = f" with the decimal sign {self.decimal!r}"
        change = f"pass decimal={other!r} (--decimal)"
        if may_have_thousands(cell, other):
            hint = f"{sign}; if {other!r} separates thousands, remove it from the file"
            if is_number(cell, other) and not self._decimal_given:
                hint += f", else {change}"
        elif is_number(cell, other):
            hint = f"{sign}; {change}"
        elif not self.has_header and row == 0:
            hint = "; if the first line is a header, none of its names may be a number"
        return ValueError(
            f"{self.path}: line {self._line(row)}, {self.label(column)}: {cell!r} is not a finite "
            f"number{hint}"
        )

    def _targets(
        self, cells: list[str], column: int
    ) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
        """Numbers or places of text labels; the labels' names; which cells are missing."""
        values = self._floats(cells)
        text = ~np.isfinite(values)
        absent = np.zeros(len(cells), bool)
        for i in np.flatnonzero(text).tolist():
            absent[i] = is_missing(cells[i])
        if (text == absent).all():
            return values, (), absent
        if not text.all():
            row = int((text & ~absent).argmax())
            raise ValueError(
                f"{self.path}: line {self._line(row)}, {self.label(column)}: {cells[row]!r} is not "
                "a number, others are; the target holds numbers or names"
            )
        labels = [cell.strip() for cell in cells]
        names = sorted({label for label, a in zip(labels, absent, strict=True) if not a})
        places = {name: k for k, name in enumerate(names)}
        return np.array([places.get(one, -1) for one in labels], np.int64), tuple(names), absent

    def _check_missing(self, holes, no_target, features, target, missing: str) -> None:
        """ValueError where missing cells are an error, or cannot be filled."""
        absent = holes.any(axis=1) | no_target
        if missing == "error" and absent.any():
            row = int(absent.argmax())
            column = features[int(holes[row].argmax())] if holes[row].any() else target
            cells = next(islice(self._data_rows(), row, None))[0]
            raise ValueError(
                f"{self.path}: line {self._line(row)}, {self.label(column)}: {cells[column]!r} is "
                "missing; drop such rows or fill them: missing='drop', 'mean' or 'median' "
                "(--missing)"
            )
        if missing == "drop" and absent.all():
            raise ValueError(f"{self.path}: every row has a missing cell; none remains")
        if MISSING[missing] and no_target.any():
            raise ValueError(
                f"{self.path}: line {self._line(int(no_target.argmax()))}: the target is missing, "
                "which is not filled; missing='drop' (--missing) drops such rows"
            )
        if MISSING[missing] and holes.all(axis=0).any():
            column = features[int(holes.all(axis=0).argmax())]
            raise ValueError(
                f"{self.path}: {self.label(column)} has no number to fill it with; leave it out"
            )

    def _data_rows(self) -> Iterator[tuple[list[str], int]]:
        """Cells and line of every row after the header."""
        return islice(self._rows(self.delimiter), int(self.has_header), None)

    def _line(self, row: int) -> int:
        """The line of a row, counted from 0 after the header."""
        return next(islice(self._data_rows(), row, None))[1]

    def _lines(self, rows: np.ndarray) -> tuple[int, ...]:
        """The lines of some rows."""
        wanted = set(rows.tolist())
        return tuple(line for i, (_, line) in enumerate(self._data_rows()) if i in wanted)


def parse(text: str, decimal: str = ".") -> float:
    """The number that a text stands for, NaN for none."""
    try:
        value = float(text.translate(COMMA_TO_POINT) if decimal == "," else text)
    except ValueError:
        return math.nan
    return math.nan if "_" in text else value


def is_number(text: str, decimal: str = ".") -> bool:
    """Whether a text stands for a finite number."""
    return math.isfinite(parse(text, decimal))


def may_have_thousands(text: str, sign: str) -> bool:
    """Whether a text is a number if that sign separates thousands."""
    return THOUSANDS[sign].fullmatch(text.strip()) is not None


def is_missing(text: str) -> bool:
    """Whether a cell holds no value."""
    return text.strip().lower() in MISSING_CELLS


def number(text: str, where: str) -> float:
    """The finite number that a text stands for; ValueError that says where it is none."""
    if not is_number(text):
        raise ValueError(f"{where}: {text!r} is not a finite number")
    return parse(text)
