"""Kinds of fields: what a layer, optimiser, loss or other description may be given, said once.

    @dataclass(frozen=True, eq=False)
    class Dropout(Layer):
        rate: Annotated[float, Real(0, below=1)] = 0.5

`check`, which the base classes call when an object is built, looks for a kind in the annotation of
every field, raises ValueError or TypeError for a value that is not of this kind, and replaces
NumPy's scalars with Python's. A file is loaded through the constructors, so it is checked too.
A field without a kind is not checked. A kind is also called on its own, for arguments.
"""

import math
import numbers
import operator
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_origin

import numpy as np

SIZE = 2**31 - 1
"""The largest single size: a product of two still fits an int64."""
ELEMENTS = 2**62
"""The most elements of a network, whatever the memory: offsets and their sums fit an int64."""


def check(described, plain: "Kind | None" = None) -> None:
    """Check and normalise every field that has a kind; the others by `plain`, if there is one."""
    for field in fields(described):
        kind = kind_of(field) or plain
        if kind is not None and hasattr(described, field.name):
            value = getattr(described, field.name)
            found = kind(value, field.name, type(described).__name__)
            if found is not value:
                object.__setattr__(described, field.name, found)


def kind_of(field) -> "Kind | None":
    """The kind in a dataclass field's annotation, or None."""
    if get_origin(field.type) is not Annotated:
        return None
    return next((one for one in field.type.__metadata__ if isinstance(one, Kind)), None)


def shown(value) -> str:
    """The value for a message: one line, not long."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as an integer with too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:60] + f"… ({len(text)} characters)"


def _scalar(value):
    """The element of an array without axes; anything else as it is."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


@dataclass(frozen=True)
class Kind:
    """A kind of value. Called with a value it returns it, normalised, or raises ValueError."""

    def __call__(self, value, name: str, owner: str = "") -> Any:
        """Check the value of the field `name` of the class `owner`, or of an argument `name`."""
        raise NotImplementedError

    @staticmethod
    def refuse(value, name: str, owner: str, message: str) -> ValueError:
        """The error. In the message stand {label} for class and field, {owner}, {name}, {got}."""
        label = f"{owner}: {name}" if owner else name
        return ValueError(message.format(label=label, owner=owner, name=name, got=shown(value)))


@dataclass(frozen=True)
class Count(Kind):
    """An integer, least … most; None too if `optional`.

    `says`, `beyond` and `fraction` replace the messages for a wrong value, for one above `most`,
    and for a number that is no integer.
    """

    least: int = 1
    most: int = SIZE
    optional: bool = False
    says: str = "{label} must be an integer of at least {least}, got {got}"
    beyond: str = "{label} must be {limit}, got {got}"
    fraction: str = ""

    def __call__(self, value, name, owner=""):
        if value is None and self.optional:
            return None
        return self.one(value, value, name, owner)

    def one(self, value, whole, name: str, owner: str = "") -> int:
        """Check one integer; a message shows `whole`, the value of which it is a part."""
        value = _scalar(value)
        number = None
        if not isinstance(value, (bool, np.bool_)):
            try:
                number = operator.index(value)
            except Exception:
                number = None
        if number is None and self.fraction and isinstance(value, (float, np.floating)):
            if math.isfinite(value) and value >= self.least:
                raise self.refuse(whole, name, owner, self.fraction)
        if number is None or number < self.least:
            message = self.says.replace("{least}", str(self.least))
            raise self.refuse(whole, name, owner, message)
        if number > self.most:
            power = (self.most + 1).bit_length() - 1
            exact = self.most + 1 == 1 << power and self.most > 1 << 16
            limit = f"below 2**{power}" if exact else f"at most {self.most:,}"
            message = self.beyond.replace("{limit}", limit)
            raise self.refuse(whole, name, owner, message)
        return number


@dataclass(frozen=True)
class Pair(Count):
    """An integer, or two of them: (vertical, horizontal)."""

    says: str = "{label} must be an integer of at least {least}, or two of them, got {got}"

    def __call__(self, value, name, owner=""):
        if value is None and self.optional:
            return None
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = tuple(value)
        if not isinstance(value, (tuple, list)):
            return self.one(value, value, name, owner)
        if len(value) != 2:
            raise self.refuse(value, name, owner, self.says.replace("{least}", str(self.least)))
        return tuple(self.one(one, value, name, owner) for one in value)

    def two(self, value, name: str, owner: str = "") -> tuple[int, int]:
        """Both integers."""
        found = self(value, name, owner)
        return found if isinstance(found, tuple) else (found, found)


@dataclass(frozen=True)
class Counts(Kind):
    """A tuple of integers, each least … most."""

    least: int = 1
    most: int = SIZE

    def __call__(self, value, name, owner=""):
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = tuple(value)
        if not isinstance(value, (tuple, list)):
            raise self.refuse(value, name, owner, "{label} must be integers, got {got}")
        each = Count(self.least, self.most)
        return tuple(each(one, f"every number in {name}", owner) for one in value)


