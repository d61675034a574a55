"""Train ten different networks from fixed seeds and print a hash of what each has become.

    python -m benchmarks.trajectories

Two versions of the package that print the same hashes on one machine do the same arithmetic, bit
for bit: layers, losses, optimisers and penalties take part, in both precisions, with augmented
images, dropout masks and running means. A change that is meant to leave the arithmetic alone is
checked by running this before and after it. Another processor may round differently.
"""

import hashlib

import numpy as np

import numbanet as nn

RNG = np.random.default_rng(11)
VECTORS = RNG.normal(size=(203, 331)).astype(np.float32)
BYTES = RNG.integers(0, 256, (90, 784), np.uint8)
IMAGES = RNG.random((70, 28, 28, 1)).astype(np.float32)
COLOURS = RNG.random((45, 11, 13, 4))
SEQUENCES = RNG.normal(size=(60, 21, 4))
LABELS = RNG.integers(0, 10, 203)
REALS = RNG.normal(size=(203, 3))


def pixels():
    """784-30-10 as in Nielsen's book: bytes, small batches, a penalty divided by the samples."""
    layers = [
        nn.Rescale(1 / 255),
        nn.Dense(30, activation="sigmoid", initializer="normal"),
        nn.Dense(10, activation="sigmoid"),
    ]
    net = nn.Sequential(layers, 784, seed=1, penalty=nn.L2(5.0, per="sample"))
    net.fit(
        BYTES,
        LABELS[:90],
        loss="quadratic",
        optimizer=nn.SGD(0.5),
        batch_size=10,
        epochs=3,
        verbose=0,
    )
    return net, BYTES


def wide():
    """Two wide layers with dropout, Adam, a short last batch."""
    layers = [
        nn.Dense(150, activation="relu"),
        nn.Dropout(0.3),
        nn.Dense(140, activation="tanh"),
        nn.Dense(10, activation="softmax"),
    ]
    net = nn.Sequential(layers, 331, seed=2)
    net.fit(VECTORS, LABELS, optimizer=nn.Adam(0.002), batch_size=64, epochs=3, verbose=0)
    return net, VECTORS


def mixed():
    """An activation of its own for every neuron, Huber's loss, RMSprop with momentum, float64."""
    kinds = ["relu", "relu", nn.LeakyReLU(0.2), "tanh", "sigmoid", "identity", "tanh"]
    net = nn.Sequential(
        [nn.Dense(7, activation=kinds), nn.LayerNorm(), nn.Dense(3)], 331, "float64", seed=3
    )
    net.fit(
        VECTORS,
        REALS,
        loss=nn.Huber(0.7),
        optimizer=nn.RMSprop(0.003, momentum=0.5),
        batch_size=17,
        epochs=3,
        verbose=0,
    )
    return net, VECTORS


def lenet():
    """LeNet-5: the convolution with channels first, max-pooling, Adam."""
    net = nn.models.lenet5(seed=4)
    net.fit(IMAGES, LABELS[:70], optimizer=nn.Adam(), batch_size=32, epochs=3, verbose=0)
    return net, IMAGES


def geometries():
    """Convolutions with stride, dilation, groups and uneven padding; pooling; Nesterov; float64."""
    layers = [
        nn.Conv2D(6, (3, 2), stride=(1, 2), padding=((1, 0), (2, 1)), activation=nn.LeakyReLU(0.1)),
        nn.Conv2D(8, 3, dilation=(2, 1), groups=2, padding="same", bias=False),
        nn.AvgPool2D(2, stride=1),
        nn.ReLU(),
        nn.MaxPool2D(3, stride=2, padding=1),
        nn.Flatten(),
        nn.Dense(3),
    ]
    net = nn.Sequential(
        layers, (11, 13, 4), "float64", seed=5, penalty=[nn.L1(1e-4), nn.L2(1e-3, per="batch")]
    )
    net.fit(
        COLOURS,
        REALS[:45],
        loss="mean_squared_error",
        optimizer=nn.SGD(0.05, momentum=0.8, nesterov=True),
        batch_size=8,
        epochs=4,
        verbose=0,
    )
    return net, COLOURS


