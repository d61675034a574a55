"""A saved network comes back whole: the same outputs, the same training from there on.

Anything else is refused by name.
"""

import json
import os
import pickle
import threading
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
from scale import Scale

import numbanet as nn
from examples import LAYERS, OPTIMIZERS, PENALTIES, inputs, named
from numbanet.io import safetensors
from numbanet.network import config
from numbanet.nn.initializers import Glorot, He, Initializer, LeCun, Normal, Uniform, Zeros


def network(*, dtype="float32", seed=3, penalty=None, threads=None, activation="tanh", **options):
    return nn.Sequential(
        [nn.Dense(6, activation=activation, **options), nn.Dense(3, activation="softmax")],
        4,
        dtype,
        seed,
        penalty,
        threads,
    )


def data(samples=50, seed=5):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(samples, 4)).astype("float32"), generator.integers(0, 3, samples)


def there_and_back(net, folder, **options):
    net.save(folder / "net.safetensors")
    return nn.load(folder / "net.safetensors", **options)


def rewritten(path, change=None, tensors=None, **metadata):
    """The file with a valid checksum after a change to its description, tensors or metadata."""
    found, strings = safetensors.read(path)
    content = json.loads(strings["network"])
    if change is not None:
        change(content)
    safetensors.write(
        path,
        {**found, **tensors} if tensors else found,
        {**strings, "network": json.dumps(content), **metadata},
    )


@dataclass(frozen=True, eq=False)
class Doubled(nn.Activation):
    """A user's own activation, with a field."""

    factor: float = 2.0
    forward, backward = nn.Sigmoid.forward, nn.Sigmoid.backward


@dataclass(frozen=True)
class Thirds(Initializer):
    """A user's own initialiser."""

    def __call__(self, shape, generator):
        return np.full(shape, 1 / 3)


# --- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_every_layer_comes_back(example, tmp_path):
    before = [] if example.first else [Scale()]
    net = nn.Sequential([*before, *example.layers()], example.input_shape, "float64", 7)
    net.parameters = np.random.default_rng(1).normal(size=net.parameters.size)
    for k, built in enumerate(net.layers):
        for values in built.buffers.values():
            values[...] = np.random.default_rng([2, k]).uniform(0.5, 1.5, values.shape)
    net.save(tmp_path / "net")
    back = nn.load(tmp_path / "net", custom={"Scale": Scale})
    assert [type(built.layer) for built in back.layers] == [
        type(built.layer) for built in net.layers
    ]
    assert [built.shapes for built in back.layers] == [built.shapes for built in net.layers]
    np.testing.assert_array_equal(back.parameters, net.parameters)
    x = inputs(example, 5)
    np.testing.assert_array_equal(back.predict(x), net.predict(x))


def test_every_public_layer_is_in_the_table_of_known_classes():
    layers = {
        name
        for name in vars(nn)
        if isinstance(vars(nn)[name], type) and issubclass(vars(nn)[name], nn.Layer)
    }
    assert layers - {"Layer", "Activation"} <= set(config.known())


@pytest.mark.parametrize(
    "activation",
    [
        None,
        "sigmoid",
        "leaky_relu",
        "step",
        "softmax",
        nn.ReLU,
        nn.LeakyReLU(0.25),
        nn.PerNeuron(["tanh"] * 5 + ["relu"]),
        ["relu", "tanh", "relu", nn.LeakyReLU(0.5), nn.Sigmoid, "step"],
    ],
    ids=repr,
)
def test_every_way_to_give_an_activation(activation, tmp_path):
    net = network(activation=activation)
    back = there_and_back(net, tmp_path)
    assert list(map(repr, back.layers)) == list(map(repr, net.layers))
    for one, other in zip(net.layers, back.layers, strict=True):
        assert getattr(one.layer, "slope", None) == getattr(other.layer, "slope", None)
    x = data()[0]
    np.testing.assert_array_equal(back.predict(x), net.predict(x))


@pytest.mark.parametrize("penalty", [*PENALTIES, nn.L2(0.5, per="batch")], ids=repr)
def test_every_penalty(penalty, tmp_path):
    back = there_and_back(network(penalty=penalty), tmp_path)
    assert back.penalty == network(penalty=penalty).penalty
    back = there_and_back(nn.Sequential([nn.Dense(2, penalty=penalty)], 3), tmp_path)
    assert back.penalty_value() == nn.Sequential([nn.Dense(2, penalty=penalty)], 3).penalty_value()


