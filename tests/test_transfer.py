"""Frozen layers, copied weights, and parts of a network."""

import pickle

import numpy as np
import pytest
from checkers import close, reference_fit
from scale import Scale

import numbanet as nn
from examples import OPTIMIZERS, TRAINABLE, inputs, loss_named, named, network, targets

LOSS = loss_named("mean squared error")
X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
Y = X[:, :2] ** 2


def small(seed=1, dtype="float32"):
    layers = [
        nn.Dense(6, activation="tanh"),
        nn.BatchNorm(),
        nn.Dropout(0.2),
        nn.Dense(4, activation="relu"),
        nn.Dense(2),
    ]
    net = nn.Sequential(layers, 5, dtype, seed)
    net.fit(X, Y, verbose=0)
    return net


def states(net):
    return [
        b"".join(v.tobytes() for v in {**built.parameters, **built.buffers}.values())
        for built in net.layers
    ]


# --- frozen layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_training_leaves_a_frozen_layer_alone_and_trains_the_others_as_the_reference(
    example, threads
):
    x, y, adam = inputs(example, 12), targets(LOSS, 12), OPTIMIZERS["adam"]
    for frozen in range(len(network(example, LOSS).layers)):
        net = network(example, LOSS)
        if not net.layers[frozen].n_parameters:
            continue
        net.freeze(frozen)
        before = states(net)
        if not any(b.trainable and b.n_parameters for b in net.layers):
            continue
        expected, _, _ = reference_fit(net, x, y, LOSS.loss, adam, 5, 1, threads=threads)
        net.fit(x, y, loss=LOSS.loss, optimizer=adam, batch_size=5, threads=threads, verbose=0)
        after = states(net)
        assert after[frozen] == before[frozen]
        assert all(
            a != b
            for k, (a, b) in enumerate(zip(after, before, strict=True))
            if k != frozen and net.layers[k].n_parameters
        )
        close(net.memory, expected, 1e-11)


def test_nothing_below_the_lowest_trained_layer_has_a_backward_pass():
    net = small()
    net.freeze(slice(0, 4))
    ops, *_ = net.loss_ops(nn.MeanSquaredError(), X.dtype, Y.dtype, False, training=True)
    from numbanet.plan.columns import BACKWARD
    from numbanet.plan.lower import lower

    plan = lower(ops, net.dtype, batch=8, threads=1, train=True)
    backward = {op.name for op, row in plan.rows.items() if plan.tables[0, row, BACKWARD]}
    assert backward == {"MeanSquaredError", "Dense", "ReLU"} & backward and "Tanh" not in backward
    tasks = {plan.by_row[row].name for row in plan.tasks[:, 0].tolist()}
    assert tasks == {"Dense"} and len({row for row in plan.tasks[:, 0].tolist()}) == 2


def test_freezing_takes_effect_at_the_next_fit_and_ends():
    net = small()
    net.freeze(0, -1)
    assert [built.trainable for built in net.layers] == [False, *[True] * 5, False]
    before = states(net)
    net.fit(X, Y, verbose=0)
    middle = states(net)
    assert middle[0] == before[0] and middle[-1] == before[-1] and middle[4] != before[4]
    net.unfreeze()
    net.fit(X, Y, verbose=0)
    assert states(net)[0] != middle[0] and all(built.trainable for built in net.layers)


def test_the_gradient_in_training_is_zero_for_what_is_frozen():
    net = nn.Sequential([nn.Dense(3), nn.Dense(2)], 5, "float64")
    whole = net.gradient(X, Y, training=True)
    net.layers[0].trainable = False
    part = net.gradient(X, Y, training=True)
    assert not part[:18].any() and np.array_equal(part[18:], whole[18:])
    assert np.array_equal(net.gradient(X, Y), whole)


def settings(net):
    return [(b.trainable, b.learning_rate_factor, b.weight_decay) for b in net.layers]


