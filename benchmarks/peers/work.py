"""The work: every line as data, the order of its batches, and the case of all contenders.

Nothing here needs numbanet or a peer, so a worker loads what it measures and nothing else.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

SEED = 0
CHECKED_STEPS = 5
"""Steps after which a contender is compared with numbanet in float64."""
MANY = 1024


@dataclass(frozen=True)
class Line:
    """One line of the table.

    kind       "train", "one" (predict a row from Python), "many" (1,024 rows) or "inside" (a row,
               from compiled code)
    layers     ("dense", units, activation), ("conv", maps, window, activation), ("pool", size),
               ("flatten",), ("lstm", units) and ("gru", units), whose output is the last state;
               and, in training, ("depthwise", maps, window, activation), as many maps as before,
               ("lp_pool", size) of p = 2, ("avg_pool", size), ("batch_norm",), and ("layer_norm",)
               of vectors
    loss       "quadratic" (half the square, summed over outputs) or "cross_entropy"; both are means
               over the batch
    optimizer  ("sgd", rate) or ("adam", rate), the other numbers as in Kingma and Ba
    asked      best peer's time over ours that is aimed at
    """

    name: str
    title: str
    kind: str
    data: str
    input_shape: tuple
    layers: tuple
    asked: float | None
    loss: str = ""
    optimizer: tuple = ()
    batch: int = 0

    @property
    def trains(self) -> bool:
        return self.kind == "train"

    @property
    def has_images(self) -> bool:
        return len(self.input_shape) == 3

    @property
    def is_plain(self) -> bool:
        """Whether its layers are those that every peer describes."""
        return {kind for kind, *_ in self.layers} <= {*PLAIN, *RECURRENT}

    @property
    def is_recurrent(self) -> bool:
        return any(kind in RECURRENT for kind, *_ in self.layers)

    @property
    def has_classes(self) -> bool:
        return self.data == "mnist"

    @property
    def steps(self) -> int:
        """Steps of an epoch: as many whole batches as the training set holds."""
        return SAMPLES[self.data] // self.batch

    @property
    def rows(self) -> int:
        """Rows of a prediction."""
        return MANY if self.kind == "many" else 1

    @property
    def flops(self) -> int:
        """Floating-point operations of a step or a call.

        Each use of a weight is a multiplication and an addition.
        Training takes three passes, all but the error at the input: forward, backward, gradient.
        """
        passes = [2 * weights * places for _, weights, places, _, _ in shapes(self)]
        if self.trains:
            return self.batch * (3 * sum(passes) - passes[0])
        return self.rows * sum(passes)


SAMPLES = {"mnist": 50_000, "regression": 40_000, "sequences": 8_192}
IMAGE, ROWS = (28, 28, 1), (28, 28)
PLAIN = ("dense", "conv", "pool", "flatten")
RECURRENT = {"lstm": 4, "gru": 3}
"""The gates of each."""
POOLS = ("pool", "lp_pool", "avg_pool")
CONVOLUTIONS = ("conv", "depthwise")

LENET = (
    ("conv", 6, 5, "relu"),
    ("pool", 2),
    ("conv", 16, 5, "relu"),
    ("pool", 2),
    ("flatten",),
    ("dense", 120, "relu"),
    ("dense", 84, "relu"),
    ("dense", 10, "softmax"),
)
WIDE = (("dense", 100, "relu"), ("dense", 10, "softmax"))
SMALL = (("dense", 64, "tanh"), ("dense", 64, "tanh"), ("dense", 1, ""))
LSTM, GRU = (((kind, 64), ("dense", 10, "softmax")) for kind in RECURRENT)


def _train(name, title, data, shape, layers, loss, optimizer, batch, asked):
    return Line(name, title, "train", data, shape, layers, asked, loss, optimizer, batch)


def _predict(kind, name, data, shape, layers, asked):
    title = {
        "one": "predict a row",
        "many": f"predict {MANY:,} rows",
        "inside": "predict a row inside @njit",
    }[kind]
    return Line(f"{kind}-{name}", f"{title}, {name}", kind, data, shape, layers, asked)


LINES = (
    _train(
        "784-30-10",
        "784-30-10 sigmoid, quadratic, SGD, batch 10",
        "mnist",
        (784,),
        (("dense", 30, "sigmoid"), ("dense", 10, "sigmoid")),
        "quadratic",
        ("sgd", 3.0),
        10,
        4.5,
    ),
    _train(
        "784-100-10",
        "784-100-10 ReLU, cross-entropy, Adam, batch 32",
        "mnist",
        (784,),
        WIDE,
        "cross_entropy",
        ("adam", 1e-3),
        32,
        3.2,
    ),
    _train(
        "784-512-512-10",
        "784-512-512-10 ReLU, cross-entropy, SGD, batch 128",
        "mnist",
        (784,),
        (("dense", 512, "relu"), ("dense", 512, "relu"), ("dense", 10, "softmax")),
        "cross_entropy",
        ("sgd", 0.1),
        128,
        1.6,
    ),
    _train(
        "8-64-64-1",
        "8-64-64-1 tanh, quadratic, Adam, batch 32",
        "regression",
        (8,),
        SMALL,
        "quadratic",
        ("adam", 1e-3),
        32,
        3,
    ),
    _train(
        "lenet5-128",
        "LeNet-5 ReLU, cross-entropy, Adam, batch 128",
        "mnist",
        IMAGE,
        LENET,
        "cross_entropy",
        ("adam", 1e-3),
        128,
        6,
    ),
    _train(
        "lenet5-2048",
        "LeNet-5 ReLU, cross-entropy, Adam, batch 2048",
        "mnist",
        IMAGE,
        LENET,
        "cross_entropy",
        ("adam", 1e-3),
        2048,
        8,
    ),
    _train(
        "conv20",
        "20 maps of 5×5, max-pool, 100-10, sigmoid, cross-entropy, SGD, batch 10",
        "mnist",
        IMAGE,
        (
            ("conv", 20, 5, "sigmoid"),
            ("pool", 2),
            ("flatten",),
            ("dense", 100, "sigmoid"),
            ("dense", 10, "softmax"),
        ),
        "cross_entropy",
        ("sgd", 0.1),
        10,
        5.5,
    ),
    _train(
        "batch-norm",
        "32-64-128 maps of 3×3, each with BatchNorm, two max-pools, Adam, batch 64",
        "mnist",
        IMAGE,
        (
            ("conv", 32, 3, "relu"),
            ("batch_norm",),
            ("pool", 2),
            ("conv", 64, 3, "relu"),
            ("batch_norm",),
            ("pool", 2),
            ("conv", 128, 3, "relu"),
            ("batch_norm",),
            ("flatten",),
            ("dense", 10, "softmax"),
        ),
        "cross_entropy",
        ("adam", 1e-3),
        64,
        1.5,
    ),
    _train(
        "layer-norm",
        "LayerNorm of 784, 784-10, Adam, batch 64",
        "mnist",
        (784,),
        (("layer_norm",), ("dense", 10, "softmax")),
        "cross_entropy",
        ("adam", 1e-3),
        64,
        1.5,
    ),
    _train(
        "lp-pool",
        "16 maps of 3×3, L2-pool, Adam, batch 64",
        "mnist",
        IMAGE,
        (("conv", 16, 3, "relu"), ("lp_pool", 2), ("flatten",), ("dense", 10, "softmax")),
        "cross_entropy",
        ("adam", 1e-3),
        64,
        1.5,
    ),
    _train(
        "lstm-64",
        "LSTM of 64 units, 28 steps of 28, Adam, batch 64",
        "mnist",
        ROWS,
        LSTM,
        "cross_entropy",
        ("adam", 1e-3),
        64,
        3,
    ),
    _train(
        "gru-64",
        "GRU of 64 units, 28 steps of 28, Adam, batch 64",
        "mnist",
        ROWS,
        GRU,
        "cross_entropy",
        ("adam", 1e-3),
        64,
        4,
    ),
    _train(
        "lstm-128",
        "LSTM of 128 units, 28 steps of 28, Adam, batch 128",
        "mnist",
        ROWS,
        (("lstm", 128), ("dense", 10, "softmax")),
        "cross_entropy",
        ("adam", 1e-3),
        128,
        1.8,
    ),
    _train(
        "gru-32",
        "GRU of 32 units, 100 steps of 8, quadratic, Adam, batch 32",
        "sequences",
        (100, 8),
        (("gru", 32), ("dense", 1, "")),
        "quadratic",
        ("adam", 1e-3),
        32,
        5,
    ),
    _train(
        "avg-pool",
        "16 maps of 3×3, average pool, Adam, batch 64",
        "mnist",
        IMAGE,
        (("conv", 16, 3, "relu"), ("avg_pool", 2), ("flatten",), ("dense", 10, "softmax")),
        "cross_entropy",
        ("adam", 1e-3),
        64,
        1.5,
    ),
    _train(
        "depthwise",
        "32 maps of 3×3, depthwise 3×3, average pool, Adam, batch 64",
        "mnist",
        IMAGE,
        (
            ("conv", 32, 3, "relu"),
            ("depthwise", 32, 3, "relu"),
            ("avg_pool", 4),
            ("flatten",),
            ("dense", 10, "softmax"),
        ),
        "cross_entropy",
        ("adam", 1e-3),
        64,
        1.5,
    ),
    _train(
        "softmax-1000",
        "784-1000 softmax, cross-entropy, SGD, batch 64",
        "mnist",
        (784,),
        (("dense", 1000, "softmax"),),
        "cross_entropy",
        ("sgd", 0.1),
        64,
        1.5,
    ),
    _predict("one", "8-64-64-1", "regression", (8,), SMALL, 2),
    _predict("one", "784-100-10", "mnist", (784,), WIDE, 1.3),
    _predict("one", "lenet5", "mnist", IMAGE, LENET, 2),
    _predict("one", "lstm-64", "mnist", ROWS, LSTM, 3),
    _predict("one", "gru-64", "mnist", ROWS, GRU, 3),
    _predict("many", "8-64-64-1", "regression", (8,), SMALL, 1.5),
    _predict("many", "784-100-10", "mnist", (784,), WIDE, 1.2),
    _predict("many", "lenet5", "mnist", IMAGE, LENET, 2.2),
    _predict("inside", "8-64-64-1", "regression", (8,), SMALL, None),
)
"""In the order of the table; a line may be asked for by its number, from 1, or by its name."""


def line(given: str) -> Line:
    """The line of that name or number."""
    for number, one in enumerate(LINES, 1):
        if given in (one.name, str(number)):
            return one
    raise ValueError(
        f"no line {given!r}; there are 1 to {len(LINES)}, or {', '.join(one.name for one in LINES)}"
    )


def shapes(line: Line) -> list[tuple]:
    """A tuple for each dense layer and each convolution, and two for each recurrent layer.

    (shape of the weights, how many, places in a sample that use each, activation, input shape)
    """
    found, shape = [], line.input_shape
    for kind, *own in line.layers:
        if kind == "dense":
            found.append(((shape[0], own[0]), shape[0] * own[0], 1, own[1], shape))
            shape = (own[0],)
        elif kind in CONVOLUTIONS:
            maps, window, activation = own
            after = (shape[0] - window + 1, shape[1] - window + 1, maps)
            kernel = (window, window, 1 if kind == "depthwise" else shape[2], maps)
            found.append((kernel, prod(kernel), after[0] * after[1], activation, shape))
            shape = after
        elif kind in RECURRENT:
            (steps, n_in), units = shape, own[0]
            width = RECURRENT[kind] * units
            for rows in (n_in, units):
                found.append(((rows, width), rows * width, steps, "", shape))
            shape = (units,)
        elif kind in POOLS:
            shape = (shape[0] // own[0], shape[1] // own[0], shape[2])
        elif kind == "flatten":
            shape = (prod(shape),)
    return found


def order(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of an epoch's samples, by the rule of numbanet.training.order.

    The check would notice a difference.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


class Batches:
    """Hands out the samples of the next steps, through one epoch after the other."""

    def __init__(self, line: Line):
        self.steps, self.batch = line.steps, line.batch
        self.restart()

    def restart(self) -> None:
        """Begin again with the first batch of the first epoch."""
        self.epoch, self.rest = 0, np.zeros((0, self.batch), np.int64)

    def take(self, steps: int) -> np.ndarray:
        """Indices (steps, batch) of the samples of the next steps."""
        parts = []
        while steps:
            if not len(self.rest):
                self.rest = order(SEED, self.epoch, self.steps * self.batch).reshape(
                    self.steps, self.batch
                )
                self.epoch += 1
            parts.append(self.rest[:steps])
            self.rest = self.rest[steps:]
            steps -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


# --- the case: what lies ready in files for every contender ------------------------------------


@dataclass(frozen=True)
class Case:
    """A line with its numbers.

    x, y      training: the samples, float32, and labels (n,) int64 or targets (n, outputs) float32
              · prediction: x has the rows
    weights   [w, b, w, b, …] at the start: dense (n_in, n_out), kernels (rows, columns, c_in,
              c_out), norms (c,); recurrent w (n_in, gates · units), b, u (units, gates · units),
              and for a GRU the bias of its last gate's product with u
    expected  training: the same after CHECKED_STEPS steps in float64 · prediction: [outputs]
    loss      the mean loss of these steps
    """

    line: Line
    x: np.ndarray
    y: np.ndarray
    weights: list
    expected: list
    loss: float

    def rows_of_targets(self) -> np.ndarray:
        """Targets (n, outputs) float32, from labels too."""
        if self.y.ndim == 2:
            return self.y
        return np.eye(self.line.layers[-1][1], dtype=np.float32)[self.y]

    def targets(self) -> np.ndarray:
        """What the loss reads: labels for the cross-entropy, rows for the quadratic cost."""
        return self.y if self.line.loss == "cross_entropy" else self.rows_of_targets()


def regression() -> tuple:
    """x, y, x_test, y_test of a smooth function of eight inputs with a little noise.

    Inputs and noise are drawn, seeded.
    """
    rng = np.random.default_rng(SEED)
    n = SAMPLES["regression"] + 10_000
    x = rng.uniform(-1, 1, (n, 8)).astype(np.float32)
    y = (
        np.sin(np.pi * x[:, 0] * x[:, 1])
        + 2 * (x[:, 2] - 0.5) ** 2
        + x[:, 3] * x[:, 4]
        + 0.5 * np.tanh(3 * x[:, 5])
        + x[:, 6]
    )
    y = (y[:, None] + 0.05 * rng.standard_normal((n, 1))).astype(np.float32)
    cut = SAMPLES["regression"]
    return x[:cut], y[:cut], x[cut:], y[cut:]


def sequences() -> tuple:
    """x, y, x_test, y_test of a fading sum over one channel, switched on by another, with noise.

    Inputs and noise are drawn, seeded.
    """
    rng = np.random.default_rng(SEED)
    cut = SAMPLES["sequences"]
    x = rng.uniform(-1, 1, (cut + 2_048, 100, 8)).astype(np.float32)
    total = np.zeros(len(x))
    for t in range(x.shape[1]):
        total = 0.95 * total + x[:, t, 0] * (x[:, t, 1] > 0)
    y = (total[:, None] + 0.05 * rng.standard_normal((len(x), 1))).astype(np.float32)
    return x[:cut], y[:cut], x[cut:], y[cut:]


def noise() -> tuple:
    """Random numbers of MNIST's shape, for a machine that has no MNIST."""
    rng = np.random.default_rng(SEED)
    parts = []
    for n in (SAMPLES["mnist"], 10_000):
        parts += [rng.random((n, 784), np.float32), rng.integers(0, 10, n)]
    return tuple(parts)


