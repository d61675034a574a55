"""Inputs and targets far from 0 ± 1: Rescale, Standardize, scale_targets."""

import pickle

import numpy as np
import pytest

import numbanet as nn

GENERATOR = np.random.default_rng(0)
BYTES = GENERATOR.integers(0, 256, (60, 30), dtype=np.uint8)
LABELS = GENERATOR.integers(0, 3, 60)
TABLE = GENERATOR.normal(size=(80, 3)) * [1, 300, 1e-4] + [5, -2000, 3e-3]
PRICES = 1e6 + TABLE @ [1e5, 200.0, 3e8]
DTYPES = ["uint8", "int64", "int16", "float32", "float64", "list"]


def bytes_as(dtype):
    return BYTES.tolist() if dtype == "list" else BYTES.astype(dtype)


def small(*first, n_in=30):
    layers = [nn.Dense(9, activation="tanh"), nn.Dense(3, activation="softmax")]
    return nn.Sequential([*first, *layers], n_in, seed=3)


def regression(*first, **options):
    layers = [nn.Dense(16, activation="tanh"), nn.Dense(1)]
    return nn.Sequential([*first, *layers], 3, seed=1, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "first", [(), (nn.Rescale(1 / 255),), (nn.Rescale(1 / 127.5, -1),)], ids=["", "×", "× +"]
)
def test_the_same_numbers_in_another_dtype_give_the_same_network(first, dtype):
    nets = [small(*first), small(*first)]
    for net, x in zip(nets, (BYTES, bytes_as(dtype)), strict=True):
        net.fit(x, LABELS, optimizer=nn.SGD(0.01), epochs=2, batch_size=8, verbose=0)
    assert nets[0].parameters.tobytes() == nets[1].parameters.tobytes()
    assert nets[0].predict(BYTES).tobytes() == nets[1].predict(bytes_as(dtype)).tobytes()
    assert nets[0].evaluate(BYTES, LABELS) == nets[1].evaluate(bytes_as(dtype), LABELS)
    few = nets[1].predict(bytes_as(dtype)[:1])
    np.testing.assert_allclose(few, nets[0].predict(BYTES)[:1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(30,), (5, 6, 1)])
def test_bytes_are_the_numbers_0_to_255_and_rescale_is_a_factor(shape):
    net = nn.Sequential([nn.Flatten(), nn.Dense(4)], shape)
    with_rescale = nn.Sequential([nn.Flatten(), nn.Rescale(0.5), nn.Dense(4)], shape)
    with_rescale.parameters = net.parameters
    x = BYTES.reshape(-1, *shape)
    expected = BYTES.astype(float) @ net.layers[1].weights
    np.testing.assert_allclose(net.predict(x), expected, rtol=1e-4)
    np.testing.assert_allclose(with_rescale.predict(x), expected / 2, rtol=1e-4)


def test_a_rescale_in_front_is_part_of_the_copy_of_the_inputs():
    net = small(nn.Rescale(1 / 255))
    ops, *_ = net.loss_ops(nn.CrossEntropy(), np.dtype("uint8"), np.dtype("int64"), True)
    assert [op.name for op in ops[:2]] == ["Inputs", "Dense"]


def test_images_are_augmented_in_their_own_unit_before_they_are_rescaled():
    images, augment = BYTES.reshape(60, 5, 6, 1), nn.Augment(shift=1)
    nets = [
        nn.Sequential([*first, nn.Flatten(), nn.Dense(3, activation="softmax")], (5, 6, 1), seed=2)
        for first in ([nn.Rescale(0.25)], [])
    ]
    nets[1].parameters = nets[0].parameters
    for net, x in zip(nets, (images, images / 4), strict=True):
        net.fit(x, LABELS, augment=augment, optimizer=nn.SGD(0.001), verbose=0)
    assert nets[0].parameters.tobytes() == nets[1].parameters.tobytes()


