"""Errors in data or settings are reported before anything happens: what, where, and what to do.

Every case checks that the network's parameters are as before, and its epochs; files are in
test_saving and test_cli.
"""

import re

import numpy as np
import pytest

import numbanet as nn
from numbanet.nn import losses
from numbanet.nn.layers import activation
from numbanet.nn.optimizers import optimizer

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
LABELS = np.arange(12) % 3
SINGLE = LABELS[:, None] == np.arange(3)


def network(activation="softmax", outputs=3, shape=4, hidden="tanh"):
    return nn.Sequential(
        [nn.Flatten(), nn.Dense(5, activation=hidden), nn.Dense(outputs, activation=activation)],
        shape,
        seed=1,
    )


def with_value(array, place, value):
    changed = np.array(
        array, np.result_type(array, type(value)) if isinstance(value, complex) else None
    )
    changed[place] = value
    return changed


def refused(error, message, net, call):
    before = net.parameters.copy(), net.epoch, net.optimizer, net.optimizer_steps
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(net.parameters, before[0])
    assert (net.epoch, net.optimizer, net.optimizer_steps) == before[1:]


NAN, INFINITY = float("nan"), float("inf")
INPUTS = {
    "NaN": (with_value(X, (7, 2), NAN), ValueError, r"x has NaN at \[7, 2\]"),
    "infinity": (with_value(X, (3, 0), INFINITY), ValueError, r"x has infinity at \[3, 0\]"),
    "minus infinity": (
        with_value(X, (11, 3), -INFINITY),
        ValueError,
        r"x has infinity at \[11, 3\]",
    ),
    "NaN in float64": (
        with_value(X.astype("float64"), (0, 1), NAN),
        ValueError,
        r"x has NaN at \[0, 1\]",
    ),
    "NaN in float16": (
        with_value(X.astype("float16"), (2, 1), NAN),
        ValueError,
        r"x has NaN at \[2, 1\]",
    ),
    "both infinities": (
        with_value(with_value(X, (1, 1), INFINITY), (2, 2), -INFINITY),
        ValueError,
        r"x has infinity at \[1, 1\]",
    ),
    "too large for float32": (
        np.full((12, 4), np.longdouble("1e100")),
        ValueError,
        "too large for float32",
    ),
    "too few features": (X[:, :3], ValueError, r"x must have shape \(samples, 4\), got \(12, 3\)"),
    "too many features": (
        np.hstack([X, X]),
        ValueError,
        r"x must have shape \(samples, 4\), got \(12, 8\)",
    ),
    "a single sample": (X[0], ValueError, r"got \(4,\); a single sample goes in as x\[None\]"),
    "an image for a vector": (
        X.reshape(12, 2, 2),
        ValueError,
        r"got \(12, 2, 2\); pass x.reshape\(len\(x\), -1\)",
    ),
    "a number": (3.0, ValueError, r"x must have shape \(samples, 4\), got \(\)"),
    "empty": (X[:0], ValueError, r"x has no samples: its shape is \(0, 4\)"),
    "an empty list": ([], ValueError, r"x must have shape \(samples, 4\), got \(0,\)"),
    "no features": (X[:, :0], ValueError, r"x must have shape \(samples, 4\), got \(12, 0\)"),
    "complex": (X + 1j, TypeError, r"x is complex \(complex\d+\); pass real numbers"),
    "float64 beyond float32": (
        with_value(X.astype("float64"), (3, 1), 1e39),
        ValueError,
        r"x has 1e\+39 at \[3, 1\], too large for float32, .* or use dtype='float64'",
    ),
    "float64 below float32": (
        with_value(X.astype("float64"), (11, 3), -1e39),
        ValueError,
        r"x has -1e\+39 at \[11, 3\], too large for float32",
    ),
    "text": (
        X.astype(str),
        TypeError,
        r"x must hold numbers, got text such as '0\.12.*'; .* np.array\(x, float\)",
    ),
    "names": (
        np.array([["red"] * 4] * 12),
        TypeError,
        "x must hold numbers, got text such as 'red'; encode it as numbers first",
    ),
    "text among objects": (
        with_value(X.astype(object), (3, 1), "red"),
        TypeError,
        r"x must hold numbers, got 'red' at \[3, 1\]; encode it",
    ),
    "None among objects": (
        with_value(X.astype(object), (5, 2), None),
        ValueError,
        r"x has None at \[5, 2\]; remove or fill",
    ),
    "an integer beyond float64": (
        [[1, 2, 3, 10**400]] * 12,
        ValueError,
        r"x has 1000.* at \[0, 3\], beyond float64; scale it",
    ),
    "masked": (
        np.ma.array(X, mask=with_value(np.zeros(X.shape, bool), (4, 3), True)),
        ValueError,
        r"x is a masked array, with 1 masked, the first at \[4, 3\]; .* x.filled\(0\), or drop",
    ),
    "dates": (
        np.zeros((12, 4), "datetime64[s]"),
        TypeError,
        r"x must hold numbers, got dtype datetime64.* np.timedelta64\(1, 'D'\)",
    ),
    "fields": (
        np.zeros(12, "f4,f4,f4,f4"),
        TypeError,
        "got dtype .*; numpy.lib.recfunctions.structured_to_unstructured",
    ),
    "a dict": (
        {"a": X[:, 0]},
        TypeError,
        r"x must .* in an array, got a dict; pass np.column_stack\(list\(x.values\(\)\)\)",
    ),
    "an iterator": (iter(X), TypeError, r"got a .*iterator.* read only once; pass list\(x\)"),
    "a set": ({1, 2, 3}, TypeError, "got a set, which has no order"),
    "a path": ("data.csv", TypeError, "got 'data.csv'; read a file first, .*read_csv"),
    "ragged": ([[1, 2, 3, 4], [1, 2]], ValueError, "x is not a rectangular array"),
    "nothing": (None, TypeError, "x must hold numbers"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name):
    x, error, message = INPUTS[name]
    net = network()
    for call in (
        lambda: net.fit(x, LABELS, verbose=0),
        lambda: net.predict(x),
        lambda: net.evaluate(x, LABELS),
        lambda: net.loss(x, LABELS),
        lambda: net.gradient(x, LABELS),
    ):
        refused(error, message, net, call)


TARGETS = {
    "label too large": (
        with_value(LABELS, 5, 3),
        ValueError,
        r"y has label 3 at \[5\], .* 3 outputs .* labels 0 … 2",
    ),
    "label below zero": (with_value(LABELS, 4, -1), ValueError, r"y has label -1 at \[4\]"),
    "fractional label": (
        with_value(LABELS.astype("float64"), 8, 0.5),
        ValueError,
        r"y has the fractional label 0.5 at \[8\]",
    ),
    "NaN label": (with_value(LABELS.astype("float64"), 8, NAN), ValueError, r"y has NaN at \[8\]"),
    "infinite label": (
        with_value(LABELS.astype("float64"), 9, INFINITY),
        ValueError,
        r"y has infinity at \[9\]",
    ),
    "NaN in rows": (
        with_value(SINGLE.astype("float32"), (6, 1), NAN),
        ValueError,
        r"y has NaN at \[6, 1\]; .* or leave them out by np.ma.masked_invalid",
    ),
    "too few": (LABELS[:10], ValueError, "x has 12 samples and y has 10"),
    "too many": (np.arange(13) % 3, ValueError, "x has 12 samples and y has 13"),
    "one number": (np.float64(1), ValueError, "x has 12 samples and y has none"),
    "rows too short": (
        SINGLE[:, :2],
        ValueError,
        r"y must have shape \(12, 3\), one target per output, got \(12, 2\)",
    ),
    "probability above one": (
        with_value(SINGLE.astype("float64"), (2, 1), 1.5),
        ValueError,
        r"y has 1.5 at \[2, 1\].* 0 and 1",
    ),
    "probability below zero": (
        with_value(SINGLE.astype("float64"), (2, 1), -0.5),
        ValueError,
        r"y has -0.5 at \[2, 1\]",
    ),
    "complex": (SINGLE + 0j, TypeError, "y is complex"),
    "text": (
        np.array(["a"] * 12),
        TypeError,
        r"y must hold numbers, got text such as 'a'; .* = np.unique\(y, return_inverse=True\)",
    ),
    "text in objects": (
        np.array(["a"] * 12, object),
        TypeError,
        r"y must hold numbers, got 'a' at \[0\]; .* = np.unique\(y, return_inverse=True\)",
    ),
    "labels from 1": (
        LABELS + 1,
        ValueError,
        r"y has labels 1 … 3, .* labels 0 … 2; subtract 1, or use more outputs",
    ),
    "too large for float32": (
        with_value(SINGLE.astype("float64"), (2, 1), 1e39),
        ValueError,
        r"y has 1e\+39 at \[2, 1\], too large for float32",
    ),
    "masked": (
        np.ma.array(LABELS, mask=LABELS == 1),
        ValueError,
        r"y masks 4 labels, the first at \[1\]; leave such samples out, or .* sample_weight of 0",
    ),
    "masked rows of a softmax": (
        np.ma.array(SINGLE.astype("float32"), mask=SINGLE),
        ValueError,
        "y masks some targets, and CrossEntropy needs all of a sample",
    ),
    "ragged": ([[1, 0, 0], [1]] * 6, ValueError, "y is not a rectangular array"),
    "nothing": (None, TypeError, "y must hold numbers"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name):
    y, error, message = TARGETS[name]
    net = network()
    for call in (
        lambda: net.fit(X, y, verbose=0),
        lambda: net.evaluate(X, y),
        lambda: net.gradient(X, y),
    ):
        refused(error, message, net, call)
    refused(
        error,
        re.sub(r"\b([xy])( |, r|\)$)", r"validation \1\2", message),
        net,
        lambda: net.fit(X, LABELS, validation_data=(X, y), verbose=0),
    )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": -3}, ValueError, "batch_size must be .* got -3"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be .* got 2.0"),
        ({"batch_size": True}, ValueError, "batch_size must be .* got True"),
        ({"epochs": -1}, ValueError, "epochs must be an integer of at least 0, got -1"),
        ({"epochs": 1.5}, ValueError, "epochs must be .* got 1.5"),
        ({"epochs": "3"}, ValueError, "epochs must be .* got '3'"),
        ({"threads": 0}, ValueError, "threads must be .* got 0"),
        (
            {"validation_split": 1.0},
            ValueError,
            "validation_split must be at least 0 and below 1, got 1.0",
        ),
        ({"validation_split": -0.1}, ValueError, "validation_split must be .* got -0.1"),
        ({"validation_split": NAN}, ValueError, "validation_split must be .* got nan"),
        (
            {"validation_split": 0.01},
            ValueError,
            "validation_split=0.01 of 12 samples leaves one side empty",
        ),
        (
            {"validation_split": 0.5, "validation_data": (X, LABELS)},
            ValueError,
            "validation_data or validation_split, not both",
        ),
        ({"validation_data": X}, ValueError, r"validation_data must be a pair \(x, y\)"),
        (
            {"validation_data": (X[:, :2], LABELS)},
            ValueError,
            r"validation x must have shape \(samples, 4\), got \(12, 2\)",
        ),
        ({"callbacks": [3]}, TypeError, "a callback is a Callback or a function"),
        ({"callbacks": 3}, TypeError, "a callback is a Callback or a function .*, not 3"),
        (
            {"callbacks": [nn.callbacks.EarlyStopping]},
            TypeError,
            r"EarlyStopping is a class; pass EarlyStopping\(\)",
        ),
        ({"callbacks": nn.callbacks.EarlyStopping}, TypeError, "EarlyStopping is a class"),
        ({"loss": nn.Loss}, TypeError, "Loss is what its subclasses have in common"),
        ({"loss": "bce_with_logits"}, ValueError, "'bce_with_logits'; .* activation='softmax'"),
        ({"loss": "BCEWithLogitsLoss"}, ValueError, "work on logits by themselves"),
        ({"optimizer": nn.Optimizer}, TypeError, "Optimizer is what its subclasses have"),
        ({"optimizer": "Adma"}, ValueError, "unknown optimizer 'Adma'; did you mean 'adam'"),
        ({"augment": 3}, TypeError, "augment is an Augment or None, not 3"),
        (
            {"sample_weight": np.ones(2)},
            ValueError,
            rf"sample_weight must have shape \({len(X)},\), got \(2,\)",
        ),
        ({"sample_weight": np.zeros(len(X))}, ValueError, "sample_weight is 0 everywhere"),
        (
            {"sample_weight": [1] * (len(X) - 1) + [-2]},
            ValueError,
            rf"sample_weight has -2 at \[{len(X) - 1}\]; weights must be at least 0",
        ),
        (
            {"sample_weight": [1] * (len(X) - 1) + [np.nan]},
            ValueError,
            rf"sample_weight has NaN at \[{len(X) - 1}\]",
        ),
        (
            {"class_weight": "even"},
            ValueError,
            "class_weight is \"balanced\", a dict or an array, not 'even'",
        ),
        ({"class_weight": {7: 1}}, ValueError, "class_weight has the class 7; there are 0 … 2"),
        ({"class_weight": {True: 1}}, ValueError, "class_weight has the class True"),
        (
            {"class_weight": {"cat": 1}},
            ValueError,
            "class_weight: no class is called 'cat', class_names are none",
        ),
        ({"class_weight": {1: -1}}, ValueError, r"class_weight\[1\] must be .* of at least 0"),
        (
            {"class_weight": [1, 2]},
            ValueError,
            r"class_weight must have a weight for each of 3 classes, got \[1, 2\]",
        ),
        ({"class_weight": [1, 2, NAN]}, ValueError, r"class_weight has NaN at \[2\]"),
        (
            {"class_weight": [0, 1, 0], "sample_weight": LABELS != 1},
            ValueError,
            "sample_weight times class_weight is 0 for every sample",
        ),
        (
            {"sample_weight": [1] * 9 + [0] * 3, "validation_split": 0.25},
            ValueError,
            "sample_weight is 0 for every sample of the validation data; there must be a weight",
        ),
        (
            {"sample_weight": [0] * 9 + [1] * 3, "validation_split": 0.25},
            ValueError,
            "sample_weight is 0 for every sample of the training data",
        ),
        (
            {"class_weight": {2: 0}, "validation_data": (X[:1], [2])},
            ValueError,
            "^class_weight is 0 for every sample of the validation data",
        ),
        (
            {"validation_data": (X, LABELS, np.ones(len(X)))},
            ValueError,
            r"must be a pair \(x, y\), or a dict of .*; pass {'x': …, 'y': …, 'sample_weight': …}$",
        ),
        (
            {"validation_data": {"x": X, "y": LABELS, "weights": X}},
            ValueError,
            "validation_data must be a pair",
        ),
        (
            {"validation_data": {"x": X, "y": LABELS, "sample_weight": [1]}},
            ValueError,
            r"validation sample_weight must have shape \(12,\)",
        ),
        (
            {"loss": "cross_entrop"},
            ValueError,
            "unknown loss 'cross_entrop'; did you mean 'cross_entropy'",
        ),
        ({"loss": 3}, TypeError, "a loss is a name or a Loss, not 3"),
        (
            {"loss": "binary_cross_entropy"},
            ValueError,
            "needs a network that ends in sigmoid, .* Softmax; .* loss='cross_entropy'",
        ),
        ({"optimizer": "adm"}, ValueError, "unknown optimizer 'adm'; did you mean 'adam'"),
        ({"optimizer": "lbfg"}, ValueError, "did you mean 'lbfgs'.*adamw, lbfgs"),
        ({"optimizer": 0.1}, TypeError, "an optimizer is a name or an Optimizer, not 0.1"),
        ({"lr": 0.1}, TypeError, r"Sequential.fit has no argument 'lr'; pass an optimizer with it"),
        ({"clip_norm": 1}, TypeError, "no argument 'clip_norm'; pass an optimizer with it"),
        ({"batch": 5}, TypeError, "no argument 'batch'; it is called 'batch_size' here"),
        ({"nb_epoch": 5}, TypeError, "no argument 'nb_epoch'; it is called 'epochs' here"),
        ({"shufle": True}, TypeError, "no argument 'shufle'; did you mean 'shuffle'"),
        ({"patience": 3}, TypeError, "pass callbacks=nn.callbacks.EarlyStopping"),
        ({"max_seconds": 3}, TypeError, "pass callbacks=nn.callbacks.TimeLimit"),
    ],
    ids=str,
)
def test_settings_of_fit(settings, error, message):
    net = network()
    refused(error, message, net, lambda: net.fit(X, LABELS, **{"verbose": 0, **settings}))


