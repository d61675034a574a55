"""Training that is watched, interrupted and resumed: checkpoints, logs, limits."""

import csv
import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from interruptions import (
    OPTIONS,
    Stop,
    StopAt,
    X,
    Y,
    differing_stops,
    network,
    seconds_to_stop,
    state,
    states_after_kills,
    stopped_and_resumed,
)
from scale import Scale

import numbanet as nn
from numbanet.training.callbacks import (
    Checkpoint,
    EarlyStopping,
    Log,
    TensorBoard,
    TimeLimit,
    checkpoints,
)


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
        ValueError, match=r"epoch-000001.safetensors holds another network, with layers"
    ):
        net.fit(X, Y, resume=tmp_path, **OPTIONS)
    other = network(5)
    other.initialize(7)
    with pytest.raises(ValueError, match=r"holds another network, with seed 4, not 7"):
        other.fit(X, Y, resume=tmp_path, **OPTIONS)
    assert np.array_equal(net.memory, before) and net.epoch == 0
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is no folder"):
        net.fit(X, Y, resume=tmp_path / "file", **OPTIONS)
    net.fit(X, Y, verbose=0)  # and the network can be trained


@pytest.mark.parametrize("saving", [True, False])
def test_networks_of_an_ensemble_have_a_folder_each(saving, tmp_path):
    other = network(5)
    other.initialize(7)
    ensemble = nn.Ensemble([network(5), other])
    options = {"callbacks": iter([Checkpoint(tmp_path)])} if saving else {"resume": tmp_path}
    before = other.memory.copy()
    with pytest.raises(ValueError, match="an ensemble's networks need a folder each"):
        ensemble.fit(X, Y, **options, **OPTIONS)
    assert not any(one.epoch for one in ensemble.networks) and not list(tmp_path.iterdir())
    assert np.array_equal(other.memory, before)
    nn.Ensemble([network(5)]).fit(X, Y, callbacks=Checkpoint(tmp_path), **OPTIONS)
    seen = []
    ensemble.fit(X, Y, callbacks=(one for one in [lambda *given: seen.append(given)]), **OPTIONS)
    assert len(seen) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_at_any_moment_leaves_a_loadable_state(tmp_path):
    folder = tmp_path / "run"
    places = states_after_kills(folder, 4)
    assert all(b > a for a, b in zip([(0, 0), *places[:-1]], places, strict=True))
    # one killed between writing a state and removing an old one leaves that to the next
    callbacks = [Checkpoint(folder, keep=2, every_steps=1), StopAt(1)]
    with pytest.raises(Stop):
        network().fit(X, Y, epochs=10**6, callbacks=callbacks, resume=folder, **OPTIONS)
    assert len(checkpoints(folder)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for a child")
def test_ctrl_c_is_heard_at_once():
    assert sorted(seconds_to_stop(5))[2] <= 0.2


# --- within an epoch ------------------------------------------------------------------------------


def test_random_stops_within_epochs_resume_bit_for_bit():
    assert differing_stops(5, seed=1) == []


@pytest.mark.parametrize(
    ("at", "every_steps"), [(1, 1), (8, 8), (9, 9), (10, 10), (31, 4), (53, 53)]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": False, "augment": None},
        {"sample_weight": np.linspace(0.1, 2, 60), "validation_data": None},
        {"optimizer": nn.Adam(0.01, average=0.9, clip_norm=1.0)},
    ],
    ids=["shuffled", "in order", "weighted", "averaged"],
)
def test_a_training_goes_on_at_the_batch_where_it_stopped(at, every_steps, options, tmp_path):
    whole = network()
    history = whole.fit(X, Y, epochs=6, **{**OPTIONS, **options}).history
    net, last = stopped_and_resumed(tmp_path, at, every_steps, **options)
    newest = [path.name for path in tmp_path.iterdir()]
    assert f"epoch-{(at - 1) // 9 + 1:06}-{(at - 1) % 9 + 1:09}.safetensors" in newest or at == 31
    assert state(net) == state(whole)
    assert last == {name: values[-1] for name, values in history.items()}


