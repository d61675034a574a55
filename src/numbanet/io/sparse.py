"""Sparse rows: a matrix of scipy.sparse as three arrays, which a kernel gathers into dense rows."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of a matrix in compressed form; what is not stored is 0.

    values      (stored,) float32 or float64
    columns     (stored,) int32, rising within a row
    starts      (rows + 1,) int64: row i is stored from starts[i] to starts[i + 1] − 1
    n_columns   of the matrix
    """

    values: np.ndarray
    columns: np.ndarray
    starts: np.ndarray
    n_columns: int
    ndim = 2

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self), self.n_columns

    @property
    def stored(self) -> int:
        """How many elements of these rows are stored."""
        return int(self.starts[-1] - self.starts[0])

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored of these rows."""
        return self.stored * (self.values.itemsize + self.columns.itemsize) + self.starts.nbytes

    def __len__(self):
        return len(self.starts) - 1

    def __getitem__(self, some: slice) -> "SparseRows":
        """Rows that follow one another; they share the values."""
        first, last, step = some.indices(len(self))
        assert step == 1, "rows that do not follow one another: use dense"
        starts = self.starts[first : max(first, last) + 1]
        return SparseRows(self.values, self.columns, starts, self.n_columns)

    def dense(self, some: slice = slice(None)) -> np.ndarray:
        """Return these rows as an array."""
        rows = np.arange(len(self))[some]
        result = np.zeros((len(rows), self.n_columns), self.dtype)
        for row, k in zip(result, rows, strict=True):
            stored = slice(self.starts[k], self.starts[k + 1])
            row[self.columns[stored]] = self.values[stored]
        return result

    @classmethod
    def joined(cls, parts: list["SparseRows"]) -> "SparseRows":
        """Return the rows of all parts, one after the other."""
        stored = [slice(one.starts[0], one.starts[-1]) for one in parts]
        values, columns = (
            np.concatenate([getattr(one, name)[some] for one, some in zip(parts, stored)])
            for name in ("values", "columns")
        )
        counts = np.concatenate([np.diff(one.starts) for one in parts])
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(values, columns, starts, parts[0].n_columns)
