"""The functions of `numbanet.compiled` agree with the network, over the tables of examples.

Work memory is filled with NaN before each call: what a function reads it has written itself.
"""

import numpy as np
import pytest
from checkers import _CALL, Kink, close, difference, directions
from reference import REFERENCES

import numbanet as nn
from examples import (
    LAYERS,
    LOSSES,
    PENALTIES,
    SMOOTH,
    STEPPED,
    TRAINABLE,
    example_named,
    inputs,
    loss_named,
    named,
    network,
    targets,
)
from numbanet import compiled as c
from numbanet.engine.reference import Row, kernel_name
from numbanet.network.handle import TangentProgram, prediction_plan
from numbanet.plan.columns import ROW_SIZE, SCRATCH

LOSS = loss_named("mean squared error")


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
        c.forward(model, net.memory, x, np.empty_like(dout), work)
        for scale in (1, 2):  # the second half alone, more than once
            halves = np.zeros_like(dparams), np.full_like(drow, np.nan)
            c.pullback(model, net.memory, scale * dout, *halves, work)
            close(halves[0], scale * dparams, tolerance)
            close(halves[1], scale * drow, tolerance)
        only, again = np.zeros_like(dparams), np.full_like(drow, np.nan)
        c.vjp(model, net.memory, x, dout, only, none, work)
        c.vjp(model, net.memory, x, dout, only, none, work)
        close(only, 2 * dparams, tolerance)
        if example.vocabulary:
            with pytest.raises(ValueError, match="no derivative by the inputs: pass an empty"):
                c.vjp(model, net.memory, x, dout, none, np.zeros_like(x), work)
        else:
            c.vjp(model, net.memory, x, dout, none, again, work_for(model, dtype))
            assert again.tobytes() == drow.tobytes()


# --- jvp and hvp ----------------------------------------------------------------------------------


def outputs_and_tangents(net, model, x, drow, dparams):
    out = np.full((len(x), *net.output_shape), np.nan, net.dtype)
    dout = np.full_like(out, np.nan)
    c.jvp(model, net.memory, x, drow, dparams, out, dout, work_for(model, net.dtype))
    return out, dout


def second(net, model, x, dout, vrow, vparams):
    """(by the inputs, by the parameters) of the second derivative times a direction."""
    hrow, hparams = np.full_like(vrow, np.nan), np.zeros(net.parameters.size, net.dtype)
    work = work_for(model, net.dtype)
    c.hvp(model, net.memory, x, dout, vrow, vparams, hrow, hparams, work)
    return hrow, hparams


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_a_layer_that_is_not_smooth_has_no_hvp(example):
    net = network(example, LOSS)
    net.handle(jvp=True)
    if example not in SMOOTH:
        with pytest.raises(ValueError, match="has no second derivative, which hvp needs"):
            net.handle(hvp=True)
    else:
        net.handle(hvp=True)


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_jvp_is_the_transpose_of_vjp(example):
    """dout · (J v) = (Jᵀ dout) · v, for directions of inputs and parameters, and for each alone."""
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        net, rows = network(example, LOSS, dtype=dtype), 3
        x = inputs(example, rows, dtype=dtype)
        model, transposed = net.handle(rows=rows, jvp=True), net.handle(rows=rows)
        forward_only = net.handle(rows=rows, jvp=True, gradient=False)
        drow, dparams = directions(net, x)
        dout = np.random.default_rng(1).normal(size=(rows, 3)).astype(dtype)
        by_params, by_row = gradients(net, transposed, x, dout)
        for v, w in ((drow, dparams), (drow, dparams[:0]), (drow[:0], dparams)):
            out, tangent = outputs_and_tangents(net, model, x, v, w)
            close(out, net.predict(x), tolerance)
            found = np.dot(dout.ravel(), tangent.ravel())
            parts = [by_row.ravel() * v.ravel() if v.size else 0, by_params * w if w.size else 0]
            scale = sum(np.abs(part).sum() for part in parts) + 1e-3
            assert abs(found - sum(np.sum(part) for part in parts)) <= tolerance * scale
            again = outputs_and_tangents(net, forward_only, x, v, w)[1]
            close(again, tangent, tolerance)


