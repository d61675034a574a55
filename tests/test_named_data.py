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