@pytest.mark.parametrize(
    "initializer",
    ["he", He, Glorot(), LeCun(), Normal(0.5, 0.25), Uniform(-1.0, 2.0), Zeros()],
    ids=repr,
)
def test_every_initializer(initializer, tmp_path):
    net = network(initializer=initializer, bias_initializer="normal")
    back = there_and_back(net, tmp_path)
    net.initialize(11)
    back.initialize(11)
    np.testing.assert_array_equal(back.parameters, net.parameters)


@pytest.mark.parametrize(
    "initial",
    [np.full((4, 6), 0.5), np.full((4, 6), 0.5).tolist(), lambda shape, generator: np.ones(shape)],
    ids=["array", "list", "function"],
)
def test_initial_numbers_of_the_user_are_in_the_tensors_alone(initial, tmp_path):
    net = network(initializer=initial, bias_initializer=np.arange(6.0))
    back = there_and_back(net, tmp_path)
    np.testing.assert_array_equal(back.parameters, net.parameters)
    assert back.specs[0].initializer is None and back.specs[0].bias_initializer == "zeros"


def test_what_stands_beside_the_layers(tmp_path):
    net = nn.Sequential(
        [nn.Flatten, nn.Dense(np.int64(2))], (np.int64(3), 2), "float64", seed=2**40, threads=1
    )
    back = there_and_back(net, tmp_path)
    assert type(back) is nn.Sequential
    assert (back.input_shape, back.dtype, back.seed, back.threads) == ((3, 2), "float64", 2**40, 1)
    assert (back.epoch, back.optimizer) == (0, None)
    assert back.summary() == net.summary() and repr(back) == repr(net)
    assert back.layers[1].weights.base is not None and np.shares_memory(
        back.layers[1].weights, back.parameters
    )
    assert set(vars(back)) == set(vars(net))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_goes_on_bit_for_bit(optimizer, dtype, tmp_path):
    x, y = data()
    options = {"optimizer": optimizer, "batch_size": 8, "verbose": 0}
    straight = network(dtype=dtype, penalty=nn.L2(0.01))
    losses = straight.fit(x, y, epochs=5, **options).history["loss"]
    first = network(dtype=dtype, penalty=nn.L2(0.01))
    first.fit(x, y, epochs=2, **options)
    second = there_and_back(first, tmp_path)
    updates = -(-7 // optimizer.accumulate)  # in an epoch
    assert (second.optimizer, second.optimizer_steps, second.epoch) == (optimizer, 2 * updates, 2)
    assert second.fit(x, y, epochs=3, **options).history["loss"] == losses[2:]
    np.testing.assert_array_equal(second.parameters, straight.parameters)
    np.testing.assert_array_equal(second.optimizer_state, straight.optimizer_state)
    assert (
        (second.epoch, second.optimizer_steps)
        == (straight.epoch, straight.optimizer_steps)
        == (5, 5 * updates)
    )


def test_training_goes_on_with_running_means_and_dropout(tmp_path):
    def build():
        layers = [
            nn.Dense(8),
            nn.BatchNorm(),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Dense(3, activation="softmax"),
        ]
        return nn.Sequential(layers, 4, seed=2)

    x, y = data()
    options = {"optimizer": "adam", "batch_size": 16, "verbose": 0}
    straight, first = build(), build()
    straight.fit(x, y, epochs=4, **options)
    first.fit(x, y, epochs=2, **options)
    second = there_and_back(first, tmp_path)
    np.testing.assert_array_equal(second.predict(x), first.predict(x))
    second.fit(x, y, epochs=2, **options)
    np.testing.assert_array_equal(second.predict(x), straight.predict(x))


def test_saving_changes_nothing(tmp_path):
    x, y = data()
    net = network()
    net.fit(x, y, optimizer="adam", verbose=0)
    before = net.parameters.copy(), net.optimizer_state.copy(), net.epoch
    there_and_back(net, tmp_path)
    np.testing.assert_array_equal(net.parameters, before[0])
    np.testing.assert_array_equal(net.optimizer_state, before[1])
    assert net.epoch == before[2]
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(
    ("activation", "outputs", "names"),
    [("softmax", 3, ("a", "b, c", "ß")), ("sigmoid", 1, ("no", "yes")), ("softmax", 2, ())],
)
def test_the_names_of_the_classes_are_kept(activation, outputs, names, tmp_path):
    net = nn.Sequential([nn.Dense(outputs, activation=activation)], 4)
    assert net.class_names == ()
    net.class_names = list(names)
    for back in (there_and_back(net, tmp_path), pickle.loads(pickle.dumps(net))):
        assert back.class_names == net.class_names == names
    assert there_and_back(nn.Ensemble([net]), tmp_path).class_names == names
    assert net.predict_classes(np.ones((2, 4))).dtype == np.int64


@pytest.mark.parametrize(
    ("outputs", "names", "message"),
    [
        (3, ["a", "b"], "class_names must be 3 different names, got"),
        (3, ["a", "b", "a"], "3 different names"),
        (1, ["a", "b", "c"], "2 different names"),
        (3, ["a", "b", 3], r"class_names must be text, got \('a', 'b', 3\)"),
        (3, "abc", "class_names is a list of names, got 'abc'"),
        (3, 3, "class_names is a list of names, got 3"),
    ],
)
def test_names_that_do_not_fit_the_classes(outputs, names, message, tmp_path):
    net = nn.Sequential([nn.Dense(outputs)], 4)
    with pytest.raises(ValueError, match=message):
        net.class_names = names
    assert net.class_names == ()
    net.save(tmp_path / "net")
    rewritten(tmp_path / "net", lambda content: content.update(class_names=names))
    with pytest.raises(ValueError, match=f"net: .*{message}"):
        nn.load(tmp_path / "net")


def test_the_safetensors_package_reads_the_file(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    x, y = data()
    net = network()
    net.fit(x, y, optimizer=nn.SGD(0.1, momentum=0.5), verbose=0)
    net.save(tmp_path / "net")
    found = numpy.load_file(tmp_path / "net")
    assert set(found) == {"0.weights", "0.bias", "2.weights", "2.bias", "optimizer.velocity"}
    np.testing.assert_array_equal(found["2.weights"], net.layers[2].weights)


# --- classes of the user -----------------------------------------------------------------------


def test_own_classes_come_back_by_name(tmp_path):
    net = nn.Sequential([nn.Dense(3, activation=Doubled(4.0), initializer=Thirds()), Doubled], 2)
    back = there_and_back(net, tmp_path, custom={"Doubled": Doubled, "Thirds": Thirds})
    assert [built.layer.factor for built in back.layers[1:]] == [4.0, 2.0]
    assert back.specs[0].initializer == Thirds()


@pytest.mark.parametrize("missing", ["Doubled", "Thirds"])
def test_an_unknown_class_is_named_with_the_way_out(missing, tmp_path):
    net = nn.Sequential([nn.Dense(3, activation=Doubled(), initializer=Thirds())], 2)
    custom = {"Doubled": Doubled, "Thirds": Thirds}
    del custom[missing]
    with pytest.raises(ValueError, match=f"net.safetensors: .*unknown type '{missing}'.*custom="):
        there_and_back(net, tmp_path, custom=custom)


def test_custom_must_map_names_to_classes(tmp_path):
    network().save(tmp_path / "net")
    with pytest.raises(TypeError, match="custom maps names to classes"):
        nn.load(tmp_path / "net", custom={"Doubled": "os.system"})


def test_a_class_with_the_name_of_one_of_ours_is_refused(tmp_path):
    @dataclass(frozen=True, eq=False)
    class ReLU(nn.Activation):
        forward, backward = nn.ReLU.forward, nn.ReLU.backward

    with pytest.raises(
        ValueError, match="layer 0: the class ReLU has the name of one of numbanet's"
    ):
        nn.Sequential([ReLU()], 2).save(tmp_path / "net")
    assert not os.listdir(tmp_path)


def test_a_field_that_no_file_can_hold_is_refused(tmp_path):
    net = nn.Sequential([Doubled(np.ones((2, 3)))], 2)
    with pytest.raises(
        ValueError, match=r"layer 0 \(Doubled\), factor holds an array of shape \(2, 3\)"
    ):
        net.save(tmp_path / "net")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["Layer", "Activation", "Initializer", "Optimizer", "Penalty", "Op", "Sequential", "os.system"],
)
def test_only_the_table_is_looked_up(name, tmp_path):
    network().save(tmp_path / "net")
    rewritten(tmp_path / "net", lambda content: content["layers"].append({"type": name}))
    with pytest.raises(ValueError, match=f"unknown type '{name}'"):
        nn.load(tmp_path / "net")


# --- files that are no networks ----------------------------------------------------------------


FOREIGN = [b"", b"x", b"PK\3\4" + bytes(100), b"\x80\4\x95" + bytes(50), b"{}" * 30, bytes(500)]


@pytest.mark.parametrize("content", FOREIGN, ids=range(6))
def test_foreign_files_are_refused(content, tmp_path):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="foreign: "):
        nn.load(path)