@pytest.mark.parametrize("at", [1, 4, 5, 6, 14])
@pytest.mark.parametrize("options", [{"every_steps": 1}, {"every_minutes": 1e-9}])
def test_steps_of_several_batches_are_never_cut(at, options, tmp_path):
    chosen = {**OPTIONS, "optimizer": nn.Adam(0.01, accumulate=2)}  # 5 steps of 9 batches
    whole = network()
    whole.fit(X, Y, epochs=3, **chosen)
    with pytest.raises(Stop):
        callbacks = [Checkpoint(tmp_path, keep=100, **options), StopAt(at)]
        network().fit(X, Y, epochs=3, callbacks=callbacks, **chosen)
    for path in checkpoints(tmp_path):
        found = nn.load(path, {"Scale": Scale}).unfinished
        assert found is None or found.batches % 2 == 0 or found.batches == 9
    net = network()
    net.fit(X, Y, epochs=3, resume=tmp_path, **chosen)
    assert state(net) == state(whole)


def test_minutes_save_within_epochs_too(tmp_path):
    saver = Checkpoint(tmp_path, every_minutes=1e-9, keep=100)
    network().fit(X, Y, epochs=1, callbacks=saver, **OPTIONS)
    names = [path.name for path in checkpoints(tmp_path)]
    assert len(names) > 1 and names[-1] == "epoch-000001.safetensors"
    saver = Checkpoint(tmp_path / "b", every_minutes=1e9)
    network().fit(X, Y, epochs=1, callbacks=saver, **OPTIONS)
    assert [path.name for path in checkpoints(tmp_path / "b")] == [names[-1]]


@pytest.mark.parametrize("options", [{"batch_size": 6}, {"shuffle": False}, {"x": X[:52]}])
def test_an_epoch_goes_on_with_the_same_batches_alone(options, tmp_path):
    with pytest.raises(Stop):
        callbacks = [Checkpoint(tmp_path, every_steps=3), StopAt(4)]
        network().fit(X, Y, callbacks=callbacks, **OPTIONS)
    x = options.pop("x", X)
    with pytest.raises(
        ValueError, match="after 3 batches of 7 from 60 samples, shuffled, this fit"
    ):
        network().fit(x, Y[: len(x)], resume=tmp_path, **{**OPTIONS, **options})


def test_a_file_from_within_an_epoch_is_a_network_like_any_other(tmp_path):
    with pytest.raises(Stop):
        callbacks = [Checkpoint(tmp_path, every_steps=3), StopAt(4)]
        network().fit(X, Y, callbacks=callbacks, **OPTIONS)
    net = nn.load(checkpoints(tmp_path)[0], {"Scale": Scale})
    assert net.epoch == 0 and net.unfinished.batches == 3 and net.optimizer_steps == 3
    net.fit(X, Y, **OPTIONS)  # without resume, an epoch from its beginning
    assert net.epoch == 1 and net.unfinished is None and net.optimizer_steps == 12


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


class Writer:
    """In the place of tensorboardX.SummaryWriter."""

    written: ClassVar[list] = []

    def __init__(self, folder):
        self.written.append(folder)

    def add_scalar(self, name, value, place):
        self.written.append((name, value, place))

    def flush(self):
        self.written.append("flush")

    def close(self):
        self.written.append("close")


def test_tensorboard_is_told_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"needs tensorboardX; pip install numbanet\[tensorb"):
        TensorBoard(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=Writer))
    net, board = network(), TensorBoard(tmp_path, every_steps=5)
    history = net.fit(X, Y, epochs=2, callbacks=board, **OPTIONS).history
    written = Writer.written
    assert written[0] == str(tmp_path) and written[-2:] == ["flush", "close"]
    for name, values in history.items():
        found = [one[1:] for one in written if one[0] == name]
        assert found == [(values[0], 1), (values[1], 2)]
        steps = [one[2] for one in written if one[0] == f"steps/{name}"]
        assert steps == ([] if name.startswith("val_") else [5, 10, 15])


def test_tensorboards_files_can_be_read_by_its_own_reader(tmp_path):
    pytest.importorskip("tensorboardX")
    network().fit(X, Y, epochs=2, callbacks=TensorBoard(tmp_path), **OPTIONS)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert b"val_loss" in file.read_bytes()


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
        (lambda: Checkpoint("a", every_steps=0), "every_steps must be an integer of at least 1"),
        (lambda: Checkpoint("a", every_minutes=0), "every_minutes must be a finite number above 0"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
