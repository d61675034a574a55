"""The cost model counts what the layers do, and measures without a trace."""

import copy
import pickle

import numpy as np
import pytest

import numbanet as nn
from numbanet.io.tables import Table
from numbanet.network.profiler import Cost, Profile, best_rate, peak, profile


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
    return net, profile(net, x, y, batch_size=16)


def test_every_verb_of_a_training_step_is_there(measured):
    verbs = [(one.layer, one.verb) for one in measured[1].costs]
    # the first layer has no backward pass
    assert [verb for layer, verb in verbs if layer == "Conv2D"] == ["forward", "accumulate"]
    assert [verb for layer, verb in verbs if layer == "Dense"] == [
        "forward",
        "backward",
        "gradient",
    ] * 2
    assert ("MaxPool2D", "backward") in verbs and ("CrossEntropy", "backward") in verbs


def test_operations_are_two_for_each_use_of_a_weight(measured):
    forward = {one.layer: one.flops for one in measured[1].costs if one.verb == "forward"}
    assert forward["Conv2D"] == 2 * (3 * 3 * 2 * 3) * (6 * 8)
    assert next(one.flops for one in measured[1].costs if one.layer == "Dense") == 2 * 36 * 5


def test_times_and_speeds_are_positive(measured):
    assert all(
        one.microseconds > 0 and one.speed > 0 and one.bytes > 0 for one in measured[1].costs
    )


def test_the_network_stays_as_it_was(measured):
    assert np.array_equal(measured[0].parameters, network().parameters)


def test_the_table_has_a_line_for_each_and_a_sum(measured):
    lines = [line for line in measured[1].table().splitlines() if "disturbed" not in line]
    assert len(lines) == len(measured[1].costs) + 4 and lines[-1].startswith("sum")
    assert lines[0].endswith("of peak")
    assert "Conv2D" in measured[0].profile(np.ones((4, 8, 10, 2)), [0, 1, 0, 1])


COSTS = [Cost("Dense", "forward", 1.0, 1000.0, 100.0), Cost("Dense", "backward", 1.0, 2000.0, 9.0)]


@pytest.mark.parametrize(
    ("before", "after", "shares", "note"),
    [
        (4e9, 3.9e9, ["25%", "50%"], ""),
        (1e9, 4e9, ["25%", "50%"], "disturbed: the peak was 1 GFLOP/s before it and 4 after"),
        (1e9, 0.9e9, ["50%", "100%"], "disturbed: a kernel was faster than the peak as it was mea"),
    ],
)
def test_no_fraction_of_the_peak_is_above_one(before, after, shares, note):
    table = Profile(COSTS, before, after).table()
    *_, first, second, _, _ = [line for line in table.splitlines() if "disturbed" not in line]
    assert [line.split()[-1] for line in (first, second)] == shares
    assert note in table and ("disturbed" in table) == bool(note)


def test_the_peak_is_measured_again_while_the_best_two_rounds_differ():
    rates = iter([1.0, 2.0, 1.0, 3.0, 1.0, 5.0, 1.0, 5.05, 9.0])
    assert best_rate(lambda: next(rates), rounds=5) == 5.05 and next(rates) == 9.0
    rates = iter(2.0**k for k in range(1000))
    assert best_rate(lambda: next(rates), rounds=5, limit=0.0) == 16.0


def test_the_peak_of_float32_is_above_that_of_float64():
    assert peak("float32") > peak("float64") > 0


# --- tables at a prompt and in a notebook ------------------------------------------------------


def test_tables_show_themselves_at_a_prompt_and_in_a_notebook(measured):
    for table in (measured[0].summary(), measured[1].table()):
        assert isinstance(table, str) and repr(table) == str(table) and "\n" in repr(table)
        shown = table._repr_html_()
        assert shown.startswith("<table>") and shown.count("<tr>") == len(table.rows)
        for same in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
            assert same == table and same._repr_html_() == shown
    ensemble = nn.Ensemble([network()]).summary()
    assert repr(ensemble) == str(ensemble) == ensemble


def test_a_table_in_a_notebook_is_escaped():
    table = Table([("a", "b"), ("<script>", "1 & 2"), ("total", "")], left=1, note="<b>")
    shown = table._repr_html_()
    assert "&lt;script&gt;" in shown and "1 &amp; 2" in shown and "<p>&lt;b&gt;</p>" in shown
    assert "<script>" not in shown and shown.count("<th") == 4 == 2 * shown.count("<td")
    assert table.splitlines()[0] == "a             b" and table.splitlines()[-1] == "<b>"
