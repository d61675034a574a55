"""Times of the inner kernels, one thread, data in cache:

    python -m pytest benchmarks/test_kernels.py --benchmark-only

A round is CALLS calls from a compiled loop; the time of one call and its GFLOP/s stand in the extra information (--benchmark-json).
No time is asserted, and `pytest` alone does not come here.
"""

import numpy as np
import pytest

import numbanet as nn
from numbanet import _math, losses
from numbanet._jit import native
from numbanet._simd import at, call, memory
from numbanet.engine import machines
from numbanet.kernels import OWN, kernel, lanes, load, multiply, store
from numbanet.lowering import lower
from numbanet.plan import BACKWARD, FORWARD, GRADIENT, HOME_X, HOME_Y, INPUTS, NEXT, PARTIAL, SAMPLES, TARGETS, WIDTH, X, Y

CALLS = 100
NUMBERS = 4096
BATCH = 32


@native
def loop(address, table, row, params, grads, acts, deltas, lo, hi, calls):
    op = at(memory(table), row * WIDTH)
    for _ in range(calls):
        call(address, op, memory(params), memory(grads), memory(acts), memory(deltas), lo, hi)


def timed(benchmark, flops, *arguments):
    """Time CALLS calls, warmed up."""
    loop(*arguments, CALLS)
    benchmark.pedantic(loop, (*arguments, CALLS), rounds=30, warmup_rounds=3)
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median / CALLS
        benchmark.extra_info |= {"microseconds": 1e6 * seconds, "gflops": flops / seconds / 1e9}


# --- the product and the functions --------------------------------------------------------------------------------------


@kernel
def product(op, params, grads, acts, deltas, lo, hi):
    """acts = params · grads, of m × k and k × n numbers."""
    m, n, k = op[OWN], op[OWN + 1], op[OWN + 2]
    multiply(acts, n, params, k, 1, 0, grads, n, 0, acts, n, m, n, k, 1, 0)


@kernel
def exp(op, params, grads, acts, deltas, lo, hi):
    """acts = eˣ, x = params"""
    for i in range(lo, hi, lanes(acts)):
        store(at(acts, i), _math.exp(load(at(params, i), lanes(acts))), lanes(acts))


@kernel
def tanh(op, params, grads, acts, deltas, lo, hi):
    """acts = tanh x, x = params"""
    for i in range(lo, hi, lanes(acts)):
        store(at(acts, i), _math.tanh(load(at(params, i), lanes(acts))), lanes(acts))


@kernel
def sigmoid(op, params, grads, acts, deltas, lo, hi):
    """acts = σ(x), x = params"""
    for i in range(lo, hi, lanes(acts)):
        store(at(acts, i), _math.sigmoid(load(at(params, i), lanes(acts))), lanes(acts))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "k"), [(64, 64, 64), (128, 128, 128), (256, 256, 256), (10, 30, 784)])
def test_multiply(benchmark, m, n, k, dtype):
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype), np.zeros((m, n), dtype)
    row = np.zeros((1, WIDTH), np.int64)
    row[0, OWN : OWN + 3] = m, n, k
    timed(benchmark, 2 * m * n * k, product.address(np.dtype(dtype)), row, 0, a.ravel(), b.ravel(), c.ravel(), c.ravel(), 0, 0)
    np.testing.assert_allclose(c, a @ b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [exp, tanh, sigmoid], ids=lambda function: function.__name__)
def test_function(benchmark, function, dtype):
    x = np.random.default_rng(0).uniform(-5, 5, NUMBERS).astype(dtype)
    y, row = np.zeros_like(x), np.zeros((1, WIDTH), np.int64)
    timed(benchmark, NUMBERS, function.address(x.dtype), row, 0, x, x, y, y, 0, NUMBERS)
    expected = {"exp": np.exp, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}[function.__name__](x)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


# --- layers, through a plan ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine():
    """A plan of the second half of LeNet-5 behind a small convolution, and memories that a whole step has filled."""
    network = nn.Sequential([nn.Conv2D(6, 3), nn.Conv2D(16, 5), nn.MaxPool2D(2), nn.Flatten(), nn.Dense(120, activation="relu"),
                             nn.Dense(84, activation="relu"), nn.Dense(10, activation="softmax")], (16, 16, 3), seed=0)
    rng = np.random.default_rng(0)
    x, y = rng.random((BATCH, 16, 16, 3), np.float32), rng.integers(0, 10, BATCH)
    ops, last, _ = network._with_loss(losses.loss("cross_entropy"), x.dtype, y.dtype, False, BATCH, 1, training=True)
    made = machines.Differentiator(lower(ops, network.dtype, batch=BATCH, threads=1, train=True), network.dtype, last)
    made.bind(INPUTS, x)
    made.bind(TARGETS, y)
    made.parameters = network._memory.copy()
    made.gradient(made.parameters, BATCH)
    yield made
    made.release()


VERBS = {"forward": FORWARD, "backward": BACKWARD, "partial": PARTIAL, "gradient": GRADIENT}


@pytest.mark.parametrize(("layer", "verb"), [
    ("Dense", "forward"), ("Dense", "backward"), ("Dense", "gradient"), ("Conv2D", "forward"), ("Conv2D", "backward"),
    ("Conv2D", "partial"), ("MaxPool2D", "forward"), ("MaxPool2D", "backward")])
def test_layer(benchmark, machine, layer, verb):
    """16 maps of 5×5 from 6, 2×2 pooling, or 400 to 120 numbers; a block of samples, or for a gradient the whole batch."""
    plan = machine.plan
    table, row, found = plan.tables[0], 1, None
    for op in plan.ops:
        if op.name == layer and table[row, BACKWARD]:
            found = found or (op, row)
        row = int(table[row, NEXT])
    op, row = found
    table[0, SAMPLES] = BATCH
    table[row, X], table[row, Y] = table[row, HOME_X], table[row, HOME_Y]
    samples, hi = (BATCH, op.units) if verb == "gradient" else (min(plan.block, BATCH),) * 2
    flops = samples * (2 * op.weights * op.uses or op.n_out)
    address = int(table[row, VERBS[verb]])
    assert address
    timed(benchmark, flops, address, table, row, machine.parameters, machine.grads, machine.acts, machine.deltas, 0, hi)
