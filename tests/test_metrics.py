"""Metrics by name: equal to scikit-learn's, in evaluate and on the validation data of fit."""

import re
import warnings

import numpy as np
import pytest

import numbanet as nn
from numbanet.nn import metrics
from numbanet.training.callbacks import Checkpoint, EarlyStopping

GENERATOR = np.random.default_rng(0)
SAMPLES = 80
X = GENERATOR.normal(size=(SAMPLES, 6))
WEIGHTS = GENERATOR.uniform(0, 2, SAMPLES)
WEIGHTS[:5] = 0


def probabilities(*shape):
    """Outputs with ties."""
    return np.round(GENERATOR.uniform(size=shape), 1)


EXCLUSIVE = GENERATOR.integers(0, 4, SAMPLES), probabilities(SAMPLES, 5)
BINARY = GENERATOR.integers(0, 2, SAMPLES), probabilities(SAMPLES, 1)
SEVERAL = GENERATOR.integers(0, 2, (SAMPLES, 3)), probabilities(SAMPLES, 3)
REAL = GENERATOR.normal(size=(SAMPLES, 2)), GENERATOR.normal(size=(SAMPLES, 2))


def by_scikit_learn(name, y, outputs, weights):
    """The metric as scikit-learn computes it from labels."""
    measures = pytest.importorskip("sklearn.metrics")
    options = {"sample_weight": weights}
    if name in ("rmse", "mean_squared_error", "mean_absolute_error", "r2"):
        if name == "r2":
            return measures.r2_score(y, outputs, multioutput="variance_weighted", **options)
        function = "root_mean_squared_error" if name == "rmse" else name
        if name == "rmse":  # scikit-learn's mean of roots is another thing for several targets
            return np.sqrt(measures.mean_squared_error(y, outputs, **options))
        return getattr(measures, function)(y, outputs, **options)
    if y.ndim == 2:
        given, average = outputs > 0.5, "macro"
    elif outputs.shape[1] == 1:
        given, average = outputs[:, 0] > 0.5, "binary"
    else:
        given, average = outputs.argmax(axis=1), "macro"
    if name == "accuracy":
        return measures.accuracy_score(y, given, **options)
    if name.startswith("top_"):
        labels = np.arange(outputs.shape[1])
        return measures.top_k_accuracy_score(y, outputs, k=int(name[4:]), labels=labels, **options)
    if name == "auc":
        areas = [
            measures.roc_auc_score(true, score, **options)
            for true, score in (
                zip(y.T, outputs.T, strict=True)
                if y.ndim == 2
                else [(y, outputs[:, 0])]
                if outputs.shape[1] == 1
                else [(y == c, outputs[:, c]) for c in range(4)]
            )
        ]
        return np.mean(areas)
    options |= {"average": average, "zero_division": 0}
    return getattr(measures, f"{name}_score")(y, given, **options)


CASES = [
    (name, data)
    for data in ("EXCLUSIVE", "BINARY", "SEVERAL")
    for name in ("accuracy", "precision", "recall", "f1", "auc")
] + [("top_2", "EXCLUSIVE"), ("top_3", "EXCLUSIVE")]
CASES += [(name, "REAL") for name in ("rmse", "r2", "mean_squared_error", "mean_absolute_error")]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("name", "data"), CASES)
def test_a_metric_is_that_of_scikit_learn(name, data, weights):
    y, outputs = globals()[data]
    if name == "auc" and data == "EXCLUSIVE":
        outputs = outputs[:, :4]
    expected = by_scikit_learn(name, y, outputs, weights)
    found = metrics.measure(metrics.metrics(name), y, outputs, weights)
    assert list(found) == [name]
    np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    rows = np.eye(outputs.shape[1])[y] if data == "EXCLUSIVE" else y.astype(float)
    if data in ("EXCLUSIVE", "SEVERAL"):
        again = metrics.measure(metrics.metrics([name]), rows, outputs, weights)
        assert again == pytest.approx(found, rel=1e-14)


