"""Learning rates that change: resumption, files, bad schedules."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest

import numbanet as nn
from numbanet.nn import schedules
from numbanet.nn.schedules import (
    Cosine,
    Exponential,
    Function,
    OneCycle,
    ReduceOnPlateau,
    StepDecay,
    WarmUp,
)
from numbanet.training.callbacks import Checkpoint

X = np.random.default_rng(0).normal(size=(48, 5))
Y = X[:, :2] ** 2


def network():
    return nn.Sequential([nn.Dense(6, activation="tanh"), nn.Dense(2)], 5, "float64", seed=2)


def fit(net, schedule, epochs, **options):
    net.fit(X, Y, optimizer=nn.Adam(schedule), epochs=epochs, batch_size=9, verbose=0, **options)
    return net


def falling(t):
    return 0.02 / (1 + t)


PLATEAU = ReduceOnPlateau(WarmUp(0.02, 2), "loss", factor=0.5, patience=2, min_delta=9)


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(0.02, 0.001, epochs=6),
        Exponential(0.02, 0.7),
        StepDecay(0.02, 2),
        WarmUp(0.02, 3),
        OneCycle(0.02, 6),
        Function(falling),
        PLATEAU,
    ],
)
def test_a_resumed_training_goes_on_in_the_schedule(schedule, tmp_path):
    whole, parts = fit(network(), schedule, 6), fit(network(), schedule, 2)
    parts.save(tmp_path / "net")
    loaded = nn.load(tmp_path / "net", custom={"falling": falling})
    assert loaded.optimizer == nn.Adam(schedule)
    fit(loaded, loaded.optimizer.learning_rate, 4)
    assert loaded.parameters.tobytes() == whole.parameters.tobytes()
    assert loaded.schedule_state == whole.schedule_state
    options = {"callbacks": Checkpoint(tmp_path / "folder"), "resume": tmp_path / "folder"}
    fit(network(), schedule, 3, **options)
    resumed = fit(network(), schedule, 6, **options)
    assert resumed.parameters.tobytes() == whole.parameters.tobytes()


def test_a_plateau_reduces_the_rate_and_another_schedule_begins_anew():
    net = fit(network(), PLATEAU, 6)
    reductions, best, _ = net.schedule_state
    assert reductions == 2 and best > 0
    rates = PLATEAU.epoch(6, 2, 9, net.schedule_state)
    np.testing.assert_allclose(rates, 0.25 * 0.02)
    fit(net, PLATEAU, 1)
    assert net.schedule_state[0] == 3
    fit(net, ReduceOnPlateau(0.02, "loss", patience=2), 1)
    assert net.schedule_state[0] == 0
    fit(net, 0.01, 1)
    assert net.schedule_state == ()


def test_halving_ends_the_training_at_a_fraction_of_the_rate():
    halving = ReduceOnPlateau(0.02, "loss", factor=0.5, patience=2, min_delta=9, stop_at=1 / 8)
    net, epochs = network(), []
    fit(net, halving, 50, callbacks=lambda epoch, logs, network: epochs.append(epoch))
    assert epochs == [1, 2, 3, 4, 5, 6, 7] and net.schedule_state[0] == 3
    said = "no epoch was trained: .* has ended by epoch 7"
    with pytest.warns(nn.NotLearningWarning, match=said) as caught:
        fit(net, halving, 5)
    assert net.epoch == 7 and caught[0].filename == __file__


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(0.02, epochs=2),
        OneCycle(0.02, epochs=2),
        WarmUp(OneCycle(0.02, epochs=2), 1),
        ReduceOnPlateau(OneCycle(0.02, epochs=2), "loss"),
    ],
)
def test_a_schedule_that_is_over_is_noticed_and_a_copy_begins_it_anew(schedule):
    net = fit(network(), schedule, 2)
    said = r"the learning rate is (0|at most \S+): .* has ended by epoch 2, .* train network\[:\]"
    with pytest.warns(nn.NotLearningWarning, match=said) as caught:
        fit(net, schedule, 1)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(net[:], schedule, 1)


def test_a_reduction_that_is_limited_counts_for_the_end():
    schedule = ReduceOnPlateau(0.1, "loss", 0.5, 1, min_delta=9, least=0.08, stop_at=0.25)
    net = fit(network(), schedule, 9)
    assert net.epoch == 3 and schedule.epoch(3, 1, 9, net.schedule_state) == 0.08


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (ReduceOnPlateau(0.1), ValueError, "no metric 'val_loss' to watch.*pass validation_data"),
        (ReduceOnPlateau(0.1, "los"), ValueError, "no metric 'los' to watch, .* mean 'loss'"),
        (Function(lambda t: -1), ValueError, "Function.* gives a learning rate of -1.0 at epoch 0"),
        (Function(lambda t: None), TypeError, "returned None at epoch 0; a rate is a number"),
        (Function(lambda k: "x", "step"), TypeError, "returned 'x' at step 0; a rate is a number"),
    ],
)
def test_a_schedule_that_fails_leaves_the_network_as_it_was(schedule, error, message):
    net = network()
    before = net.parameters.copy()
    with pytest.raises(error, match=message):
        fit(net, schedule, 3)
    assert (net.epoch, net.optimizer, net.schedule_state) == (0, None, ())
    assert net.parameters.tobytes() == before.tobytes()


def test_a_function_without_a_name_cannot_be_saved(tmp_path):
    net = fit(network(), Function(lambda t: 0.1), 1)
    with pytest.raises(ValueError, match=r"<lambda>, a function without a name at the top of a"):
        net.save(tmp_path / "net")
    net = fit(network(), Function(falling), 1)
    net.save(tmp_path / "net")
    with pytest.raises(ValueError, match="unknown function 'falling'; pass custom="):
        nn.load(tmp_path / "net")


@pytest.mark.parametrize("state", [[1], [0.5, None, 0], [0, None, -1], "x", [0, [], 0]])
def test_a_file_with_a_wrong_state_is_refused(state, tmp_path):
    net = fit(network(), PLATEAU, 1)
    config = {**net.to_config(), "schedule_state": state}
    net.to_config = lambda: config
    net.save(tmp_path / "net")
    with pytest.raises(ValueError, match="schedule_state"):
        nn.load(tmp_path / "net")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WarmUp(PLATEAU), r"ReduceOnPlateau; the other way round, Reduce.*\(WarmUp\(…\)\)"),
        (lambda: ReduceOnPlateau(PLATEAU), "rate cannot be a ReduceOnPlateau; give it a number"),
        (lambda: nn.SGD(falling), r"a function goes in as nn\.schedules\.Function"),
        (lambda: ReduceOnPlateau(0.1, ""), "monitor must be a text, got ''"),
        (lambda: ReduceOnPlateau(0.1, factor=1), "factor must be below 1"),
        (lambda: OneCycle(0.1, rise=1), "rise must be below 1"),
        (lambda: Function(falling, of="batch"), 'of is "epoch" or "step", not'),
    ],
)
def test_wrong_arguments_of_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_rates_of_an_epoch():
    np.testing.assert_allclose(WarmUp(0.4, 2).epoch(0, 4, 9), 0.4 * np.arange(1, 5) / 8)
    np.testing.assert_allclose(WarmUp(0.4, 2).epoch(2, 4, 9), 0.4)
    np.testing.assert_allclose(StepDecay(1, 0.5, 0.5).epoch(1, 4, 9), [0.25, 0.25, 0.125, 0.125])
    np.testing.assert_allclose(
        Cosine(1.0).epoch(3, 2, 4), (1 + np.cos([0.75 * np.pi, 0.875 * np.pi])) / 2
    )
    np.testing.assert_allclose(Cosine(1.0, 0.1, epochs=2).epoch(5, 2, 9), 0.1)
    np.testing.assert_allclose(WarmUp(Exponential(1.0, 0.5), 1).epoch(1, 1, 9), 0.5)
    np.testing.assert_allclose(OneCycle(1.0, 1).epoch(0, 1, 9), 4e-6)
    np.testing.assert_allclose(OneCycle(1.0, 4, rise=0.5).epoch(1, 2, 9)[-1], 1)
    np.testing.assert_allclose(OneCycle(1.0, 2).epoch(5, 2, 9), 4e-6)


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
