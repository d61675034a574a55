"""Names: of activations, losses, optimisers and initialisers, and of classes that files hold."""

from difflib import get_close_matches
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)

_SAVED_CLASSES: dict[str, type] = {}


def lookup(what: str, name: str, known: dict, synonyms: dict[str, str] | None = None):
    """The entry of `known` for `name`; ValueError with the nearest name and all of them.

    Case, spaces, hyphens and underscores do not count.
    synonyms   names of other libraries, and what is known here for them
    """
    if name in known:
        return known[name]
    names = {**{one: one for one in known}, **(synonyms or {})}
    entries = {plain(one): entry for one, entry in names.items()}
    key = plain(name)
    if key in entries:
        return known[entries[key]]
    found = get_close_matches(name.lower(), names, 1) or get_close_matches(key, entries, 1)
    near = f"; did you mean {entries[plain(found[0])]!r}?" if found else ""
    raise ValueError(f"unknown {what} {name!r}{near} (known: {', '.join(known)})")


def plain(name: str) -> str:
    """Return a name without what does not count in it."""
    return "".join(name.lower().replace("-", " ").replace("_", " ").split())


def nearest(name: str, known) -> str:
    """The nearest of the known names as the end of a sentence; "" where none is near."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def register(name: str):
    """Decorate a class that a file may hold under this name; the reader needs no import of it.

    The class has `to_config`, `tensors` and `from_config`, as `network.serialization` calls them.
    """

    def add(kind: Kind) -> Kind:
        _SAVED_CLASSES[name] = kind
        return kind

    return add


def registered_name(instance) -> str:
    """The name under which the class of an object, or a base of it, is registered.

    Raises TypeError for an object that no file can hold.
    """
    for name, kind in _SAVED_CLASSES.items():
        if isinstance(instance, kind):
            return name
    raise TypeError(f"a {type(instance).__name__} cannot be saved to a file")


def registered_class(names) -> tuple[str, Any] | None:
    """The one registered name among `names` with its class, or None where not one is there."""
    found = [(name, kind) for name, kind in _SAVED_CLASSES.items() if name in names]
    return found[0] if len(found) == 1 else None
