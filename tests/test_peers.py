"""benchmarks.peers: what is printed, when it is measured again, and what Ctrl-C leaves;
benchmarks.scaling: what a step is made of.

No time is asserted. What the peers compute is checked by the program itself.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import numbanet as nn

ROOT = Path(__file__).parent.parent
SOURCES = str(Path(nn.__file__).parents[1])
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import scaling
    from benchmarks.peers import __main__ as program
    from benchmarks.peers import report, rounds, work
finally:
    sys.path.remove(str(ROOT))

ABOUTS = {
    "numbanet": {"name": "numbanet", "versions": {"numbanet": "0.1.0"}},
    "pytorch": {"name": "PyTorch", "versions": {"torch": "2.13.0+cpu"}},
}
for about in ABOUTS.values():
    about["variants"] = {line.name: ["fit"] for line in work.LINES}


def row(peer, seconds, **more):
    return {
        "peer": peer,
        "variant": "fit",
        "threads": 2,
        "quartiles": [0.9 * seconds, seconds, 1.1 * seconds],
        "inside": None,
        "note": "",
    } | more


def result(line, **more):
    return {
        "line": line.name,
        "title": line.title,
        "asked": line.asked,
        "flops": line.flops,
        "note": "",
        "peaks": {1: 1e11, 2: 2e11},
        "ratios": [1.9, 1.6, 1.95],
        "repeated": 0,
        "scores": {},
        "best": {"numbanet": 0, "pytorch": 1},
        "contenders": [row("numbanet", 2e-6), row("pytorch", 9e-6)],
    } | more


def test_every_ratio_that_is_asked_has_a_line():
    asked = {line.name: line.asked for line in work.LINES}
    wanted = {"784-30-10": 4.5, "lenet5-2048": 8, "batch-norm": 1.5, "one-lenet5": 2}
    wanted |= {"many-784-100-10": 1.2, "many-lenet5": 2.2, "784-512-512-10": 1.6, "conv20": 5.5}
    assert wanted.items() <= asked.items()
    assert {"layer-norm", "lp-pool", "avg-pool", "softmax-1000"} <= set(asked)


def test_a_row_has_the_ratio_beside_the_one_asked_and_the_peaks():
    text = report.table_row(result(work.line("784-30-10")), ABOUTS)
    assert "| 4.50× | 4.5× |" in text and "| 1.90 (1.60) |" in text
    assert text.count("|") == report.heads(ABOUTS).splitlines()[0].count("|")


def test_who_cannot_be_held_to_older_instructions_is_said():
    line = result(work.line("one-lenet5"))
    assert report.notes([line], {}, "avx2") == []
    line["contenders"].append(row("onnxruntime", 3e-6))
    assert report.notes([line], {}, "native") == []
    (note,) = report.notes([line], {}, "avx2")
    assert "ONNX Runtime cannot be held to AVX2" in note


def test_the_readme_gets_a_table_from_a_record():
    lines = [work.line("784-30-10"), work.line("inside-8-64-64-1")]
    alone = result(lines[1], best={"numbanet": 0}, contenders=[row("numbanet", 4e-7)])
    text = report.readme(
        {
            "names": {peer: about["name"] for peer, about in ABOUTS.items()},
            "versions": ABOUTS["numbanet"]["versions"] | ABOUTS["pytorch"]["versions"],
            "lines": [result(lines[0]), alone],
        }
    )
    assert text.splitlines() == [
        "| | numbanet | PyTorch 2.13 | best other / numbanet |",
        "|---|---|---|---|",
        f"| {lines[0].title} | **2 µs** | 9 µs | 4.5 |",
        f"| {lines[1].title} | **400 ns** | – | – |",
    ]


# --- turns that are measured again -------------------------------------------------------------


class Gauge:
    """Two threads together reach so much of one, measurement by measurement."""

    threads = (1, 2)

    def __init__(self, *ratios):
        self.ratios = iter(ratios)

    def measure(self):
        return {1: 1.0, 2: next(self.ratios)}


@pytest.mark.parametrize(
    ("ratios", "turns", "kept"),
    [
        ((1.9, 1.8), 1, 1),
        ((1.9, 1.2, 1.9, 1.9), 3, 3),
        ((1.2, 1.9, 1.95), 2, 2),
        ((1.0, 1.5, 1.6, 1.2, 1.9), 3, 2),
    ],
    ids=["quiet", "low after it", "low before it", "low all the time"],
)
def test_a_turn_is_repeated_while_the_peak_of_two_threads_is_low(ratios, turns, kept, monkeypatch):
    asked = []

    def ask(self, do, **details):
        asked.append(do)
        return {"figures": [float(len(asked))], "cores": 1.0}

    monkeypatch.setattr(rounds.Contender, "ask", ask)
    gauge, one = Gauge(*ratios), rounds.Contender("numbanet", "fit", 2)
    one.take_turn(gauge, 0.1, [gauge.measure()])
    assert asked == ["time"] * turns and one.figures == [kept] and one.repeated == turns - 1


# --- settings of the workers -------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
def test_a_worker_held_to_avx2_has_vectors_of_256_bits():
    code = (
        "from numbanet.backend.intrinsics import VECTOR_BYTES; "
        "from benchmarks.peers.peak import LANES; "
        "from numba.core.config import CPU_NAME; print(8 * VECTOR_BYTES, LANES, CPU_NAME)"
    )
    env = rounds.environment(1, "avx2")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"PYTHONPATH": os.pathsep.join([str(ROOT), SOURCES])},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["256", "8", "haswell"], done.stderr


def test_all_settings_of_instructions_reach_the_workers(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--own")
    env = rounds.environment(1, "avx2")
    assert env["XLA_FLAGS"].split()[:2] == ["--own", "--xla_cpu_max_isa=AVX2"]
    assert env["ATEN_CPU_CAPABILITY"] == "avx2" and env["OPENBLAS_CORETYPE"] == "Haswell"
    assert "NUMBA_CPU_NAME" not in rounds.environment(2).keys() - os.environ.keys()


# --- the program -------------------------------------------------------------------------------


def run(monkeypatch, capsys, *args):
    """Run the program here, with workers that only say what they are; (exit status, output)."""
    monkeypatch.setattr(rounds, "once", lambda do, peer: ABOUTS[peer])
    monkeypatch.setattr(sys, "argv", ["peers", *map(str, args)])
    status = 0
    try:
        program.main()
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().out


def test_ctrl_c_leaves_the_lines_that_are_done(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def measure(line, *rest):
        if line.name == "8-64-64-1":
            raise KeyboardInterrupt
        return result(line, repeated=3)

    monkeypatch.setattr(rounds, "measure", measure)
    figures, plot = tmp_path / "peers.json", tmp_path / "peers.png"
    args = ["--lines", "1,2,8-64-64-1,lenet5-128", "--peers", "pytorch"]
    args += ["--json", figures, "--plot", plot]
    status, shown = run(monkeypatch, capsys, *args)
    assert status == 130
    assert [line["line"] for line in json.loads(figures.read_text())["lines"]] == [
        "784-30-10",
        "784-100-10",
    ]
    assert shown.count("| 784-") == 2 and "8-64-64-1" not in shown and "LeNet" not in shown
    assert "FMA peak: 100 GFLOP/s on 1 t, 200 GFLOP/s on 2 t" in shown
    assert "784-30-10: 3 turns were measured again" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    status, shown = run(monkeypatch, capsys, "--readme", figures)
    assert status == 0 and shown.count("**2 µs**") == 2
    args = ["--lines", "8-64-64-1", "--peers", "pytorch", "--json", figures]
    assert run(monkeypatch, capsys, *args)[0] == 130
    assert json.loads(figures.read_text())["lines"] == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--seconds", "nan"], "must be positive"),
        (["--seconds", "inf"], "must be positive"),
        (["--threads", "x"], "--threads needs integers between commas, got 'x'"),
        (["--lines", ""], "no line ''; there are 1 to"),
        (["--json", "no/x.json"], "--json no/x.json: this file cannot be written"),
        (["--plot", "no/x.png"], "--plot no/x.png: this file cannot be written"),
        (["--plot", "x.txt"], "--plot x.txt: the name of a PNG file is needed"),
        (["--readme", "none.json"], "--readme none.json: no file of --json: "),
        (["--readme", "other.json"], "--readme other.json: no file of --json: "),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(args, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["peers", *args])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "args"),
    [("balance", ["x"]), ("balance", ["0"]), ("estimators", ["--rounds", "0"])],
)
def test_other_benchmarks_refuse_their_arguments_in_words(module, args, monkeypatch, capsys):
    if module == "estimators":
        pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["program", *args])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(f"benchmarks.{module}").main()
    assert "error: " in capsys.readouterr().err


def test_a_line_is_printed_when_it_is_done(monkeypatch, capsys):
    printed = []

    def measure(line, *rest):
        printed.append(capsys.readouterr().out)
        return result(line)

    monkeypatch.setattr(rounds, "measure", measure)
    run(monkeypatch, capsys, "--lines", "1,2", "--peers", "pytorch", "--isa", "avx2")
    assert "all held to AVX2" in printed[0] and "| line | numbanet" in printed[0]
    assert printed[1].startswith("| 784-30-10 ")


def test_the_workers_measure_a_line_and_the_peaks_around_it(tmp_path):
    path = tmp_path / "peers.json"
    args = ["--lines", "one-8-64-64-1", "--peers", "", "--seconds", "0.05", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *args, "--json", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), SOURCES])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = json.loads(path.read_text())["lines"]
    most = str(min(2, rounds.cores()))
    assert set(line["peaks"]) == {"1", most} and len(line["ratios"]) == 2
    assert all(one["note"] == "" and one["quartiles"][1] > 0 for one in line["contenders"])
    assert "| predict a row, 8-64-64-1 |" in done.stdout


# --- more cores --------------------------------------------------------------------------------


def test_a_step_on_more_cores_has_its_parts_from_the_plan():
    barrier, byte = 1e-6, 1e-9
    model = scaling.Model(work.line("8-64-64-1"), barrier, byte)
    one, four = model.parts(1), model.parts(4)
    assert one["samples"] > 0 and one["update"] > 0 and one["barriers"] == one["bytes"] == 0
    assert four["samples"] == pytest.approx(one["samples"] / 4)  # 32 samples: eight for each
    assert one["update"] / 4 <= four["update"] <= one["update"] and four["rest"] == one["rest"]
    assert four["barriers"] == pytest.approx(2 * barrier * 4 / 2)  # one phase and the update
    params, columns = 8 * 64 + 64 + 64 * 64 + 64 + 64 + 1, [(8, 64), (64, 64), (64, 1)]
    read = 3 / 4 * (params + sum(32 * (n_in / 4 + n_out) for n_in, n_out in columns))
    assert four["bytes"] == pytest.approx(4 * read * byte)


@pytest.mark.parametrize(
    ("args", "said"),
    [(["--lines", "one-lenet5"], "only lines that train"), (["--lines", "lenet"], "no line")],
)
def test_lines_that_cannot_be_predicted_are_refused(args, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling", *args])
    with pytest.raises(SystemExit):
        scaling.main()
    assert said in capsys.readouterr().err


@pytest.mark.skipif(rounds.cores() < 2, reason="what crosses between two CPUs is measured")
def test_a_prediction_stands_beside_what_two_threads_take(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "between_cores", lambda: (1e-7, 1e-10))
    monkeypatch.setattr(sys, "argv", ["scaling", "--lines", "8-64-64-1"])
    scaling.main()
    heads, _, row = capsys.readouterr().out.splitlines()[-3:]
    assert heads.count("|") == row.count("|") and "2 predicted | 2 measured" in heads