def test_a_container_without_a_network_is_refused(tmp_path):
    safetensors.write(tmp_path / "other", {"a": np.ones(3)}, {"kind": "weights"})
    with pytest.raises(ValueError, match="other: a container without a network"):
        nn.load(tmp_path / "other")


def test_a_foreign_safetensors_file_is_refused_without_a_useless_hint(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"0.weights": np.ones((2, 2))}, tmp_path / "foreign", {"format": "numbanet"})
    with pytest.raises(ValueError, match=r"not written by numbanet \(no sha256\)$"):
        nn.load(tmp_path / "foreign")


def test_truncated_at_any_length(tmp_path):
    path = tmp_path / "net"
    network().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 29):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="net: "):
            nn.load(path)


def test_a_changed_byte_anywhere(tmp_path):
    path = tmp_path / "net"
    network().save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="net: "):
            nn.load(path)


CHANGES = {
    "no layers": (lambda c: c.update(layers=[]), "at least one layer"),
    "layers are a number": (lambda c: c.update(layers=5), ""),
    "a layer is a text": (lambda c: c.update(layers=["Dense"]), "a layer was expected"),
    "a layer is an optimiser": (
        lambda c: c["layers"].append({"type": "SGD"}),
        "a layer was expected",
    ),
    "an object without a type": (lambda c: c["layers"].append({"units": 3}), "without a type"),
    "a type that is a list": (lambda c: c["layers"].append({"type": ["Dense"]}), "without a type"),
    "an unknown field": (lambda c: c["layers"][0].update(colour=3), "Dense cannot be built"),
    "a field is missing": (lambda c: c["layers"][0].pop("units"), "Dense cannot be built"),
    "negative units": (lambda c: c["layers"][0].update(units=-3), "positive integer number"),
    "another number of units": (
        lambda c: c["layers"][0].update(units=7),
        r"tensor '0.weights' is float32 \(4, 6\)",
    ),
    "a penalty that is none": (lambda c: c["layers"][0].update(penalty="L2"), "a penalty is"),
    "another dtype": (lambda c: c.update(dtype="float64"), "the network needs float64"),
    "no dtype": (lambda c: c.update(dtype="int32"), "dtype must be"),
    "half a sample": (lambda c: c.update(input_shape=[2.5]), "input_shape"),
    "an enormous input": (lambda c: c.update(input_shape=[10**13]), ""),
    "an impossible input": (lambda c: c.update(input_shape=[10**30]), ""),
    "a negative seed": (lambda c: c.update(seed=-1), "seed must be"),
    "an epoch of text": (lambda c: c.update(epoch="1"), "epoch must be"),
    "an optimiser that is a layer": (
        lambda c: c.update(optimizer={"type": "ReLU"}),
        "an optimizer is",
    ),
    "an optimiser without its state": (
        lambda c: c.update(optimizer={"type": "Adam"}),
        "tensor 'optimizer.(mean|squares)' is",
    ),
    "a bad learning rate": (
        lambda c: c.update(optimizer={"type": "SGD", "learning_rate": "nan"}),
        "learning_rate",
    ),
    "a group of no layer": (
        lambda c: c.update(groups=[[9, 1.0, None]]),
        "layer of groups must be .* 9",
    ),
    "a group of less": (lambda c: c.update(groups=[[0, 1.0]]), "groups must be lists of a layer"),
    "a group of more": (lambda c: c.update(groups=[[0, 1, 2, 3]]), "groups must be lists of"),
    "no groups": (lambda c: c.update(groups=5), "groups must be a list, got 5"),
    "a group with a bad rate": (
        lambda c: c.update(groups=[[0, -1.0, None]]),
        "Dense: learning_rate_factor must be",
    ),
    "a key is missing": (lambda c: c.pop("seed"), "description must have"),
    "a key too many": (lambda c: c.update(more=1), "description must have"),
    "deep nesting": (lambda c: c.update(penalty=json.loads("[" * 900 + "]" * 900)), ""),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_description_is_refused(name, tmp_path):
    path = tmp_path / "net"
    network().save(path)
    change, message = CHANGES[name]
    rewritten(path, change)
    with pytest.raises(ValueError, match=rf"net: .*{message}"):
        nn.load(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"0.bias": np.zeros(5, "float32")},
            r"tensor '0.bias' is float32 \(5,\), the network needs float32 \(6,\)",
        ),
        ({"0.bias": np.zeros(6)}, r"tensor '0.bias' is float64 \(6,\), the network needs float32"),
        ({"0.bias": np.zeros((6, 1), "float32")}, "tensor '0.bias'"),
        ({"1.weights": np.zeros(2, "float32")}, "tensor '1.weights' belongs to no layer"),
        ({"optimizer.mean": np.zeros(2, "float32")}, "tensor 'optimizer.mean' belongs to no layer"),
    ],
    ids=["shape", "dtype", "axes", "extra", "optimiser"],
)
def test_wrong_tensors_are_refused(tensors, message, tmp_path):
    path = tmp_path / "net"
    network().save(path)
    rewritten(path, tensors=tensors)
    with pytest.raises(ValueError, match=f"net: .*{message}"):
        nn.load(path)


