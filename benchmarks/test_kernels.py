"""Times of the inner kernels, one thread, data in cache:

    python -m pytest benchmarks/test_kernels.py --benchmark-only

A round is CALLS calls from a compiled loop; the time of one call and its GFLOP/s stand in the extra
information (--benchmark-json). No time is asserted, and `pytest` alone does not come here.
"""

import numpy as np
import pytest

import numbanet as nn
from benchmarks.suites.verbs import Machine
from numbanet.backend import elementary
from numbanet.backend.intrinsics import ptr_add
from numbanet.kernels import Attrs, gemm, kernel, lanes, load, store
from numbanet.network.profiler import _repeat
from numbanet.plan.columns import ROW_SIZE

CALLS = 100
NUMBERS = 4096
BATCH = 32


def timed(benchmark, flops, *arguments):
    """Time CALLS calls, warmed up."""
    _repeat(*arguments, CALLS)
    benchmark.pedantic(_repeat, (*arguments, CALLS), rounds=30, warmup_rounds=3)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median / CALLS
        benchmark.extra_info |= {"microseconds": 1e6 * seconds, "gflops": flops / seconds / 1e9}


# --- the product and the functions -------------------------------------------------------------


MATRICES = Attrs("m n k")


@kernel
def product(op, params, grads, acts, deltas, lo, hi):
    """acts = params · grads, of m × k and k × n elements."""
    m, n, k = op[MATRICES.m], op[MATRICES.n], op[MATRICES.k]
    gemm(m, n, k, params, k, grads, n, 0, acts, n)


@kernel
def exp(op, params, grads, acts, deltas, lo, hi):
    """acts = eˣ, x = params"""
    for i in range(lo, hi, lanes(acts)):
        store(ptr_add(acts, i), elementary.exp(load(ptr_add(params, i), lanes(acts))), lanes(acts))


@kernel
def tanh(op, params, grads, acts, deltas, lo, hi):
    """acts = tanh x, x = params"""
    for i in range(lo, hi, lanes(acts)):
        store(ptr_add(acts, i), elementary.tanh(load(ptr_add(params, i), lanes(acts))), lanes(acts))


@kernel
def sigmoid(op, params, grads, acts, deltas, lo, hi):
    """acts = σ(x), x = params"""
    for i in range(lo, hi, lanes(acts)):
        store(
            ptr_add(acts, i), elementary.sigmoid(load(ptr_add(params, i), lanes(acts))), lanes(acts)
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(64, 64, 64), (128, 128, 128), (256, 256, 256), (10, 30, 784)]
)
def test_multiply(benchmark, m, n, k, dtype):
    rng = np.random.default_rng(0)
    a, b, c = (
        rng.standard_normal((m, k)).astype(dtype),
        rng.standard_normal((k, n)).astype(dtype),
        np.zeros((m, n), dtype),
    )
    row = np.zeros((1, ROW_SIZE), np.int64)
    row[0, list(MATRICES)] = MATRICES.pack(m=m, n=n, k=k)
    timed(
        benchmark,
        2 * m * n * k,
        product.address(np.dtype(dtype)),
        row,
        0,
        a.ravel(),
        b.ravel(),
        c.ravel(),
        c.ravel(),
        0,
        0,
    )
    np.testing.assert_allclose(c, a @ b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [exp, tanh, sigmoid], ids=lambda function: function.__name__)
def test_function(benchmark, function, dtype):
    x = np.random.default_rng(0).uniform(-5, 5, NUMBERS).astype(dtype)
    y, row = np.zeros_like(x), np.zeros((1, ROW_SIZE), np.int64)
    timed(benchmark, NUMBERS, function.address(x.dtype), row, 0, x, x, y, y, 0, NUMBERS)
    expected = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[
        function.__name__
    ](x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


# --- layers, through a plan --------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine():
    """The second half of LeNet-5 behind a small convolution."""
    return Machine(
        [
            nn.Conv2D(6, 3),
            nn.Conv2D(16, 5),
            nn.MaxPool2D(2),
            nn.Flatten(),
            nn.Dense(120, activation="relu"),
            nn.Dense(84, activation="relu"),
            nn.Dense(10),
        ],
        (16, 16, 3),
        BATCH,
    )


@pytest.mark.parametrize(
    ("layer", "verb"),
    [
        ("Dense", "forward"),
        ("Dense", "backward"),
        ("Dense", "gradient"),
        ("Conv2D", "forward"),
        ("Conv2D", "backward"),
        ("Conv2D", "gradient"),
        ("MaxPool2D", "forward"),
        ("MaxPool2D", "backward"),
    ],
)
def test_layer(benchmark, machine, layer, verb):
    """16 maps of 5×5 from 6, 2×2 pooling, or 400 to 120 numbers.

    A block of samples, or for a gradient the whole batch.
    """
    run = machine.verb(layer, verb)
    timed(benchmark, run.flops, *run.arguments)
