"""The loop of fit: what it measures, when it stops, what it leaves behind, and callbacks."""

import contextlib
import copy
import dataclasses
import inspect
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

import numbanet as nn
from numbanet.backend import threads
from numbanet.engine.cpu import executor
from numbanet.engine.cpu.tuner import ThreadTuner
from numbanet.nn import losses
from numbanet.plan.lowerable import Lowerable
from numbanet.training import diagnosis
from numbanet.training.callbacks import Callback, EarlyStopping

SOURCES = str(Path(nn.__file__).parents[1])


def network(seed=1, last="softmax", outputs=3, **options):
    return nn.Sequential(
        [nn.Dense(7, activation="tanh"), nn.Dense(outputs, activation=last)],
        4,
        seed=seed,
        **options,
    )


def data(samples=60, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(samples, 4)).astype("float32"), generator.integers(0, 3, samples)


def fit(net, x, y, **options):
    return net.fit(
        x, y, **{"verbose": 0, "optimizer": nn.SGD(0.1, momentum=0.9), "batch_size": 8, **options}
    )


# --- history -----------------------------------------------------------------------------------


def test_figures_of_classes():
    x, y = data()
    net = network()
    history = fit(net, x, y, epochs=3, validation_data=(x[:20], y[:20]))
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert {len(values) for values in history.history.values()} == {3} == {len(history.seconds)}
    found = net.evaluate(x[:20], y[:20])
    assert (
        history.history["val_loss"][-1] == found["loss"]
        and history.history["val_accuracy"][-1] == found["accuracy"]
    )
    assert all(seconds > 0 for seconds in history.seconds)
    assert "3 epochs" in repr(history) and "val_accuracy" in repr(history)


def test_figures_of_real_targets():
    x, _ = data()
    history = fit(network(last=None, outputs=2), x, x[:, :2], epochs=2, validation_split=0.25)
    assert list(history.history) == ["loss", "val_loss"]


def test_the_loss_is_measured_before_each_step_and_the_penalty_after_the_last():
    x, y = data(10)
    net = network(penalty=nn.L2(0.5))
    before = net.evaluate(x, y)["loss"]
    measured = fit(net, x, y, batch_size=None).history["loss"]
    assert (
        measured == [pytest.approx(before + net.penalty_value(10, 1), rel=1e-6)]
        and net.penalty_value(10, 1) > 0.1
    )


def test_epochs_are_counted_over_the_life_of_a_network():
    x, y = data()
    once, twice = network(), network()
    losses = fit(once, x, y, epochs=4).history["loss"]
    assert (
        fit(twice, x, y, epochs=1).history["loss"] + fit(twice, x, y, epochs=3).history["loss"]
        == losses
    )
    np.testing.assert_array_equal(once.parameters, twice.parameters)
    assert once.epoch == twice.epoch == 4


def test_no_epochs():
    x, y = data()
    net = network()
    before = net.parameters.copy()
    assert fit(net, x, y, epochs=0).history == {}
    np.testing.assert_array_equal(net.parameters, before)


def test_a_split_is_the_end_of_the_data():
    x, y = data()
    one, other = network(), network()
    split = fit(one, x, y, epochs=2, validation_split=0.25)
    given = fit(other, x[:45], y[:45], epochs=2, validation_data=(x[45:], y[45:]))
    assert split.history == given.history
    np.testing.assert_array_equal(one.parameters, other.parameters)


def test_batches_larger_than_the_data_are_the_data():
    x, y = data()
    nets = [network(), network(), network()]
    for net, batch_size in zip(nets, (None, 60, 1000), strict=True):
        fit(net, x, y, epochs=2, batch_size=batch_size)
    np.testing.assert_array_equal(nets[0].parameters, nets[1].parameters)
    np.testing.assert_array_equal(nets[0].parameters, nets[2].parameters)
    assert nets[2].optimizer_steps == 2


def test_without_shuffling_the_samples_come_in_their_order():
    x, y = data()
    straight, shuffled, turned = network(), network(), network()
    fit(straight, x, y, shuffle=False)
    fit(shuffled, x, y)
    fit(turned, x[::-1], y[::-1], shuffle=False)
    assert not np.array_equal(straight.parameters, shuffled.parameters)
    assert not np.array_equal(straight.parameters, turned.parameters)
    same = network()
    for start in range(0, 60, 8):
        fit(same, x[start : start + 8], y[start : start + 8], batch_size=None, shuffle=False)
    np.testing.assert_allclose(same.parameters, straight.parameters, rtol=2e-5, atol=1e-6)


# --- divergence --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lbfgs_finds_the_minimum_of_a_convex_loss(dtype):
    pytest.importorskip("scipy")
    x, y = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 3
    net = nn.Sequential([nn.Dense(3, activation="softmax")], 4, dtype, penalty=nn.L2(0.1))
    seen = []
    history = net.fit(
        x,
        y,
        optimizer=nn.LBFGS(tolerance=1e-10),
        batch_size=None,
        epochs=200,
        verbose=0,
        validation_data=(x[:9], y[:9]),
        callbacks=lambda epoch, logs, network: seen.append(epoch),
    ).history
    assert np.all(np.diff(history["loss"]) <= 0) and seen == list(range(1, len(seen) + 1))
    assert abs(net.gradient(x, y)).max() < 1e-4
    assert history["loss"][-1] == pytest.approx(net.loss(x, y), rel=1e-5)
    assert history["val_loss"][-1] == pytest.approx(
        net.score(x[:9], y[:9], True, nn.CrossEntropy())[0] + net.penalty_value(), rel=1e-4
    )
    again = nn.Sequential([nn.Dense(3, activation="softmax")], 4, dtype, penalty=nn.L2(0.1))
    again.fit(x, y, optimizer="L-BFGS", batch_size=None, epochs=3, verbose=0)
    assert again.epoch == 3


def test_lbfgs_takes_all_samples_and_stops_when_told():
    pytest.importorskip("scipy")
    x, y = data(60)
    for options in ({}, {"batch_size": 7}):
        with pytest.raises(ValueError, match="pass batch_size=None and no augment"):
            network().fit(x, y, optimizer=nn.LBFGS, verbose=0, **options)
    net = network()
    options = {"batch_size": None, "epochs": 50, "verbose": 0}
    stop = net.fit(x, y, optimizer=nn.LBFGS(), callbacks=lambda epoch, *_: epoch == 2, **options)
    assert len(stop.seconds) == net.epoch == 2
    net = network(last=None, dtype="float64")
    before = net.parameters.copy()
    with pytest.raises(nn.DivergenceError, match="L-BFGS met a loss that is not a finite number"):
        net.fit(x, np.full((60, 3), 1e200), optimizer="lbfgs", **options)
    assert net.parameters.tobytes() == before.tobytes()


# --- around the update -------------------------------------------------------------------------


def test_lbfgs_refuses_layers_with_a_rate_or_a_decay_of_their_own():
    net = network()
    net.layers[2].learning_rate_factor = 0.5
    with pytest.raises(ValueError, match="no decay, layer 2 has one of its own; set its learning"):
        fit(net, *data(), optimizer="lbfgs", batch_size=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_value": 0}, "SGD: clip_value must be a finite number above 0, got 0"),
        ({"clip_norm": -1.0}, "clip_norm must be a finite number above 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be a finite number above 0"),
        ({"clip_norm": 1, "clip_value": 1}, "SGD: pass clip_value or clip_norm, not both"),
        ({"accumulate": 0}, "accumulate must be an integer of at least 1"),
        ({"accumulate": 1.5}, "accumulate must be an integer"),
        ({"average": 1.0}, "average must be below 1"),
        ({"average": -0.1}, "average must be a finite number of at least 0"),
    ],
)
def test_what_an_optimizer_cannot_do_around_an_update(options, message):
    with pytest.raises(ValueError, match=message):
        nn.SGD(0.1, **options)


@dataclasses.dataclass(frozen=True)
class Own(nn.SGD):
    """An optimiser of the user's, with a hyper-parameter of its own."""

    extra: float = 0.5


@pytest.mark.parametrize("kind", [nn.SGD, Own])
def test_accumulated_batches_are_one_large_batch(kind):
    x, y = data()
    nets = [network(dtype="float64") for _ in range(2)]
    fit(nets[0], x, y, optimizer=kind(0.3, accumulate=3), batch_size=10, epochs=2)
    fit(nets[1], x, y, optimizer=kind(0.3), batch_size=30, epochs=2)
    np.testing.assert_allclose(nets[0].parameters, nets[1].parameters, rtol=1e-12, atol=1e-14)
    assert nets[0].optimizer_steps == nets[1].optimizer_steps == 4


