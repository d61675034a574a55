"""Ensembles: their common prediction, their training, and their file."""

import json

import numpy as np
import pytest

import numbanet as nn
from numbanet.io import safetensors
from numbanet.training.callbacks import EarlyStopping


def build(seed, hidden=7, last="softmax", outputs=3, **options):
    return nn.Sequential(
        [nn.Dense(hidden, activation="tanh"), nn.Dense(outputs, activation=last)],
        4,
        seed=seed,
        **options,
    )


def data(samples=90, seed=0):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, samples)
    return (generator.normal(size=(samples, 4)) + 1.5 * np.eye(4)[y]).astype("float32"), y


def says(*rows, outputs=3, last=None):
    """A network that gives these numbers, whatever it is asked: a bias and no weights."""
    net = nn.Sequential([nn.Dense(outputs, activation=last)], 2, "float64")
    net.parameters[:] = 0
    net.layers[0].bias = rows
    return net


NOTHING = np.zeros((1, 2))


# --- combining ---------------------------------------------------------------------------------


def test_the_mean_of_the_outputs():
    x, _ = data()
    ensemble = nn.Ensemble.from_builder(build, members=3)
    wanted = np.mean([net.predict(x) for net in ensemble.networks], axis=0)
    assert [net.seed for net in ensemble.networks] == [0, 1, 2]
    assert ensemble.predict(x).dtype == np.float32 and ensemble.predict(x).shape == (90, 3)
    np.testing.assert_allclose(ensemble.predict(x), wanted, rtol=1e-6)
    np.testing.assert_array_equal(ensemble.predict_classes(x), wanted.argmax(axis=1))


def test_a_vote_counts_networks_and_a_mean_weighs_them():
    networks = [says(0.9, 0.1, 0), says(0.3, 0.4, 0.3), says(0.3, 0.4, 0.3)]
    assert nn.Ensemble(networks, "mean").predict_classes(NOTHING).tolist() == [0]
    assert nn.Ensemble(networks, "vote").predict_classes(NOTHING).tolist() == [1]
    np.testing.assert_allclose(nn.Ensemble(networks, "vote").predict(NOTHING), [[0.5, 0.3, 0.2]])


def test_a_draw_goes_to_the_larger_sum_among_the_winners():
    # classes 0 and 2 have two votes each; 2 is the larger of them in sum, and 1 is larger still
    # without a vote
    networks = [
        says(0.5, 0.49, 0.01),
        says(0.5, 0.49, 0.01),
        says(0, 0.45, 0.55),
        says(0, 0.45, 0.55),
    ]
    assert nn.Ensemble(networks, "vote").predict_classes(NOTHING).tolist() == [2]
    assert nn.Ensemble(networks, "mean").predict_classes(NOTHING).tolist() == [1]


def test_networks_with_a_single_output():
    networks = [
        says(3.0, outputs=1, last="sigmoid"),
        says(-0.5, outputs=1, last="sigmoid"),
        says(-0.5, outputs=1, last="sigmoid"),
    ]
    assert nn.Ensemble(networks, "mean").predict_classes(NOTHING).tolist() == [1]
    assert nn.Ensemble(networks, "vote").predict_classes(NOTHING).tolist() == [0]


# --- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "outputs", "loss"),
    [
        ("softmax", 3, None),
        ("sigmoid", 3, None),
        ("softmax", 3, "quadratic"),
        ("sigmoid", 3, "mean_absolute_error"),
    ],
)
def test_an_ensemble_of_one_has_its_network_s_figures(last, outputs, loss):
    x, y = data()
    net = build(4, last=last, outputs=outputs, dtype="float64")
    wanted, found = net.evaluate(x, y, loss=loss), nn.Ensemble([net]).evaluate(x, y, loss=loss)
    assert list(found) == list(wanted) == ["loss", "accuracy", "mistakes"]
    assert (
        found["loss"] == pytest.approx(wanted["loss"], rel=1e-10)
        and found["mistakes"] == wanted["mistakes"]
    )
    assert found["accuracy"] == pytest.approx(wanted["accuracy"])


def test_figures_of_real_targets():
    x, _ = data()
    y = x[:, :2] ** 2
    ensemble = nn.Ensemble.from_builder(lambda seed: build(seed, last=None, outputs=2), members=2)
    found, mean = ensemble.evaluate(x, y), ensemble.predict(x).astype(np.float64)
    assert list(found) == ["loss", "rmse", "r2"]
    assert found["loss"] == pytest.approx(((mean - y) ** 2).mean(), rel=1e-6)
    assert found["rmse"] == pytest.approx(found["loss"] ** 0.5, rel=1e-6)


def test_accuracy_follows_the_vote():
    networks = [says(0.9, 0.1, 0), says(0.3, 0.4, 0.3), says(0.3, 0.4, 0.3)]
    assert nn.Ensemble(networks, "vote").evaluate(NOTHING, [1], loss="quadratic")["mistakes"] == 0
    assert nn.Ensemble(networks, "mean").evaluate(NOTHING, [1], loss="quadratic")["mistakes"] == 1


def test_a_sure_and_wrong_ensemble_has_a_finite_loss():
    sure = nn.Sequential([nn.Dense(3, activation="softmax")], 2)
    sure.parameters[:] = 0
    sure.layers[0].bias = [500, 0, 0]
    assert 80 < nn.Ensemble([sure]).evaluate(NOTHING, [1])["loss"] < 90


# --- training ----------------------------------------------------------------------------------


