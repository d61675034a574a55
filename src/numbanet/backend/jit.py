"""The only file that spells Numba's flags: decorators, the cache of compiled code, the threading layer.

`inline`    a helper that disappears into its caller (`inline_exact`: with its operations in the order written)
`kernel`    a layer's verb on samples or parameters [lo, hi), compiled on first use and called by its address
`native`    an entry point from Python; `native(parallel=True)` for those that hold a `prange`

Compiled code is cached in a directory named after a hash of all sources of the package, so an edit in one file never meets a
stale kernel of another. A file of the cache carries its own key and checksum: a broken, truncated or foreign one counts as
absent. Where nothing can be written, code is compiled anew in each process; nothing fails.
"""

import contextlib
import hashlib
import inspect
import os
import pickle
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from llvmlite import binding
from numba.core import config as _config
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _CacheLocator
from numba.core.ccallback import CFunc

config: Any = _config
"""Numba's settings."""

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""Everything but nnan and ninf: a NaN must stay visible."""

_FLAGS = {"nopython": True, "error_model": "numpy", "fastmath": FASTMATH}


# --- cache ----------------------------------------------------------------------------------------------------------


@cache
def source_hash() -> str:
    """A hash of every source file of the package and of Numba's version."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version_info[:2]}".encode())
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cache_directory() -> Path | None:
    """The first usable of $NUMBA_CACHE_DIR, the user's cache directory and a private temporary one; None without any."""
    for base in _candidates():
        path = base / source_hash()
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.name == "posix" and (path.stat().st_uid != os.getuid() or path.stat().st_mode & stat.S_IWOTH):
                continue  # code from there would run in our name
            with tempfile.TemporaryFile(dir=path):
                return path
    return None


def _candidates():
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"]) / "numbanet"
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "numbanet" / "compiled"
    with contextlib.suppress(RuntimeError):
        here = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
        yield Path.home() / here / "numbanet" / "compiled"
    yield Path(tempfile.gettempdir()) / f"numbanet-{os.getuid() if os.name == 'posix' else 'user'}"


class _CacheFile:
    """One file per compiled signature: a checksum, then the pickled key and code. Written beside, then renamed."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name

    def path(self, key) -> Path:
        return self.folder / f"{self.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def load(self, key):
        data = self.path(key).read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        stored, code = pickle.loads(data[32:])
        return code if stored == repr(key) else None

    def save(self, key, code):
        data = pickle.dumps((repr(key), code), protocol=-1)
        path = self.path(key)
        beside = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            beside.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink()

    def flush(self):
        for path in self.folder.glob(f"{self.name}-*.nbc"):
            path.unlink(missing_ok=True)


class _Locator(_CacheLocator):
    """Tells Numba's cache where we keep things; the hash of the sources is in the directory's name."""

    def __init__(self, function, file):
        self._py_file, self._function = file, function

    def get_cache_path(self):
        return str(cache_directory())

    def get_source_stamp(self):
        return source_hash()

    def get_disambiguator(self):
        return _file_hash(self._py_file)

    @classmethod
    def from_function(cls, function, file):
        return cls(function, file)


@cache
def _file_hash(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:10]
    except OSError:
        return "0"


class _Implementation(CompileResultCacheImpl):
    _locator_classes: list = [_Locator]  # noqa: RUF012


class _Cache(FunctionCache):
    """Numba's function cache, which never stops anyone: what cannot be read or written is compiled."""

    _impl_class = _Implementation

    def __init__(self, function, variant=""):
        super().__init__(function)
        self._cache_file = _CacheFile(Path(self._cache_path), self._impl.filename_base + variant)

    def load_overload(self, sig, target_context):
        with contextlib.suppress(Exception):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig, data):
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)


def _cached(compiled, function, variant=""):
    """Give a dispatcher or C function our cache, unless the function has no source file to stamp it with.

    `variant` keeps apart what is compiled from the same function with other flags.
    """
    known = os.path.isfile(inspect.getfile(function)) and cache_directory() is not None
    compiled._cache = _Cache(function, variant) if known and function.__closure__ is None else NullCache()
    return compiled


# --- decorators -----------------------------------------------------------------------------------------------------


def inline(function):
    """Compile a helper into each of its callers."""
    return numba.jit(forceinline=True, **_FLAGS)(function)


def inline_strict(function):
    """As `inline`, for code whose accuracy rests on the order of its operations."""
    return numba.jit(forceinline=True, **{**_FLAGS, "fastmath": FASTMATH - {"reassoc"}})(function)


def noinline(function):
    """Compile a helper once, to be called by its callers; or a function that the user's own compiled code calls. Not cached."""
    return numba.jit(**_FLAGS)(function)


def entry_point(function=None, *, parallel=False):
    """Compile an entry point that Python calls; it releases the interpreter's lock."""
    if function is None:
        return lambda f: entry_point(f, parallel=parallel)
    return EntryPoint(function, parallel)


