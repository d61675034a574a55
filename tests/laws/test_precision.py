"""float32 and float64 do the same, to the rounding of float32."""

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from examples import (
    LAYERS,
    LOSSES,
    OPTIMIZERS,
    TRAINABLE,
    TWO_PENALTIES,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    targets,
)

ROUNDING = 32 * np.finfo(np.float32).eps
LOSS = loss_named("quadratic")


def both(example, loss=None, **arguments):
    """The same network in both precisions, from weights that float32 holds exactly."""
    single, double = (
        network(example, loss, dtype=dtype, **arguments) for dtype in ("float32", "float64")
    )
    double.parameters = single.parameters
    return single, double


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_outputs_agree(example):
    single, double = both(example)
    x = inputs(example, 33)
    found = single.predict(x)
    assert found.dtype == np.float32 and double.predict(x).dtype == np.float64
    close(found, double.predict(x), ROUNDING)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_gradients_agree(example):
    single, double = both(example, LOSS, penalty=TWO_PENALTIES)
    x, y = inputs(example, 9), targets(LOSS, 9)
    found = single.gradient(x, y, LOSS.loss)
    assert found.dtype == np.float32
    close(found, double.gradient(x, y, LOSS.loss), ROUNDING)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_losses_and_their_gradients_agree(loss):
    single, double = both(example_named("dense"), loss, width=4)
    x, y = inputs(example_named("dense"), 17), targets(loss, 17, 4)
    close(single.loss(x, y, loss.loss), double.loss(x, y, loss.loss), ROUNDING)
    close(single.gradient(x, y, loss.loss), double.gradient(x, y, loss.loss), ROUNDING)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_some_steps_agree(optimizer):
    single, double = both(example_named("two dense layers"), LOSS)
    x, y = inputs(example_named("two dense layers"), 24), targets(LOSS, 24)
    before = double.parameters.copy()
    for net in (single, double):
        net.fit(x, y, loss=LOSS.loss, optimizer=OPTIMIZERS[optimizer], batch_size=8, epochs=2)
    moved = np.abs(double.parameters - before).max()
    assert moved > 0.01
    assert np.abs(single.parameters - double.parameters).max() <= 64 * np.finfo(
        np.float32
    ).eps * max(1, moved)


@pytest.mark.parametrize("channels", [1, 3, 20, 64, 70])
def test_batch_norm_of_values_far_from_zero(channels):
    """Means and variances stay accurate where the mean is a thousand times the deviation."""
    rng = np.random.default_rng(channels)
    x = rng.normal(1000, 1, (40, 11, 9, channels)).astype(np.float32)
    x[0, 0, :5] = 0  # the first values are no measure of the others
    net = nn.Sequential([nn.BatchNorm(momentum=1.0), nn.Flatten(), nn.Dense(1)], x.shape[1:])
    net.fit(x, np.zeros((40, 1)), optimizer=nn.SGD(1e-9), batch_size=40, epochs=1, verbose=0)
    values = x.astype(np.float64).reshape(-1, channels)
    assert np.abs(net.layers[0].buffers["mean"] - values.mean(0)).max() < 1e-3
    assert np.abs(net.layers[0].buffers["variance"] / values.var(0, ddof=1) - 1).max() < 1e-5


@pytest.mark.parametrize("channels", [3, 20, 300])
def test_layer_norm_of_values_far_from_zero(channels):
    """A row is normalised as accurately as float32 holds its values."""
    x = np.random.default_rng(channels).normal(1000, 1, (50, channels)).astype(np.float32)
    x[:25, 0] = 0  # a first value that is no measure of the others
    values = x.astype(np.float64)
    mean, variance = values.mean(1, keepdims=True), values.var(1, keepdims=True)
    net = nn.Sequential([nn.LayerNorm()], channels)
    close(net.predict(x), (values - mean) / np.sqrt(variance + 1e-5), 1e-4)


def test_the_two_precisions_are_not_the_same_numbers():
    single, double = both(example_named("dense"))
    x = inputs(example_named("dense"), 33)
    assert (single.predict(x) != double.predict(x)).any()


def test_a_network_of_the_other_precision_reads_its_inputs_as_they_are():
    example = example_named("dense")
    for dtype in ("float32", "float64"):
        net = network(example, dtype=dtype)
        assert (
            net.predict(inputs(example, 5, dtype="float32"))
            == net.predict(inputs(example, 5, dtype="float64"))
        ).all()


def test_a_number_beyond_float32_is_refused_or_stays_in_float64():
    net = nn.Sequential([nn.Dense(1)], 1, "float64")
    net.parameters = [1e-200, 0.0]
    assert net.predict(np.array([[1e200]]))[0, 0] == pytest.approx(1, rel=1e-15)
