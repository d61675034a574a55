"""The compiled engine and the reference engine with its kernels agree, to rounding."""

import numpy as np
import pytest
from checkers import (
    close,
    penalty_of_an_epoch,
    reference_evaluate,
    reference_fit,
    reference_gradient,
    reference_predict,
)

import numbanet as nn
from examples import (
    LAYERS,
    LOSSES,
    OPTIMIZERS,
    PENALTY,
    TRAINABLE,
    TWO_PENALTIES,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    set_groups,
    targets,
)
from numbanet.plan.columns import INPUTS, PENALTY_FACTORS, TARGETS
from numbanet.training.epoch import reuse_optimizer_state, take_epochs

ROUNDING = 1e-12
LOSS = loss_named("quadratic")


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
@pytest.mark.parametrize("threads", [1, 3])
def test_outputs_agree(example, threads):
    net, x = network(example), inputs(example, 21)
    close(net.predict(x, threads=threads), reference_predict(net, x, threads=threads), ROUNDING)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_agree_for_every_layer(example, threads):
    net, x, y = (
        network(example, LOSS, penalty=TWO_PENALTIES),
        inputs(example, 13),
        targets(LOSS, 13),
    )
    close(
        net.gradient(x, y, LOSS.loss, threads=threads),
        reference_gradient(net, x, y, LOSS.loss, threads=threads)[0],
        ROUNDING,
    )


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
@pytest.mark.parametrize("samples", [1, 11])
def test_losses_gradients_and_correct_answers_agree(loss, samples):
    net, x, y = (
        network(example_named("dense"), loss, width=4),
        inputs(example_named("dense"), samples),
        targets(loss, samples, 4),
    )
    gradient, value = reference_gradient(net, x, y, loss.loss)
    found = net.evaluate(x, y, loss=loss.loss)
    close(net.gradient(x, y, loss.loss), gradient, ROUNDING)
    close(found["loss"], value, ROUNDING)
    mean, correct = reference_evaluate(net, x, y, loss.loss)
    close(found["loss"], mean, ROUNDING)
    assert found.get("accuracy", 0) == correct


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
@pytest.mark.parametrize("threads", [1, 3])
def test_losses_gradients_and_correct_answers_agree_for_targets_over_time(loss, threads):
    steps, width = 3, 4
    layers = [nn.Dense(5, activation="tanh"), nn.Dense(width, activation=loss.activation)]
    net = nn.Sequential(layers, (steps, 2), "float64", seed=1)
    x = np.random.default_rng(0).normal(size=(11, steps, 2))
    y = targets(loss, 11 * steps, width)
    y = y.reshape(11, steps, *y.shape[1:])
    gradient, value = reference_gradient(net, x, y, loss.loss, threads=threads)
    found = net.evaluate(x, y, loss=loss.loss, threads=threads)
    close(net.gradient(x, y, loss.loss, threads=threads), gradient, ROUNDING)
    close(found["loss"], value, ROUNDING)
    mean, correct = reference_evaluate(net, x, y, loss.loss, threads=threads)
    close(found["loss"], mean, ROUNDING)
    close(found.get("accuracy", 0), correct, ROUNDING)


@pytest.mark.parametrize("classes", [True, False])
def test_three_steps_agree_for_targets_over_time_with_weights(classes):
    steps, generator = 3, np.random.default_rng(0)
    layers = [nn.Dense(5, activation="tanh"), nn.Dense(4, activation="softmax")]
    net = nn.Sequential(layers, (steps, 2), "float64", seed=1)
    x, weights = generator.normal(size=(14, steps, 2)), generator.uniform(size=(14, steps))
    y = generator.integers(0, 4, (14, steps)) if classes else np.full((14, steps, 4), 0.25)
    loss, momentum = nn.CrossEntropy(), OPTIMIZERS["momentum"]
    params, _, losses = reference_fit(net, x, y, loss, momentum, 6, 1, sample_weight=weights)
    options = {"loss": loss, "optimizer": momentum, "batch_size": 6, "epochs": 1}
    history = net.fit(x, y, sample_weight=weights, **options)
    close(net.memory, params, ROUNDING)
    close(history.history["loss"][0], losses[0], ROUNDING)