# --- Standardize ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardize_measures_the_training_data_before_the_first_epoch(dtype):
    net, x = regression(nn.Standardize(), dtype=dtype), TABLE.astype(dtype)
    x_train = x[:60]
    net.fit(x, TABLE[:, 0], validation_split=0.25, verbose=0)
    layer = net.layers[0]
    np.testing.assert_allclose(layer.mean, x_train.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(layer.deviation, x_train.std(axis=0, dtype=float), rtol=1e-5)
    before = layer.mean.copy()
    net.fit(x + 1, TABLE[:, 0], verbose=0)
    assert np.array_equal(layer.mean, before)
    net.adapt(x_train + 1)
    np.testing.assert_allclose(layer.mean, before + 1, rtol=1e-5)
    net.initialize()
    assert not layer.mean.any() and not layer.adapted.any()


def test_a_standardised_network_is_one_on_standardised_data():
    nets = [regression(nn.Standardize(), dtype="float64"), regression(dtype="float64")]
    nets[1].parameters = nets[0].parameters
    scaled = (TABLE - TABLE.mean(axis=0)) / TABLE.std(axis=0)
    for net, x in zip(nets, (TABLE, scaled), strict=True):
        net.fit(x, scaled[:, 1], optimizer=nn.SGD(0.05), epochs=3, verbose=0)
    np.testing.assert_allclose(nets[0].predict(TABLE), nets[1].predict(scaled), rtol=1e-9)


@pytest.mark.parametrize("samples", [9, 5000])
def test_standardize_sees_what_the_layers_before_it_make(samples):
    images = np.random.default_rng(1).integers(0, 256, (samples, 2, 2, 3), dtype=np.uint8)
    layers = [nn.Rescale(1 / 255), nn.ZeroPadding2D(1), nn.Standardize(), nn.Flatten(), nn.Dense(2)]
    net = nn.Sequential(layers, (2, 2, 3))
    net.adapt(images)
    padded = np.pad(images / 255.0, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(net.layers[2].mean, padded.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(net.layers[2].deviation, padded.std(axis=(0, 1, 2)), rtol=1e-4)


def test_a_column_that_does_not_vary_is_only_centred():
    net = regression(nn.Standardize())
    net.adapt(np.column_stack([TABLE[:, 0], np.full(80, 7.0), np.zeros(80)]))
    assert net.layers[0].deviation[1:].tolist() == [1, 1] and net.layers[0].mean[1] == 7


@pytest.mark.parametrize(
    ("column", "way_out"),
    [(1e9 + TABLE[:, 0], "channel 1 has mean 1e.09 .* dtype='float64'"), (TABLE[:, 0] * 1e-40, "")],
)
def test_values_that_float32_cannot_tell_apart_are_an_error(column, way_out):
    x = np.column_stack([TABLE[:, 0], column, TABLE[:, 2]])
    net = regression(nn.Standardize())
    with pytest.raises(ValueError, match=way_out or "channel 1"):
        net.fit(x, TABLE[:, 0], verbose=0)
    assert not net.layers[0].adapted.any() and net.epoch == 0
    regression(nn.Standardize(), dtype="float64").fit(x, TABLE[:, 0], verbose=0)


def test_standardize_behind_parameters_is_an_error():
    with pytest.raises(ValueError, match=r"layer 1 \(Standardize\).*BatchNorm"):
        nn.Sequential([nn.Dense(3), nn.Standardize()], 2)


# --- scale_targets --------------------------------------------------------------------------------


def fitted(epochs=150, net=None, **options):
    net = net or regression(nn.Standardize())
    net.fit(
        TABLE,
        PRICES,
        scale_targets=True,
        optimizer=nn.Adam(0.01),
        epochs=epochs,
        verbose=0,
        **options,
    )
    return net


def test_prices_are_learned_and_predicted_in_their_own_unit():
    net = fitted()
    found = net.evaluate(TABLE, PRICES)
    assert found["r2"] > 0.99 and found["loss"] < 0.01
    assert found["rmse"] == pytest.approx(
        np.sqrt(np.mean((net.predict(TABLE)[:, 0] - PRICES) ** 2))
    )
    assert net.loss(TABLE, PRICES) == pytest.approx(found["loss"])
    assert net.predict(TABLE[:1])[0, 0] == pytest.approx(net.predict(TABLE)[0, 0])
    parameters = net.parameters.copy()
    step = 1e-2 * net.gradient(TABLE, PRICES)
    net.parameters = parameters - step
    assert net.loss(TABLE, PRICES) < found["loss"]


def test_it_is_training_on_standardised_targets():
    net, plain = fitted(3), regression(nn.Standardize())
    t = ((PRICES - PRICES.mean()) / PRICES.std()).astype("float32")
    plain.fit(TABLE, t, optimizer=nn.Adam(0.01), epochs=3, verbose=0)
    np.testing.assert_allclose(net.parameters, plain.parameters, rtol=1e-4, atol=1e-5)
    losses = net.evaluate(TABLE, PRICES)["loss"], plain.evaluate(TABLE, t)["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_validation_split_is_not_measured_and_its_loss_is_that_of_evaluate():
    net = regression(nn.Standardize())
    history = net.fit(TABLE, PRICES, scale_targets=True, validation_split=0.25, epochs=2, verbose=0)
    assert net.target_scaling.mean[0] == pytest.approx(PRICES[:60].mean())
    assert history.history["val_loss"][-1] == pytest.approx(
        net.evaluate(TABLE[60:], PRICES[60:])["loss"]
    )


def test_scaled_targets_pass_every_door(tmp_path):
    net, x = fitted(5), TABLE.astype("float32")
    expected = net.predict(x)
    net.save(tmp_path / "net.safetensors")
    loaded, copied = nn.load(tmp_path / "net.safetensors"), pickle.loads(pickle.dumps(net))
    predict_row, out = net.compiled(), np.empty((80, 1), "float32")
    for row, result in zip(x, out, strict=True):
        predict_row(row, result)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    both = nn.Ensemble([net, fitted(5, regression(nn.Standardize()))])
    np.testing.assert_allclose(both.predict(x), expected, rtol=1e-5)
    measured, alone = both.evaluate(x, PRICES), net.evaluate(x, PRICES)
    assert all(measured[name] == pytest.approx(alone[name], rel=1e-4) for name in alone)
    both.save(tmp_path / "both.safetensors")
    assert nn.load(tmp_path / "both.safetensors").predict(x).tobytes() == both.predict(x).tobytes()
    net.fit(x, PRICES, optimizer=nn.Adam(0.01), epochs=2, verbose=0)
    for other in (loaded, copied):
        assert other.predict(x).tobytes() == expected.tobytes()
        other.fit(x, PRICES, optimizer=nn.Adam(0.01), epochs=2, verbose=0)
        assert other.parameters.tobytes() == net.parameters.tobytes()
        assert other.predict(x).tobytes() == net.predict(x).tobytes()


def test_later_fits_keep_the_scaling_and_initialize_forgets_it():
    net = fitted(2)
    mean = net.target_scaling.mean[0]
    net.fit(TABLE, PRICES + 1e5, scale_targets=True, verbose=0)
    assert net.target_scaling.mean[0] == mean
    net.initialize()
    assert not net.scales_targets and abs(net.predict(TABLE)).max() < 100


@pytest.mark.parametrize(
    ("layers", "y"),
    [
        ([nn.Dense(1, activation="sigmoid")], LABELS % 2),
        ([nn.Dense(3, activation="softmax")], LABELS),
        ([nn.Dense(3)], LABELS),
    ],
)
def test_classes_are_not_scaled(layers, y):
    net = nn.Sequential(layers, 30)
    with pytest.raises(ValueError, match="scale_targets is for real targets"):
        net.fit(BYTES, y, scale_targets=True, verbose=0)
    assert not net.scales_targets


def test_scale_targets_is_true_or_false():
    with pytest.raises(ValueError, match="scale_targets must be True or False"):
        regression().fit(TABLE, PRICES, scale_targets="yes")


# --- what goes wrong leaves no trace --------------------------------------------------------------


class Stops(nn.callbacks.Callback):
    """A callback that fails before the first epoch."""

    def on_fit_begin(self, network):
        raise RuntimeError("stop")


@pytest.mark.parametrize(
    ("layers", "options", "error"),
    [
        ([nn.Standardize(), nn.Dense(1)], {"callbacks": Stops()}, RuntimeError),
        ([nn.Standardize(), nn.Dense(1)], {"augment": nn.Augment(shift=1)}, ValueError),
        ([nn.Standardize(), nn.ReLU(), nn.Flatten()], {}, ValueError),
        ([nn.Standardize(), nn.Dense(1)], {"optimizer": nn.SGD(1e30)}, nn.DivergenceError),
        ([nn.Standardize(), nn.Dense(1)], {"epochs": 0}, None),
    ],
)
def test_a_training_that_does_not_begin_leaves_the_scalings_alone(layers, options, error):
    net = nn.Sequential(layers, 3, seed=1)
    y = PRICES if net.output_shape == (1,) else PRICES[:, None] * np.ones(3)
    before = net.memory.copy(), net.predict(TABLE)
    if error:
        with pytest.raises(error):
            net.fit(TABLE, y, scale_targets=True, verbose=0, **options)
    else:
        net.fit(TABLE, y, scale_targets=True, verbose=0, **options)
    assert np.array_equal(net.memory, before[0]) and not net.scales_targets
    assert np.array_equal(net.predict(TABLE), before[1])
    assert all(
        array is None for ex in net.executors.executors.values() for array in ex._bound.values()
    )


def test_a_layer_that_is_refused_leaves_the_others_alone():
    net = nn.Sequential([nn.Standardize(), nn.Rescale(1.0, 1e6), nn.Standardize(), nn.Dense(1)], 3)
    with pytest.raises(ValueError, match=r"layer 2 \(Standardize\): channel"):
        net.adapt(TABLE)
    assert not net.layers[0].adapted.any() and not net.layers[0].mean.any()


def test_a_mean_that_was_set_is_not_measured():
    net = regression(nn.Standardize())
    net.layers[0].mean, net.layers[0].deviation = 5, 2
    net.fit(TABLE, TABLE[:, 0], verbose=0)
    assert set(net.layers[0].mean) == {5} and set(net.layers[0].deviation) == {2}


def test_scaling_begins_with_the_first_fit():
    net = regression()
    net.fit(TABLE, TABLE[:, 0], verbose=0)
    before = net.predict(TABLE)
    with pytest.raises(ValueError, match=r"begins with the first fit; .* trained for 1 epochs"):
        net.fit(TABLE, PRICES, scale_targets=True, verbose=0)
    assert np.array_equal(net.predict(TABLE), before)


def test_labels_are_no_scaled_targets():
    net = nn.Sequential([nn.Dense(5)], 3)
    net.fit(TABLE, PRICES[:, None] * np.ones(5), scale_targets=True, verbose=0)
    for call in (net.evaluate, net.loss, net.gradient, nn.Ensemble([net]).evaluate):
        with pytest.raises(ValueError, match="y holds labels, but this network was trained with"):
            call(TABLE[:5], np.arange(5))


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e6), ("float64", 1e12)])
def test_what_is_constant_and_what_only_seems_so(dtype, value):
    net = regression(nn.Standardize(), dtype=dtype)
    varied = value + 50 * GENERATOR.normal(size=80)
    if dtype == "float64":
        net.adapt(np.column_stack([TABLE[:, 0], np.full(80, value), varied]))
        assert net.layers[0].deviation[2] == pytest.approx(varied.std(), rel=1e-6)
    else:
        net.adapt(np.column_stack([TABLE[:, :2], np.full(80, value)]))
    assert net.layers[0].deviation[1 if dtype == "float64" else 2] == 1


def test_targets_far_from_those_of_the_first_fit_are_named():
    net = fitted(2, regression())
    with pytest.raises(
        nn.DivergenceError, match=r"y spans .* far from the targets of the first fit"
    ):
        net.fit(TABLE, 1e4 * PRICES, optimizer=nn.SGD(50.0), epochs=50, verbose=0)
