"""Every field of every description is checked when it is built, and a wrong value never crashes.

Each class is probed in a child process: every field takes every odd value in turn. What can be
built is put into a small network, which is trained for two steps and asked to predict. Only
ValueError and TypeError may come, or DivergenceError from training. The classes are collected from
the package, so a new one is probed too; REQUIRED holds the arguments that have no default.
"""

import inspect
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields, is_dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import numbanet as nn
from numbanet.io import safetensors
from numbanet.nn import initializers, optimizers, regularizers, schedules

BASES = (
    nn.Layer,
    nn.Optimizer,
    nn.Loss,
    nn.Augment,
    regularizers.Penalty,
    initializers.Initializer,
    schedules.Schedule,
)
BARE = {
    "Layer",
    "Activation",
    "Optimizer",
    "Loss",
    "Penalty",
    "Initializer",
    "Schedule",
    "Pool2D",
    "Normalization",
    "Recurrent",
}
REQUIRED = {
    "Recurrent": {"units": 2},
    "Rescale": {"scale": 0.5},
    "StepDecay": {"rate": 0.1, "every": 2},
    "Exponential": {"rate": 0.1, "factor": 0.5},
    "Cosine": {"rate": 0.1},
    "OneCycle": {"rate": 0.1},
    "ReduceOnPlateau": {"rate": 0.1, "monitor": "loss"},
    "Function": {"function": lambda t: 0.1},
    "WarmUp": {"then": 0.1},
    "Dense": {"units": 3},
    "Conv1D": {"filters": 2, "kernel_size": 2},
    "Conv2D": {"filters": 2, "kernel_size": 2},
    "RNN": {"units": 3},
    "LSTM": {"units": 3},
    "GRU": {"units": 3},
    "Embedding": {"vocabulary": 3, "size": 2},
    "Bidirectional": {"layer": nn.RNN(3)},
    "PerNeuron": {"activations": ["tanh"] * 6},
    "Reshape": {"shape": (3, 2)},
    "L1": {"strength": 0.1},
    "L2": {"strength": 0.1},
    "Penalty": {"strength": 0.1},
    "Optimizer": {"learning_rate": 0.1},
    "SGD": {"momentum": 0.5},
}
SEQUENTIAL, FIT = "Sequential", "fit"
GIB = 1 << 30


def subclasses(kind):
    """The class and all that are made from it."""
    return {kind}.union(*(subclasses(one) for one in kind.__subclasses__()))


def described():
    """numbanet's public classes of descriptions that have fields, by name."""
    found = set().union(*(subclasses(base) for base in BASES))
    return {
        kind.__name__: kind
        for kind in sorted(found, key=lambda kind: kind.__name__)
        if kind.__module__.split(".")[0] == "numbanet"
        and not kind.__name__.startswith("_")
        and is_dataclass(kind)
        and fields(kind)
    }


CLASSES = described()


def odd_values():
    """Values that no field, or not every field, can take."""
    return [
        2**63,
        2**63 - 1,
        2**62,
        2**31,
        2**31 - 1,
        2**16,
        3,
        2,
        1,
        0,
        -1,
        -(2**63),
        10**400,
        -(10**400),
        10**5000,
        2.0,
        0.5,
        1.0,
        -0.5,
        1e300,
        1e39,
        1e-300,
        float("nan"),
        float("inf"),
        -float("inf"),
        1j,
        True,
        False,
        None,
        "x",
        "",
        "valid",
        "relu",
        b"x",
        np.int64(3),
        np.uint8(5),
        np.float32(0.1),
        np.float64(0.1),
        np.float64("nan"),
        np.bool_(True),
        np.bool_(False),
        np.array(3),
        np.array(0.5),
        np.array(True),
        np.ones(3),
        np.ones(6, int),
        np.ones((2, 2)),
        np.zeros(0),
        np.array("x"),
        np.array([None]),
        [],
        (),
        [1],
        [1, 2],
        (2, 2),
        (3, 2**31 - 1),
        (-1, 1),
        (1, 2, 3),
        [2.5, 1],
        (True, True),
        (2**63, 2**63),
        ((1, 1), (1, 1)),
        ((1, 2), 3),
        ((1,), (2,)),
        [[]],
        [None],
        ["x"],
        {},
        {"a": 1},
        {1},
        nn.Dense(2),
        nn.ReLU(),
        nn.ReLU,
        nn.L2(0.1),
        nn.L2,
        [nn.L2(0.1), 3],
        nn.initializers.He(),
        nn.Softmax(),
        nn.SGD(),
        object(),
        int,
        Fraction(1, 2),
        Decimal("0.5"),
        range(2),
    ]