def test_what_is_set_for_layers_stays_in_files_pickles_and_parts(tmp_path):
    net = small()
    net.freeze(0, 2)
    net.layers[4].learning_rate_factor, net.layers[6].weight_decay = 0.1, 0.5
    net.save(tmp_path / "net")
    for other in (nn.load(tmp_path / "net"), pickle.loads(pickle.dumps(net)), net[:]):
        assert settings(other) == settings(net)
    assert settings(net[4:]) == settings(net)[4:]
    net.layers[1].trainable = False  # an activation, which has nothing to freeze
    net.save(tmp_path / "net")
    assert settings(nn.load(tmp_path / "net")) == settings(net)
    for other in (nn.load(tmp_path / "net"),):
        other.fit(X, Y, verbose=0)
        net.fit(X, Y, verbose=0)
        assert other.parameters.tobytes() == net.parameters.tobytes()


def test_everything_frozen_is_an_error():
    net = small()
    net.freeze()
    with pytest.raises(ValueError, match="all its layers are frozen: unfreeze one"):
        net.fit(X, Y)
    with pytest.raises(ValueError, match="no parameters to train; it has none"):
        nn.Sequential([nn.ReLU()], 5).fit(X, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net: net.freeze(7), IndexError, "there is no layer 7; the network has 7 layers"),
        (lambda net: net.freeze("first"), TypeError, "layers are integers or slices, got 'first'"),
        (lambda net: net.freeze(True), TypeError, "integers or slices"),
        (
            lambda net: net.freeze(1),
            ValueError,
            r"nothing to freeze or train in layer 1 \(Tanh\); .* those of layer 0 \(Dense\)",
        ),
        (lambda net: net.unfreeze(3, 5), ValueError, r"\(Dropout\), layer 5 .* layer 2 \(BatchN"),
        (lambda net: net[3], TypeError, r"network\[a:b\] is a part .* are network.layers"),
        (lambda net: net[4:4], ValueError, "has no layers"),
        (lambda net: net.outputs(X, 9), IndexError, "there is no layer 9"),
        (lambda net: net.copy_weights(net[2:]), ValueError, r"layer 0 \(Dense weights .*layers=…"),
        (lambda net: net.copy_weights(net, {0: 4}), ValueError, "cannot take the weights"),
    ],
)
def test_wrong_layers(call, error, message):
    net = small()
    before = states(net), [built.trainable for built in net.layers]
    with pytest.raises(error, match=message):
        call(net)
    assert (states(net), [built.trainable for built in net.layers]) == before


# --- weights and parts ----------------------------------------------------------------------------


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_two_parts_in_a_row_are_the_network(example):
    net, x = network(example, LOSS), inputs(example, 6)
    for k in range(1, len(net.layers)):
        first, second = net[:k], net[k:]
        close(second.predict(first.predict(x)), net.predict(x), 1e-12)
        close(net.outputs(x, k - 1), first.predict(x), 0)


def test_a_part_is_a_copy():
    net = small()
    part, before = net[:4], net.parameters.copy()
    part.fit(X, np.ones((40, 6)), verbose=0)
    assert np.array_equal(net.parameters, before)


def test_the_last_part_predicts_in_the_unit_of_scaled_targets():
    net = nn.Sequential([nn.Dense(3, activation="tanh"), nn.Dense(1)], 5)
    net.fit(X, 1e5 + 1e4 * X[:, 0], scale_targets=True, verbose=0)
    assert np.array_equal(net[2:].predict(net[:2].predict(X)), net.predict(X))


def test_weights_are_copied_layer_by_layer():
    net, other = small(seed=1), small(seed=2)
    net.copy_weights(other, [0, 2])
    equal = [a == b for a, b in zip(states(net), states(other), strict=True)]
    assert equal[0] and equal[2] and not equal[4] and not equal[6]
    net.copy_weights(other)
    assert states(net) == states(other)
    head = nn.Sequential([nn.Dense(6), nn.Tanh(), nn.Dense(9)], 5)
    head.copy_weights(other, slice(0, 1))
    assert np.array_equal(head.layers[0].weights, other.layers[0].weights)
    tail = nn.Sequential([Scale(), nn.Dense(6)], 5)
    tail.copy_weights(other, {1: 0})
    assert np.array_equal(tail.layers[1].bias, other.layers[0].bias)
