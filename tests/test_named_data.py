"""Names of columns and classes: learned in the first fit, compared and used afterwards."""

import pickle
import warnings

import numpy as np
import pytest

import numbanet as nn

X = np.random.default_rng(0).normal(size=(60, 3))
KINDS = np.array(["setosa", "versicolor", "virginica"])
Y = KINDS[np.arange(60) % 3]


def network(outputs=3):
    return nn.Sequential([nn.Dense(outputs, activation="softmax")], 3)


@pytest.mark.parametrize("labels", [Y, Y.tolist(), Y.astype(object), Y[:, None]])
def test_text_labels_are_learned_and_looked_up(labels, tmp_path):
    net, plain = network(), network()
    net.fit(X, labels, epochs=3, verbose=0)
    plain.fit(X, np.unique(Y, return_inverse=True)[1], epochs=3, verbose=0)
    assert net.class_names == tuple(sorted(KINDS))
    assert net.parameters.tobytes() == plain.parameters.tobytes()
    some = Y != "versicolor"
    expected = net.evaluate(X[some], np.unique(Y, return_inverse=True)[1][some])
    net.save(tmp_path / "net")
    for other in (net, nn.load(tmp_path / "net"), pickle.loads(pickle.dumps(net))):
        assert other.evaluate(X[some], Y[some]) == expected
    with pytest.raises(ValueError, match=r"y has the label 'rose' at \[1\]; the network's classes"):
        net.evaluate(X[:2], ["setosa", "rose"])
    with pytest.raises(TypeError, match=r"np.unique\(y, return_inverse=True\)"):
        network(4).fit(X, Y, verbose=0)


def test_a_frame_with_other_columns_is_refused(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abc"))
    net = network()
    net.fit(frame, pandas.Series(Y).astype("category"), verbose=0)
    assert net.feature_names == ("a", "b", "c")
    net.save(tmp_path / "net")
    for other in (net, nn.load(tmp_path / "net")):
        assert np.array_equal(other.predict(frame), other.predict(X))
        for call in (other.predict, lambda x, o=other: o.evaluate(x, Y)):
            with pytest.raises(ValueError, match=r"columns \('c', 'b', 'a'\).*pass x\[list\("):
                call(frame[["c", "b", "a"]])
            with pytest.raises(ValueError, match="missing: c"):
                call(frame.rename(columns={"c": "d"}))


def test_an_error_leaves_the_names_alone():
    net = network()
    with pytest.raises(ValueError, match="60 samples and y has 59"):
        net.fit(X, Y[:59], verbose=0)
    assert net.class_names == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "3 different"),
        (["a", "a", "b"], "3 different"),
        (["a", "b", "\ud800"], "print"),
    ],
)
def test_wrong_names(names, message):
    net = network()
    for what in ("class_names", "feature_names"):
        with pytest.raises(ValueError, match=f"{what} must be {message}"):
            setattr(net, what, names)


# --- what a second fit keeps ----------------------------------------------------------------------


def test_a_second_fit_keeps_the_optimizer(tmp_path):
    net = network()
    net.fit(X, Y, optimizer=nn.SGD(0.1, momentum=0.9), verbose=0)
    net.save(tmp_path / "net")
    other = nn.load(tmp_path / "net")
    for one in (net, other):
        one.fit(X, Y, verbose=0)
        assert one.optimizer == nn.SGD(0.1, momentum=0.9) and one.optimizer_steps == 4
    net.optimizer = nn.SGD(0.5, momentum=0.9)
    net.fit(X, Y, verbose=0)
    assert net.optimizer == nn.SGD(0.5, momentum=0.9) and net.optimizer_steps == 6