# --- in a child process -----------------------------------------------------------------------


def network_for(layer, shape):
    """A layer between others, so that an error passes back and parameters follow."""
    before = [{3: nn.Conv2D(2, 1), 2: nn.Conv1D(2, 1), 1: nn.Dense(6)}[len(shape)]]
    before = [] if isinstance(layer, nn.Embedding) else before
    return nn.Sequential([*before, layer, nn.Flatten(), nn.Dense(2)], shape, seed=1)


def used(net, **options):
    """Train two steps, then predict; a loss that is not finite is a proper end of training."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(8, *net.input_shape)).astype("float32")
    if isinstance(net.specs[0], nn.Embedding):
        x[...] = 0
    y = generator.normal(size=(8, int(np.prod(net.output_shape)))).astype("float32")
    chosen = {
        "batch_size": 4,
        "threads": 1,
        "verbose": 0,
        "callbacks": [lambda *rest: True],
        "loss": "mean_squared_error",
    }
    with suppress(nn.DivergenceError):
        net.fit(x, y, **{**chosen, **options})
    net.predict(x, threads=1)
    net.predict(x[:1])


def use(one, shape):
    """Put a description where it belongs, and train."""
    small = nn.Sequential([nn.Dense(3, "tanh"), nn.Dense(2)], 3)
    if isinstance(one, nn.Layer):
        used(network_for(one, shape))
    elif isinstance(one, nn.Optimizer):
        used(small, optimizer=one)
    elif isinstance(one, schedules.Schedule):
        used(small, optimizer=nn.SGD(one))
    elif isinstance(one, nn.Loss):
        used(small, loss=one)
    elif isinstance(one, regularizers.Penalty):
        used(nn.Sequential([nn.Dense(3, penalty=one), nn.Dense(2)], 3, penalty=one))
    elif isinstance(one, initializers.Initializer):
        used(nn.Sequential([nn.Dense(3, None, one, one), nn.Dense(2)], 3))
    else:
        net = nn.Sequential([nn.Flatten(), nn.Dense(2)], (5, 4, 2))
        used(net, augment=one)


def shape_for(name):
    """An input that the layer takes with good arguments."""
    for shape in ((6,), (6, 2), (6, 6, 2)):
        try:
            network_for(CLASSES[name](**REQUIRED.get(name, {})), shape)
        except ValueError:
            continue
        return shape
    raise AssertionError(f"no input for {name}: add its arguments to REQUIRED")


def trials(name):
    """(field, a function of its value) for every field of a class, or every argument."""
    if name == SEQUENTIAL:
        layers = [nn.Dense(2)]
        for field in list(inspect.signature(nn.Sequential).parameters):
            if field != "device":
                yield (
                    field,
                    lambda value, field=field: used(
                        nn.Sequential(**{"layers": layers, "input_shape": 3, field: value})
                    ),
                )
    elif name == FIT:
        for field in (
            "epochs",
            "batch_size",
            "validation_split",
            "threads",
            "verbose",
            "augment",
            "loss",
            "optimizer",
        ):
            yield (
                field,
                lambda value, field=field: used(nn.Sequential([nn.Dense(2)], 3), **{field: value}),
            )
    else:
        kind, good = CLASSES[name], REQUIRED.get(name, {})
        shape = shape_for(name) if issubclass(kind, nn.Layer) and name not in BARE else None
        if name not in BARE:
            use(kind(**good), shape)

        def trial(value, field):
            one = kind(**{**good, field: value})
            if name not in BARE:
                use(one, shape)

        for field in fields(kind):
            yield field.name, lambda value, field=field.name: trial(value, field)


def probe(name):
    """Print, before each trial, what is tried, and behind it what came."""
    limited()
    np.seterr(all="ignore")
    for field, trial in trials(name):
        for value in odd_values():
            long = type(value) is int and abs(value) >> 64
            text = "a long int" if long else repr(value)
            print(f"\n{field}={' '.join(text.split())[:60]}", end="\t", flush=True)
            try:
                trial(value)
                print("fine", end="")
            except (ValueError, TypeError) as error:
                print("\\n" if "\n" in str(error) else "refused", end="")
            except BaseException as error:
                print(f"{type(error).__name__}: {str(error)[:80]}", end="")
    print("\ndone", flush=True)


def limited():
    """A machine of 1 GiB, so that nothing large is really made."""
    with suppress(ImportError):
        from numbanet.io import fields as kinds

        kinds.memory = lambda: GIB
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (12 * GIB, 12 * GIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# --- the tests --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, SEQUENTIAL, FIT])
def test_odd_values_are_refused_and_never_crash(name):
    code = f"import sys, test_fields; test_fields.probe({name!r})"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path},
    )
    lines = child.stdout.splitlines()
    assert child.returncode == 0 and lines[-1] == "done", (
        f"{name} ended with {child.returncode} at {lines[-1:]}: {child.stderr[-500:]}"
    )
    results = [line.split("\t") for line in lines[1:-1]]
    assert len(results) >= len(odd_values())
    wrong = [
        f"{name}, {trial}: {found}" for trial, found in results if found not in ("fine", "refused")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_has_a_kind(name):
    from numbanet.io.fields import kind_of

    assert [field.name for field in fields(CLASSES[name]) if kind_of(field) is None] == []


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_defaults_pass_their_own_checks_unchanged(kind):
    one = kind(**REQUIRED.get(kind.__name__, {}))
    for field in fields(kind):
        if field.name not in REQUIRED.get(kind.__name__, {}):
            found = getattr(one, field.name)
            assert found == field.default and type(found) is type(field.default)


# --- what is refused, what is normalised ------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda bias: nn.Dense(3, bias=bias),
        lambda bias: nn.Conv1D(3, 2, bias=bias),
        lambda bias: nn.Conv2D(3, 2, bias=bias),
    ],
    ids=["Dense", "Conv1D", "Conv2D"],
)
def test_a_bias_is_true_or_false(build):
    for bias in (2, 1, 0, None, 1.0, "yes", np.int64(1)):
        with pytest.raises(ValueError, match=r": bias must be True or False, got "):
            build(bias)
    assert build(np.bool_(False)).bias is False and build(np.bool_(True)).bias is True


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Dense(3), nn.Dense(2)], 4),
        ([nn.Conv1D(2, 2), nn.Flatten(), nn.Dense(2)], (5, 3)),
        ([nn.Conv2D(2, 2), nn.Flatten(), nn.Dense(2)], (5, 5, 3)),
    ],
    ids=["Dense", "Conv1D", "Conv2D"],
)
@pytest.mark.parametrize("bias", [2, 0, None, 1e300])
def test_a_file_with_another_bias_is_refused(layers, shape, bias, tmp_path):
    path = tmp_path / "net"
    nn.Sequential(layers, shape).save(path)
    tensors, strings = safetensors.read(path)
    content = json.loads(strings["network"])
    content["layers"][0]["bias"] = bias
    safetensors.write(path, tensors, {**strings, "network": json.dumps(content)})
    with pytest.raises(ValueError, match=r"net: .*bias must be True or False, got "):
        nn.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(threads=100000), "threads must be at most 1,024"),
        (lambda c: c.update(epoch=2**63 - 1), r"epoch must be below 2\*\*62"),
        (lambda c: c.update(input_shape=[2**31]), r"input_shape must be below 2\*\*31"),
        (lambda c: c["layers"][0].update(units=2**31 - 1), "more than|GiB"),
        (lambda c: c["layers"][0].update(activation=3), "an activation is"),
        (lambda c: c.update(optimizer={"type": "SGD", "nesterov": 2}), "nesterov must be True or"),
    ],
)
def test_a_file_with_a_wrong_field_is_refused(change, message, tmp_path, monkeypatch):
    path = tmp_path / "net"
    nn.Sequential([nn.Dense(3), nn.Dense(2)], 4).save(path)
    tensors, strings = safetensors.read(path)
    content = json.loads(strings["network"])
    change(content)
    safetensors.write(path, tensors, {**strings, "network": json.dumps(content)})
    monkeypatch.setattr("numbanet.io.fields.memory", lambda: GIB)
    with pytest.raises(ValueError, match=f"net: .*{message}"):
        nn.load(path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Dense(3, activation=3), "Dense: activation: an activation is a name"),
        (
            lambda: nn.Dense(3, activation=["relu", 3, "tanh"]),
            "Dense: activation: an activation is",
        ),
        (lambda: nn.Dense(3, initializer=3), "Dense: initializer: an initializer is a name"),
        (lambda: nn.Conv1D(3, 2, initializer="hee"), "initializer 'hee'; did you mean 'he'"),
        (lambda: nn.Conv2D(3, 2, penalty="x"), r"Conv2D: penalty: a penalty is L1\(…\)"),
        (
            lambda: nn.Conv2D(3, (2, 0)),
            r"Conv2D: kernel_size must be .* or two of them, got \(2, 0\)",
        ),
        (
            lambda: nn.Conv2D(3, 2, padding=(1, 2, 3)),
            r"Conv2D: padding is a number or .*, not \(1, 2",
        ),
        (lambda: nn.Dropout(1), "Dropout: rate must be below 1, got 1"),
        (lambda: nn.Dropout(True), "Dropout: rate must be a finite number of at least 0, got True"),
        (lambda: nn.BatchNorm(momentum=0), "BatchNorm: momentum must be a finite number above 0"),
        (lambda: nn.BatchNorm(momentum=1.5), "BatchNorm: momentum must be at most 1, got 1.5"),
        (lambda: nn.Reshape((2.5, 2)), "Reshape: every number in shape must be an integer"),
        (lambda: nn.SGD(10**400), r"SGD: learning_rate must be .*got 1000.*\(401 characters\)"),
        (lambda: nn.Dense(2**31), r"Dense: units must be below 2\*\*31, got 2147483648"),
        (lambda: initializers.Uniform(1, 0), "Uniform needs low ≤ high"),
        (lambda: initializers.Uniform(-1e308, 1e308), "finite difference"),
        (
            lambda: nn.Sequential([nn.Dense(2)], 2, threads=1025),
            "threads must be at most 1,024, got",
        ),
        (lambda: nn.Sequential([nn.Dense(2)], 2, dtype=None), "dtype must be float32 or float64"),
    ],
)
def test_messages(build, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_numpy_scalars_become_those_of_python():
    dense = nn.Dense(np.int64(3), bias=np.bool_(False))
    assert type(dense.units) is int and dense.config()["units"] == 3
    rate = nn.SGD(np.float32(0.1)).learning_rate
    assert type(rate) is float and rate == float(np.float32(0.1))
    assert repr(nn.L2(np.float64(0.5))) == "L2(strength=0.5, per=None)"
    assert nn.Conv2D(2, [np.int64(3), 2]).kernel_size == (3, 2)
    assert repr(nn.SGD(1)) == "SGD(learning_rate=1, momentum=0.0, nesterov=False)"
    hash(nn.Augment(shift=[1, 2]))
    assert nn.Dense(np.array(3), bias=np.array(True)).bias is True
    assert nn.MaxPool2D(np.array([3, 2])).size == (3, 2)
    assert nn.L2(np.array(0.5), per=np.array("sample")).per == "sample"
    assert type(nn.Huber(np.array(2.0)).delta) is float
    assert type(nn.SGD(0.1, np.float16(0.5), np.bool_(True)).nesterov) is bool


def test_a_network_beyond_the_memory_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr("numbanet.io.fields.memory", lambda: GIB)
    with pytest.raises(
        ValueError, match=r"parameters: 2,002,002,000 elements take 22.4 GiB, .* 1.0 GiB"
    ):
        nn.Sequential([nn.Dense(1000), nn.Dense(2 * 10**6)], 1)
    with pytest.raises(ValueError, match="more than any memory holds"):
        nn.Sequential([nn.ZeroPadding2D(2**31 - 1)], (4, 4, 1))
    with pytest.raises(ValueError, match=r"one sample's activations: .* GiB"):
        nn.Sequential([nn.ZeroPadding2D(2**15)], (4, 4, 1))
    net = nn.Sequential([nn.Dense(1)], 2**20)
    monkeypatch.setattr("numbanet.io.fields.memory", lambda: 1 << 27)
    with pytest.raises(ValueError, match=r"the activations of 128 samples: .* GiB"):
        net.gradient(np.zeros((128, 2**20), "uint8"), np.zeros(128))


# --- the user's own ---------------------------------------------------------------------------


def test_fields_without_a_kind_are_the_users_affair():
    from dataclasses import dataclass

    @dataclass(frozen=True, eq=False)
    class Plain(nn.Identity):
        anything: object = None

    @dataclass(frozen=True, eq=False)
    class Silent(nn.Dense):
        def __post_init__(self):
            """Without super."""

    @dataclass(frozen=True)
    class Own(nn.SGD):
        extra: float = 0.5

    assert Plain("x").anything == "x" and Plain(2).config() == {"anything": 2}
    used(nn.Sequential([Silent(3), Plain([1]), nn.Dense(2)], 3))
    with pytest.raises(ValueError, match="Silent: bias must be True or False"):
        nn.Sequential([Silent(3, bias=2), nn.Dense(2)], 3)
    with pytest.raises(ValueError, match="Own: extra must be a finite number of at least 0"):
        Own(0.1, extra=-1)
    assert optimizers.optimizer(Own).extra == 0.5