def test_a_gradient_that_is_short_enough_is_not_clipped():
    x, y = data()
    nets = [network() for _ in range(2)]
    fit(nets[0], x, y, optimizer=nn.SGD(0.1, clip_norm=1e6), epochs=2)
    fit(nets[1], x, y, optimizer=nn.SGD(0.1), epochs=2)
    assert nets[0].parameters.tobytes() == nets[1].parameters.tobytes()


def test_the_norm_is_that_of_all_layers_that_are_trained():
    x, y = data()
    for frozen in ([], [0]):
        net = network(dtype="float64", penalty=nn.L2(0.1))
        net.freeze(*frozen) if frozen else None
        before, gradient = net.parameters.copy(), net.gradient(x, y, training=True)
        fit(net, x, y, optimizer=nn.SGD(1.0, clip_norm=0.01), batch_size=None)
        expected = before - gradient * 0.01 / (np.linalg.norm(gradient) + 1e-6)
        np.testing.assert_allclose(net.parameters, expected, rtol=1e-12)


def test_an_epoch_that_is_interrupted_between_two_batches_begins_again(monkeypatch):
    x, y = data()
    optimizer = nn.Adam(0.01, accumulate=4, clip_norm=0.1)
    expected, net = network(), network()
    fit(expected, x, y, optimizer=optimizer, shuffle=False)
    steps, called = executor.TrainingExecutor.steps, []

    def interrupted(self, *args):
        called.append(args)
        if len(called) == 3:
            raise KeyboardInterrupt
        return steps(self, *args)

    monkeypatch.setattr(executor.TrainingExecutor, "steps_per_call", lambda self: 1)
    monkeypatch.setattr(executor.TrainingExecutor, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(net, x, y, optimizer=optimizer, shuffle=False)
    assert net.optimizer_steps == 0 and net.parameters.tobytes() == network().parameters.tobytes()
    fit(net, x, y, optimizer=optimizer, shuffle=False)
    assert net.parameters.tobytes() == expected.parameters.tobytes()
    assert net.optimizer_steps == 2


AVERAGING = nn.SGD(0.3, momentum=0.5, average=0.9)


def test_averages_are_measured_in_fit_and_make_a_network():
    x, y = data()
    layers = [nn.Dense(7), nn.BatchNorm(), nn.Dense(3, activation="softmax")]
    net = nn.Sequential(layers, 4, penalty=nn.L2(0.1))
    net.class_names, net.feature_names = ["a", "b", "c"], list("abcd")
    history = fit(net, x, y, optimizer=AVERAGING, epochs=2, validation_data=(x[:20], y[:20]))
    before = net.memory.copy(), net.optimizer_state.copy()
    averaged = net.averaged()
    assert averaged.parameters.tobytes() == net.averaged_parameters.tobytes()
    assert averaged.layers[1].buffers["mean"].tobytes() == net.layers[1].buffers["mean"].tobytes()
    assert (averaged.class_names, averaged.feature_names) == (net.class_names, net.feature_names)
    measured = averaged.evaluate(x[:20], y[:20])
    assert history.history["val_accuracy"][-1] == measured["accuracy"]
    loss = measured["loss"] + averaged.penalty_value(60, 8)
    assert history.history["val_loss"][-1] == pytest.approx(loss, rel=1e-6)
    assert measured["loss"] != net.evaluate(x[:20], y[:20])["loss"]
    averaged.fit(x, y, verbose=0)
    assert np.array_equal(net.memory, before[0]) and np.array_equal(net.optimizer_state, before[1])


def test_a_network_without_averages_says_how_to_get_some():
    net = network()
    for optimizer in (None, nn.SGD(0.1)):
        if optimizer is not None:
            fit(net, *data(), optimizer=optimizer)
        assert net.averaged_parameters is None
        with pytest.raises(ValueError, match=r"has no averaged parameters: .*average=0.999"):
            net.averaged()


def test_lbfgs_leaves_no_averages_of_an_earlier_fit():
    pytest.importorskip("scipy")
    net = network()
    fit(net, *data(), optimizer=nn.Adam(average=0.9))
    state = net.optimizer_state[: -net.parameters.size].copy()
    stopping = EarlyStopping("loss", patience=1)
    fit(net, *data(), optimizer="lbfgs", batch_size=None, epochs=3, callbacks=stopping)
    with pytest.raises(ValueError, match="has no averaged parameters"):
        net.averaged()
    assert net.optimizer_state.tobytes() == state.tobytes() and net.optimizer_steps == 8


def test_averages_change_nothing_else():
    x, y = data()
    nets = [network() for _ in range(2)]
    fit(nets[0], x, y, optimizer=AVERAGING, epochs=3)
    fit(nets[1], x, y, optimizer=dataclasses.replace(AVERAGING, average=0), epochs=3)
    assert nets[0].parameters.tobytes() == nets[1].parameters.tobytes()


def test_averages_that_begin_later_begin_with_the_parameters():
    x, y = data()
    net, other = network(), network()
    for one in (net, other):
        fit(one, x, y, optimizer=dataclasses.replace(AVERAGING, average=0), epochs=2)
    velocity = net.optimizer_state.copy()
    fit(net, x, y, optimizer=AVERAGING, epochs=0)
    assert net.averaged_parameters.tobytes() == other.parameters.tobytes()
    assert np.array_equal(net.optimizer_state[: velocity.size], velocity)
    fit(net, x, y, optimizer=AVERAGING)
    fit(other, x, y)
    assert net.optimizer_steps == 24 and not np.array_equal(net.averaged_parameters, net.parameters)
    fit(net, x, y, optimizer=dataclasses.replace(AVERAGING, average=0), epochs=0)
    assert net.optimizer_state.size == velocity.size and net.averaged_parameters is None


def test_the_averages_of_a_frozen_layer_are_its_parameters():
    x, y = data()
    net = network()
    fit(net, x, y, optimizer=AVERAGING)
    net.layers[0].weights = 0.25
    net.freeze(0)
    fit(net, x, y, optimizer=AVERAGING)
    assert (net.averaged().layers[0].weights == 0.25).all()
    assert (net.averaged().layers[2].weights != net.layers[2].weights).any()


def test_averages_after_divergence_are_the_parameters_again():
    x, _ = data()
    net = network(last=None, outputs=2)
    with pytest.raises(nn.DivergenceError):
        fit(net, x, x[:, :2], epochs=5, optimizer=nn.SGD(1e38, average=0.9))
    assert net.averaged_parameters.tobytes() == net.parameters.tobytes()


def test_early_stopping_restores_the_averages_of_the_best_epoch():
    x, y = data()
    net, seen = network(), []
    options = {"validation_data": (x[:20], y[:20]), "epochs": 5, "optimizer": AVERAGING}
    values = iter([0.5, 0.2, 0.7, 0.8, 0.9])

    def watch(epoch, logs, network):
        logs["val_loss"] = next(values)
        seen.append((network.memory.copy(), network.averaged_parameters.copy()))

    fit(net, x, y, callbacks=[watch, EarlyStopping(patience=9)], **options)
    assert np.array_equal(net.memory, seen[1][0])
    assert np.array_equal(net.averaged_parameters, seen[1][1])
    assert not np.array_equal(seen[1][1], seen[4][1])


def test_an_executor_of_other_options_is_not_used_again():
    x, y = data()
    plain = nn.SGD(0.1)
    for changed, factor in ((nn.SGD(0.1, clip_value=0.01), 1), (plain, 0.5)):
        net, fresh = network(), network()
        fit(net, x, y, optimizer=nn.SGD(0.0), shuffle=False)
        for one in (net, fresh):
            one.layers[0].learning_rate_factor = factor
            fit(one, x, y, optimizer=changed, shuffle=False)
        assert net.parameters.tobytes() == fresh.parameters.tobytes()
        fit(other := network(), x, y, optimizer=plain, shuffle=False)
        assert net.parameters.tobytes() != other.parameters.tobytes()


def test_a_weight_stands_for_so_many_copies_of_a_sample():
    x, y = data(60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    weighted, repeated = network(dtype="float64"), network(dtype="float64")
    options = {"batch_size": None, "epochs": 9, "verbose": 0, "shuffle": False}
    found = weighted.fit(x, y, sample_weight=weights, **options).history["loss"]
    expected = repeated.fit(x.repeat(weights, 0), y.repeat(weights), **options).history["loss"]
    np.testing.assert_allclose(weighted.parameters, repeated.parameters, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_only_weights_relative_to_their_batch_matter():
    x, y = data(60)
    nets = network(), network()
    nets[0].fit(x, y, batch_size=7, verbose=0)
    nets[1].fit(x, y, batch_size=7, verbose=0, sample_weight=np.full(60, 0.5))
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=1e-5, atol=1e-7)
    before = nets[0].parameters.copy()
    weights = np.arange(60) < 7  # the second batch weighs nothing
    nets[0].fit(
        x[:14],
        y[:14],
        batch_size=7,
        shuffle=False,
        sample_weight=weights[:14],
        verbose=0,
        optimizer=nn.SGD(0.1),
    )
    nets[1].parameters = before
    nets[1].fit(x[:7], y[:7], batch_size=7, shuffle=False, verbose=0, optimizer=nn.SGD(0.1))
    np.testing.assert_allclose(nets[1].parameters, nets[0].parameters, rtol=1e-5, atol=1e-7)


def test_weights_of_classes_and_samples_are_multiplied_and_validated():
    x, y = data(60)
    weights = np.random.default_rng(1).uniform(0, 3, 60)
    by_class, product = {0: 0.5, 2: 4.0}, weights * np.array([0.5, 1.0, 4.0])[y]
    options = {"batch_size": 7, "epochs": 2, "verbose": 0}
    nets = network(), network(), network()
    nets[1].class_names = ["a", "b", "c"]
    first = nets[0].fit(
        x, y, sample_weight=weights, class_weight=by_class, validation_split=0.3, **options
    )
    named = {"a": 0.5, "c": 4.0}
    second = nets[1].fit(
        x, y, sample_weight=weights, class_weight=named, validation_split=0.3, **options
    )
    held = {"x": x[42:], "y": y[42:], "sample_weight": product[42:]}
    third = nets[2].fit(x[:42], y[:42], sample_weight=product[:42], validation_data=held, **options)
    assert first.history == second.history == third.history
    found = nets[2].evaluate(**held)
    assert found["loss"] == third.history["val_loss"][-1]
    assert found["accuracy"] == third.history["val_accuracy"][-1]
    ensemble = nn.Ensemble(nets[2:])
    assert ensemble.evaluate(**held) == pytest.approx(found, rel=1e-6)
    right = nets[2].predict_classes(x[42:]) == y[42:]
    assert found["accuracy"] == pytest.approx(np.average(right, weights=product[42:]), rel=1e-6)


def test_labels_that_are_true_or_false_have_weights():
    x, y = data(60)
    net = network(last="sigmoid", outputs=1)
    weighted = [net.loss(x, y > 0, class_weight=one) for one in ({True: 3.0}, {1: 3.0}, None)]
    assert weighted[0] == weighted[1] != weighted[2]


@pytest.mark.parametrize("scale", [2.0**1020, 2.0**-1060])
@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_the_size_of_weights_does_not_matter(optimizer, scale):
    x, y = data(60)
    weights = np.random.default_rng(1).integers(1, 8, 60) / 4
    options = {"optimizer": optimizer, "batch_size": None, "validation_split": 0.3}
    results = []
    for sample_weight in (weights, weights * scale):
        net = network()
        options["sample_weight"] = sample_weight
        history = fit(net, x, y, epochs=2, class_weight=[2.0, 4.0, 0.5], **options).history
        found = net.evaluate(x, y, sample_weight=sample_weight, metrics=["f1", "auc", "top_2"])
        results.append((history, found, net.parameters.tobytes()))
    assert results[0] == results[1]
    net = network(last=None, outputs=2)
    ones, same = (net.evaluate(x, x[:, :2], sample_weight=w) for w in (weights, weights * scale))
    assert ones == same


def test_the_accuracy_of_training_is_weighted():
    x, y = data(60)
    net, weights = network(), np.arange(60) % 4
    right = net.predict_classes(x) == y
    history = net.fit(x, y, sample_weight=weights, batch_size=None, verbose=0)
    assert history.history["accuracy"][0] == pytest.approx(np.average(right, weights=weights))


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_nothing_is_learned_from_missing_targets(optimizer):
    pytest.importorskip("scipy")
    x, _ = data(200)
    y = (1000 + 50 * np.stack([x[:, 0], x[:, 1] * x[:, 2]], 1)).astype("float32")
    missing = np.random.default_rng(1).uniform(size=y.shape) < 0.3
    start, results = network(last=None, outputs=2, dtype="float64"), []
    options = {"optimizer": optimizer, "batch_size": None, "epochs": 9, "verbose": 0}
    for fill in (0.0, 1e9, np.nan):
        net, masked = copy.deepcopy(start), np.ma.array(np.where(missing, fill, y), mask=missing)
        held = {"x": x[:50], "y": masked[:50]}
        history = net.fit(
            x[50:], masked[50:], scale_targets=True, validation_data=held, metrics="mae", **options
        ).history
        results.append((net.memory.tobytes(), history, net.evaluate(x, masked)))
    assert results[0] == results[1] == results[2]
    known = np.where(missing, np.nan, y.astype("float64"))[50:]
    np.testing.assert_allclose(net.target_scaling.mean, np.nanmean(known, axis=0))
    np.testing.assert_allclose(net.target_scaling.deviation, np.nanstd(known, axis=0))
    errors = (y - net.predict(x))[~missing]
    assert results[0][2]["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert nn.Ensemble([net]).evaluate(x, masked) == pytest.approx(results[0][2])
    mae = np.ma.mean(abs(masked[:50] - net.predict(x[:50])))
    assert results[0][1]["val_mean_absolute_error"][-1] == pytest.approx(mae)


@pytest.mark.parametrize("kind", [nn.SGD, nn.Adam])
def test_the_learning_rate_finder_finds_a_rate_and_changes_nothing(kind):
    x, _ = data(400)
    net = nn.Sequential([nn.Standardize(), nn.Dense(9, activation="tanh"), nn.Dense(2)], 4, seed=1)
    y = x[:, :2] ** 2 + x[:, 1:3]
    fit(net, x[:60], y[:60], optimizer=kind(0.01))
    before = net.memory.tobytes(), net.to_config(), net.optimizer_state.tobytes()
    options = {"optimizer": kind(), "sample_weight": np.arange(400) % 3}
    found = net.find_learning_rate(x, y, **options)
    after = net.memory.tobytes(), net.to_config(), net.optimizer_state.tobytes()
    assert after == before
    assert len(found.losses) == len(found.rates) == len(found.smoothed) <= 100
    assert np.isfinite(found.losses).all() and found.rates[0] == 1e-6
    assert np.ptp(np.diff(np.log(found.rates))) < 1e-9
    again = net.find_learning_rate(x, y, **options)
    assert again.losses.tobytes() == found.losses.tobytes()
    assert f"suggestion {found.suggestion:.2g}>" in repr(found)
    options["optimizer"] = kind(accumulate=3, average=0.9)  # neither is for single steps
    assert net.find_learning_rate(x, y, **options).losses.tobytes() == found.losses.tobytes()

    def trained(rate):
        start = nn.Sequential(net.specs, 4, seed=2)
        return fit(start, x, y, epochs=5, optimizer=kind(rate)).history["loss"][-1]

    good = trained(found.suggestion)
    assert good < 0.7 * trained(found.suggestion / 100)
    with contextlib.suppress(nn.DivergenceError):
        assert good < 0.7 * trained(found.suggestion * 100)


@pytest.mark.parametrize(
    ("scale", "options", "steps"),
    [(1, {"highest": 1e30}, range(20, 99)), (1e30, {"lowest": 1e3, "highest": 1e9}, range(3))],
)
def test_the_learning_rate_finder_is_not_misled_by_divergence(scale, options, steps):
    x, _ = data(400)
    net, y = network(last=None, outputs=2), scale * x[:, :2]
    found = net.find_learning_rate(x, y, optimizer="sgd", **options)
    assert len(found.losses) in steps and np.isfinite(found.losses).all()
    assert found.suggestion is None if scale > 1 else 1e-3 < found.suggestion < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0}, "lowest must be a finite number above 0"),
        ({"lowest": 1, "highest": 0.5}, "highest must be a finite number above 1, got 0.5"),
        ({"steps": 5}, "steps must be an integer of at least 20, got 5"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"optimizer": "lbfgs"}, "find_learning_rate: L-BFGS has no learning rate; pass another"),
        ({"optimizer": nn.LBFGS()}, "L-BFGS has no learning rate"),
    ],
)
def test_wrong_arguments_of_the_learning_rate_finder(options, message):
    with pytest.raises(ValueError, match=message):
        network().find_learning_rate(*data(), **options)