@dataclass(frozen=True)
class Padding(Kind):
    """ "valid", "same", an integer, or what is padded before and after along one or two axes."""

    axes: int = 2

    def __call__(self, value, name, owner=""):
        sides = "(left, right)"
        if self.axes == 2:
            sides = "(vertical, horizontal) or ((top, bottom), (left, right))"
        if isinstance(value, str):
            if value in ("valid", "same"):
                return str(value)
            message = f'{{label}} is "valid", "same", a number or {sides}, not {{got}}'
            raise self.refuse(value, name, owner, message)
        each = Count(0)
        if not isinstance(value, (tuple, list)):
            return each(value, name, owner)
        if len(value) != 2:
            message = f"{{label}} is a number or {sides}, not {{got}}"
            raise self.refuse(value, name, owner, message)
        ends = [isinstance(one, (tuple, list)) and len(one) == 2 for one in value]
        if self.axes == 2 and all(ends):
            return tuple(tuple(each(n, name, owner) for n in one) for one in value)
        return tuple(each(one, name, owner) for one in value)


@dataclass(frozen=True)
class Real(Kind):
    """A finite number: at least `least` or above `above`, below `below` or at most `most`.

    None too if `optional`. Python's ints and floats stay as they are; other numbers become floats.
    `says` and `beyond` replace the messages for a wrong number and for one that is too large.
    """

    least: float = -math.inf
    below: float = math.inf
    above: float = -math.inf
    most: float = math.inf
    optional: bool = False
    says: str = "{label} must be a finite number{range}, got {got}"
    beyond: str = "{label} must be {limit}, got {got}"

    def __call__(self, value, name, owner=""):
        if value is None and self.optional:
            return None
        given, value = value, _scalar(value)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise self._wrong(given, name, owner)
        try:
            number = float(value)
        except (OverflowError, ValueError, TypeError):
            raise self._wrong(given, name, owner) from None
        if not math.isfinite(number) or number < self.least or number <= self.above:
            raise self._wrong(given, name, owner)
        if number >= self.below or number > self.most:
            limit = f"below {self.below}" if number >= self.below else f"at most {self.most}"
            raise self.refuse(given, name, owner, self.beyond.replace("{limit}", limit))
        return value if type(value) in (int, float) else number

    def _wrong(self, value, name, owner):
        limits = ""
        if self.above > -math.inf:
            limits = f" above {self.above}"
        elif self.least > -math.inf:
            limits = f" of at least {self.least}"
        return self.refuse(value, name, owner, self.says.replace("{range}", limits))


@dataclass(frozen=True)
class Reals(Kind):
    """A number of a kind, or several of them: a tuple with at least one."""

    each: Real

    def __call__(self, value, name, owner=""):
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = tuple(value)
        if not isinstance(value, (tuple, list)):
            value = (value,)
        if not value:
            raise self.refuse(
                value, name, owner, "{label} must have at least one number, got {got}"
            )
        return tuple(self.each(one, name, owner) for one in value)


@dataclass(frozen=True)
class Flag(Kind):
    """True or False, and nothing that only counts as one of them."""

    def __call__(self, value, name, owner=""):
        given, value = value, _scalar(value)
        if not isinstance(value, (bool, np.bool_)):
            raise self.refuse(given, name, owner, "{label} must be True or False, got {got}")
        return bool(value)


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few texts, or None where that is among them."""

    allowed: tuple[str | None, ...]

    def __call__(self, value, name, owner=""):
        value = _scalar(value)
        for one in self.allowed:
            if value is one or (isinstance(value, str) and isinstance(one, str) and value == one):
                return one
        said = [f'"{one}"' if isinstance(one, str) else str(one) for one in self.allowed]
        message = f"{{label}} is {', '.join(said[:-1])} or {said[-1]}, not {{got}}"
        raise self.refuse(value, name, owner, message)


@dataclass(frozen=True)
class Text(Kind):
    """A text that is not empty."""

    def __call__(self, value, name, owner=""):
        value = _scalar(value)
        if not isinstance(value, str) or not value:
            raise self.refuse(value, name, owner, "{label} must be a text, got {got}")
        return str(value)


@dataclass(frozen=True)
class By(Kind):
    """What a function takes: it is called with the value, and raises TypeError or ValueError.

    The value is kept as it was given.
    """

    function: Callable[[Any], Any]

    def __call__(self, value, name, owner=""):
        try:
            self.function(value)
        except (TypeError, ValueError) as error:
            label = f"{owner}: {name}" if owner else name
            raise type(error)(f"{label}: {error}") from None
        return value


# --- memory -----------------------------------------------------------------------------------


def memory() -> int:
    """Bytes of memory that this process may use, as far as the system says; else 2**62."""
    found = [ELEMENTS]
    with suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError), open(path) as file:
            found.append(int(file.read()))
    return min(one for one in found if one > 0)


def fits(elements: int, nbytes: int, what: str) -> None:
    """ValueError with the numbers where that many elements, or their bytes, are too many."""
    if elements >= ELEMENTS:
        raise ValueError(
            f"{what}: {elements:,} elements, more than any memory holds; make it smaller"
        )
    if nbytes > 1 << 28 and nbytes > (most := memory()):
        raise ValueError(
            f"{what}: {elements:,} elements take {nbytes / 2**30:,.1f} GiB, and this "
            f"machine has {most / 2**30:,.1f} GiB; make it smaller"
        )
