"""Networks by name, augmentation and images from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

import numbanet as nn
from numbanet.apps.cli import experiment

pytest.importorskip("click")
from click.testing import CliRunner

from numbanet.apps.cli.app import cli


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def done(*args):
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def bars(shape=(16, 16), samples=100, classes=2):
    """Images in bytes with a bar that lies or stands.

    On 28×28 its place names one of ten classes.
    """
    generator = np.random.default_rng(1)
    y = np.arange(samples) % classes
    x = generator.integers(0, 60, (samples, *shape)).astype(np.uint8)
    for image, label in zip(x, y, strict=True):
        if classes == 2:
            image[(slice(6, 8), slice(None))[:: 1 - 2 * label]] = 250
        else:
            image[2 * label + 4 : 2 * label + 6] = 250
    np.savez("bars.npz", x=x, y=y)


@pytest.mark.parametrize(("model", "kinds"), [("lenet5", 6), ("VGG-small", 32)])
def test_a_network_by_name(model, kinds, folder):
    bars()
    text = done(
        "train",
        "bars.npz",
        "--model",
        model,
        "--epochs",
        3,
        "--json",
        "figures.json",
        "--augment",
        "shift=1,flip_horizontal",
    )
    record, net = json.loads(Path("figures.json").read_text()), nn.load("bars.safetensors")
    assert (
        net.input_shape == (16, 16, 1)
        and net.layers[1].filters == kinds
        and net.output_shape == (2,)
    )
    assert (
        record["settings"]["augment"] == "shift=1,flip_horizontal"
        and record["settings"]["optimizer"] == "adam"
    )
    assert f"accuracy {100 * record['accuracy']:.2f} %" in text
    assert done("evaluate", "bars.safetensors", "bars.npz", "--held-out") in text


@pytest.mark.parametrize("model", ["lstm", "gru"])
def test_digits_are_read_row_by_row(model, folder):
    pytest.importorskip("sklearn")
    done("train", "digits", "--model", model, "--json", "figures.json")
    net = nn.load("digits.safetensors")
    assert type(net.layers[1].layer).__name__ == model.upper()
    assert json.loads(Path("figures.json").read_text())["accuracy"] >= 0.97


@pytest.mark.parametrize(
    ("row", "shape", "options"),
    [
        (1, (784,), ()),
        (17, (28, 28, 1), ()),
        (18, (28, 28, 1), ("--learning-rate", 0.01, "--l2", 0.0)),
    ],
)
def test_a_row_of_the_book_comes_with_its_recipe(row, shape, options, folder):
    bars((28, 28), 100, 10)
    text = done(
        "train",
        "bars.npz",
        "--model",
        f"nielsen{row}",
        "--epochs",
        1,
        "--json",
        "figures.json",
        *options,
    )
    chosen, net = (
        json.loads(Path("figures.json").read_text())["settings"],
        nn.load("bars.safetensors"),
    )
    recipe = nn.models.BOOK_ROWS[row].recipe
    assert net.input_shape == shape and net.penalty == ((recipe.penalty,) if recipe.penalty else ())
    assert (chosen["optimizer"], chosen["batch_size"], chosen["loss"]) == ("sgd", 10, recipe.loss)
    assert chosen["learning_rate"] == (0.01 if options else recipe.learning_rate)
    assert f"{400 if recipe.expanded else 80} samples for training, 20 held out" in text
    assert "accuracy" in done("evaluate", "bars.safetensors", "bars.npz")


def test_augmentation_by_words():
    assert experiment.parse_augmentation(None) is None and experiment.parse_augmentation("") is None
    assert experiment.parse_augmentation(
        "shift=2, rotation=10, zoom=0.1,flip-horizontal"
    ) == nn.Augment(shift=2, rotation=10.0, zoom=0.1, flip_horizontal=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["--model", "lenet5", "--layers", "3"], "--layers is for networks without a name"),
        (
            ["--model", "vgg_small", "--activation", "tanh"],
            "--activation is for networks without a name",
        ),
        (
            ["--model", "nielsen17"],
            "is for 10 classes of images (28, 28, 1), bars.npz has 2 of (16, 16, 1)",
        ),
        (["--augment", "shift"], "shift needs an integer"),
        (["--augment", "shift=1.5"], "got 'shift=1.5'"),
        (["--augment", "rotation=much"], "rotation needs a number"),
        (["--augment", "flip_horizontal=2"], "flip_horizontal needs no amount"),
        (["--augment", "spin=2"], "unknown augmentation 'spin'"),
        (["--augment", "zoom=2"], "would shrink an image to nothing"),
    ],
)
def test_what_train_refuses(args, words, folder):
    bars()
    result = run("train", "bars.npz", *args)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["bars.npz"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "lenet5"], "columns that are standardised"),
        (["--augment", "shift=1"], "samples of shape (7,) are not images"),
    ],
)
def test_what_is_no_image(args, words, folder):
    np.savez("seven.npz", x=np.random.default_rng(0).normal(size=(50, 7)), y=np.arange(50) % 2)
    result = run("train", "seven.npz", *args)
    assert result.exit_code == 2 and words in result.stderr


def test_plot_draws_what_is_asked_for(folder):
    pytest.importorskip("matplotlib")
    bars()
    done("train", "bars.npz", "--model", "lenet5", "--epochs", 1, "--output", "net")
    text = done(
        "plot",
        "net",
        "bars.npz",
        "--filters",
        "F.png",
        "--features",
        "G.png",
        "--mistakes",
        "M.svg",
        "--confusion",
        "C",
    )
    assert text == "wrote F.png\nwrote G.png\nwrote M.svg\nwrote C\n"
    heads = {name: Path(name).read_bytes()[:5] for name in ("F.png", "G.png", "M.svg", "C")}
    assert heads == {
        "F.png": b"\x89PNG\r",
        "G.png": b"\x89PNG\r",
        "M.svg": b"<?xml",
        "C": b"\x89PNG\r",
    }
    for args, words in (
        ([], "give a file for one of them"),
        (["--filters", "F.png"], "F.png exists"),
        (["--filters", "F.xyz"], "'xyz' is not supported"),
    ):
        result = run("plot", "net", "bars.npz", *args)
        assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    done("plot", "net", "bars.npz", "--filters", "F.png", "--force", "--held-out")


def test_an_ensemble_is_evaluated_and_described(folder):
    bars()
    ensemble = nn.Ensemble.from_builder(
        lambda seed: nn.Sequential(
            [nn.Flatten(), nn.Dense(2, activation="softmax")], (16, 16), seed=seed
        ),
        members=3,
        combine="vote",
    )
    ensemble.save("three")
    with np.load("bars.npz") as file:
        x, y = file["x"], file["y"]
    assert f"{ensemble.evaluate(x, y)['mistakes']} mistakes in 100 samples" in done(
        "evaluate", "three", "bars.npz"
    )
    assert "3 networks, vote" in done("info", "three")
    labels = [
        int(line.split(",")[0]) for line in done("predict", "three", "bars.npz").splitlines()[1:]
    ]
    np.testing.assert_array_equal(labels, ensemble.predict_classes(x))


def test_a_network_or_an_ensemble_is_moved():
    pytest.importorskip("numba_cuda")
    ensemble = nn.Ensemble.from_builder(
        lambda seed: nn.Sequential([nn.Dense(2)], 2, seed=seed), members=2
    )
    assert [net.device for net in experiment.to_device(ensemble, "cuda").networks] == [
        "cuda",
        "cuda",
    ]
    assert (
        experiment.to_device(ensemble.networks[0], "cpu").device == "cpu"
        and ensemble.networks[1].device == "cuda"
    )


def test_a_network_by_name_on_a_gpu(folder):
    data = experiment.Data(
        "bars",
        np.zeros((2, 16, 16, 1), np.uint8),
        np.arange(2),
        np.zeros((0, 16, 16, 1)),
        np.zeros(0),
        2,
        False,
    )
    pytest.importorskip("numba_cuda")
    for name in ("lenet5", None):
        chosen = {**experiment.DEFAULTS, **({"model": name} if name else {})}
        assert experiment.build_network(data, chosen, 0, None, "cuda").device == "cuda"
