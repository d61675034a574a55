"""A step applies the gradient, and a resumed training is the uninterrupted one."""

import numpy as np
import pytest

import numbanet as nn
from examples import (
    LOSSES,
    OPTIMIZERS,
    PENALTIES,
    TRAINABLE,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    targets,
)
from numbanet.plan.columns import INPUTS, TARGETS
from numbanet.training.epoch import reuse_optimizer_state, take_epochs

LOSS = loss_named("mean squared error")
ALONE = [example for example in TRAINABLE if example.alone]


@pytest.mark.parametrize("example", ALONE, ids=named(ALONE))
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_of_sgd_with_rate_one_subtracts_the_gradient(example, threads):
    for penalty in PENALTIES:
        net, x, y = network(example, LOSS, penalty=penalty), inputs(example, 17), targets(LOSS, 17)
        before, gradient = net.parameters.copy(), net.gradient(x, y, LOSS.loss, threads=threads)
        net.fit(
            x,
            y,
            loss=LOSS.loss,
            optimizer=nn.SGD(1.0),
            batch_size=None,
            shuffle=False,
            threads=threads,
        )
        assert np.abs(gradient).max() > 1e-3
        np.testing.assert_array_equal(net.parameters, before - gradient)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_a_step_subtracts_the_gradient_of_every_loss(loss):
    net, x, y = (
        network(example_named("dense"), loss),
        inputs(example_named("dense"), 17),
        targets(loss, 17),
    )
    before, gradient = net.parameters.copy(), net.gradient(x, y, loss.loss)
    history = net.fit(x, y, loss=loss.loss, optimizer=nn.SGD(1.0), batch_size=None, shuffle=False)
    np.testing.assert_array_equal(net.parameters, before - gradient)
    net.parameters = before
    assert history.history["loss"][0] == pytest.approx(net.loss(x, y, loss.loss), rel=1e-14)


def test_the_gradient_leaves_the_network_alone():
    net, x, y = (
        network(example_named("dense"), LOSS),
        inputs(example_named("dense"), 17),
        targets(LOSS, 17),
    )
    before = net.parameters.tobytes()
    first = net.gradient(x, y, LOSS.loss)
    second = net.gradient(x, y, LOSS.loss)
    assert net.parameters.tobytes() == before
    assert first.tobytes() == second.tobytes() and first is not second


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resuming_is_going_on(optimizer, dtype):
    example = example_named("two dense layers")
    x, y = inputs(example, 26), targets(LOSS, 26)

    def trained(*parts):
        net = network(example, LOSS, dtype=dtype, penalty=nn.L2(0.01))
        losses = []
        for epochs in parts:
            history = net.fit(
                x, y, loss=LOSS.loss, optimizer=OPTIMIZERS[optimizer], batch_size=8, epochs=epochs
            )
            losses += history.history["loss"]
        return net.parameters.tobytes(), net.optimizer_state.tobytes(), losses

    whole = trained(5)
    assert trained(2, 3) == whole
    assert trained(1, 1, 1, 1, 1) == whole
    assert len(set(whole[2])) == 5


def test_the_same_seed_gives_the_same_training_and_another_another():
    x, y = inputs(example_named("dense"), 20), targets(LOSS, 20)

    def trained(seed):
        net = network(example_named("dense"), LOSS, seed=seed)
        # only the order differs
        net.parameters = np.random.default_rng(9).normal(size=net.parameters.shape)
        net.fit(x, y, loss=LOSS.loss, batch_size=3, optimizer=nn.SGD(0.1))
        return net.parameters.tobytes()

    assert trained(1) == trained(1) != trained(2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "two batches and a clipped norm"])
def test_epochs_in_one_call_are_epochs_one_by_one(optimizer, threads):
    one = OPTIMIZERS.get(optimizer, nn.SGD(0.3, clip_norm=0.1, accumulate=2))
    example = example_named("dropout in place")
    x, y = inputs(example, 26), targets(LOSS, 26)
    orders = np.array([np.random.default_rng(k).permutation(26) for k in range(5)])
    nets, sums, penalties = [], [], []
    for calls in ([orders], np.split(orders, [2, 3]), orders[:, None]):
        net = network(example, LOSS, penalty=nn.L2(0.01))
        reuse_optimizer_state(net, one)
        trainer = net.executors.training(
            LOSS.loss, one, x, y, False, batch=6, batches=5, threads=threads
        )
        trainer.set_optimizer(one)
        trainer.bind(INPUTS, x)
        trainer.bind(TARGETS, y)
        trainer.sum_penalties()
        for some in calls:
            some = np.ascontiguousarray(some)
            assert take_epochs(net, trainer, 26, some, None) == 5 * len(some)
            net.epoch += len(some)
            sums += trainer.sums[: len(some)].tolist()
            penalties += trainer.penalty_sums[: len(some)].tolist()
        nets.append(net)
    assert len(sums) == 15 and min(map(min, penalties)) >= 0 < max(map(max, penalties))
    for k, net in enumerate(nets):
        assert net.memory.tobytes() == nets[0].memory.tobytes()
        assert net.optimizer_state.tobytes() == nets[0].optimizer_state.tobytes()
        assert net.optimizer_steps == nets[0].optimizer_steps == 5 * one.updates(5, 5)
        assert sums[5 * k : 5 * k + 5] == sums[:5]
        assert penalties[5 * k : 5 * k + 5] == penalties[:5]