def test_a_missing_tensor_is_named(tmp_path):
    path = tmp_path / "net"
    network().save(path)
    tensors, strings = safetensors.read(path)
    del tensors["2.bias"]
    safetensors.write(path, tensors, strings)
    with pytest.raises(ValueError, match=r"net: tensor '2\.bias' is missing"):
        nn.load(path)


def test_another_version_and_a_description_that_is_not_json(tmp_path):
    path = tmp_path / "net"
    network().save(path)
    rewritten(path, version="1")
    with pytest.raises(ValueError, match=r"version '1'.*reads '2'"):
        nn.load(path)
    rewritten(path, version="2", network="{")
    with pytest.raises(ValueError, match="net: the network's description is not JSON"):
        nn.load(path)


ODD = [
    *(None, True, -1, 0, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", "x", "relu", "\0"),
    *([], [[]], [None], [1], ["a"], [[1, "a"]], [[[[[[]]]]]], {}, {"a": 1}, {"type": None}),
    *({"type": "Dense"}, {"type": "ReLU"}, {"type": "SGD"}, {"type": "L2", "strength": 1}),
    *({"type": "He"}, {"type": "Layer"}, {"type": "Optimizer", "learning_rate": 1}),
    {"type": "Dropout", "rate": [1]},
]


def places(value, path=()):
    """Where something stands in a description: the keys and indices on the way there."""
    yield path
    keys = value if isinstance(value, dict) else range(len(value) if type(value) is list else 0)
    for key in keys:
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("kind", [nn.Sequential, nn.Ensemble])
def test_only_value_errors_come_from_a_description(kind):
    activations = ["relu", nn.LeakyReLU(0.1)] * 3
    net = network(activation=activations, initializer=Normal(0.1), penalty=nn.L2(1))
    net.fit(*data(), optimizer="adam", verbose=0)
    net = net if kind is nn.Sequential else nn.Ensemble([net, network()])
    text, tensors = json.dumps(net.to_config()), net.tensors()
    for place in places(json.loads(text)):
        for value in ODD:
            inner = root = {"": json.loads(text)}
            for key in ("", *place)[:-1]:
                inner = inner[key]
            inner[("", *place)[-1]] = value
            with suppress(ValueError):
                kind.from_config(root[""], tensors, config.known(), "net")


def test_a_file_of_very_many_layers(tmp_path):
    path = tmp_path / "net"
    nn.Sequential([nn.ReLU()], 2).save(path)
    rewritten(path, lambda content: content.update(layers=[{"type": "ReLU"}] * 20_000))
    with pytest.raises(ValueError, match=r"net: a network has at most 10,000 layers, got 20,000"):
        nn.load(path)


def test_a_path_of_bytes(tmp_path):
    net, path = network(), os.fsencode(tmp_path / "net")
    net.save(path)
    np.testing.assert_array_equal(nn.load(path).parameters, net.parameters)
    (tmp_path / "net").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^/.*net: the header"):
        nn.load(path)
    for call in (net.save, nn.load):
        with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike"):
            call(3)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "none")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_save_keeps_the_old_file(moment, tmp_path, monkeypatch):
    path = tmp_path / "net"
    net = network()
    net.save(path)
    old = path.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    net.initialize(99)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, moment, interrupt)
        net.save(path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["net"]


def test_a_pickle_holds_the_parameters_once():
    net = nn.Sequential([nn.Dense(400), nn.BatchNorm(), nn.Dense(300)], 200)
    assert len(pickle.dumps(net)) < 1.05 * net.memory.nbytes
    net.fit(np.zeros((4, 200)), np.zeros((4, 300)), verbose=0)
    assert len(pickle.dumps(net.compiled())) < 1.1 * net.memory.nbytes


def test_a_file_written_while_another_thread_trains_is_whole(tmp_path):
    net = nn.Sequential([nn.Dense(300), nn.Dense(1)], 60)
    x = np.random.default_rng(0).normal(size=(50, 60))
    trainer = threading.Thread(target=lambda: net.fit(x, x[:, 0], epochs=600, verbose=0))
    trainer.start()
    while trainer.is_alive():
        net.save(tmp_path / "net")
        nn.load(tmp_path / "net")
    trainer.join()
