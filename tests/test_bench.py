"""The short speed check: its lines, its figures and its files.

No time is asserted, machines differ.
"""

import json
import math
import re

import pytest

from numbanet.apps import bench

pytest.importorskip("click")
from click.testing import CliRunner

from numbanet.apps.cli.app import cli


def run(*args):
    return CliRunner().invoke(cli, ["bench", *(str(arg) for arg in args)])


LINES = len(bench.TRAINED) + len(bench.PREDICT_BATCHES) * len(bench.PREDICTED)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What is printed, and the file of figures."""
    path = tmp_path_factory.mktemp("bench") / "speed.json"
    result = run("--seconds", 0.02, "--json", path)
    assert result.exit_code == 0, result.output
    return result.stdout, json.loads(path.read_text())


def test_the_table_has_all_lines(measured):
    shown = measured[0].splitlines()
    rows = [line for line in shown if line.startswith(("train", "predict"))]
    assert len(rows) == LINES == 11
    for name, *_ in bench.TRAINED:
        assert sum(name in line for line in rows) == 1
    for name, _ in bench.PREDICTED:
        assert sum(line.startswith("predict") and name in line for line in rows) == 2
    assert all(re.search(r"\d [µm]s +[\d,]+ +[\d.]+%", line) for line in rows)


def test_the_heading_says_where(measured):
    heading = measured[0].splitlines()[0]
    assert "threads" in heading and "numba " in heading and "numpy " in heading


def test_the_figures_are_positive_and_agree(measured):
    record = measured[1]
    assert record["peak"] > 0 and record["system"]["numba"] and len(record["lines"]) == LINES
    for line in record["lines"]:
        assert line["seconds"] > 0 and 0 < line["share"] < math.inf
        assert line["samples_per_second"] == pytest.approx(line["samples"] / line["seconds"])


def test_shares_count_every_product(measured):
    """784-30-10: forward and gradient for all weights, backward for the second layer's.

    Predict only forward.
    """
    record = measured[1]
    flops = {
        ("train", "784-30-10 sigmoid, SGD", 10): 10 * 2 * (2 * 784 * 30 + 3 * 30 * 10),
        ("predict", "784-100-10", 1024): 1024 * 2 * (784 * 100 + 100 * 10),
    }
    found = [
        line for line in record["lines"] if (line["kind"], line["name"], line["samples"]) in flops
    ]
    assert len(found) == 2
    for line in found:
        expected = flops[line["kind"], line["name"], line["samples"]]
        assert line["share"] * line["seconds"] * record["peak"] == pytest.approx(expected)


def test_bars_are_as_long_as_shares():
    def bar(share):
        return (
            bench.format_row(bench.Speed("a", "train", 1, 1e-3, 1000.0, 1.0, share))
            .partition("%")[2]
            .strip()
        )

    assert bar(0.0) == "" and bar(0.5) == "█" * 10 and bar(1.0) == bar(1.3) == "█" * 20
    assert bar(0.525) == "█" * 10 + "▌"


def test_no_line_is_above_the_peak_and_a_disturbed_peak_is_said(tmp_path, monkeypatch):
    """The peak is measured again for each line; here it was far too low at first, and then too."""
    measured = iter([1e3, *[2e3] * LINES])
    monkeypatch.setattr(bench, "peak_flops", lambda: next(measured))
    monkeypatch.setattr(bench, "_step", lambda network, x, y, seconds, batch, **recipe: 1.0)
    monkeypatch.setattr(bench, "_call", lambda call, seconds: 1.0)
    path = tmp_path / "speed.json"
    shown = run("--json", path).stdout
    shares = [float(found) for found in re.findall(r"([\d.]+)%", shown)]
    assert len(shares) == LINES and max(shares) == 100.0
    assert "The measurement was disturbed: the peak was measured at 0 GFLOP/s at first" in shown
    record = json.loads(path.read_text())
    assert max(line["share"] for line in record["lines"]) == 1.0
    assert record["peak"] == max(line["flops"] for line in record["lines"])
    assert bench.Peak(1e9).note == ""


def test_the_plot_is_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    few = [
        bench.Speed("a", "train", 10, 1e-3, 1e4, 1.0, 0.2),
        bench.Speed("b", "predict", 1, 1e-6, 1e6, 1.0, 0.1),
    ]
    monkeypatch.setattr(bench, "peak_flops", lambda: 1e9)
    monkeypatch.setattr(bench, "measure", lambda seconds, most: iter(few))
    path = tmp_path / "speed.png"
    result = run("--plot", path)
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = bench.bar_chart(few).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1e4, 1e6]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--seconds", 0), "--seconds"),
        (("--seconds", "inf"), "--seconds"),
        (("--plot", "speed.txt"), ".png"),
        (("--plot", "speed.png", "--json", "speed.png"), "give a separate"),
        (("--json", "nowhere/speed.json"), "no folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_measured(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "peak_flops", lambda: pytest.fail("measured"))
    result = run(*args)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and said in result.stderr
