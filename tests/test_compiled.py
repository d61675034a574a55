"""A compiled network gives what predict gives, inside the user's own compiled loops."""

import ctypes
import gc
import inspect
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.runtime import _nrt_python

import numbanet as nn
from numbanet import compiled as c
from numbanet.network.handle import HEADER


def network(dtype="float32"):
    mixed = ["tanh", "relu"] * 3 + ["sigmoid"]
    layers = [
        nn.Conv2D(3, 3, activation="relu"),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dense(7, activation=mixed),
        nn.Dense(4, activation="softmax"),
    ]
    return nn.Sequential([nn.Rescale(1 / 255), *layers], (8, 9, 2), dtype=dtype, seed=3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("x_dtype", ["float32", "float64", "uint8"])
def test_rows_in_a_parallel_loop_equal_predict(dtype, x_dtype):
    net = network(dtype)
    x = (np.random.default_rng(0).random((33, 8, 9, 2)) * 255).astype(x_dtype)
    predict_row = net.compiled()

    @numba.njit(parallel=True)
    def every(x, out):
        for i in numba.prange(len(x)):
            predict_row(x[i], out[i])

    out = np.empty((33, 4), dtype)
    every(x, out)
    np.testing.assert_allclose(out, net.predict(x), rtol=1e-5 if dtype == "float32" else 1e-12)


def test_later_training_does_not_reach_it():
    net = nn.Sequential([nn.Dense(3)], 2)
    predict_row, row, out = net.compiled(), np.ones(2, np.float32), np.zeros(3, np.float32)
    before = net.predict(row[None])[0]
    net.parameters[:] = 0
    predict_row(row, out)
    assert np.array_equal(out, before) and not np.array_equal(out, net.predict(row[None])[0])


def test_a_row_of_the_wrong_size_is_an_error():
    predict_row = nn.Sequential([nn.Dense(3)], 2).compiled()
    with pytest.raises(ValueError, match="another size"):
        predict_row(np.ones(3, np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="another size"):
        predict_row(np.ones(2, np.float32), np.zeros(4, np.float32))


def test_a_network_without_kernels_copies():
    out = np.zeros(6, np.float32)
    nn.Sequential([nn.Flatten()], (2, 3, 1)).compiled()(np.arange(6, dtype=np.float32), out)
    assert out.tolist() == [0, 1, 2, 3, 4, 5]


IN, OUT = np.ones(2, np.float32), np.zeros(3, np.float32)
READ_ONLY = np.zeros(3, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("row", "out", "message"),
    [
        (IN, READ_ONLY, r"out of .* that can be written to, got readonly array\(float32"),
        (IN, np.zeros(3, np.int64), r"out of .* float32, float64 .*, got array\(int64"),
        (IN, np.zeros(3, complex), r"out of .*, got array\(complex128"),
        (IN, np.zeros(6, np.float32)[::2], r"out of .* C-contiguous .*, got array\(float32, 1d, A"),
        (np.ones(4, np.float32)[::2], OUT, r"row of .* C-contiguous .*, got array\(float32, 1d, A"),
        (np.ones(2, complex), OUT, r"row of .* integers, got array\(complex128"),
        (np.ones(2, np.float16), OUT, r"row of .* integers, got array\(float16"),
        (1.0, OUT, "row of .* integers, got float64"),
    ],
)
def test_arrays_that_it_does_not_take(row, out, message):
    predict_row = nn.Sequential([nn.Dense(3)], 2).compiled()

    @numba.njit
    def user(row, out):
        predict_row(row, out)

    with pytest.raises(TypeError, match=message) as caught:
        predict_row(row, out)
    assert "\n" not in str(caught.value)
    with pytest.raises(numba.TypingError, match=message):
        user(row, out)
    for call in (predict_row, user):
        with pytest.raises((TypeError, numba.TypingError), match="argument"):
            call(IN)
    assert not np.any(out)


def test_arrays_that_it_takes():
    net = nn.Sequential([nn.Dense(3)], 2)
    predict_row, expected = net.compiled(), net.predict(IN[None])[0]
    for row in (IN, IN.astype(int), IN.reshape(1, 2), IN.astype("float64")):
        for dtype in ("float32", "float64"):
            out = np.zeros((3, 1), dtype)
            predict_row(row, out=out)
            np.testing.assert_array_equal(out[:, 0], expected)


def test_networks_of_a_dtype_are_of_one_type():
    """So they can be arguments, and elements of a tuple that is indexed in a loop."""
    nets = [nn.Sequential([nn.Dense(k, activation="tanh"), nn.Dense(3)], 2) for k in (4, 5, 600)]
    predict_rows = tuple(net.compiled() for net in nets)

    @numba.njit
    def call(predict_row, out):
        predict_row(np.ones(2, np.float32), out)

    @numba.njit
    def call_number(k, out):
        predict_rows[k](out=out, row=np.ones(2, np.float32))

    for k, net in enumerate(nets):
        for user, which in ((call, predict_rows[k]), (call_number, k)):
            out = np.zeros(3, np.float32)
            user(which, out)
            np.testing.assert_allclose(out, net.predict(IN[None])[0], rtol=1e-6)
    assert len(call.signatures) == 1


def test_it_is_compiled_once_and_freed():
    first = nn.Sequential([nn.Dense(3)], 2).compiled()
    first(IN, OUT)
    code = first.function.overloads, first._call.overloads
    before, freed = [len(one) for one in code], []
    for k in range(20):
        predict_row = nn.Sequential([nn.Dense(k + 1), nn.Dense(3)], 2).compiled()
        predict_row(IN, OUT)
        freed.append(weakref.ref(predict_row))
    del predict_row
    gc.collect()
    assert [len(one) for one in code] == before and not any(one() for one in freed)


def test_code_that_calls_it_keeps_it():
    net = nn.Sequential([nn.Dense(3)], 2)
    predict_row = net.compiled()

    @numba.njit
    def user(out):
        predict_row(np.ones(2, np.float32), out)

    user(OUT)
    kept = weakref.ref(predict_row)
    predict_row = None
    gc.collect()
    assert kept() is not None
    del user


def call_in_child(pickled):
    """In a child process: what a pickled function writes."""
    out = np.zeros(4, np.float32)
    pickle.loads(pickled)(np.ones((8, 9, 2), np.float32), out)
    return out


def test_it_is_pickled_with_its_network_and_so_is_code_that_calls_it():
    net = network()
    expected = net.predict(np.ones((1, 8, 9, 2), np.float32))[0]
    predict_row = net.compiled()
    net.parameters[:] = 0

    @numba.njit
    def user(row, out):
        predict_row(row, out)

    user(np.ones((8, 9, 2), np.float32), np.zeros(4, np.float32))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for function in (predict_row, user):
            found = pool.submit(call_in_child, pickle.dumps(function)).result(timeout=300)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "compiled <Sequential" in repr(predict_row)


def test_a_sample_too_large_for_the_stack_is_refused():
    with pytest.raises(ValueError, match=r"call predict, or numbanet\.compiled"):
        nn.Sequential([nn.Dense(400_000)], 1).compiled()


def test_a_caller_is_never_cached_on_disk():
    predict_row = nn.Sequential([nn.Dense(1)], 1).compiled()

    @numba.njit(cache=True)
    def user(row, out):
        predict_row(row, out)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        user(np.ones(1, np.float32), np.zeros(1, np.float32))
    assert any("dynamic globals" in str(one.message) for one in seen)


def test_nothing_is_allocated_in_a_call():
    predict_row = nn.Sequential([nn.Dense(16, activation="tanh"), nn.Dense(1)], 8).compiled()

    @numba.njit
    def many(row, out, calls):
        for _ in range(calls):
            predict_row(row, out)

    row, out = np.ones(8, np.float32), np.zeros(1, np.float32)
    many(row, out, 1)
    _nrt_python.memsys_enable_stats()
    allocations = []
    for calls in (1, 1000):
        before = numba.core.runtime.rtsys.get_allocation_stats()
        many(row, out, calls)
        allocations.append(numba.core.runtime.rtsys.get_allocation_stats().alloc - before.alloc)
    _nrt_python.memsys_disable_stats()
    assert allocations[0] == allocations[1]


# --- numbanet.compiled ----------------------------------------------------------------------------

SMALL = [nn.Dense(5, activation="tanh"), nn.Dense(3)]


class Call:
    """Arguments that fit a network of 2 inputs and 3 outputs, by name."""

    def __init__(self, **options):
        options = {"loss": "mean_squared_error", "optimizer": "adam", "hvp": True, **options}
        self.network = nn.Sequential(SMALL, 2, "float64", seed=4)
        self.model = self.network.handle(**options)
        n = self.network.parameters.size
        self.params, self.work = self.network.memory.copy(), np.zeros(c.work_size(self.model))
        self.row, self.out = np.array([0.5, -1.0]), np.zeros(3)
        self.x, self.y = self.row, np.ones(3)
        self.dout, self.drow = np.ones(3), np.zeros(2)
        self.dparams, self.grads = np.zeros(n), np.ones(n)
        self.vrow, self.vparams = np.ones(2), np.ones(n)
        self.hrow, self.hparams = np.zeros(2), np.zeros(n)
        self.state, self.t = np.zeros(2 * n), 1

    def __call__(self, function, **changes):
        names = list(inspect.signature(function.py_func).parameters)
        arguments = {**vars(self), **changes}
        names = [name for name in names if name in arguments]
        return function(*(arguments[name] for name in names))


FUNCTIONS = {
    one.__name__: one
    for one in (c.forward, c.check, c.vjp, c.pullback, c.jvp, c.hvp, c.loss_gradient, c.update)
}


def other_process():
    model = Call().model.copy()
    model[HEADER.token] += 2
    return model


def stale_code():
    model = Call().model.copy()
    model[HEADER.magic] += 1
    return model


WRONG = [
    ("forward check vjp jvp hvp", {"row": np.zeros(3)}, "row has another size"),
    ("forward check jvp", {"out": np.zeros(4)}, "out has another size"),
    ("vjp pullback jvp hvp", {"dout": np.zeros(2)}, "out has another size"),
    ("jvp", {"drow": np.zeros(5)}, "has another size than row"),
    ("hvp", {"vrow": np.zeros(5)}, "has another size than row"),
    ("hvp", {"hrow": np.zeros(5)}, "has another size than row"),
    ("jvp", {"dparams": np.zeros(5)}, "another size than network.parameters"),
    ("hvp", {"vparams": np.zeros(5)}, "another size than network.parameters"),
    ("hvp", {"hparams": np.zeros(5)}, "another size than network.parameters"),
    ("hvp", dict.fromkeys(["hparams", "vparams"], np.zeros(33)), "pass two arrays"),
    ("vjp pullback", {"drow": np.zeros(5)}, "has another size than row"),
    (
        "vjp pullback loss_gradient",
        {"dparams": np.zeros(5)},
        "another size than network.parameters",
    ),
    (
        "forward check vjp jvp hvp loss_gradient",
        {"work": np.zeros(9)},
        r"work_size\(model\) elements",
    ),
    (
        "forward vjp jvp hvp update check",
        {"params": np.zeros(9)},
        "another size than network.memory",
    ),
    (
        "forward vjp pullback jvp hvp loss_gradient update check",
        {"params": np.zeros(39, "float32")},
        "params are of another dtype",
    ),
    (
        "forward vjp jvp hvp loss_gradient",
        {"work": np.zeros(999, "float32")},
        "work is of another dtype",
    ),
    ("vjp jvp", {"dparams": np.zeros(33, "float32")}, "gradient is of another dtype"),
    ("hvp", {"vparams": np.zeros(33, "float32")}, "gradient is of another dtype"),
    ("hvp", {"hparams": np.zeros(33, "float32")}, "gradient is of another dtype"),
    ("forward", {"row": np.zeros(4)[::2]}, "row must be C-contiguous"),
    ("loss_gradient", {"x": np.zeros(3)}, "row has another size"),
    ("loss_gradient", {"y": np.zeros(2)}, "y must have a row of targets"),
    ("loss_gradient", {"y": np.array([1.0])}, "y must have a row of targets"),
    ("loss_gradient", {"y": np.array([3])}, "a label is below 0, or not below"),
    ("loss_gradient", {"y": np.array([-1])}, "a label is below 0, or not below"),
    ("update", {"grads": np.zeros(4)}, "another size than network.parameters"),
    ("update", {"state": np.zeros(4)}, r"state_size\(model\) elements"),
    ("update", {"t": 0}, "t counts the steps from 1"),
    (
        "forward vjp pullback jvp hvp loss_gradient update check",
        {"model": other_process()},
        "in another process",
    ),
    (
        "forward vjp pullback jvp hvp loss_gradient update check",
        {"model": stale_code()},
        "not a handle of this",
    ),
    (
        "forward vjp pullback jvp hvp loss_gradient update check",
        {"model": np.zeros(3, int)},
        "not a handle",
    ),
    ("loss_gradient", {"model": Call(loss=None).model}, r"network.handle\(loss="),
    ("update", {"model": Call(optimizer=None).model}, r"network.handle\(optimizer="),
    ("vjp pullback", {"model": Call(gradient=False, hvp=False).model}, "made with gradient=False"),
    ("jvp", {"model": Call(hvp=False).model}, r"network.handle\(jvp=True\)"),
    ("hvp", {"model": Call(hvp=False, jvp=True).model}, r"network.handle\(hvp=True\)"),
]


@pytest.mark.parametrize(("names", "changes", "message"), WRONG)
def test_what_does_not_fit_is_refused_before_anything_is_written(names, changes, message):
    for name in names.split():
        call = Call()
        with pytest.raises(ValueError, match=message):
            call(FUNCTIONS[name], **changes)
        fresh = Call()
        for kept in ("params", "out", "dout", "drow", "dparams", "hrow", "hparams", "state"):
            assert np.array_equal(vars(call)[kept], vars(fresh)[kept])
        call(FUNCTIONS[name])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "forward",
            {"row": np.zeros((2, 2))[:, :1]},
            "row must be a C-contiguous array of float32",
        ),
        ("forward", {"row": np.zeros(2, complex)}, "row must be .* got array.complex128"),
        ("forward", {"out": np.zeros(3, int)}, "out must be .* written to, got array.int64"),
        ("forward", {"out": READ_ONLY}, "out must be .* written to, got readonly"),
        ("forward", {"params": np.zeros(33, int)}, "params must be"),
        ("forward", {"model": np.zeros(300)}, "model must be a C-contiguous array of int64"),
        ("vjp", {"dparams": np.zeros(33, int)}, "dparams must be"),
        ("jvp", {"dout": READ_ONLY}, "dout must be .* written to"),
        ("hvp", {"vparams": np.zeros(33, int)}, "vparams must be"),
        ("update", {"state": READ_ONLY}, "state must be"),
    ],
)
def test_arrays_of_other_kinds_are_refused_by_name(name, changes, message):
    with pytest.raises(numba.TypingError, match=message):
        Call()(FUNCTIONS[name], **changes)


