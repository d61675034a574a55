"""Every law fails on a planted bug. A checker that nothing can fail would prove nothing."""

import ast
from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
import test_batches
import test_compiled_functions
import test_engines
import test_gradients
import test_house
import test_memory
import test_precision
import test_steps
import test_threads
from checkers import (
    KernelHarness,
    Kink,
    close,
    difference,
    gradient_error,
    reference_fit,
    reference_gradient,
    reference_predict,
    stray_writes,
)
from scale import Scale
from scale import backward as scale_backward
from scale import forward as scale_forward

import numbanet as nn
from examples import OPTIMIZERS, Example, example_named, inputs, loss_named, network, targets
from numbanet.backend.intrinsics import const_like, is_float32
from numbanet.plan.columns import N_IN, N_OUT, SAMPLES, W, X, Y, context

LOSS = loss_named("mean squared error")
fenced = test_memory.fenced


def example(layer, shape=(5,)):
    return Example("planted", lambda: [layer()], shape)


def fails(law, *arguments):
    with pytest.raises(AssertionError):
        law(*arguments)


# --- a sound activation of a user's, and unsound ones ------------------------------------------


@nn.kernel
def cube_forward(op, params, grads, acts, deltas, lo, hi):
    """a = z³ + z"""
    y, n = op[Y], op[N_OUT]
    for i in range(y + lo * n, y + hi * n):
        acts[i] = acts[i] * acts[i] * acts[i] + acts[i]


@nn.kernel
def identity_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da, which is wrong for the cube"""


@nn.kernel
def soft_forward(op, params, grads, acts, deltas, lo, hi):
    """a = z / (1 + |z|)"""
    y, n = op[Y], op[N_OUT]
    for i in range(y + lo * n, y + hi * n):
        acts[i] = acts[i] / (const_like(acts, 1) + abs(acts[i]))


@nn.kernel
def soft_backward(op, params, grads, acts, deltas, lo, hi):
    """dz = da (1 − |a|)²"""
    y, n = op[Y], op[N_OUT]
    for i in range(y + lo * n, y + hi * n):
        rest = const_like(acts, 1) - abs(acts[i])
        deltas[i] *= rest * rest


@nn.kernel
def nearly_soft_backward(op, params, grads, acts, deltas, lo, hi):
    """As soft_backward, but wrong in the sixth digit."""
    y, n = op[Y], op[N_OUT]
    for i in range(y + lo * n, y + hi * n):
        rest = const_like(acts, 1.00001) - abs(acts[i])
        deltas[i] *= rest * rest


class Cube(nn.Activation):
    forward, backward = cube_forward, identity_backward


class Soft(nn.Activation):
    forward, backward = soft_forward, soft_backward


class NearlySoft(nn.Activation):
    forward, backward = soft_forward, nearly_soft_backward


def error(layer):
    one = example(layer)
    return gradient_error(network(one, LOSS), inputs(one, 4), targets(LOSS, 4), LOSS.loss)


def test_the_gradient_check_passes_a_sound_activation():
    assert error(Soft) <= test_gradients.TOLERANCE


def test_the_gradient_check_sees_a_wrong_backward():
    assert error(Cube) > 0.01
    assert error(NearlySoft) > test_gradients.TOLERANCE


@nn.kernel
def forgetful_gradient(op, params, grads, acts, deltas, lo, hi):
    """As Scale's, but the last sample is left out."""
    n = op[N_IN]
    for k in range(lo, hi):
        grads[op[W] + k] = const_like(grads, 0)
        for i in range(context(op, SAMPLES) - 1):
            grads[op[W] + k] += acts[op[X] + i * n + k] * deltas[op[Y] + i * n + k]


@dataclass(frozen=True, eq=False)
class ForgetfulScale(Scale):
    def ops(self, shape):
        n = shape[0]
        return [
            nn.Op(
                "Forgetful",
                n,
                n,
                scale_forward,
                scale_backward,
                forgetful_gradient,
                param_rows=n,
                param_cols=1,
                n_weights=n,
            )
        ]


def test_the_gradient_check_sees_a_wrong_gradient():
    assert error(ForgetfulScale) > 0.01


def test_the_gradient_check_sees_a_penalty_that_is_not_in_the_loss():
    one = example(Soft)
    net = network(one, LOSS, penalty=nn.L2(0.1))
    net.penalty_value = lambda *_: 0.0
    assert gradient_error(net, inputs(one, 4), targets(LOSS, 4), LOSS.loss) > 0.01