def test_an_area_without_both_kinds_is_not_a_number():
    assert np.isnan(metrics.auc(np.ones(4, int), np.linspace(0, 1, 4)[:, None]))
    assert metrics.auc([0, 0, 1, 1], np.array([[0.1], [0.2], [0.8], [0.9]])) == 1


def median_error(y, outputs):
    return np.median(abs(y - outputs))


def weighed(y, outputs, sample_weight):
    return 0 if sample_weight is None else sample_weight.sum()


def network(last="softmax", outputs=3):
    return nn.Sequential([nn.Dense(outputs, activation=last)], 6, "float64", seed=1)


def test_metrics_of_fit_are_those_of_evaluate(tmp_path):
    net, y = network(), np.digitize(X[:, 0], [-0.5, 0.5])
    wanted = ["f1", "top_2", metrics.precision, weighed]
    held = {"x": X[:30], "y": y[:30], "sample_weight": WEIGHTS[:30]}
    history = net.fit(
        X,
        y,
        epochs=4,
        optimizer=nn.Adam(0.1),
        validation_data=held,
        metrics=wanted,
        callbacks=[
            EarlyStopping("val_f1", patience=9),
            Checkpoint(tmp_path, monitor="val_top_2"),
        ],
        verbose=0,
    ).history
    names = [name for name in history if name not in ("loss", "accuracy")]
    expected = ["loss", "accuracy", "f1", "top_2", "precision", "weighed"]
    assert names == [f"val_{name}" for name in expected]
    assert history["val_f1"][-1] > history["val_f1"][0]
    best = int(np.argmax(history["val_f1"]))
    found = net.evaluate(**held, metrics=wanted)
    for name in ("loss", "f1", "top_2", "precision"):
        assert found[name] == pytest.approx(history[f"val_{name}"][best], rel=1e-12)
    assert found["weighed"] == WEIGHTS[:30].sum()
    assert list(found) == ["loss", "accuracy", "mistakes", *expected[2:]]


def test_metrics_of_real_targets_are_in_their_unit():
    net, y = network(None, 1), 1000 + 50 * X[:, :1]
    options = {"scale_targets": True, "validation_split": 0.5, "metrics": [median_error, "mae"]}
    history = net.fit(X, y, epochs=2, verbose=0, **options).history
    errors = abs(y - net.predict(X))[40:]
    assert history["val_median_error"][-1] == pytest.approx(np.median(errors))
    assert history["val_mean_absolute_error"][-1] == pytest.approx(errors.mean())
    found = net.evaluate(X, y, metrics="mae")
    assert list(found) == ["loss", "rmse", "r2", "mean_absolute_error"]
    assert nn.Ensemble([net]).evaluate(X, y, metrics="mae") == pytest.approx(found)


def test_own_metrics_are_given_missing_targets_masked():
    seen, y = [], np.ma.array(X[:, :2], mask=X[:, :2] > 1)

    def error(y, outputs):
        seen.append(y)
        return abs(y - outputs).mean()

    net = network(None, 2)
    found = net.evaluate(X, y, metrics=[error, "mean_absolute_error"])
    assert found["error"] == pytest.approx(found["mean_absolute_error"])
    np.testing.assert_array_equal(seen[0].mask, y.mask)
    net.evaluate(X, y.data, metrics=error)
    assert not isinstance(seen[1], np.ma.MaskedArray)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val_auc", "^val_auc is monitored and is NaN, .*; a class has no sample in these data"),
        ("val_undefined", "val_undefined is monitored and is NaN, .* not defined for these data"),
        ("val_loss", None),
    ],
)
def test_a_monitored_metric_that_is_nan_is_noticed_once(optimizer, monitor, message):
    pytest.importorskip("scipy")

    def undefined(y, outputs):
        return float("nan")

    options = {"validation_data": (X, 0 * Y), "metrics": ["auc", undefined], "verbose": 0}
    options |= {"optimizer": optimizer, "batch_size": None, "epochs": 3}
    watch = EarlyStopping(monitor, patience=3, mode="max")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network().fit(X, Y, callbacks=watch, **options)
    assert len(caught) == (message is not None)
    for one in caught:
        assert re.search(message, str(one.message))
        assert one.filename == __file__ or optimizer == "lbfgs"  # called by SciPy


