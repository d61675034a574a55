"""The suites of benchmarks run: each benchmark once, with its first parameters.

No asv is needed, and no time is asserted.
"""

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KINDS = ("time_", "timeraw_", "track_", "peakmem_")
"""What the names of benchmarks begin with."""


def suites():
    """All modules of the package, imported as by asv: from their folder, by its name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        package = importlib.import_module("suites")
        return [
            importlib.import_module(f"suites.{found.name}")
            for found in pkgutil.iter_modules(package.__path__)
        ]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def benchmarks():
    """Class and name of every benchmark."""
    return [
        pytest.param(owner, name, id=f"{owner.__module__}.{owner.__name__}.{name}")
        for module in suites()
        for owner in vars(module).values()
        if inspect.isclass(owner)
        and owner.__module__ == module.__name__
        and not owner.__name__.startswith("_")
        for name, _ in inspect.getmembers(owner, inspect.isfunction)
        if name.startswith(KINDS)
    ]


def combinations(owner):
    """All parameters of a class, the smallest first."""
    return list(product(*getattr(owner, "params", ())))


@pytest.fixture(autouse=True)
def found_by_other_processes(monkeypatch):
    """Let programs of their own import the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@contextlib.contextmanager
def ready(owner, parameters):
    """The benchmark between setup and teardown.

    What a setup skips is a failure here: nothing is lacking.
    """
    made = owner()
    getattr(made, "setup", lambda *_: None)(*parameters)
    yield made
    getattr(made, "teardown", lambda *_: None)(*parameters)


@pytest.mark.parametrize(("owner", "name"), benchmarks())
def test_a_benchmark_runs(owner, name, monkeypatch):
    # less to compile than for a fit, which has a test of its own
    if owner.__module__ == "suites.starting":
        monkeypatch.setattr(sys.modules["suites.starting"], "FIT", "network.predict(x[:1])")
    parameters = combinations(owner)[0]
    with ready(owner, parameters) as made:
        result = getattr(made, name)(*parameters)
    if name.startswith("timeraw_"):
        statement, setup = result if isinstance(result, tuple) else (result, "")
        assert statement
        compile(f"{setup}\n{statement}", name, "exec")
    elif name.startswith("track_"):
        assert result > 0
    else:
        assert result is None


def test_a_statement_of_its_own_process_runs():
    (starting,) = (module for module in suites() if module.__name__ == "suites.starting")
    statement, setup = starting.Warm().timeraw_first_fit("784-30-10")
    assert starting.seconds(statement, setup) > 0


def test_every_verb_of_every_layer_is_there():
    """Each row's op is in the network, and has what the benchmark asks for; nothing is run."""
    import numbanet as nn

    (layers,) = (module for module in suites() if module.__name__ == "suites.layers")
    for suite in (layers.Forward, layers.Backward, layers.Gradient):
        for name in suite.params[0]:
            kind, shape, _ = {**layers.LAYERS, **layers.FIRST}[name]
            network = nn.Sequential(layers.network(name)[0], shape)
            op = [op for op in network.layer_ops(training=True) if op.name == kind][-1]
            assert {
                "forward": op.forward,
                "backward": op.backward,
                "gradient": op.accumulate_gradient or op.gradient,
            }[suite.verb], name


def test_all_parameters_have_names():
    for case in benchmarks():
        owner = case.values[0]
        assert len(getattr(owner, "params", ())) == len(getattr(owner, "param_names", ())), owner


def test_the_configuration_names_the_suites():
    settings = json.loads((ROOT / "asv.conf.json").read_text())
    assert (ROOT / settings["benchmark_dir"] / "__init__.py").exists()
    assert all(re.compile(pattern) for pattern in settings.get("regressions_thresholds", {}))