def test_divergence_names_the_epoch_and_keeps_finite_weights():
    x, _ = data()
    net = network(last=None, outputs=2)
    fit(net, x, x[:, :2], epochs=2)
    good = net.parameters.copy()
    with pytest.raises(
        nn.DivergenceError, match=r"diverged in epoch 3, batch \d+: .*lower the learning rate"
    ):
        fit(net, x, x[:, :2], epochs=5, optimizer=nn.SGD(1e38))
    assert np.isfinite(net.parameters).all() and net.epoch == 2
    np.testing.assert_array_equal(net.parameters, good)
    assert net.optimizer_steps == 0 and not net.optimizer_state.any()
    assert fit(net, x, x[:, :2], optimizer=nn.SGD(0.01)).history["loss"][0] < 10


def test_divergence_in_the_last_batch_of_all():
    x, _ = data(8)
    net = network(last=None, outputs=2)
    before = net.parameters.copy()
    with pytest.raises(nn.DivergenceError, match="epoch 1, batch 1"):
        fit(net, x, x[:, :2] * np.float32(1e12), optimizer=nn.SGD(1e38))
    np.testing.assert_array_equal(net.parameters, before)


BYTES = np.random.default_rng(0).integers(0, 256, (60, 4)).astype("uint8")
BYTES[:2] = [[0], [255]]
CLASSES_OF_X = np.digitize(data(60)[0][:, 0], [-0.4, 0.4])


