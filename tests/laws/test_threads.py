"""The number of threads does not change a single bit."""

import itertools
import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

import numbanet as nn
from examples import (
    LAYERS,
    OPTIMIZERS,
    PENALTIES,
    TRAINABLE,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    set_groups,
    targets,
)
from numbanet.backend import threads as threads_module
from numbanet.backend.intrinsics import const_like
from numbanet.nn.layers.dense import dense_op
from numbanet.plan.columns import N_OUT, Y
from numbanet.plan.tasks import MAX_TASK, MOST_SMALL_TASKS, partition_parameters

LOSS = loss_named("mean squared error")


def trained(build, x, y, loss, optimizer, batch_size, threads, epochs=2):
    net = build()
    history = net.fit(
        x, y, loss=loss, optimizer=optimizer, batch_size=batch_size, epochs=epochs, threads=threads
    )
    return net.parameters.tobytes(), net.optimizer_state.tobytes(), history.history["loss"]


def large(penalty=None):
    """So many parameters that each number of threads gives other tasks; all sizes are odd."""
    return nn.Sequential(
        [
            nn.Dense(123, activation="tanh"),
            nn.Dense(57, activation="leaky_relu"),
            nn.Dense(11, activation="softmax"),
        ],
        97,
        "float32",
        seed=5,
        penalty=penalty,
    )


def large_data(samples):
    generator = np.random.default_rng(samples)
    return generator.normal(size=(samples, 97)).astype("float32"), generator.integers(
        0, 11, samples
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [10, 64])
def test_a_large_network_is_the_same_bits_with_every_optimizer(optimizer, batch_size):
    x, y = large_data(147)
    alone = trained(large, x, y, "cross_entropy", OPTIMIZERS[optimizer], batch_size, 1)
    for threads in (2, 4):
        assert (
            trained(large, x, y, "cross_entropy", OPTIMIZERS[optimizer], batch_size, threads)
            == alone
        )


@pytest.mark.parametrize("sizes", [(784, 30, 10), (8, 64, 64, 1), (784, 100, 10), (7, 3)])
def test_tasks_are_few_and_have_every_parameter_once(sizes):
    """Each costs something besides its parameters; all but an op's last are whole tiles."""
    ops = [dense_op(n_in, n_out, True, 1, n_out) for n_in, n_out in itertools.pairwise(sizes)]
    rows = {op: k for k, op in enumerate(ops)}
    tasks, bounds = partition_parameters(ops, rows, 2, tile_rows=8)
    n_params, cuts = sum(op.n_params for op in ops), tasks[:, 3:].ravel()
    assert cuts[0] == 0 and cuts[-1] == n_params and (cuts[1:-1:2] == cuts[2::2]).all()
    assert bounds.tolist() == sorted(bounds) and bounds[0] == 0 and bounds[-1] == len(tasks)
    for op, k in rows.items():
        heights = np.diff(tasks[tasks[:, 0] == k][:, 1:3]).ravel()
        assert heights.sum() == op.param_rows and not (heights[:-1] % 8).any()
    assert len(tasks) <= MOST_SMALL_TASKS + len(ops) + n_params // MAX_TASK


def test_layers_with_rates_and_decays_of_their_own_are_the_same_bits():
    x, y = large_data(147)
    results = [
        trained(lambda: set_groups(large()), x, y, "cross_entropy", nn.Adam(0.01), 10, threads)
        for threads in (1, 2, 4)
    ]
    assert results.count(results[0]) == 3
    assert results[0] != trained(large, x, y, "cross_entropy", nn.Adam(0.01), 10, 1)


def test_a_first_product_that_is_cut_by_its_inputs_is_the_same_bits():
    def wide():
        return nn.Sequential(
            [nn.Dense(33, activation="tanh"), nn.Dense(4, activation="softmax")],
            407,
            "float32",
            seed=5,
        )

    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(30, 407)).astype("float32"), generator.integers(0, 4, 30)
    results = [
        trained(wide, x, y, "cross_entropy", nn.Adam(0.01), 7, threads) for threads in (1, 2, 4)
    ]
    assert results.count(results[0]) == 3


