"""The cost model counts what the layers do, and measures without a trace."""

import numpy as np
import pytest

import numbanet as nn
from numbanet.network.profiler import costs, peak, table


def network():
    layers = [
        nn.Conv2D(3, 3, activation="relu"),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dense(5, activation="tanh"),
        nn.Dense(2, activation="softmax"),
    ]
    return nn.Sequential(layers, (8, 10, 2), seed=1)


@pytest.fixture(scope="module")
def measured():
    net = network()
    generator = np.random.default_rng(0)
    x, y = generator.random((40, 8, 10, 2), np.float32), generator.integers(0, 2, 40)
    return net, costs(net, x, y, batch_size=16)


def test_every_verb_of_a_training_step_is_there(measured):
    verbs = [(one.layer, one.verb) for one in measured[1]]
    # the first layer has no backward pass
    assert [verb for layer, verb in verbs if layer == "Conv2D"] == ["forward", "accumulate"]
    assert [verb for layer, verb in verbs if layer == "Dense"] == [
        "forward",
        "backward",
        "gradient",
    ] * 2
    assert ("MaxPool2D", "backward") in verbs and ("CrossEntropy", "backward") in verbs


def test_operations_are_two_for_each_use_of_a_weight(measured):
    forward = {one.layer: one.flops for one in measured[1] if one.verb == "forward"}
    assert forward["Conv2D"] == 2 * (3 * 3 * 2 * 3) * (6 * 8)
    assert next(one.flops for one in measured[1] if one.layer == "Dense") == 2 * 36 * 5


def test_times_and_shares_are_positive(measured):
    assert all(one.microseconds > 0 and one.share > 0 and one.bytes > 0 for one in measured[1])


def test_the_network_stays_as_it_was(measured):
    assert np.array_equal(measured[0].parameters, network().parameters)


def test_the_table_has_a_line_for_each_and_a_sum(measured):
    lines = table(measured[1]).splitlines()
    assert (
        len(lines) == len(measured[1]) + 4 and lines[-1].startswith("sum") and "of peak" in lines[0]
    )
    assert "Conv2D" in measured[0].profile(np.ones((4, 8, 10, 2)), [0, 1, 0, 1])


def test_the_peak_of_float32_is_above_that_of_float64():
    assert peak("float32") > peak("float64") > 0
