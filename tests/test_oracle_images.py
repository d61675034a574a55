"""PyTorch as the oracle for images: convolution, pooling, normalisation, LeNet-5."""

import itertools

import numpy as np
import pytest

import numbanet as nn

torch = pytest.importorskip("torch")
functional = torch.nn.functional

GEOMETRIES = [
    case
    for k, case in enumerate(
        itertools.product(
            [(3, 3), (1, 1), (5, 2), (2, 3)],  # kernel
            [(1, 1), (2, 2), (3, 1)],  # stride
            [(0, 0), (1, 2)],  # padding
            [(1, 1), (2, 1), (3, 2)],  # dilation
            [
                (1, 1, 5),
                (1, 3, 20),
                (2, 4, 6),
                (4, 4, 4),
                (3, 3, 6),
            ],  # groups, channels in, filters
            [(9, 11), (12, 8)],  # image
        )
    )
    if k % 7 == 3
    and all(
        (n - 1) * d + 1 <= size + 2 * p
        for n, d, size, p in zip(case[0], case[3], case[5], case[2], strict=True)
    )
]


def tensor(array):
    return torch.tensor(np.asarray(array, np.float64))


def convolution(built):
    """PyTorch's weights and bias for one of our convolutions, to be differentiated."""
    weights = tensor(built.weights).permute(3, 2, 0, 1).contiguous().requires_grad_()
    return weights, tensor(built.bias).requires_grad_()