def norms():
    """Batch and layer normalisation, the L2 norm of windows, AdamW."""
    layers = [
        nn.Conv2D(5, 3),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.LpPool2D(2),
        nn.LayerNorm(),
        nn.ZeroPadding2D(1),
        nn.Conv2D(4, 3),
        nn.BatchNorm(momentum=0.3),
        nn.Tanh(),
        nn.GlobalAvgPool2D(),
        nn.Dense(4),
        nn.BatchNorm(),
        nn.Softmax(),
    ]
    net = nn.Sequential(layers, (11, 13, 4), seed=6)
    net.fit(COLOURS, LABELS[:45] % 4, optimizer=nn.AdamW(0.003), batch_size=12, epochs=4, verbose=0)
    return net, COLOURS


def augmented():
    """Images changed on the way in, in every manner, momentum."""
    augment = nn.Augment(
        shift=(2, 1),
        rotation=15,
        zoom=0.1,
        shear=0.1,
        flip_vertical=True,
        flip_horizontal=True,
        brightness=0.2,
        noise=0.05,
        cutout=5,
    )
    layers = [
        nn.Conv2D(4, 5, activation="sigmoid"),
        nn.MaxPool2D(2),
        nn.Conv2D(5, 3),
        nn.GlobalMaxPool2D(),
        nn.Dense(1),
        nn.Sigmoid(),
    ]
    net = nn.Sequential(layers, (28, 28, 1), seed=7)
    net.fit(
        IMAGES,
        LABELS[:70] % 2,
        optimizer=nn.SGD(0.1, momentum=0.9),
        batch_size=16,
        epochs=3,
        augment=augment,
        verbose=0,
    )
    return net, IMAGES


def sequences():
    """Convolution and pooling over sequences, the mean absolute error, Adagrad, float64."""
    layers = [
        nn.Conv1D(6, 4, dilation=2, padding="same", activation="tanh"),
        nn.MaxPool1D(2),
        nn.Conv1D(5, 3, groups=1),
        nn.AvgPool1D(2),
        nn.Flatten(),
        nn.Dense(3, bias=False, penalty=nn.L1(1e-3)),
    ]
    net = nn.Sequential(layers, (21, 4), "float64", seed=8)
    net.fit(
        SEQUENCES,
        REALS[:60],
        loss="mean_absolute_error",
        optimizer="adagrad",
        batch_size=7,
        epochs=4,
        verbose=0,
    )
    return net, SEQUENCES


def long_batches():
    """A small network and one long batch: gradients as sums over chunks of the batch."""
    layers = [nn.Dense(64, activation="tanh"), nn.Dense(64, activation="tanh"), nn.Dense(3)]
    net = nn.Sequential(layers, 8, seed=9)
    x, y = np.tile(VECTORS[:, :8], (11, 1)), np.tile(REALS, (11, 1))
    net.fit(x, y, optimizer=nn.Adam(), batch_size=None, epochs=6, verbose=0)
    return net, x


def few_samples():
    """Large layers and small batches: dense backward by dot products; rows of probabilities."""
    layers = [
        nn.Dense(97, activation="relu"),
        nn.Dense(90, activation="sigmoid"),
        nn.Dense(10, activation="softmax"),
    ]
    net = nn.Sequential(layers, 331, "float64", seed=10)
    y = np.eye(10)[LABELS] * 0.9 + 0.01
    net.fit(VECTORS, y, optimizer=nn.SGD(0.1), batch_size=12, epochs=2, verbose=0)
    return net, VECTORS


NETWORKS = (
    pixels,
    wide,
    mixed,
    lenet,
    geometries,
    norms,
    augmented,
    sequences,
    long_batches,
    few_samples,
)


def digest(net, x) -> str:
    """A hash of all parameters, running means, the optimiser's state, outputs and a gradient."""
    parts = [
        net.parameters,
        *(values for layer in net.layers for values in layer.buffers.values()),
        net.optimizer_state,
        net.predict(x),
    ]
    parts.append(net.gradient(x[:9], net.predict(x[:9])))
    content = hashlib.sha256()
    for part in parts:
        assert np.isfinite(part).all()
        content.update(np.ascontiguousarray(part))
    return content.hexdigest()[:16]


if __name__ == "__main__":
    for build in NETWORKS:
        print(f"{build.__name__:14}{digest(*build())}  {build.__doc__.split(':')[0].split('.')[0]}")