def test_a_plateau_of_nan_is_noticed():
    rate = nn.schedules.ReduceOnPlateau(0.01, "val_auc")
    with pytest.warns(RuntimeWarning, match="val_auc is monitored and is NaN"):
        network().fit(
            X, Y, optimizer=nn.Adam(rate), validation_data=(X, 0 * Y), metrics="auc", verbose=0
        )


def test_lbfgs_measures_them_too():
    pytest.importorskip("scipy")
    y = np.digitize(X[:, 0], [-0.5, 0.5])
    options = {"optimizer": "lbfgs", "batch_size": None, "verbose": 0, "epochs": 2}
    history = network().fit(X, y, validation_data=(X, y), metrics="f1", **options).history
    assert len(history["val_f1"]) == 2


Y = np.arange(SAMPLES) % 3
HELD = {"validation_data": (X, Y)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": "f1"}, ValueError, "measured on validation data; pass validation_data"),
        ({"metrics": "f2", **HELD}, ValueError, "unknown metric 'f2' .known: accuracy, top_5,"),
        ({"metrics": "topp5", **HELD}, ValueError, "'topp5'; did you mean 'top_5'"),
        ({"metrics": "balanced_accuracy", **HELD}, ValueError, "did you mean 'accuracy'"),
        ({"metrics": "top_0", **HELD}, ValueError, "unknown metric 'top_0'"),
        ({"metrics": 3, **HELD}, TypeError, "a metric is a name or a function .*, not 3"),
        ({"metrics": lambda y, a: 1, **HELD}, ValueError, "has no name .* define it by def"),
        ({"metrics": ["f1", "f1"], **HELD}, ValueError, "metrics: there is another 'f1'"),
        ({"metrics": "loss", **HELD}, ValueError, "unknown metric 'loss'"),
    ],
)
def test_metrics_that_are_none(options, error, message):
    net = network()
    with pytest.raises(error, match=message):
        net.fit(X, Y, verbose=0, **options)
    assert net.epoch == 0


@pytest.mark.parametrize(
    ("y", "outputs", "name", "error", "message"),
    [
        (Y, 3, "top_3", ValueError, "top_3 needs more than 3 outputs, the network has 3"),
        (X[:, :3], 3, "f1", ValueError, "needs targets that name classes, y has rows such as"),
        (X[:, 0], 1, "accuracy", ValueError, r"name classes, y has -?\d.* at \["),
        (Y, 3, "rmse", ValueError, r"a real target for each .*, 3\): for labels take accuracy"),
        (Y, 3, median_error, ValueError, "operands could not be broadcast"),
        (Y, 3, metrics.confusion_matrix, TypeError, "confusion_matrix returned .* not a number"),
    ],
)
def test_metrics_that_do_not_fit(y, outputs, name, error, message):
    net = network(None if y is not Y else "softmax", outputs)
    with pytest.raises(error, match=message):
        net.evaluate(X, y, metrics=name)
    with pytest.raises(error, match=message):
        net.fit(X, y, validation_data=(X, y), metrics=name, verbose=0)
    assert net.epoch == 0


@pytest.mark.parametrize("callback", [EarlyStopping, lambda name: Checkpoint("x", monitor=name)])
def test_the_direction_of_an_own_metric_must_be_said(callback, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"metrics": [weighed], "validation_data": (X, Y), "verbose": 0}
    with pytest.raises(ValueError, match="say by mode='min' or 'max' when val_weighed is better"):
        network().fit(X, Y, callbacks=callback("val_weighed"), **options)
    stopping = EarlyStopping("val_weighed", patience=1, mode="max")
    assert len(network().fit(X, Y, epochs=9, callbacks=stopping, **options).seconds) == 2
