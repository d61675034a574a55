"""A compiled network gives what predict gives, inside the user's own compiled loops."""

import gc
import pickle
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numba
import numpy as np
import pytest
from numba.core.runtime import _nrt_python

import numbanet as nn


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
    with pytest.raises(ValueError, match="call predict instead"):
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
