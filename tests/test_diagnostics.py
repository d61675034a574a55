"""Diagnostics: every figure against one that is known, and none that changes the network."""

import copy
import pickle

import numpy as np
import pytest

import numbanet as nn
from numbanet import diagnostics

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(90, 6)).astype("float32")
Y = np.argmax(X[:, :3], axis=1)
IMAGES = GENERATOR.random((40, 9, 9, 1)).astype("float32")


def dense(activation="tanh", **options):
    layers = [nn.Dense(8, activation), nn.Dense(5, activation), nn.Dense(3, "softmax")]
    return nn.Sequential(layers, 6, seed=1, **options)


def trained(network=None, epochs=20, x=X, y=Y, **options):
    network = network or dense()
    network.fit(x, y, epochs=epochs, verbose=0, **options)
    return network


def convolutional():
    layers = [
        nn.Conv2D(4, 3),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(5, 2, activation="relu"),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Dense(6, ["tanh", "relu", "relu", "sigmoid", "tanh", "relu"]),
        nn.Dense(3, "softmax"),
    ]
    return nn.Sequential(layers, (9, 9, 1), "float64", seed=3)


def recurrent():
    layers = [nn.Embedding(7, 4), nn.Dense(5, "tanh"), nn.LSTM(4), nn.Dense(3, "softmax")]
    return nn.Sequential(layers, 6, seed=2)


INDICES = GENERATOR.integers(0, 7, (60, 6))
NETWORKS = {
    "dense": (dense, X, Y),
    "convolutional": (convolutional, IMAGES, np.arange(40) % 3),
    "recurrent": (recurrent, INDICES, INDICES[:, 0] % 3),
}


def state(network):
    return (
        network.memory.tobytes(),
        network.optimizer_state.tobytes(),
        network.epoch,
        network.optimizer_steps,
        repr(network.optimizer),
        pickle.dumps(network.to_config()),
    )


CALLS = {
    "activations": lambda net, x, y: diagnostics.activations(net, x),
    "weights": lambda net, x, y: diagnostics.weights(net),
    "speeds": lambda net, x, y: diagnostics.speeds(net, x, y),
    "importance": lambda net, x, y: diagnostics.importance(net, x, y, repeats=1),
    "importance of units": lambda net, x, y: diagnostics.importance(net, x, y, 1, "ablation"),
    "importance by weights": lambda net, x, y: diagnostics.importance(net, layer=1, by="weights"),
    "excite": lambda net, x, y: diagnostics.excite(
        net if x.dtype.kind == "f" else net[1:], -1, 2, steps=3
    ),
    "calibration": lambda net, x, y: diagnostics.calibration(net, x, y),
    "initializations": lambda net, x, y: diagnostics.initializations(net, x, y, ["he"]),
    "prune": lambda net, x, y: diagnostics.prune(
        net, neurons={k: [0] for k, b in enumerate(net.layers[:-2]) if hasattr(b.layer, "units")}
    ),
    "compare": lambda net, x, y: diagnostics.compare([net], x, y),
    "diagnose": lambda net, x, y: net.diagnose(x, y, validation_data=(x, y)),
}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("call", CALLS)
def test_no_diagnosis_changes_the_network(call, kind):
    if (call, kind) == ("prune", "recurrent"):
        pytest.skip("its dense layer is pruned in a test of its own")
    make, x, y = NETWORKS[kind]
    network = trained(make(), 2, x, y)
    twins = copy.deepcopy(network)
    before = state(network)
    CALLS[call](network, x, y)
    assert state(network) == before
    for one in (network, twins):
        one.fit(x, y, epochs=1, verbose=0)
    assert state(network) == state(twins)


def test_all_public_functions_are_called_here():
    functions = {name for name in diagnostics.__all__ if name[0].islower()}
    assert functions - {"learning_curve"} <= {name.split()[0] for name in CALLS}


# --- activity ----------------------------------------------------------------------------------


def test_activities_are_those_of_outputs():
    network = trained(dense())
    for k, found in enumerate(diagnostics.activations(network, X)):
        expected = network.outputs(X, k).astype("float64")
        assert found.layer == k
        np.testing.assert_allclose(
            [found.outputs.mean, found.outputs.std, found.outputs.low, found.outputs.high],
            [expected.mean(), expected.std(), expected.min(), expected.max()],
            rtol=1e-5,
            atol=1e-7,
        )
        assert found.outputs.counts.sum() == expected.size


@pytest.mark.parametrize(
    ("activation", "z", "dead", "saturated"),
    [
        ("relu", [-1, -2, 3], [True, True, False], None),
        ("leaky_relu", [-1, -2, 3], [False] * 3, None),
        ("sigmoid", [-3, 4, 0], [False] * 3, 1 / 3),
        ("tanh", [-3, 4, 0], [False] * 3, 2 / 3),
        (["relu", "sigmoid", "tanh"], [-1, 5, 0], [True, False, False], 1 / 2),
        ("exp", [-9, 0, 2], [False] * 3, None),
        ("step", [-1, 0, 2], [], None),
        ("softmax", [-1, 0, 2], [], None),
    ],
)
def test_dead_and_saturated_units(activation, z, dead, saturated):
    network = nn.Sequential([nn.Dense(3, activation, np.zeros((2, 3)), np.array(z))], 2)
    found = diagnostics.activations(network, X[:, :2])[-1]
    assert found.dead.tolist() == dead
    assert found.saturated == pytest.approx(saturated, nan_ok=True) if saturated else True
    assert np.isnan(found.saturated) == (saturated is None)


