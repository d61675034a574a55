"""Published networks: sizes, initial values, recipes, and the book's training in PyTorch."""

import numpy as np
import pytest

import numbanet as nn
from numbanet.network.zoo import BOOK_ROWS, gru, lenet5, lstm, nielsen, vgg_small

IMAGES = [row for row in BOOK_ROWS if BOOK_ROWS[row].input_shape == (28, 28, 1) and row != 22]


def kinds(net):
    return [type(built.layer).__name__ for built in net.layers]


def digits(samples, seed=0):
    """Images with a bright bar whose place is the class."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 10, samples)
    x = generator.uniform(0, 0.3, (samples, 28, 28, 1))
    for image, label in zip(x, y, strict=True):
        image[2 * label + 3 : 2 * label + 6, 6:22] += 0.7
    return x, y


def test_lenet5():
    net = lenet5(seed=1)
    assert net.parameters.size == 6 * 26 + 16 * 151 + 257 * 120 + 121 * 84 + 85 * 10
    assert kinds(net) == ["Conv2D", "ReLU", "MaxPool2D"] * 2 + [
        "Flatten",
        "Dense",
        "ReLU",
        "Dense",
        "ReLU",
        "Dense",
        "Softmax",
    ]
    assert [built.output_shape for built in net.layers if len(built.output_shape) == 3][2::3] == [
        (12, 12, 6),
        (4, 4, 16),
    ]
    assert lenet5(3, (32, 32, 1), dtype="float64").dtype == "float64"
    x, y = digits(100)
    net.fit(x, y, optimizer=nn.Adam(0.002), batch_size=10, epochs=4, verbose=0)
    assert net.evaluate(*digits(100, 1))["accuracy"] > 0.9


def test_vgg_small():
    net = vgg_small()
    assert kinds(net) == (["Conv2D", "ReLU"] * 2 + ["MaxPool2D"]) * 2 + [
        "Flatten",
        "Dense",
        "ReLU",
        "Dropout",
        "Dense",
        "Softmax",
    ]
    assert (
        net.parameters.size
        == 28 * 32 + 289 * 32 + 289 * 64 + 577 * 64 + (4096 + 1) * 128 + 129 * 10
    )
    assert vgg_small(4, (9, 8, 1)).output_shape == (4,)


@pytest.mark.parametrize(("make", "gates"), [(lstm, 4), (gru, 3)])
def test_networks_that_read_row_by_row(make, gates):
    net = make(4, (9, 5, 2), seed=1)
    assert net.layers[1].input_shape == (9, 10) and net.output_shape == (4,)
    assert net.layers[1].weights.shape == (10, gates * 64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lenet5(input_shape=(15, 15, 1)), "does not fit an input 1 high"),
        (lambda: vgg_small(input_shape=(3, 3, 1)), "does not fit an input 1 high"),
        (lambda: nielsen(3), "there is no row 3; the rows are 1, 2, 4, 7, 8"),
    ],
)
def test_what_is_too_small_or_unknown(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- the book ----------------------------------------------------------------------------------


def test_the_rows_of_the_table():
    assert list(BOOK_ROWS) == [1, 2, 4, 7, 8, 9, 10, 14, 15, 16, 17, 18, 21, 22]
    found = {row: nielsen(row) for row in BOOK_ROWS}
    assert {row: recipe.epochs for row, (_, recipe) in found.items()} == {
        1: 30,
        2: 30,
        4: 30,
        7: 400,
        8: 30,
        9: 30,
        10: 60,
        14: 60,
        15: 60,
        16: 60,
        17: 60,
        18: 60,
        21: 40,
        22: 40,
    }
    assert [row for row, (_, recipe) in found.items() if recipe.expanded] == [18, 21, 22]
    assert [row for row, (_, recipe) in found.items() if recipe.examples != 50_000] == [7]
    convolutions = 26 * 20, 501 * 40
    assert {row: net.parameters.size for row, (net, _) in found.items() if row != 22} == {
        1: 23860,
        2: 79510,
        4: 23860,
        7: 23860,
        8: 23860,
        9: 79510,
        10: 79510,
        14: 79510,
        15: convolutions[0] + 2881 * 100 + 1010,
        16: sum(convolutions) + 641 * 100 + 1010,
        17: sum(convolutions) + 641 * 100 + 1010,
        18: sum(convolutions) + 641 * 100 + 1010,
        21: sum(convolutions) + 641 * 1000 + 1001 * 1000 + 10010,
    }
    assert [p.strength for p in found[10][0].penalty] == [5.0] and found[17][0].penalty[0].scaled(
        50_000, 5000
    ) == 0.1 / 5000


@pytest.mark.parametrize("row", [1, 10, 15, 16, 21])
def test_the_starts_are_the_book_s(row):
    net, _ = nielsen(row, seed=3)
    weights = [built for built in net.layers if "weights" in built.parameters]
    deviation = {
        1: (1, 1),
        10: (784**-0.5, 0.1),
        15: (125**-0.5, 0.1, 0),
        16: (125**-0.5, 250**-0.5, 0.1, 0),
        21: (125**-0.5, 250**-0.5, 1000**-0.5, 1000**-0.5, 0),
    }[row]
    for built, wanted in zip(weights, deviation, strict=True):
        assert built.weights.std() == pytest.approx(
            wanted, rel=4 / np.sqrt(built.weights.size), abs=0
        )
        assert abs(built.weights.mean()) <= 4 * wanted / np.sqrt(built.weights.size)
        assert 0.5 < built.bias.std() < 1.5 if wanted else not built.bias.any()


@pytest.mark.parametrize("inverted", [True, False])
def test_one_form_of_dropout_scales_in_training_and_the_other_in_prediction(inverted):
    """One step of gradient descent on y = w · dropout(1): w moves by what training scales it."""
    net = nn.Sequential([nn.Dropout(0.75, inverted), nn.Dense(1, bias=False)], 400, "float64")
    net.layers[1].weights[...] = 0
    x = np.ones((1, 400))
    net.fit(x, [[1.0]], optimizer=nn.SGD(1.0), loss="quadratic", verbose=0)
    weights = net.layers[1].weights[:, 0]
    kept = weights != 0
    assert 60 <= kept.sum() <= 140 and set(weights[kept]) == {4.0 if inverted else 1.0}
    scale = 1.0 if inverted else 0.25
    assert net.predict(x)[0, 0] == scale * weights.sum()


def test_dropout_stands_before_every_dense_layer_of_row_21():
    net, _ = nielsen(21)
    assert kinds(net)[6:] == [
        "Flatten",
        "Dropout",
        "Dense",
        "ReLU",
        "Dropout",
        "Dense",
        "ReLU",
        "Dropout",
        "Dense",
        "Softmax",
    ]


def test_row_22_is_a_vote_of_five_of_row_21():
    ensemble, recipe = nielsen(22, seed=2)
    assert (
        type(ensemble) is nn.Ensemble
        and ensemble.combine == "vote"
        and recipe.options["epochs"] == 40
    )
    assert [net.seed for net in ensemble.networks] == [10, 11, 12, 13, 14]
    np.testing.assert_array_equal(
        ensemble.networks[1].parameters, nielsen(21, seed=11)[0].parameters
    )


def test_options_go_to_the_network():
    net, recipe = nielsen(17, seed=4, dtype="float64", threads=1, penalty=nn.L1(0.5))
    assert (net.seed, net.dtype, net.threads, net.penalty) == (4, "float64", 1, (nn.L1(0.5),))
    assert recipe.options == {
        "loss": "cross_entropy",
        "optimizer": nn.SGD(0.03),
        "batch_size": 10,
        "epochs": 60,
    }


@pytest.mark.parametrize("row", [1, 4, 14, 15, 16, 17])
def test_training_goes_as_in_pytorch(row):
    """Twenty steps from the same start, in float64.

    The softmax's zeros are replaced, so that errors pass back at once.
    """
    torch = pytest.importorskip("torch")
    net, recipe = nielsen(row, dtype="float64", seed=1)
    shape = net.input_shape
    last = net.layers[-2]
    last.weights = np.random.default_rng(5).normal(0, 0.3, last.weights.shape)
    x, y = digits(200)
    parts = [
        {
            name: torch.tensor(values, requires_grad=True)
            for name, values in built.parameters.items()
        }
        for built in net.layers
    ]
    optimizer = torch.optim.SGD(
        [part for own in parts for part in own.values()], lr=recipe.learning_rate
    )
    decay = recipe.penalty.scaled(200, 20) if recipe.penalty else 0.0
    bits, functional = torch.eye(10, dtype=torch.float64)[y], torch.nn.functional
    for start in range(0, 200, 10):
        h = torch.tensor(x[start : start + 10].transpose(0, 3, 1, 2))
        h = h.reshape(10, -1) if len(shape) == 1 else h
        for built, own in zip(net.layers[:-1], parts, strict=False):
            kind = type(built.layer).__name__
            if kind == "Conv2D":
                h = functional.conv2d(h, own["weights"].permute(3, 2, 0, 1), own["bias"])
            elif kind == "MaxPool2D":
                h = functional.max_pool2d(h, 2)
            elif kind == "Flatten":
                h = h.permute(0, 2, 3, 1).reshape(10, -1)
            elif kind == "Dense":
                h = h @ own["weights"] + own["bias"]
            else:
                h = {"Sigmoid": torch.sigmoid, "ReLU": torch.relu}[kind](h)
        target = bits[start : start + 10]
        if recipe.loss == "cross_entropy":
            loss = functional.cross_entropy(h, target)
        elif recipe.loss == "quadratic":
            loss = 0.5 * ((torch.sigmoid(h) - target) ** 2).sum(dim=1).mean()
        else:
            loss = functional.binary_cross_entropy_with_logits(h, target, reduction="sum") / 10
        loss = loss + 0.5 * decay * sum((own["weights"] ** 2).sum() for own in parts if own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.fit(x.reshape(200, *shape), y, **recipe.options | {"epochs": 1}, shuffle=False, verbose=0)
    for built, own in zip(net.layers, parts, strict=True):
        for name, values in own.items():
            np.testing.assert_allclose(
                built.parameters[name], values.detach().numpy(), rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("row", IMAGES)
def test_every_weight_of_an_image_network_moves(row):
    """With dropout, too, errors reach the first layer.

    What remains are maps that no image makes positive.
    """
    net, recipe = nielsen(row)
    before = [
        {name: values.copy() for name, values in built.parameters.items()} for built in net.layers
    ]
    history = net.fit(*digits(300), **recipe.options | {"epochs": 2}, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for built, own in zip(net.layers, before, strict=True):
        for name, values in own.items():
            assert (built.parameters[name] != values).mean() > 0.2, f"{built}, {name}"
