"""Training that is watched, interrupted and resumed: checkpoints, logs, limits."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scale import Scale

import numbanet as nn
from numbanet.training.callbacks import Checkpoint, EarlyStopping, Log, TimeLimit, checkpoints

X = np.random.default_rng(0).normal(size=(60, 4, 4, 1)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 60)
OPTIONS = {
    "optimizer": nn.AdamW(nn.schedules.Cosine(0.01, epochs=12)),
    "batch_size": 7,
    "augment": nn.Augment(shift=1, noise=0.1),
    "validation_data": (X[:9], Y[:9]),
    "verbose": 0,
}


def network(units=5):
    layers = [
        Scale(),
        nn.Flatten(),
        nn.Dense(units, activation="tanh"),
        nn.BatchNorm(),
        nn.Dropout(0.3),
        nn.Dense(3, activation="softmax"),
    ]
    return nn.Sequential(layers, (4, 4, 1), seed=4)


class Stop(Exception):
    pass


def stop_after(last):
    def stop(epoch, logs, network):
        if epoch >= last:
            raise Stop

    return stop


@pytest.mark.parametrize("stops", [[1], [3], [5, 2], [1, 2, 3, 5], [6]])
def test_a_resumed_training_is_one_that_was_never_interrupted(stops, tmp_path):
    whole = network()
    whole.fit(X, Y, epochs=6, **OPTIONS)
    for stop in sorted(stops):
        with pytest.raises(Stop):
            callbacks = [Checkpoint(tmp_path / "run"), stop_after(stop)]
            network().fit(X, Y, epochs=6, callbacks=callbacks, resume=tmp_path / "run", **OPTIONS)
    net = network()
    history = net.fit(X, Y, epochs=6, resume=tmp_path / "run", **OPTIONS)
    assert net.epoch == 6 and len(history.seconds) == 6 - max(stops)
    assert net.memory.tobytes() == whole.memory.tobytes()
    assert net.optimizer_state.tobytes() == whole.optimizer_state.tobytes()


def test_only_the_newest_and_the_best_are_kept(tmp_path):
    scores = iter([0.5, 0.9, 0.7, 0.95, 0.1, 0.2])

    def score(epoch, logs, network):
        logs["score"] = next(scores)

    saver = Checkpoint(tmp_path, every=2, keep=2, monitor="score", mode="max")
    network().fit(X, Y, epochs=4, callbacks=[score, saver], **OPTIONS)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "best-000004-score=0.95.safetensors",
        "epoch-000002.safetensors",
        "epoch-000004.safetensors",
    ]
    net = network()
    net.fit(X, Y, epochs=6, callbacks=[score, saver], resume=tmp_path, **OPTIONS)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0].startswith("best-000004") and names[1:] == [
        "epoch-000004.safetensors",
        "epoch-000006.safetensors",
    ]
    assert nn.load(tmp_path / names[0], {"Scale": Scale}).epoch == 4


def test_resuming_from_nothing_begins(tmp_path):
    net, plain = network(), network()
    net.fit(X, Y, epochs=2, resume=tmp_path / "not there", **OPTIONS)
    plain.fit(X, Y, epochs=2, **OPTIONS)
    assert net.memory.tobytes() == plain.memory.tobytes()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    network(5).fit(X, Y, callbacks=Checkpoint(tmp_path), **OPTIONS)
    net = network(6)
    before = net.memory.copy()
    with pytest.raises(
        ValueError, match=r"epoch-000001.safetensors holds another network: its lay"
    ):
        net.fit(X, Y, resume=tmp_path, **OPTIONS)
    assert np.array_equal(net.memory, before) and net.epoch == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        net.fit(X, Y, resume=tmp_path / "file", **OPTIONS)
    net.fit(X, Y, verbose=0)  # and the network can be trained


TRAINING = """
import sys
sys.path.insert(0, {tests!r})
from test_checkpoints import *
net = network()
net.fit(X, Y, epochs=10_000, callbacks=Checkpoint({folder!r}, keep=2), resume={folder!r}, **OPTIONS)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_at_any_moment_leaves_a_loadable_state(tmp_path):
    folder = str(tmp_path / "run")
    script = TRAINING.format(tests=os.path.dirname(__file__), folder=folder)
    epochs = []
    for k in range(4):
        child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        wanted, end = (epochs[-1] if epochs else 0) + 2, time.monotonic() + 120
        while time.monotonic() < end and child.poll() is None:
            found = checkpoints(folder)
            if found and int(found[-1].stem[6:]) >= wanted:
                break
            time.sleep(0.002 * (k + 1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        epochs.append(nn.load(checkpoints(folder)[-1], {"Scale": Scale}).epoch)
    assert all(b >= a + 2 for a, b in zip([0, *epochs[:-1]], epochs, strict=True))
    assert len(checkpoints(folder)) <= 3


# --- logs and limits ------------------------------------------------------------------------------


def test_metrics_are_logged(tmp_path):
    both = [Log(tmp_path / "run.csv"), Log(tmp_path / "run.jsonl")]
    net = network()
    history = net.fit(X, Y, epochs=3, callbacks=both, **OPTIONS).history
    history2 = net.fit(X, Y, epochs=1, callbacks=both, **OPTIONS).history
    with open(tmp_path / "run.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    for name, values in history.items():
        expected = values + history2[name]
        assert [float(row[name]) for row in rows] == expected == [line[name] for line in lines]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"run.csv has the columns epoch,loss.*, this training"):
        net.fit(X, Y, callbacks=both[0], verbose=0)
    with pytest.raises(ValueError, match=r"give a file \.csv or \.jsonl"):
        Log("run.txt")


def test_a_time_limit_ends_after_the_epoch():
    history = network().fit(X, Y, epochs=10_000, callbacks=TimeLimit(0.2), **OPTIONS)
    assert 1 <= len(history.seconds) < 10_000
    assert len(network().fit(X, Y, epochs=9, callbacks=TimeLimit(1e-9), **OPTIONS).seconds) == 1


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"mode": "min"}, 4),
        ({"mode": "max"}, 5),
        ({"mode": "min", "min_delta": 0.15}, 3),
        ({"mode": "max", "min_delta": 0.5}, 3),
    ],
)
def test_what_counts_as_an_improvement(options, epochs):
    scores = iter([1.0, 0.9, 1.1, 1.0, 1.0, 1.0, 1.0])

    def score(epoch, logs, network):
        logs["score"] = next(scores)

    stopping = EarlyStopping("score", patience=2, **options)
    history = network().fit(X, Y, epochs=7, callbacks=[score, stopping], **OPTIONS)
    assert len(history.seconds) == epochs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EarlyStopping(mode="up"), 'EarlyStopping: mode is "auto", "min" or "max"'),
        (lambda: EarlyStopping(patience=-1), "patience must be an integer of at least 0"),
        (lambda: EarlyStopping(min_delta=-1), "min_delta must be a finite number of at least 0"),
        (lambda: TimeLimit(0), "seconds must be a finite number above 0"),
        (lambda: Checkpoint("a", every=0), "every must be an integer of at least 1"),
        (lambda: Checkpoint("a", keep=0), "keep must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