def test_dead_channels_of_a_convolution():
    network = nn.Sequential([nn.Conv2D(3, 3, activation="relu"), nn.Flatten()], (9, 9, 1))
    network.layers[0].bias = [0, -99, 0]
    assert diagnostics.activations(network, IMAGES)[1].dead.tolist() == [False, True, False]


def test_weights_are_counted_by_array():
    network = dense()
    found = diagnostics.weights(network)
    assert [one.name for one in found][:3] == ["0 Dense weights", "0 Dense bias", "2 Dense weights"]
    assert found[0].std == pytest.approx(network.layers[0].weights.std(), rel=1e-5)
    assert found[1].zeros == 1 and found[0].counts.sum() == 48


def test_activities_show_themselves():
    text = repr(diagnostics.activations(trained(dense("relu")), X))
    assert "1 ReLU" in text and "dead units" in text and "of 8" in text


# --- learning ----------------------------------------------------------------------------------


def test_speeds_are_norms_of_gradients():
    network = trained(dense())
    found = diagnostics.speeds(network, X[:20], Y[:20])
    gradient = network.gradient(X[:20], Y[:20], training=True).astype("float64")
    expected = [
        np.linalg.norm(gradient[b.offset : b.offset + b.n_parameters])
        for b in network.layers
        if b.n_parameters
    ]
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-6)
    assert found.layers.tolist() == [0, 2, 4] and found.names[1] == "2 Dense"
    np.testing.assert_allclose(found.relative, found.gradient / found.weight)


def test_a_frozen_layer_has_no_speed():
    network = dense()
    network.freeze(0)
    found = diagnostics.speeds(network, X, Y)
    assert np.isnan(found.gradient[0]) and (found.gradient[1:] > 0).all()


def test_sigmoid_layers_learn_slower_the_deeper_they_lie():
    layers = [*[nn.Dense(20, "sigmoid") for _ in range(6)], nn.Dense(3, "softmax")]
    relative = diagnostics.speeds(nn.Sequential(layers, 6), X, Y).relative
    assert (np.diff(relative[:-1]) > 0).all() and relative[0] < 1e-3 * relative[-1]


def test_a_callback_records_every_epoch_and_changes_none():
    network, plain = dense(), trained(dense(), 3)
    speed = diagnostics.LearningSpeed(X[:32], Y[:32])
    network.fit(X, Y, epochs=2, verbose=0, callbacks=speed)
    network.fit(X, Y, epochs=1, verbose=0, callbacks=speed)
    assert state(network)[0] == state(trained(dense(), 3))[0] == state(plain)[0]
    assert speed.epochs.tolist() == [0, 1, 2, 3]
    assert speed.gradient.shape == speed.weight.shape == speed.update.shape == (4, 3)
    assert np.isnan(speed.update[0]).all() and (speed.update[1:] > 0).all()
    begun = dense()
    np.testing.assert_allclose(speed.weight[0], diagnostics.speeds(begun, X, Y).weight)
    change = trained(dense(), 1).parameters - begun.parameters
    norm = np.linalg.norm(change[: begun.layers[0].n_parameters].astype("float64"))
    assert speed.update[1, 0] == pytest.approx(norm, rel=1e-6)
    with pytest.raises(ValueError, match="has recorded a network of 0 Dense, 2 Dense"):
        trained(nn.Sequential([nn.Dense(3, "softmax")], 6), 1, callbacks=speed)