@pytest.mark.parametrize(
    ("scale_x", "scale_y", "rate", "said", "not_said"),
    [
        (1, 1, 1e38, [r"do: lower the learning rate \(SGD's is 1e\+38\)"], ["x spans", "y spans"]),
        ([1, 1, 1e6, 1], 1, 0.1, [r"column 2 of x spans -.*nn\.Standardize\(\)"], ["y spans"]),
        (1, 1e7, 0.01, [r"y spans -.*scale_targets=True.*learning rate"], ["x spans"]),
        (1e6, 1e7, 0.1, ["column . of x spans", "y spans"], []),
    ],
)
def test_divergence_names_what_is_large(scale_x, scale_y, rate, said, not_said):
    x, _ = data()
    net = nn.Sequential([nn.Dense(2)], 4)
    x, y = (x * scale_x).astype("float32"), x[:, :2] * scale_y
    run = diagnosis.Run(net, x, y, False, losses.Quadratic(), nn.SGD(rate), 0, 1)
    text = run.advice(diverged=True)
    assert all(re.search(one, text) for one in said), text
    assert not any(one in text for one in not_said), text


@pytest.mark.parametrize(
    ("diverged", "settings", "options", "said"),
    [
        (
            True,
            {"learning_rate_factor": 1e8},
            {},
            "layer 2 has a learning_rate_factor of 1e\\+08: l",
        ),
        (
            True,
            {"weight_decay": 1e6},
            {},
            "of 1e\\+06 takes 1e\\+05 of layer 2's .*: lower network",
        ),
        (
            False,
            {"learning_rate_factor": 0},
            {},
            "learning_rate_factor of every layer .* is 0: set",
        ),
        (False, {}, {"clip_norm": 1e-9}, "clip_norm=1e-09 leaves hardly anything .*: raise clip_n"),
        (False, {}, {"clip_value": 1e-9}, "clip_value=1e-09 leaves hardly"),
        (False, {"learning_rate_factor": 2, "weight_decay": 0.1}, {"clip_norm": 1}, None),
    ],
)
def test_settings_that_spoil_a_training_are_named_first(diverged, settings, options, said):
    x, _ = data()
    net = network()
    net.freeze(0)
    for name, value in settings.items():
        setattr(net.layers[2], name, value)
    optimizer = nn.SGD(0.1, **options)
    run = diagnosis.Run(net, x, CLASSES_OF_X, True, losses.CrossEntropy(), optimizer, 0, 1)
    text = run.advice(diverged)
    if said is None:
        assert not any(name in text for name in ("factor", "decay", "clip")), text
    else:
        assert re.match(f"What to do: .*{said}", text), text
    decay = dataclasses.replace(run, network=network(), optimizer=nn.AdamW(0.1, weight_decay=30))
    assert "takes 3 of layer 0's parameters away in a step: lower that of" in decay.advice(diverged)


def test_the_message_of_a_divergence_ends_with_the_advice():
    x, _ = data()
    with pytest.raises(nn.DivergenceError, match=r"from before it\. What to do: column 2 of x"):
        nn.Sequential([nn.Dense(2)], 4).fit(
            x * np.float32([1, 1, 1e6, 1]), x[:, :2], optimizer=nn.SGD(0.1), epochs=20, verbose=0
        )


def test_bytes_are_named_where_a_training_goes_wrong():
    run = diagnosis.Run(
        network(), BYTES, CLASSES_OF_X, True, losses.CrossEntropy(), nn.SGD(0.1), 0, 1
    )
    assert "x spans 0 … 255: begin the network with nn.Rescale(1/255)" in run.advice(diverged=True)
    scaled = nn.Sequential([nn.BatchNorm(), nn.Dense(3, activation="softmax")], 4)
    assert "x spans" not in dataclasses.replace(run, network=scaled).advice(diverged=True)


def test_a_column_of_tiny_spread_is_named():
    x = data()[0] * np.float32([1, 1e-4, 1, 1])
    run = diagnosis.Run(network(), x, CLASSES_OF_X, True, losses.CrossEntropy(), nn.Adam(), 0, 1)
    assert re.search(r"column \d of x spans .*, column 1 -", run.advice(diverged=False))


def test_indices_and_seldom_inked_pixels_need_no_scale():
    indices = np.arange(60).reshape(20, 3) * 50.0
    layers = [nn.Embedding(3000, 2), nn.Flatten(), nn.Dense(3, "softmax")]
    embedded = nn.Sequential(layers, 3)
    y = np.arange(20) % 3
    run = diagnosis.Run(embedded, indices, y, True, losses.CrossEntropy(), nn.Adam(), 0, 1)
    assert list(run.of_inputs()) == []
    pixels = np.random.default_rng(0).random((2000, 4)).astype("float32")
    pixels[:, 1] = (np.arange(2000) == 7) / 16
    seldom = dataclasses.replace(run, network=network(), x=pixels)
    assert list(seldom.of_inputs()) == []


# --- networks that do not learn ----------------------------------------------------------------


def regression():
    return network(last=None, outputs=1)


@pytest.mark.parametrize(
    ("net", "x", "y", "options", "said"),
    [
        (network, 1, CLASSES_OF_X, {"optimizer": nn.SGD(1e-6)}, "SGD's .* 1e-06 is low: .*'adam'"),
        (network, 1, CLASSES_OF_X, {"optimizer": nn.Adam(1e-8)}, r"raise .*\(Adam's is 1e-08\)"),
        (network, 1, CLASSES_OF_X, {"optimizer": nn.SGD(0.0)}, "from .*; a constant predict"),
        (regression, 1, 1e6 + data()[0][:, :1], {"optimizer": "adam"}, "y spans.*scale_targets"),
        (network, [1, 1e7, 1, 1], CLASSES_OF_X, {"optimizer": nn.SGD(1e-9)}, "column 1 of x spans"),
        (network, 1, CLASSES_OF_X, {"optimizer": "adam", "batch_size": None}, "only 13 steps"),
        (
            lambda: network(last="sigmoid", outputs=1),
            1,
            5 + data()[0][:, :1],
            {"optimizer": nn.SGD(1e-6)},
            "y spans .* the last activation, Sigmoid, cannot reach",
        ),
    ],
)
def test_a_fresh_network_that_does_not_learn_is_noticed_once(net, x, y, options, said):
    options = {"loss": "quadratic", **options} if y.ndim == 2 else options
    with pytest.warns(nn.NotLearningWarning, match="the loss hardly moved in 1[0-9] ep") as seen:
        fit(net(), (data()[0] * x).astype("float32"), y, epochs=13, **options)
    assert len(seen) == 1 and re.search(said, str(seen[0].message)), str(seen[0].message)
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({}, False),  # it learns
        ({"optimizer": nn.SGD(1e-6), "epochs": 9}, False),  # too early to say
        ({"optimizer": nn.SGD(1e-6), "epochs": 12}, True),  # it was trained before
    ],
)
def test_other_trainings_are_silent(options, again):
    x, _ = data()
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if again:
            fit(net, x, CLASSES_OF_X, epochs=60)
        fit(net, x, CLASSES_OF_X, **{"epochs": 20, **options})


