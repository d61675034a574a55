"""The decorators that compile: the only file besides the CUDA driver that spells Numba's flags.

    inline        a helper that is compiled into each of its callers
    inline_strict the same, with its operations in the order written
    noinline      a helper that is compiled once and called
    embeddable    a function that the user's compiled code calls, and Python too
    kernel        a verb of a layer, loss or optimiser, called by its address
    entry_point   a function that Python calls; `entry_point(parallel=True)` if it holds a `prange`
    c_function    a function that C calls, of whatever signature

`specialize` makes several functions from one template. Compiled code is cached on disk (cache.py).
"""

import signal
import threading
import types as python_types
import weakref
from contextlib import contextmanager

import numba
from llvmlite import binding
from numba.core import types
from numba.core.ccallback import CFunc

from numbanet.backend.ahead import Unit
from numbanet.backend.cache import cached, mark_sources, source_hash
from numbanet.backend.inlining import InlinedFunction

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
"""Everything but nnan and ninf: a NaN must stay visible."""

_FLAGS = {"nopython": True, "error_model": "numpy", "fastmath": FASTMATH}


# --- helpers ----------------------------------------------------------------------------------


def inline(function):
    """Compile a helper into each of its callers."""
    return InlinedFunction(function, _FLAGS)


def inline_strict(function):
    """As `inline`, for code whose accuracy rests on the order of its operations."""
    strict = {**_FLAGS, "fastmath": FASTMATH - {"reassoc"}}
    return InlinedFunction(function, strict)


def noinline(function):
    """Compile a helper once, to be called by its callers. It is not cached."""
    return numba.jit(**_FLAGS)(function)


def embeddable(function):
    """Compile a function for the user's compiled code and for Python, once for all its callers.

    It cannot allocate: Numba's counting of references, which costs more than a small network, is
    off. Functions compiled into it are given pointers and sizes, not arrays.
    """
    return cached(numba.jit(nogil=True, _nrt=False, **_FLAGS)(function), function)


# --- templates --------------------------------------------------------------------------------


def specialize(template, name: str, module: str | None = None, **names):
    """Return a copy of a function in which global names mean something else.

        def _forward(op, params, grads, acts, deltas, lo, hi):
            …  value(acts[i])  …

        sigmoid_forward = kernel(specialize(_forward, "sigmoid_forward", value=sigmoid))

    The copy is a plain function of its own name (in `module`, by default the template's), without
    a closure, so it is compiled, cached and given to a GPU like any other. Its code on disk is
    stamped with the source files of the template and of all functions given, so an edit in the
    user's file is seen. Raises NameError if the template does not use a name.
    """
    template = getattr(template, "py_func", template)
    for given in names:
        if given not in template.__code__.co_names:
            raise NameError(f"{template.__qualname__} does not use the global name {given}")
    code = template.__code__.replace(co_name=name, co_qualname=name)
    scope = {**template.__globals__, **names}
    copy = python_types.FunctionType(code, scope, name, template.__defaults__)
    copy.__qualname__, copy.__doc__ = name, template.__doc__
    copy.__module__ = module or template.__module__
    parts = [getattr(part, "py_func", part) for part in names.values()]
    written = [template, *(part for part in parts if isinstance(part, python_types.FunctionType))]
    constants = [part for part in parts if not isinstance(part, python_types.FunctionType)]
    mark_sources(copy, written, constants)
    return copy


# --- entry points -----------------------------------------------------------------------------


def entry_point(function=None, *, parallel=False):
    """Compile an entry point that Python calls; it releases the interpreter's lock."""
    if function is None:
        return lambda f: entry_point(f, parallel=parallel)
    return EntryPoint(function, parallel)


