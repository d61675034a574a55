"""The lines, their sizes when dry, their data, and the numbers that have to move for them."""

import contextlib
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.peers import with_numbanet, work

SAMPLES = {"mnist": 50_000, "regression": 1 << 18}
DRY_SAMPLES = {"mnist": 12, "regression": 12}
DRY_UNITS, DRY_MAPS, DRY_SIDE, DRY_BATCH = 4, 2, 16, 2


@dataclass(frozen=True)
class Line(work.Line):
    """A line; `asked` is compared with PyTorch eager. `many` are the rows of a prediction."""

    many: int = 0

    @property
    def rows(self) -> int:
        return self.many


SMALL = (("dense", 64, "tanh"), ("dense", 64, "tanh"), ("dense", 1, ""))
WIDE = (("dense", 512, "relu"), ("dense", 512, "relu"), ("dense", 10, "softmax"))


def _train(name, title, shape, layers, loss, optimizer, batch, asked=None):
    data = "regression" if shape == (8,) else "mnist"
    return Line(
        name,
        f"{title}, batch {batch:,}",
        "train",
        data,
        shape,
        layers,
        asked,
        loss,
        optimizer,
        batch,
    )


LINES = (
    _train(
        "8-64-64-1",
        "8-64-64-1 tanh, quadratic, Adam",
        (8,),
        SMALL,
        "quadratic",
        ("adam", 1e-3),
        1 << 14,
        5,
    ),
    _train(
        "784-30-10",
        "784-30-10 sigmoid, quadratic, SGD",
        (784,),
        (("dense", 30, "sigmoid"), ("dense", 10, "sigmoid")),
        "quadratic",
        ("sgd", 3.0),
        10,
    ),
    *[
        _train(
            f"784-512-512-10-{batch}",
            "784-512-512-10 ReLU, cross-entropy, SGD",
            (784,),
            WIDE,
            "cross_entropy",
            ("sgd", 0.1),
            batch,
        )
        for batch in (128, 4096)
    ],
    *[
        _train(
            f"lenet5-{batch}",
            "LeNet-5 ReLU, cross-entropy, Adam",
            work.IMAGE,
            work.LENET,
            "cross_entropy",
            ("adam", 1e-3),
            batch,
            1,
        )
        for batch in (128, 2048)
    ],
    Line(
        "predict-lenet5",
        "predict 65,536 rows, LeNet-5",
        "predict",
        "rows",
        work.IMAGE,
        work.LENET,
        None,
        many=1 << 16,
    ),
)
"""In the order of the table; a line may be asked for by its number, from 1, or by its name."""
GOAL = "to-99"
"""The name of the line behind these: seconds until MNIST is learned to 99 %."""
GOAL_LINE = _train(
    GOAL, "LeNet-5 ReLU, Adam", work.IMAGE, work.LENET, "cross_entropy", ("adam", 2e-3), 256
)
NAMES = [*(line.name for line in LINES), GOAL]


def chosen(text: str | None) -> list[str]:
    """The names for "1,lenet5-128", all by default; ValueError for one that is none."""
    found = []
    for given in text.split(",") if text else NAMES:
        given = given.strip()
        name = NAMES[int(given) - 1] if given.isdigit() and 0 < int(given) <= len(NAMES) else given
        if name not in NAMES:
            raise ValueError(
                f"no line {given!r}; there are 1 to {len(NAMES)}, or {', '.join(NAMES)}"
            )
        found.append(name)
    return found


def line(name: str) -> Line:
    return next(one for one in (*LINES, GOAL_LINE) if one.name == name)


def shrunk(line: Line) -> Line:
    """The line with layers, batch and data so small that the simulator gets through."""

    def small(kind, *own):
        if kind == "dense":
            return (kind, own[0] if own[0] == 10 else min(own[0], DRY_UNITS), *own[1:])
        return (kind, DRY_MAPS, *own[1:]) if kind == "conv" else (kind, *own)

    shape = (DRY_SIDE, DRY_SIDE, 1) if line.has_images else (min(line.input_shape[0], 8),)
    return replace(
        line,
        input_shape=shape,
        layers=tuple(small(*layer) for layer in line.layers),
        batch=DRY_BATCH,
        many=DRY_BATCH,
    )


@contextlib.contextmanager
def sizes(dry: bool):
    """Data sets of this package's sizes in the functions shared with `benchmarks.peers`."""
    with mock.patch.dict(work.SAMPLES, DRY_SAMPLES if dry else SAMPLES):
        yield


def prepare(line: Line, folder: Path, dry: bool) -> tuple[work.Case, str]:
    """The case that everybody starts from, and a note where the data are not the real ones."""
    if dry or line.data == "rows":
        _random(line, folder)
    note = with_numbanet.prepare(line, folder)["note"]
    return work.load(folder, line), note


def _random(line: Line, folder: Path) -> None:
    """Write random data of the line's shape; they are not read from anywhere then."""
    rng, n = np.random.default_rng(work.SEED), line.rows
    for part in ("", "_test"):
        n = work.SAMPLES[line.data] if line.trains else line.rows
        y = rng.integers(0, 10, n) if line.has_classes else rng.random((n, 1), np.float32)
        np.save(
            folder / f"{line.data}.x{part}.npy", rng.random((n, prod(line.input_shape)), np.float32)
        )
        np.save(folder / f"{line.data}.y{part}.npy", y)


def test_set(line: Line, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """x and y that accuracies are taken from."""
    x, y = (np.load(folder / f"{line.data}.{name}_test.npy") for name in "xy")
    return x.reshape(len(x), *line.input_shape), y


def traffic(line: Line) -> int:
    """The least number of bytes that a step or a call moves.

    Nothing stays on the chip between the passes over a layer.

    Weights      forward read, backward read, update read and written; with Adam two state vectors
                 read and written
    Activations  written once and, in training, read by the next layer, by the gradient and by their
                 own derivative; deltas likewise
    """
    weights = sum(prod(shape) + shape[-1] for shape, *_ in work.shapes(line))
    inputs, outputs = prod(line.input_shape), activations(line)
    if not line.trains:
        return 4 * (weights + line.rows * (inputs + 2 * outputs))
    state = 4 if line.optimizer[0] == "adam" else 0
    return 4 * (weights * (4 + state) + line.batch * (2 * inputs + 6 * outputs))


def activations(line: Line) -> int:
    """Numbers between the layers for one sample, pooling included."""
    total, shape = 0, line.input_shape
    for kind, *own in line.layers:
        if kind == "dense":
            shape = (own[0],)
        elif kind == "conv":
            shape = (shape[0] - own[1] + 1, shape[1] - own[1] + 1, own[0])
        elif kind == "pool":
            shape = (shape[0] // own[0], shape[1] // own[0], shape[2])
        else:
            shape = (prod(shape),)
            continue
        total += prod(shape)
    return total