@pytest.mark.parametrize("penalty", PENALTIES[1:], ids=str)
def test_a_large_network_is_the_same_bits_with_every_penalty(penalty):
    x, y = large_data(40)
    results = [
        trained(lambda: large(penalty), x, y, "cross_entropy", nn.SGD(0.1), 16, threads)
        for threads in (1, 2, 4)
    ]
    assert results.count(results[0]) == 3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16, 29, 30, 100])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_batch_size_is_the_same_bits(batch_size, dtype):
    example = example_named("two dense layers")
    x, y = inputs(example, 30), targets(LOSS, 30)
    results = [
        trained(
            lambda: network(example, LOSS, dtype=dtype),
            x,
            y,
            LOSS.loss,
            nn.Adam(0.01),
            batch_size,
            threads,
        )
        for threads in (1, 2, 3, 4)
    ]
    assert results.count(results[0]) == 4


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_more_threads_than_samples_are_the_same_bits(samples):
    x, y = large_data(samples)
    results = [
        trained(large, x, y, "cross_entropy", nn.SGD(0.1, momentum=0.5), 8, threads)
        for threads in (1, 4, 7)
    ]
    assert results.count(results[0]) == 3


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_every_layer_is_the_same_bits(example):
    x, y = inputs(example, 37), targets(LOSS, 37)
    for dtype in ("float32", "float64"):
        results = [
            trained(
                lambda dtype=dtype: network(example, LOSS, dtype=dtype),
                x,
                y,
                LOSS.loss,
                nn.SGD(0.1),
                16,
                threads,
            )
            for threads in (1, 2, 4)
        ]
        assert results.count(results[0]) == 3


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_outputs_are_the_same_bits(example):
    net = network(example, dtype="float32")
    net.predict(inputs(example, 1))
    alone = max(small.most for small in net.executors.small_batch.values())
    x = inputs(example, alone + 19)  # more samples than those that are predicted by one thread
    results = [net.predict(x, threads=threads).tobytes() for threads in (1, 2, 4, 60)]
    assert results.count(results[0]) == 4


def test_loss_accuracy_and_gradient_are_the_same_bits():
    x, y = large_data(301)
    net = large()
    results = [
        (net.evaluate(x, y, threads=threads), net.gradient(x, y, threads=threads).tobytes())
        for threads in (1, 2, 4)
    ]
    assert results.count(results[0]) == 3


# --- never more workers than CPUs --------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
    ids=["none", "no limit", "one and a half", "no limit, version 1", "three, version 1"],
)
def test_the_quota_of_a_container_is_read(files, cpus, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads_module._cpu_quota(tmp_path) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_on_one_cpu_has_one_worker_though_more_threads_are_asked_for():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "import numbanet as nn; from numbanet.backend.threads import max_threads, usable_cpus; "
        "net = nn.Sequential([nn.Dense(2)], 3); "
        "print(usable_cpus(), max_threads(), net.executors.threads(4, 0))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "NUMBA_NUM_THREADS": "4",
        },
    )
    assert run.stdout.split() == ["1", "1", "1"], run.stderr


# --- threads are really used -------------------------------------------------------------------


@intrinsic
def thread_number(typingctx):
    """The number of the running thread in its team."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), []), "get_thread_id"
        )
        return builder.sext(builder.call(function, []), ir.IntType(64))

    return types.int64(), codegen


@nn.kernel
def mark(op, params, grads, acts, deltas, lo, hi):
    for i in range(op[Y] + lo * op[N_OUT], op[Y] + hi * op[N_OUT]):
        acts[i] = const_like(acts, thread_number())


class Marked(nn.Activation):
    """Writes which thread was here."""

    forward = mark


USED = """
import sys
import time
import numpy as np
import numbanet as nn
from numbanet.backend.threads import threading_layer
from test_threads import Marked

threading_layer()
net, x = nn.Sequential([Marked()], 3), np.ones((40_000, 3), "float32")
for threads in map(int, sys.argv[1:]):
    seen, end = set(), time.monotonic() + 20
    while len(seen) < threads and time.monotonic() < end:  # one thread is tried first
        seen |= set(net.predict(x, threads=threads).ravel().astype(int).tolist())
    print(*sorted(seen), sep="+")
"""


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="Numba has one thread here")
@pytest.mark.parametrize("calls", ["12", "21"], ids=["alone first", "together first"])
def test_two_threads_share_the_samples_and_one_does_not(calls, tmp_path):
    """In processes of their own that share a cache of compiled code, empty at first."""
    path = os.pathsep.join(filter(None, [os.path.dirname(__file__), *sys.path]))
    for number in calls:
        run = subprocess.run(
            [sys.executable, "-c", USED, number],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(tmp_path)},
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == ["0+1" if number == "2" else "0"]