class EntryPoint:
    """A function that is compiled, with `prange` over threads or without, on its first call."""

    def __init__(self, function, parallel):
        self.function, self.parallel, self.called = function, parallel, False
        self.__doc__, self.__name__, self.__wrapped__ = (
            function.__doc__,
            function.__name__,
            function,
        )

    @property
    def compiled(self):
        compiled = self.__dict__.get("_compiled")
        if compiled is None:
            for helper in _external_dependencies(self.function, set()):
                for dtype in ("float32", "float64"):
                    helper.address(dtype)
            compiled = numba.jit(nogil=True, parallel=self.parallel, **_FLAGS)(self.function)
            variant = "-parallel" if self.parallel else ""
            compiled = self.__dict__["_compiled"] = cached(compiled, self.function, variant)
        return compiled

    def unit(self, signature: tuple) -> Unit:
        """Return it for arguments of these Numba types, to be compiled ahead."""

        def compile_now():
            with interrupts_deferred():
                self.compiled.compile(signature)

        return Unit(self.compiled, signature, compile_now)

    def __call__(self, *args):
        if self.called:
            return self.compiled(*args)
        with interrupts_deferred():  # the first call compiles
            result = self.compiled(*args)
        self.called = True
        return result


# --- kernels ----------------------------------------------------------------------------------


_kernels: weakref.WeakSet["Kernel"] = weakref.WeakSet()


def all_kernels() -> list["Kernel"]:
    """Return all kernels there are, the user's too, by their names."""
    return sorted(_kernels, key=repr)


class Kernel:
    """A verb of a layer, loss or optimiser: `verb(op, params, grads, acts, deltas, lo, hi)`.

    `op` points to the op's row of integers in the plan, the four memories to flat arrays of the
    network's dtype; the verb works on samples (or parameters) lo ≤ i < hi. It never raises: shapes
    are checked before.

    Its CUDA kernel has the same name and arguments and is run by all threads of a block group at
    once: `@verb.cuda` above it. `independent=True` says that no i of lo ≤ i < hi touches what
    another one does, so the verb needs no CUDA kernel: each thread runs it for one i.
    """

    def __init__(self, function, independent=False):
        self.function, self.independent = function, independent
        self.__doc__, self.__name__, self.__wrapped__ = (
            function.__doc__,
            function.__name__,
            function,
        )
        self._compiled = {}
        self.cuda_kernel = None
        _kernels.add(self)

    def cuda(self, kernel) -> "Kernel":
        """Give the verb its CUDA kernel; a decorator."""
        self.cuda_kernel = kernel
        return self

    def address(self, dtype) -> int:
        """Return the machine address of the verb for float32 or float64.

        It is compiled or read from the cache on first use.
        """
        compiled = self._compiled.get(dtype)
        if compiled is not None:
            return compiled.address
        key = str(dtype)
        if key not in self._compiled:
            for helper in self.helpers():
                helper.address(dtype)
            self._compiled[key] = c_function(self.function, self._signature(key))
        self._compiled[dtype] = self._compiled[key]  # a NumPy dtype takes long to become a string
        return self._compiled[key].address

    @staticmethod
    def _signature(dtype: str):
        memory = types.CPointer(getattr(types, dtype))
        arguments = (types.CPointer(types.int64), *[memory] * 4, types.int64, types.int64)
        return types.void(*arguments)

    def is_compiled(self, dtype) -> bool:
        """Return whether it is, with its helpers, for a dtype."""
        return dtype in self._compiled or str(dtype) in self._compiled

    def helpers(self) -> set:
        """Return the helpers that it calls by their names."""
        return set(_external_dependencies(self.function, set()))

    def units(self, dtype) -> list[Unit]:
        """Return what has to be compiled for a dtype, beside the helpers."""
        if self.is_compiled(dtype):
            return []
        key = str(dtype)
        signature = self._signature(key)
        compiled, helpers = _c_function(self.function, signature), self.helpers()

        def compile_alone():
            for helper in helpers:
                helper.declare(key)
            with interrupts_deferred():
                compiled.compile()
            if not helpers:
                self._compiled[key] = compiled

        return [Unit(compiled, signature, compile_alone, bool(helpers))]

    def __repr__(self):
        return f"<kernel {self.function.__module__}.{self.function.__qualname__}>"


