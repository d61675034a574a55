"""The command line: what it trains, what it says again, what it refuses, and in how many words."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import numbanet as nn
from numbanet import datasets
from numbanet.apps.cli import experiment
from numbanet.backend.cuda import driver

pytest.importorskip("click")
from click.testing import CliRunner

from numbanet.apps.cli.app import cli

SOURCES = str(Path(nn.__file__).parents[1])


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


def refused(*args):
    """The one line on stderr."""
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    result = run(*args)
    assert result.exit_code == 2 and "saved" not in result.stdout
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("Error: "), result.stderr
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    return result.stderr


def needs(name):
    try:
        experiment.read_data(name, 0)
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(str(error).splitlines()[0])


def classes_file(name="three.csv", samples=120, seed=1):
    """Three clouds of two raw features, far from 0 and of different sizes."""
    generator = np.random.default_rng(seed)
    y = np.arange(samples) % 3
    x = np.array([[1000.0, 0.001], [1004.0, 0.001], [1000.0, 0.005]])[y] + generator.normal(
        size=(samples, 2)
    ) * [0.5, 0.0005]
    if name.endswith(".npz"):
        np.savez(name, x=x, y=y)
    else:
        write_csv(name, np.column_stack([x, y]))
    return x, y


def regression_file(name="line.npz", samples=200):
    generator = np.random.default_rng(2)
    x = generator.normal(size=(samples, 3)) * [1, 100, 0.01] + [5, -3000, 0]
    y = 1e5 + 2e4 * x[:, 0] - 30 * x[:, 1] + 1e6 * x[:, 2]
    np.savez(name, x=x, y=y)
    return x, y


def write_csv(name, rows, header=None):
    lines = [",".join(header)] if header else []
    Path(name).write_text(
        "\n".join(lines + [",".join(map(repr, map(float, row))) for row in rows]) + "\n"
    )


def figures(text):
    """The line with the figures, without what comes before it."""
    return re.search(r"(accuracy .*|rmse .*)", text).group(1)


# --- train and evaluate ------------------------------------------------------------------------


def test_digits_by_default(folder):
    needs("digits")
    said = done("train", "digits", "--json", "figures.json")
    record = json.loads(Path("figures.json").read_text())
    assert record["accuracy"] >= 0.97 and record["samples"] == 359
    assert len(record["history"]["loss"]) == record["settings"]["epochs"]
    assert record["mistakes"] == round((1 - record["accuracy"]) * 359)
    assert (
        "1438 samples for training, 359 held out; 64 inputs, 10 classes" in said
        and "Dense" in said
        and "4,810" in said
    )
    assert said.splitlines()[-1] == "numbanet evaluate digits.safetensors digits"
    assert figures(done("evaluate", "digits.safetensors", "digits")) == figures(said)
    assert sorted(os.listdir()) == ["digits.safetensors", "figures.json"]


def test_the_split_follows_the_seed_of_the_model(folder):
    needs("digits")
    said = done(
        "train", "digits", "--seed", "5", "--epochs", "3", "--output", "net", "--json", "a.json"
    )
    done("evaluate", "net", "digits", "--json", "b.json")
    first, second = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert (first["accuracy"], first["mistakes"]) == (second["accuracy"], second["mistakes"])
    assert figures(done("evaluate", "net", "digits")) == figures(said)


def test_a_saved_network_takes_raw_measurements(folder):
    needs("breast_cancer")
    said = done("train", "breast_cancer", "--epochs", "30")
    d = datasets.breast_cancer()
    raw = d.x_scaling.invert(d.x_test)
    net = nn.load("breast_cancer.safetensors")
    assert net.output_shape == (1,)
    found = net.evaluate(raw, d.y_test)
    assert found["accuracy"] >= 0.93
    assert f"accuracy {100 * found['accuracy']:.2f} %, {found['mistakes']} mistakes" in said


def test_houses_are_predicted_in_dollars(folder):
    needs("houses")
    said = done("train", "houses", "--epochs", "15", "--json", "figures.json")
    record = json.loads(Path("figures.json").read_text())
    d = datasets.houses(standardize=False)
    prices = nn.load("houses.safetensors").predict(d.x_test.astype("float64"))
    rmse = np.sqrt(np.mean((prices - d.y_test) ** 2))
    assert (
        record["rmse"] == pytest.approx(rmse, rel=1e-6) and 2e5 < rmse < 6e5 and record["r2"] > 0.5
    )
    assert f"rmse {rmse:,.6g} dollars" in said and figures(
        done("evaluate", "houses.safetensors", "houses")
    ) == figures(said)


def test_cats_have_one_output(folder):
    needs("cats")
    said = done("train", "cats", "--epochs", "2", "--layers", "3")
    assert nn.load("cats.safetensors").output_shape == (1,) and "Sigmoid" in said
    assert figures(done("evaluate", "cats.safetensors", "cats")) == figures(said)


@pytest.mark.parametrize("name", ["three.csv", "three.npz"])
def test_a_file_with_classes(name, folder):
    x, y = classes_file(name)
    said = done("train", name)
    assert "y has 3 different integers: classes; --task regression decides otherwise" in said
    assert "96 samples for training, 24 held out; 2 inputs, 3 classes" in said
    command = said.splitlines()[-1].split()
    assert command[1:] == ["evaluate", "three.safetensors", name, "--held-out"]
    assert figures(done(*command[1:])) == figures(said)
    net = nn.load("three.safetensors")
    assert net.dtype == "float64" and net.evaluate(x, y)["accuracy"] > 0.95
    assert figures(done("evaluate", "three.safetensors", name)).endswith("120 samples")


def test_a_file_with_real_targets(folder):
    x, y = regression_file()
    said = done("train", "line.npz", "--layers", "none", "--optimizer", "sgd", "--epochs", "60")
    assert "regression" in said and "1 real target" in said
    assert "inputs and targets are standardised" in said
    net = nn.load("line.safetensors")
    standardize, dense = net.layers
    slopes = dense.weights[:, 0] * net.target_scaling.deviation / standardize.deviation
    np.testing.assert_allclose(slopes, [2e4, -30, 1e6], rtol=0.02)
    assert net.evaluate(x, y)["r2"] > 0.999
    assert figures(done("evaluate", "line.safetensors", "line.npz", "--held-out")) == figures(said)


def test_a_warning_is_one_line_on_stderr(folder):
    classes_file()
    result = run("train", "three.csv", "--learning-rate", "1e-9", "--epochs", "12")
    lines = result.stderr.splitlines()
    assert result.exit_code == 0 and all(line.startswith("warning: ") for line in lines)
    assert sum("the loss hardly moved" in line for line in lines) == 1, result.stderr


def test_task_overrides_what_was_decided(folder):
    classes_file()
    assert "1 real target" in done("train", "three.csv", "--task", "regression", "--epochs", "2")
    assert nn.load("three.safetensors").output_shape == (1,)
    assert "integer per sample" in refused(
        "train", regression_file() and "line.npz", "--task", "classes"
    )


def test_images_in_bytes_are_flattened(folder):
    generator = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (generator.uniform(0, 99, (60, 5, 4, 1)) + 150 * y[:, None, None, None]).astype(np.uint8)
    np.savez("bars.npz", x=x, y=y)
    said = done("train", "bars.npz", "--epochs", "300")
    net = nn.load("bars.safetensors")
    assert "Flatten" in said and net.input_shape == (5, 4, 1) and net.dtype == "float32"
    assert net.evaluate(x, y)["accuracy"] > 0.95
    assert figures(done("evaluate", "bars.safetensors", "bars.npz", "--held-out")) == figures(said)


@pytest.mark.parametrize(
    ("loss", "last", "outputs"),
    [
        ("cross_entropy", "Softmax", 3),
        ("binary_cross_entropy", "Sigmoid", 3),
        ("quadratic", "Sigmoid", 3),
    ],
)
def test_the_output_layer_follows_the_loss(loss, last, outputs, folder):
    classes_file()
    said = done(
        "train",
        "three.csv",
        "--loss",
        loss,
        "--layers",
        "8,5",
        "--activation",
        "tanh",
        "--optimizer",
        "sgd",
        "--momentum",
        "0.5",
        "--batch-size",
        "all",
        "--epochs",
        "3",
        "--l1",
        "1e-5",
        "--l2",
        "1e-4",
        "--threads",
        "1",
    )
    net = nn.load("three.safetensors")
    assert [type(built.layer).__name__ for built in net.layers] == [
        "Standardize",
        "Dense",
        "Tanh",
        "Dense",
        "Tanh",
        "Dense",
        last,
    ]
    assert (
        net.output_shape == (outputs,)
        and net.threads == 1
        and net.epoch == 3
        and len(net.penalty) == 2
    )
    assert "SGD(learning_rate=0.1, momentum=0.5" in said and "3 epochs of all samples" in said


def test_bytes_are_rescaled_and_the_optimizer_is_kept(folder):
    np.savez(
        "bytes.npz",
        x=np.random.default_rng(0).integers(0, 256, (30, 4), dtype=np.uint8),
        y=np.arange(30) % 2,
    )
    assert "Rescale" in done("train", "bytes.npz", "--epochs", "2")
    assert (
        "Adam(learning_rate=0.001" in done("info", "bytes.safetensors")
        and nn.load("bytes.safetensors").optimizer_steps == 2
    )


# --- labels with names -------------------------------------------------------------------------


COLOURS = np.array(["red", "green, dark", "blue"])


def named_file(name, labels):
    """The clouds of `classes_file`, with labels[k] for class k; the features and places."""
    x, y = classes_file("plain.csv")
    if name.endswith(".npz"):
        np.savez(name, x=x, y=labels[y])
        return x, y
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "colour"])
        writer.writerows([*map(float, row), label] for row, label in zip(x, labels[y], strict=True))
    return x, y


@pytest.mark.parametrize("name", ["named.csv", "named.npz"])
def test_names_in_the_last_column_are_classes(name, folder):
    x, y = named_file(name, COLOURS)
    said = done("train", name)
    assert "3 classes (y holds names)" in said
    net = nn.load("named.safetensors")
    assert net.class_names == ("blue", "green, dark", "red")
    assert net.evaluate(x, 2 - y)["accuracy"] > 0.95
    evaluated = done("evaluate", "named.safetensors", name, "--held-out", "--json", "figures.json")
    assert evaluated in said and "mistakes by class: blue: " in evaluated
    found = json.loads(Path("figures.json").read_text())
    assert sum(one["samples"] for one in found["classes"].values()) == found["samples"] == 24
    assert sum(one["mistakes"] for one in found["classes"].values()) == found["mistakes"]
    rows = list(csv.DictReader(done("predict", "named.safetensors", name).splitlines()))
    assert list(rows[0]) == ["label", "output_blue", "output_green, dark", "output_red"]
    assert [row["label"] for row in rows] == [
        net.class_names[k] for k in net.predict_classes(x).tolist()
    ]
    assert "blue, green, dark, red" in done("info", "named.safetensors")
    named_file("others.csv", np.array(["red", "blue", "black"]))
    assert "others.csv: y has the class 'black'; the network's are blue" in refused(
        "evaluate", "named.safetensors", "others.csv"
    )


@pytest.mark.parametrize("labels", [[1, 2, 3], [30, 10, 20], [-1, 0, 5]], ids=str)
@pytest.mark.parametrize("name", ["named.csv", "named.npz"])
def test_integers_that_are_not_0_to_k_are_names(name, labels, folder):
    x, y = named_file(name, np.array(labels))
    done("train", name)
    net = nn.load("named.safetensors")
    assert net.output_shape == (3,) and net.class_names == tuple(map(str, sorted(labels)))
    assert net.evaluate(x, np.searchsorted(sorted(labels), np.array(labels)[y]))["accuracy"] > 0.95
    assert float(done("evaluate", "named.safetensors", name).split()[1]) > 95
    rows = csv.DictReader(done("predict", "named.safetensors", name).splitlines())
    assert {row["label"] for row in rows} == set(map(str, labels))


def test_two_names_share_one_output(folder):
    Path("two.csv").write_text("a,y\n" + "1,yes\n-1,no\n" * 20)
    done("train", "two.csv")
    net = nn.load("two.safetensors")
    assert net.output_shape == (1,) and net.class_names == ("no", "yes")
    said = done("predict", "two.safetensors", "two.csv").splitlines()
    assert said[0] == "label,output_0" and [line.split(",")[0] for line in said[1:3]] == [
        "yes",
        "no",
    ]


def test_a_table_as_spreadsheets_export_it(folder):
    """Semicolons, decimal commas, the target in front, and empty cells."""
    x, y = classes_file("plain.csv")
    lines = [
        ";".join(["abc"[k], "" if i == 7 else str(a).replace(".", ","), str(b).replace(".", ",")])
        for i, ((a, b), k) in enumerate(zip(x, y, strict=True))
    ]
    Path("export.csv").write_text("\n".join(["kind;a;b", *lines]) + "\n", encoding="utf-8-sig")
    said = done("train", "export.csv", "--target", "kind", "--missing", "drop", "--delimiter", ";")
    assert "1 rows with a missing cell left out" in said
    command = said.splitlines()[-1]
    assert command.endswith("export.csv --held-out --target kind --delimiter ';' --missing drop")
    assert figures(done(*shlex.split(command)[1:])) == figures(said)
    result = run(
        "predict", "export.safetensors", "export.csv", "--target", "1", "--missing", "drop"
    )
    assert len(result.stdout.splitlines()) == 120
    assert result.stderr == "export.csv: 1 rows with a missing cell left out, lines 9\n"
    filled = done(
        "evaluate", "export.safetensors", "export.csv", "--target", "1", "--missing", "mean"
    )
    assert "in 120 samples" in filled


def test_the_names_of_a_data_set_are_kept(folder):
    needs("breast_cancer")
    said = done("train", "breast_cancer", "--epochs", "30")
    assert nn.load("breast_cancer.safetensors").class_names == ("malignant", "benign")
    assert "mistakes by class: malignant: " in said
    assert done("evaluate", "breast_cancer.safetensors", "breast_cancer") in said


# --- results no better than guessing -----------------------------------------------------------


def test_a_result_no_better_than_guessing_warns(folder):
    classes_file()
    options = ("--l2", "10", "--epochs", "8", "--seed", "1")
    result = run("train", "three.csv", *options)
    assert result.exit_code == 0 and "saved three.safetensors" in result.stdout
    assert "warning: " in result.stderr and "the most frequent class" in result.stderr
    regression_file()
    result = run("train", "line.npz", "--epochs", "1", "--learning-rate", "1e-7")
    assert "warning: r2 " in result.stderr and "predicting the mean" in result.stderr
    assert run("train", "three.csv", "--output", "good").stderr == ""
    result = run("train", "three.csv", "--learning-rate", "1e30", "--epochs", "2")
    ended = r"warning: the training loss reached .*e.*: training diverged; lower --learning-rate"
    assert re.fullmatch(ended, result.stderr.strip())
    years = np.random.default_rng(0).integers(1990, 2016, 60)
    write_csv("years.csv", np.column_stack([np.random.default_rng(1).normal(size=60), years]))
    result = run("train", "years.csv", "--epochs", "2", "--learning-rate", "1e-6")
    assert "not one of 25 classes, pass --task regression" in result.stderr


# --- predict and info --------------------------------------------------------------------------


def test_predict_writes_labels_and_outputs(folder):
    x, y = classes_file()
    done("train", "three.csv")
    write_csv("inputs.csv", x, ["a", "b"])
    done("predict", "three.safetensors", "inputs.csv", "--output", "out.csv")
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    net = nn.load("three.safetensors")
    assert list(rows[0]) == ["label", "output_0", "output_1", "output_2"] and len(rows) == 120
    assert [int(row["label"]) for row in rows] == net.predict_classes(x).tolist()
    np.testing.assert_array_equal(
        [[float(row[f"output_{j}"]) for j in range(3)] for row in rows], net.predict(x)
    )
    result = run("predict", "three.safetensors", "three.csv")
    assert result.stdout == Path("out.csv").read_text() and "last of 3 columns" in result.stderr
    np.savez("inputs.npz", x=x)
    assert done("predict", "three.safetensors", "inputs.npz") == result.stdout


@pytest.mark.parametrize("lengths", [None, [4, 2, 3]])
def test_a_network_with_outputs_at_every_step(lengths, folder):
    x, generator = np.random.default_rng(0).normal(size=(3, 4, 2)), np.random.default_rng(1)
    given = {} if lengths is None else {"lengths": np.array(lengths)}
    counts = lengths or [4] * 3
    inside = np.arange(4) < np.array(counts)[:, None]
    gru = nn.GRU(5, return_sequences=True)
    for outputs, activation in ((3, "softmax"), (2, None)):
        net = nn.Sequential([gru, nn.Dense(outputs, activation=activation)], (4, 2), "float64")
        net.save(f"{outputs}.safetensors")
        classes = activation is not None
        y = generator.integers(0, 3, (3, 4)) if classes else generator.normal(size=(3, 4, 2))
        np.savez(f"{outputs}.npz", x=x, y=y, **given)
        done("evaluate", f"{outputs}.safetensors", f"{outputs}.npz", "--json", f"{outputs}.json")
        found = json.loads(Path(f"{outputs}.json").read_text())
        expected = net.evaluate(x, y, lengths=lengths)
        assert {name: found[name] for name in expected} == expected
        assert found["steps"] == sum(counts) and found["samples"] == 3
        text = done("predict", f"{outputs}.safetensors", f"{outputs}.npz")
        rows = list(csv.DictReader(text.splitlines()))
        assert [int(row["sample"]) for row in rows] == np.nonzero(inside)[0].tolist()
        assert [int(row["step"]) for row in rows] == np.nonzero(inside)[1].tolist()
        cells = [[float(row[f"output_{j}"]) for j in range(outputs)] for row in rows]
        np.testing.assert_array_equal(cells, net.predict(x, lengths=lengths)[inside])
        if classes:
            labels = net.predict_classes(x, lengths=lengths)[inside]
            assert [int(row["label"]) for row in rows] == labels.tolist()
    if lengths:
        assert "3.npz has lengths of sequences, which train does not" in refused("train", "3.npz")


def test_no_epochs_with_a_schedule(folder):
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10.0)
    np.savez("line.npz", x=x, y=y)
    done("train", "line.npz", "--epochs", "0", "--schedule", "cosine")


def test_predict_real_outputs_without_labels(folder):
    x, _ = regression_file()
    done("train", "line.npz", "--epochs", "2")
    lines = done("predict", "line.safetensors", "line.npz").splitlines()
    assert lines[0] == "output_0" and len(lines) == 201
    np.testing.assert_array_equal(
        [float(line) for line in lines[1:]], nn.load("line.safetensors").predict(x)[:, 0]
    )


def test_export_writes_c(folder):
    net = nn.Sequential([nn.Dense(3, activation="relu"), nn.Dense(2)], 4)
    net.save("one")
    nn.Ensemble([net]).save("several")
    assert done("export", "one", "--c", "one.c").split() == ["wrote", "one.c", "wrote", "one.h"]
    assert "one_forward(" in Path("one.c").read_text() and "one_vjp(" in Path("one.h").read_text()
    assert "one.c exists" in refused("export", "one", "--c", "one.c")
    Path("one.c").unlink()
    assert "one.h exists" in refused("export", "one", "--c", "one.c")
    assert "holds an ensemble" in refused("export", "several", "--c", "net.c")
    assert "ends in .c" in refused("export", "one", "--c", "net.txt")


def test_info_tells_the_state(folder):
    nn.Sequential(
        [nn.Dense(3, activation="relu"), nn.Dense(2)], 4, "float64", seed=8, penalty=nn.L1(0.5)
    ).save("net")
    said = done("info", "net")
    for part in (
        "Dense",
        "float64",
        "0 trained",
        "L1(strength=0.5",
        "total",
        "23",
        "no state kept",
    ):
        assert part in said


def test_info_tells_the_system():
    said = done("info", "--system")
    for part in (
        "numbanet",
        "numba",
        "llvmlite",
        "numpy",
        "processor",
        "bits",
        "threads",
        "cache",
        "click",
    ):
        assert part in said


# --- on a GPU ----------------------------------------------------------------------------------


def test_on_a_gpu_as_on_the_cpu(folder):
    """On a GPU where there is one, else in Numba's simulator."""
    pytest.importorskip("numba_cuda")
    classes_file(samples=30)
    options = ("three.csv", "--layers", "3", "--epochs", "2", "--batch-size", "8", "--json")
    said = done("train", *options, "cuda.json", "--device", "cuda", "--output", "net")
    done("train", *options, "cpu.json", "--output", "other")
    records = [json.loads(Path(name).read_text()) for name in ("cuda.json", "cpu.json")]
    assert [record["device"] for record in records] == ["cuda", "cpu"]
    np.testing.assert_allclose(
        records[0]["history"]["loss"], records[1]["history"]["loss"], rtol=1e-9
    )
    np.testing.assert_allclose(
        nn.load("net").parameters, nn.load("other").parameters, rtol=1e-6, atol=1e-9
    )
    assert figures(
        done("evaluate", "net", "three.csv", "--held-out", "--device", "cuda")
    ) == figures(said)
    there, here = (
        np.array(
            [
                line.split(",")
                for line in done("predict", "net", "three.csv", "--device", device).splitlines()[1:]
            ],
            float,
        )
        for device in ("cuda", "cpu")
    )
    np.testing.assert_allclose(there, here, rtol=1e-9, atol=1e-12)


