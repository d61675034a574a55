"""Names of arguments and attributes: unknown ones are refused, with what was probably meant.

KnownArguments    a constructor's keyword arguments
known_arguments   a method's or a function's
KnownAttributes   attributes of an object with state: those that its class annotates
Description       both, for an immutable dataclass
"""

import inspect
from dataclasses import FrozenInstanceError, fields
from functools import cache, wraps
from typing import Any, ClassVar

from numbanet.io.registry import nearest

OTHER_NAMES = (
    {"learning_rate", "lr", "eta"},
    {"units", "out_features", "n_out", "output_dim"},
    {"filters", "out_channels"},
    {"kernel_size", "pool_size", "size", "window"},
    {"stride", "strides"},
    {"padding", "pad"},
    {"dilation", "dilation_rate"},
    {"rate", "p", "prob", "dropout"},
    {"bias", "use_bias"},
    {"initializer", "kernel_initializer", "weight_initializer", "weights_initializer", "init"},
    {"penalty", "kernel_regularizer", "regularizer", "weight_regularizer"},
    {"activation", "nonlinearity"},
    {"epsilon", "eps"},
    {"beta_1", "beta1"},
    {"beta_2", "beta2"},
    {"beta_1", "beta_2", "betas"},
    {"alpha", "rho", "decay"},
    {"weight_decay", "wd"},
    {"clip_value", "clipvalue"},
    {"clip_norm", "global_clipnorm", "max_norm", "max_grad_norm", "gradient_clip_val"},
    {"accumulate", "gradient_accumulation_steps", "accumulate_grad_batches"},
    {"average", "ema_momentum", "ema_decay"},
    {"learning_rate_factor", "lr_scale", "lr_mult", "lr_factor"},
    {"slope", "negative_slope", "alpha"},
    {"strength", "l1", "l2", "lambda_", "lam", "weight"},
    {"std", "stddev", "deviation", "sigma"},
    {"low", "minval", "a"},
    {"high", "maxval", "b"},
    {"shape", "target_shape"},
    {"layers", "modules"},
    {"batch_size", "batch"},
    {"epochs", "nb_epoch", "max_iter"},
    {"per", "reduction"},
    {"restore_best", "restore_best_weights"},
)
"""Names of one thing here, in Keras, PyTorch and scikit-learn."""


def instance(given, base: type):
    """The object for a subclass of `base` that needs no arguments; anything else as it is.

    Raises TypeError with the arguments for a class that needs some, and for `base` itself.
    """
    if not (isinstance(given, type) and issubclass(given, base)):
        return given
    if given is base:
        raise TypeError(f"{base.__name__} is what its subclasses have in common; pass one of them")
    required = [
        one.name
        for one in inspect.signature(given).parameters.values()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    if required:
        raise TypeError(
            f"{given.__name__} is a class and needs {', '.join(required)}; "
            f"pass {given.__name__}({', '.join(required)})"
        )
    return given()


def hint(name: str, known, instead: dict[str, str]) -> str:
    """What an unknown name probably means, as the end of a sentence.

    instead   what else there is, by name
    """
    if name in instead:
        return f"; {instead[name]}"
    for names in OTHER_NAMES:
        found = [repr(one) for one in known if name in names and one in names]
        if found:
            return f"; it is called {' and '.join(found)} here"
    return nearest(name, known)


@cache
def _argument_names(cls: Any) -> list[str] | None:
    """The names of a constructor's arguments, or None where it takes any."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return [one.name for one in parameters if one.name != "self"]


class KnownArguments:
    """A class whose constructor says what an unknown keyword argument is called here.

    `instead` says for names that are not known what else there is.
    """

    instead: ClassVar[dict[str, str]] = {}

    def __new__(cls, *args, **kwargs):
        known = _argument_names(cls)  # type: ignore[arg-type]
        for name in kwargs:
            if known is not None and name not in known:
                raise TypeError(
                    f"{cls.__name__} has no argument {name!r}{hint(name, known, cls.instead)} "
                    f"(its arguments: {', '.join(known) or 'none'})"
                )
        return super().__new__(cls)


def known_arguments(instead: dict[str, str]):
    """Decorate a method or a function: it says what an unknown keyword argument is called here.

    instead   for names that are not known, what else there is
    """

    def decorate(function):
        names = list(inspect.signature(function).parameters)
        known = [name for name in names if name != "self"]

        @wraps(function)
        def checked(*args, **kwargs):
            for name in kwargs:
                if name not in known:
                    owner = f"{type(args[0]).__name__}." if "self" in names else ""
                    raise TypeError(
                        f"{owner}{function.__name__} has no argument "
                        f"{name!r}{hint(name, known, instead)} "
                        f"(its arguments: {', '.join(known)})"
                    )
            return function(*args, **kwargs)

        return checked

    return decorate


@cache
def _annotated_names(cls: Any) -> frozenset[str]:
    """The attributes of a class that derives from KnownAttributes itself; none of a subclass."""
    if KnownAttributes not in cls.__bases__:
        return frozenset()
    return frozenset((*inspect.get_annotations(cls), *vars(cls)))


class KnownAttributes:
    """A class that annotates its attributes: another one cannot be set, except in a subclass.

    `instead` says for names that are not known what else there is.
    """

    instead: ClassVar[dict[str, str]] = {}

    def __setattr__(self, name: str, value) -> None:
        known = _annotated_names(type(self))  # type: ignore[arg-type]
        if known and name not in known:
            raise unknown_attribute(self, name, known)
        super().__setattr__(name, value)


def unknown_attribute(instance, name: str, known) -> AttributeError:
    """The error for an attribute that an object of KnownAttributes cannot be given."""
    public = sorted(one for one in known if not one.startswith("_"))
    text = hint(name, public, instance.instead)
    return AttributeError(f"{type(instance).__name__} has no attribute {name!r} to set{text}")


class Description(KnownArguments):
    """A frozen dataclass that says what an unknown argument is called, and how to change a field.

    A subclass with a constructor of its own may set attributes of other names than its fields.
    """

    after_change: ClassVar[str] = "use the new one instead"
    """What to do with a changed copy."""

    def __new__(cls, *args, **kwargs):
        for kind in cls.__mro__:  # dataclass has given each its own
            own = "__dataclass_fields__" in vars(kind) and vars(kind).get("__setattr__")
            if own and own is not Description.__setattr__:
                for method in ("__setattr__", "__delattr__"):
                    setattr(kind, method, getattr(Description, method))
        return super().__new__(cls, *args, **kwargs)

    def __setattr__(self, name: str, value) -> None:
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        constructor = next(kind for kind in type(self).__mro__ if "__init__" in vars(kind))
        kind = type(self).__name__
        if name in names:
            raise FrozenInstanceError(
                f"{kind}: {name} cannot be changed; make a copy, "
                f"dataclasses.replace(…, {name}=…), and {self.after_change}"
            )
        if "__dataclass_fields__" in vars(constructor):
            raise FrozenInstanceError(
                f"{kind} has no attribute {name!r} to set{hint(name, names, self.instead)}"
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"{type(self).__name__}: {name} cannot be deleted")
