"""The gradient is the derivative of the loss: central differences in float64.

The configurations are random.
"""

import numpy as np
import pytest
from checkers import Kink, gradient_error, training_gradient_error

import numbanet as nn
from examples import (
    LOSSES,
    PENALTIES,
    TRAINABLE,
    TWO_PENALTIES,
    inputs,
    loss_named,
    named,
    network,
    targets,
)

TOLERANCE = 1e-6
CONFIGURATIONS = [(example, loss) for example in TRAINABLE for loss in LOSSES]


def error_away_from_kinks(example, loss, penalty, samples, width, seed, measure=gradient_error):
    """The gradient's error at the first point drawn where the loss is smooth."""
    for draw in range(40):
        net = network(example, loss, width=width, penalty=penalty, seed=seed + 1000 * draw)
        x, y = inputs(example, samples, seed + 1000 * draw), targets(loss, samples, width, seed)
        try:
            return measure(net, x, y, loss.loss)
        except Kink:
            continue
    raise AssertionError("no smooth point found")


@pytest.mark.parametrize(
    "number",
    range(len(CONFIGURATIONS)),
    ids=[f"{example.name}, {loss.name}" for example, loss in CONFIGURATIONS],
)
def test_the_gradient_agrees_with_differences(number):
    example, loss = CONFIGURATIONS[number]
    generator = np.random.default_rng(number)
    penalty = PENALTIES[generator.integers(len(PENALTIES))]
    samples, width = (
        int(generator.integers(1, 8)),
        int(generator.integers(1 if loss.targets in ("real", "unit") else 2, 6)),
    )
    assert error_away_from_kinks(example, loss, penalty, samples, width, number) <= TOLERANCE


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_the_gradient_that_training_applies_agrees_with_differences(example):
    error = error_away_from_kinks(
        example,
        loss_named("mean squared error"),
        TWO_PENALTIES,
        7,
        3,
        len(example.name),
        training_gradient_error,
    )
    assert error <= TOLERANCE


RANDOM_OR_OF_THE_BATCH = [
    [nn.Dense(5, activation="tanh"), nn.Dropout(0.4), nn.Dense(2)],
    [nn.Dense(5), nn.BatchNorm(), nn.Dense(2, activation="tanh")],
    [nn.Reshape((4, 1)), nn.Conv1D(3, 2), nn.BatchNorm(), nn.Flatten(), nn.Dropout(0.3)],
]


@pytest.mark.parametrize("layers", RANDOM_OR_OF_THE_BATCH, ids=["dropout", "batch", "both"])
def test_the_gradient_in_training_mode_is_that_of_the_loss_and_of_a_step(layers):
    net = nn.Sequential(layers, 4, "float64", seed=3, penalty=nn.L2(0.1, per="sample"))
    net.epoch, generator = 5, np.random.default_rng(0)
    x, y = generator.normal(size=(7, 4)), generator.normal(size=(7, *net.output_shape))
    memory = net.memory.copy()
    assert gradient_error(net, x, y, "quadratic", training=True) <= TOLERANCE
    value = net.loss(x, y, "quadratic", training=True)
    gradient = net.gradient(x, y, "quadratic", training=True)
    assert not np.allclose(gradient, net.gradient(x, y, "quadratic"))
    assert value != net.loss(x, y, "quadratic")
    np.testing.assert_array_equal(net.memory, memory)
    for rate in (0.0, 1.0):
        net.epoch, net.memory[:] = 5, memory
        step = {"optimizer": nn.SGD(rate), "batch_size": None, "shuffle": False, "verbose": 0}
        fitted = net.fit(x, y, loss="quadratic", **step)
        if rate == 0:  # fit adds the penalty of the parameters behind the step
            assert value == pytest.approx(fitted.history["loss"][0], rel=1e-14)
    np.testing.assert_allclose(memory[: gradient.size] - net.parameters, gradient, atol=1e-14)