def test_info_names_the_gpu():
    pytest.importorskip("numba_cuda")
    (line,) = [line for line in done("info", "--system").splitlines() if line.startswith("gpu ")]
    assert driver.device_name() in line


NO_GPU = 'device="cuda" finds no usable NVIDIA driver or GPU'


@pytest.fixture
def no_gpu(monkeypatch):
    def require_gpu():
        raise nn.CudaError(NO_GPU)

    monkeypatch.setattr(driver, "require_gpu", require_gpu)


@pytest.mark.parametrize(
    "args",
    [
        ("train", "three.csv"),
        ("evaluate", "net", "three.csv"),
        ("predict", "net", "three.csv"),
        ("bench",),
    ],
    ids=lambda args: args[0],
)
def test_without_a_gpu_one_line(args, folder, no_gpu):
    classes_file()
    nn.Sequential([nn.Dense(3, activation="softmax")], 2).save("net")
    assert refused(*args, "--device", "cuda") == f"Error: {NO_GPU}\n"
    assert "'gpu' is not one of 'cpu', 'cuda'" in refused(*args, "--device", "gpu")


def test_info_says_why_there_is_no_gpu(no_gpu):
    assert f"gpu         none ({NO_GPU})" in done("info", "--system").splitlines()


# --- refusals ----------------------------------------------------------------------------------