@pytest.mark.parametrize("example", SMOOTH, ids=named(SMOOTH))
def test_hvp_agrees_with_differences_of_vjp(example):
    for rows in (1, 3):
        net, x = network(example, LOSS), inputs(example, rows)
        vrow, vparams = directions(net, x, rows)
        dout = np.random.default_rng(rows).normal(size=(rows, 3))
        model, step, before = net.handle(rows=rows, hvp=True), 1e-4, net.parameters.copy()
        for v, w in ((vrow, vparams), (vrow, vparams[:0]), (vrow[:0], vparams)):
            sides = []
            for k in (-2, -1, 1, 2):
                net.parameters[:] = before + (k * step * w if w.size else 0)
                place = x + (k * step * v if v.size else 0)
                sides.append(gradients(net, model, place, dout))
            net.parameters[:] = before
            by_params, by_row = (
                (far - 8 * near + 8 * above - beyond) / (12 * step)
                for far, near, above, beyond in zip(*sides, strict=True)
            )
            hrow, hparams = np.full_like(vrow, np.nan), np.zeros_like(before)
            work = work_for(model)
            c.hvp(model, net.memory, x, dout, v, w, hrow, hparams, work)
            close(hparams, by_params, 1e-7)
            if hrow.size:
                close(hrow, by_row, 1e-7)
            again, none = np.full_like(hrow, np.nan), np.zeros(0)
            c.hvp(model, net.memory, x, dout, v, w, again, none, work_for(model))
            assert again.tobytes() == hrow.tobytes()
            again = hparams.copy()
            c.hvp(model, net.memory, x, dout, v, w, none, again, work_for(model))
            close(again, 2 * hparams, 1e-12)


@pytest.mark.parametrize("example", SMOOTH, ids=named(SMOOTH))
def test_second_derivatives_are_symmetric(example):
    """w · (H v) = v · (H w), in float64 and, to rounding, in float32."""
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        net, x = network(example, LOSS, dtype=dtype), inputs(example, 2, dtype=dtype)
        model, dout = net.handle(rows=2, hvp=True), np.ones((2, 3), dtype)
        pairs = [directions(net, x, seed) for seed in (1, 2)]
        products = [second(net, model, x, dout, *pair) for pair in pairs]
        sides = [
            [np.ravel(h) * np.ravel(v) for h, v in zip(products[k], pairs[1 - k], strict=True)]
            for k in (0, 1)
        ]
        scale = sum(np.abs(part).sum() for part in sides[0]) + 1e-3
        first, other = (sum(float(part.sum()) for part in side) for side in sides)
        assert abs(first - other) <= tolerance * scale


class Replayed:
    """The memories of a tangent program, filled at random, and its steps in Python."""

    def __init__(self, net, rows, hvp):
        plan = prediction_plan(net, rows, True, True)
        self.program, self.dtype = TangentProgram(plan, hvp), net.dtype
        generator = np.random.default_rng(3)
        sizes = [net.memory.size, net.parameters.size, self.program.work_size]
        self.params, self.grads, self.work = (generator.uniform(0.1, 0.9, n) for n in sizes)

    def memories(self, step):
        copies = [one.copy() for one in (self.params, self.grads, self.work)]
        return copies, [
            *copies[:2],
            copies[2][step.acts :],
            copies[2][step.deltas :],
        ]

    def both(self, step):
        """What the kernel of a step, and its reference, leave in the three memories."""
        kernel, end = step.kernel, step.end
        row, found = Row(self.program.table, step.row // ROW_SIZE, {}), []
        for compiled in (True, False):
            copies, given = self.memories(step)
            if compiled:
                place = self.program.table.ctypes.data + step.row * 8
                _CALL(kernel.address(self.dtype))(
                    place, *(one.ctypes.data for one in given), 0, end
                )
            else:
                REFERENCES[kernel_name(kernel)](row, *given, 0, end)
            found.append(copies)
        return kernel, found


@pytest.mark.parametrize("example", TRAINABLE, ids=named(TRAINABLE))
def test_every_kernel_of_a_tangent_pass_agrees_with_its_reference(example):
    replayed, scratch = Replayed(network(example, LOSS), 3, example in SMOOTH), []
    for row, op in replayed.program.plan.by_row.items():
        start = replayed.program.table[row, SCRATCH]
        scratch += [np.arange(start, start + op.scratch)] if op.scratch else []
    for step in replayed.program.steps:
        kernel, (found, expected) = replayed.both(step)
        for one, other in zip(found, expected, strict=True):
            if len(one) == len(replayed.work) and scratch:
                for shift in (0, replayed.program.tangents):
                    one[np.concatenate(scratch) + shift] = other[np.concatenate(scratch) + shift]
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13, err_msg=str(kernel))
        replayed.work = found[2]  # what a backward pass reads, a forward pass has left


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