CURVES = {
    "overfitting": ([2.0, 1.0, 0.5, 0.2, 0.1, 0.05], [2.1, 1.2, 1.0, 1.1, 1.4, 1.9]),
    "underfitting": ([2.0, 1.99, 1.985, 1.984, 1.984, 1.984], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
    "still learning": ([2.0, 1.8, 1.6, 1.4, 1.2, 1.0], [2.0, 1.8, 1.6, 1.5, 1.3, 1.1]),
    "good": ([2.0, 1.0, 0.5, 0.42, 0.41, 0.408], [2.1, 1.1, 0.6, 0.51, 0.5, 0.499]),
}


@pytest.mark.parametrize("verdict", CURVES)
def test_learning_curves_are_named(verdict):
    training, validation = CURVES[verdict]
    found = diagnostics.learning_curve({"loss": training, "val_loss": validation})
    assert found.verdict == verdict and str(found).startswith(verdict)
    assert found.best == 1 + int(np.argmin(validation))


def test_a_learning_curve_without_validation():
    history = trained(dense(), 0).fit(X, Y, epochs=4, verbose=0)
    assert diagnostics.learning_curve(history).verdict in ("still learning", "good")
    assert diagnostics.learning_curve({"loss": [1.05] * 3}, constant=1.1).verdict == "underfitting"
    with pytest.raises(ValueError, match="no epochs"):
        diagnostics.learning_curve({})


@pytest.mark.parametrize(
    ("losses", "reason", "best"),
    [
        (([1, np.nan, 0.5], [1, 2, np.nan]), "loss nan in epoch 2", 1),
        (([3, 2, 1], [2, 1, np.inf]), "validation loss inf in epoch 3", 2),
        (([np.nan], []), "loss nan in epoch 1", 1),
    ],
)
def test_a_learning_curve_that_is_not_finite_has_diverged(losses, reason, best):
    found = diagnostics.learning_curve(dict(zip(("loss", "val_loss"), losses, strict=True)))
    assert str(found).startswith(f"diverged: {reason}: lower the learning") and found.best == best


# --- importance, excitation, calibration -------------------------------------------------------


def linear():
    """y = 3 x₁ − x₃, exactly."""
    network = nn.Sequential([nn.Dense(1)], 6, "float64")
    network.layers[0].weights = np.array([[0], [3], [0], [-1], [0], [0]])
    return network


@pytest.mark.parametrize("by", ["permutation", "ablation", "weights"])
def test_importance_of_inputs(by):
    x = X.astype("float64")
    found = diagnostics.importance(linear(), x, 3 * x[:, 1] - x[:, 3], by=by, repeats=20)
    assert found.order[:2].tolist() == [1, 3]
    np.testing.assert_allclose(found.values[[0, 2, 4, 5]], 0, atol=1e-12)
    var = x.var(axis=0)
    expected = {
        "permutation": 2 * 9 * var[1],
        "ablation": 9 * var[1],
        "weights": 3,
    }[by]
    assert found.values[1] == pytest.approx(expected, rel=0.15 if by == "permutation" else 1e-9)
    assert "inputs" in repr(found)


def test_importance_of_units_is_the_loss_without_them():
    network = trained(dense())
    found = diagnostics.importance(network, X, Y, layer=1, by="ablation")
    for unit in range(8):
        without = copy.deepcopy(network)
        mean = network.outputs(X, 1)[:, unit].mean()
        without.layers[2].bias += mean * without.layers[2].weights[unit]
        without.layers[2].weights[unit] = 0
        rise = without.evaluate(X, Y)["loss"] - network.evaluate(X, Y)["loss"]
        assert found.values[unit] == pytest.approx(rise, abs=1e-6)


def test_importance_of_pixels_and_channels():
    network, y = trained(convolutional(), 2, IMAGES, np.arange(40) % 3), np.arange(40) % 3
    assert diagnostics.importance(network, IMAGES, y, repeats=1).values.shape == (9, 9)
    assert diagnostics.importance(network, IMAGES, y, 2, "ablation").values.shape == (4,)
    by_weights = diagnostics.importance(network, layer=4, by="weights")
    assert by_weights.values.shape == (5,) and (by_weights.values > 0).all()


def test_bytes_are_replaced_by_their_mean():
    network = nn.Sequential([nn.Rescale(1 / 255), nn.Dense(1, initializer="ones")], 2, "float64")
    x = np.array([[0, 7], [255, 7]], "uint8")
    found = diagnostics.importance(network, x, network.predict(x), by="ablation")
    np.testing.assert_allclose(found.values, [0.25, 0], atol=1e-12)


def test_a_unit_without_weights_does_not_matter():
    network = dense()
    network.layers[2].weights[3] = 0
    found = diagnostics.importance(network, layer=0, by="weights")
    assert found.order[-1] == 3 and found.values[3] == 0


def test_the_input_that_excites_a_first_layer_is_its_weights():
    network = dense()
    weights = network.layers[0].weights[:, 4]
    found = diagnostics.excite(network, 1, 4, radius=2.0)
    np.testing.assert_allclose(found.input, 2 * weights / np.linalg.norm(weights), atol=0.01)
    assert found.output > found.start
    assert found.output == pytest.approx(network.outputs(found.input[None], 1)[0, 4], rel=1e-5)


def test_excitation_begins_around_a_sample():
    network = trained(convolutional(), 1, IMAGES, np.arange(40) % 3)
    found = diagnostics.excite(network, -1, 0, around=IMAGES[0], radius=0.5, steps=20)
    assert found.input.shape == (9, 9, 1) and found.output > found.start
    assert np.linalg.norm(found.input - IMAGES[0]) == pytest.approx(0.5, rel=1e-5)


def test_calibration_counts():
    network = nn.Sequential([nn.Dense(2, "softmax", np.eye(2))], 2, "float64")
    sure = np.array([0.95] * 10 + [0.65] * 10)
    x = np.log(np.column_stack([sure, 1 - sure]))
    y = np.array([0] * 8 + [1] * 2 + [0] * 5 + [1] * 5)
    found = diagnostics.calibration(network, x, y)
    assert found.counts[[6, 9]].tolist() == [10, 10] and found.counts.sum() == 20
    np.testing.assert_allclose(found.confidence[[6, 9]], [0.65, 0.95])
    np.testing.assert_allclose(found.accuracy[[6, 9]], [0.5, 0.8])
    assert found.error == pytest.approx(0.15)


def test_initialisations_are_compared():
    layers = [*[nn.Dense(30, "tanh") for _ in range(5)], nn.Dense(3, "softmax")]
    found = diagnostics.initializations(nn.Sequential(layers, 6), X, Y, ["glorot", "normal"])
    assert found.deviation.shape == (2, 12) and found.gradient.shape == (2, 6)
    assert found.trained.tolist() == [0, 2, 4, 6, 8, 10]
    assert found.deviation[1, 9] > 0.9 > found.deviation[0, 9]  # N(0, 1) saturates
    with pytest.raises(ValueError, match="unknown initializer"):
        diagnostics.initializations(dense(), X, Y, ["hee"])


# --- pruning -----------------------------------------------------------------------------------


def silenced(network, k, units):
    """The network with the units of layer k, and what is behind them, at 0."""
    for values in network.layers[k].parameters.values():
        values[..., units] = 0
    return network


PRUNABLE = {
    "dense": (dense, {0: [1, 5], 2: [0]}, X),
    "relu": (lambda: dense("relu"), {2: [4]}, X),
    "convolutional": (convolutional, {0: [0, 3], 4: [2], 8: [4]}, IMAGES),
    "recurrent": (recurrent, {1: [0, 4]}, INDICES),
    "sequences": (
        lambda: nn.Sequential(
            [
                nn.Conv1D(4, 2, activation="relu"),
                nn.MaxPool1D(2),
                nn.Bidirectional(nn.GRU(3)),
                nn.Dense(2),
            ],
            (7, 2),
        ),
        {0: [2]},
        GENERATOR.normal(size=(9, 7, 2)),
    ),
    "global pooling": (
        lambda: nn.Sequential(
            [nn.Conv2D(6, 3, penalty=nn.L2(0.1)), nn.GlobalAvgPool2D(), nn.Dense(2)], (9, 9, 1)
        ),
        {0: [0, 1, 5]},
        IMAGES,
    ),
}


@pytest.mark.parametrize("kind", PRUNABLE)
def test_units_that_are_zero_can_go(kind):
    make, neurons, x = PRUNABLE[kind]
    network = make()
    for k, units in neurons.items():
        silenced(network, k, units)
    if kind == "convolutional":
        network.layers[1].bias = [0, 0.3, -0.2, 0]
    small = diagnostics.prune(network, neurons=neurons)
    np.testing.assert_allclose(small.predict(x), network.predict(x), rtol=1e-4, atol=1e-6)
    assert small.parameters.size < network.parameters.size
    for k, units in neurons.items():
        assert small.layers[k].output_shape[-1] == network.layers[k].output_shape[-1] - len(units)


@pytest.mark.parametrize("kind", ["dense", "convolutional", "global pooling"])
def test_units_that_are_constant_can_go_with_data(kind):
    make, neurons, x = PRUNABLE[kind]
    network, units = make(), neurons[0]
    network.layers[0].weights[..., units] = 0
    network.layers[0].bias[units] = np.linspace(0.5, 0.9, len(units))
    small = diagnostics.prune(network, neurons={0: units}, x=x)
    np.testing.assert_allclose(small.predict(x), network.predict(x), rtol=1e-4, atol=1e-6)
    without = diagnostics.prune(network, neurons={0: units})
    assert np.abs(without.predict(x) - network.predict(x)).max() > 1e-3


def test_the_least_important_units_go():
    network = trained(dense("relu"), 30)
    network.layers[0].weights[:, [2, 6]] *= 1e-3
    small = diagnostics.prune(network, 0.75, layers=[0])
    np.testing.assert_array_equal(
        small.layers[0].weights, np.delete(network.layers[0].weights, [2, 6], axis=1)
    )
    np.testing.assert_array_equal(
        small.layers[2].weights, np.delete(network.layers[2].weights, [2, 6], axis=0)
    )


def test_pruning_by_ablation_leaves_out_what_matters_least():
    network = trained(dense("relu"), 60)
    small = diagnostics.prune(network, 0.6, by="ablation", x=X, y=Y)
    assert [built.output_shape[0] for built in small.layers] == [5, 5, 3, 3, 3, 3]
    found = diagnostics.compare([network, small], X, Y)
    assert found.parameters.tolist() == [network.parameters.size, small.parameters.size]
    assert (found.seconds > 0).all() and (found.loss > 0).all() and "last : first" in repr(found)
    worst = diagnostics.importance(network, X, Y, layer=1, by="ablation").order[:3]
    other = diagnostics.prune(network, neurons={0: worst})
    assert found.loss[1] < other.evaluate(X, Y)["loss"] and small.epoch == 0


def test_what_belongs_to_a_network_stays_after_pruning():
    network = nn.Sequential([nn.Standardize(), nn.Dense(6, "relu"), nn.Dense(1)], 6)
    y = 1000 + 200 * X[:, :1]
    trained(network, 40, y=y, scale_targets=True)
    network.feature_names = list("abcdef")
    network.freeze(1)
    network.layers[3].weight_decay = 0.1
    small = diagnostics.prune(silenced(network, 1, [0]), neurons={1: [0]})
    np.testing.assert_allclose(small.predict(X), network.predict(X), rtol=1e-5)
    assert small.feature_names == network.feature_names and not small.layers[1].trainable
    assert small.layers[3].weight_decay == 0.1 and small.layers[1].weight_decay is None


def test_units_to_leave_out_are_named_by_number_or_by_a_mask():
    network = dense()
    mask = np.isin(np.arange(8), [2, 3])
    small = diagnostics.prune(network, neurons={0: mask})
    expected = diagnostics.prune(network, neurons={0: [2, 3]})
    np.testing.assert_array_equal(small.parameters, expected.parameters)
    by_layer = [diagnostics.prune(network, layers=layers) for layers in (0, [0], np.array([0]))]
    assert {one.parameters.tobytes() for one in by_layer} == {by_layer[0].parameters.tobytes()}
    assert diagnostics.prune(network, neurons={0: 3}).layers[0].output_shape == (7,)


def test_no_bias_makes_up_for_the_border_of_a_padded_convolution():
    layers = [nn.Conv2D(2, 3, activation="sigmoid"), nn.Conv2D(2, 3, padding=1)]
    network, x = nn.Sequential(layers, (9, 9, 1), "float64", seed=1), IMAGES.astype("float64")
    network.layers[0].weights[..., 0] = 0
    small = diagnostics.prune(network, neurons={0: [0]}, x=x)
    apart = np.abs(small.predict(x) - network.predict(x)).max(axis=(0, 3))
    assert apart[1:-1, 1:-1].max() < 1e-9 and apart.max() > 1e-3


@pytest.mark.parametrize(
    ("layers", "shape", "neurons", "message"),
    [
        ([nn.Dense(4), nn.LayerNorm(), nn.Dense(2)], 3, {0: [1]}, "layer 1 LayerNorm does not wor"),
        ([nn.Dense(4), nn.Dense(2)], 3, {1: [1]}, "layer 1 Dense are the network's outputs"),
        ([nn.Dense(4, "softmax"), nn.Dense(2)], 3, {0: [1]}, "layer 1 Softmax does not work on f"),
        ([nn.LSTM(4), nn.Dense(2)], (5, 3), {0: [1]}, "layer 0 LSTM cannot be pruned"),
        (
            [nn.Conv2D(4, 2, groups=2), nn.Flatten(), nn.Dense(2)],
            (4, 4, 2),
            {0: [1]},
            "layer 0 Conv2D cannot be pruned",
        ),
        (
            [nn.Conv2D(4, 2), nn.Conv2D(4, 2, groups=2), nn.Flatten(), nn.Dense(2)],
            (5, 5, 1),
            {0: [1]},
            "layer 1 Conv2D does not work on fewer units",
        ),
        ([nn.Dense(8), nn.Reshape((4, 2)), nn.GRU(2)], 3, {0: [1]}, "layer 1 Reshape does not"),
        ([nn.Dense(4), nn.Dense(2)], 3, {0: [4]}, "layer 0 Dense has units 0 … 3, got"),
        ([nn.Dense(2), nn.Dense(2)], 3, {0: [0, 1]}, "at least one unit has to stay"),
        ([nn.Dense(4), nn.Dense(2)], 3, {0: [1.7]}, "the units of layer 0 Dense are integers"),
        ([nn.Dense(4), nn.Dense(2)], 3, {0: [True, False]}, "or a bool for each of 4, got"),
        ([nn.Dense(4), nn.Dense(2)], 3, {0: None}, "are integers, or .* got None"),
        ([nn.Dense(4), nn.Dense(2)], 3, {0: [[1]]}, "are integers, or .* got"),
        ([nn.Dense(4), nn.Dense(2)], 3, {0: [1], -2: [2]}, "names a layer twice: 0, -2"),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name(layers, shape, neurons, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.prune(nn.Sequential(layers, shape), neurons=neurons)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: diagnostics.prune(net, 0), "keep must be"),
        (lambda net: diagnostics.prune(net, layers=[0], neurons={0: [1]}), "not both"),
        (lambda net: diagnostics.prune(net, neurons={}), "no layer is named"),
        (lambda net: diagnostics.prune(net[4:]), "nothing can be pruned"),
        (lambda net: diagnostics.importance(net, X, Y, by="permutations"), "did you mean 'permu"),
        (lambda net: diagnostics.importance(net), "measured on data: pass x and y"),
        (lambda net: diagnostics.importance(net, X, Y, -1), "layer 5 is the last one"),
        (lambda net: diagnostics.importance(net, layer=4, by="weights"), "no weights follow"),
        (lambda net: diagnostics.excite(net, 0, 8), "unit 8: 0 Dense has 8, counted from 0"),
        (lambda net: diagnostics.excite(recurrent(), 2, 0), "0 Embedding has no derivative by"),
        (
            lambda net: diagnostics.calibration(net[:4], X, GENERATOR.random((90, 5))),
            "y has real targets",
        ),
        (lambda net: diagnostics.calibration(net[:5], X, Y), "no probabilities"),
        (lambda net: diagnostics.speeds(nn.Sequential([nn.ReLU()], 3), X, X), "no parameters"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call(dense())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: diagnostics.prune(net, neurons=[1]), r"by layer, \{0: \[3, 5\]\}, got \[1\]"),
        (lambda net: diagnostics.compare({"a": net}, X, Y), r"pass list\(networks.values\(\)\)"),
        (lambda net: diagnostics.compare(net, X, Y), r"list of networks, .* pass \[network\]"),
    ],
)
def test_arguments_of_another_type_are_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call(dense())


# --- the doctor --------------------------------------------------------------------------------


def digits():
    pytest.importorskip("sklearn")
    data = nn.datasets.digits()
    return data.x, data.y, (data.x_test, data.y_test)


def as_images(x, y, held_out):
    return x.reshape(-1, 8, 8, 1), y, (held_out[0].reshape(-1, 8, 8, 1), held_out[1])


def diabetes():
    x, y = pytest.importorskip("sklearn.datasets").load_diabetes(return_X_y=True, scaled=False)
    return x[:360], y[:360], (x[360:], y[360:])


def on_digits(activation="relu", hidden=(64,), **options):
    layers = [nn.Dense(units, activation, **options) for units in hidden]
    return nn.Sequential([*layers, nn.Dense(10, "softmax")], 64)


def lenet():
    layers = [
        nn.Conv2D(6, 3, padding="same", activation="relu"),
        nn.MaxPool2D(2),
        nn.Conv2D(16, 3, activation="relu"),
        nn.Flatten(),
        nn.Dense(60, "relu"),
        nn.Dense(10, "softmax"),
    ]
    return nn.Sequential(layers, (8, 8, 1))


def on_diabetes(*layers):
    return nn.Sequential([*layers, nn.Dense(32, "relu"), nn.Dense(1)], 10)


def gru():
    return nn.Sequential([nn.GRU(32), nn.Dense(10, "softmax")], (8, 8))


def unequal(apart=0.3):
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(1000, 5)), (generator.random(1000) < 0.03).astype(int)
    x[y == 1] += apart
    return x, y, None