@pytest.mark.parametrize("bits", ["labels", "bits"])
def test_correct_answers_of_a_single_output_agree(bits):
    x = inputs(example_named("dense"), 19)
    y = np.random.default_rng(4).integers(0, 2, 19)
    for loss, final in ((nn.BinaryCrossEntropy(), "sigmoid"), (nn.Quadratic(), "sigmoid")):
        net = nn.Sequential([nn.Dense(1, activation=final)], 7, "float64", seed=3)
        given = y if bits == "labels" else y[:, None].astype(float)
        found = net.evaluate(x, given, loss=loss)
        assert 0 < found["accuracy"] < 1
        assert found["accuracy"] == reference_evaluate(net, x, given, loss)[1]


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_three_steps_agree_for_every_layer(example):
    net, x, y = network(example, LOSS, penalty=nn.L2(0.1)), inputs(example, 14), targets(LOSS, 14)
    params, _, losses = reference_fit(net, x, y, LOSS.loss, OPTIMIZERS["momentum"], 6, 1)
    history = net.fit(
        x, y, loss=LOSS.loss, optimizer=OPTIMIZERS["momentum"], batch_size=6, epochs=1
    )
    close(net.memory, params, ROUNDING)
    close(history.history["loss"][0] - net.penalty_value(14, 3), losses[0], ROUNDING)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("threads", [1, 2])
def test_three_steps_and_three_more_agree_for_every_optimizer(optimizer, threads):
    example = example_named("dense with a list of activations")
    net, x, y = network(example, LOSS, penalty=PENALTY), inputs(example, 14), targets(LOSS, 14)
    before = net.memory.copy()
    params, state, _ = reference_fit(
        net, x, y, LOSS.loss, OPTIMIZERS[optimizer], 6, 2, threads=threads
    )
    net.fit(
        x,
        y,
        loss=LOSS.loss,
        optimizer=OPTIMIZERS[optimizer],
        batch_size=6,
        epochs=2,
        threads=threads,
    )
    close(net.memory - before, params - before, 1e-10)
    close(net.optimizer_state, state, 1e-11)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "adam with a schedule"])
@pytest.mark.parametrize("threads", [1, 2])
def test_layers_with_rates_and_decays_of_their_own_agree(optimizer, threads):
    example, chosen = example_named("two dense layers"), OPTIMIZERS[optimizer]
    net, x, y = set_groups(network(example, LOSS)), inputs(example, 14), targets(LOSS, 14)
    before = net.memory.copy()
    params, state, _ = reference_fit(net, x, y, LOSS.loss, chosen, 6, 2, threads=threads)
    net.fit(x, y, loss=LOSS.loss, optimizer=chosen, batch_size=6, epochs=2, threads=threads)
    close(net.memory - before, params - before, 1e-10)
    close(net.optimizer_state, state, 1e-11)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
@pytest.mark.parametrize("threads", [1, 2])
def test_weighted_samples_agree_for_every_loss(loss, threads):
    example = example_named("dense")
    net, x, y = network(example, loss, penalty=PENALTY), inputs(example, 14), targets(loss, 14)
    weights = np.random.default_rng(4).uniform(0, 3, 14)
    params, _, losses = reference_fit(
        net, x, y, loss.loss, nn.SGD(0.05), 5, 2, threads=threads, sample_weight=weights
    )
    history = net.fit(
        x,
        y,
        loss=loss.loss,
        optimizer=nn.SGD(0.05),
        batch_size=5,
        epochs=2,
        sample_weight=weights,
        threads=threads,
    )
    close(net.memory, params, ROUNDING)
    close(history.history["loss"][1] - net.penalty_value(14, 3), losses[1], ROUNDING)


