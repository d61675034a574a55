"""Published networks, ready to train.

    lenet5       6 and 16 filters of 5×5, each with max-pooling by 2, then 120-84-10
                 (LeCun et al. 1998, with ReLU)
    vgg_small    twice two layers of 3×3 and max-pooling, then 128 with dropout
                 (after Simonyan, Zisserman 2014)
    lstm, gru    64 units that read an image row by row, from the top
    nielsen      the networks of the book's tables, by row, each with its training recipe

    network, recipe = models.nielsen(17)
    network.fit(x, y, **recipe.options)

They expect pixels from 0 to 1; `before=[Rescale(1 / 255)]` puts a layer for bytes in front.

Rows 1 to 10 are chapters 1 and 3: sigmoid neurons, weights N(0, 1) or N(0, 1 / n_in), biases
N(0, 1). Rows from 14 on are chapter 6 with the initial values of its program network3.py: weights
N(0, 1 / n_out), where n_out of a convolution is filters · 5 · 5 / 4; biases N(0, 1); zeros before
the softmax. The book pools before the activation; for a monotone one, as here, the result is the
same.
Dropout is the book's: nothing is scaled in training, activations are multiplied by 1 − rate in
prediction.

Source   Nielsen, Neural Networks and Deep Learning, chapters 1, 3 and 6, and its programs
         network.py, network2.py, network3.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numbanet.network.ensemble import Ensemble
from numbanet.network.sequential import Sequential
from numbanet.nn.initializers import Normal
from numbanet.nn.layers import (
    GRU,
    LSTM,
    Activation,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool2D,
    ReLU,
    Reshape,
    Sigmoid,
)
from numbanet.nn.layers.base import Layer
from numbanet.nn.optimizers import SGD
from numbanet.nn.regularizers import L2, Penalty

DIGIT = (28, 28, 1)


def lenet5(classes: int = 10, input_shape=DIGIT, *, before=(), **options) -> Sequential:
    """Build LeNet-5 with ReLU and max-pooling; `options` go to Sequential.

    before   layers in front, such as Rescale(1 / 255) for bytes
    Raises ValueError for images smaller than 16 by 16.
    """
    return Sequential(
        [
            *before,
            Conv2D(6, 5, activation="relu"),
            MaxPool2D(2),
            Conv2D(16, 5, activation="relu"),
            MaxPool2D(2),
            Flatten(),
            Dense(120, activation="relu"),
            Dense(84, activation="relu"),
            Dense(classes, activation="softmax"),
        ],
        input_shape,
        **options,
    )


def vgg_small(classes: int = 10, input_shape=(32, 32, 3), *, before=(), **options) -> Sequential:
    """Build a small network in the manner of VGG; `options` go to Sequential.

    Its 3×3 convolutions keep the size of the image: 32-32-pool-64-64-pool-128.

    before   layers in front, such as Rescale(1 / 255) for bytes
    Raises ValueError for images smaller than 4 by 4.
    """
    convolutions: list[Layer] = []
    for maps in (32, 64):
        convolutions += [
            Conv2D(maps, 3, padding="same", activation="relu"),
            Conv2D(maps, 3, padding="same", activation="relu"),
            MaxPool2D(2),
        ]
    return Sequential(
        [
            *before,
            *convolutions,
            Flatten(),
            Dense(128, activation="relu"),
            Dropout(0.5),
            Dense(classes, activation="softmax"),
        ],
        input_shape,
        **options,
    )


def lstm(classes: int = 10, input_shape=DIGIT, *, before=(), **options) -> Sequential:
    """Build an LSTM of 64 units whose steps are the rows of an image; `options` go to Sequential.

    before   layers in front, such as Rescale(1 / 255) for bytes
    """
    return _row_by_row(LSTM(64), classes, input_shape, before, options)


def gru(classes: int = 10, input_shape=DIGIT, *, before=(), **options) -> Sequential:
    """Build the same with a GRU."""
    return _row_by_row(GRU(64), classes, input_shape, before, options)


def _row_by_row(layer: Layer, classes: int, input_shape, before, options) -> Sequential:
    height, width, channels = input_shape
    rows = Reshape((height, width * channels))
    layers = [*before, rows, layer, Dense(classes, activation="softmax")]
    return Sequential(layers, input_shape, **options)


# --- the book -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How a network of the book was trained.

    examples   how many of the 50,000 training images, from the first
    expanded   each image five times, as it is and shifted by one pixel to each side
               (`numbanet.shift_copies`)
    penalty    is part of the network already
    """

    name: str
    loss: str
    learning_rate: float
    epochs: int
    penalty: Penalty | None = None
    batch_size: int = 10
    examples: int = 50_000
    expanded: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What `fit` takes."""
        return {
            "loss": self.loss,
            "optimizer": SGD(self.learning_rate),
            "batch_size": self.batch_size,
            "epochs": self.epochs,
        }


@dataclass(frozen=True)
class _Row:
    """A recipe with a function that builds its layers, and how many networks vote."""

    recipe: Recipe
    layers: Callable[[], list[Layer]]
    input_shape: tuple[int, ...] = DIGIT
    networks: int = 1


def _mlp(hidden: int, start: str) -> Callable[[], list[Layer]]:
    """Chapters 1 and 3: one hidden layer, all neurons sigmoid."""
    common: dict[str, Any] = {
        "activation": "sigmoid",
        "initializer": start,
        "bias_initializer": "normal",
    }
    return lambda: [Dense(hidden, **common), Dense(10, **common)]


def _conv_pool(filters: int, kind: type[Activation]) -> list[Layer]:
    """A convolution of 5×5 and max-pooling."""
    start = Normal((4 / (filters * 25)) ** 0.5)
    return [
        Conv2D(filters, 5, activation=kind(), initializer=start, bias_initializer="normal"),
        MaxPool2D(2),
    ]


def _dropout(rate: float) -> list[Layer]:
    return [Dropout(rate, inverted=False)] if rate else []


def _dense_block(count: int, kind: type[Activation], rate: float = 0.0) -> list[Layer]:
    """A dense layer, behind dropout if there is any."""
    start = Normal((1 / count) ** 0.5)
    return [*_dropout(rate), Dense(count, kind(), start, "normal")]


def _output_layer(rate: float = 0.0) -> list[Layer]:
    return [*_dropout(rate), Dense(10, "softmax", "zeros")]


def _conv_net(
    maps=(20, 40), kind: type[Activation] = ReLU, units=(100,), rate: float = 0.0
) -> Callable[[], list[Layer]]:
    """Chapter 6."""
    return lambda: [
        *[layer for n in maps for layer in _conv_pool(n, kind)],
        *([Flatten()] if maps else []),
        *[layer for n in units for layer in _dense_block(n, kind, rate)],
        *_output_layer(rate),
    ]


def _chapters_1_and_3() -> dict[int, _Row]:
    squares, bits, l2 = "quadratic", "binary_cross_entropy", L2(5.0, per="sample")
    small, large = _mlp(30, "normal"), _mlp(100, "normal")
    few = "784-30-10, first 1,000 images, λ = 0.1, large weights"
    few_l2 = L2(0.1, per="sample")
    rows = {
        1: (Recipe("784-30-10, quadratic, large weights", squares, 3.0, 30), small),
        2: (Recipe("784-100-10, quadratic, large weights", squares, 3.0, 30), large),
        4: (Recipe("784-30-10, cross-entropy, large weights", bits, 0.5, 30), small),
        7: (Recipe(few, bits, 0.5, 400, few_l2, examples=1000), small),
        8: (Recipe("784-30-10, cross-entropy, λ = 5, large weights", bits, 0.5, 30, l2), small),
        9: (Recipe("784-100-10, cross-entropy, λ = 5, η = 0.5", bits, 0.5, 30, l2), large),
        10: (
            Recipe("784-100-10, cross-entropy, λ = 5, η = 0.1", bits, 0.1, 60, l2),
            _mlp(100, "lecun"),
        ),
    }
    return {number: _Row(recipe, layers, (784,)) for number, (recipe, layers) in rows.items()}


def _chapter_6() -> dict[int, _Row]:
    loss, l2 = "cross_entropy", L2(0.1, per="batch")
    two = "conv 20, pool, conv 40, pool"
    dense = Recipe("784-100 sigmoid, softmax, log-likelihood", loss, 0.1, 60)
    conv = Recipe("conv 20, pool, 100, sigmoid", loss, 0.1, 60)
    sigmoid = Recipe(f"{two}, 100, sigmoid", loss, 0.1, 60)
    relu = Recipe(f"{two}, 100, ReLU, λ = 0.1", loss, 0.03, 60, l2)
    expanded = Recipe(f"{two}, 100, ReLU, λ = 0.1, expanded", loss, 0.03, 60, l2, expanded=True)
    dropout = Recipe(f"{two}, 1000-1000, ReLU, dropout, expanded", loss, 0.03, 40, expanded=True)
    vote = Recipe(f"vote of five: {dropout.name}", loss, 0.03, 40, expanded=True)
    with_dropout = _conv_net(units=(1000, 1000), rate=0.5)
    return {
        14: _Row(dense, _conv_net((), Sigmoid), (784,)),
        15: _Row(conv, _conv_net((20,), Sigmoid)),
        16: _Row(sigmoid, _conv_net(kind=Sigmoid)),
        17: _Row(relu, _conv_net()),
        18: _Row(expanded, _conv_net()),
        21: _Row(dropout, with_dropout),
        22: _Row(vote, with_dropout, networks=5),
    }


BOOK_ROWS = {**_chapters_1_and_3(), **_chapter_6()}
"""The rows of the table by number."""


def nielsen(row: int, *, seed: int = 0, before=(), **options) -> tuple[Any, Recipe]:
    """Return the book's network of that row with its recipe; `options` go to Sequential.

    before   layers in front, such as Rescale(1 / 255) for bytes
    Row 22 is an Ensemble of five, with seeds 5 seed … 5 seed + 4; the others are Sequentials.
    Raises ValueError for a row that is not in the table.
    """
    if row not in BOOK_ROWS:
        raise ValueError(f"there is no row {row!r}; the rows are {', '.join(map(str, BOOK_ROWS))}")
    chosen = BOOK_ROWS[row]
    options = {"penalty": chosen.recipe.penalty, **options}

    def build(seed):
        layers = [*before, *chosen.layers()]
        return Sequential(layers, chosen.input_shape, seed=seed, **options)

    if chosen.networks == 1:
        return build(seed), chosen.recipe
    seeds = range(seed * chosen.networks, (seed + 1) * chosen.networks)
    return Ensemble.from_builder(build, seeds=seeds, combine="vote"), chosen.recipe
