"""Names of activations, losses, optimisers and initialisers, with the nearest valid one in the error."""

from difflib import get_close_matches


def lookup(what: str, name: str, known: dict):
    """The entry of `known` for `name`; ValueError with the nearest name and all of them."""
    key = name.lower().replace("-", "_").replace(" ", "_")
    if key in known:
        return known[key]
    near = get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(known)})")