def flat_gradient(*pairs):
    """Gradients of (weights, bias) pairs in our order."""
    parts = []
    for weights, bias in pairs:
        parts += [weights.grad.permute(2, 3, 1, 0).reshape(-1), bias.grad]
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_a_convolution_and_its_gradients_are_pytorchs(case):
    kernel, stride, padding, dilation, (groups, c_in, filters), (height, width) = case
    generator = np.random.default_rng(1)
    layers = [
        nn.Conv2D(c_in, 1, bias_initializer="normal"),
        nn.Conv2D(filters, kernel, stride, padding, dilation, groups, bias_initializer="normal"),
        nn.Flatten(),
    ]
    net = nn.Sequential(layers, (height, width, c_in), dtype="float64")
    x = generator.normal(size=(3, height, width, c_in))
    first, second = convolution(net.layers[0]), convolution(net.layers[1])
    z = functional.conv2d(tensor(x).permute(0, 3, 1, 2), *first)
    z = functional.conv2d(
        z, *second, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    outputs = z.permute(0, 2, 3, 1).reshape(3, -1)
    np.testing.assert_allclose(net.predict(x), outputs.detach().numpy(), rtol=0, atol=1e-10)
    y = generator.normal(size=outputs.shape)
    (0.5 * (outputs - tensor(y)) ** 2).sum(1).mean().backward()
    expected = flat_gradient(first, second)
    np.testing.assert_allclose(
        net.gradient(x, y, "quadratic"), expected, rtol=0, atol=1e-10 * abs(expected).max()
    )


def test_there_are_enough_geometries():
    assert len(GEOMETRIES) >= 80


POOLS = {
    "max": (lambda: nn.MaxPool2D(2), lambda z: functional.max_pool2d(z, 2)),
    "max that overlaps": (lambda: nn.MaxPool2D(3, 2), lambda z: functional.max_pool2d(z, 3, 2)),
    "max with padding": (
        lambda: nn.MaxPool2D(3, 2, 1),
        lambda z: functional.max_pool2d(z, 3, 2, 1),
    ),
    "mean": (
        lambda: nn.AvgPool2D((2, 3), padding=1),
        lambda z: functional.avg_pool2d(z, (2, 3), padding=1, count_include_pad=False),
    ),
    "l2": (lambda: nn.LpPool2D(2), lambda z: functional.lp_pool2d(z, 2, 2)),
    "l3": (lambda: nn.LpPool2D(2, p=3.0), lambda z: functional.lp_pool2d(z.abs(), 3.0, 2)),
    "global mean": (lambda: nn.GlobalAvgPool2D(), lambda z: z.mean((2, 3), keepdim=True)),
    "global max": (lambda: nn.GlobalMaxPool2D(), lambda z: z.amax((2, 3), keepdim=True)),
}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", POOLS)
def test_a_pooling_and_its_gradient_are_pytorchs(name, channels):
    generator = np.random.default_rng(2)
    pool, theirs = POOLS[name]
    net = nn.Sequential(
        [nn.Conv2D(5, 3), pool(), nn.Flatten()], (11, 12, channels), dtype="float64"
    )
    x = generator.normal(size=(3, 11, 12, channels))
    pair = convolution(net.layers[0])
    outputs = (
        theirs(functional.conv2d(tensor(x).permute(0, 3, 1, 2), *pair))
        .permute(0, 2, 3, 1)
        .reshape(3, -1)
    )
    np.testing.assert_allclose(net.predict(x), outputs.detach().numpy(), rtol=0, atol=1e-10)
    y = generator.normal(size=outputs.shape)
    (0.5 * (outputs - tensor(y)) ** 2).sum(1).mean().backward()
    expected = flat_gradient(pair)
    np.testing.assert_allclose(
        net.gradient(x, y, "quadratic"), expected, rtol=0, atol=1e-10 * abs(expected).max()
    )


class LeNet(torch.nn.Module):
    """LeNet-5 with our weights. Our images are flattened channels last."""

    def __init__(self, net):
        super().__init__()
        built = [one for one in net.layers if one.n_parameters]
        self.convolutions = torch.nn.ParameterList(
            [p for one in built[:2] for p in convolution(one)]
        )
        self.dense = torch.nn.ParameterList(
            [p for one in built[2:] for p in (tensor(one.weights), tensor(one.bias))]
        )

    def forward(self, x):
        z = x.permute(0, 3, 1, 2)
        for k in (0, 2):
            z = functional.max_pool2d(functional.conv2d(z, *self.convolutions[k : k + 2]).relu(), 2)
        z = z.permute(0, 2, 3, 1).reshape(len(x), -1)
        for k in (0, 2, 4):
            z = z @ self.dense[k] + self.dense[k + 1]
            z = z.relu() if k < 4 else z
        return z

    def vector(self):
        """All parameters in our order."""
        parts = [
            p.permute(2, 3, 1, 0).reshape(-1) if p.dim() == 4 else p.reshape(-1)
            for p in (*self.convolutions, *self.dense)
        ]
        return torch.cat(parts).detach().numpy()


def test_lenet_takes_pytorchs_path_for_a_hundred_steps():
    generator = np.random.default_rng(3)
    x, y = generator.random((400, 28, 28, 1)), generator.integers(0, 10, 400)
    net = nn.models.lenet5(dtype="float64")
    theirs = LeNet(net)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    for step in range(100):
        k = step % 25 * 16
        optimizer.zero_grad()
        functional.cross_entropy(
            theirs(tensor(x[k : k + 16])), torch.tensor(y[k : k + 16])
        ).backward()
        optimizer.step()
    net.fit(
        x,
        y,
        optimizer=nn.SGD(0.05, momentum=0.9),
        batch_size=16,
        epochs=4,
        shuffle=False,
        verbose=0,
    )
    expected = theirs.vector()
    np.testing.assert_allclose(net.parameters, expected, rtol=0, atol=1e-8 * abs(expected).max())


def test_batch_and_layer_norm_take_pytorchs_path():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(60, 4, 3, 9)), generator.normal(size=(60, 3))
    net = nn.Sequential(
        [nn.BatchNorm(momentum=0.3), nn.LayerNorm(), nn.Flatten(), nn.Dense(3)],
        (4, 3, 9),
        dtype="float64",
    )
    batch, layer = torch.nn.BatchNorm2d(9, momentum=0.3).double(), torch.nn.LayerNorm(9).double()
    weights, bias = (
        tensor(net.layers[3].weights).requires_grad_(),
        tensor(net.layers[3].bias).requires_grad_(),
    )
    optimizer = torch.optim.SGD([*batch.parameters(), *layer.parameters(), weights, bias], lr=0.01)

    def theirs(x):
        return (
            layer(batch(tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).reshape(len(x), -1)
            @ weights
            + bias
        )

    for step in range(20):
        k = step % 5 * 12
        optimizer.zero_grad()
        (0.5 * (theirs(x[k : k + 12]) - tensor(y[k : k + 12])) ** 2).sum(1).mean().backward()
        optimizer.step()
    net.fit(
        x,
        y,
        loss="quadratic",
        optimizer=nn.SGD(0.01),
        batch_size=12,
        epochs=4,
        shuffle=False,
        verbose=0,
    )
    batch.eval()
    np.testing.assert_allclose(net.layers[0].mean, batch.running_mean.numpy(), rtol=1e-8)
    np.testing.assert_allclose(net.layers[0].variance, batch.running_var.numpy(), rtol=1e-8)
    np.testing.assert_allclose(net.predict(x), theirs(x).detach().numpy(), rtol=0, atol=1e-8)