@pytest.mark.parametrize("loss", [one for one in LOSSES if one.loss.neutral is not None], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_missing_targets_agree_for_every_loss(loss, weighted):
    example, generator = example_named("dense"), np.random.default_rng(6)
    net, x, y = network(example, loss, penalty=PENALTY), inputs(example, 14), targets(loss, 14)
    y = np.ma.array(y, mask=generator.uniform(size=y.shape) < 0.4)
    weights = generator.uniform(0, 3, 14) if weighted else None
    params, _, losses = reference_fit(
        net, x, y, loss.loss, nn.SGD(0.05), 5, 2, threads=2, sample_weight=weights
    )
    history = net.fit(
        x,
        y,
        loss=loss.loss,
        optimizer=nn.SGD(0.05),
        batch_size=5,
        epochs=2,
        sample_weight=weights,
        threads=2,
    )
    close(net.memory, params, ROUNDING)
    close(history.history["loss"][1] - net.penalty_value(14, 3), losses[1], ROUNDING)


def test_the_factors_of_penalties_agree():
    example, factors = example_named("dense"), np.array([1.5, 0.0, 7.0])
    net, x, y = (
        network(example, LOSS, penalty=TWO_PENALTIES),
        inputs(example, 14),
        targets(LOSS, 14),
    )
    params, _, _ = reference_fit(
        net, x, y, LOSS.loss, nn.SGD(0.3), 5, 1, shuffle=False, penalty_factors=factors
    )
    reuse_optimizer_state(net, nn.SGD(0.3))
    trainer = net.executors.training(
        LOSS.loss, net.optimizer, x, y, False, batch=5, batches=3, threads=1
    )
    for column, array in ((INPUTS, x), (TARGETS, y), (PENALTY_FACTORS, factors)):
        trainer.bind(column, array)
    trainer.set_optimizer(net.optimizer)
    assert take_epochs(net, trainer, 14, None, None) == 3
    close(net.memory, params, ROUNDING)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "two batches and a clipped norm"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_penalties_add_to_the_loss_is_the_norm_before_every_step(optimizer, threads):
    one = OPTIMIZERS.get(optimizer, nn.SGD(0.3, clip_norm=0.1, accumulate=2))
    found, expected = penalty_of_an_epoch("cpu", one, threads)
    close(found, expected, ROUNDING)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_three_steps_agree_for_every_loss(loss):
    example = example_named("two dense layers")
    net, x, y = network(example, loss, width=5), inputs(example, 14), targets(loss, 14, 5)
    params, _, losses = reference_fit(net, x, y, loss.loss, nn.SGD(0.3), 5, 1)
    history = net.fit(x, y, loss=loss.loss, optimizer=nn.SGD(0.3), batch_size=5)
    close(net.memory, params, ROUNDING)
    close(history.history["loss"], losses, ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_inputs_of_every_type_agree(dtype):
    example = example_named("dense wide")
    net = network(example, LOSS)
    x = np.random.default_rng(6).integers(0, 256, (12, 3)).astype(dtype)
    y = targets(LOSS, 12).astype("float32")
    close(net.predict(x), reference_predict(net, x), ROUNDING)
    close(net.gradient(x, y, LOSS.loss), reference_gradient(net, x, y, LOSS.loss)[0], ROUNDING)


def test_predictions_in_the_unit_of_scaled_targets_agree():
    net, x = (
        nn.Sequential([nn.Dense(3)], 4, "float64"),
        np.random.default_rng(7).normal(size=(9, 4)),
    )
    net.fit(x, 1e3 + 100 * x[:, :3], scale_targets=True, verbose=0)
    close(net.predict(x), reference_predict(net, x), ROUNDING)
    assert abs(net.predict(x).mean() - 1e3) < 500


def test_a_network_larger_than_a_block_agrees():
    net = nn.Sequential(
        [nn.Dense(70, activation="tanh"), nn.Dense(3, activation="softmax")], 33, "float64", seed=2
    )
    generator = np.random.default_rng(8)
    x, y = generator.normal(size=(150, 33)), generator.integers(0, 3, 150)
    close(
        net.gradient(x, y, threads=2),
        reference_gradient(net, x, y, nn.CrossEntropy(), threads=2)[0],
        ROUNDING,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_first_product_that_is_cut_by_its_inputs_agrees(dtype, threads):
    generator = np.random.default_rng(9)
    layers = [nn.Dense(29, activation="tanh"), nn.Dense(3, activation="softmax")]
    rescale = [nn.Rescale(1 / 255)] if dtype == "uint8" else []
    net = nn.Sequential([*rescale, *layers], 301, "float64", seed=2)
    net.parameters[:] = generator.normal(size=net.parameters.size) / 10
    x = (
        generator.integers(0, 256, (25, 301), np.uint8)
        if dtype == "uint8"
        else generator.normal(size=(25, 301)).astype(dtype)
    )
    y, loss = generator.integers(0, 3, 25), nn.CrossEntropy()
    few, labels = x[:9], y[:9]
    expected, _ = reference_gradient(net, few, labels, loss, threads=threads)
    close(net.gradient(few, labels, loss, threads=threads), expected, ROUNDING)
    params, _, losses = reference_fit(
        net, x, y, loss, OPTIMIZERS["momentum"], 9, 2, threads=threads
    )
    history = net.fit(
        x, y, loss=loss, optimizer=OPTIMIZERS["momentum"], batch_size=9, epochs=2, threads=threads
    )
    close(net.memory, params, ROUNDING)
    close(history.history["loss"], losses, ROUNDING)
    assert {executor.plan.uses_split_k for executor in net.executors.executors.values()} == {True}


def test_the_gradient_of_a_product_cut_by_its_inputs_is_that_of_one_cut_by_samples():
    net = nn.Sequential(
        [nn.Dense(29, activation="tanh", bias=False), nn.Dense(1)], 301, "float64", seed=2
    )
    generator = np.random.default_rng(10)
    x, y = generator.normal(size=(24, 301)), generator.normal(size=24)
    # 12 samples are few enough for a cut, 24 are not
    parts = [net.gradient(x[k : k + 12], y[k : k + 12]) for k in (0, 12)]
    close(sum(parts) / 2, net.gradient(x, y), ROUNDING)
    assert sorted(executor.plan.uses_split_k for executor in net.executors.executors.values()) == [
        False,
        True,
    ]
