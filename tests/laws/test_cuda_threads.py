"""A single thread of a GPU computes what the functions of `numbanet.compiled` do on the CPU.

On a GPU where there is one, else in Numba's simulator.
"""

import numpy as np
import pytest
from checkers import close, directions

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

pytest.importorskip("numba_cuda")
cuda = pytest.importorskip("numba.cuda")

LOSS, ROUNDING = loss_named("mean squared error"), 1e-11


def launched(function, *arrays):
    """Call a device function in one thread; the arrays as it leaves them.

    What it has to overwrite begins as NaN.
    """
    on_device = [cuda.to_device(np.ascontiguousarray(one)) for one in arrays]
    kernels = {
        3: cuda.jit(lambda a, b, c: function(a, b, c)),
        5: cuda.jit(lambda a, b, c, d, e: function(a, b, c, d, e)),
        6: cuda.jit(lambda a, b, c, d, e, f: function(a, b, c, d, e, f)),
        7: cuda.jit(lambda a, b, c, d, e, f, g: function(a, b, c, d, e, f, g)),
    }
    kernels[len(arrays)][1, 1](*on_device)
    return [one.copy_to_host() for one in on_device]


def with_result(function):
    """A device function of four arrays that writes what `function` returns into a fifth."""

    def call(a, b, c, d, out):
        out[0] = function(a, b, c, d)

    return cuda.jit(device=True)(call)


def results(net, x, dout, rows, gradient, jvp, hvp):
    """What the functions of a handle for the CPU write, by name."""
    model = net.handle(rows=rows, gradient=gradient, jvp=jvp, hvp=hvp)
    work, params, n = np.zeros(c.work_size(model)), net.memory, net.parameters.size
    vrow, vparams = directions(net, x)
    out, tangent = np.empty_like(dout), np.empty_like(dout)
    found = {}
    c.forward(model, params, x, out, work)
    found["forward"] = [out.copy()]
    if gradient:
        found["vjp"] = [np.zeros(n), np.empty_like(vrow)]
        c.vjp(model, params, x, dout, *found["vjp"], work)
    if jvp:
        for name, v, w in ways(vrow, vparams):
            c.jvp(model, params, x, v, w, out, tangent, work)
            found[f"jvp {name}"] = [out.copy(), tangent.copy()]
    if hvp:
        for name, v, w in ways(vrow, vparams):
            found[f"hvp {name}"] = [np.empty_like(vrow), np.zeros(n)]
            c.hvp(model, params, x, dout, v, w, *found[f"hvp {name}"], work)
    return found


def ways(vrow, vparams):
    """Directions of both, and of either alone."""
    return ("", vrow, vparams), ("of the inputs", vrow, vparams[:0]), ("", vrow[:0], vparams)


def results_of_a_thread(net, x, dout, rows, gradient, jvp, hvp):
    model = net.handle(rows=rows, gradient=gradient, jvp=jvp, hvp=hvp, device="cuda")
    params, n, nan = net.memory, net.parameters.size, np.full_like(dout, np.nan)
    vrow, vparams = directions(net, x)
    found = {"forward": launched(model.forward, params, x, nan)[2:]}
    grads, drow = np.zeros(n), np.full_like(vrow, np.nan)
    if gradient:
        found["vjp"] = launched(model.vjp, params, x, dout, grads, drow)[3:]
    if jvp:
        for name, v, w in ways(vrow, vparams):
            found[f"jvp {name}"] = launched(model.jvp, params, x, v, w, nan, nan)[4:]
    if hvp:
        for name, v, w in ways(vrow, vparams):
            found[f"hvp {name}"] = launched(model.hvp, params, x, dout, v, w, drow, grads)[5:]
    return found