def test_settings_of_evaluate():
    net = network()
    refused(
        ValueError,
        "batch_size says how many sequences of a stateful network go on, and this one has no",
        net,
        lambda: net.evaluate(X, LABELS, batch_size=3),
    )


@pytest.mark.parametrize(
    ("last", "loss", "message"),
    [
        (
            None,
            "cross_entropy",
            r"CrossEntropy needs a network that ends in softmax, "
            r".* ends in Dense; .* activation='softmax'",
        ),
        (
            "sigmoid",
            "cross_entropy",
            "ends in Sigmoid; .* after a sigmoid use loss='binary_cross_entropy'",
        ),
        (
            "tanh",
            "binary_cross_entropy",
            "BinaryCrossEntropy needs a network that ends in sigmoid, .* ends in Tanh",
        ),
        (
            "softmax",
            "binary_cross_entropy",
            "ends in Softmax; .* after a softmax use loss='cross_entropy'",
        ),
        ("exp", "cross_entropy", "ends in Exp; .* after an exponential use loss='poisson'"),
        ("softmax", "poisson", "Poisson needs a network that ends in exp, .* activation='exp'"),
    ],
)
def test_losses_that_need_another_last_activation(last, loss, message):
    net = network(last)
    for call in (
        lambda: net.fit(X, LABELS, loss=loss, verbose=0),
        lambda: net.evaluate(X, LABELS, loss=loss),
        lambda: net.gradient(X, LABELS, loss=loss),
    ):
        refused(ValueError, message, net, call)