def test_what_a_first_epoch_has_learned_is_not_called_stuck():
    run = diagnosis.Run(network(), *data(), True, losses.CrossEntropy(), nn.Adam(), 0, 1)
    assert run.stuck(1.1, 1.09) and run.stuck(0.5, 0.49) is None


@pytest.mark.parametrize("loss", losses.NAMES)
def test_the_loss_of_the_best_constant(loss):
    """No constant on a grid is better, and one is as good."""
    y = np.random.default_rng(3).random((200, 1)) if loss != "cross_entropy" else CLASSES_OF_X
    chosen = nn.Quantile(0.2) if loss == "quantile" else losses.NAMES[loss]()
    last = {
        "binary_cross_entropy": nn.Sigmoid,
        "cross_entropy": nn.Softmax,
        "poisson": nn.Exp,
    }
    net = nn.Sequential([last.get(loss, nn.Identity)()], 3 if y.ndim == 1 else 1, "float64")
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * net.input_shape[0]), -1)
    values = [
        net.evaluate(np.tile(row, (len(y), 1)), y, loss=chosen)["loss"]
        for row in grid.reshape(-1, net.input_shape[0])[:: 1 if y.ndim == 2 else 37]
    ]
    found = diagnosis.constant_loss(chosen, y, net.output_shape[0])
    assert found == pytest.approx(min(values), rel=0.02) and found > 0


