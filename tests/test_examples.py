"""The scripts in examples/ run, in short versions, and learn what they say."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def main(name, **options):
    """What the example's main function returns."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(**options)


def test_digits():
    pytest.importorskip("sklearn")
    assert main("digits", epochs=15) > 0.95


def test_digits_row_by_row():
    pytest.importorskip("sklearn")
    assert main("row_by_row", epochs=15) > 0.95


def test_a_network_inside_njit():
    assert main("inside_njit", epochs=40) < 0.1


def test_a_layer_of_ones_own():
    assert main("own_layer") < 1e-3


def test_every_example_is_tested():
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "digits",
        "inside_njit",
        "own_layer",
        "row_by_row",
    }