@pytest.mark.parametrize(
    ("names", "find", "kind"),
    [
        (["mse", "MSE", "MSELoss", "squared_error"], losses.loss, nn.MeanSquaredError),
        (["mae", "L1Loss", "MeanAbsoluteError"], losses.loss, nn.MeanAbsoluteError),
        (["bce", "binary_crossentropy", "BCELoss"], losses.loss, nn.BinaryCrossEntropy),
        (
            ["crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"]
            + ["log_loss", "CrossEntropyLoss", nn.CrossEntropy],
            losses.loss,
            nn.CrossEntropy,
        ),
        (["Huber", "smooth_l1_loss", nn.Huber], losses.loss, nn.Huber),
        (["quantile", "pinball_loss", nn.Quantile], losses.loss, nn.Quantile),
        (["linear", "Identity"], activation, nn.Identity),
        (["LeakyReLU", "leaky-relu", nn.LeakyReLU], activation, nn.LeakyReLU),
        (["RMSProp", nn.RMSprop], optimizer, nn.RMSprop),
    ],
)
def test_names_of_other_libraries_and_classes(names, find, kind):
    assert {type(find(name)) for name in names} == {kind}


@pytest.mark.parametrize(
    ("name", "same"), [("xavier", "glorot"), ("glorot_uniform", "glorot"), ("He-Normal", "he")]
)
def test_initialisers_of_other_libraries(name, same):
    nets = [nn.Sequential([nn.Dense(3, initializer=one)], 2) for one in (name, same)]
    np.testing.assert_array_equal(nets[0].parameters, nets[1].parameters)