def chance(strength=0.0):
    """Two classes that x tells little of: Bayes' loss is hardly below a constant's."""
    generator = np.random.default_rng(5)
    x = generator.normal(size=(2000, 4)).astype("float32")
    return x, (generator.random(2000) < 0.5 + strength * np.tanh(x[:, 0])).astype(int), None


def on_chance():
    return nn.Sequential([nn.Dense(8, "tanh"), nn.Dense(2, "softmax")], 4)


HEALTHY = {
    "digits": (on_digits, digits, {"epochs": 5, "optimizer": nn.Adam(0.003)}),
    "digits for long": (on_digits, digits, {"epochs": 60, "optimizer": nn.Adam(0.003)}),
    "lenet": (lenet, lambda: as_images(*digits()), {"epochs": 5, "optimizer": nn.Adam(0.002)}),
    "diabetes": (
        lambda: on_diabetes(nn.Standardize()),
        diabetes,
        {"epochs": 30, "scale_targets": True},
    ),
    "ten relu layers": (lambda: on_digits("relu", (32,) * 10), digits, {"epochs": 15}),
    "tanh": (lambda: on_digits("tanh", (50,) * 3), digits, {"epochs": 40}),
    "large steps of sigmoids": (
        lambda: on_digits("sigmoid", (30,)),
        digits,
        {"epochs": 15, "optimizer": nn.SGD(0.5), "batch_size": 10},
    ),
    "a weak signal": (
        on_chance,
        lambda: chance(0.2),
        {"epochs": 10, "optimizer": nn.SGD(0.05)},
    ),
    "weights of classes": (
        lambda: nn.Sequential([nn.Dense(16, "relu"), nn.Dense(2, "softmax")], 5),
        lambda: unequal(1.2),
        {"epochs": 30, "class_weight": "balanced"},
    ),
    "gru": (
        gru,
        lambda: (
            tuple(part.reshape(-1, 8, 8) if part.ndim == 2 else part for part in digits()[:2])
            + (None,)
        ),
        {"epochs": 10, "optimizer": nn.Adam(0.01)},
    ),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_the_doctor_finds_nothing_in_healthy_networks(kind):
    make, data, options = HEALTHY[kind]
    x, y, held_out = data()
    report = trained(make(), x=x, y=y, **options).diagnose(x, y, validation_data=held_out)
    assert report.findings == (), report
    assert str(report).startswith("no trouble found\nlooked at: parameters and outputs, scale of")


def noise():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(2, 200, 64))
    return x, generator.integers(0, 10, 200), (y, generator.integers(0, 10, 200))


