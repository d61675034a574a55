"""A compiled network gives what predict gives, inside the user's own compiled loops."""

import warnings

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
