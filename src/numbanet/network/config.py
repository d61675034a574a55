"""Descriptions of layers, penalties, initialisers and optimisers as JSON holds them, and back.

Each is written as {"type": name of its class, field: value, …}, a function as {"function": name}.
Both are looked up in a table of numbanet's own and in the one that the caller passes: a description
never imports or executes anything.
"""

import numbers
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

from numbanet.io.fields import Count, shown
from numbanet.nn import initializers, layers, optimizers, regularizers, schedules

PUBLIC: dict[Any, type] = {
    layers: layers.Layer,
    initializers: initializers.Initializer,
    regularizers: regularizers.Penalty,
    optimizers: optimizers.Optimizer,
    schedules: schedules.Schedule,
}
"""The modules whose classes a description may name, if they are made from this one."""
ABSTRACT = {"Activation", *(base.__name__ for base in PUBLIC.values())}


@cache
def known() -> dict[str, type]:
    """The classes of numbanet that a description may name."""
    return {
        name: kind
        for module, base in PUBLIC.items()
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and name not in ABSTRACT
    }


def encode(value, where: str) -> Any:
    """The value as JSON holds it; ValueError that says `where` for one that JSON cannot hold.

    Initial values given as arrays or functions are left out: a file holds the parameters.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, (list, tuple)):
        return [encode(element, where) for element in value]
    if isinstance(value, type) and is_dataclass(value):
        value = value()
    if isinstance(value, FunctionType) and value.__qualname__.isidentifier():
        return {"function": value.__name__}
    if not is_dataclass(value):
        raise ValueError(
            f"{where} holds {_describe(value)}, which a file cannot; "
            "use numbers, text, layers or lists of them"
        )
    name = type(value).__name__
    if known().get(name, type(value)) is not type(value):
        raise ValueError(
            f"{where}: the class {name} has the name of one of numbanet's; "
            "give it another to save it"
        )
    arguments = _constructor_arguments(value)
    if "type" in arguments:
        raise ValueError(
            f"{where}: {name} has a field called type, which the file needs for itself; rename it"
        )
    encoded = {key: encode(v, f"{where} ({name}), {key}") for key, v in arguments.items()}
    return {"type": name, **encoded}


def _constructor_arguments(value) -> dict[str, Any]:
    """What the constructor takes, without the user's own initial arrays and functions."""
    known_fields = {f.name: f for f in fields(value)}
    if hasattr(value, "config"):
        given = value.config().items()
        arguments = {k: v for k, v in given if k not in known_fields or known_fields[k].init}
    else:
        arguments = {k: getattr(value, k) for k, f in known_fields.items() if f.init}
    for key, v in arguments.items():
        named = v is None or isinstance(v, str) or is_dataclass(v)
        if key.endswith("initializer") and not named:
            default = known_fields[key].default if key in known_fields else None
            arguments[key] = None if default is MISSING else default
    return arguments


def _describe(value) -> str:
    if isinstance(value, FunctionType):
        return f"{value.__qualname__}, a function without a name at the top of a module"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}"


def decode(value, classes: dict[str, Any], where: str) -> Any:
    """The value that JSON stands for; lists become tuples. ValueError for an unknown class."""
    if isinstance(value, list):
        return tuple(decode(element, classes, where) for element in value)
    if not isinstance(value, dict):
        return value
    if list(value) == ["function"]:
        found = classes.get(str(value["function"]))
        if not isinstance(found, FunctionType):
            name = value["function"]
            raise ValueError(
                f"{where}: unknown function {name!r}; pass custom={{{name!r}: it}} to load"
            )
        return found
    name = value.get("type")
    if not isinstance(name, str):
        raise ValueError(f"{where}: an object without a type")
    if name not in classes:
        raise ValueError(
            f"{where}: unknown type {name!r}; pass custom={{{name!r}: the class}} to load"
        )
    given = ((key, v) for key, v in value.items() if key != "type")
    arguments = {key: decode(v, classes, f"{where}, {name}") for key, v in given}
    try:
        return classes[name](**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {name} cannot be built: {error}") from None


def check_keys(where, config, kind: str, keys: set[str]) -> None:
    """ValueError where a description is not a dict with exactly those keys."""
    if not isinstance(config, dict) or set(config) != keys:
        found = ", ".join(config) if isinstance(config, dict) else type(config).__name__
        wanted = ", ".join(sorted(keys))
        raise ValueError(f"{where}: the {kind}'s description must have {wanted}, got {found}")


def check_groups(given, n_layers: int) -> None:
    """ValueError for what is not a list of [layer, rate factor, decay or null]."""
    if not isinstance(given, list):
        raise ValueError(f"groups must be a list, got {shown(given)}")
    for one in given:
        if not isinstance(one, list) or len(one) != 3:
            raise ValueError(
                f"groups must be lists of a layer, its rate factor and its decay, got {shown(one)}"
            )
        Count(0, n_layers - 1)(one[0], "every layer of groups")


def check_tensors(where, tensors: dict[str, np.ndarray], shapes: dict, dtype: np.dtype) -> None:
    """ValueError where the tensors have other names, shapes or dtypes than a network needs."""
    for name in shapes.keys() - tensors.keys():
        raise ValueError(f"{where}: tensor {name!r} is missing")
    for name in tensors.keys() - shapes.keys():
        needed = ", ".join(shapes) or "none"
        raise ValueError(f"{where}: tensor {name!r} belongs to no layer; the network has {needed}")
    for name, shape in shapes.items():
        found = tensors[name]
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(
                f"{where}: tensor {name!r} is {found.dtype} {found.shape}, "
                f"the network needs {dtype} {shape}"
            )