@pytest.mark.parametrize(
    "optimizer",
    [
        nn.SGD(0.1, momentum=0.9),
        nn.SGD(0.1, momentum=0.9, nesterov=True),
        nn.RMSprop(momentum=0.9),
        nn.Adam(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mean_that_decays_becomes_zero(optimizer, dtype):
    net, x, least = network(dtype=dtype), np.zeros((300, 4)), np.finfo(dtype).tiny
    y = np.arange(300) % 3
    options = {"optimizer": optimizer, "batch_size": 1, "verbose": 0}
    net.fit(x, y, **options)
    net.optimizer_state[:] = 1.02 * least
    net.fit(x, y, **options)
    found = np.abs(net.optimizer_state)
    assert (found == 0).any() and not ((found > 0) & (found < least)).any()


def test_the_default_optimizer_is_adam():
    x, y = data()
    net = network()
    net.fit(x, y, verbose=0)
    assert net.optimizer == nn.Adam(0.001)


def test_callbacks_end_after_divergence():
    x, _ = data()
    ended = []

    class Watcher(Callback):
        def on_fit_end(self, network):
            ended.append(np.isfinite(network.parameters).all())

    with pytest.raises(nn.DivergenceError):
        fit(
            network(last=None, outputs=2),
            x,
            x[:, :2],
            optimizer=nn.SGD(1e38),
            callbacks=[Watcher()],
        )
    assert ended == [True]


@pytest.mark.parametrize("activation", ["step", ["tanh", "step"] + ["relu"] * 5])
def test_a_step_cannot_be_trained(activation):
    x, y = data()
    net = nn.Sequential([nn.Dense(7, activation=activation), nn.Dense(3, activation="softmax")], 4)
    before = net.parameters.copy()
    with pytest.raises(
        ValueError, match=r"a step cannot be trained: its derivative is zero.*train with sigmoid"
    ):
        fit(net, x, y)
    np.testing.assert_array_equal(net.parameters, before)
    assert net.predict(x).shape == (60, 3)


# --- callbacks ---------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_and_stop_the_training():
    x, y = data()
    net = network()
    calls = []

    class Recorder(Callback):
        def on_fit_begin(self, network):
            calls.append("begin")

        def on_epoch_end(self, epoch, logs, network):
            calls.append((epoch, set(logs), network is net))

        def on_fit_end(self, network):
            calls.append("end")

    history = fit(
        net, x, y, epochs=9, callbacks=[lambda epoch, logs, network: epoch == 2, Recorder()]
    )
    assert calls == [
        "begin",
        (1, {"loss", "accuracy"}, True),
        (2, {"loss", "accuracy"}, True),
        "end",
    ]
    assert len(history.history["loss"]) == 2
    fit(net, x, y, epochs=1, callbacks=[Recorder()])
    assert calls[-2][0] == 3


class Calls(Callback):
    """Records every call."""

    def __init__(self, every_steps=1, **attributes):
        self.every_steps, self.calls = every_steps, []
        vars(self).update(attributes)

    def on_fit_begin(self, network):
        self.calls.append("fit")

    def on_epoch_begin(self, epoch, network):
        self.calls.append(f"epoch {epoch}")

    def on_step_end(self, step, logs, network):
        self.calls.append(f"step {step}")

    def on_epoch_end(self, epoch, logs, network):
        self.calls.append(f"end {epoch}")

    def on_fit_end(self, network):
        self.calls.append("end")


def test_callbacks_are_called_at_begin_and_end_and_at_the_steps_they_ask_for():
    x, y = data()
    often, rarely, never = Calls(3), Calls(10), Calls(None)
    fit(network(), x, y, epochs=2, batch_size=15, callbacks=[often, rarely, never])
    expected = ["fit", "epoch 1", "step 3", "end 1", "epoch 2", "step 6", "end 2", "end"]
    assert often.calls == expected
    without = [call for call in expected if "step" not in call]
    assert rarely.calls == never.calls == without
    timed = Calls(None, every_seconds=1e-9)
    fit(network(), x, y, batch_size=15, callbacks=timed)
    assert sum("step" in call for call in timed.calls) >= 1


@pytest.mark.parametrize("every_steps", [1, 4, 1000])
def test_callbacks_at_steps_change_no_bit_and_see_the_epoch_so_far(every_steps):
    x, y = data()
    plain, watched, seen = network(penalty=nn.L2(0.1)), network(penalty=nn.L2(0.1)), []

    class Look(Calls):
        def on_step_end(self, step, logs, network):
            seen.append((step, logs, network.memory.copy()))

    histories = [
        fit(net, x, y, epochs=3, batch_size=8, optimizer=nn.Adam(), callbacks=callbacks).history
        for net, callbacks in ((plain, ()), (watched, Look(every_steps)))
    ]
    assert plain.memory.tobytes() == watched.memory.tobytes() and histories[0] == histories[1]
    assert [step for step, *_ in seen] == list(range(every_steps, 25, every_steps))
    if every_steps != 1000:
        assert seen[-1][1] == {name: values[-1] for name, values in histories[0].items()}
        assert seen[-1][2].tobytes() == plain.memory.tobytes()
    if every_steps == 1:
        once = network(penalty=nn.L2(0.1))
        assert seen[0][1]["loss"] != fit(once, x, y, batch_size=8).history["loss"]


def test_native_calls_are_cut_only_where_a_callback_asks(monkeypatch):
    original, calls = executor.Executor.run_batches, []

    def work(self, kernel, params, first, last, workers):
        calls.append(last - first)
        return original(self, kernel, params, first, last, workers)

    monkeypatch.setattr(executor.Executor, "run_batches", work)
    x, y = data(2000)
    fit(network(), x, y, batch_size=2, callbacks=[EarlyStopping("loss"), Calls(None)])
    assert max(calls) > 8
    calls.clear()
    fit(network(), x, y, batch_size=2, callbacks=Calls(5))
    assert max(calls) <= 5 and sum(calls) == 1000


def test_a_callback_stops_the_training_within_an_epoch():
    x, y = data()
    net = network()

    class Enough(Calls):
        def on_step_end(self, step, logs, network):
            return step == 6

    watcher = Calls(None)
    history = fit(net, x, y, epochs=9, batch_size=15, callbacks=[Enough(), watcher])
    assert len(history.seconds) == net.epoch == 1 and net.optimizer_steps == 6
    assert watcher.calls == ["fit", "epoch 1", "end 1", "epoch 2", "end"]
    assert len(fit(net, x, y, epochs=2).seconds) == 2


def test_callbacks_at_steps_see_what_the_gpu_has_computed():
    pytest.importorskip("numba_cuda")
    x, y = data(24)
    seen: dict[str, list] = {"cpu": [], "cuda": []}

    class Look(Calls):
        def on_step_end(self, step, logs, network):
            found = network.memory.copy(), network.optimizer_state.copy(), logs["loss"]
            seen[network.device].append(found)

    for device in seen:
        net = network(dtype="float64", device=device)
        fit(net, x, y, callbacks=Look(2), optimizer=nn.Adam(), batch_size=4)
    for cpu, cuda in zip(*seen.values(), strict=True):
        for one, other in zip(cpu, cuda, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-15)
    assert len(seen["cpu"]) == 3 and (seen["cpu"][0][0] != seen["cpu"][1][0]).any()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_callback_writes_at_a_step_is_used_by_the_next(device):
    if device == "cuda":
        pytest.importorskip("numba_cuda")
    x, y = data()
    net, seen = network(device=device), []

    class Write(Calls):
        def on_step_end(self, step, logs, network):
            seen.append(network.predict(x))
            network.parameters[:] = 0

    fit(net, x, y, batch_size=30, optimizer=nn.SGD(0.0), callbacks=Write())
    assert seen[0].std() > 0 == seen[1].std(axis=0).max()


@pytest.mark.parametrize("place", ["on_fit_begin", "on_epoch_begin", "on_step_end", "on_epoch_end"])
def test_an_error_in_any_call_ends_the_training_in_order(place):
    x, y = data()
    net, first, last = network(), Calls(), Calls()

    def fail(*_):
        raise RuntimeError("mine")

    middle = Calls()
    middle.__class__ = type("Fails", (Calls,), {place: fail})
    with pytest.raises(RuntimeError, match="mine"):
        fit(net, x, y, epochs=3, batch_size=15, callbacks=[first, middle, last])
    assert first.calls[-1] == "end" and "end" not in first.calls[:-1]
    begun = place != "on_fit_begin"
    assert (last.calls[-1:] == ["end"]) == begun and ("end" in middle.calls) == begun
    assert len(fit(net, x, y, epochs=2).seconds) == 2 and np.isfinite(net.parameters).all()


def test_intervals_of_callbacks_are_checked_and_lbfgs_has_no_steps():
    x, y = data()
    for attributes, message in [
        ({"every_steps": 0}, "Calls: every_steps must be an integer of at least 1, got 0"),
        ({"every_seconds": -1}, "Calls: every_seconds must be a finite number above 0, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(network(), x, y, callbacks=Calls(**attributes))
    pytest.importorskip("scipy")
    options = {"optimizer": nn.LBFGS(), "batch_size": None, "epochs": 2}
    with pytest.raises(ValueError, match="L-BFGS has no steps after which Calls"):
        fit(network(), x, y, callbacks=Calls(), **options)
    watcher = Calls(None)
    fit(network(), x, y, callbacks=watcher, **options)
    assert watcher.calls == ["fit", "epoch 1", "end 1", "epoch 2", "end 2", "end"]


def test_an_error_in_a_callback_is_the_users_to_see():
    x, y = data()
    net = network()

    def fail(epoch, logs, network):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(net, x, y, epochs=5, callbacks=[fail])
    assert net.epoch == 1
    fit(net, x, y)


@pytest.mark.parametrize(
    ("monitor", "mode", "scores"),
    [
        ("score", "min", [3, 2, 1, 5, 1, 7, 0]),
        ("score_accuracy", "auto", [1, 2, 3, 0, 3, 1, 9]),
        ("score_error", "auto", [3, 2, 1, 5, 1, 7, 0]),
    ],
)
def test_early_stopping_goes_back_to_the_best(monitor, mode, scores):
    x, y = data()
    net = network()
    seen = []

    def score(epoch, logs, network):
        logs[monitor] = scores[epoch - 1]
        seen.append(network.parameters.copy())

    fit(net, x, y, epochs=7, callbacks=[score, EarlyStopping(monitor, 3, mode=mode)])
    assert len(seen) == 6
    np.testing.assert_array_equal(net.parameters, seen[2])
    other = network()
    seen.clear()
    fit(
        other,
        x,
        y,
        epochs=7,
        callbacks=[score, EarlyStopping(monitor, 3, False, mode)],
    )
    np.testing.assert_array_equal(other.parameters, seen[5])


def test_early_stopping_goes_back_to_the_running_means_too():
    x, y = data()
    net = nn.Sequential([nn.Dense(7), nn.BatchNorm(), nn.Dense(3, activation="softmax")], 4)
    seen = []

    def score(epoch, logs, network):
        logs["score"] = abs(epoch - 2)
        seen.append(network.predict(x))

    fit(net, x, y, epochs=5, callbacks=[score, EarlyStopping("score", 2, mode="min")])
    np.testing.assert_array_equal(net.predict(x), seen[1])


def test_early_stopping_names_the_figures_there_are():
    x, y = data()
    with pytest.raises(
        ValueError,
        match="no metric 'val_loss' to watch, there are loss, accuracy; pass validation_data",
    ):
        fit(network(), x, y, callbacks=[EarlyStopping()])


def test_early_stopping_watches_validation():
    x, y = data()
    history = fit(
        network(), x, y, epochs=500, validation_split=0.5, callbacks=[EarlyStopping(patience=5)]
    )
    best = int(np.argmin(history.history["val_loss"]))
    assert len(history.seconds) == best + 6 < 500


# --- progress ----------------------------------------------------------------------------------


def test_quiet_when_the_output_is_no_terminal(capfd):
    x, y = data()
    fit(network(), x, y, verbose=1, epochs=3)
    assert capfd.readouterr() == ("", "")


def test_a_line_for_each_epoch_in_a_log(capfd):
    x, y = data()
    fit(network(), x, y, verbose=2, epochs=3)
    out, err = capfd.readouterr()
    *epochs, last = err.splitlines()
    assert out == "" and [line.split("  ")[0] for line in epochs] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]
    pace = r"  +\d+\.\d s left  [\d,]+ samples/s  loss \d.*  accuracy \d"
    assert all(re.search(pace, line) for line in epochs)
    assert re.match(r"3 epochs in \d+\.\d s  [\d,]+ samples/s  loss", last)


def no_more(epoch, logs, network):
    return True


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"callbacks": EarlyStopping("loss", patience=2, min_delta=9)},
            "EarlyStopping: loss has not improved for 2 epochs; the best parameters are restored",
        ),
        ({"callbacks": no_more}, "no_more"),
        ({"callbacks": no_more, "optimizer": "lbfgs", "batch_size": None}, "no_more"),
        ({"callbacks": nn.callbacks.TimeLimit(1e-9)}, "TimeLimit"),
        (
            {
                "optimizer": nn.SGD(
                    nn.schedules.ReduceOnPlateau(
                        0.1, "loss", patience=1, min_delta=9, factor=0.5, stop_at=0.5
                    )
                )
            },
            "ReduceOnPlateau has reached its end",
        ),
        ({"epochs": 2}, None),
    ],
)
def test_a_log_says_why_a_training_ended_early(options, reason, capfd):
    fit(network(), *data(), **{"verbose": 2, "epochs": 20, **options})
    lines = capfd.readouterr().err.splitlines()
    assert [one for one in lines if "early" in one] == [f"ended early by {reason}"] * bool(reason)
    assert re.match(r"\d epochs in", lines[-1])


@pytest.mark.parametrize("verbose", [3, -1, "yes", None, 0.5])
def test_another_verbose_is_refused(verbose):
    with pytest.raises(ValueError, match=r"verbose is 0 \(nothing\), 1 .* or 2 .*, got"):
        fit(network(), *data(), verbose=verbose)


class Notebook:
    """The parts of IPython that a kernel has: `get_ipython`, and `display` with a handle."""

    def __init__(self, kernel):
        self.kernel, self.shown = kernel, []

    def get_ipython(self):
        return self

    def has_trait(self, name):
        return name == "kernel" and self.kernel

    def display(self, content, *, raw, display_id):
        assert raw and display_id and list(content) == ["text/plain"]
        self.shown.append([content["text/plain"]])
        return self

    def update(self, content, *, raw):
        assert raw
        self.shown[-1].append(content["text/plain"])