def with_column(value):
    x, y, held_out = digits()
    return np.where(np.arange(64) == 40, np.float32(value), x), y, None


def one_class(label):
    x, y, _ = digits()
    return x, np.full_like(y, label), None


def scaled(factor):
    x, y, held_out = digits()
    return factor * x, y, (factor * held_out[0], held_out[1])


ILL = {
    "vanishing gradients": (lambda: on_digits("sigmoid", (30,) * 10), digits, {"epochs": 5}),
    "learning rate too high": (on_digits, digits, {"epochs": 5, "optimizer": nn.Adam(0.3)}),
    "learning rate too high for SGD": (
        on_digits,
        digits,
        {"epochs": 5, "optimizer": nn.SGD(10.0)},
    ),
    "learning rate too high for tanh": (
        lambda: on_digits("tanh", (50,) * 3),
        digits,
        {"epochs": 5, "optimizer": nn.Adam(0.3)},
    ),
    "learning rate too high for images": (
        lenet,
        lambda: as_images(*digits()),
        {"epochs": 3, "optimizer": nn.Adam(0.2)},
    ),
    "dead units": (
        lambda: on_digits(bias_initializer=np.full(64, -20.0)),
        digits,
        {"epochs": 3},
    ),
    "unscaled inputs": (lambda: on_digits("tanh"), lambda: scaled(1000), {"epochs": 3}),
    "unscaled inputs of a table": (on_diabetes, diabetes, {"epochs": 20, "scale_targets": True}),
    "constant inputs": (on_digits, lambda: with_column(1), {"epochs": 5}),
    "targets out of reach": (
        lambda: on_diabetes(nn.Standardize()),
        diabetes,
        {"epochs": 2},
    ),
    "overfitting": (on_digits, noise, {"epochs": 100, "optimizer": nn.Adam(0.003)}),
    "a rare class is ignored": (
        lambda: nn.Sequential([nn.Dense(16, "relu"), nn.Dense(2, "softmax")], 5),
        unequal,
        {"epochs": 20},
    ),
    "untrained": (on_digits, digits, {"epochs": 0}),
    "nothing learned": (on_chance, chance, {"epochs": 3, "optimizer": nn.SGD(0.05)}),
    "learning rate too low": (on_digits, digits, {"epochs": 3, "optimizer": nn.SGD(1e-6)}),
    "learning rate too low for Adam": (
        on_digits,
        digits,
        {"epochs": 3, "optimizer": nn.Adam(1e-8)},
    ),
    "constant targets": (on_digits, lambda: one_class(0), {"epochs": 1}),
    "constant targets of a regression": (
        lambda: on_diabetes(nn.Standardize()),
        lambda: (diabetes()[0], np.full(360, 0.7), None),
        {"epochs": 1},
    ),
    "validation data on another scale": (
        on_digits,
        lambda: (*digits()[:2], scaled(0.02)[2]),
        {"epochs": 20},
    ),
    "saturated activations": (
        lambda: on_digits("tanh", initializer=nn.initializers.Normal(20)),
        digits,
        {"epochs": 3},
    ),
}
FOLLOWS = {
    "learning rate too low": {"nothing learned"},
    "learning rate too high": {"dead units", "saturated activations", "nothing learned"},
    "vanishing gradients": {"nothing learned"},
    "dead units": {"nothing learned"},
    "saturated activations": {"vanishing gradients"},
    "unscaled inputs": {"saturated activations", "nothing learned", "dead units", "overfitting"},
    "targets out of reach": {"nothing learned"},
    "a rare class is ignored": {"nothing learned"},
}
"""What else may be found, as a consequence."""


