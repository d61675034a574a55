"""warmup: compile into the cache what later processes would otherwise compile at first use."""

import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from numbanet.backend.ahead import compile_ahead, processes
from numbanet.backend.cache import cache_directory, notice
from numbanet.backend.jit import all_kernels, units
from numbanet.engine.cpu import kernels as engine
from numbanet.io.registry import lookup
from numbanet.network import zoo
from numbanet.network.sequential import Sequential
from numbanet.nn.layers import Conv2D, Dense, Flatten

DTYPES = {name: np.dtype(name) for name in ("float32", "float64")}
MODELS: dict[str, Callable] = {
    "lenet5": zoo.lenet5,
    "vgg_small": zoo.vgg_small,
    "lstm": zoo.lstm,
    "gru": zoo.gru,
} | {
    f"nielsen{row}": lambda row=row, **options: zoo.nielsen(row, **options)
    for row, found in zoo.BOOK_ROWS.items()
    if found.networks == 1
}
PROGRESS_SECONDS = 10.0
"""Seconds after which a line says how many functions are compiled."""
BATCH = 64
"""Samples in a batch of a model without a recipe."""


def warmup(
    models: str | Iterable[str] = (),
    dtypes: str | Iterable[str] = ("float32",),
    say: Callable[[str], object] | None = print,
) -> int:
    """Fill the cache of compiled code for the CPU, so that later processes start at once.

    models   names as in `numbanet.models`, such as "lenet5" or "nielsen17", for what these need;
             by default all layers, losses and optimisers, and what `kernel` made so far
    dtypes   of the networks: "float32", "float64"
    say      is called with lines that tell what is done and how long it takes, or None
    Returns how many functions were compiled. What is in the cache already is read and checked. An
    interrupt leaves what is done so far. Warns where the cache is not in $NUMBA_CACHE_DIR, because
    that cannot be used. Raises OSError where no cache can be written, ValueError for an unknown
    name.
    """
    say = say or (lambda text: None)
    models = [models] if isinstance(models, str) else list(models)
    builders = [lookup("model", name, MODELS) for name in models] or [_vector, _image]
    dtypes = [dtypes] if isinstance(dtypes, str) else dtypes
    chosen = [lookup("dtype", str(dtype), DTYPES) for dtype in dtypes]
    _check_directory()
    say(f"the cache is {cache_directory()}; {processes()} processes compile")
    before, notice.unwritten = notice.compiled, ""
    try:
        for dtype in chosen:
            progress = _Progress(str(dtype), say)
            notice.listener = progress.show
            if not models:
                _compile_all(dtype)
            for build in builders:
                _use(build, dtype)
                _check_written()
            progress.end()
    finally:
        notice.listener = None
    return notice.compiled - before


def _check_directory() -> None:
    """OSError where there is no cache; a warning where it is not in the folder that was named."""
    found, named = cache_directory(), os.environ.get("NUMBA_CACHE_DIR")
    if found is None:
        raise OSError("no folder for the cache can be written: let NUMBA_CACHE_DIR name one")
    if named and not found.is_relative_to(Path(named)):
        warnings.warn(
            f"NUMBA_CACHE_DIR={named}: this folder cannot be written, or others may write there; "
            f"the cache is {found}, where later processes find it only if they look there too",
            stacklevel=3,
        )


def _check_written() -> None:
    """OSError where what was compiled last could not be written into the cache."""
    if notice.unwritten:
        raise OSError(f"{notice.unwritten}; it is {cache_directory()}")


class _Progress:
    """Lines that tell how many functions of a dtype are compiled, at most one in ten seconds."""

    def __init__(self, dtype: str, say: Callable[[str], object]):
        self._dtype, self._say = dtype, say
        self._first, self._began = notice.compiled, time.perf_counter()
        self._next = self._began + PROGRESS_SECONDS

    def show(self) -> None:
        """Say it, if it is time."""
        if time.perf_counter() >= self._next:
            self._next = time.perf_counter() + PROGRESS_SECONDS
            self.end(", more follow")

    def end(self, rest: str = "") -> None:
        """Say it now."""
        n, seconds = notice.compiled - self._first, time.perf_counter() - self._began
        self._say(f"{self._dtype}: {n} functions compiled in {seconds:.1f} s{rest}")


def _compile_all(dtype) -> None:
    """Compile every kernel there is, in several processes where that can be."""
    kernels = all_kernels()
    regions = [engine.region_unit(dtype, parallel) for parallel in (True, False)]
    compile_ahead([*units([engine.train], dtype), *regions, *units(kernels, dtype)])
    _check_written()
    for kernel in kernels:
        kernel.address(dtype)
        _check_written()


def _vector(**options) -> Sequential:
    return Sequential([Dense(10, activation="softmax")], 4, **options)


def _image(**options) -> Sequential:
    layers = [Conv2D(2, 3), Flatten(), Dense(10, activation="softmax")]
    return Sequential(layers, (5, 5, 1), **options)


def _use(build: Callable, dtype) -> None:
    """Train a new network by one step, for one thread and for many, and let it predict."""
    for threads in (None, 1):
        made = build(dtype=dtype)
        network, recipe = made if isinstance(made, tuple) else (made, None)
        options = {"batch_size": BATCH, "epochs": 1, **(recipe.options if recipe else {})}
        x = np.zeros((options["batch_size"], *network.input_shape), dtype)
        y = np.arange(len(x)) % network.output_shape[0]
        options |= {"epochs": 1, "validation_data": (x, y), "threads": threads, "verbose": 0}
        network.fit(x, y, **options)
        network.predict(x[:1])
        network.evaluate(x, y)
