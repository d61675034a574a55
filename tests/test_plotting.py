"""Plots of networks: what they show, what they refuse, and that they leave no state behind."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numbanet as nn
from numbanet import plotting

pytest.importorskip("matplotlib")
SOURCES = str(Path(nn.__file__).parents[1])


def network(shape=(8, 9, 1), last=None):
    last = last or [nn.Dense(3, activation="softmax")]
    layers = [
        nn.Conv2D(5, 3, activation="relu"),
        nn.MaxPool2D(2),
        nn.Conv2D(4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        *last,
    ]
    return nn.Sequential(layers, shape, "float64", seed=2)


def images(samples=30, shape=(8, 9, 1)):
    return np.random.default_rng(1).uniform(size=(samples, *shape))


def image(axes):
    """The numbers that an axes shows, NaN where there is none."""
    shown = axes.get_images()[0].get_array()
    return np.ma.filled(shown.astype(float), np.nan)


def png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=60)
    assert content.getvalue().startswith(b"\x89PNG") and len(content.getvalue()) > 1000
    return content.getvalue()


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


# --- inside a network --------------------------------------------------------------------------


def test_filters_of_one_channel():
    net = network()
    figure = plotting.filters(net)
    shown, weights = image(figure.axes[0]), net.layers[0].weights
    np.testing.assert_array_equal(shown[:3, :3], weights[:, :, 0, 0])
    np.testing.assert_array_equal(np.sort(shown[np.isfinite(shown)]), np.sort(weights.ravel()))
    assert figure.axes[0].get_images()[0].get_clim() == (
        -np.abs(weights).max(),
        np.abs(weights).max(),
    )
    assert titles(figure) == ["Conv2D, 5 filters, 3×3"]
    png(figure)


def test_filters_of_several_channels_stand_in_columns():
    net = network()
    figure = plotting.filters(net, 1, count=3)
    shown, weights = image(figure.axes[0]), net.layers[3].weights
    assert shown.shape == (5 * 3 - 1, 3 * 3 - 1) and titles(figure) == [
        "Conv2D, 3 of 4 filters, 2×2"
    ]
    np.testing.assert_array_equal(shown[6:8, 3:5], weights[:, :, 2, 1])
    assert figure.axes[0].get_ylabel() == "5 channels"


def test_three_channels_of_an_image_are_colours():
    net = network((8, 9, 3))
    shown = image(plotting.filters(net).axes[0])
    assert shown.ndim == 3 and shown.min() >= 0 and shown.max() <= 1
    np.testing.assert_allclose(
        shown[:3, :3],
        0.5 + 0.5 * net.layers[0].weights[..., 0] / np.abs(net.layers[0].weights).max(),
    )


@pytest.mark.parametrize(
    "layers", [[nn.Dense(6)], [nn.Flatten(), nn.Dense(6)]], ids=["vectors", "images"]
)
def test_neurons_that_see_an_image(layers):
    net = nn.Sequential([*layers, nn.Dense(2)], 49 if len(layers) == 1 else (7, 7, 1))
    figure = plotting.filters(net)
    assert titles(figure) == ["Dense, 6 neurons, 7×7"]
    np.testing.assert_allclose(
        image(figure.axes[0])[:7, :7], net.layers[len(layers) - 1].weights[:, 0].reshape(7, 7)
    )


def test_filters_of_sequences():
    net = nn.Sequential([nn.Conv1D(4, 5), nn.Flatten()], (9, 2))
    np.testing.assert_allclose(
        image(plotting.filters(net).axes[0])[0, :5], net.layers[0].weights[:, 0, 0]
    )


@pytest.mark.parametrize("layer", [0, 1])
def test_feature_maps_are_the_outputs_behind_the_activation(layer):
    net, x = network(last=(nn.BatchNorm(), nn.Dense(3, activation="softmax"))), images()
    part = nn.Sequential(net.specs[: (1, 4)[layer]], net.input_shape, "float64")
    part.parameters = net.parameters[: part.parameters.size]
    figure = plotting.feature_maps(net, x[3], layer)
    maps, height, width = part.predict(x[3:4])[0], *part.output_shape[:2]
    np.testing.assert_allclose(image(figure.axes[1])[:height, :width], maps[..., 0])
    assert titles(figure) == ["8×9×1", f"{maps.shape[-1]} maps, {height}×{width}"]
    png(figure)


def test_feature_maps_know_running_means():
    net = nn.Sequential(
        [nn.BatchNorm(), nn.Conv2D(2, 3), nn.Flatten(), nn.Dense(2, activation="softmax")],
        (6, 6, 1),
    )
    net.layers[0].mean = 0.4
    part = nn.Sequential([nn.BatchNorm(), nn.Conv2D(2, 3)], (6, 6, 1))
    part.parameters, part.layers[0].mean = net.parameters[: part.parameters.size], 0.4
    x = images(1, (6, 6, 1))
    shown = image(plotting.feature_maps(net, x.reshape(36)).axes[1])
    np.testing.assert_allclose(shown[:4, :4], part.predict(x)[0, ..., 0], rtol=1e-6)


# --- what it makes of data ---------------------------------------------------------------------


def test_mistakes_show_the_surest_first_with_both_labels():
    net, x = network(), images()
    outputs = net.predict(x)
    given = outputs.argmax(axis=1)
    y = given.copy()
    wrong = np.array([4, 9, 17, 20])
    y[wrong] = (given[wrong] + 1) % 3
    figure = plotting.mistakes(net, x, y, count=3, names=["a", "b", "c"])
    order = wrong[np.argsort(-outputs[wrong, given[wrong]])][:3]
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == [part for i in order for part in ("abc"[y[i]], "→", "abc"[given[i]])]
    assert titles(figure) == ["4 mistakes in 30 samples, the surest first: true → given"]
    shown, first = image(figure.axes[0]), x[order[0], ..., 0]
    low, high = x[order].min(), x[order].max()
    np.testing.assert_allclose(shown[-8:, :9], (first - low) / (high - low))
    png(figure)


def test_no_mistakes():
    net, x = network(), images()
    figure = plotting.mistakes(net, x, net.predict_classes(x))
    assert titles(figure) == ["0 mistakes in 30 samples"] and not figure.axes[0].texts
    png(figure)


def test_coloured_images_and_a_single_output():
    net, x = (
        network((8, 9, 3), (nn.Dense(1, activation="sigmoid"),)),
        (255 * images(shape=(8, 9, 3))).astype(np.uint8),
    )
    figure = plotting.mistakes(net, x, 1 - net.predict_classes(x), count=5)
    assert image(figure.axes[0]).shape[2] == 3
    assert titles(figure)[0].startswith("30 mistakes in 30 samples")


def test_confusion_counts():
    net, x = network(), images()
    given = net.predict_classes(x)
    y = (given + (np.arange(30) % 5 == 0)) % 3
    figure = plotting.confusion(net, x, y, names=["left", "right", "up"])
    counts = nn.metrics.confusion_matrix(y, given)
    counts = np.pad(counts, (0, 3 - len(counts)))
    written = {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
        for text in figure.axes[0].texts
    }
    assert written == {
        (i, j): str(counts[i, j]) for i in range(3) for j in range(3) if counts[i, j] or i == j
    }
    np.testing.assert_array_equal(image(figure.axes[0]), np.where(np.eye(3), 0, counts))
    assert titles(figure) == ["accuracy 80.00%, 6 mistakes in 30 samples"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "left",
        "right",
        "up",
    ]
    png(figure)


def test_an_ensemble_is_drawn_as_well():
    x = images()
    ensemble = nn.Ensemble(
        [network(), nn.Sequential([nn.Flatten(), nn.Dense(3, activation="softmax")], (8, 9, 1))],
        "vote",
    )
    given = ensemble.predict_classes(x)
    assert titles(plotting.confusion(ensemble, x, given)) == [
        "accuracy 100.00%, 0 mistakes in 30 samples"
    ]
    assert titles(plotting.mistakes(ensemble, x, given)) == ["0 mistakes in 30 samples"]


def test_learning_rates():
    rates = np.geomspace(1e-3, 1, 9)
    figure = plotting.learning_rates(nn.LearningRates(rates, rates[::-1], rates[::-1] + 1, 0.1))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "learning rate"
    losses, smoothed, suggestion = axes.lines
    np.testing.assert_array_equal(losses.get_xydata(), np.transpose([rates, rates[::-1]]))
    np.testing.assert_array_equal(smoothed.get_ydata(), rates[::-1] + 1)
    assert list(suggestion.get_xdata()) == [0.1, 0.1]


def test_a_history():
    x, y = images(), np.arange(30) % 3
    fitted = network().fit(x, y, epochs=3, verbose=0, validation_split=0.3)
    figure = plotting.history(fitted)
    assert titles(figure) == ["loss", "accuracy, %"]
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert [line.get_label() for line in lines] == ["training", "validation"] * 2
    for line, (name, values) in zip(
        lines, sorted(fitted.history.items(), key=lambda one: "accuracy" in one[0]), strict=True
    ):
        np.testing.assert_allclose(
            line.get_ydata(), np.array(values) * (100 if "accuracy" in name else 1)
        )
        assert list(line.get_xdata()) == [1, 2, 3]
    assert titles(plotting.history({"loss": [3.0, 2.0]})) == ["loss"]
    png(figure)


# --- refusals, and no state --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: plotting.filters(network(), 3),
            "layer 3: the network has 3 layers of weights, numbered from 0",
        ),
        (
            lambda: plotting.filters(network(), 2),
            "layer 2 is dense and does not see the image itself",
        ),
        (
            lambda: plotting.filters(nn.Sequential([nn.Dense(2)], 7)),
            r"samples of shape \(7,\) are not images",
        ),
        (
            lambda: plotting.feature_maps(network(), images()[0], 2),
            r"layer 2 gives \(3,\), not maps",
        ),
        (lambda: plotting.feature_maps(network(), images()[0, :5]), r"x must have shape"),
        (
            lambda: plotting.mistakes(
                network(), images(), np.random.default_rng(0).normal(size=(30, 3))
            ),
            "y has real targets",
        ),
        (
            lambda: plotting.mistakes(network(), images(), np.zeros(30, int), 0),
            "count must be an integer",
        ),
        (lambda: plotting.history({}), "no epochs to draw"),
        (
            lambda: plotting.learning_rates(nn.LearningRates(*[np.zeros(0)] * 3, None)),
            "nothing to draw",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_images_by_their_numbers():
    assert [plotting.image_shape(shape) for shape in ((784,), (12288,), (5, 6), (5, 6, 2))] == [
        (28, 28, 1),
        (64, 64, 3),
        (5, 6, 1),
        (5, 6, 2),
    ]


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": SOURCES, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_pyplot_is_never_imported_and_matplotlib_only_when_needed():
    code = (
        "import sys, numbanet as nn; assert 'matplotlib' not in sys.modules\n"
        "nn.plotting.history({'loss': [2.0, 1.0]}).savefig(sys.stdout.buffer, format='svg')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    found = python(code)
    assert found.returncode == 0 and "<svg" in found.stdout, found.stderr


def test_without_matplotlib_the_way_out_is_named():
    found = python(
        "import sys; sys.modules['matplotlib'] = None; "
        "sys.modules['matplotlib.figure'] = None\n"
        "import numbanet as nn; nn.plotting.history({'loss': [1.0]})"
    )
    assert (
        found.returncode == 1
        and "figures need matplotlib; pip install numbanet[plot]" in found.stderr
    )


# --- diagnostics ---------------------------------------------------------------------------------


def measured():
    """A small trained network with its data, and a record of its learning."""
    x, y = images(), np.arange(30) % 3
    net, speed = network(), nn.diagnostics.LearningSpeed(x, y)
    history = net.fit(x, y, epochs=3, verbose=0, validation_split=0.3, callbacks=speed)
    return net, x, y, speed, history


def test_learning_speed_has_a_line_for_each_layer():
    speed = measured()[3]
    figure = plotting.learning_speed(speed)
    left, right = figure.axes
    for k, name in enumerate(speed.names):
        line = left.get_lines()[k]
        assert line.get_label() == name
        np.testing.assert_allclose(line.get_ydata(), speed.gradient[:, k])
        np.testing.assert_allclose(
            right.get_lines()[k].get_ydata(), speed.update[:, k] / speed.weight[:, k]
        )
    assert list(left.get_lines()[0].get_xdata()) == [0, 1, 2, 3]
    png(figure)


def test_distributions_and_activity():
    net, x, *_ = measured()
    found = nn.diagnostics.activations(net, x)
    figure = plotting.distributions(found)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == [
        one.outputs.name for one in found
    ]
    png(figure)
    assert len(plotting.distributions(nn.diagnostics.weights(net)).axes) == 5
    (axes,) = plotting.activity(found).axes
    dead, saturated = axes.containers
    assert dead[1].get_width() == 100 * found[1].dead.mean()
    assert saturated[4].get_width() == pytest.approx(100 * found[4].saturated)


def test_importance_of_pixels_and_of_units():
    net, x, y, *_ = measured()
    pixels = nn.diagnostics.importance(net, x, y, repeats=1)
    np.testing.assert_array_equal(image(plotting.importance(pixels).axes[0]), pixels.values)
    units = nn.diagnostics.importance(net, x, y, layer=1, repeats=2)
    figure = plotting.importance(units, count=3)
    widths = [bar.get_width() for bar in figure.axes[0].containers[0]]
    np.testing.assert_allclose(widths, np.sort(units.values)[::-1][:3])
    png(figure)


def test_excitations_are_images_or_bars():
    net = network()
    found = nn.diagnostics.excite(net, 1, 2, steps=5)
    figure = plotting.excitation(found)
    np.testing.assert_allclose(image(figure.axes[0]), found.input[..., 0])
    assert titles(figure)[0].startswith("1 ReLU, unit 2")
    vector = nn.diagnostics.excite(nn.Sequential([nn.Dense(2)], 7), 0, 1, steps=5)
    assert len(plotting.excitation(vector).axes[0].patches) == 7
    colours = nn.diagnostics.excite(network((8, 9, 3)), 1, 2, steps=5)
    assert image(plotting.excitation(colours).axes[0]).shape == (8, 9, 3)


def test_a_learning_curve_with_its_verdict():
    history = measured()[4]
    curve = nn.diagnostics.learning_curve(history)
    figure = plotting.learning_curve(curve)
    training, validation, best = figure.axes[0].get_lines()
    np.testing.assert_array_equal(training.get_ydata(), curve.training)
    np.testing.assert_array_equal(validation.get_ydata(), curve.validation)
    assert best.get_label() == f"best epoch, {curve.best}" and titles(figure) == [curve.verdict]
    for given in (history, history.history):
        assert titles(plotting.learning_curve(given)) == [curve.verdict]


def test_initialisers_and_calibration():
    net, x, y, *_ = measured()
    effect = nn.diagnostics.initializations(net, x, y, ["he", "normal"])
    left, right = plotting.initialization(effect).axes
    deviation = effect.deviation[:, effect.trained]
    np.testing.assert_allclose(left.get_lines()[1].get_ydata(), deviation[1])
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), effect.gradient[0])
    found = nn.diagnostics.calibration(net, x, y)
    line = plotting.calibration(found).axes[0].get_lines()[1]
    np.testing.assert_allclose(line.get_ydata(), found.accuracy[found.counts > 0])


def test_the_doctors_figure():
    net, x, y, *_ = measured()
    figure = plotting.diagnosis(net, x, y)
    speeds = nn.diagnostics.speeds(net, x, y)
    np.testing.assert_allclose([bar.get_width() for bar in figure.axes[0].patches], speeds.relative)
    assert titles(figure) == [
        "gradient : weights",
        "deviation of the outputs",
        "dead and saturated",
    ]
    png(figure)


@pytest.mark.parametrize(("factor", "scale"), [(2, "linear"), (2000, "log")])
def test_an_axis_is_logarithmic_where_its_values_span_a_decade(factor, scale):
    layers = [nn.Dense(4), nn.Dense(4, initializer=np.full((4, 4), factor / 4.0))]
    net = nn.Sequential(layers, 4, "float64", seed=1)
    x = np.random.default_rng(0).normal(size=(20, 4))
    middle = plotting.diagnosis(net, x, x).axes[1]
    assert middle.get_xscale() == scale


def test_a_record_of_nothing_is_not_drawn():
    with pytest.raises(ValueError, match="nothing was recorded"):
        plotting.learning_speed(nn.diagnostics.LearningSpeed(images(), np.arange(30) % 3))