def test_nothing_is_overwritten_without_force(folder):
    classes_file()
    done("train", "three.csv", "--epochs", "1", "--json", "figures.json")
    first = Path("three.safetensors").read_bytes()
    for name in ("three-2.safetensors", "three-3.safetensors"):
        said = done("train", "three.csv", "--epochs", "1")
        assert f"saved {name} (three.safetensors exists; --force replaces it)" in said
        assert said.splitlines()[-1] == f"numbanet evaluate {name} three.csv --held-out"
    assert Path("three.safetensors").read_bytes() == first
    error = refused("train", "three.csv", "--output", "three.safetensors")
    assert "three.safetensors exists" in error and "replace it with --force" in error
    assert "figures.json exists" in refused(
        "train", "three.csv", "--output", "new", "--json", "figures.json"
    )
    assert "figures.json exists" in refused(
        "evaluate", "three.safetensors", "three.csv", "--json", "figures.json"
    )
    assert "three.csv: this file is read" in refused(
        "predict", "three.safetensors", "three.csv", "--output", "three.csv"
    )
    old = Path("three.safetensors").read_bytes()
    done("train", "three.csv", "--epochs", "2", "--json", "figures.json", "--force")
    assert Path("three.safetensors").read_bytes() != old


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["digts"], "did you mean 'digits'"),
        (["none.csv"], "none.csv: No such file"),
        (["three.csv", "--optimizer", "adm"], "did you mean 'adam'"),
        (["three.csv", "--activation", "rellu"], "did you mean 'relu'"),
        (["three.csv", "--activation", "step"], "a step cannot be trained"),
        (["three.csv", "--loss", "cross_entrpy"], "did you mean 'cross_entropy'"),
        (
            ["three.csv", "--task", "regression", "--loss", "cross_entropy"],
            "cross_entropy is a loss for classes",
        ),
        (["three.csv", "--layers", "3,x"], "--layers must be"),
        (["three.csv", "--layers", "3,0"], "--layers must be"),
        (["three.csv", "--epochs", "-1"], "epochs must be"),
        (["three.csv", "--epochs", "many"], "not a valid integer"),
        (["three.csv", "--batch-size", "0"], "--batch-size must be"),
        (["three.csv", "--learning-rate", "nan"], "learning_rate must be"),
        (["three.csv", "--momentum", "0.9"], "Adam has no momentum"),
        (["three.csv", "--optimizer", "sgd", "--momentum", "1"], "momentum must be below 1"),
        (["three.csv", "--seed", "-1"], "--seed must be"),
        (["three.csv", "--seed", str(2**70)], "--seed must be below 2**63"),
        (["three.csv", "--threads", "0"], "threads must be"),
        (["three.csv", "--l2", "-1"], "L2 needs"),
        (["three.csv", "--output", "no/where"], "there is no folder"),
        (["three.csv", "--output", "."], "this is a folder"),
        (["three.csv", "--output", "new", "--json", "new"], "--json and --output are both new"),
        (["three.csv", "--colour", "red"], "No such option"),
        (
            ["three.csv", "--task", "regression", "--optimizer", "sgd", "--learning-rate", "1e9"],
            "diverged",
        ),
        (["text.csv"], "line 2, column 2: 'red' is not a finite number"),
        (["one.csv"], "hold a fifth out"),
        (["mixed.csv"], "line 3, column 'y': 'red' is not a number, others are"),
        (["names.csv", "--task", "regression"], "y holds names such as 'a'; drop --task"),
        (["one_name.csv"], "y has the one class 'a'; there must be two or more"),
        (["many.csv"], "y holds 60 different names, such as 'n0'; choose another column"),
        (["holes.csv"], "line 3, column 'a': '' is missing; drop such rows or fill them"),
        (["holes.csv", "--missing", "mean"], "line 4: the target is missing"),
        (["names.csv", "--target", "z"], "no column 'z'; the columns are a, y"),
        (["names.csv", "--target", "0"], "--target as a number must be"),
        (["names.csv", "--target", "3"], "no column 3, index 2 from 0; there are 2"),
        (["names.csv", "--columns", "a,b"], "no column 'b'; the columns are a, y"),
        (["names.csv", "--columns", "0"], "--columns as a number must be"),
        (["names.csv", "--delimiter", "::"], "delimiter must be one character, got '::'"),
        (["nan.npz", "--missing", "drop"], "--missing: for CSV files, not for nan.npz"),
        (["digits", "--target", "y"], "--target: for CSV files, not for digits"),
        (["nan.npz"], r"nan.npz: x has NaN at [1, 0]"),
        (["words.npz"], "words.npz"),
        (["empty.npz"], "empty.npz: x has no samples: its shape is (0, 3)"),
        (["notes.txt"], "a table is a .npz or a .csv file"),
        (["digits", "--task", "classes"], "--task is for files"),
        ([], "Missing argument"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_one_line_for_every_bad_training(options, message, folder):
    classes_file()
    Path("text.csv").write_text("1,2,0\n3,red,1\n")
    Path("one.csv").write_text("1,2,0\n")
    Path("notes.txt").write_text("hello")
    Path("mixed.csv").write_text("x,y\n1,2\n3,red\n")
    Path("names.csv").write_text("a,y\n" + "1,a\n2,b\n" * 5)
    Path("one_name.csv").write_text("a,y\n" + "1,a\n" * 5)
    Path("many.csv").write_text("a,y\n" + "".join(f"{i},n{i}\n" for i in range(60)))
    Path("holes.csv").write_text("a,y\n1,2\n,3\n4,\n5,6\n")
    np.savez("nan.npz", x=[[1.0], [np.nan], [3.0]] * 3, y=np.arange(9) % 2)
    np.savez("words.npz", x=[["a"], ["b"]], y=[0, 1])
    np.savez("empty.npz", x=np.zeros((0, 3)), y=np.zeros(0))
    assert message in refused("train", *options)


def test_one_line_for_every_bad_use(folder):
    x, _ = classes_file()
    done("train", "three.csv", "--epochs", "1")
    write_csv("wide.csv", np.ones((2, 5)))
    Path("broken").write_bytes(Path("three.safetensors").read_bytes()[:-9])
    Path("foreign").write_bytes(b"PK\3\4" * 30)
    np.savez("y.npz", y=[1.0])
    Path("names.csv").write_text("a,b,y\n1,2,a\n3,4,b\n")
    for args, message in [
        (["evaluate", "none", "three.csv"], "none: No such file"),
        (["evaluate", "broken", "three.csv"], "broken: "),
        (["evaluate", "foreign", "three.csv"], "foreign: "),
        (["evaluate", ".", "three.csv"], ".: Is a directory"),
        (["evaluate", "three.csv", "three.csv"], "three.csv: not a file of numbanet's"),
        (
            ["evaluate", "three.safetensors", "names.csv"],
            "the class 'a'; the network's are without",
        ),
        (
            ["predict", "three.safetensors", "x.npz", "--decimal", ","],
            "--decimal: for CSV files, not for x.npz",
        ),
        (
            ["evaluate", "three.safetensors", "wide.csv"],
            "wide.csv: x must have shape (samples, 2), got (2, 4)",
        ),
        (["evaluate", "three.safetensors", "digts"], "did you mean 'digits'"),
        (["evaluate", "three.safetensors"], "Missing argument"),
        (
            ["predict", "three.safetensors", "wide.csv"],
            "wide.csv: x must have shape (samples, 2), got (2, 5)",
        ),
        (["predict", "three.safetensors", "y.npz"], "y.npz: not an .npz file with the array x"),
        (["predict", "three.safetensors", "none.npz"], "none.npz: No such file"),
        (["predict", "three.safetensors", "foreign"], "a .csv or a .npz file"),
        (["predict", "three.safetensors", "digits"], "evaluate takes data sets by name"),
        (["info", "foreign"], "foreign: "),
        (["info"], "info needs a MODEL or --system"),
        (["info", "three.safetensors", "--system"], "info needs a MODEL or --system"),
        (["tarin"], "No such command"),
        (["--colour"], "No such option"),
    ]:
        assert message in refused(*args), args


# --- as a program ------------------------------------------------------------------------------


def program(*args, code="from numbanet.apps.cli import main; main()"):
    env = {**os.environ, "PYTHONPATH": SOURCES}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def test_as_a_program(folder):
    classes_file()
    process = program("train", "three.csv", "--epochs", "60")
    said, errors = process.communicate()
    assert (process.returncode, errors) == (0, "") and "saved three.safetensors" in said
    process = program("evaluate", "three.safetensors", "none.csv")
    said, errors = process.communicate()
    assert (process.returncode, said, errors) == (
        2,
        "",
        "Error: none.csv: No such file or directory\n",
    )


def test_as_a_module(folder):
    env = {**os.environ, "PYTHONPATH": SOURCES}
    command = [sys.executable, "-m", "numbanet", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (found.returncode, found.stdout) == (0, f"numbanet, version {nn.__version__}\n")


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error elsewhere")
def test_a_closed_pipe_does_not_stop_a_training(folder):
    classes_file()
    process = program("train", "three.csv", "--epochs", "60")
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(), errors) == (0, "")
    assert nn.load("three.safetensors").epoch == 60


def test_houses_without_their_file_say_where_they_come_from(folder, monkeypatch):
    monkeypatch.delenv("NUMBANET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(folder / "cache"))
    monkeypatch.setenv("HOME", str(folder))
    error = refused("train", "houses")
    assert "Kaggle, Melbourne housing snapshot, https://" in error
    assert re.search(r"NUMBANET_DATA .*, or put it at \S+melbourne.melb_data.csv", error)


def test_stopped_by_the_keyboard(folder):
    classes_file()
    process = program("train", "three.csv", "--epochs", "100000000")
    for line in process.stdout:
        if "epochs of" in line:
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "nothing was saved" in errors and "Traceback" not in errors
    assert os.listdir() == ["three.csv"]


def test_a_warmup_stopped_by_the_keyboard_says_what_is_kept(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(nn, "warmup", interrupt)
    result = run("warmup")
    assert result.exit_code == 130
    assert result.stderr == "\nstopped; what is compiled is kept, and another warmup goes on\n"


@pytest.mark.parametrize("models", ["", "lenet5,,"])
def test_a_warmup_of_networks_without_a_name_is_refused(models, folder):
    assert "--models names networks between commas, got " in refused("warmup", "--models", models)


def test_a_training_goes_on_from_its_checkpoints(folder):
    classes_file()
    common = "train", "three.csv", "--output"
    done(*common, "whole", "--epochs", "9")
    done(*common, "part", "--epochs", "4", "--checkpoint", "run")
    said = done(*common, "rest", "--epochs", "9", "--checkpoint", "run", "--resume")
    assert f"going on from {Path('run', 'epoch-000004.safetensors')}" in said
    assert sorted(os.listdir("run")) == [f"epoch-{k:06}.safetensors" for k in (7, 8, 9)]
    whole, rest = nn.load("whole"), nn.load("rest")
    assert rest.memory.tobytes() == whole.memory.tobytes() and rest.epoch == 9
    for args, message in [
        (["--resume"], "--resume goes on from the files in --checkpoint FOLDER; give both"),
        (["--checkpoint", "run"], "run holds the checkpoints of a training: --resume goes on"),
        (["--checkpoint", "run", "--resume", "--seed", "3"], "another network, with seed 0, not 3"),
        (["--checkpoint", "three.csv"], "--checkpoint three.csv is no folder"),
        (
            ["--checkpoint", "run", "--resume", "--layers", "7"],
            "holds another network, with layers",
        ),
    ]:
        assert message in refused(*common, "other", *args)


def test_stopped_by_the_keyboard_it_says_how_to_go_on(folder):
    classes_file()
    process = program("train", "three.csv", "--epochs", "100000000", "--checkpoint", "run")
    end = time.monotonic() + 60
    while time.monotonic() < end and not list(Path("run").glob("epoch-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; --resume goes on from run" in errors
    assert nn.load(sorted(Path("run").glob("epoch-*"))[-1]).epoch >= 1


def test_without_click(folder):
    process = program(
        "info",
        code="import sys; sys.modules['click'] = None; from numbanet.apps.cli import main; main()",
    )
    said, errors = process.communicate()
    assert (
        (process.returncode, said) == (2, "")
        and "pip install numbanet[cli]" in errors
        and errors.count("\n") == 1
    )


def test_the_package_does_not_import_the_command_line():
    code = """
import sys, numbanet
unwanted = {'click', 'sklearn', 'numbanet.apps.cli', 'numbanet.apps.cli.app'}
sys.exit(bool(unwanted & set(sys.modules)))
"""
    process = program(code=code)
    process.communicate()
    assert process.returncode == 0


# --- columns by name ------------------------------------------------------------------------------


def priced(path, names):
    """A table whose columns stand in this order; the price is 3 area + 40 rooms."""
    rng = np.random.default_rng(2)
    area, rooms = rng.uniform(50, 200, 80), rng.integers(1, 6, 80)
    columns = {"area": area, "rooms": rooms, "price": 3 * area + 40 * rooms, "id": np.arange(80)}
    rows = zip(*(columns[name] for name in names), strict=True)
    lines = [",".join(names), *(",".join(f"{v:.6g}" for v in row) for row in rows)]
    Path(path).write_text("\n".join(lines) + "\n")


def test_columns_are_found_by_the_names_they_had_in_training(folder):
    priced("a.csv", ["price", "area", "rooms"])
    said = done("train", "a.csv", "--target", "price", "--epochs", "200")
    net = nn.load("a.safetensors")
    assert net.feature_names == ("area", "rooms") and net.target_name == "price"
    priced("b.csv", ["id", "rooms", "price", "area"])
    assert figures(done("evaluate", "a.safetensors", "a.csv", "--held-out")) == figures(said)
    everything = figures(done("evaluate", "a.safetensors", "a.csv"))
    assert figures(done("evaluate", "a.safetensors", "b.csv")) == everything
    assert done("predict", "a.safetensors", "b.csv") == done("predict", "a.safetensors", "a.csv")
    priced("c.csv", ["rooms", "price", "id"])
    assert "no column 'area'" in refused("evaluate", "a.safetensors", "c.csv")
    assert "no column 'area'" in refused("predict", "a.safetensors", "c.csv")


def test_columns_are_chosen(folder):
    priced("a.csv", ["id", "price", "area", "rooms"])
    options = ["--target", "price", "--columns", "area,4"]
    said = done("train", "a.csv", *options, "--epochs", "2")
    assert said.splitlines()[-1].endswith("--held-out --target price --columns area,4")
    assert nn.load("a.safetensors").feature_names == ("area", "rooms")
    assert figures(done("evaluate", "a.safetensors", "a.csv", "--held-out")) == figures(said)
    rows = Path("a.csv").read_text().splitlines()[1:]
    Path("plain.csv").write_text("\n".join(row.replace(",", " ") for row in rows) + "\n")
    found = done(
        "predict", "a.safetensors", "plain.csv", "--columns", "3,4", "--delimiter", "space"
    )
    assert found == done("predict", "a.safetensors", "a.csv")


def test_equal_names_are_said_not_to_be_used(folder):
    priced("a.csv", ["area", "area", "price"])
    result = run("train", "a.csv", "--epochs", "20")
    assert "a.csv: the header has 'area' more than once" in result.stderr
    assert nn.load("a.safetensors").feature_names == ()


def test_what_is_read_is_never_replaced(folder):
    priced("a.csv", ["area", "rooms", "price"])
    content = Path("a.csv").read_text()
    done("train", "a.csv", "--epochs", "1")
    for command in (
        ["train", "a.csv", "--output", "a.csv", "--force"],
        ["train", "a.csv", "--json", "a.csv", "--force"],
        ["predict", "a.safetensors", "a.csv", "--output", "a.csv", "--force"],
        ["predict", "a.safetensors", "a.csv", "--output", "a.safetensors", "--force"],
        ["evaluate", "a.safetensors", "a.csv", "--json", "a.csv", "--force"],
    ):
        assert "this file is read; give another name" in refused(*command)
    priced("other.csv", ["area", "rooms", "price"])
    assert "the name of a table" in refused("train", "a.csv", "--output", "other.csv", "--force")
    assert Path("a.csv").read_text() == content


# --- diagnose ----------------------------------------------------------------------------------


def test_a_model_is_diagnosed(folder):
    classes_file("three.npz")
    done("train", "three.npz", "--epochs", 40, "--output", "net")
    assert done("diagnose", "net", "three.npz") == (
        "no trouble found\n"
        "looked at: parameters and outputs, scale of the inputs, constant inputs, constant "
        "targets, scale of the targets, learning rate, training, saturation, dead units, "
        "gradients, overfitting, rare classes, loss of a constant prediction\n"
    )
    regression_file("line.npz")
    done("train", "line.npz", "--epochs", 5, "--learning-rate", 3, "--output", "ill")
    assert "1. learning rate too high" in done("diagnose", "ill", "line.npz")


def test_a_diagnosis_is_drawn(folder):
    pytest.importorskip("matplotlib")
    classes_file("three.npz")
    done("train", "three.npz", "--epochs", 2, "--output", "net")
    text = done("diagnose", "net", "three.npz", "--plot", "F.png")
    assert text.endswith("wrote F.png\n") and Path("F.png").read_bytes()[:4] == b"\x89PNG"
    for args, words in (
        (["--plot", "F.png"], "F.png exists"),
        (["--plot", "F.xyz"], "--plot F.xyz: give a separate .png, .svg or .pdf file"),
        (["--loss", "poisson"], "Poisson needs a network that ends in exp"),
    ):
        result = run("diagnose", "net", "three.npz", *args)
        assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1


def test_an_ensemble_is_not_diagnosed(folder):
    classes_file("three.npz")
    nn.Ensemble([nn.Sequential([nn.Dense(3, "softmax")], 2)]).save("several")
    result = run("diagnose", "several", "three.npz")
    assert result.exit_code == 2 and "holds an ensemble; save one of its networks" in result.stderr