def test_handles_that_cannot_be_made():
    net = nn.Sequential([nn.Dense(3), nn.Step()], 2)
    with pytest.raises(ValueError, match=r"derivative.*handle\(gradient=False\) leaves vjp out"):
        net.handle()
    model, out = net.handle(gradient=False), np.zeros(3)
    c.forward(model, net.memory, IN, out, np.zeros(c.work_size(model), np.float32))
    assert np.array_equal(out, net.predict(IN[None])[0])
    net = nn.Sequential([nn.Dense(3)], 2)
    for options, message in [
        ({"rows": 0}, "rows"),
        ({"loss": "cross_entropy"}, "needs a network that ends in softmax"),
        ({"optimizer": nn.SGD(nn.schedules.Cosine(0.1))}, "give `update` the rate of each step"),
        ({"optimizer": "adamm"}, "did you mean"),
        ({"optimizer": nn.SGD(clip_norm=1.0, average=0.9)}, "no clip_norm and no average, which"),
        ({"gradient": 1}, "gradient must be True or False"),
        ({"hvp": 1}, "hvp must be True or False"),
        ({"hvp": True, "gradient": False}, "hvp=True needs gradient=True"),
    ]:
        with pytest.raises(ValueError, match=message):
            net.handle(**options)
    net.layers[0].weight_decay = 0.1
    with pytest.raises(ValueError, match="layer 0 has a learning_rate_factor or weight_decay of"):
        net.handle(optimizer="sgd")
    assert net.handle().size


