"""The estimators: scikit-learn's own checks, and the same results as scikit-learn's classes."""

import _thread
import copy
import pickle
import subprocess
import sys
import threading
import time
import warnings
from typing import ClassVar

import numba
import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import neural_network
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification, make_multilabel_classification, make_regression
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, ParameterGrid, ParameterSampler, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

import numbanet as nn
from numbanet import sklearn as ours
from numbanet.engine.cpu.executor import TrainingExecutor
from numbanet.nn.optimizers import AdamEpsilonHat

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:Solver terminated early"),
]

ESTIMATORS = [
    ours.MLPClassifier(solver="lbfgs"),
    ours.MLPRegressor(solver="lbfgs"),
    ours.MLPClassifier(max_iter=100),
    ours.MLPRegressor(max_iter=100),
    ours.NetworkClassifier(),
    ours.NetworkRegressor(),
    ours.PopulationSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_has_nothing_to_object_to(estimator, check):
    check(estimator)


# --- the same as scikit-learn's classes --------------------------------------------------------

CLASSES = make_classification(90, 7, n_informative=5, n_classes=3, random_state=0)
BINARY = make_classification(90, 7, random_state=1)
LABELS = make_multilabel_classification(90, 7, n_classes=4, random_state=2)
TARGETS = make_regression(90, 7, n_targets=1, noise=1, random_state=3)
TARGETS = TARGETS[0], TARGETS[1] / TARGETS[1].std()
SEVERAL = make_regression(90, 7, n_targets=3, noise=1, random_state=4)
SEVERAL = SEVERAL[0], SEVERAL[1] / SEVERAL[1].std()
COUNTS = TARGETS[0], np.floor(np.exp(TARGETS[1]))
WEIGHTS = np.random.default_rng(5).uniform(0, 2, 90)

SAME = {
    "default": (CLASSES, {}),
    "binary": (BINARY, {}),
    "several labels": (LABELS, {}),
    "targets": (TARGETS, {}),
    "several targets": (SEVERAL, {"hidden_layer_sizes": (5, 4)}),
    "poisson": (COUNTS, {"loss": "poisson"}),
    "batches of 17": (CLASSES, {"batch_size": 17, "hidden_layer_sizes": 9}),
    "logistic": (CLASSES, {"activation": "logistic", "hidden_layer_sizes": (6, 5, 4)}),
    "tanh": (TARGETS, {"activation": "tanh", "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-4}),
    "identity": (TARGETS, {"activation": "identity", "shuffle": False, "batch_size": 32}),
    "sgd": (CLASSES, {"solver": "sgd", "batch_size": 30}),
    "sgd without momentum": (BINARY, {"solver": "sgd", "momentum": 0}),
    "sgd with plain momentum": (BINARY, {"solver": "sgd", "nesterovs_momentum": False}),
    "adaptive": (
        CLASSES,
        {
            "solver": "sgd",
            "learning_rate": "adaptive",
            "n_iter_no_change": 2,
            "tol": 0.05,
            "learning_rate_init": 0.1,
        },
    ),
    "inverse scaling": (TARGETS, {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.3}),
    "early stopping": (CLASSES, {"early_stopping": True, "learning_rate_init": 0.05}),
    "early stopping of two classes": (BINARY, {"early_stopping": True, "validation_fraction": 0.3}),
    "early stopping of targets": (SEVERAL, {"early_stopping": True, "n_iter_no_change": 3}),
    "a large alpha": (CLASSES, {"alpha": 30.0, "batch_size": 40}),
    "a large alpha, many steps": (BINARY, {"alpha": 1.0, "batch_size": 3, "tol": 0.01}),
    "a coarse tol": (TARGETS, {"tol": 0.01, "n_iter_no_change": 3}),
}
ATTRIBUTES = [
    "n_iter_",
    "t_",
    "n_layers_",
    "n_outputs_",
    "n_features_in_",
    "validation_scores_",
    "best_validation_score_",
]


def perceptron(y, **parameters):
    """Our estimator for such targets."""
    kind = ours.MLPRegressor if y.dtype.kind == "f" else ours.MLPClassifier
    return kind(**{"random_state": 4, "max_iter": 25, **parameters})


def both(y, **parameters):
    """scikit-learn's estimator and ours, for such targets."""
    mine = perceptron(y, **parameters)
    theirs = getattr(neural_network, type(mine).__name__)(random_state=4, max_iter=25)
    parameters.pop("dtype", None)
    return theirs.set_params(**parameters), mine


def same(found, expected, rel):
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected, rtol=rel)


def agree(theirs, mine, x):
    assert mine.out_activation_ == theirs.out_activation_
    for name in ATTRIBUTES if theirs.solver != "lbfgs" else ATTRIBUTES[2:5]:
        same(getattr(mine, name), getattr(theirs, name), 1e-6)
    for name in ("coefs_", "intercepts_"):
        for found, expected in zip(getattr(mine, name), getattr(theirs, name), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    found, expected = mine.predict(x), theirs.predict(x)
    assert found.dtype.kind == expected.dtype.kind
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if hasattr(theirs, "predict_proba"):
        np.testing.assert_allclose(mine.predict_proba(x), theirs.predict_proba(x), rtol=1e-6)
        assert mine.classes_.tolist() == theirs.classes_.tolist()


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_weights_mean_what_they_mean_in_scikit_learn(weights):
    x, y = CLASSES
    net = nn.Sequential([nn.Dense(3, activation="softmax")], 7, "float64", seed=1)
    balanced = compute_sample_weight("balanced", y) * (1 if weights is None else weights)
    found = net.evaluate(x, y, sample_weight=weights, class_weight="balanced")
    outputs = net.predict(x)
    assert np.isclose(found["loss"], log_loss(y, outputs, sample_weight=balanced), rtol=1e-10)
    expected = accuracy_score(y, outputs.argmax(axis=1), sample_weight=balanced)
    assert np.isclose(found["accuracy"], expected, rtol=1e-10)
    assert found["mistakes"] == (outputs.argmax(axis=1) != y).sum()
    by_class = compute_class_weight("balanced", classes=np.arange(3), y=y)
    for given in (by_class, dict(enumerate(by_class))):
        same = net.evaluate(x, y, sample_weight=weights, class_weight=given)
        assert same["loss"] == pytest.approx(found["loss"], rel=1e-14)
    net.fit(x, y, epochs=2, sample_weight=weights, class_weight="balanced", verbose=0)
    estimator = ours.NetworkClassifier(
        [], class_weight="balanced", dtype="float64", epochs=2, random_state=0
    )
    estimator.fit(x, y.astype(str), sample_weight=weights)
    start = int(np.random.RandomState(0).randint(1 << 31))
    layers = [nn.Flatten(), nn.Dense(3, activation="softmax")]
    again = nn.Sequential(layers, 7, "float64", seed=start)
    again.fit(x, y, epochs=2, sample_weight=balanced, verbose=0)
    np.testing.assert_allclose(estimator.network_.parameters, again.parameters, rtol=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("case", SAME)
def test_training_is_that_of_scikit_learn(case, weights):
    (x, y), parameters = SAME[case]
    theirs, mine = both(y, **parameters)
    theirs.fit(x, y, sample_weight=weights)
    mine.fit(x, y, sample_weight=weights)
    agree(theirs, mine, x)
    np.testing.assert_allclose(mine.loss_curve_, theirs.loss_curve_, rtol=1e-6)
    assert mine.loss_ == pytest.approx(theirs.loss_, rel=1e-6)
    same(mine.best_loss_, theirs.best_loss_, 1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("case", ["default", "binary", "targets", "several labels", "poisson"])
def test_lbfgs_is_that_of_scikit_learn(case, weights):
    (x, y), parameters = SAME[case]
    theirs, mine = both(y, **parameters, solver="lbfgs", max_iter=8, alpha=0.5)
    theirs.fit(x, y, sample_weight=weights)
    mine.fit(x, y, sample_weight=weights)
    agree(theirs, mine, x)
    assert (mine.n_iter_, mine.loss_) == (theirs.n_iter_, pytest.approx(theirs.loss_))
    single = both(y, **parameters, solver="lbfgs", max_iter=8, alpha=0.5, dtype="float32")[1]
    single.fit(x, y, sample_weight=weights)
    np.testing.assert_allclose(single.coefs_[0], mine.coefs_[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fits_and_warm_starts_are_those_of_scikit_learn(solver):
    x, y = CLASSES
    theirs, mine = both(y, solver=solver, batch_size=20)
    for estimator in (theirs, mine):
        for part in (slice(0, 30), slice(30, 90), slice(10, 50)):
            estimator.partial_fit(x[part], y[part], classes=[0, 1, 2])
    agree(theirs, mine, x)
    theirs, mine = both(y, solver=solver, warm_start=True, max_iter=4)
    for estimator in (theirs, mine):
        for _ in range(3):
            estimator.fit(x, y)
    agree(theirs, mine, x)


def test_the_layout_and_the_type_of_x_do_not_matter():
    x, y = CLASSES
    expected = ours.MLPClassifier(random_state=0, max_iter=5).fit(x, y)
    wide = np.zeros((90, 20))
    wide[:, 5:12] = x
    from scipy import sparse

    for same in (np.asfortranarray(x), wide[:, 5:12], sparse.csr_array(x), sparse.csc_array(x)):
        found = ours.MLPClassifier(random_state=0, max_iter=5).fit(same, y)
        assert found.network_.parameters.tobytes() == expected.network_.parameters.tobytes()
        assert found.predict_proba(same).tobytes() == expected.predict_proba(x).tobytes()
    assert ours.MLPClassifier(max_iter=2).fit(x.astype("float32"), y).coefs_[0].dtype == "float32"
    single = ours.MLPClassifier(max_iter=2, dtype="float32").fit(x, y)
    assert single.predict_proba(x).dtype == "float32"


def test_labels_of_text_and_names_of_columns():
    pandas = pytest.importorskip("pandas")
    x, y = CLASSES
    frame, names = pandas.DataFrame(x, columns=list("abcdefg")), np.array(["p", "q", "r"])[y]
    found = ours.MLPClassifier(random_state=0, max_iter=30).fit(frame, names)
    assert found.feature_names_in_.tolist() == list("abcdefg")
    assert set(found.predict(frame)) == {"p", "q", "r"}
    layers = ours.NetworkClassifier([nn.Dense(3)], epochs=1).fit(frame, names)
    for network in (found.network_, layers.network_):
        assert network.feature_names == tuple("abcdefg")
        assert network.class_names == ("p", "q", "r")
    with pytest.warns(UserWarning, match="feature names"):
        found.predict(x)


def test_coefs_are_views_before_and_after_pickling():
    x, y = CLASSES
    found = ours.MLPClassifier(random_state=0, max_iter=3).fit(x, y)
    assert not hasattr(clone(found), "coefs_")
    again = pickle.loads(pickle.dumps(found))
    for one in (found, again):
        one.coefs_[0][...] = 0
        one.intercepts_[0][...] = -1
        assert np.ptp(one.predict_proba(x), axis=0).max() == 0


TOOLS = {
    "MLPClassifier": (
        BINARY,
        ours.MLPClassifier((8,), random_state=0, max_iter=60, learning_rate_init=0.02, dropout=0.1),
        "alpha",
    ),
    "NetworkClassifier": (
        BINARY,
        ours.NetworkClassifier(
            [nn.Dense(8, activation="relu")], optimizer=nn.Adam(0.02), epochs=30, random_state=0
        ),
        "optimizer__learning_rate",
    ),
    "MLPRegressor": (
        TARGETS,
        ours.MLPRegressor("huber", (8,), random_state=0, max_iter=200, learning_rate_init=0.02),
        "learning_rate_init",
    ),
    "NetworkRegressor": (
        TARGETS,
        ours.NetworkRegressor(optimizer=nn.Adam(0.02), epochs=40, random_state=0),
        "batch_size",
    ),
}


@pytest.mark.parametrize("case", TOOLS)
def test_it_works_inside_scikit_learns_tools(case):
    (x, y), estimator, name = TOOLS[case]
    pipe = make_pipeline(StandardScaler(), estimator)
    assert cross_val_score(pipe, x, y, cv=3, n_jobs=2).min() > 0.5  # in processes, by loky
    first = estimator.get_params()[name]
    grid = {f"{type(estimator).__name__.lower()}__{name}": [first, 7 * first]}
    for search in (GridSearchCV(pipe, grid, cv=2, n_jobs=2), ours.PopulationSearchCV(pipe, grid)):
        search.fit(x, y)
        again = pickle.loads(pickle.dumps(search.best_estimator_))
        assert np.array_equal(again.predict(x), search.predict(x)) and search.best_score_ > 0.6
    other = [("one", estimator), ("other", clone(estimator).set_params(random_state=1))]
    if is_classifier(estimator):
        assert CalibratedClassifierCV(estimator, cv=2).fit(x, y).score(x, y) > 0.8
        stack = StackingClassifier(other, LogisticRegression(), cv=2)
    else:
        stack = StackingRegressor(other, Ridge(), cv=2)
    assert stack.fit(x, y).score(x, y) > 0.8


# --- beyond scikit-learn -----------------------------------------------------------------------


class Keep(nn.callbacks.Callback):
    """Keeps the metrics, and copies of the network as it was before training and after epochs."""

    def on_fit_begin(self, network):
        self.networks, self.logs = [copy.deepcopy(network)], []

    def on_epoch_end(self, epoch, logs, network):
        assert epoch == len(self.networks) == network.epoch
        self.networks.append(copy.deepcopy(network))
        self.logs.append(logs)


BEYOND = {
    "activations": (
        CLASSES,
        {"hidden_layer_sizes": (6, 5), "activation": ["tanh", nn.LeakyReLU(0.1)]},
        {},
    ),
    "dropout": (CLASSES, {"hidden_layer_sizes": (9, 8), "dropout": [0.0, 0.4]}, {}),
    "batch normalisation": (TARGETS, {"batch_norm": True, "dropout": 0.1}, {"loss": "quadratic"}),
    "mean absolute error": (
        SEVERAL,
        {"loss": "mean_absolute_error"},
        {"loss": "mean_absolute_error"},
    ),
    "Huber": (TARGETS, {"loss": nn.Huber(0.5)}, {"loss": nn.Huber(0.5)}),
    "squares of probabilities": (CLASSES, {"loss": "quadratic"}, {"loss": "quadratic"}),
    "AdamW": (BINARY, {"solver": "adamw", "beta_1": 0.8}, {"optimizer": nn.AdamW(0.01, 0.8)}),
    "RMSprop": (CLASSES, {"solver": "rmsprop"}, {"optimizer": nn.RMSprop(0.01)}),
    "a schedule": (
        TARGETS,
        {"solver": nn.SGD(nn.schedules.OneCycle(0.1), clip_norm=1.0)},
        {"loss": "quadratic", "optimizer": nn.SGD(nn.schedules.OneCycle(0.1), clip_norm=1.0)},
    ),
    "weights of classes": (
        CLASSES,
        {"class_weight": {0: 3.0, 2: 0.5}},
        {"class_weight": {0: 3.0, 2: 0.5}},
    ),
    "balanced classes": (BINARY, {"class_weight": "balanced"}, {"class_weight": "balanced"}),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_goes_beyond_scikit_learn_is_that_of_a_network(case):
    (x, y), parameters, of_fit = BEYOND[case]
    kept = Keep()
    parameters = {"learning_rate_init": 0.01, "callbacks": kept, **parameters}
    parameters |= {"max_iter": 6, "alpha": 0, "batch_size": 40, "shuffle": False}
    mine = perceptron(y, **parameters).fit(x, y)
    alone = kept.networks[0]
    options = {"optimizer": AdamEpsilonHat(0.01), **of_fit}
    history = alone.fit(x, y, epochs=6, batch_size=40, shuffle=False, verbose=0, **options)
    np.testing.assert_allclose(mine.network_.parameters, alone.parameters, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mine.loss_curve_, history.history["loss"], rtol=1e-9)
    assert kept.logs == [{"loss": value} for value in mine.loss_curve_]
    again = pickle.loads(pickle.dumps(mine))
    assert np.array_equal(again.predict(x), mine.predict(x))
    assert clone(mine).set_params(callbacks=None).fit(x, y).loss_curve_ == mine.loss_curve_


def test_layers_of_a_perceptron():
    x, y = CLASSES
    found = ours.MLPClassifier(
        (6, 5), ["tanh", "sigmoid"], dropout=0.2, batch_norm=True, max_iter=2, random_state=0
    ).fit(x, y)
    kinds = [type(built.layer).__name__ for built in found.network_.layers]
    assert kinds == [
        *("Dense", "BatchNorm", "Tanh", "Dropout"),
        *("Dense", "BatchNorm", "Sigmoid", "Dropout"),
        *("Dense", "Softmax"),
    ]
    assert [w.shape for w in found.coefs_] == [(7, 6), (6, 5), (5, 3)] and found.n_layers_ == 4
    assert found.validation_loss_curve_ is None
    lbfgs = ours.MLPClassifier((6,), ["tanh"], solver="lbfgs", max_iter=20, class_weight="balanced")
    theirs, alike = both(y, activation="tanh", hidden_layer_sizes=(6,), solver="lbfgs", max_iter=20)
    weights = compute_sample_weight("balanced", y)
    agree(theirs.fit(x, y, sample_weight=weights), lbfgs.set_params(random_state=4).fit(x, y), x)
    assert alike.fit(x, y, weights).loss_ == lbfgs.loss_


@pytest.mark.parametrize("data", [CLASSES, BINARY, LABELS, SEVERAL], ids=len)
def test_the_validation_part_has_a_loss_of_every_epoch(data):
    x, y = data
    kept, parts, real = Keep(), [], y.dtype.kind == "f"
    mine = perceptron(y, early_stopping=True, max_iter=4, callbacks=kept)
    if not real:
        mine.set_params(class_weight="balanced")
    split = mine._split
    mine._split = lambda *given: parts.append(split(*given)) or parts[0]
    mine.fit(x, y)
    x_val, y_val, *rest = parts[0][-1]
    loss, weights = "mean_squared_error" if real else None, rest[0] if rest else None
    for network, value in zip(kept.networks[1:], mine.validation_loss_curve_, strict=True):
        found = network.evaluate(x_val, y_val, loss=loss, sample_weight=weights)["loss"]
        assert value == pytest.approx(found / 2 if loss else found, rel=1e-12)
    name = "val_r2" if real else "val_accuracy"
    assert [logs[name] for logs in kept.logs] == mine.validation_scores_
    assert [logs["val_loss"] for logs in kept.logs] == mine.validation_loss_curve_


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_callbacks_end_a_training(solver):
    x, y = CLASSES
    stop = ours.MLPClassifier(solver=solver, callbacks=lambda epoch, logs, network: epoch == 3)
    assert stop.fit(x, y).n_iter_ == 3 == stop.network_.epoch
    watch = nn.callbacks.EarlyStopping("loss", patience=1, min_delta=1e9)
    best = ours.MLPClassifier(solver=solver, callbacks=watch, random_state=0).fit(x, y)
    first = ours.MLPClassifier(solver=solver, max_iter=1, random_state=0).fit(x, y)
    assert best.network_.parameters.tobytes() == first.network_.parameters.tobytes()


# --- many fits at once -------------------------------------------------------------------------


def second(results):
    return 1


SEARCHES = {
    "early stopping": (
        CLASSES,
        ours.MLPClassifier(max_iter=30, random_state=0, early_stopping=True, n_iter_no_change=3),
        {"hidden_layer_sizes": [(4,), (9, 5)], "learning_rate_init": [0.01, 0.05]},
        {},
    ),
    "a pipeline": (
        BINARY,
        make_pipeline(StandardScaler(), ours.MLPClassifier(max_iter=20, random_state=0)),
        [{"mlpclassifier__alpha": [1e-4, 1.0]}, {"mlpclassifier__solver": ["lbfgs", nn.AdamW()]}],
        {"return_train_score": True},
    ),
    "several scores": (
        TARGETS,
        ours.MLPRegressor(max_iter=20, random_state=0, solver="sgd"),
        {"tol": [1e-4, 0.1], "batch_size": [16, 30], "dtype": [None, "float32"]},
        {"scoring": ["r2", "neg_mean_absolute_error"], "refit": "r2"},
    ),
    "layers": (
        CLASSES,
        ours.NetworkClassifier([nn.Dense(5, activation="tanh")], epochs=5, random_state=0),
        {"layers__0__units": [2, 7], "optimizer": [nn.SGD(0.1), "adam"]},
        {"refit": second},
    ),
    "some that fail": (
        CLASSES,
        ours.MLPClassifier(max_iter=5, random_state=0),
        {"hidden_layer_sizes": [(0,), (4,)]},
        {"error_score": -1.0},
    ),
}


@pytest.mark.parametrize("case", SEARCHES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_a_search_is_that_of_grid_search(case):
    (x, y), estimator, grid, options = SEARCHES[case]
    weights = {} if case in ("a pipeline",) else {"sample_weight": WEIGHTS}
    theirs = GridSearchCV(estimator, grid, cv=3, **options).fit(x, y, **weights)
    found = ours.PopulationSearchCV(estimator, grid, cv=3, threads=2, **options)
    found.fit(x, y, **weights)
    assert list(found.cv_results_) == list(theirs.cv_results_)
    for name, expected in theirs.cv_results_.items():
        if not name.endswith("_time"):
            assert list(found.cv_results_[name]) == list(expected), name
    for name in ("best_index_", "best_params_", "best_score_", "n_splits_", "multimetric_"):
        assert getattr(found, name, None) == getattr(theirs, name, None)
    assert np.array_equal(found.predict(x), theirs.predict(x))
    assert found.score(x, y) == theirs.score(x, y)
    if hasattr(theirs, "predict_proba"):
        assert np.array_equal(found.predict_proba(x), theirs.predict_proba(x))
        assert found.classes_.tolist() == theirs.classes_.tolist()
    assert pickle.loads(pickle.dumps(found)).best_index_ == theirs.best_index_


class Noting(ClassifierMixin, BaseEstimator):
    """Notes where it is fitted, and with how many of Numba's threads."""

    seen: ClassVar[list] = []

    def __init__(self, number=0):
        self.number = number

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        time.sleep(0.05)
        self.seen.append((threading.get_ident(), numba.get_num_threads()))
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_fits_of_a_search_run_at_once_with_a_thread_each():
    x, y = BINARY
    before, filters = numba.get_num_threads(), list(warnings.filters)
    for threads in (1, 2):
        Noting.seen.clear()
        ours.PopulationSearchCV(Noting(), {"number": range(4)}, cv=2, threads=threads).fit(x, y)
        *fits, refit = Noting.seen
        assert len(fits) == 8 and len({thread for thread, _ in fits}) == threads
        assert {n for _, n in fits} == {1} and refit == (threading.get_ident(), threads)
    assert numba.get_num_threads() == before and warnings.filters == filters


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_ctrl_c_ends_all_fits_of_a_search():
    x, y = BINARY
    endless = ours.MLPClassifier((4,), max_iter=10**9, tol=0, n_iter_no_change=10**9)
    before = set(threading.enumerate())
    timer = threading.Timer(1.0, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ours.PopulationSearchCV(endless, {"alpha": [1e-4, 1e-3, 0.1]}, cv=2, threads=2).fit(x, y)
    timer.join()
    end = time.monotonic() + 5
    while left := [one for one in threading.enumerate() if one not in before]:
        assert time.monotonic() < end, left
        time.sleep(0.02)


def test_a_search_takes_what_a_sampler_draws():
    x, y = BINARY
    estimator = ours.MLPClassifier((4,), max_iter=5, random_state=0)
    ranges = {"alpha": np.logspace(-5, 1, 50), "learning_rate_init": [0.01, 0.1]}
    sampler = ParameterSampler(ranges, 4, random_state=1)
    search = clone(ours.PopulationSearchCV(estimator, sampler, cv=2, refit=False)).fit(x, y)
    assert search.cv_results_["params"] == list(sampler)
    grid = ParameterGrid({"alpha": [0.1, 1.0]})
    same = ours.PopulationSearchCV(estimator, grid, cv=2, refit=False).fit(x, y)
    assert same.cv_results_["params"] == list(grid)
    with pytest.raises(TypeError, match="'n_jobs'; the fits run in threads: pass threads"):
        ours.PopulationSearchCV(estimator, grid, n_jobs=2)
    assert not hasattr(search, "predict")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"param_grid": {"layers": [1]}}, ValueError, "Invalid parameter 'layers'"),
        ({"param_grid": {"alpha": 1.0}}, TypeError, "needs to be a list or a numpy array"),
        ({"param_grid": "alpha"}, ValueError, "The 'param_grid' parameter of PopulationSearchCV"),
        ({"threads": 0}, ValueError, "The 'threads' parameter of PopulationSearchCV"),
        (
            {"param_grid": {"alpha": [-1.0]}, "error_score": "raise"},
            ValueError,
            "The 'alpha' parameter of MLPClassifier",
        ),
    ],
)
def test_a_search_that_cannot_be(change, error, message):
    search = ours.PopulationSearchCV(ours.MLPClassifier(max_iter=2), {"alpha": [1.0]})
    with pytest.raises(error, match=message):
        search.set_params(**change).fit(*BINARY)


# --- any layers --------------------------------------------------------------------------------


def convolution(input_shape, output_shape):
    return [
        nn.Conv2D(3, 2, activation="relu"),
        nn.Flatten(),
        nn.Dense(output_shape[0], activation="softmax"),
    ]


def test_images_and_sequences():
    generator = np.random.default_rng(0)
    images, y = generator.normal(size=(60, 6, 5, 1)), np.repeat(["a", "b", "c"], 20)
    images[y == "b", :3] += 2
    images[y == "c", 3:] += 2
    by_function = ours.NetworkClassifier(
        convolution, optimizer=nn.Adam(0.02), epochs=60, random_state=0
    ).fit(images, y)
    assert by_function.score(images, y) > 0.95 and "Conv2D" in repr(by_function.network_)
    pixels = (images * 20 + 100).clip(0, 255).astype(np.uint8)
    layers = [nn.Rescale(1 / 255), nn.Conv2D(3, 2, activation="relu")]
    by_list = ours.NetworkClassifier(
        layers, optimizer=nn.Adam(0.02), epochs=60, random_state=0
    ).fit(pixels, y)
    assert by_list.score(pixels, y) > 0.8 and by_list.predict_proba(pixels).shape == (60, 3)
    sequences = generator.normal(size=(60, 8, 2))
    recurrence = ours.NetworkRegressor([nn.Conv1D(4, 3, activation="tanh")], epochs=150)
    recurrence.set_params(optimizer__learning_rate=0.01, random_state=0)
    assert recurrence.fit(sequences, sequences.mean(axis=(1, 2))).score(
        sequences, sequences.mean(axis=(1, 2))
    ) > 0.8  # fmt: skip


def test_nested_parameters_are_searched():
    x, y = BINARY
    estimator = ours.NetworkClassifier([nn.Dense(1, activation="tanh"), nn.Dropout(0.1)], epochs=40)
    estimator.set_params(optimizer=nn.SGD(), random_state=1)
    assert estimator.get_params()["layers__1__rate"] == 0.1
    assert estimator.get_params()["optimizer__momentum"] == 0
    grid = {"layers__0__units": [1, 12], "optimizer__learning_rate": [1e-6, 0.1]}
    search = GridSearchCV(estimator, grid, cv=2).fit(x, y)
    assert search.best_params_["optimizer__learning_rate"] == 0.1
    assert estimator.layers[0].units == 1 and clone(estimator).optimizer == nn.SGD()
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert again.predict(x).tolist() == search.predict(x).tolist()
    estimator.set_params(layers__0__units=4, layers__0=nn.Dense(2, activation="relu"))
    assert repr(estimator.layers[0]) == repr(nn.Dense(4, activation="relu"))
    assert estimator.get_params()["layers__0"] is estimator.layers[0]
    refused = {
        "layers__7__units": r"there are the layers 0 … 1",
        "layers__x__units": r"there are the layers 0 … 1",
        "layers__0__unit": "unit",
        "layers__0__units__x": "have no parameters of their own",
        "optimizer__rate": "rate",
        "optimizer__schedule__x": "have no parameters of their own",
    }
    for name, message in refused.items():
        with pytest.raises(ValueError, match=f"Invalid parameter '{name}' for .*{message}"):
            estimator.set_params(**{name: 3})
    with pytest.raises(ValueError, match="layers is None, and no list of layers"):
        ours.NetworkClassifier().set_params(layers__0__units=3)
    estimator.set_params(optimizer="lbfgs", batch_size=None).set_params(optimizer__tolerance=0.1)
    assert estimator.fit(x, y).optimizer == nn.LBFGS(0.1)


MADE = nn.Sequential([nn.Dense(4, activation="tanh"), nn.Dense(1, activation="sigmoid")], 7)


def test_a_network_that_a_function_returns_is_copied():
    x, y = BINARY
    before = MADE.memory.copy()
    estimator = ours.NetworkClassifier(
        lambda *shapes: MADE, dtype="float64", penalty=nn.L2(0.1), random_state=3, epochs=2
    )
    fits = [clone(estimator).fit(x, y).network_ for _ in range(2)]
    assert np.array_equal(MADE.memory, before) and MADE.epoch == 0
    assert np.array_equal(fits[0].memory, fits[1].memory)
    assert fits[0].dtype == np.float64 and fits[0].penalty == (nn.L2(0.1),)
    other = clone(estimator).set_params(random_state=4).fit(x, y).network_
    assert not np.array_equal(other.memory, fits[0].memory)
    trained = copy.deepcopy(MADE)
    trained.fit(x, y, epochs=3, verbose=0)
    trained.freeze(0)
    estimator.set_params(layers=lambda *shapes: trained, epochs=1, dtype=None)
    found = estimator.fit(x, y).network_
    assert np.array_equal(found.layers[0].weights, trained.layers[0].weights)
    assert found.dtype == np.float32 and found.epoch == 1 and trained.epoch == 3


def test_scaled_targets_of_a_regressor():
    x, y = TARGETS
    estimator = ours.NetworkRegressor(epochs=1, scale_targets=True, random_state=0)
    assert estimator.fit(x, 1e6 + y).network_.scales_targets
    assert abs(estimator.predict(x).mean() - 1e6) < 10


SWITCHES = [
    ({"activation": "tanh"}, None),
    ({"threads": 1}, None),
    ({"dropout": 0.5}, None),
    ({"hidden_layer_sizes": (8,)}, r"hidden_layer_sizes is \[8\], and .* built with \[6\]"),
    ({"batch_norm": True}, "batch_norm is True"),
    ({"dtype": "float32"}, "dtype is float32"),
    ({"solver": "lbfgs"}, None),
    ({"solver": nn.LBFGS(1e-3, 20)}, None),
    ({"early_stopping": True}, None),
]


@pytest.mark.parametrize(("change", "message"), SWITCHES)
def test_a_warm_start_with_other_parameters(change, message):
    x, y = CLASSES
    theirs, mine = both(y, warm_start=True, max_iter=4, hidden_layer_sizes=(6,))
    mine.fit(x, y).set_params(**change)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            mine.fit(x, y)
        return
    mine.fit(x, y)
    if "activation" in change or "threads" in change:
        change.pop("threads", None)
        agree(theirs.fit(x, y).set_params(**change).fit(x, y), mine, x)
    elif "dropout" in change:
        assert "Dropout" in repr(mine.network_)
    else:
        first = ours.MLPClassifier((6,), warm_start=True, max_iter=2, random_state=0)
        first.set_params(**change).fit(x, y)
        first.set_params(solver="adam", early_stopping=False).fit(x, y)
        assert np.isfinite(first.best_loss_) and first.validation_scores_ is None


def test_layers_of_a_warm_start_stay():
    x, y = CLASSES
    warm = ours.NetworkClassifier([nn.Dense(3, activation="tanh")], epochs=1, warm_start=True)
    warm.fit(x, y).set_params(layers__0__units=4)
    with pytest.raises(ValueError, match="layers or dtype are not those of the network"):
        warm.fit(x, y)


def ends_in(activation):
    return lambda inputs, outputs: [nn.Dense(8), nn.Dense(outputs[0], activation=activation)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": ends_in(None)}, ValueError, "need a network that ends in softmax"),
        ({"layers": ends_in("relu")}, ValueError, r"ends in ReLU; .*activation='softmax'"),
        ({"layers": lambda *shapes: None}, TypeError, r"layers\(\) returned None, not a list"),
        ({"layers": nn.Dense(8)}, ValueError, "The 'layers' parameter of NetworkClassifier"),
        ({"layers": MADE}, ValueError, "The 'layers' parameter of NetworkClassifier"),
        ({"layers": "dense"}, ValueError, "The 'layers' parameter of NetworkClassifier"),
        ({"warm_start": "x"}, ValueError, "The 'warm_start' parameter of NetworkClassifier"),
        ({"class_weight": "auto"}, ValueError, 'class_weight is a dict, "balanced" or None'),
        ({"class_weight": [1, 2]}, ValueError, "or for several labels a sample a list of dicts"),
        ({"class_weight": {0: -1}}, ValueError, r"class_weight\[0\] must be a finite number of at"),
        (
            {"callbacks": nn.callbacks.EarlyStopping()},
            ValueError,
            "EarlyStopping watches 'val_loss', and .*; pass validation_split=0.1",
        ),
    ],
)
def test_networks_that_cannot_be_fitted(change, error, message):
    with pytest.raises(error, match=message):
        ours.NetworkClassifier(epochs=1).set_params(**change).fit(*CLASSES)


def test_a_network_estimator_goes_on_and_refuses_what_does_not_fit():
    x, y = CLASSES
    warm = ours.NetworkClassifier(epochs=3, warm_start=True, random_state=0, batch_size=16)
    once = ours.NetworkClassifier(epochs=6, random_state=0, batch_size=16).fit(x, y)
    warm.fit(x, y).fit(x, y)
    assert warm.network_.parameters.tobytes() == once.network_.parameters.tobytes()
    assert once.n_iter_ == 6 and len(once.history_["loss"]) == 6
    with pytest.raises(ValueError, match=r"y needs a network with 3 outputs, .* has 2"):
        ours.NetworkClassifier(lambda shape, outputs: [nn.Dense(2)]).fit(x, y)
    with pytest.raises(ValueError, match="expecting 7 features"):
        once.predict(x[:, :5])


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "data", "message"),
    [
        ({"hidden_layer_sizes": (3, 0)}, CLASSES, "hidden_layer_sizes must be > 0"),
        ({"activation": nn.Dense(3)}, CLASSES, "The 'activation' parameter of MLPClassifier"),
        ({"activation": [nn.Dense(3)]}, CLASSES, "is a layer, and no activation"),
        ({"class_weight": {0: -1, 1: 1}}, BINARY, r"class_weight\[0\] must be a finite number"),
        ({"class_weight": {0: np.inf}}, BINARY, r"class_weight\[0\] must be a finite number"),
        ({"class_weight": [1, 2]}, BINARY, "or for several labels a sample a list of dicts"),
        ({"dtype": np.int8}, BINARY, "int8"),
        (
            {"callbacks": nn.callbacks.EarlyStopping()},
            BINARY,
            "EarlyStopping watches 'val_loss', .*; pass early_stopping=True or monitor='loss'",
        ),
        ({"alpha": -1}, CLASSES, "The 'alpha' parameter of MLPClassifier must be a float"),
        ({"dtype": "int8"}, CLASSES, "The 'dtype' parameter of MLPClassifier must be a str among"),
        (
            {"early_stopping": True, "validation_fraction": 0.001},
            (CLASSES[0][:5], CLASSES[1][:5]),
            "The validation set is too small",
        ),
        ({"dropout": [0.1, 0.2]}, CLASSES, "dropout has 2 entries, for 1 hidden layers"),
        ({"activation": ["tanhh"]}, CLASSES, "tanh"),
        ({"activation": "tanhh"}, CLASSES, "The 'activation' parameter of MLPClassifier"),
        ({"solver": "adan"}, CLASSES, "The 'solver' parameter of MLPClassifier must be a str"),
        ({"loss": "cross_entropy"}, BINARY, "CrossEntropy needs a network that ends in softmax"),
        ({"class_weight": {0: 0, 1: 0}}, BINARY, "leaves every sample a weight of 0"),
        ({"batch_norm": True, "batch_size": 89}, CLASSES, "BatchNorm needs at least 2 samples"),
        (
            {"callbacks": nn.callbacks.Checkpoint("folder", every_steps=2)},
            CLASSES,
            "MLPClassifier calls callbacks after epochs, not after steps as Checkpoint asks",
        ),
    ],
)
def test_what_cannot_be_fitted(change, data, message):
    estimator = ours.MLPClassifier(max_iter=5).set_params(**change)
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        estimator.fit(*data)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize(
    ("weight", "message"), [(-1, "Negative values"), (0, "at least one non-zero")]
)
def test_weights_that_cannot_be_used(solver, weight, message):
    x, y = CLASSES
    with pytest.raises(ValueError, match=message):
        ours.MLPClassifier(solver=solver).fit(x, y, sample_weight=np.full(90, weight))


@pytest.mark.parametrize("given", [8.7, True, (8.0,), ((8, 4),), "8"])
def test_hidden_layers_are_counted_by_integers(given):
    with pytest.raises((TypeError, ValueError), match="hidden_layer_sizes"):
        ours.MLPClassifier(given).fit(*CLASSES)


@pytest.mark.parametrize("data", [BINARY, TARGETS], ids=len)
def test_a_validation_part_without_weight(data):
    x, y = data
    weights = np.zeros(90)
    weights[:3] = 1
    with pytest.raises(ValueError, match="every sample of the validation part has a weight of 0"):
        perceptron(y, early_stopping=True).fit(x, y, weights)


def test_a_training_that_diverges():
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        ours.MLPRegressor(solver="sgd", learning_rate_init=1e20).fit(*TARGETS)


@pytest.mark.parametrize("generator", [np.random.MT19937, np.random.PCG64])
def test_a_training_that_diverges_among_several_epochs(generator):
    options = {"solver": "sgd", "learning_rate_init": 0.5, "batch_size": 90, "dtype": "float32"}
    found = []
    for callbacks in (None, nn.callbacks.Callback()):
        one = ours.MLPRegressor(callbacks=callbacks, hidden_layer_sizes=(9,), **options)
        one.random_state = np.random.RandomState(generator(1))
        with pytest.raises(ValueError, match="non-finite parameter weights"):
            one.fit(TARGETS[0], 9 * TARGETS[1])
        found.append((one.n_iter_, one.t_, one.loss_curve_, one.random_state.randint(2**30)))
    assert found[0] == found[1] and found[0][0] > 2


def test_bad_calls_of_partial_fit():
    x, y = CLASSES
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        ours.MLPClassifier().partial_fit(x, y)
    with pytest.raises(ValueError, match="does not support early_stopping"):
        ours.MLPClassifier(early_stopping=True).partial_fit(x, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="class_weight='balanced' counts the classes in all"):
        ours.MLPClassifier(class_weight="balanced").partial_fit(x, y, classes=[0, 1, 2])
    assert not hasattr(ours.MLPClassifier(solver="lbfgs"), "partial_fit")
    started = ours.MLPClassifier(max_iter=2).partial_fit(x, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"has classes not in `self.classes_`"):
        started.partial_fit(x, y + 1)
    warm = ours.MLPClassifier(max_iter=2, warm_start=True).fit(x, y)
    with pytest.raises(ValueError, match="can only be used where `y` has the same classes"):
        warm.fit(x, y + 1)
    with pytest.raises(ValueError, match=r"poisson.* needs targets"):
        ours.MLPRegressor("poisson").fit(x, x[:, 0])


def test_the_end_of_the_epochs_is_announced():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        ours.MLPClassifier(max_iter=2).fit(*CLASSES)


def test_numbanet_alone_does_not_import_scikit_learn():
    code = "import sys, numbanet; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tol": 0.05, "dropout": 0.2},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.01, "n_iter_no_change": 2},
        {"shuffle": False, "n_iter_no_change": np.inf, "threads": 1},
    ],
)
def test_epochs_trained_in_one_call_are_those_with_a_look_between_them(given):
    options = {"random_state": 1, "learning_rate_init": 0.02, "max_iter": 60, **given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        whole = ours.MLPClassifier(**options).fit(*CLASSES)
        looked = ours.MLPClassifier(callbacks=nn.callbacks.Callback(), **options).fit(*CLASSES)
    assert whole.n_iter_ == looked.n_iter_ > 11
    assert whole.loss_curve_ == looked.loss_curve_
    assert whole.best_loss_ == looked.best_loss_ and whole.t_ == looked.t_
    assert whole.network_.memory.tobytes() == looked.network_.memory.tobytes()
    states = [one._random_state.get_state()[1:3] for one in (whole, looked)]
    assert states[0][1] == states[1][1] and (states[0][0] == states[1][0]).all()


@pytest.mark.parametrize("call", [1, 4, 9])
def test_epochs_that_an_interrupted_call_has_finished_are_recorded(call, monkeypatch):
    steps, calls = TrainingExecutor.steps, []

    def interrupted(self, *arguments):
        reached = steps(self, *arguments)
        calls.append(reached)
        if len(calls) == call:
            raise KeyboardInterrupt  # as it is raised when a native call has ended
        return reached

    options = {"random_state": 1, "tol": 0.0, "n_iter_no_change": 1000, "threads": 1}
    monkeypatch.setattr(TrainingExecutor, "steps", interrupted)
    with pytest.warns(UserWarning, match="interrupted by user"):
        made = ours.MLPClassifier(max_iter=500, **options).fit(*CLASSES)
    monkeypatch.undo()
    per_epoch = -(-len(CLASSES[1]) // 200)
    assert made.n_iter_ == made.network_.optimizer_steps // per_epoch == len(made.loss_curve_)
    assert made.n_iter_ == 0 or made.network_.optimizer_steps % per_epoch == 0
    if made.n_iter_:
        with pytest.warns(ConvergenceWarning):
            whole = ours.MLPClassifier(max_iter=made.n_iter_, **options).fit(*CLASSES)
        assert made.loss_curve_ == whole.loss_curve_
        assert made.network_.memory.tobytes() == whole.network_.memory.tobytes()