@pytest.mark.parametrize("kind", ILL)
def test_the_doctor_finds_the_illness(kind):
    make, data, options = ILL[kind]
    x, y, held_out = data()
    network = trained(make(), x=x, y=y, **options)
    report = network.diagnose(x, y, validation_data=held_out)
    name = kind.partition(" for ")[0].partition(" of a ")[0]
    assert report.findings and report.findings[0].name == name, report
    also = {finding.name for finding in report.findings[1:]}
    assert also <= FOLLOWS.get(name, set()), report
    assert "1. " + name in str(report) and "try: " in str(report)


def test_parameters_that_are_not_finite_end_the_examination():
    network = dense()
    network.layers[2].weights[0, 0] = np.nan
    report = network.diagnose(X, Y)
    assert [one.name for one in report.findings] == ["parameters that are not finite"]
    assert report.findings[0].layer == 2 and report.looked_at == ("parameters and outputs",)
    network = trained(dense("relu"), 1)
    network.layers[0].weights = 1e30
    network.layers[2].weights = 1e30
    assert network.diagnose(X, Y).findings[0].name == "outputs that are not finite"


@pytest.mark.parametrize("epoch", [3, 3_000_000, 2**62 - 1])
def test_the_learning_rate_is_looked_at_in_a_bounded_number_of_epochs(epoch, monkeypatch):
    network, looked_at = trained(dense(), 1), []
    network.epoch, rates = epoch, nn.Adam.rates

    def counted(self, epoch, batches, *given):
        looked_at.append(epoch)
        return rates(self, epoch, batches, *given)

    monkeypatch.setattr(nn.Adam, "rates", counted)
    network.optimizer = nn.Adam(nn.schedules.Cosine(0.01))
    network.diagnose(X, Y)
    assert looked_at[0] == 0 and epoch / 2 < max(looked_at) < epoch
    assert len(looked_at) < 1100  # the steps that are tried have some too