def test_every_network_is_trained_as_if_it_were_alone():
    x, y = data()
    options = {"optimizer": "adam", "epochs": 3, "verbose": 0, "validation_split": 0.2}
    ensemble = nn.Ensemble.from_builder(build, seeds=[5, 8])
    histories = ensemble.fit(x, y, **options)
    for seed, net, history in zip((5, 8), ensemble.networks, histories, strict=True):
        alone = build(seed)
        assert alone.fit(x, y, **options).history == history.history
        np.testing.assert_array_equal(net.parameters, alone.parameters)


def test_together_they_are_better():
    x, y = data(150, 1)
    ensemble = nn.Ensemble.from_builder(
        lambda seed: build(seed, hidden=3 + seed), members=5, combine="vote"
    )
    ensemble.fit(x, y, optimizer=nn.Adam(0.01), epochs=25, verbose=0)
    x, y = data(2000, 2)
    alone = [net.evaluate(x, y)["accuracy"] for net in ensemble.networks]
    assert ensemble.evaluate(x, y)["accuracy"] > np.mean(alone)


def test_callbacks_begin_anew_with_each_network():
    x, y = data()
    seen = []
    stop = EarlyStopping("loss", patience=1, restore_best=False)
    histories = nn.Ensemble.from_builder(build, members=2).fit(
        x,
        y,
        epochs=2,
        verbose=0,
        callbacks=[stop, lambda epoch, logs, network: seen.append((network.seed, epoch)) or False],
    )
    assert seen == [(0, 1), (0, 2), (1, 1), (1, 2)] and [len(h.seconds) for h in histories] == [
        2,
        2,
    ]


# --- the file ----------------------------------------------------------------------------------


def test_an_ensemble_comes_back_from_one_file_and_trains_on(tmp_path):
    x, y = data()
    options = {"optimizer": "adam", "epochs": 2, "verbose": 0}
    first = nn.Ensemble.from_builder(
        lambda seed: build(seed, hidden=4 + seed, penalty=nn.L2(0.01)), seeds=[2, 3], combine="vote"
    )
    first.fit(x, y, **options)
    first.save(tmp_path / "two")
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    second = nn.load(tmp_path / "two")
    assert (
        type(second) is nn.Ensemble
        and second.combine == "vote"
        and second.summary() == first.summary()
    )
    np.testing.assert_array_equal(second.predict(x), first.predict(x))
    first.fit(x, y, **options)
    second.fit(x, y, **options)
    for one, two in zip(first.networks, second.networks, strict=True):
        np.testing.assert_array_equal(one.parameters, two.parameters)
        assert two.epoch == 4


def rewritten(path, change=None, tensors=lambda found: found):
    found, strings = safetensors.read(path)
    content = json.loads(strings["ensemble"])
    if change is not None:
        change(content)
    safetensors.write(path, tensors(found), {**strings, "ensemble": json.dumps(content)})


@pytest.mark.parametrize(
    ("change", "tensors", "words"),
    [
        (lambda c: c.update(combine="median"), None, 'combine is "mean" or "vote", not \'median\''),
        (
            lambda c: c.pop("combine"),
            None,
            "the ensemble's description must have combine, networks, got networks",
        ),
        (lambda c: c.update(networks=3), None, "networks must be a list, got int"),
        (
            lambda c: c["networks"].pop(),
            None,
            "tensor '1/0.weights' belongs to none of the 1 networks",
        ),
        (
            lambda c: c["networks"][1].pop("seed"),
            None,
            "network 1: the network's description must have",
        ),
        (
            lambda c: c["networks"][1]["layers"][0].update(units=8),
            None,
            "network 1: tensor '0.weights' is float32",
        ),
        (
            None,
            lambda t: {k: v for k, v in t.items() if k != "1/2.bias"},
            "network 1: tensor '2.bias' is missing",
        ),
        (
            None,
            lambda t: {**t, "00/0.weights": t["0/0.weights"]},
            "tensor '00/0.weights' belongs to none of the 2 networks",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, tensors, words, tmp_path):
    nn.Ensemble.from_builder(build, members=2).save(tmp_path / "two")
    rewritten(tmp_path / "two", change, tensors or (lambda found: found))
    with pytest.raises(ValueError, match=words) as caught:
        nn.load(tmp_path / "two")
    assert str(caught.value).startswith(str(tmp_path / "two"))


def test_the_summary_shows_equal_networks_once():
    one = build(0).summary()
    assert (
        nn.Ensemble.from_builder(build, members=3).summary()
        == f"{one}\n\n3 networks, mean: {3 * build(0).parameters.size:,} parameters"
    )
    different = nn.Ensemble([build(0), build(1, hidden=5)], "vote").summary()
    assert (
        one in different
        and build(1, hidden=5).summary() in different
        and "2 networks, vote" in different
    )
    assert repr(nn.Ensemble([build(0)])) == "<Ensemble of 1, mean: (4,) → (3,)>"


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nn.Ensemble([]), ValueError, "at least one network"),
        (lambda: nn.Ensemble([build(0)], "median"), ValueError, 'combine is "mean" or "vote"'),
        (lambda: nn.Ensemble([nn.Dense(3)]), TypeError, "made of Sequentials"),
        (lambda: nn.Ensemble([build(0)] * 2), ValueError, "network 1 stands in the ensemble twice"),
        (
            lambda: nn.Ensemble([build(0), build(1, outputs=2)]),
            ValueError,
            r"gives \(3,\), network 1 takes \(4,\) and gives \(2,\)",
        ),
        (
            lambda: nn.Ensemble.from_builder(build, members=0),
            ValueError,
            "members must be an integer",
        ),
        (
            lambda: nn.Ensemble([build(1), build(1)]).fit(*data(), verbose=0),
            ValueError,
            "networks 0 and 1 have the same seed, 1",
        ),
        (
            lambda: nn.Ensemble([build(0), build(1, last="sigmoid")]).evaluate(*data()),
            ValueError,
            "one ends in Sigmoid",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