def test_a_schedule_that_has_ended_is_named():
    net, optimizer = network(), nn.Adam(nn.schedules.Cosine(0.01, epochs=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.fit(X, Y, optimizer=optimizer, epochs=2, verbose=0)
    with pytest.warns(nn.NotLearningWarning, match=r"learning rate is 0: Cosine.* by epoch 2"):
        net.fit(X, Y, optimizer=optimizer, epochs=2, verbose=0)


def test_a_callback_that_nothing_would_call():
    with pytest.raises(
        TypeError, match="nothing calls on_train_begin; a Callback has on_fit_begin"
    ):

        class Keras(nn.callbacks.Callback):
            def on_train_begin(self, logs=None):
                pass


def test_a_metric_misspelt():
    with pytest.raises(ValueError, match="did you mean 'val_accuracy'"):
        network().fit(
            X, Y, validation_split=0.2, callbacks=nn.callbacks.EarlyStopping("val_acc"), verbose=0
        )
    with pytest.raises(AttributeError, match="returning True from on_epoch_end"):
        network().stop_training = True
    with pytest.raises(ValueError, match="shuffle must be True or False"):
        network().fit(X, Y, shuffle="no")


# --- what is written and called by a wrong shape of a name ---------------------------------------


def test_weights_of_classes_in_a_series_go_by_its_index():
    pandas = pytest.importorskip("pandas")
    x = np.random.default_rng(0).standard_normal((30, 4))
    labels = np.repeat([0, 1, 2], [4, 20, 6])
    network = nn.Sequential([nn.Dense(3, activation="softmax")], 4, dtype="float64")
    weights = pandas.Series({1: 0.5, 0: 2.0, 2: 8.0})
    found = network.loss(x, labels, class_weight=weights)
    assert found == network.loss(x, labels, class_weight={0: 2.0, 1: 0.5, 2: 8.0})
    assert found != network.loss(x, labels, class_weight=weights.to_numpy())


def test_the_arrays_of_a_layer_are_written_not_replaced():
    network = nn.Sequential([nn.Dense(2)], 3)
    before = network.parameters.copy()
    with pytest.raises(TypeError, match=r"write into the array: layer\.weights = values"):
        network.layers[0].parameters["weights"] = np.ones((3, 2))
    with pytest.raises(TypeError, match=r"parameters are views of network\.parameters"):
        network.layers[0].parameters = {"weights": np.ones((3, 2))}
    assert np.array_equal(network.parameters, before)
    network.layers[0].parameters["weights"][...] = 1
    assert network.parameters[:6].tolist() == [1] * 6


@pytest.mark.parametrize("dtype", [float, int])
def test_targets_of_0_and_1_are_real_where_the_output_is(dtype):
    x, y = np.eye(4)[[0, 1, 2, 3, 0, 1]], np.array([0, 1, 1, 0, 0, 1], dtype)
    found = nn.Sequential([nn.Dense(1)], 4).evaluate(x, y)
    assert set(found) == {"loss", "rmse", "r2"}
    found = nn.Sequential([nn.Dense(1, activation="sigmoid")], 4).evaluate(x, y)
    assert set(found) == {"loss", "accuracy", "mistakes"}


def test_targets_that_are_all_masked_are_refused():
    network = nn.Sequential([nn.Dense(2)], 3)
    y = np.ma.masked_all((4, 2))
    with pytest.raises(ValueError, match="y masks all targets"):
        network.fit(np.ones((4, 3)), y, verbose=0)


def test_callbacks_that_cannot_be_called_are_refused_at_once():
    with pytest.raises(TypeError, match=r"takes \(epoch, logs, network\): too many"):
        nn.Sequential([nn.Dense(1)], 3).fit(
            np.ones((4, 3)), np.ones(4), callbacks=lambda epoch, logs: None, verbose=0
        )
    with pytest.raises(TypeError, match=r"Ours.on_epoch_end takes \(self, epoch"):

        class Ours(nn.callbacks.Callback):
            def on_epoch_end(self, epoch, logs):
                return True


def test_the_summary_numbers_layers_and_names_the_frozen():
    network = nn.Sequential([nn.Dense(4, activation="tanh"), nn.Dense(1)], 3)
    network.freeze(0)
    assert "0 Dense, frozen" in str(network.summary())
    assert "2 Dense " in str(network.summary())


def test_a_population_keeps_the_frozen_layers_of_its_network():
    network = nn.Sequential([nn.Dense(4, activation="tanh"), nn.Dense(1)], 3, seed=5)
    network.layers[0].weights = 7
    network.freeze(0)
    population = nn.Population(network, 3)
    for member in population.networks:
        assert (member.layers[0].weights == 7).all() and not member.layers[0].trainable
    assert not np.array_equal(*(population.member(k).layers[2].weights for k in (0, 1)))