def test_one_callback_or_none():
    net, seen = network(), []
    for callbacks in (None, lambda *_: seen.append(1), iter([lambda *_: seen.append(2)])):
        net.fit(X, LABELS, callbacks=callbacks, verbose=0)
    net.fit(X, LABELS, callbacks=nn.callbacks.EarlyStopping("loss"), augment=None, verbose=0)
    assert seen == [1, 2]


def test_quantiles_that_the_outputs_do_not_fit():
    net = network(None)
    message = f"Quantile has 2 levels and the network {net.output_shape[0]} outputs; give it one"
    loss = nn.Quantile((0.1, 0.9))
    for call in (
        lambda: net.fit(X, np.ones((len(X), *net.output_shape)), loss=loss, verbose=0),
        lambda: net.evaluate(X, np.ones((len(X), *net.output_shape)), loss=loss),
        lambda: net.handle(loss=loss),
    ):
        refused(ValueError, message, net, call)


def test_a_loss_on_images():
    net = nn.Sequential([nn.ReLU()], (2, 2, 1))
    with pytest.raises(ValueError, match=r"output has shape \(2, 2, 1\); end it with Flatten\(\)"):
        net.evaluate(np.ones((3, 2, 2, 1)), np.ones((3, 4)))


@pytest.mark.parametrize(
    ("x", "hint"),
    [
        (np.ones((2, 3, 5, 4)), r"looks like channels first: pass x.transpose\(0, 2, 3, 1\)"),
        (np.ones((2, 5, 4)), ""),
        (np.ones((5, 4, 3)), r"a single sample goes in as x\[None\]"),
    ],
)
def test_images_in_another_layout(x, hint):
    net = network(shape=(5, 4, 3))
    message = rf"x must have shape \(samples, 5, 4, 3\), got {re.escape(str(x.shape))}.*{hint}"
    refused(ValueError, message, net, lambda: net.predict(x))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: network(hidden="rellu"),
            ValueError,
            "unknown activation 'rellu'; did you mean 'relu'",
        ),
        (lambda: network(hidden=3), TypeError, "an activation is a name"),
        (lambda: network(hidden="swish"), ValueError, "unknown activation 'swish'"),
        (lambda: nn.Sequential([nn.Dense], 3), TypeError, r"a class and needs units; .*\(units\)"),
        (lambda: nn.Sequential([nn.Layer], 3), TypeError, "Layer is what its subclasses have in"),
        (lambda: nn.Dense(3, penalty=nn.L2), TypeError, "L2 is a class and needs strength"),
        (
            lambda: nn.Sequential([nn.Dense(3, initializer="glorott")], 2),
            ValueError,
            "initializer 'glorott'; did you mean 'glorot'",
        ),
        (
            lambda: nn.Sequential([nn.Dense(3, initializer=np.ones((3, 2)))], 2),
            ValueError,
            r"layer 0 \(Dense\), weights: initial values have shape \(3, 2\), the layer "
            r"needs \(2, 3\)",
        ),
        (
            lambda: nn.Sequential([nn.Dense(3, bias_initializer=[1, NAN, 2])], 2),
            ValueError,
            r"layer 0 \(Dense\), bias: .* finite",
        ),
        (
            lambda: nn.Sequential([nn.Dense(2), nn.Dense(3, activation=["relu", "tanh"])], 2),
            ValueError,
            r"layer 2 \(PerNeuron\): a list of 2 activations does not fit an output "
            r"of shape \(3,\)",
        ),
        (
            lambda: nn.Sequential([nn.Dense(3, activation=["softmax", "relu", "relu"])], 2),
            ValueError,
            "Softmax works on a whole layer",
        ),
        (
            lambda: nn.Sequential([nn.Dense(3)], (4, 4, 1)),
            ValueError,
            r"Dense expects a vector or a sequence .*, got \(4, 4, 1\); put Flatten\(\)",
        ),
        (
            lambda: nn.Sequential([nn.Dense(0)], 2),
            ValueError,
            "positive integer number of units, got 0",
        ),
        (
            lambda: nn.Sequential([nn.Dense(2.5)], 2),
            ValueError,
            "positive integer number of units, got 2.5",
        ),
        (lambda: nn.Sequential([], 2), ValueError, "at least one layer"),
        (
            lambda: nn.Sequential(["relu"], 2),
            TypeError,
            "a layer was expected at place 0, got 'relu'",
        ),
        (
            lambda: nn.Sequential([nn.Dense(2)], 0),
            ValueError,
            "input_shape must be an integer of at least 1, got 0",
        ),
        (
            lambda: nn.Sequential([nn.Dense(2)], 2, dtype="float16"),
            ValueError,
            "dtype must be float32 or float64, got 'float16'",
        ),
        (
            lambda: nn.Sequential([nn.Dense(2)], 2, seed=-1),
            ValueError,
            "seed must be an integer of at least 0, got -1",
        ),
        (
            lambda: nn.Sequential([nn.Dense(2)], 2, penalty=0.1),
            TypeError,
            r"a penalty is L1\(…\), L2\(…\) or a list",
        ),
        (lambda: nn.Sequential([nn.Dense(2)], 2, threads=0), ValueError, "threads must be"),
        (lambda: nn.L2(-1), ValueError, "L2 needs a finite strength of at least 0, got -1"),
        (lambda: nn.L1(NAN), ValueError, "L1 needs a finite strength"),
        (lambda: nn.L2(1, per="epoch"), ValueError, "per is None"),
        (
            lambda: nn.SGD(-0.1),
            ValueError,
            "SGD: learning_rate must be a finite number of at least 0, or a schedule, got -0.1",
        ),
        (lambda: nn.SGD(INFINITY), ValueError, "SGD: learning_rate must be a finite number"),
        (lambda: nn.SGD(0.1, momentum=1), ValueError, "SGD: momentum must be below 1, got 1"),
        (lambda: nn.SGD(0.1, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda: nn.Adam(beta_1=1.0), ValueError, "Adam: beta_1 must be below 1"),
        (lambda: nn.Huber(0), ValueError, "Huber needs a positive delta, got 0"),
        (lambda: nn.Quantile(1), ValueError, "Quantile: levels must be below 1, got 1"),
        (lambda: nn.Quantile((0.1, NAN)), ValueError, "must be above 0 and below 1, got nan"),
        (lambda: nn.Quantile([]), ValueError, r"levels must have at least one number, got \[\]"),
        (lambda: nn.LeakyReLU(-1), ValueError, "LeakyReLU needs a slope of at least 0, got -1"),
    ],
)
def test_descriptions(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_parameters_of_another_length():
    net = network()
    with pytest.raises(
        ValueError, match=r"the network has 43 parameters, got an array of shape \(44,\)"
    ):
        net.parameters = np.zeros(44)


def memory_mapped(array, folder):
    np.save(folder / "array.npy", array)
    return np.load(folder / "array.npy", mmap_mode="r")


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Dense(1, activation="softmax")], 3),
        ([nn.Dense(1), nn.Softmax()], 3),
        ([nn.Softmax(), nn.Dense(2)], 1),
        ([nn.Flatten(), nn.Softmax], (1, 1, 1)),
    ],
)
def test_a_softmax_of_one_output(layers, shape):
    with pytest.raises(ValueError, match=r"\(Softmax\): .* always 1.*; use sigmoid, or one output"):
        nn.Sequential(layers, shape)