def load(folder: Path, line: Line) -> Case:
    """Read a case that `with_numbanet.prepare` wrote; the arrays are this process's own."""
    part = "" if line.trains else "_test"
    x, y = (
        np.load(folder / f"{line.data}.x{part}.npy"),
        np.load(folder / f"{line.data}.y{part}.npy"),
    )
    n = line.steps * line.batch if line.trains else line.rows
    x = np.ascontiguousarray(x[:n]).reshape(n, *line.input_shape)
    facts = json.loads((folder / f"{line.name}.json").read_text())
    return Case(
        line,
        x,
        y[:n].copy(),
        read(folder / f"{line.name}.weights.npz"),
        read(folder / f"{line.name}.expected.npz"),
        facts["loss"],
    )


def write(path: Path, arrays) -> None:
    """Write a list of arrays."""
    np.savez(path, **{f"a{i:03}": a for i, a in enumerate(arrays)})


def read(path: Path) -> list[np.ndarray]:
    """Read what `write` wrote."""
    with np.load(path) as file:
        return [file[name] for name in sorted(file.files)]


# --- channels first, for those who count that way ----------------------------------------------


def channels_first(line: Line, weights: list) -> list[np.ndarray]:
    """[w, b, …] for images (c, height, width).

    Kernels are (c_out, c_in, rows, columns), other matrices (n_out, n_in), vectors as they are.
    """
    turned, before = [], before_flatten(line)
    for w in weights:
        if w.ndim == 4:
            w = w.transpose(3, 2, 0, 1)
        else:
            if before and w.ndim == 2 and len(w) == prod(before):
                w, before = w.reshape(*before, -1).transpose(2, 0, 1, 3).reshape(len(w), -1), None
            w = w.T
        turned.append(np.array(w, np.float32, order="C"))
    return turned


def channels_last(line: Line, turned: list) -> list[np.ndarray]:
    """Back from `channels_first`."""
    weights, before = [], before_flatten(line)
    for w in turned:
        if w.ndim == 4:
            w = w.transpose(2, 3, 1, 0)
        else:
            w = w.T
            if before and w.ndim == 2 and len(w) == prod(before):
                height, width, c = before
                w, before = (
                    w.reshape(c, height, width, -1).transpose(1, 2, 0, 3).reshape(len(w), -1),
                    None,
                )
        weights.append(np.ascontiguousarray(w))
    return weights


def before_flatten(line: Line) -> tuple | None:
    """The image's shape (height, width, c) where it becomes a vector; None without images."""
    if not line.has_images:
        return None
    shape = line.input_shape
    for kind, *own in line.layers:
        if kind in CONVOLUTIONS:
            shape = (shape[0] - own[1] + 1, shape[1] - own[1] + 1, own[0])
        elif kind in POOLS:
            shape = (shape[0] // own[0], shape[1] // own[0], shape[2])
    return shape
