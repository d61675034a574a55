"""Initialisers: the initial values of parameters.

    normal    N(0, std²)                       Nielsen's "large" weights, with std 1
    lecun     N(0, 1 / n_in)                   Nielsen's default: neurons do not start saturated
    glorot    U(±√(6 / (n_in + n_out)))        keeps the variance in both directions (sigmoid, tanh)
    he        N(0, 2 / n_in)                   the same for rectifiers, which pass half
    uniform   U(low, high)
    orthogonal   rows (or columns, if there are fewer) of one length at right angles: a product that
              is repeated, as over time, neither grows nor shrinks where this length, the gain, is 1
    zeros, ones

n_in and n_out count the connections into and out of one neuron. Every layer has a generator of its
own, keyed by the network's seed and the layer's index, so that its initial values do not depend on
the layers before it.

Source   Nielsen, chapter 3; LeCun et al. 1998; Glorot, Bengio 2010; He et al. 2015; Saxe,
         McClelland, Ganguli 2014
"""

from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Annotated

import numpy as np

from numbanet.io.attributes import Description, instance
from numbanet.io.fields import By, Real, check, shown
from numbanet.io.registry import lookup


def fans(shape) -> tuple[int, int]:
    """(n_in, n_out) of weights with axes (window …, inputs, outputs)."""
    if len(shape) < 2:
        return max(1, prod(shape)), max(1, prod(shape))
    window = prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


CONSTANT, NORMAL, UNIFORM, ORTHOGONAL = range(4)
"""Kinds of distributions: a constant a, N(a, b²), U(a, b), an orthogonal matrix times a."""


@dataclass(frozen=True)
class Initializer(Description):
    """An initialiser: called with a shape and a NumPy generator it returns float64 values.

    One of your own overrides `distribution`, or `__call__`, which compiled code cannot call.
    """

    def __post_init__(self):
        check(self)

    def __call__(self, shape, generator) -> np.ndarray:
        kind, a, b = self.distribution(shape)
        if kind == NORMAL:
            return generator.normal(a, b, shape)
        if kind == UNIFORM:
            return generator.uniform(a, b, shape)
        return a * _orthogonal(shape, generator) if kind == ORTHOGONAL else np.full(shape, a)

    def distribution(self, shape) -> tuple[int, float, float]:
        """Return (kind, a, b): what the values of an array of that shape are drawn from."""
        return CONSTANT, 0.0, 0.0


class Zeros(Initializer):
    """Zeros: for biases."""


class Ones(Initializer):
    """Ones: for the scales of a norm."""

    def distribution(self, shape):
        return CONSTANT, 1.0, 0.0


@dataclass(frozen=True)
class Normal(Initializer):
    """N(mean, std²)."""

    std: Annotated[float, Real(0)] = 1.0
    mean: Annotated[float, Real()] = 0.0

    def distribution(self, shape):
        return NORMAL, self.mean, self.std


@dataclass(frozen=True)
class Uniform(Initializer):
    """U(low, high)."""

    low: Annotated[float, Real()] = -0.05
    high: Annotated[float, Real()] = 0.05

    def __post_init__(self):
        super().__post_init__()
        if not (self.low <= self.high and isfinite(float(self.high) - float(self.low))):
            raise ValueError(
                "Uniform needs low ≤ high and a finite difference, "
                f"got {self.low!r} and {self.high!r}"
            )

    def distribution(self, shape):
        return UNIFORM, self.low, self.high


class LeCun(Initializer):
    """N(0, 1 / n_in)."""

    def distribution(self, shape):
        return NORMAL, 0.0, sqrt(1 / fans(shape)[0])


class He(Initializer):
    """N(0, 2 / n_in)."""

    def distribution(self, shape):
        return NORMAL, 0.0, sqrt(2 / fans(shape)[0])


class Glorot(Initializer):
    """U(±√(6 / (n_in + n_out)))."""

    def distribution(self, shape):
        bound = sqrt(6 / sum(fans(shape)))
        return UNIFORM, -bound, bound


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random matrix with orthonormal rows, or columns where there are fewer; times `gain`."""

    gain: Annotated[float, Real()] = 1.0

    def distribution(self, shape):
        return ORTHOGONAL, self.gain, 0.0


def _orthogonal(shape, generator) -> np.ndarray:
    """A matrix (all axes but the last, the last) with orthonormal rows or columns."""
    columns = shape[-1] if shape else 1
    normal = generator.normal(size=(prod(shape[:-1]), columns))
    tall = normal if len(normal) >= columns else normal.T
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)
    return (q if tall is normal else q.T).reshape(shape)


@dataclass(frozen=True)
class Columns:
    """Blocks of columns of one width, each drawn by an initialiser of its own: `parts` in order.

    It is called as an initialiser; the gates of recurrent layers are such blocks.
    """

    parts: tuple

    def __call__(self, shape, generator):
        block = (*shape[:-1], shape[-1] // len(self.parts))
        drawn = [initial(one, block, generator, "a block of columns") for one in self.parts]
        return np.concatenate(drawn, axis=-1)


NAMES = {
    "normal": Normal,
    "lecun": LeCun,
    "glorot": Glorot,
    "he": He,
    "uniform": Uniform,
    "orthogonal": Orthogonal,
    "zeros": Zeros,
    "ones": Ones,
}


SYNONYMS = {
    "zero": "zeros",
    "one": "ones",
    "glorot_uniform": "glorot",
    "xavier": "glorot",
    "xavier_uniform": "glorot",
    "he_normal": "he",
    "kaiming": "he",
    "kaiming_normal": "he",
    "lecun_normal": "lecun",
}
"""Names in other libraries."""


def _initializer(given) -> None:
    """TypeError for what `initial` cannot take, ValueError for an unknown name."""
    if isinstance(given, str):
        lookup("initializer", given, NAMES, SYNONYMS)
        return
    given = instance(given, Initializer)
    if not (given is None or callable(given) or isinstance(given, (np.ndarray, list, tuple))):
        raise TypeError(
            "an initializer is a name, an Initializer, "
            "a function of (shape, generator) or an array, "
            f"not {shown(given)}"
        )


INITIALIZER = By(_initializer)
"""The kind of a field that holds what `initial` takes."""


def resolve(given):
    """Return the Initializer of a name or a class; a function or an array as it is."""
    if isinstance(given, str):
        given = lookup("initializer", given, NAMES, SYNONYMS)()
    return instance(given, Initializer)


def initial(given, shape, generator, where: str) -> np.ndarray:
    """Return the initial values.

    `given` is a name, an Initializer, a function of (shape, generator), or an array.
    """
    given = resolve(given)
    values = np.asarray(given(shape, generator) if callable(given) else given)
    if values.shape != tuple(shape):
        raise ValueError(
            f"{where}: initial values have shape {values.shape}, the layer needs {tuple(shape)}"
        )
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(
            f"{where}: initial values must be finite real numbers, got dtype {values.dtype}"
        )
    return values