@pytest.mark.parametrize("values", [np.zeros(43) + 1j, np.full(43, Ellipsis), ["a"] * 43])
def test_parameters_that_are_no_real_numbers(values):
    net = network()
    for built, name in ((net, "parameters"), (net.layers[1], "weights")):
        part = values if built is net else np.resize(values, (4, 5))
        refused(TypeError, f"{name} (is complex|must hold numbers)", net, setter(built, name, part))


def setter(instance, name, value):
    return lambda: setattr(instance, name, value)


ENSEMBLE = nn.Ensemble([network()])


@pytest.mark.parametrize(
    ("instance", "name", "value", "error", "message"),
    [
        (lambda net: net, "trainable", False, AttributeError, "network.freeze"),
        (lambda net: net, "treads", 2, AttributeError, "Sequential has .*mean 'threads'"),
        (lambda net: net, "learning_rate", 1, AttributeError, "to fit"),
        (lambda net: ENSEMBLE, "combin", "vote", AttributeError, "Ensemble .* mean 'combine'"),
        (
            lambda net: net.layers[1],
            "trainable",
            "no",
            ValueError,
            "trainable must be True or False",
        ),
        (
            lambda net: net.layers[1],
            "learning_rate_factor",
            -1,
            ValueError,
            "learning_rate_factor must be a finite number of at least 0, got -1",
        ),
        (lambda net: net.layers[1], "weight_decay", "x", ValueError, "Dense: weight_decay must be"),
        (lambda net: net.layers[1], "learning_rate", 1, AttributeError, "learning_rate_factor = 0"),
        (lambda net: net.layers[1], "lr_mult", 1, AttributeError, "'learning_rate_factor' here"),
        (lambda net: net.layers[1], "wieghts", 0, AttributeError, "mean 'weights'"),
        (lambda net: net.layers[1], "kernel", 0, AttributeError, "Dense has no attribute 'kernel'"),
        (lambda net: net.layers[1], "units", 3, AttributeError, "units belongs to .* description"),
        (
            lambda net: net.layers[1],
            "weights",
            np.zeros(5),
            ValueError,
            r"Dense: weights has shape \(4, 5\), got an array of shape \(5,\)",
        ),
        (lambda net: net.layers[1], "bias", [1.0], ValueError, r"shape \(5,\), .* \(1,\)"),
        (lambda net: nn.Dense(3), "trainable", False, AttributeError, "network.freeze"),
        (lambda net: nn.Dense(3), "unit", 3, AttributeError, "mean 'units'"),
        (lambda net: nn.Flatten(), "x", 3, AttributeError, "Flatten has no attribute 'x'"),
        (lambda net: nn.ReLU(), "x", 3, AttributeError, "ReLU has no attribute 'x'"),
        (lambda net: nn.CrossEntropy(), "x", 3, AttributeError, "CrossEntropy has no attribute"),
        (
            lambda net: nn.Dense(3),
            "units",
            4,
            AttributeError,
            r"units cannot be changed; .* dataclasses.replace\(…, units=…\), and build a network",
        ),
        (
            lambda net: nn.Adam(),
            "learning_rate",
            0.01,
            AttributeError,
            "replace.*pass it to the next fit, which keeps the state of an optimiser of its class",
        ),
        (lambda net: nn.L2(0.1), "strength", 1, AttributeError, "strength cannot be changed"),
        (lambda net: nn.Augment(), "shift", 1, AttributeError, "shift cannot be changed"),
    ],
)
def test_attributes_that_cannot_be_set(instance, name, value, error, message):
    net = network()
    refused(error, message, net, setter(instance(net), name, value))


