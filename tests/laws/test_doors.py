"""Every layer goes through every door.

Doors are compiled code, files, pickles, ensembles, resumed training and profiles.

A row of DOORS takes a network with running means and parameters that are not those of a new one,
and gives its outputs by another way. A new door joins by its row, a new layer by its row in
examples.py.
"""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from checkers import close
from scale import Scale

import numbanet as nn
from examples import LAYERS, OPTIMIZERS, TRAINABLE, inputs, loss_named, named, network, targets

LOSS = loss_named("mean squared error")
CUSTOM = {"Scale": Scale}


def compiled(net, x, tmp_path):
    predict_row, outputs = net.compiled(), np.full((len(x), *net.output_shape), np.nan, net.dtype)
    for row, out in zip(x, outputs, strict=True):
        predict_row(np.ascontiguousarray(row), out)
    return outputs


def saved(net, x, tmp_path):
    net.save(tmp_path / "net.safetensors")
    return nn.load(tmp_path / "net.safetensors", CUSTOM).predict(x)


def pickled(net, x, tmp_path):
    return pickle.loads(pickle.dumps(net)).predict(x)


def ensemble(net, x, tmp_path):
    return nn.Ensemble([net]).predict(x)


def saved_ensemble(net, x, tmp_path):
    nn.Ensemble([net, pickle.loads(pickle.dumps(net))]).save(tmp_path / "both.safetensors")
    return nn.load(tmp_path / "both.safetensors", CUSTOM).predict(x)


def row_by_row(net, x, tmp_path):
    return np.concatenate([net.predict(x[i : i + 1]) for i in range(len(x))])


def read_only_inputs(net, x, tmp_path):
    x = x.copy()
    x.flags.writeable = False
    return net.predict(x)


def other_order(net, x, tmp_path):
    return net.predict(np.asfortranarray(x))


DOORS = [
    compiled,
    saved,
    pickled,
    ensemble,
    saved_ensemble,
    row_by_row,
    read_only_inputs,
    other_order,
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_every_door_gives_what_predict_gives(example, dtype, tmp_path):
    net, x = network(example, LOSS, dtype=dtype), inputs(example, 5, dtype=dtype)
    expected = net.predict(x)
    for door in DOORS:
        close(door(net, x, tmp_path), expected, 1e-13 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_a_network_that_was_away_trains_on_as_if_it_had_stayed(example, tmp_path):
    nets, x, y = [network(example, LOSS) for _ in range(3)], inputs(example, 10), targets(LOSS, 10)
    recipe = {"loss": LOSS.loss, "optimizer": OPTIMIZERS["adam"], "batch_size": 4, "verbose": 0}
    nets[0].fit(x, y, epochs=3, **recipe)
    for net in nets[1:]:
        net.fit(x, y, **recipe)
    nets[1].save(tmp_path / "net.safetensors")
    for away in (
        nn.load(tmp_path / "net.safetensors", CUSTOM),
        pickle.loads(pickle.dumps(nets[2])),
    ):
        away.fit(x, y, epochs=2, **recipe)
        assert away.predict(x).tobytes() == nets[0].predict(x).tobytes()
        assert away.parameters.tobytes() == nets[0].parameters.tobytes()


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_a_profile_names_the_layers_and_leaves_the_network_alone(example):
    net, x, y = network(example, LOSS), inputs(example, 6), targets(LOSS, 6)
    before = net.predict(x).tobytes(), net.gradient(x, y, LOSS.loss).tobytes()
    assert "Dense" in str(net.profile(x, y, LOSS.loss, batch_size=4))
    assert (net.predict(x).tobytes(), net.gradient(x, y, LOSS.loss).tobytes()) == before


def outputs_elsewhere(content, x):
    """What an unpickled network predicts in another process."""
    return pickle.loads(content).predict(x)


def test_a_pickled_network_predicts_in_another_process():
    net = nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.Dense(2)], 3, seed=5)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    net.fit(x, x[:, :2], verbose=0)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(outputs_elsewhere, pickle.dumps(net), x).result()
    assert found.tobytes() == net.predict(x).tobytes()