def test_differences_know_a_kink():
    theta = np.array([0.5, 1e-7])
    with pytest.raises(Kink):
        difference(lambda: abs(theta).sum(), theta)
    close(difference(lambda: (theta**3).sum(), theta), 3 * theta**2, 1e-9)


def test_the_mean_of_samples_sees_a_forgotten_sample():
    fails(
        test_batches.test_the_gradient_of_a_batch_is_the_mean_of_its_samples,
        example(ForgetfulScale),
    )


# --- engines -----------------------------------------------------------------------------------


def planted(name, change):
    """The references with one of them followed by a change."""

    def changed(op, params, grads, acts, deltas, lo, hi):
        reference.REFERENCES[name](op, params, grads, acts, deltas, lo, hi)
        change(op, params, grads, acts, deltas, lo, hi)

    return {
        **{key: reference.REFERENCES[key] for key in reference.kernels() if has_reference(key)},
        name: changed,
    }


def has_reference(key):
    try:
        return bool(reference.REFERENCES[key])
    except LookupError:
        return False


def shift_first_output(op, params, grads, acts, deltas, lo, hi):
    acts[op[Y] + lo * op[N_OUT]] += 1e-9


def shift_first_gradient(op, params, grads, acts, deltas, lo, hi):
    grads[op[W] + lo] += 1e-9


def shift_first_parameter(op, params, grads, state, _, lo, hi):
    params[lo] += 1e-9


def test_the_engines_are_told_apart_by_their_outputs():
    one = example_named("dense")
    net, x = network(one), inputs(one, 9)
    close(net.predict(x), reference_predict(net, x), test_engines.ROUNDING)
    wrong = reference_predict(
        net, x, references=planted("numbanet.nn.layers.dense.forward", shift_first_output)
    )
    fails(close, net.predict(x), wrong, test_engines.ROUNDING)


def test_the_engines_are_told_apart_by_their_gradients():
    one = example_named("dense")
    net, x, y = network(one, LOSS), inputs(one, 9), targets(LOSS, 9)
    wrong, _ = reference_gradient(
        net,
        x,
        y,
        LOSS.loss,
        references=planted("numbanet.nn.layers.dense.gradient", shift_first_gradient),
    )
    fails(close, net.gradient(x, y, LOSS.loss), wrong, test_engines.ROUNDING)


def test_the_engines_are_told_apart_by_their_steps():
    one = example_named("dense")
    x, y = inputs(one, 9), targets(LOSS, 9)
    clipped = nn.SGD(0.1, clip_value=0.5)
    for name, optimizer in (("optimizers.sgd", nn.SGD(0.1)), ("steering.clip", clipped)):
        net, references = network(one, LOSS), planted(f"numbanet.nn.{name}", shift_first_parameter)
        wrong, _, _ = reference_fit(net, x, y, LOSS.loss, optimizer, 4, 1, references=references)
        net.fit(x, y, loss=LOSS.loss, optimizer=optimizer, batch_size=4)
        fails(close, net.parameters, wrong, test_engines.ROUNDING)


def test_closeness_sees_nan_and_another_shape():
    fails(close, [np.nan, 1.0], [1.0, 1.0], 1e-3)
    fails(close, [1.0, 1.0], [np.nan, 1.0], 1e-3)
    fails(close, [[1.0, 1.0]], [1.0, 1.0], 1e-3)


def test_the_reference_shows_a_number_read_before_it_was_written():
    one = example_named("dense")
    net, x, y = network(one, LOSS), inputs(one, 9), targets(LOSS, 9)
    references = {
        **planted("scale.forward", shift_first_output),
        "numbanet.nn.layers.dense.forward": lambda *_: None,
    }
    assert np.isnan(reference_gradient(net, x, y, LOSS.loss, references=references)[0]).any()


# --- threads, batches, precision ---------------------------------------------------------------


@nn.kernel
def place_forward(op, params, grads, acts, deltas, lo, hi):
    """Adds a little for the place in the range, so its first sample differs from its last."""
    n = op[N_OUT]
    for i in range(lo, hi):
        for j in range(op[Y] + i * n, op[Y] + i * n + n):
            acts[j] += const_like(acts, (i - lo) * 1e-6)


