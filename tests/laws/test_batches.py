"""Samples are independent: neither the other samples of a batch nor their order changes results."""

import numpy as np
import pytest
from checkers import close

import numbanet as nn
from examples import (
    LAYERS,
    LOSSES,
    TRAINABLE,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    targets,
)

ALONE = [example for example in TRAINABLE if example.alone]
LOSS = loss_named("quadratic")


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_output_does_not_depend_on_companions(example, dtype):
    net, x = network(example, dtype=dtype), inputs(example, 23)
    together = net.predict(x)
    for i in range(len(x)):
        assert net.predict(x[i : i + 1]).tobytes() == together[i : i + 1].tobytes()
    for size in (2, 5, 8, 17):
        assert net.predict(x[3 : 3 + size]).tobytes() == together[3 : 3 + size].tobytes()


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_prediction_and_later_ones_are_the_same_bits(example, dtype):
    """Later ones of so few samples are done by one thread in one call, many micro-batches long."""
    net, x = network(example, dtype=dtype), inputs(example, 150)
    first = net.predict(x)
    assert net.executors.small_batch
    for _ in range(2):
        assert net.predict(x).tobytes() == first.tobytes()
    assert net.predict(x[70:]).tobytes() == first[70:].tobytes()


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_a_permuted_batch_gives_permuted_outputs(example):
    net, x = network(example, dtype="float32"), inputs(example, 23)
    order = np.random.default_rng(7).permutation(23)
    assert net.predict(x[order]).tobytes() == net.predict(x)[order].tobytes()


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_a_permuted_batch_has_the_same_loss_and_gradient(loss):
    net, x, y = (
        network(example_named("dense"), loss),
        inputs(example_named("dense"), 23),
        targets(loss, 23),
    )
    order = np.random.default_rng(7).permutation(23)
    close(net.loss(x[order], y[order], loss.loss), net.loss(x, y, loss.loss), 1e-14)
    close(net.gradient(x[order], y[order], loss.loss), net.gradient(x, y, loss.loss), 1e-14)


@pytest.mark.parametrize("example", ALONE, ids=named(ALONE))
def test_the_gradient_of_a_batch_is_the_mean_of_its_samples(example):
    net, x, y = network(example, LOSS), inputs(example, 11), targets(LOSS, 11)
    each = [net.gradient(x[i : i + 1], y[i : i + 1], LOSS.loss) for i in range(len(x))]
    close(net.gradient(x, y, LOSS.loss), np.mean(each, axis=0), 1e-13)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_the_loss_of_a_batch_is_the_mean_of_its_samples(loss):
    net, x, y = (
        network(example_named("dense"), loss),
        inputs(example_named("dense"), 11),
        targets(loss, 11),
    )
    close(
        net.loss(x, y, loss.loss),
        np.mean([net.loss(x[i : i + 1], y[i : i + 1], loss.loss) for i in range(11)]),
        1e-14,
    )


@pytest.mark.parametrize("example", ALONE, ids=named(ALONE))
def test_batches_of_one_are_one_example_at_a_time(example):
    x, y = inputs(example, 6), targets(LOSS, 6)
    at_once, one_by_one = network(example, LOSS), network(example, LOSS)
    at_once.fit(
        x, y, loss=LOSS.loss, optimizer=nn.SGD(0.1, momentum=0.5), batch_size=1, shuffle=False
    )
    for i in range(len(x)):
        one_by_one.fit(
            x[i : i + 1], y[i : i + 1], loss=LOSS.loss, optimizer=nn.SGD(0.1, momentum=0.5)
        )
    assert at_once.parameters.tobytes() == one_by_one.parameters.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_evaluation_in_several_batches_is_the_mean_over_all_samples(threads):
    example, loss = example_named("dense"), loss_named("cross-entropy of labels")
    net, x, y = network(example, loss), inputs(example, 2500), targets(loss, 2500)
    outputs = net.predict(x, threads=threads)
    found = net.evaluate(x, y, threads=threads)
    assert found["accuracy"] == (outputs.argmax(axis=1) == y).mean()
    close(found["loss"], -np.log(outputs[np.arange(2500), y]).mean(), 1e-13)
    assert outputs[2050:2060].tobytes() == net.predict(x[2050:2060]).tobytes()
