"""A step too long for one native call is cut into several: bit-identical, and Ctrl-C works."""

import numpy as np
import pytest

import numbanet as nn
from examples import (
    OPTIMIZERS,
    TRAINABLE,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    targets,
)
from numbanet.engine.cpu import executor

LOSS = loss_named("mean squared error")


@pytest.fixture
def cut(monkeypatch):
    """Let every step seem long, of a few pieces; the pieces that were run."""
    calls, original = [], executor.Executor.run_batches

    def run_batches(self, kernel, *arguments):
        calls.append(kernel.__name__)
        return original(self, kernel, *arguments)

    monkeypatch.setattr(executor._StepExecutor, "long_steps", True)
    monkeypatch.setattr(executor, "CALL_SECONDS", 1e-9)
    monkeypatch.setattr(executor.Executor, "run_batches", run_batches)
    return calls


def trained(example, optimizer, threads=2):
    net = network(example, LOSS, penalty=nn.L2(0.1), dtype="float32")
    x, y = inputs(example, 150), targets(LOSS, 150)
    gradient = net.gradient(x, y, LOSS.loss, threads=threads)
    history = net.fit(
        x,
        y,
        loss=LOSS.loss,
        optimizer=optimizer,
        batch_size=70,
        epochs=2,
        verbose=0,
        threads=threads,
    )
    return gradient.tobytes(), net.memory.tobytes(), history.history


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_a_cut_step_gives_the_same_bits(example, request):
    expected = trained(example, OPTIMIZERS["adam"])
    calls = request.getfixturevalue("cut")
    assert trained(example, OPTIMIZERS["adam"]) == expected
    assert set(calls) == {"run_stage"} and len(calls) > 9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_cut_step_gives_the_same_bits_with_every_optimizer(optimizer, request):
    example = example_named("two dense layers")
    expected = trained(example, OPTIMIZERS[optimizer], threads=1)
    request.getfixturevalue("cut")
    assert trained(example, OPTIMIZERS[optimizer]) == expected


def test_an_interrupt_within_a_step_leaves_no_trace(cut, monkeypatch):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(300, 20)).astype("float32"), generator.integers(0, 3, 300)

    def build():
        return nn.Sequential(
            [nn.Dense(16, activation="tanh"), nn.Dense(3, activation="softmax")], 20, seed=4
        )

    fit = {"optimizer": nn.Adam(), "batch_size": None, "verbose": 0, "threads": 2}
    expected = build()
    expected.fit(x, y, epochs=3, **fit)
    steps = len(cut) // 3
    counted = executor.Executor.run_batches
    for stop in range(1, steps - 1):
        net = build()
        net.fit(x, y, **fit)
        before, count = net.memory.copy(), []

        def run_batches(self, kernel, *arguments, count=count, stop=stop):
            if len(count) == stop:
                count.clear()
                monkeypatch.setattr(executor.Executor, "run_batches", counted)
                raise KeyboardInterrupt
            count.append(kernel)
            return counted(self, kernel, *arguments)

        monkeypatch.setattr(executor.Executor, "run_batches", run_batches)
        with pytest.raises(KeyboardInterrupt):
            net.fit(x, y, **fit)
        assert np.array_equal(net.memory, before)
        net.fit(x, y, epochs=2, **fit)
        assert np.array_equal(net.memory, expected.memory)


def test_a_diverging_cut_step_is_noticed(cut):
    net = nn.Sequential([nn.Dense(1)], 2, seed=1)
    x = np.full((50, 2), 1e30, np.float32)
    before = net.memory.copy()
    with pytest.raises(nn.DivergenceError):
        net.fit(x, np.zeros(50), optimizer="sgd", batch_size=None, verbose=0)
    assert np.array_equal(net.memory, before)