class EntryPoint:
    """A function compiled, with `prange` over threads or without, when it is first called."""

    def __init__(self, function, parallel):
        self.function, self.parallel = function, parallel
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function

    @property
    def compiled(self):
        made = self.__dict__.get("_compiled")
        if made is None:
            for published in _external_dependencies(self.function, set()):
                for dtype in ("float32", "float64"):
                    published.address(dtype)
            made = numba.jit(nogil=True, parallel=self.parallel, **_FLAGS)(self.function)
            made = self.__dict__["_compiled"] = _cached(made, self.function, "-parallel" if self.parallel else "")
        return made

    def __call__(self, *args):
        return self.compiled(*args)


class Kernel:
    """A verb of a layer, loss, optimiser or metric: `verb(op, params, grads, acts, deltas, lo, hi)`.

    `op` points to the op's row of integers in the plan, the four memories to flat arrays of the network's dtype; the verb
    works on samples (or parameters) lo ≤ i < hi. It never raises: shapes are proved before.

    Its CUDA twin has the same name and arguments and is run by all threads of a row of blocks at once: `@verb.cuda` above it.
    `apart=True` says that lo ≤ i < hi do not touch one another, so the verb is its own twin: each thread takes an i of its own.
    """

    def __init__(self, function, independent=False):
        self.function, self.independent = function, independent
        self.__doc__, self.__name__, self.__wrapped__ = function.__doc__, function.__name__, function
        self._compiled = {}
        self.cuda_kernel = None

    def cuda(self, kernel) -> "Kernel":
        """Give the verb its CUDA twin; a decorator."""
        self.cuda_kernel = kernel
        return self

    def address(self, dtype) -> int:
        """The machine address of the verb for float32 or float64, compiled or read from the cache on first use."""
        key = str(dtype)
        if key not in self._compiled:
            for published in _external_dependencies(self.function, set()):
                published.address(dtype)
            memory = types.CPointer(getattr(types, key))
            signature = types.void(types.CPointer(types.int64), *[memory] * 4, types.int64, types.int64)
            made = CFunc(self.function, (signature.args, signature.return_type), locals={}, options=dict(_FLAGS))
            _cached(made, self.function).compile()
            self._compiled[key] = made
        return self._compiled[key].address

    def __repr__(self):
        return f"<kernel {self.function.__module__}.{self.function.__qualname__}>"


def kernel(function=None, *, independent=False):
    """Make a function a kernel; see Kernel for `apart`."""
    return Kernel(function, independent) if function is not None else lambda f: Kernel(f, independent)


_externals: dict[int, "ExternalHelper"] = {}


def _external_dependencies(function, seen):
    """The published helpers that a function calls, itself or through the helpers compiled into it."""
    names = function.__code__.co_names
    values = [function.__globals__.get(name) for name in names]
    modules = [value for value in values if isinstance(value, ModuleType)]
    for value in values + [getattr(module, name, None) for module in modules for name in names]:
        if id(value) in _externals:
            yield _externals[id(value)]
        inner = getattr(value, "py_func", None)
        if inner is not None and inner not in seen:
            seen.add(inner)
            yield from _external_dependencies(inner, seen)


class ExternalHelper:
    """A large helper that is compiled once for each dtype and that all kernels call by name, instead of a copy in each.

    `arguments(dtype)` gives its argument types. `called_by` names the intrinsic that calls it by its `symbol`: a kernel that uses
    the intrinsic has the helper compiled before it.
    """

    def __init__(self, function, arguments):
        self.function, self.arguments, self._compiled = function, arguments, {}

    def bind_to(self, intrinsic) -> None:
        """Let kernels that use this intrinsic find the helper."""
        _externals[id(intrinsic)] = self

    def symbol(self, dtype) -> str:
        """The name by which compiled code finds the helper for a dtype."""
        return f"numbanet_{self.function.__name__}_{dtype}_{source_hash()}"

    def address(self, dtype) -> int:
        """Compile or load the helper, make its name known, and return its address."""
        key = str(dtype)
        if key not in self._compiled:
            made = CFunc(self.function, (self.arguments(getattr(types, key)), types.void), locals={}, options=dict(_FLAGS))
            _cached(made, self.function).compile()
            binding.add_symbol(self.symbol(key), made.address)
            self._compiled[key] = made
        return self._compiled[key].address


# --- threads --------------------------------------------------------------------------------------------------------


def prefer_openmp() -> None:
    """Put OpenMP first among the threading layers (a fork-join costs 1 µs there, 90 µs in Numba's work queue).

    The user's own choice by NUMBA_THREADING_LAYER or NUMBA_THREADING_LAYER_PRIORITY stands.
    """
    if not os.environ.get("NUMBA_THREADING_LAYER_PRIORITY"):
        config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def threading_layer() -> str:
    """The layer that runs parallel loops: `omp`, `tbb` or `workqueue`; it is loaded if it was not yet."""
    numba.set_num_threads(numba.get_num_threads())
    return numba.threading_layer()


def max_threads() -> int:
    """The most threads that one call may use."""
    return config.NUMBA_NUM_THREADS
