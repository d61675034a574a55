"""The scripts in examples/ run, in short versions, and learn what they say."""

import importlib
import re
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Code that Numba cached with other sources of the package is not met."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def example(name):
    """The module of an example."""
    sys.path.insert(0, str(FOLDER))  # Numba looks for the modules of code that it has cached
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def main(name, **options):
    """What the example's main function returns."""
    return example(name).main(**options)


def test_digits():
    pytest.importorskip("sklearn")
    assert main("digits", epochs=15) > 0.95


def test_digits_row_by_row():
    pytest.importorskip("sklearn")
    assert main("row_by_row", epochs=20) >= 0.97


def test_a_forecast_with_intervals():
    inside, error = main("forecast", epochs=5)
    assert (inside > 0.65).all() and (inside < 0.9).all() and (error < 1).all()


def test_a_character_model():
    assert main("characters", epochs=4, units=32, part=0.2, length=20, beside=False) < 4.2


def test_a_character_model_learns_as_it_does_in_torch():
    pytest.importorskip("torch")
    characters, generator = example("characters"), np.random.default_rng(2)
    network = characters.build(20, 7, "float64")
    theirs = characters.InTorch(network)
    x, y = generator.integers(0, 20, (2, 5 * characters.BATCH, characters.STEPS))
    assert theirs.evaluate(x, y) == pytest.approx(network.evaluate(x, y)["loss"], rel=1e-12)
    for run in (lambda *data: characters.train(network, *data), theirs.train):
        run(x, y, 2)
    embedding, lstm, dense = theirs.modules
    weights = [embedding.weight, lstm.weight_ih_l0.T, lstm.weight_hh_l0.T, dense.weight.T]
    ours = [network.layers[k].weights for k in (0, 1)] + [network.layers[1].recurrent_weights]
    for own, its in zip([*ours, network.layers[2].weights], weights, strict=True):
        np.testing.assert_allclose(own, its.detach().numpy(), rtol=0, atol=1e-9)


def test_characters_are_drawn_by_their_probabilities():
    characters = example("characters")
    network, letters = characters.build(3, 4), list("abc")
    network.layers[2].weights = 0.0
    network.layers[2].bias = np.log([0.6, 0.3, 0.1])
    for temperature, expected in ((1.0, [0.6, 0.3, 0.1]), (0.5, [36 / 46, 9 / 46, 1 / 46])):
        text = characters.sample(network, letters, "ab", 400, temperature)
        assert text.startswith("ab") and len(text) == 402
        found = [text.count(one) / 400 for one in letters]
        np.testing.assert_allclose(found, expected, atol=0.06)


def test_thresholds_learned_by_evolution():
    pytest.importorskip("sklearn")
    assert main("evolution", generations=60) > 0.9


def test_a_network_inside_njit():
    assert main("inside_njit", epochs=40) < 0.1


def test_a_layer_of_ones_own():
    assert main("own_layer") < 1e-3


def test_a_policy_learned_in_compiled_code():
    assert main("cartpole", seed=1) >= 475


def test_a_policy_learned_by_ppo():
    assert main("ppo", seed=1) >= 475


def test_the_benchmark_of_the_pole_says_how_many_seeds_solve_it(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    monkeypatch.setattr(sys, "argv", ["balance", "2"])
    importlib.import_module("benchmarks.balance").main()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("policy gradient: 2 of 2 seeds reach 475, median")
    assert re.match(r"PPO, 500,000 steps: [12] of 2 seeds reach 475, median", second)


def test_a_controller_learned_through_the_equations_of_motion():
    assert main("pendulum", steps=400) < 0.2


def test_an_energy_learned_from_forces():
    assert main("energy", steps=3000) < 0.02


def test_friction_learned_while_the_simulation_runs():
    before, after, last = main("learning_while_simulating", steps=80_000)
    assert before < 0.02 < 0.3 < after and last < 0.05


def test_the_cart_and_the_pole_are_those_of_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    cartpole, world = example("cartpole"), gymnasium.make("CartPole-v1").unwrapped
    generator = np.random.default_rng(0)
    for episode in range(20):
        state = np.array(world.reset(seed=episode)[0], np.float64)
        world.state = tuple(state)
        goes_on = True
        while goes_on:
            action = int(generator.integers(2))
            goes_on = cartpole.move(state, action)
            _, _, fallen, _, _ = world.step(action)
            np.testing.assert_allclose(state, world.state, rtol=1e-12, atol=1e-14)
            assert goes_on != fallen


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "cartpole",
        "characters",
        "digits",
        "energy",
        "evolution",
        "forecast",
        "inside_njit",
        "learning_while_simulating",
        "own_layer",
        "pendulum",
        "ppo",
        "row_by_row",
    }
