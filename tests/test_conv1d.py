"""Convolution and pooling over sequences: against sums by hand and PyTorch, and their errors."""

import numpy as np
import pytest

import numbanet as nn

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "stride": 2, "padding": 2},
    {"kernel_size": 4, "padding": (1, 3), "dilation": 2},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 2, "groups": 2, "stride": 3},
    {"kernel_size": 5, "groups": 4, "padding": "same"},
]
POOLS = [
    {},
    {"size": 3, "stride": 1},
    {"size": 4, "stride": 3, "padding": 2},
    {"size": 3, "stride": 2, "padding": "same"},
]
CHANNELS, FILTERS, LENGTH = 4, 8, 13


def text(options):
    return " ".join(f"{key} {value}" for key, value in options.items()) or "default"


def network(layer, shape=(LENGTH, CHANNELS), **options):
    net = nn.Sequential([layer, nn.Flatten()], shape, "float64", seed=3, **options)
    if "bias" in net.layers[0].parameters:
        net.layers[0].bias = np.random.default_rng(1).normal(size=net.layers[0].bias.shape)
    return net


def sequences(samples=5, shape=(LENGTH, CHANNELS)):
    return np.random.default_rng(2).normal(size=(samples, *shape))


def sides(options, size):
    """Zeros to the left and to the right."""
    padding = options.get("padding", "valid")
    if padding == "valid":
        return 0, 0
    if padding == "same":
        stride = options.get("stride") or 1
        missing = max(
            0,
            (-(-LENGTH // stride) - 1) * stride
            + (size - 1) * options.get("dilation", 1)
            + 1
            - LENGTH,
        )
        return missing // 2, missing - missing // 2
    return padding if isinstance(padding, tuple) else (padding, padding)


def by_hand(x, weights, bias, options):
    stride, dilation, groups = (options.get(name, 1) for name in ("stride", "dilation", "groups"))
    size, seen, filters = weights.shape
    x = np.pad(x, ((0, 0), sides(options, size), (0, 0)))
    places = (x.shape[1] - (size - 1) * dilation - 1) // stride + 1
    z = np.zeros((len(x), places, filters)) + bias
    for t in range(places):
        for o in range(filters):
            first = o // (filters // groups) * seen
            for s in range(size):
                z[:, t, o] += (
                    x[:, t * stride + s * dilation, first : first + seen] @ weights[s, :, o]
                )
    return z


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=text)
def test_a_convolution_is_the_sum_by_hand(options):
    net, x = network(nn.Conv1D(FILTERS, **options)), sequences()
    built = net.layers[0]
    wanted = by_hand(x, built.weights, built.bias if "bias" in built.parameters else 0, options)
    assert built.weights.shape == (
        options["kernel_size"],
        CHANNELS // options.get("groups", 1),
        FILTERS,
    )
    assert built.output_shape == wanted.shape[1:]
    np.testing.assert_allclose(net.predict(x).reshape(wanted.shape), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=text)
def test_a_convolution_and_its_gradient_are_pytorch_s(options):
    torch = pytest.importorskip("torch")
    net, x = network(nn.Conv1D(FILTERS, **options)), sequences()
    built = net.layers[0]
    parts = {
        name: torch.tensor(values, requires_grad=True) for name, values in built.parameters.items()
    }
    padded = torch.nn.functional.pad(
        torch.tensor(x.transpose(0, 2, 1)), sides(options, options["kernel_size"])
    )
    z = torch.nn.functional.conv1d(
        padded,
        parts["weights"].permute(2, 1, 0),
        parts.get("bias"),
        options.get("stride", 1),
        0,
        options.get("dilation", 1),
        options.get("groups", 1),
    )
    wanted = z.permute(0, 2, 1).reshape(len(x), -1)
    np.testing.assert_allclose(net.predict(x), wanted.detach().numpy(), rtol=1e-12, atol=1e-12)
    y = np.random.default_rng(4).normal(size=wanted.shape)
    (0.5 * (wanted - torch.tensor(y)) ** 2).sum(dim=1).mean().backward()
    gradient = np.concatenate([parts[name].grad.numpy().ravel() for name in built.parameters])
    np.testing.assert_allclose(
        net.gradient(x, y, loss="quadratic"), gradient, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("options", POOLS, ids=text)
@pytest.mark.parametrize(
    ("layer", "take"), [(nn.MaxPool1D, np.max), (nn.AvgPool1D, np.mean)], ids=["max", "mean"]
)
def test_a_pool_is_the_one_by_hand(layer, take, options):
    x = sequences()
    net = network(layer(**options))
    size = options.get("size", 2)
    stride = options.get("stride", size)
    left, right = sides({**options, "stride": stride}, size)
    starts = range(-left, LENGTH + right - size + 1, stride)
    wanted = np.stack(
        [take(x[:, max(0, t) : min(LENGTH, t + size)], axis=1) for t in starts], axis=1
    )
    assert net.layers[0].output_shape == wanted.shape[1:]
    np.testing.assert_allclose(net.predict(x).reshape(wanted.shape), wanted, rtol=1e-13)


def test_a_sequence_is_an_image_of_height_one():
    x, options = (
        sequences(),
        {"stride": 2, "padding": "same", "activation": "relu", "initializer": "he"},
    )
    one = network(nn.Conv1D(6, 3, **options))
    two = network(nn.Conv2D(6, (1, 3), **{**options, "stride": (1, 2)}), (1, LENGTH, CHANNELS))
    two.parameters = one.parameters
    assert (one.predict(x) == two.predict(x[:, None])).all()


def test_it_learns_where_a_bump_stands(tmp_path):
    generator = np.random.default_rng(5)
    y = generator.integers(0, 2, 300)
    x = 0.3 * generator.normal(size=(300, 20, 1)).astype("float32")
    for i, label in enumerate(y):  # a rising or a falling edge, somewhere
        place = generator.integers(2, 16)
        x[i, place : place + 2, 0] += (-1.5, 1.5) if label else (1.5, -1.5)
    layers = [
        nn.Conv1D(6, 3, activation="relu", penalty=nn.L2(1e-4)),
        nn.MaxPool1D(2),
        nn.Conv1D(6, 3, activation="relu"),
        nn.AvgPool1D(7),
        nn.Flatten(),
        nn.Dense(1, activation="sigmoid"),
    ]
    net = nn.Sequential(layers, (20, 1), seed=1)
    net.fit(x[:200], y[:200], optimizer=nn.Adam(0.01), epochs=40, verbose=0)
    assert net.evaluate(x[200:], y[200:])["accuracy"] > 0.95
    net.save(tmp_path / "edges.safetensors")
    assert (nn.load(tmp_path / "edges.safetensors").predict(x) == net.predict(x)).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Conv1D(0, 3), "Conv1D: filters must be an integer of at least 1, got 0"),
        (
            lambda: nn.Conv1D(3, (3, 3)),
            r"kernel_size must be an integer of at least 1, got \(3, 3\)",
        ),
        (lambda: nn.Conv1D(3, 3, stride=1.5), "stride must be an integer"),
        (
            lambda: nn.Conv1D(3, 3, padding="full"),
            r'padding is "valid", "same", a number or \(left, right\), not \'full\'',
        ),
        (
            lambda: nn.Conv1D(3, 3, padding=(1, -1)),
            "padding must be an integer of at least 0, got -1",
        ),
        (lambda: nn.MaxPool1D(0), "MaxPool1D: size must be"),
        (lambda: nn.AvgPool1D(2, padding=2), "AvgPool1D: padding 2 is as large as the window 2"),
        (
            lambda: network(nn.Conv1D(3, 3), (5,)),
            r"Conv1D expects a sequence \(length, channels\), got \(5,\); "
            r".*input_shape=\(5, 1\)",
        ),
        (
            lambda: network(nn.MaxPool1D(), (5, 5, 1)),
            r"MaxPool1D expects a sequence \(length, channels\), got \(5, 5, 1\)$",
        ),
        (
            lambda: network(nn.Conv1D(3, 4, dilation=2), (6, 1)),
            "a window 7 long does not fit an input 6 long, padding included",
        ),
        (
            lambda: network(nn.MaxPool1D(7), (6, 1)),
            "MaxPool1D: a window 7 long does not fit an input 6 long",
        ),
        (lambda: network(nn.Conv1D(3, 2, groups=2), (6, 4)), "2 groups do not divide 3 filters"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