def test_attributes_that_can_be_set():
    net = network()
    net.layers[1].weights = np.full((4, 5), 0.5)
    net.layers[1].bias = 2
    assert net.parameters[:25].tolist() == [0.5] * 20 + [2] * 5

    class Named(nn.Sequential):
        pass

    class Plain(nn.Layer):
        def __init__(self):
            self.calls = 0

    named = Named([Plain()], 3)
    named.title = "mine"
    named.specs[0].calls += 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Adam(lr=0.1), r"Adam .* 'lr'; it is called 'learning_rate' here \(its arg"),
        (lambda: nn.Adam(betas=(0.9, 0.99)), "called 'beta_1' and 'beta_2' here"),
        (lambda: nn.RMSprop(rho=0.9), "called 'alpha' here"),
        (lambda: nn.Adam(clipvalue=1), "called 'clip_value' here"),
        (lambda: nn.Adam(clipnorm=1), "clip_norm clips the norm of the whole gradient"),
        (lambda: nn.Adam(global_clipnorm=1), "called 'clip_norm' here"),
        (lambda: nn.SGD(max_norm=1), "called 'clip_norm' here"),
        (lambda: nn.SGD(gradient_accumulation_steps=2), "called 'accumulate' here"),
        (lambda: nn.SGD(use_ema=True), "average=0.999 is"),
        (lambda: nn.SGD(ema_momentum=0.9), "called 'average' here"),
        (lambda: nn.SGD(weight_decay=0.1), r"network.layers\[k\].weight_decay"),
        (lambda: nn.LBFGS(clip_norm=1), "of the optimizers with mini-batches"),
        (lambda: nn.Dense(3, weight_decay=0.1), r"network.layers\[k\].weight_decay = 0.01"),
        (lambda: nn.Dense(3, learning_rate=0.1), "learning_rate_factor = 0.1"),
        (lambda: nn.BatchNorm(eps=0.1), "called 'epsilon' here"),
        (lambda: nn.Conv2D(3, 3, strides=2), "called 'stride' here .* filters, kernel_size,"),
        (lambda: nn.MaxPool2D(pool_size=2), "called 'size' here"),
        (lambda: nn.MaxPool1D(kernel_size=2), "called 'size' here"),
        (lambda: nn.Conv1D(out_channels=3), "called 'filters' here"),
        (lambda: nn.Dense(3, use_bias=False), "called 'bias' here"),
        (lambda: nn.Dense(3, kernel_initializer="he"), "called 'initializer' here"),
        (lambda: nn.Dense(3, kernel_regularizer=nn.L2(0.1)), "called 'penalty' here"),
        (lambda: nn.Dense(3, activtion="relu"), "did you mean 'activation'"),
        (lambda: nn.Dense(3, input_shape=4), "Sequential takes the shape of a sample"),
        (lambda: nn.Dense(3, trainable=False), "network.freeze"),
        (lambda: nn.Dropout(p=0.5), "called 'rate' here"),
        (lambda: nn.LeakyReLU(alpha=0.5), "called 'slope' here"),
        (lambda: nn.L2(l2=0.5), "called 'strength' here"),
        (lambda: nn.initializers.Normal(stddev=0.5), "called 'std' here"),
        (lambda: nn.CrossEntropy(from_logits=True), "work on logits .* arguments: none"),
        (lambda: nn.Augment(rotations=3), "did you mean 'rotation'"),
        (lambda: nn.Sequential([nn.Dense(1)], 3, sead=3), "did you mean 'seed'"),
        (lambda: nn.Ensemble(networks=[], combin="vote"), "did you mean 'combine'"),
        (lambda: nn.callbacks.EarlyStopping(patients=3), "did you mean 'patience'"),
        (lambda: network().find_learning_rate(X, LABELS, epochs=3), "'epochs'; it takes `steps`"),
        (lambda: network().find_learning_rate(X, LABELS, metrics="f1"), "training loss alone"),
        (lambda: network().find_learning_rate(X, LABELS, batch=3), "called 'batch_size' here"),
        (
            lambda: nn.evaluate_parameters(network(), [], X, LABELS, class_weight={1: 2}),
            r"^evaluate_parameters has no argument 'class_weight'; network\.evaluate takes it",
        ),
        (lambda: nn.evaluate_parameters(network(), [], X, LABELS, thread=1), "mean 'threads'"),
    ],
)
def test_unknown_arguments(build, message):
    with pytest.raises(TypeError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_what_is_unusual_and_right(tmp_path):
    """Unusual data that must pass.

    Labels as floats or rows, lists, integers, other byte orders, strides, views, a flat image.
    """
    net = network()
    expected = net.predict(X)
    for x in (
        X.tolist(),
        X.astype(">f4"),
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X[::-1].copy()[::-1],
        X.astype(object),
        np.ma.array(X),
        memory_mapped(X, tmp_path),
    ):
        np.testing.assert_array_equal(net.predict(x), expected)
    whole = net.evaluate(X, LABELS)
    for y in (
        LABELS.tolist(),
        LABELS.astype("float32"),
        LABELS.astype("uint8"),
        LABELS[:, None],
        LABELS.astype(object),
        LABELS.astype(">u2"),
        np.ma.array(LABELS),
        SINGLE,
        SINGLE.astype("float64"),
    ):
        assert net.evaluate(X, y)["accuracy"] == whole["accuracy"]
    assert network(shape=(2, 2, 1)).predict(X).shape == (12, 3)
    assert (
        net.predict(np.ones((3, 4), int)).shape
        == net.predict(np.ones((3, 4), bool)).shape
        == (3, 3)
    )
    for dtype in ("int8", "uint16", "int64", "uint64", "float16", "longdouble", "bool"):
        x = np.ones((3, 4), dtype)
        np.testing.assert_array_equal(net.predict(x), net.predict(np.ones((3, 4), "float32")))
    large = np.full((4, 4), 3e38, "float32")  # its sum overflows, its numbers do not
    nn.Sequential([nn.ReLU()], 4).predict(large)


def test_a_vector_where_a_sample_is_one_number():
    net = nn.Sequential([nn.Dense(2)], 1)
    x = np.linspace(-1, 1, 12, dtype="float32")
    for given in (x, x.tolist(), x.astype("float64").astype(object)):
        np.testing.assert_array_equal(net.predict(given), net.predict(x[:, None]))
    assert net.evaluate(x, LABELS % 2) == net.evaluate(x[:, None], LABELS % 2)
    net.fit(x, LABELS % 2, verbose=0)


@pytest.mark.parametrize("samples", [1, 3, 300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predictions_that_overflow_warn(samples, dtype):
    """The first call builds what later calls of few samples use."""
    net = nn.Sequential([nn.Dense(3), nn.Dense(2)], 4, dtype, seed=1)
    net.predict(np.ones((samples, 4), dtype))
    largest = np.finfo(dtype).max
    x = np.ones((samples, 4), dtype)
    x[-1] = largest
    way = "or use dtype='float64'" if dtype == "float32" else ""
    message = f"outputs of sample {samples - 1} are not finite: .*{dtype}; scale the inputs.*{way}"
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=message) as caught:
            outputs = net.predict(x)
        assert len(caught) == 1 and caught[0].filename == __file__
        assert not np.isfinite(outputs).all()
    net.parameters[0] = NAN
    with pytest.warns(RuntimeWarning, match="the network's parameters hold NaN or infinity"):
        net.predict(np.ones((samples, 4), dtype))


@pytest.mark.parametrize("samples", [1, 3, 300])
def test_the_fast_path_refuses_what_the_network_cannot_hold(samples):
    net = nn.Sequential([nn.Dense(2, activation="tanh")], 4)
    x = np.ones((samples, 4))
    net.predict(x)
    x[-1, 2] = 3.5e38
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"x has 3.5e\+38 at \[{samples - 1}, 2\], too large"):
            net.predict(x)
    wide = nn.Sequential([nn.Dense(2, activation="tanh")], 4, "float64")
    assert np.isfinite(wide.predict(x)).all()


# --- arrays of other libraries -----------------------------------------------------------------


def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas")
    net, columns = network(), list("abcd")
    frame = pandas.DataFrame(X, columns=columns)
    expected = net.predict(X)
    np.testing.assert_array_equal(net.predict(frame), expected)
    np.testing.assert_array_equal(net.predict(frame.astype("Float32")), expected)
    np.testing.assert_array_equal(net.predict(frame.astype(object)), expected)
    kinds = pandas.DataFrame(
        {"a": [1, 2], "b": [True, False], "c": [1.5, 2], "d": [3, 4]}, index=["u", "v"]
    ).astype({"a": "Int64", "b": "boolean", "c": "Float64"})
    plain = np.array([[1, 1, 1.5, 3], [2, 0, 2, 4]])
    np.testing.assert_array_equal(net.predict(kinds), net.predict(plain))
    for y in (pandas.Series(LABELS), pandas.DataFrame({"y": LABELS}).astype("Int64")):
        assert net.evaluate(frame, y) == net.evaluate(X, LABELS)
    text = pandas.Series(["red", "green", "blue"] * 4)
    for x, message in [
        (frame.assign(b=text), "x, column 'b' holds text: encode it, e.g. pandas.get_dummies"),
        (
            frame.assign(b=text.astype("category")),
            "x, column 'b' holds categories: encode it, e.g. pandas.get_dummies",
        ),
        (
            frame.assign(c=pandas.Timestamp(0)),
            "x, column 'c' must hold numbers, got dtype datetime64",
        ),
    ]:
        refused(TypeError, message, net, lambda x=x: net.predict(x))
    for kind in ("float32", "Float32", object):
        holes = frame.astype(kind)
        holes.iloc[7, 2] = None if kind == "float32" else pandas.NA
        message = r"x, column 'c' has a missing value in row 7; .*\(dropna\).*\(fillna\)"
        refused(ValueError, message, net, lambda x=holes: net.fit(x, LABELS, verbose=0))
    for y, holds in [(text, "text"), (text.astype("category"), "categories")]:
        message = rf"y holds {holds}: .* = np.unique\(y, return_inverse=True\)"
        refused(TypeError, message, net, lambda y=y: net.evaluate(X, y))


def test_tensors_of_other_libraries():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    net = network()
    expected = net.predict(X)
    np.testing.assert_array_equal(net.predict(torch.tensor(X)), expected)
    np.testing.assert_array_equal(net.predict(jax.numpy.asarray(X)), expected)
    for x, message in [
        (torch.tensor(X, requires_grad=True), r"requires a gradient; pass x.detach\(\)"),
        (torch.tensor(X).bfloat16(), "x cannot be read as an array: .*BFloat16"),
        (jax.numpy.asarray(X, "bfloat16"), r"got dtype bfloat16; .* x.astype\('float32'\)"),
    ]:
        refused(TypeError, message, net, lambda x=x: net.predict(x))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_a_network_for_images_with_channels_first(shape):
    with pytest.raises(ValueError, match="channels come last here"):
        nn.Sequential([nn.Conv2D(4, 1)], shape)


def test_an_array_whose_numbers_lie_between_machine_words_is_read_right():
    """Inputs of the network's own type are read where they lie; these lie one byte off."""
    net = nn.Sequential([nn.Dense(3, activation="tanh")], 5)
    for samples in (2, 500):
        x = np.random.default_rng(samples).normal(size=(samples, 5)).astype("float32")
        shifted = np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view("float32").reshape(x.shape)
        assert not shifted.flags.aligned
        net.predict(x)
        assert (net.predict(shifted) == net.predict(x)).all()


def test_inputs_are_only_read():
    for layers in (
        [nn.Sigmoid()],
        [nn.Tanh(), nn.Dense(2)],
        [nn.Dense(2), nn.ReLU()],
        [nn.Dropout(0.5), nn.Softmax()],
    ):
        net = nn.Sequential(layers, 4)
        for samples in (3, 300):
            x = np.random.default_rng(1).normal(size=(samples, 4)).astype("float32")
            kept = x.copy()
            x.flags.writeable = False
            net.predict(x)
            net.evaluate(x, net.predict(x), loss="mean_squared_error") if not isinstance(
                layers[-1], nn.Softmax
            ) else None
            assert (x == kept).all()


def test_a_layer_whose_ops_lack_its_parameters_is_refused():
    class Forgetful(nn.Layer):
        def parameters(self, shape):
            return {"weights": (3,)}

    with pytest.raises(ValueError, match="Forgetful says that it has 3 parameters, its ops have 0"):
        nn.Sequential([Forgetful(), nn.Dense(2)], 4)
