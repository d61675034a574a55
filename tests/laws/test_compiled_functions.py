"""The functions of `numbanet.compiled` agree with the network, over the tables of examples.

Work memory is filled with NaN before each call: what a function reads it has written itself.
"""

import numpy as np
import pytest
from checkers import Kink, close, difference

import numbanet as nn
from examples import (
    LAYERS,
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
from numbanet import compiled as c
from numbanet.nn.schedules import Schedule

LOSS = loss_named("mean squared error")
STEPPED = {
    name: one
    for name, one in OPTIMIZERS.items()
    if not (isinstance(one.learning_rate, Schedule) or one.around)
}


def work_for(model, dtype="float64"):
    """Work memory whose contents would show."""
    return np.full(c.work_size(model), np.nan, dtype)


def gradients(net, model, x, dout):
    """(by the parameters, by the inputs) of Σ dout · outputs, by `vjp`."""
    dparams, drow = np.zeros(net.parameters.size, net.dtype), np.full_like(x, np.nan)
    if isinstance(net.layers[0].layer, nn.Embedding):
        drow = np.zeros(0, net.dtype)
    c.vjp(model, net.memory, x, dout, dparams, drow, work_for(model, net.dtype))
    return dparams, drow


def without_penalties(net, gradient):
    """A gradient without those of the layers' own L2 penalties."""
    for built in net.layers:
        penalty = getattr(built.layer, "penalty", None)
        if built.n_parameters and penalty is not None:
            first = built.offset
            gradient[first : first + built.weights.size] -= penalty.strength * built.weights.ravel()
    return gradient


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_forward_is_predict(example, dtype):
    net = network(example, LOSS, dtype=dtype)
    for rows in (1, 5):
        x, out = inputs(example, rows, dtype=dtype), np.full((rows, *net.output_shape), np.nan)
        model = net.handle(rows=rows, gradient=example.trains)
        c.forward(model, net.memory, x, out, work_for(model, dtype))
        close(out, net.predict(x), 1e-13 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_vjp_agrees_with_differences(example):
    """By the parameters and by the inputs, at the first point drawn that is smooth."""
    for rows in (1, 3):
        for draw in range(40):
            net = network(example, LOSS, seed=7 + 1000 * draw)
            x = inputs(example, rows, 11 + draw)
            dout = np.random.default_rng([rows, draw]).normal(size=(rows, 3))
            model = net.handle(rows=rows)

            def value(net=net, x=x, dout=dout):
                return (dout * net.predict(x)).sum()

            try:
                expected = [difference(value, net.parameters)]
                expected += [] if example.vocabulary else [difference(value, x.reshape(-1))]
            except Kink:
                continue
            found = gradients(net, model, x, dout)
            for one, other in zip(found, expected, strict=not example.vocabulary):
                close(one.reshape(-1), other, 1e-6)
            break
        else:
            raise AssertionError("no smooth point found")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_vjp_is_the_gradient_of_the_network(example, dtype):
    net, tolerance = network(example, LOSS, dtype=dtype), 1e-12 if dtype == "float64" else 1e-4
    for rows in (1, 5):
        x, y = inputs(example, rows, dtype=dtype), targets(LOSS, rows).astype(dtype)
        model, dout = net.handle(rows=rows), (net.predict(x) - y) / rows
        dparams, drow = gradients(net, model, x, dout)
        close(dparams, without_penalties(net, net.gradient(x, y, "quadratic")), tolerance)
        work, none = work_for(model, dtype), np.zeros(0, dtype)
        only, again = np.zeros_like(dparams), np.full_like(drow, np.nan)
        c.vjp(model, net.memory, x, dout, only, none, work)
        c.vjp(model, net.memory, x, dout, only, none, work)
        close(only, 2 * dparams, tolerance)
        if example.vocabulary:
            with pytest.raises(ValueError, match="no derivative by the inputs; pass an empty drow"):
                c.vjp(model, net.memory, x, dout, none, np.zeros_like(x), work)
        else:
            c.vjp(model, net.memory, x, dout, none, again, work_for(model, dtype))
            assert again.tobytes() == drow.tobytes()


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
@pytest.mark.parametrize("example", ["dense", "rescale first", "conv and pool on planes"])
def test_the_loss_and_its_gradient_are_the_networks(example, loss):
    example = example_named(example)
    for number, penalty in enumerate(PENALTIES):
        rows = 1 + number
        net = network(example, loss, penalty=penalty, width=4)
        x, y = inputs(example, rows), targets(loss, rows, 4)
        model, found = net.handle(rows=rows, loss=loss.loss), np.zeros(net.parameters.size)
        value = c.loss_gradient(model, net.memory, x, y, found, work_for(model))
        assert value == pytest.approx(net.loss(x, y, loss.loss), rel=1e-12)
        close(found, net.gradient(x, y, loss.loss), 1e-12)
        none = np.zeros(0)
        assert value == c.loss_gradient(model, net.memory, x, y, none, work_for(model))


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_loop_of_gradients_and_updates_is_fit(name, dtype):
    example, batches, epochs = example_named("two dense layers"), 3, 4
    nets = [network(example, LOSS, dtype=dtype, penalty=PENALTIES[1]) for _ in range(2)]
    x, y = inputs(example, 4 * batches, dtype=dtype), targets(LOSS, 4 * batches).astype(dtype)
    recipe = {"loss": LOSS.loss, "optimizer": STEPPED[name], "batch_size": 4, "shuffle": False}
    nets[0].fit(x, y, epochs=epochs, verbose=0, **recipe)
    model = nets[1].handle(rows=4, loss=LOSS.loss, optimizer=STEPPED[name])
    params, work = nets[1].memory.copy(), work_for(model, dtype)
    state, grads = np.zeros(c.state_size(model), dtype), np.zeros(nets[1].parameters.size, dtype)
    for t in range(epochs * batches):
        batch, grads[:] = slice(4 * (t % batches), 4 * (t % batches) + 4), 0
        c.loss_gradient(model, params, x[batch], y[batch], grads, work)
        c.update(model, params, grads, state, t + 1)
    close(params[: grads.size], nets[0].parameters, 1e-12 if dtype == "float64" else 1e-5)
    close(state, nets[0].optimizer_state, 1e-12 if dtype == "float64" else 1e-5)


def test_vjp_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    net = nn.Sequential(
        [
            nn.Conv2D(4, 3, activation="tanh"),
            nn.LayerNorm(),
            nn.AvgPool2D(2),
            nn.Flatten(),
            nn.Dense(6, activation="sigmoid"),
            nn.Dense(3, activation="softmax"),
        ],
        (8, 9, 2),
        dtype="float64",
    )
    generator = np.random.default_rng(5)
    x, dout = generator.normal(size=(2, 8, 9, 2)), generator.normal(size=(2, 3))
    dparams, drow = gradients(net, net.handle(rows=2), x, dout)
    params = [
        torch.tensor(values, requires_grad=True)
        for built in net.layers
        for values in built.parameters.values()
    ]
    k, kb, gamma, beta, w1, b1, w2, b2 = params
    source = torch.tensor(x, requires_grad=True)
    a = torch.nn.functional.conv2d(source.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), kb)
    a = torch.tanh(a).permute(0, 2, 3, 1)
    a = torch.nn.functional.layer_norm(a, a.shape[-1:], gamma, beta, eps=1e-5)
    a = torch.nn.functional.avg_pool2d(a.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    a = torch.sigmoid(a.reshape(2, -1) @ w1 + b1)
    (torch.softmax(a @ w2 + b2, dim=1) * torch.tensor(dout)).sum().backward()
    close(drow, source.grad.numpy(), 1e-9)
    close(dparams, np.concatenate([one.grad.numpy().reshape(-1) for one in params]), 1e-9)
