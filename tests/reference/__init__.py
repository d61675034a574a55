"""Reference kernels: for every kernel a plain Python function of the same name and arguments.

It stands in a file named after that of the kernel.

`REFERENCES` maps `module.function` of a kernel to its reference kernel, as the reference engine
expects it.
"""

import importlib
import inspect
import pkgutil

import numbanet
from numbanet.backend.jit import Kernel


def modules():
    """Every module of the package that can be imported, and those of tests that define layers.

    The engine is left out: its kernels run a whole plan, and the reference engine stands for them.
    """
    yield importlib.import_module("scale")
    for found in pkgutil.walk_packages(numbanet.__path__, "numbanet."):
        if found.name != "numbanet.__main__" and not found.name.startswith("numbanet.engine"):
            try:
                yield importlib.import_module(found.name)
            except ImportError:  # an extra that is not installed here
                continue


def kernels():
    """Every kernel that is defined in those modules or in their classes, once."""
    found = {}
    for module in modules():
        classes = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        for value in [one for place in (module, *classes) for one in vars(place).values()]:
            if isinstance(value, Kernel) and value.function.__module__ == module.__name__:
                found[f"{module.__name__}.{value.function.__qualname__}"] = value
    return found


def reference_of(kernel):
    """The reference kernel of a kernel; LookupError where there is none."""
    stem = kernel.function.__module__.rpartition(".")[2]
    try:
        return getattr(importlib.import_module(f"reference.{stem}"), kernel.function.__name__)
    except (ModuleNotFoundError, AttributeError):
        raise LookupError(
            f"{kernel!r} has no reference kernel in tests/reference/{stem}.py"
        ) from None


class _References(dict):
    """The reference kernels by name, imported when they are first asked for."""

    def __missing__(self, key):
        self[key] = reference_of(kernels()[key])
        return self[key]


REFERENCES = _References()


def arguments(function):
    """The names of a function's arguments."""
    return list(inspect.signature(function).parameters)