def test_a_handle_from_before_the_targets_were_scaled_is_refused():
    call = Call()
    x = np.random.default_rng(0).normal(size=(50, 2))
    scaled = {"scale_targets": True, "verbose": 0}
    call.network.fit(x, 100 + 5 * np.stack([x[:, 0], x[:, 1], x[:, 0]], 1), **scaled)
    with pytest.raises(ValueError, match="before fit scaled the network's targets"):
        call(c.forward, params=call.network.memory)
    model = call.network.handle()
    work, row = np.zeros(c.work_size(model)), x[7]
    call(c.forward, params=call.network.memory, model=model, row=row, work=work)
    np.testing.assert_allclose(call.out, call.network.predict(x[7:8])[0], rtol=1e-13)
    with pytest.raises(ValueError, match="targets are scaled"):
        call.network.handle(loss="mean_squared_error")
    drow, step = np.zeros(2), np.array([1e-6, 0])
    call(c.vjp, params=call.network.memory, model=model, row=row, work=work, drow=drow)
    above, below = (call.network.predict((row + s * step)[None]).sum() for s in (1, -1))
    assert drow[0] == pytest.approx((above - below) / 2e-6, rel=1e-6)
    call.network.initialize()
    with pytest.raises(ValueError, match="make another"):
        call(c.forward, params=call.network.memory, model=model, work=work)
    call(c.forward, params=call.network.memory)