@nn.kernel
def rough_forward(op, params, grads, acts, deltas, lo, hi):
    """a = z, but float32 is off by a few thousandths."""
    y, n = op[Y], op[N_OUT]
    for i in range(y + lo * n, y + hi * n):
        acts[i] = acts[i] * const_like(acts, 1.003) if is_float32(acts[i]) else acts[i]


class ByPlace(nn.Activation):
    forward, backward = place_forward, identity_backward


class Rough(nn.Activation):
    forward, backward = rough_forward, identity_backward


def test_the_laws_of_batches_see_a_sample_that_depends_on_its_place():
    fails(test_batches.test_an_output_does_not_depend_on_companions, example(ByPlace), "float64")
    fails(test_batches.test_a_permuted_batch_gives_permuted_outputs, example(ByPlace))


def test_the_laws_of_threads_see_a_sample_that_depends_on_its_place():
    fails(test_threads.test_outputs_are_the_same_bits, example(ByPlace))
    fails(test_threads.test_every_layer_is_the_same_bits, example(ByPlace))


def test_the_law_of_precision_sees_a_rough_layer():
    fails(test_precision.test_outputs_agree, example(Rough))
    fails(test_precision.test_gradients_agree, example(Rough))


# --- memories ----------------------------------------------------------------------------------


@nn.kernel
def spilling_forward(op, params, grads, acts, deltas, lo, hi):
    """As Scale's, but writes one number too many."""
    n = op[N_IN]
    for i in range(lo * n, hi * n + 1):
        acts[op[Y] + i] = acts[op[X] + i]


@nn.kernel
def lazy_forward(op, params, grads, acts, deltas, lo, hi):
    """As Scale's, but adds to what was there."""
    n = op[N_IN]
    for i in range(lo, hi):
        for k in range(n):
            acts[op[Y] + i * n + k] += params[op[W] + k] * acts[op[X] + i * n + k]


@nn.kernel
def meddling_backward(op, params, grads, acts, deltas, lo, hi):
    """Passes the error on, and touches a parameter."""
    n = op[N_IN]
    for i in range(lo * n, hi * n):
        deltas[op[X] + i] = deltas[op[Y] + i]
    params[op[W]] += const_like(params, 1e-3)


def scale_with(forward=scale_forward, backward=scale_backward):
    @dataclass(frozen=True, eq=False)
    class Changed(Scale):
        def ops(self, shape):
            n = shape[0]
            return [
                nn.Op(
                    "Changed",
                    n,
                    n,
                    forward,
                    backward,
                    forgetful_gradient,
                    param_rows=n,
                    param_cols=1,
                    n_weights=n,
                )
            ]

    return Changed


def writes_astray(layer, verb):
    """The stray writes of the planted layer's verb, behind the Scale that begins every example."""
    one = example(layer)
    here = KernelHarness(network(one, LOSS), inputs(one, 9), targets(LOSS, 9), LOSS.loss)
    op, row = next((op, row) for op, row in here.rows.items() if op.name == "Changed")
    here.place(2, 7, filled=verb != "forward")
    return stray_writes(here, getattr(op, verb), row, verb, 2, 7)


def test_stray_writes_are_seen():
    assert writes_astray(scale_with(), "forward") == {} == writes_astray(scale_with(), "backward")
    assert len(writes_astray(scale_with(spilling_forward), "forward")["acts"]) == 1
    assert len(writes_astray(scale_with(backward=meddling_backward), "backward")["params"]) == 1


def test_the_laws_of_memory_see_planted_bugs():
    fails(
        test_memory.test_a_kernel_writes_nothing_outside_its_slot,
        (example(scale_with(spilling_forward)), LOSS),
        "float64",
    )
    fails(test_memory.test_a_kernel_fills_its_slot, (example(scale_with(lazy_forward)), LOSS))


def test_numbers_read_before_they_were_written_are_seen(request):
    law = test_memory.test_runs_stay_in_their_memories_and_read_nothing_unwritten
    with pytest.raises((AssertionError, nn.DivergenceError)):
        law((example(scale_with(lazy_forward)), LOSS), 1, request)


# --- steps -------------------------------------------------------------------------------------


@nn.kernel
def lame_sgd(op, params, grads, state, _, lo, hi):
    """Leaves out the last parameter of a range."""
    for i in range(lo, hi - 1):
        params[i] -= const_like(params, 0.1) * grads[i]