def test_what_was_not_looked_at_is_said():
    text = str(nn.Sequential([nn.Dense(1)], 6).diagnose(X, X[:, :1]))
    assert "not looked at: learning rate (the network keeps no optimiser; train it first)" in text
    assert "gradients (fewer than two layers of weights are trained)" in text
    assert "overfitting (pass validation_data); rare classes (for classes)" in text


def test_activations_inside_recurrent_layers_are_not_seen():
    report = trained(recurrent(), 1, INDICES, INDICES[:, 0] % 3).diagnose(
        INDICES, INDICES[:, 0] % 3
    )
    assert report.left_out[-1] == "activations inside layer 3 LSTM"


def test_layers_that_cannot_be_trained_are_examined_without_gradients():
    network = nn.Sequential([nn.Dense(4), nn.Step(), nn.Dense(3, "softmax")], 6)
    assert "gradients (a step cannot be trained" in str(network.diagnose(X, Y))
    one = trained(nn.Sequential([nn.BatchNorm(), nn.Dense(3, "softmax")], 6), 1)
    assert "(BatchNorm needs at least 2 samples" in str(one.diagnose(X[:1], Y[:1]))
    with pytest.raises(ValueError, match="validation x must have shape"):
        one.diagnose(X, Y, validation_data=(X[:, :3], Y))