@pytest.mark.parametrize("example", LAYERS, ids=named(LAYERS))
def test_forward_and_derivatives_are_those_of_the_cpu(example):
    net, trains, smooth = network(example, LOSS), example in TRAINABLE, example in SMOOTH
    for rows in (1, 2):
        x = inputs(example, rows)
        dout = np.random.default_rng(rows).normal(size=(rows, 3))
        given = net, x, dout, rows, trains, trains, smooth
        found, expected = results_of_a_thread(*given), results(*given)
        assert found.keys() == expected.keys()
        for name, arrays in expected.items():
            for one, other in zip(found[name], arrays, strict=True):
                close(one, other, ROUNDING)


@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_the_loss_and_its_gradient_are_those_of_the_cpu(loss):
    for rows, penalty in enumerate(PENALTIES, 1):
        net = network(example_named("rescale first"), loss, penalty=penalty, width=4)
        x, y = inputs(example_named("rescale first"), rows), targets(loss, rows, 4)
        options = {"loss": loss.loss, "rows": rows}
        model, expected = net.handle(**options), np.zeros(net.parameters.size)
        value = c.loss_gradient(model, net.memory, x, y, expected, np.zeros(c.work_size(model)))
        function = with_result(net.handle(device="cuda", **options).loss_gradient)
        for n in (expected.size, 0):
            found = launched(function, net.memory, x, y, np.zeros(n), np.zeros(1))
            assert found[4][0] == pytest.approx(value, rel=1e-12)
            close(found[3], expected[:n], ROUNDING)


@pytest.mark.parametrize("name", STEPPED)
def test_updates_are_those_of_the_cpu(name):
    net = network(example_named("dense"), LOSS)
    model = net.handle(optimizer=STEPPED[name])
    gpu = net.handle(optimizer=STEPPED[name], device="cuda")
    size = c.state_size(model)
    assert gpu.state_size == size
    generator, params, state = np.random.default_rng(0), net.memory.copy(), np.zeros(size)
    arrays = [net.memory.copy(), np.zeros(size)]
    for t in range(1, 4):

        @cuda.jit(device=True)
        def step(params, grads, state, t=t):
            gpu.update(params, grads, state, t) if t < 3 else gpu.update(
                params, grads, state, t, 0.005
            )

        grads = generator.normal(size=net.parameters.size)
        c.update(model, params, grads, state, t, *([0.005] if t == 3 else []))
        found = launched(step, arrays[0], grads, arrays[1])
        arrays = [found[0], found[2]]
    close(arrays[0], params, ROUNDING)
    close(arrays[1], state, ROUNDING)


def test_what_a_thread_cannot_do_is_refused_by_name():
    net = nn.Sequential([nn.Dense(3, activation="relu")], 2)
    model = net.handle(device="cuda", gradient=False)
    for name, reason in (
        ("vjp", "gradient=True"),
        ("jvp", "jvp=True"),
        ("hvp", "hvp=True"),
        ("loss_gradient", "loss="),
        ("update", "optimizer="),
        ("pullback", "a thread keeps nothing between two calls: take vjp"),
        ("initialize", r"on the CPU, by numbanet\.compiled\.initialize"),
        ("step", "a thread reads whole sequences"),
        ("check", "compare the sizes before the launch"),
        ("work_size", "local memory"),
    ):
        with pytest.raises(AttributeError, match=f"GPU has no {name}: .*{reason}"):
            getattr(model, name)
    with pytest.raises(AttributeError, match=r"has no forwards$"):
        model.forwards  # noqa: B018
    with pytest.raises(ValueError, match="has no second derivative"):
        net.handle(device="cuda", hvp=True)
    with pytest.raises(ValueError, match=r'step=True is for device="cpu"'):
        nn.Sequential([nn.GRU(3)], (4, 2)).handle(device="cuda", step=True)
    with pytest.raises(ValueError, match="take fewer rows"):
        net.handle(device="cuda", rows=100_000)
    with pytest.raises(ValueError, match='device is "cpu" or "cuda"'):
        net.handle(device="gpu")