def kernel(function=None, *, independent=False):
    """Make a function a kernel; see Kernel for `independent`."""
    if function is None:
        return lambda f: Kernel(f, independent)
    return Kernel(function, independent)


def units(kernels, dtype) -> list[Unit]:
    """Return what has to be compiled for kernels and a dtype, each once, helpers first."""
    kernels = [one for one in dict.fromkeys(kernels) if not one.is_compiled(dtype)]
    helpers = dict.fromkeys(helper for kernel in kernels for helper in kernel.helpers())
    return [unit for one in (*helpers, *kernels) for unit in one.units(dtype)]


def c_function(function, signature, on_disk: bool = True) -> CFunc:
    """Compile a function that C calls, of a Numba signature, or read it from the cache.

    on_disk   False for code that holds an address of this process
    The result's `address` is valid as long as the result is kept.
    """
    compiled = _c_function(function, signature, on_disk)
    with interrupts_deferred():
        compiled.compile()
    return compiled


def _c_function(function, signature, on_disk: bool = True) -> CFunc:
    """A function that C calls, not compiled yet."""
    compiled = CFunc(
        function,
        (signature.args, signature.return_type),
        locals={},
        options=dict(_FLAGS),
    )
    return cached(compiled, function) if on_disk else compiled


@contextmanager
def interrupts_deferred():
    """Let Ctrl-C wait until the end: LLVM's callbacks into Python would swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple] = []
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not Python's to handle
        yield
        return
    signal.signal(signal.SIGINT, lambda *found: pending.append(found))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        before(*pending[0])


# --- external helpers -------------------------------------------------------------------------

_externals: dict[int, "ExternalHelper"] = {}


def _external_dependencies(function, seen):
    """The external helpers that a function calls, itself or through helpers compiled into it."""
    names = function.__code__.co_names
    values = [function.__globals__.get(name) for name in names]
    modules = [value for value in values if isinstance(value, python_types.ModuleType)]
    for value in values + [getattr(module, name, None) for module in modules for name in names]:
        if id(value) in _externals:
            yield _externals[id(value)]
        inner = getattr(value, "py_func", None)
        if inner is not None and inner not in seen:
            seen.add(inner)
            yield from _external_dependencies(inner, seen)


class ExternalHelper:
    """A large helper that is compiled once for each dtype and linked to all kernels by its name.

    `arguments(dtype)` gives its argument types. `bind_to` names the intrinsic that calls it by its
    `symbol`: before a kernel that uses the intrinsic, the helper is compiled.
    """

    def __init__(self, function, arguments):
        self.function, self.arguments, self._compiled = function, arguments, {}

    def bind_to(self, intrinsic) -> None:
        """Let kernels that use this intrinsic find the helper."""
        _externals[id(intrinsic)] = self

    def symbol(self, dtype) -> str:
        """Return the name by which compiled code finds the helper for a dtype."""
        return f"numbanet_{self.function.__name__}_{dtype}_{source_hash()}"

    def address(self, dtype) -> int:
        """Compile or load the helper, make its name known, and return its address."""
        key = str(dtype)
        if key not in self._compiled:
            compiled = c_function(self.function, self._signature(key))
            binding.add_symbol(self.symbol(key), compiled.address)
            self._compiled[key] = compiled
        return self._compiled[key].address

    def _signature(self, dtype: str):
        return types.void(*self.arguments(getattr(types, dtype)))

    def declare(self, dtype: str) -> None:
        """Make its name known where the code that calls it is compiled and never run."""
        if dtype not in self._compiled:
            binding.add_symbol(self.symbol(dtype), id(self))

    def units(self, dtype) -> list[Unit]:
        """Return what has to be compiled for a dtype."""
        key = str(dtype)
        if key in self._compiled:
            return []
        signature = self._signature(key)
        compiled = _c_function(self.function, signature)
        return [Unit(compiled, signature, compiled.compile, linked=True)]
