"""The cost model counts what the layers do, and measures without a trace."""

import copy
import pickle

import numpy as np
import pytest

import numbanet as nn
from numbanet.backend.threads import max_threads
from numbanet.io.tables import Table
from numbanet.network.profiler import (
    Cost,
    Profile,
    StepProfile,
    account,
    best_rate,
    peak,
    profile,
    step_profile,
)


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
    shown = str(measured[0].profile(np.ones((4, 8, 10, 2)), [0, 1, 0, 1]))
    assert "Conv2D" in shown and "waiting" in shown


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
    table = Profile(COSTS, before, after, None).table()
    *_, first, second, _, _ = [line for line in table.splitlines() if "disturbed" not in line]
    assert [line.split()[-1] for line in (first, second)] == shares
    assert note in table and ("disturbed" in table) == bool(note)


def test_the_peak_is_measured_again_while_the_best_two_rounds_differ():
    rates = iter([1.0, 2.0, 1.0, 3.0, 1.0, 5.0, 1.0, 5.05, 9.0])
    assert best_rate(lambda: next(rates), rounds=5) == 5.05 and next(rates) == 9.0
    rates = iter(2.0**k for k in range(1000))
    assert best_rate(lambda: next(rates), rounds=5, limit=0.0) == 16.0


def test_the_peak_of_float32_is_above_that_of_float64():
    """On a busy machine once in a few attempts."""
    assert any(peak("float32") > peak("float64") > 0 for _ in range(5))


# --- whole steps -------------------------------------------------------------------------------


def test_the_time_of_a_step_is_shared_out_between_kernels_waiting_and_the_rest():
    """Two threads, batch 10, two barriers in a step; places 0, 1 before the first, 2 before the
    second. The second thread has nothing to do before it."""
    events = [
        [(0, 0, 100, 110), (1, 0, 112, 120), (2, 0, 131, 150)],
        [(0, 0, 101, 107), (1, 0, 107, 128)],
    ]
    later = [[(place, 10, a + 60, b + 60) for place, _, a, b in one] for one in events]
    last = [(0, 20, 220, 221)]  # of a step that is not whole
    found = [np.array([*a, *b, *last]) for a, b in zip(events, later, strict=True)]
    kernels, waiting, between, step = account(found, np.array([0, 0, 1]), 10)
    # the second step, from the second barrier at 150, is the longer one: 60 instead of 50
    assert step == 50 and kernels.tolist() == [[10, 8, 19], [6, 21, 0]]
    assert waiting.tolist() == [8, 22] and between.tolist() == [5, 1]


def whole_steps(optimizer, threads, **more):
    layers = [
        nn.Conv2D(4, 3),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dense(2, activation="softmax"),
    ]
    net = nn.Sequential(layers, (8, 10, 2), seed=1)
    generator = np.random.default_rng(0)
    x, y = generator.random((40, 8, 10, 2), np.float32), generator.integers(0, 2, 40)
    before = net.memory.copy()
    step = net.profile(x, y, batch_size=16, optimizer=optimizer, threads=threads, **more).step
    assert np.array_equal(net.memory, before) and net.optimizer is None
    return step


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("optimizer", "verbs"),
    [
        (nn.SGD(0.1), {("SGD", "update")}),
        (
            nn.Adam(clip_norm=1.0, average=0.9),
            {("Adam", "begin step"), ("Adam", "update"), ("Adam", "clip"), ("Adam", "average")},
        ),
    ],
    ids=["SGD", "gradients kept"],
)
def test_whole_steps_have_all_their_kernels_on_every_thread(optimizer, verbs, threads):
    step = whole_steps(optimizer, threads)
    assert step.batch == 16 and step.plain > 0
    expected = {("Conv2D", "forward"), ("Conv2D", "accumulate"), ("BatchNorm", "statistics")}
    expected |= {("Dense", "forward"), ("Dense", "backward"), ("Dense", "gradient")}
    assert expected | verbs <= step.kernels.keys()
    in_kernels = sum(step.kernels.values())
    assert in_kernels.shape == step.waiting.shape and len(in_kernels) in (1, threads)
    assert (step.waiting >= 0).all() and (step.between > 0).all()
    assert np.allclose(in_kernels + step.waiting + step.between, step.timed)
    if threads == 1:
        assert step.waiting.tolist() == [0]


def test_what_differs_from_what_was_asked_is_said():
    x, y = np.ones((8, 3)), np.ones((8, 1))
    with pytest.raises(ValueError, match="LBFGS takes all samples at once; pass another optimizer"):
        nn.Sequential([nn.Dense(1)], 3).profile(x, y, optimizer="lbfgs")
    network, most = nn.Sequential([nn.Dense(1)], 3), max_threads()
    step = step_profile(network, x, y, network.resolve_loss(None), 8, None, most + 3)
    assert f" of {most + 3} threads, no more can be used here" in step.table()
    step = step_profile(network, x, y, network.resolve_loss(None), 8, None, None)
    assert ("as many as in fit" in step.table()) == (most > 1) and len(step.waiting) == 1
    step = step_profile(network, x, y, network.resolve_loss(None), 8, None, 1)
    assert step.table().endswith("without the clocks")


def test_a_loss_that_is_not_finite_is_said():
    net = nn.Sequential([nn.Dense(1)], 3)
    net.parameters[:] = 3e38
    with pytest.raises(ArithmeticError, match="loss of step 1 is not a finite number"):
        net.profile(np.ones((8, 3)), np.ones((8, 1)))


def test_steps_behind_the_lengths_are_not_taken():
    net = nn.Sequential([nn.RNN(3, activation="relu"), nn.Dense(1)], (4, 2), "float64")
    net.parameters[:] = 0.9
    x, y, lengths = np.ones((12, 4, 2)), np.ones((12, 1)), np.resize([2, 3, 1], 12)
    x[np.arange(4) >= lengths[:, None]] = 1e308
    verbs = {one.layer for one in net.profile(x, y, batch_size=4, lengths=lengths).costs}
    assert "RNN" in verbs
    with pytest.raises(ArithmeticError, match="not a finite number"):
        net.profile(x, y, batch_size=4)


def test_many_threads_have_two_columns():
    many = np.arange(1.0, 7.0)
    step = StepProfile(8, {("Dense", "forward"): many}, 0 * many, 7 - many, 7.0, 6.5)
    header, _, first, *_, note = step.table().splitlines()
    assert header.split()[-5:] == ["mean", "slowest", "of", "the", "step"]
    assert first.split() == ["Dense", "forward", "3.50", "6.00", "50.0%"]
    assert note == "A step of 8 takes 6.50 µs without the clocks"


# --- tables at a prompt and in a notebook ------------------------------------------------------


def test_tables_show_themselves_at_a_prompt_and_in_a_notebook(measured):
    assert repr(measured[1]) == str(measured[1])
    assert measured[1]._repr_html_().count("<table>") == 2
    for table in (measured[0].summary(), measured[1].table(), measured[1].step.table()):
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