@pytest.mark.parametrize("kernel", [True, False])
def test_progress_in_a_notebook_is_one_output(kernel, monkeypatch, capfd):
    notebook = Notebook(kernel)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    x, y = data()
    fit(network(), x, y, verbose=1, epochs=300)
    fit(network(), x, y, verbose=0, epochs=3)
    assert capfd.readouterr() == ("", "")
    if kernel:
        ((first, *_, last),) = notebook.shown
        assert first.startswith("epoch 1/300 ") and re.match(r"300 epochs in .*accuracy", last)
    else:
        assert notebook.shown == []


def test_a_warning_stands_on_a_line_of_its_own(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(warnings, "showwarning", lambda text, *_, **__: terminal.write(f"{text}\n"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fit(network(), data()[0], CLASSES_OF_X, optimizer=nn.SGD(1e-6), epochs=14, verbose=1)
    assert "\nthe loss hardly moved" in terminal.getvalue()


PROGRESS = """
import logging
import numpy as np
import numbanet as nn
logging.getLogger("numbanet").setLevel("ERROR")  # not that it compiles
net = nn.Sequential([nn.Dense(3, activation="softmax")], 4)
x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
y = np.arange(50) % 3
net.fit(x, y, epochs=400, validation_data=(x, y), verbose=VERBOSE)
"""


def shown(verbose, columns):
    """What a training writes to a terminal of so many columns."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    env = {**os.environ, "PYTHONPATH": SOURCES}
    env.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRESS.replace("VERBOSE", str(verbose))], stderr=theirs, env=env
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    assert process.wait() == 0
    return text.decode()


def test_progress_on_a_terminal():
    text = shown(1, 200)
    assert re.search(r"epoch \d+/400 .*s left", text)
    assert re.search(r"400 epochs in \d+\.\d s  [\d,]+ samples/s  loss .*val_accuracy", text)
    assert text.count("\n") == 1 and shown(0, 200) == ""


def test_progress_fits_a_narrow_terminal():
    lines = [
        line.replace("\x1b[K", "").rstrip("\r\n") for line in re.split(r"\r(?!\n)", shown(1, 60))
    ]
    assert max(map(len, lines)) <= 60


# --- Ctrl-C ------------------------------------------------------------------------------------

STOPPED = """
import threading, time
import numpy as np
import numbanet as nn

generator = np.random.default_rng(0)
x = generator.integers(0, 256, (300_000, 64), dtype="uint8")
y = generator.integers(0, 10, 300_000)
layers = [nn.Dense(1024, activation="relu"), nn.Dense(1024, activation="relu")]
net = nn.Sequential([*layers, nn.Dense(10, activation="softmax")], 64)
net.fit(x[:200], y[:200], batch_size=100, verbose=0)
net.predict(x[:10])
before = net.parameters.copy()
threading.Timer(1.0, lambda: print("running", flush=True)).start()
try:
    net.fit(x, y, batch_size=100, epochs=1000, verbose=0)
except KeyboardInterrupt:
    print("stopped", net.epoch, flush=True)
assert np.isfinite(net.parameters).all() and not np.array_equal(net.parameters, before)
net.fit(x[:200], y[:200], batch_size=100, verbose=0)
print(np.isfinite(net.predict(x[:10])).all(), flush=True)
"""


def script(code, **env):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES, **env},
    )


def test_the_keyboard_stops_within_an_epoch():
    process = script(STOPPED)
    assert process.stdout.readline() == "running\n", process.stderr.read()
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopped 1\n"  # the one epoch is the short one before
    assert time.monotonic() - sent < 1.5
    assert process.stdout.readline() == "True\n"
    assert process.wait() == 0


def simulated(step_seconds, ends, most_steps=1 << 40, idle=lambda: 0):
    """Calls of a ThreadTuner of two threads by a simulated clock: (time, size, seconds, steps).

    step_seconds(size, time, since)   how long a step takes that begins `since` seconds after the
                                      size was changed
    most_steps                        of a call: those of an epoch
    idle()                            what a look for idle CPUs finds
    """
    tuner, now, changed, calls, before = ThreadTuner(2, idle), 0.0, 0.0, [], None
    while now < ends:
        steps = min(most_steps, tuner.steps_per_call())
        if tuner.size != before:
            before, changed = tuner.size, now
        began, left = now, steps
        while left:  # in pieces of the same speed
            piece = min(left, 1 + steps // 100)
            now += piece * step_seconds(tuner.size, now, now - changed)
            left -= piece
        tuner.record((now - began) / steps, steps)
        calls.append((began, tuner.size, now - began, steps))
    return calls


def busy_from_2_to_4(size, now, since):
    quiet, busy = {1: (3e-6, 6e-6), 2: (2e-6, 2e-5)}[size]
    return busy if 2 <= now < 4 else quiet


def cold_for_a_while(size, now, since):
    """Steps take five times as long within a millisecond after a change; two threads are faster
    from 2 s on."""
    seconds = {1: 10e-6, 2: 14e-6 if now < 2 else 8e-6}[size]
    return seconds * (5 if since < 1e-3 else 1)


def disturbed_now_and_then(size, now, since):
    """A step of two threads in fifty lasts five times as long."""
    return {1: 9e-4, 2: 5e-4 * (5 if int(now * 2000) % 50 == 0 else 1)}[size]


def long_steps(size, now, since):
    return {1: 18e-3, 2: 30e-3 if 2 <= now < 4 else 11e-3}[size]


@pytest.mark.parametrize(
    ("step_seconds", "choices", "most_steps"),
    [
        (busy_from_2_to_4, {2.0: 2, 4.0: 1, 8.0: 2}, 1 << 40),
        (busy_from_2_to_4, {2.0: 2, 4.0: 1, 8.0: 2}, 40),
        (cold_for_a_while, {2.0: 1, 6.0: 2}, 1 << 40),
        (disturbed_now_and_then, {8.0: 2}, 1),
        (long_steps, {2.0: 2, 4.0: 1, 8.0: 2}, 1 << 40),
    ],
    ids=["busy", "busy, short epochs", "cold caches", "disturbed, single steps", "long steps"],
)
def test_the_faster_choice_is_found_within_half_a_second(step_seconds, choices, most_steps):
    calls, begins = simulated(step_seconds, max(choices), most_steps), 0.0
    for ends, right in choices.items():
        settled = [call for call in calls if begins + 0.5 <= call[0] and call[0] + call[2] <= ends]
        trials = [call for call in settled if call[1] != right]
        whole = sum(call[2] for call in settled)
        best = sum(call[3] * step_seconds(right, call[0], 1.0) for call in settled)
        assert sum(call[2] for call in trials) < 0.07 * whole and whole < 1.03 * best
        begins = ends


def test_short_work_has_one_thread():
    """Two threads, whose steps last 20 ms each on a busy machine, are tried soon."""
    calls = simulated(lambda size, *_: {1: 1e-4, 2: 2e-2}[size], 0.2)
    assert all(size == 1 for began, size, *_ in calls if began < 0.04)
    assert sum(call[2] for call in calls if call[1] == 2) < 0.05


@pytest.mark.parametrize(
    ("looks", "begins", "ends"),
    [
        (itertools.repeat(2), 0.0015, 0.004),
        (itertools.chain([1] * 12, itertools.repeat(2)), 0.015, 0.03),
        (itertools.cycle([2, 2, 1]), 0.04, 0.06),
        (itertools.repeat(0), 0.04, 0.06),
    ],
    ids=["idle", "idle later", "idle now and then", "not known"],
)
def test_threads_are_tried_at_once_where_their_cpus_are_idle(looks, begins, ends):
    calls = simulated(lambda size, *_: {1: 1e-4, 2: 6e-5}[size], 0.2, idle=lambda: next(looks))
    assert begins < next(began for began, size, *_ in calls if size == 2) < ends


def test_idle_cpus_are_those_that_no_other_thread_runs_on(monkeypatch, tmp_path):
    file = tmp_path / "loadavg"
    monkeypatch.setattr(threads, "Path", lambda _: file)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    assert threads.idle_cpus() == 0
    for text, idle in (("0.1 0 0 1/99 7", 4), ("9 9 9 4/99 7", 1), ("9 9 9 8/99 7", 0), ("", 0)):
        file.write_text(text)
        assert threads.idle_cpus() == idle


def test_a_call_soon_holds_all_steps_of_a_short_epoch():
    tuner, lengths = ThreadTuner(1), []
    for _ in range(12):  # epochs of 7 steps
        done = 0
        while done < 7:
            steps = min(7 - done, tuner.steps_per_call())
            tuner.record(1e-4, steps)
            done += steps
            lengths.append(steps)
    assert lengths[-8:] == [7] * 8


def test_a_call_grows_at_most_twofold_and_is_short_on_a_machine_that_becomes_busy():
    """Two threads take 2 µs a step, 400 µs on the busy machine, one thread 3 µs and 6 µs."""
    tuner, lengths, sizes, most = ThreadTuner(2, lambda: 0), [], [], {1: 0, 2: 0}
    for call in range(300):
        busy = 100 <= call < 110 or call >= 200
        steps = tuner.steps_per_call()
        assert steps <= max(8, 2 * most[tuner.size]) or call < 4
        seconds = {1: (3e-6, 6e-6), 2: (2e-6, 4e-4)}[tuner.size][busy]
        tuner.record(seconds, steps)
        most[tuner.size] = steps
        lengths.append(steps * seconds)
        sizes.append(tuner.size)
    quiet = lengths[70:100]
    assert max(quiet) < 0.027 and sorted(quiet)[len(quiet) // 2] > 0.02
    changes = {sizes.index(2, 100), sizes.index(2, 200)}  # nothing has told of the change before
    slow = [call for call, length in enumerate(lengths) if length > 0.06]
    assert set(slow) <= changes, [(call, lengths[call]) for call in slow]


# --- the interface of a network ----------------------------------------------------------------


def test_a_network_has_the_methods_of_lowerable_with_the_same_arguments():
    net = nn.Sequential([nn.Dense(2)], 3)
    assert isinstance(net, Lowerable)
    methods = {
        name
        for name, value in vars(Lowerable).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert {"layer_ops", "loss_ops", "resolve_loss", "check_data", "score"} <= methods
    for name in methods:
        ours, promised = (
            inspect.signature(getattr(nn.Sequential, name)),
            inspect.signature(getattr(Lowerable, name)),
        )
        assert [(one.name, one.kind, one.default) for one in ours.parameters.values()] == [
            (one.name, one.kind, one.default) for one in promised.parameters.values()
        ]


# --- threads and processes ---------------------------------------------------------------------

TOGETHER = """
import sys, threading
import numpy as np
import numbanet as nn
from numbanet.backend.threads import threading_layer

x = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
y = np.arange(500) % 3

def train(seed, results):
    layers = [nn.Dense(64, activation="relu"), nn.Dense(3, activation="softmax")]
    net = nn.Sequential(layers, 40, seed=seed)
    net.fit(x, y, batch_size=50, epochs=20, optimizer=nn.Adam(), threads=2, verbose=0)
    results[seed] = net.parameters.tobytes() + net.predict(x).tobytes()

alone, together = {}, {}
for seed in (1, 2):
    train(seed, alone)
threads = [threading.Thread(target=train, args=(seed, together)) for seed in (1, 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert alone == together and alone[1] != alone[2]
print(threading_layer())
"""


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_two_threads_train_as_one_would(layer):
    process = script(TOGETHER, **({} if layer == "default" else {"NUMBA_THREADING_LAYER": layer}))
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert layer == "default" or said.strip() == layer


def test_two_threads_use_one_network_to_predict():
    x, _ = data(700)
    net = network()
    expected = net.predict(x)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append([net.predict(x) for _ in range(20)]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(
        np.array_equal(one, expected) for each in results for one in each
    )


FORKED = """
import os
import numpy as np
import numbanet as nn

x = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
y = np.arange(500) % 3

def train(net):
    net.fit(x, y, batch_size=50, epochs=3, optimizer=nn.Adam(), threads=2, verbose=0)
    return net.parameters.tobytes() + net.predict(x).tobytes()

def build():
    layers = [nn.Dense(64, activation="relu"), nn.Dense(3, activation="softmax")]
    return nn.Sequential(layers, 40, seed=3)

net = build()
once = train(net)
ours, theirs = os.pipe()
child = os.fork()
if child == 0:
    same = train(build()) == once
    further = train(net)
    os.write(theirs, (b"same" if same else b"other") + b" " + further)
    os._exit(0)
os.close(theirs)
with os.fdopen(ours, "rb") as pipe:
    word, _, further = pipe.read().partition(b" ")
assert os.waitpid(child, 0)[1] == 0, "the child died"
assert word == b"same"
assert further == train(net)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_a_forked_child_trains_as_its_parent(layer):
    process = script(FORKED, **({} if layer == "default" else {"NUMBA_THREADING_LAYER": layer}))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


# --- what is left behind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda net, x, y: fit(net, x, y),
        lambda net, x, y: fit(net, x[:20].copy(), y[:20].copy(), validation_data=(x, y)),
        lambda net, x, y: net.predict(x),
        lambda net, x, y: net.evaluate(x, y),
        lambda net, x, y: net.gradient(x, y),
    ],
    ids=["fit", "validation", "predict", "evaluate", "gradient"],
)
def test_the_network_keeps_no_data(use):
    x, y = data()
    net = network()
    use(net, x, y)
    inputs, targets = weakref.ref(x), weakref.ref(y)
    del x, y
    assert inputs() is None and targets() is None


# --- one training at a time ---------------------------------------------------------------------


def nested(action):
    """What comes of a fit with Adam whose callback does something to the network in training."""
    x, y = data()
    net = network()
    with pytest.raises(RuntimeError) as caught:
        fit(
            net,
            x,
            y,
            optimizer=nn.Adam(),
            epochs=3,
            callbacks=[lambda epoch, logs, net: action(net, x, y)],
        )
    assert np.isfinite(net.parameters).all()
    # it can be trained afterwards
    assert len(fit(net, x, y, optimizer=nn.Adam(), epochs=2).seconds) == 2
    return str(caught.value)


def test_a_callback_cannot_train_the_network_in_training():
    assert "fit was called on a network that is in training" in nested(
        lambda net, x, y: fit(net, x, y, optimizer="sgd")
    )


def test_a_callback_cannot_start_the_network_in_training_anew():
    assert "initialize was called" in nested(lambda net, x, y: net.initialize())


def test_a_callback_cannot_take_the_optimizers_state_away():
    def replace(net, x, y):
        net.optimizer_state = np.zeros(0, net.dtype)

    assert "optimizer_state were replaced" in nested(replace)


def test_a_callback_may_predict_evaluate_and_write_parameters():
    x, y = data()
    net, seen = network(), []

    def look(epoch, logs, net):
        seen.append((net.predict(x[:3]).shape, net.evaluate(x, y)["loss"], net.gradient(x, y).size))
        net.parameters = net.parameters * 0.5

    fit(net, x, y, epochs=2, callbacks=[look])
    assert len(seen) == 2


def test_a_second_thread_is_told_that_the_network_is_in_training():
    x, y = data()
    net, begun, told = network(), threading.Event(), threading.Event()

    class Wait(Callback):
        def on_epoch_end(self, epoch, logs, network):
            begun.set()
            assert told.wait(60)

    first = threading.Thread(
        target=lambda: fit(net, x, y, optimizer=nn.Adam(), epochs=2, callbacks=[Wait()])
    )
    first.start()
    assert begun.wait(60)
    try:
        with pytest.raises(RuntimeError, match="another thread is training"):
            fit(net, x, y, optimizer="sgd")
    finally:
        told.set()
        first.join()
    assert net.epoch == 2 and type(net.optimizer) is nn.Adam


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_an_interrupt_in_any_native_call_leaves_a_network_that_trains_on(call, monkeypatch):
    original, calls = executor.Executor.run_batches, []

    def work(self, *arguments):
        result = original(self, *arguments)
        calls.append(result)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    x, y = data(2000)
    net = network()
    monkeypatch.setattr(executor.Executor, "run_batches", work)
    with pytest.raises(KeyboardInterrupt):
        fit(net, x, y, batch_size=2, epochs=50, threads=2)
    assert len(calls) == call
    assert len(fit(net, x, y, batch_size=2, epochs=3, threads=2).seconds) == 3
    assert np.isfinite(net.parameters).all()