def test_a_constant_column_of_zeros_counts_in_a_named_table():
    x = X.copy()
    x[:, 3] = 0
    network = trained(dense(), 40, x=x, optimizer=nn.Adam(0.01))
    assert not [one for one in network.diagnose(x, Y).findings if one.name == "constant inputs"]
    network.feature_names = ["a", "b", "c", "old", "e", "f"]
    (found,) = [one for one in network.diagnose(x, Y).findings if one.name == "constant inputs"]
    assert "1 of 6 columns of x never change: old" in found.what


def test_masked_targets_are_left_out():
    x, y, _ = diabetes()
    y = (np.column_stack([y, -y]) - [150, -150]) / 80
    y = np.ma.masked_where(np.arange(720).reshape(360, 2) % 5 == 0, y)
    network = nn.Sequential([nn.Standardize(), nn.Dense(32, "relu"), nn.Dense(2)], 10)
    trained(network, 60, x=x, y=y)
    report = network.diagnose(x, y, validation_data=(x, y))
    assert report.findings == () and len(report.left_out) == 1, report
    assert diagnostics.importance(network, x, y, by="ablation").values.max() > 0
    assert (diagnostics.speeds(network, x, y).gradient > 0).all()


def test_masked_targets_are_measured_and_drawn_everywhere():
    y = np.ma.masked_where(np.arange(180).reshape(90, 2) % 7 == 0, X[:, :2])
    network = nn.Sequential([nn.Dense(5, "tanh"), nn.Dense(2)], 6, seed=1)
    speed = diagnostics.LearningSpeed(X, y)
    trained(network, 2, y=y, callbacks=speed)
    assert (speed.gradient > 0).all()
    assert (diagnostics.initializations(network, X, y, ["he"]).loss > 0).all()
    assert diagnostics.prune(network, by="ablation", x=X, y=y).layers[0].output_shape == (2,)
    report = network.diagnose(X, y)
    assert report.left_out[-1] == "rare classes (for classes)" and len(report.left_out) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"validation_data": (X,)}, ValueError, r"validation_data must be a pair \(x, y\), got"),
        ({"validation_data": 5}, ValueError, "must be a pair .* got 5"),
        ({"class_weight": "balanced"}, TypeError, "no argument 'class_weight'; the report is on"),
        ({"sample_weight": Y}, TypeError, "no argument 'sample_weight'; the report is on"),
    ],
)
def test_what_the_doctor_is_not_given(options, error, message):
    with pytest.raises(error, match=message):
        dense().diagnose(X, Y, **options)


def test_a_network_with_its_initial_values_is_untrained():
    network = dense()
    assert "untrained" in [one.name for one in network.diagnose(X, Y).findings]
    other = dense()
    other.copy_weights(trained(dense(), 60, optimizer=nn.Adam(0.01)))
    assert "untrained" not in [one.name for one in other.diagnose(X, Y).findings]


def test_a_training_that_diverged_is_examined():
    network = nn.Sequential([nn.Standardize(), nn.Dense(8, "relu"), nn.Dense(1)], 6)
    with pytest.raises(nn.DivergenceError):
        trained(network, y=X[:, :1], optimizer=nn.SGD(1e6))
    first, second, *_ = network.diagnose(X, X[:, :1]).findings
    assert first.name == "learning rate too high" and "SGD(10000) instead of 1e+06" in first.advice
    assert second.name == "untrained"


def test_a_frozen_layer_and_a_schedule_are_examined():
    network = dense()
    network.freeze(0)
    network.layers[4].learning_rate_factor = 0.5
    optimizer = nn.Adam(nn.schedules.Cosine(5.0), accumulate=2, average=0.9, clip_norm=9)
    trained(network, 5, optimizer=optimizer)
    report = network.diagnose(X, Y)
    assert report.findings[0].name == "learning rate too high" and "instead of 5" in str(report)