@nn.kernel
def stretched_sgd(op, params, grads, state, _, lo, hi):
    """Takes too long a step."""
    for i in range(lo, hi):
        params[i] -= const_like(params, 1.0625) * grads[i]


class Lame(nn.SGD):
    update = lame_sgd


class Stretched(nn.SGD):
    update = stretched_sgd


class Tiring(nn.SGD):
    """Forgets nothing but itself: every call of fit has a smaller rate."""

    calls = 0

    def _hyper_parameters(self, group):
        type(self).calls += 1
        return [0.1 / type(self).calls, 0.0, 0.0]


def test_the_law_of_steps_sees_a_wrong_step(monkeypatch):
    for wrong in (Lame, Stretched):
        monkeypatch.setattr(nn, "SGD", wrong)
        fails(
            test_steps.test_a_step_of_sgd_with_rate_one_subtracts_the_gradient,
            example_named("dense"),
            1,
        )
        fails(test_steps.test_a_step_subtracts_the_gradient_of_every_loss, LOSS)


def test_the_law_of_resuming_sees_an_optimizer_that_tires(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "tiring", Tiring(0.1))
    fails(test_steps.test_resuming_is_going_on, "tiring", "float64")


# --- the house ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("io.validation", "from numbanet.backend import jit"),
        ("plan.lower", "from numbanet.nn.layers import Dense"),
        ("nn.layers.dense", "def f():\n    from numbanet.engine import cpu"),
        ("engine.cpu.kernels", "import numbanet.network"),
        ("network.sequential", "from numbanet import plotting"),
        ("datasets", "from numbanet.apps import cli"),
    ],
)
def test_an_import_against_the_arrow_is_seen(module, source):
    assert test_house.against_the_arrow(module, ast.parse(source))
    assert not test_house.against_the_arrow("apps.cli.app", ast.parse(source))


def test_other_breaches_of_the_house_are_seen():
    assert test_house.other_layers(
        "nn.layers.dense",
        ast.parse("def f():\n    from numbanet.nn.layers.activations import Sigmoid"),
    )
    assert not test_house.other_layers(
        "nn.layers.dense", ast.parse("from numbanet.nn.layers.base import Layer")
    )
    assert test_house.imports(ast.parse("def f():\n    from numbanet import apps")) == {"apps"}
    assert test_house.circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert test_house.circle({"a": {"b", "c"}, "b": {"c"}}) is None
    lazy = ast.parse("def save(self):\n    from numbanet.network import serialization")
    arrows = {
        "network.sequential": test_house.imports(lazy),
        "network.serialization": {"network.sequential"},
    }
    assert test_house.circle(arrows) == [
        "network.sequential",
        "network.serialization",
        "network.sequential",
    ]
    for source in ("from numba import prange", "for i in numba.prange(3): pass"):
        assert test_house.uses(ast.parse(source), "prange")
    for source in ("from llvmlite import ir", "import llvmlite.binding"):
        assert test_house.uses(ast.parse(source), "llvmlite")
    for source in (
        "@numba.njit\ndef f(): pass",
        "from numba import njit",
        "f = compile(g, fastmath=True)",
    ):
        assert test_house.numba_flags(ast.parse(source))
    assert not test_house.numba_flags(ast.parse("f = kernel(g)"))


# --- tangents ----------------------------------------------------------------------------------


class WrongSecond(nn.Tanh):
    """The second derivative lacks its sign."""

    @staticmethod
    def vjp(a, da, slope):
        return da * (const_like(a, 1) - a * a)

    @staticmethod
    def second(a, da, slope):
        return const_like(a, 2) * a * da


class KeepsOffset(nn.Rescale):
    """Says that it is linear, and leaves its offset in the tangent."""

    def ops(self, shape):
        return [replace(op, offset=None) for op in super().ops(shape)]


def test_the_laws_of_tangents_see_a_wrong_one():
    law = test_compiled_functions
    fails(law.test_hvp_agrees_with_differences_of_vjp, example(WrongSecond))
    law.test_jvp_is_the_transpose_of_vjp(example(WrongSecond))
    fails(law.test_jvp_is_the_transpose_of_vjp, example(lambda: KeepsOffset(2.0, 0.5)))
    law.test_jvp_is_the_transpose_of_vjp(example(lambda: nn.Rescale(2.0, 0.5)))
