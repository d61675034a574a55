"""benchmarks.gpu: every line runs in the simulator, tiny and without peers.

What the peers compute is tested on the CPU. No time is asserted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import numbanet as nn

pytest.importorskip("numba_cuda")
ROOT = Path(__file__).parent.parent
SOURCES = str(Path(nn.__file__).parents[1])
sys.path.insert(0, str(ROOT))
try:
    from benchmarks.gpu import by_hand, lines, measure, table
    from benchmarks.peers import work
finally:
    sys.path.remove(str(ROOT))


def program(*args, **env):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), SOURCES]), **env}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *args],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )


def test_every_line_runs(tmp_path):
    done = program("--dry", "--json", str(tmp_path / "gpu.json"), NUMBA_ENABLE_CUDASIM="1")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert (
        [result["line"] for result in record["lines"]] == lines.NAMES
        and record["dry"]
        and record["gpu"]["peak"] is None
    )
    for result in record["lines"]:
        (row,) = result["contenders"]
        assert (
            row["peer"] == "numbanet"
            and row["note"] == ""
            and row["quartiles"][1] > 0
            and row["check"]["off"] < 1e-2
        )
        assert result["line"] == "predict-lenet5" or 0 <= abs(row["result"]["score"]) < np.inf
    for name in lines.NAMES:
        assert done.stdout.count(f"**{lines.line(name).title}") == (name != lines.GOAL)
    assert done.stdout.count("| numbanet |") == 1 + len(lines.NAMES) and "Note" not in done.stdout


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        ((), {"NUMBA_ENABLE_CUDASIM": "1"}, "simulator has no speed"),
        (
            ("--dry",),
            {"NUMBA_ENABLE_CUDASIM": "0", "CUDA_VISIBLE_DEVICES": "-1"},
            "finds no usable NVIDIA driver or GPU",
        ),
        (("--lines", "lenet"), {"NUMBA_ENABLE_CUDASIM": "1"}, "no line 'lenet'"),
        (("--peers", "pytroch"), {"NUMBA_ENABLE_CUDASIM": "1"}, "unknown peers ['pytroch']"),
    ],
)
def test_what_is_refused(args, env, said):
    done = program(*args, **env)
    assert (
        done.returncode == 2
        and said in done.stderr
        and "Traceback" not in done.stderr
        and done.stdout == ""
    )


# --- peers, on the CPU -------------------------------------------------------------------------


def case(name, folder):
    """A line's small form with its data, the start, and what numbanet makes of it in float64."""
    line = lines.shrunk(lines.line(name))
    return lines.prepare(line, folder, True)[0]


def agrees(contender, case):
    """Check a contender as a run does, twice."""
    one = measure.Contender("peer", "variant", False)

    class module:
        start = staticmethod(lambda case, variant: contender)

    one.begin(module, case)
    assert one.note == ""
    loss = one.epoch(case.line, (case.x, case.y))["loss"]
    assert (
        one.measured.contender.run(case.line.steps) != loss
        and one.epoch(case.line, (case.x, case.y))["loss"] == loss
    )


@pytest.fixture(autouse=True)
def small():
    with lines.sizes(True):
        yield


@pytest.mark.parametrize(
    "name", [line.name for line in lines.LINES if line.trains and not line.has_images]
)
def test_the_network_by_hand_agrees(name, tmp_path):
    made = case(name, tmp_path)
    agrees(by_hand.Training(made, np), made)


@pytest.mark.parametrize("name", [line.name for line in lines.LINES if line.trains])
@pytest.mark.parametrize("variant", ["eager", "graph"])
def test_pytorch_agrees(name, variant, tmp_path, monkeypatch):
    """A graph's step is done again instead of played again."""
    torch = pytest.importorskip("torch")
    from benchmarks.gpu import with_pytorch

    monkeypatch.setattr(
        with_pytorch.Training,
        "_record",
        lambda self: SimpleNamespace(replay=torch.no_grad()(self._step)),
    )
    made = case(name, tmp_path)
    agrees(with_pytorch.Training(made, variant, "cpu"), made)