@pytest.mark.parametrize("name", ["two dense layers", "conv after conv", "gru"])
def test_a_loop_of_vjp_and_updates_is_fit(name):
    """With the derivative of the loss, ½ |outputs − y|², taken by the caller."""
    example, batches = example_named(name), 3
    nets = [network(example, LOSS) for _ in range(2)]
    x, y = inputs(example, 4 * batches), targets(LOSS, 4 * batches)
    recipe = {"loss": "quadratic", "optimizer": "adam", "batch_size": 4, "shuffle": False}
    nets[0].fit(x, y, epochs=2, verbose=0, **recipe)
    model, params, out = nets[1].handle(rows=4, optimizer="adam"), nets[1].memory.copy(), y[:4] * 0
    state, work, none = np.zeros(c.state_size(model)), work_for(model), np.zeros(0)
    for t in range(2 * batches):
        batch = slice(4 * (t % batches), 4 * (t % batches) + 4)
        grads = np.zeros(nets[1].parameters.size)
        c.forward(model, params, x[batch], out, work)
        c.vjp(model, params, x[batch], (out - y[batch]) / 4, grads, none, work)
        c.update(model, params, grads, state, t + 1)
    close(params[: grads.size], nets[0].parameters, 1e-12)


def test_vjp_jvp_and_hvp_agree_with_pytorch():
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

    def outputs(source, k, kb, gamma, beta, w1, b1, w2, b2):
        conv = torch.nn.functional.conv2d
        a = torch.tanh(conv(source.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), kb))
        a = a.permute(0, 2, 3, 1)
        a = torch.nn.functional.layer_norm(a, a.shape[-1:], gamma, beta, eps=1e-5)
        a = torch.nn.functional.avg_pool2d(a.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        a = torch.sigmoid(a.reshape(2, -1) @ w1 + b1)
        return torch.softmax(a @ w2 + b2, dim=1)

    generator = np.random.default_rng(5)
    x, dout = generator.normal(size=(2, 8, 9, 2)), generator.normal(size=(2, 3))
    vrow, vparams = directions(net, x)
    parameters = [values for built in net.layers for values in built.parameters.values()]
    given = tuple(torch.tensor(one, requires_grad=True) for one in (x, *parameters))
    ends = np.cumsum([one.size for one in parameters])[:-1]
    pieces = zip(np.split(vparams, ends), parameters, strict=True)
    direction = (vrow, *(piece.reshape(one.shape) for piece, one in pieces))
    direction = tuple(map(torch.tensor, direction))

    def flat(tensors):
        """(by the inputs, by the parameters)"""
        return tensors[0].numpy(), np.concatenate([one.numpy().reshape(-1) for one in tensors[1:]])

    total = (outputs(*given) * torch.tensor(dout)).sum()
    first = torch.autograd.grad(total, given, create_graph=True)
    model = net.handle(rows=2, hvp=True)
    dparams, drow = gradients(net, model, x, dout)
    by_row, by_params = flat([one.detach() for one in first])
    close(drow, by_row, 1e-9)
    close(dparams, by_params, 1e-9)
    along = sum((one * v).sum() for one, v in zip(first, direction, strict=True))
    by_row, by_params = flat(torch.autograd.grad(along, given))
    hrow, hparams = second(net, model, x, dout, vrow, vparams)
    close(hrow, by_row, 1e-9)
    close(hparams, by_params, 1e-9)
    tangent = torch.func.jvp(outputs, tuple(one.detach() for one in given), direction)[1]
    close(outputs_and_tangents(net, model, x, vrow, vparams)[1], tangent.numpy(), 1e-9)