def forward_in_child(model, params):
    """In another process: the outputs, or what was refused."""
    out, work = np.zeros(3), np.zeros(1000)
    try:
        c.forward(model, params, np.array([0.5, -1.0]), out, work)
    except ValueError as error:
        return str(error)
    return out


def test_a_handle_serves_forks_and_no_other_process():
    call = Call()
    call(c.forward)
    for method in ("spawn", "fork"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            future = pool.submit(forward_in_child, call.model, call.params)
            found = future.result(timeout=300)
        if method == "spawn":
            assert "made in another process" in found
        else:
            assert np.array_equal(found, call.out)


USER = """
import sys
import numba
import numpy as np
import numbanet as nn
from numbanet import compiled as c

@numba.njit(cache=True)
def train(model, params, x, y, grads, state, work, steps):
    loss = 0.0
    for t in range(steps):
        grads[:] = 0
        loss = c.loss_gradient(model, params, x, y, grads, work)
        c.update(model, params, grads, state, t + 1)
    c.vjp(model, params, x, y, grads, x, work)
    return loss

net = nn.Sequential([nn.Dense(int(sys.argv[1])), nn.Dense(1)], 2)
model = net.handle(loss="mean_squared_error", optimizer="adam", rows=4)
x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
arrays = [np.zeros(n, np.float32) for n in
          (net.parameters.size, c.state_size(model), c.work_size(model))]
first = train(model, net.memory, x, y, *arrays, 1)
last = train(model, net.memory, x, y, *arrays, 200)
assert last < first
print(sum(train.stats.cache_hits.values()), sum(train.stats.cache_misses.values()))
"""


def test_the_users_code_is_cached_on_disk(tmp_path):
    script = tmp_path / "user.py"
    script.write_text(USER)
    found = [
        subprocess.run(
            [sys.executable, str(script), units], capture_output=True, text=True, check=True
        ).stdout.split()
        for units in ("3", "7")
    ]
    assert found == [["0", "1"], ["1", "0"]]


@numba.njit(parallel=True)
def call_in_prange(model, params, x, out, work):
    for i in numba.prange(len(x)):
        c.forward(model, params, x[i], out[i], work[i])


@numba.guvectorize(["void(i8[:], f8[:], f8[:], f8[:], f8[:])"], "(m),(p),(w),(n),(o)")
def as_ufunc(model, params, work, row, out):
    c.forward(model, params, row, out, work)


@numba.experimental.jitclass(
    {name: numba.float64[::1] for name in ("params", "work")} | {"model": numba.int64[::1]}
)
class Agent:
    def __init__(self, model, params):
        self.model, self.params = model, params
        self.work = np.empty(c.work_size(model))

    def act(self, row, out):
        c.forward(self.model, self.params, row, out, self.work)


@numba.cfunc("void(CPointer(i8), i8, CPointer(f8), i8, CPointer(f8), CPointer(f8), CPointer(f8))")
def as_cfunc(model, n_model, params, n_params, row, out, work):
    c.forward(
        numba.carray(model, n_model),
        numba.carray(params, n_params),
        numba.carray(row, 2),
        numba.carray(out, 3),
        numba.carray(work, 10_000),
    )


def test_it_works_in_all_that_numba_compiles():
    call, x = Call(), np.random.default_rng(0).normal(size=(20, 2))
    works, expected = np.zeros((20, 10_000)), call.network.predict(x)
    found = np.zeros((4, 20, 3))
    call_in_prange(call.model, call.params, x, found[0], works)
    agent = Agent(call.model, call.params)
    pointer = as_cfunc.ctypes
    for i in range(20):
        agent.act(x[i], found[2, i])
        arrays = [x[i].ctypes, found[3, i].ctypes, works.ctypes]
        doubles = [ctypes.cast(one.data, ctypes.POINTER(ctypes.c_double)) for one in arrays]
        model = ctypes.cast(call.model.ctypes.data, ctypes.POINTER(ctypes.c_int64))
        params = ctypes.cast(call.params.ctypes.data, ctypes.POINTER(ctypes.c_double))
        pointer(model, call.model.size, params, call.params.size, *doubles)
    for i in range(20):
        as_ufunc(call.model, call.params, works[i], x[i], found[1, i])
    for one in found:
        np.testing.assert_allclose(one, expected, rtol=1e-13)


@numba.njit
def train_many(call, calls):
    model, params, x, y, dparams, dout, drow, state, work = call
    for t in range(calls):
        c.loss_gradient(model, params, x, y, dparams, work)
        c.vjp(model, params, x, dout, dparams, drow, work)
        c.clip_by_norm(dparams, 1.0)
        c.update(model, params, dparams, state, t + 1, 1e-3)


def test_training_allocates_nothing_and_compiles_nothing():
    call = Call()
    names = ["model", "params", "x", "y", "dparams", "dout", "drow", "state", "work"]
    arrays = tuple(vars(call)[name] for name in names)
    train_many(arrays, 1)
    _nrt_python.memsys_enable_stats()
    allocations = []
    for calls in (1, 1000):
        before = numba.core.runtime.rtsys.get_allocation_stats()
        train_many(arrays, calls)
        allocations.append(numba.core.runtime.rtsys.get_allocation_stats().alloc - before.alloc)
    _nrt_python.memsys_disable_stats()
    assert allocations[0] == allocations[1]
    compiled = {name: len(one.overloads) for name, one in FUNCTIONS.items()}
    freed = []
    for units in range(1, 30):
        net = nn.Sequential([nn.Dense(units), nn.Dense(3)], 2, "float64")
        model = net.handle(loss="mean_squared_error", optimizer="adam")
        n = net.parameters.size
        sizes = n, c.state_size(model), c.work_size(model)
        grads, state, work = (np.zeros(size) for size in sizes)
        changed = (model, net.memory, call.x, call.y, grads, call.dout, call.drow, state, work)
        train_many(changed, 2)
        freed.append(weakref.ref(model))
    del model, changed
    gc.collect()
    assert compiled == {name: len(one.overloads) for name, one in FUNCTIONS.items()}
    assert not any(one() for one in freed)


ROUNDS = """
import resource
import numba
import numpy as np
import numbanet as nn
from numbanet import compiled as c

@numba.njit
def calls(model, params, x, y, grads, state, work):
    drow, other = np.empty_like(x), np.zeros_like(grads)
    loss = c.loss_gradient(model, params, x, y, grads, work)
    c.update(model, params, grads, state, 1)
    c.vjp(model, params, x, y, grads, drow, work)
    c.jvp(model, params, x, drow, grads, y, y, work)
    c.hvp(model, params, x, y, drow, grads, x, other, work)
    c.initialize(model, params, 3)
    return loss

x, y = np.ones((4, 2), np.float32), np.ones((4, 1), np.float32)
for k in range(1100):
    if k % 10 == 0:
        net = nn.Sequential([nn.Dense(k % 50 + 1, activation="tanh"), nn.Dense(1)], 2)
    net.fit(x, y, epochs=1, verbose=0)
    model = net.handle(loss="mean_squared_error", optimizer="adam", rows=4, hvp=True)
    sizes = net.parameters.size, c.state_size(model), c.work_size(model)
    calls(model, net.memory, x.copy(), y.copy(), *(np.zeros(n, np.float32) for n in sizes))
    if k == 100:
        compiled, before = len(calls.overloads), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        functions = [one for one in vars(c).values() if hasattr(one, "overloads")]
        compiled = [len(one.overloads) for one in functions]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print([len(one.overloads) for one in functions] == compiled, len(calls.overloads))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in KiB, as Linux does")
def test_retraining_and_calling_again_compiles_nothing_and_keeps_no_memory():
    """Over 1,000 rounds, each with a fit, a handle of its own and calls; 100 more warm up."""
    command = [sys.executable, "-c", ROUNDS]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    growth, same, overloads = found.stdout.split()
    assert int(growth) < 2048 and (same, overloads) == ("True", "1")


def test_a_learning_rate_of_the_step():
    steps = []
    for rate in (None, 0.5, 0.001):
        call = Call(optimizer=nn.SGD(0.001))
        c.update(call.model, call.params, call.grads, np.zeros(0), 1, rate)
        steps.append((call.network.memory - call.params)[0])
    np.testing.assert_allclose(steps, [0.001, 0.5, 0.001], rtol=1e-12)


def test_gradients_are_clipped_to_a_norm():
    for dtype in ("float32", "float64"):
        grads = np.array([3, -4, 0], dtype)
        assert c.clip_by_norm(grads, 10.0) == 5 and grads.tolist() == [3, -4, 0]
        assert c.clip_by_norm(grads, 1.0) == 5
        np.testing.assert_allclose(grads, [0.6, -0.8, 0], rtol=1e-6)


def test_random_numbers_are_functions_of_key_and_counter():
    @numba.njit
    def draw(key, n, p):
        u, z, k = np.empty(n), np.empty(n), np.empty(n, np.int64)
        for i in range(n):
            u[i], z[i] = c.uniform(key, i), c.normal(key, i)
            k[i] = c.categorical(key, i, p)
        return u, z, k

    p = np.array([1.0, 0.0, 2.0, 1.0])
    u, z, k = draw(c.new_key(3, 4), 100_000, p)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 5e-3
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and abs((z**3).mean()) < 0.06
    np.testing.assert_allclose(np.bincount(k) / k.size, p / 4, atol=0.01)
    again = draw(c.new_key(3, 4), 10, p)
    assert all(np.array_equal(a, b[:10]) for a, b in zip(again, (u, z, k), strict=True))
    assert not np.array_equal(draw(c.new_key(3, 5), 10, p)[0], again[0])
    assert c.categorical(1, 2, np.zeros(3)) == 0 and c.categorical(1, 2, np.array([0, 5])) == 1
    with pytest.raises(ValueError, match="probabilities are empty"):
        c.categorical(1, 2, np.zeros(0))


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
long calls;
#define COUNTED(result, name, given, passed) \\
    result name given { \\
        static result (*real) given; \\
        if (!real) real = (result (*) given)dlsym(RTLD_NEXT, #name); \\
        calls++; \\
        return real passed; \\
    }
#define COUNTED_VOID(name, given, passed) \\
    void name given { \\
        static void (*real) given; \\
        if (!real) real = (void (*) given)dlsym(RTLD_NEXT, #name); \\
        calls++; \\
        real passed; \\
    }
COUNTED(void *, malloc, (size_t n), (n))
COUNTED_VOID(free, (void *p), (p))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(int, posix_memalign, (void **p, size_t a, size_t n), (p, a, n))
COUNTED(int, pthread_mutex_lock, (pthread_mutex_t *m), (m))
"""
COUNTING = """
import ctypes
import numba
import numpy as np
import numbanet as nn
from numbanet import compiled as c

counter = ctypes.c_long.in_dll(ctypes.CDLL(None), "calls")
address = ctypes.addressof(counter)

@numba.njit
def work_through(count, smooth, model, params, x, y, d, grads, state, work, calls):
    before = count[0]
    for t in range(calls):
        c.forward(model, params, x, d, work)
        c.pullback(model, params, d, grads, x, work)
        c.vjp(model, params, x, d, grads, x, work)
        if smooth:
            c.jvp(model, params, x, x, grads, y, d, work)
            c.hvp(model, params, x, d, x, grads, x, state[: grads.size], work)
        c.loss_gradient(model, params, x, y, grads, work)
        c.clip_by_norm(grads, 1.0)
        c.update(model, params, grads, state, t + 1)
        c.initialize(model, params, t)
    return count[0] - before

count = np.ctypeslib.as_array((ctypes.c_int64 * 1).from_address(address))
networks = [([nn.LSTM(5, True), nn.Bidirectional(nn.GRU(3)), nn.Dense(2)], (4, 3), True)]
for smooth, pool, after in ((False, nn.MaxPool2D, "relu"), (True, nn.LpPool2D, "tanh")):
    layers = [nn.Conv2D(3, 3, activation="tanh"), pool(2), nn.LayerNorm(), nn.BatchNorm()]
    layers += [nn.Flatten(), nn.Dense(7, activation=after), nn.Dense(2)]
    networks.append((layers, (8, 8, 1), smooth))
for layers, shape, smooth in networks:
    net = nn.Sequential(layers, shape)
    model = net.handle(loss="mean_squared_error", optimizer="adam", rows=3, hvp=smooth)
    x, y, d = (np.ones((3, *one), np.float32) for one in (shape, (2,), (2,)))
    sizes = net.parameters.size, c.state_size(model), c.work_size(model)
    arrays = [np.zeros(n, np.float32) for n in sizes]
    for calls in (1, 50):
        print(work_through(count, smooth, model, net.memory, x, y, d, *arrays, calls))
np.zeros(10_000_000)
assert counter.value > 100  # the shim does count
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs cc, Linux")
def test_no_memory_is_asked_for_and_no_lock_taken(tmp_path):
    """Not by LLVM's or the C library's hands either: a shim counts malloc, free and locks."""
    for name, text in (("shim.c", SHIM), ("counting.py", COUNTING)):
        (tmp_path / name).write_text(text)
    command = ["cc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    found = subprocess.run(
        [sys.executable, "counting.py"],
        cwd=tmp_path,
        env={**os.environ, "LD_PRELOAD": str(tmp_path / "shim.so")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert found.stdout.split() == ["0"] * 6


def test_the_benchmark_prints_a_line_for_one_row_and_for_64():
    command = [sys.executable, "-m", "benchmarks.inside"]
    root = Path(__file__).parent.parent
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert [line.split(" rows")[0].strip() for line in lines] == ["1", "64"]
    assert all("forward" in line and "vjp" in line for line in lines)


def test_a_network_that_is_gone_is_an_error_where_compiled_code_kept_it():
    net = nn.Sequential([nn.Dense(3)], 2, seed=5)
    predict_row, row, out = net.compiled(), np.ones(2, np.float32), np.zeros(3, np.float32)

    @numba.experimental.jitclass([("net", numba.typeof(predict_row))])
    class Holder:
        def __init__(self, net):
            self.net = net

        def call(self, row, out):
            self.net(row, out)

    holder = Holder(predict_row)
    holder.call(row, out)
    assert np.array_equal(out, net.predict(row[None])[0])
    del predict_row
    gc.collect()
    others = [nn.Sequential([nn.Dense(3)], 2, seed=k).compiled() for k in range(5)]
    with pytest.raises(ValueError, match="the compiled network was freed; keep a reference"):
        holder.call(row, out)
    assert len(others) == 5


# --- C functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_as_a_c_function(dtype):
    net, x = network(dtype), np.random.default_rng(0).random((5, 8, 9, 2)).astype(dtype)
    expected, real = net.predict(x), {"float32": "float", "float64": "double"}[dtype]
    pointer = ctypes.POINTER(getattr(ctypes, f"c_{real}"))
    for kind in ("plain", "user_data"):
        function, found = net.cfunc(kind), np.empty((5, 4), dtype)
        assert function.signature.startswith(f"void f(const {real} *x, {real} *out")
        last = [] if kind == "plain" else [function.user_data]
        for row, out in zip(x, found, strict=True):
            function.ctypes(row.ctypes.data_as(pointer), out.ctypes.data_as(pointer), *last)
        np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == "float32" else 1e-12)
        assert function.address == ctypes.cast(function.ctypes, ctypes.c_void_p).value


def test_scipy_integrates_a_network():
    integrate = pytest.importorskip("scipy.integrate")
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-9)):
        net = nn.Sequential([nn.Dense(6, activation="tanh"), nn.Dense(1)], 2, dtype, seed=4)
        function = net.cfunc("integrand")
        assert function.signature == "double f(int n, double *x, void *user_data)"
        integrand = function.low_level_callable()
        nodes, weights = np.polynomial.legendre.leggauss(30)
        rows = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
        expected = np.outer(weights, weights).ravel() @ net.predict(rows)[:, 0]
        net.parameters[:] = 0  # the function has parameters of its own
        del function
        gc.collect()  # the integrand keeps it
        found = integrate.nquad(integrand, [(-1, 1), (-1, 1)], opts={"epsabs": 1e-6})[0]
        assert abs(found - expected) <= tolerance * max(1, abs(expected))


def test_a_c_function_that_is_refused():
    net = nn.Sequential([nn.Dense(3)], 2)
    with pytest.raises(ValueError, match="an integrand returns one number"):
        net.cfunc("integrand")
    with pytest.raises(ValueError, match="unknown kind of C function 'plane'; did you mean"):
        net.cfunc("plane")
    with pytest.raises(TypeError, match="cannot be pickled; pickle the network"):
        pickle.dumps(net.cfunc())
    integrand = nn.Sequential([nn.Dense(1)], 2).cfunc("integrand")
    two = (ctypes.c_double * 3)(1.0, 2.0, 3.0)
    assert np.isnan(integrand.ctypes(3, two, integrand.user_data))
    assert np.isfinite(integrand.ctypes(2, two, integrand.user_data))


def test_a_c_function_is_kept_by_what_calls_it():
    kept = nn.Sequential([nn.Dense(1)], 1, seed=2).cfunc().ctypes
    gc.collect()
    x, out = (ctypes.c_float * 1)(0.5), (ctypes.c_float * 1)()
    kept(x, out)
    expected = nn.Sequential([nn.Dense(1)], 1, seed=2).predict(np.array([[0.5]]))
    assert out[0] == expected[0, 0]


# --- initial values -------------------------------------------------------------------------------


def test_parameters_are_drawn_in_compiled_code():
    orthogonal = nn.initializers.Orthogonal(2.0)
    layers = [
        nn.Conv2D(30, 3),
        nn.LayerNorm(),
        nn.Flatten(),
        nn.Dense(300, activation="relu"),
        nn.Dense(200, initializer=orthogonal, bias_initializer=nn.initializers.Normal(0.5, 3)),
        nn.Dense(400, initializer=orthogonal, activation="tanh", bias=False),
        nn.Dense(2, initializer="lecun"),
    ]
    for dtype, exact in (("float32", 1e-4), ("float64", 1e-10)):
        net = nn.Sequential(layers, (8, 9, 2), dtype, seed=3)
        model, params = net.handle(), np.full(net.memory.size, np.nan, dtype)
        params[net.parameters.size :] = net.memory[net.parameters.size :]
        c.initialize(model, params, 5)
        drawn = net.parameters.copy()
        net.memory[:] = params
        for built, other in zip(net.layers, nn.Sequential(layers, (8, 9, 2)).layers, strict=True):
            for name, values in built.parameters.items():
                expected = other.parameters[name]
                assert abs(values.mean() - expected.mean()) < 0.3 * expected.std() + 0.02
                assert values.std() == pytest.approx(expected.std(), rel=0.2)
        for k in (4, 5):  # the activations stand between them
            w = [one for one in net.layers if one.n_parameters][k - 1].weights.astype("float64")
            product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
            close = 4 * np.eye(len(product))
            np.testing.assert_allclose(product, close, atol=exact)
        again = np.zeros_like(params)
        c.initialize(model, again, 5)
        assert np.array_equal(again[: drawn.size], params[: drawn.size])
        c.initialize(model, again, 6)
        assert not np.array_equal(again[: drawn.size], params[: drawn.size])


def test_gates_are_drawn_in_compiled_code():
    layers = [nn.LSTM(4, return_sequences=True), nn.Bidirectional(nn.GRU(3))]
    net = nn.Sequential(layers, (5, 40), "float64", seed=3)
    before = {k: built.bias.copy() for k, built in enumerate(net.layers)}
    net.parameters[:] = np.nan
    c.initialize(net.handle(gradient=False), net.memory, 5)
    assert np.isfinite(net.memory).all()
    for k, built in enumerate(net.layers):
        np.testing.assert_array_equal(built.bias, before[k])  # 1 for the forget gate, 0 elsewhere
        for name, values in built.parameters.items():
            if name.endswith("recurrent_weights"):
                for gate in np.split(values, values.shape[1] // len(values), axis=1):
                    np.testing.assert_allclose(gate.T @ gate, np.eye(len(gate)), atol=1e-12)
    bound = np.sqrt(6 / (40 + 4))  # Glorot's, of one gate
    weights = np.abs(net.layers[0].weights)
    assert 0.9 * bound < weights.max() <= bound


def test_initial_values_that_python_draws_are_refused():
    def random(shape, generator):
        return generator.normal(size=shape)

    for layer in (nn.Dense(2, initializer=np.ones((3, 2))), nn.GRU(2, initializer=random)):
        net = nn.Sequential([layer], (4, 3), "float64")
        before = net.memory.copy()
        with pytest.raises(ValueError, match=r"copy network\.parameters instead"):
            c.initialize(net.handle(), net.memory, 1)
        assert np.array_equal(net.memory, before)


# --- sequences, step by step ----------------------------------------------------------------------


@numba.njit
def _read(model, params, state, x, out, work):
    """The outputs after every step of a sequence."""
    c.begin_sequence(model, params, state)
    for t in range(len(x)):
        c.step(model, params, state, x[t], out[t], work)


@numba.njit(parallel=True)
def _read_all(model, params, x, out):
    n, m = c.step_state_size(model), c.step_work_size(model)
    for i in numba.prange(len(x)):
        state, work = np.empty(n, params.dtype), np.empty(m, params.dtype)
        _read(model, params, state, x[i], out[i], work)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_in_compiled_code_are_those_of_predict(dtype):
    layers = [nn.LSTM(5, True, initial_state="trained"), nn.GRU(17, True), nn.Dense(2)]
    net = nn.Sequential(layers, (6, 3), dtype, seed=1)
    net.parameters += np.random.default_rng(1).uniform(-0.2, 0.2, net.parameters.size)
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(dtype)
    expected, out = net.predict(x), np.zeros((4, 6, 2), dtype)
    model = net.handle(step=True)
    assert c.step_state_size(model) == 5 + 5 + 17
    longer = nn.Sequential(layers, (600, 3), dtype).handle(step=True, gradient=False)
    assert c.step_work_size(longer) == c.step_work_size(model) < c.work_size(longer) / 10
    _read_all(model, net.memory, x, out)
    assert out.tobytes() == expected.tobytes()
    model = net.handle(step=True, rows=4, gradient=False)
    state, work = (
        np.zeros(c.step_state_size(model), dtype),
        np.zeros(c.step_work_size(model), dtype),
    )
    c.begin_sequence(model, net.memory, state)
    for k in range(6):
        now = np.zeros((4, 2), dtype)
        c.step(model, net.memory, state, np.ascontiguousarray(x[:, k]), now, work)
        assert now.tobytes() == expected[:, k].tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": np.zeros(3)}, "state has another size: it needs step_state_size"),
        ({"state": np.zeros(4, "float32")}, "state is of another dtype"),
        ({"row": np.zeros(2)}, "row has another size than one step"),
        ({"out": np.zeros(3)}, "out has another size than the outputs of one step"),
        ({"work": np.zeros(1)}, "work is too small: it needs step_work_size"),
        ({"params": np.zeros(3)}, "params have another size"),
    ],
)
def test_what_a_step_cannot_take_is_refused(change, message):
    net = nn.Sequential([nn.RNN(4), nn.Dense(2)], (6, 3), "float64")
    model = net.handle(step=True)
    arguments = {
        "params": net.memory,
        "state": np.zeros(4),
        "row": np.zeros(3),
        "out": np.zeros(2),
        "work": np.zeros(c.step_work_size(model)),
    }
    c.step(model, *arguments.values())
    with pytest.raises(ValueError, match=message):
        c.step(model, *(arguments | change).values())
    for call in (
        lambda plain: c.step(plain, *arguments.values()),
        lambda plain: c.begin_sequence(plain, net.memory, np.zeros(4)),
        c.step_state_size,
        c.step_work_size,
    ):
        with pytest.raises(ValueError, match=r"make it with network\.handle\(step=True\)"):
            call(net.handle())