def test_a_gradient_in_training_mode_follows_seed_and_epoch():
    net, x, y = nn.Sequential([nn.Dropout(0.5), nn.Dense(1)], 20), np.ones((6, 20)), np.ones((6, 1))
    first = net.gradient(x, y, training=True)
    np.testing.assert_array_equal(net.gradient(x, y, training=True), first)
    net.epoch = 1
    assert not np.array_equal(net.gradient(x, y, training=True), first)


def test_the_statistics_of_a_single_sample_are_refused():
    net = nn.Sequential([nn.Dense(3), nn.BatchNorm(), nn.Dense(1)], 4)
    for call in (net.gradient, net.loss):
        with pytest.raises(ValueError, match=r"BatchNorm needs at least 2 samples .* more samples"):
            call(np.ones((1, 4)), np.ones((1, 1)), training=True)
        with pytest.raises(ValueError, match="training must be True or False, got 1"):
            call(np.ones((1, 4)), np.ones((1, 1)), training=1)


def test_there_are_enough_configurations():
    assert len(CONFIGURATIONS) >= 100


# --- kinks -------------------------------------------------------------------------------------


def slopes_at(activation, z):
    """The derivative of a network of one unit, by its bias, at the weighted inputs z."""
    found = []
    for value in z:
        net = nn.Sequential([nn.Dense(1, activation=activation)], 1, "float64")
        net.layers[0].weights, net.layers[0].bias = 1.5, value
        outputs = net.predict(np.zeros((1, 1)))
        # the derivative of the loss there is 1
        found.append(net.gradient(np.zeros((1, 1)), outputs - 1, "quadratic")[1])
    return found


def test_relu_has_slope_nought_at_nought():
    assert slopes_at("relu", [0.0, -0.0, 1e-300, -1e-300]) == [0, 0, 1, 0]


def test_leaky_relu_has_its_slope_at_nought():
    assert slopes_at(nn.LeakyReLU(0.25), [0.0, 1e-300, -1e-300]) == [0.25, 1, 0.25]


def test_a_mixed_layer_has_the_same_slopes_at_nought():
    net = nn.Sequential([nn.Dense(2, activation=["relu", nn.LeakyReLU(0.25)])], 1, "float64")
    net.parameters = [1.5, -0.5, 0.0, 0.0]
    assert net.gradient(np.zeros((1, 1)), -np.ones((1, 2)), "quadratic").tolist()[2:] == [0, 0.25]


def bias_gradient(loss, bias, target):
    net = nn.Sequential([nn.Dense(1)], 1, "float64")
    net.parameters = [0.7, bias]
    return net.gradient(np.zeros((1, 1)), np.array([[target]]), loss)[1]


def test_the_absolute_error_pulls_nowhere_where_it_is_nought():
    assert [bias_gradient("mean_absolute_error", a, 0.5) for a in (0.5, 0.75, 0.25)] == [0, 1, -1]


def test_a_quantile_pulls_by_its_level_and_nowhere_where_it_is_met():
    found = [bias_gradient(nn.Quantile(0.75), a, 0.5) for a in (0.5, 0.75, 0.25)]
    assert found == [0, 0.25, -0.75]


def test_huber_is_smooth_where_its_parts_meet():
    assert [bias_gradient(nn.Huber(0.25), a, 0.5) for a in (0.75, 0.25, 0.625, 3.0, -3.0)] == [
        0.25,
        -0.25,
        0.125,
        0.25,
        -0.25,
    ]


def test_a_penalty_does_not_pull_a_weight_that_is_nought():
    net = nn.Sequential([nn.Dense(3)], 1, "float64", penalty=[nn.L1(0.5), nn.L2(0.25)])
    net.parameters = [0.0, 2.0, -2.0, 1.0, 1.0, 1.0]
    found = net.gradient(np.zeros((1, 1)), np.ones((1, 3)), "quadratic")
    assert found.tolist() == [0, 1, -1, 0, 0, 0]