def test_pytorch_predicts_and_learns(tmp_path):
    pytest.importorskip("torch")
    from benchmarks.gpu import with_pytorch

    made = case("predict-lenet5", tmp_path)
    one = with_pytorch.Predicting(made, "eager", "cpu")
    one.repeat(2)
    np.testing.assert_allclose(one.outputs(), made.expected[0], atol=1e-5)
    made = case(lines.GOAL, tmp_path)
    one = with_pytorch.Training(made, "eager", "cpu")
    one.ready(made.x, made.y)
    one.reset()
    assert one.learn(0.0, 3)[0] == 1
    epochs, score = one.learn(1.1, 2)
    assert epochs == 2 and 0 <= score <= 1


def test_a_peer_that_fails_or_disagrees_is_noted(tmp_path):
    made = case("784-30-10", tmp_path)

    class wrong(by_hand.Training):
        def run(self, steps):
            return 2 * super().run(steps)

    for start, note in (
        (lambda case, variant: wrong(case, np), "disagrees: loss off by"),
        (lambda case, variant: 1 / 0, "did not start: ZeroDivisionError: division by zero"),
    ):
        one = measure.Contender("peer", "variant", False)
        one.begin(type("module", (), {"start": staticmethod(start)}), made)
        assert one.note.startswith(note)
        one.tried("time", lambda: pytest.fail("it was left out"))


# --- tables ------------------------------------------------------------------------------------


def row(peer, variant, seconds, aside=False, note=""):
    return {
        "peer": peer,
        "variant": variant,
        "aside": aside,
        "note": note,
        "check": {"off": 1e-6},
        "inside": None,
        "figures": [],
        "quartiles": [0.9 * seconds, seconds, 1.1 * seconds] if seconds else None,
        "result": {"loss": 0.5, "score": 0.9},
    }


def test_ratios_leave_out_what_is_not_compared():
    rows = [
        row("numbanet", "fit", 2e-3),
        row("pytorch", "eager", 1e-2),
        row("pytorch", "graph", 4e-3),
        row("pytorch", "eager, tf32", 1e-3, aside=True),
        row("cupy", "by hand", None, note="disagrees"),
    ]
    result = {
        "line": "784-30-10",
        "title": "a line",
        "asked": 5,
        "samples": 10,
        "flops": 2e9,
        "bytes": 1e9,
        "note": "",
        "contenders": rows,
    }
    names = {"numbanet": "numbanet", "pytorch": "PyTorch", "cupy": "CuPy"}
    assert table.summary([result], names).splitlines()[-1] == (
        "| a line | 5,000 samples/s | 5.00× | 2.00× (PyTorch, graph) | 5× |"
    )
    shown = table.details(result, names, {"peak": 4e12, "bandwidth": 1e12}).splitlines()
    assert len(shown) == 4 + 4 and "(not compared)" in shown[-1]
    assert "| 25.0% | 50.0% |" in shown[4]
    assert table.notes([result], {"jax": "why"}, names) == [
        "jax was left out: why",
        "784-30-10: CuPy (by hand) left out, disagrees",
    ]


def test_lines_are_chosen_by_number_or_name():
    assert lines.chosen(None) == lines.NAMES
    assert lines.chosen("1, to-99,784-30-10") == ["8-64-64-1", "to-99", "784-30-10"]


def test_the_work_of_a_line_is_counted():
    """784-30-10: weights and biases read twice, read and written in the update.

    Batch rows of inputs and activations.
    """
    line = lines.line("784-30-10")
    weights = 785 * 30 + 31 * 10
    assert line.flops == 10 * 2 * (2 * 784 * 30 + 3 * 30 * 10)
    assert lines.traffic(line) == 4 * (4 * weights + 10 * (2 * 784 + 6 * 40))
    lenet = lines.line("lenet5-128")
    assert (
        lines.activations(lenet)
        == 24 * 24 * 6 + 12 * 12 * 6 + 8 * 8 * 16 + 4 * 4 * 16 + 120 + 84 + 10
    )
    assert work.shapes(lenet)[0][0] == (5, 5, 1, 6)
