"""benchmarks.peers: the contenders of small lines agree with numbanet in float64.

No time is asserted, and a peer that is not installed is left out.
"""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.peers import rounds, with_numbanet, work, worker

SAMPLES = {"mnist": 48, "regression": 48, "sequences": 48}
SMALLER = {
    "lstm-64": ((5, 28), (("lstm", 6), ("dense", 10, "softmax"))),
    "gru-64": ((5, 28), (("gru", 6), ("dense", 10, "softmax"))),
    "gru-32": ((9, 8), (("gru", 4), ("dense", 1, ""))),
    "one-lstm-64": ((5, 28), (("lstm", 6), ("dense", 10, "softmax"))),
    "one-gru-64": ((5, 28), (("gru", 6), ("dense", 10, "softmax"))),
    "784-30-10": ((28,), (("dense", 4, "sigmoid"), ("dense", 10, "sigmoid"))),
}
"""Shape of a sample and layers of lines that stand for the others of their kind."""
SLOW = {"compiled", "whole step", "traced"}
"""Variants that take long to compile."""


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A function that makes the case of a line in its small form."""
    monkeypatch.setattr(work, "SAMPLES", SAMPLES)

    def make(name):
        shape, layers = SMALLER[name]
        full = work.line(name)
        line = replace(full, input_shape=shape, layers=layers, batch=8 if full.trains else 0)
        rng = np.random.default_rng(1)
        for part in ("", "_test"):
            x = rng.normal(size=(SAMPLES[line.data], *shape)).astype(np.float32)
            y = rng.integers(0, 10, len(x)) if line.has_classes else x[:, -1, :1]
            np.save(tmp_path / f"{line.data}.x{part}.npy", x)
            np.save(tmp_path / f"{line.data}.y{part}.npy", y)
        with_numbanet.prepare(line, tmp_path)
        return work.load(tmp_path, line)

    return make


@pytest.mark.parametrize("name", SMALLER)
@pytest.mark.parametrize("peer", worker.PEERS)
def test_contenders_agree(peer, name, small):
    case = small(name)
    try:
        module = importlib.import_module(f"benchmarks.peers.{worker.PEERS[peer]}")
    except ImportError as error:
        pytest.skip(str(error))
    variants = {*module.variants(case.line)} - SLOW
    if not variants:
        pytest.skip("it does not take this line")
    for variant in variants:
        contender = module.start(case, variant, 1)
        measured = (worker.Training if case.line.trains else worker.Predicting)(contender, case)
        found = measured.check()
        if case.line.trains:
            assert abs(found["loss"] - found["expected"]) <= rounds.LOSS_OFF * found["expected"]
            assert found["off"] <= rounds.WEIGHTS_OFF
        else:
            assert found["off"] <= rounds.OUTPUTS_OFF


def test_the_arithmetic_of_a_recurrent_layer():
    line = work.line("lstm-64")
    w, u, dense = 28 * 256, 64 * 256, 64 * 10
    assert line.flops == 64 * 2 * (28 * (2 * w + 3 * u) + 3 * dense)
    assert work.line("one-lstm-64").flops == 2 * (28 * (w + u) + dense)
