"""Learning rates that change: resumption, files, bad schedules."""

from dataclasses import dataclass

import numpy as np
import pytest

import numbanet as nn
from numbanet.nn import schedules
from numbanet.nn.schedules import Cosine, Exponential, StepDecay, WarmUp

X = np.random.default_rng(0).normal(size=(48, 5))
Y = X[:, :2] ** 2


def network():
    return nn.Sequential([nn.Dense(6, activation="tanh"), nn.Dense(2)], 5, "float64", seed=2)


def fit(net, schedule, epochs, **options):
    net.fit(X, Y, optimizer=nn.Adam(schedule), epochs=epochs, batch_size=9, verbose=0, **options)
    return net


@pytest.mark.parametrize(
    "schedule",
    [Cosine(0.02, 0.001, epochs=6), Exponential(0.02, 0.7), StepDecay(0.02, 2), WarmUp(0.02, 3)],
)
def test_a_resumed_training_goes_on_in_the_schedule(schedule, tmp_path):
    whole, parts = fit(network(), schedule, 6), fit(network(), schedule, 2)
    parts.save(tmp_path / "net")
    loaded = nn.load(tmp_path / "net")
    assert loaded.optimizer == nn.Adam(schedule)
    fit(loaded, loaded.optimizer.learning_rate, 4)
    assert loaded.parameters.tobytes() == whole.parameters.tobytes()


def test_the_rates_of_an_epoch():
    np.testing.assert_allclose(WarmUp(0.4, 2).epoch(0, 4, 9), 0.4 * np.arange(1, 5) / 8)
    np.testing.assert_allclose(WarmUp(0.4, 2).epoch(2, 4, 9), 0.4)
    np.testing.assert_allclose(StepDecay(1, 0.5, 0.5).epoch(1, 4, 9), [0.25, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(
        Cosine(1.0).epoch(3, 2, 4), (1 + np.cos([0.75 * np.pi, 0.875 * np.pi])) / 2
    )
    np.testing.assert_allclose(Cosine(1.0, 0.1, epochs=2).epoch(5, 2, 9), 0.1)
    np.testing.assert_allclose(WarmUp(Exponential(1.0, 0.5), 1).epoch(1, 1, 9), 0.5)


def test_a_later_fit_with_a_constant_rate_is_constant():
    net, other = fit(network(), Cosine(0.02), 1), network()
    other.parameters[:], other.optimizer_steps = net.parameters, net.optimizer_steps
    other.optimizer, other.optimizer_state = net.optimizer, net.optimizer_state.copy()
    other.epoch = net.epoch
    fit(net, 0.01, 2)
    fit(other, 0.01, 2)
    assert net.parameters.tobytes() == other.parameters.tobytes()


@dataclass(frozen=True)
class Wrong(schedules.Schedule):
    """A user's schedule that goes below zero, or is not a number."""

    value: float

    def values(self, t, step, end):
        return np.where(t < 1, 0.1, self.value)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_a_rate_that_is_no_rate_is_an_error_that_says_when(value):
    net = network()
    with pytest.raises(ValueError, match=f"gives a learning rate of {value} at epoch 1"):
        net.fit(X, Y, optimizer=nn.SGD(Wrong(value)), epochs=3, verbose=0)
    assert net.epoch == 1 and np.isfinite(net.parameters).all()


@pytest.mark.parametrize("given", ["fast", None, -0.1, np.nan, [0.1], lambda epoch: 0.1])
def test_what_is_neither_a_rate_nor_a_schedule(given):
    with pytest.raises(
        ValueError, match=r"learning_rate must be .* number of at least 0.* schedule"
    ):
        nn.Adam(given)
    with pytest.raises(ValueError, match="then must be"):
        WarmUp(given)


def test_lenet_on_the_command_line_falls_along_a_cosine():
    from numbanet.apps.cli import experiment

    chosen = experiment.resolve_settings("mnist", {"model": "lenet5"})
    assert experiment.build_optimizer(chosen) == nn.Adam(Cosine(0.002))
    plain = experiment.resolve_settings("mnist", {"model": "lenet5", "schedule": "constant"})
    assert experiment.build_optimizer(plain) == nn.Adam(0.002)
