"""The cache of compiled code on disk.

Compiled code is kept in a directory named after a hash of all sources of the package, so an edit
in one file never uses a stale kernel of another; the name of a file of the cache also contains a
hash of the source file of its function, which may be the user's. Each file carries its own key and
checksum: a broken, truncated or foreign one counts as absent. Where nothing can be written, code
is compiled anew in each process; nothing fails. A version's first use removes what no process has
used for a month. Where compiling takes more than a second, a line in the log "numbanet" says so.
"""

import contextlib
import hashlib
import inspect
import logging
import math
import os
import pickle
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, _CacheLocator

NOTICE_SECONDS = 1.0
"""Seconds of compiling after which a line says so."""
BURST_GAP = 10.0
"""Seconds without compiling after which a new burst begins, with a line of its own."""
UNUSED_SECONDS = 30 * 86400.0
"""Seconds after which the code of a version that no process used is removed."""


@cache
def source_hash() -> str:
    """Return a hash of every source file of the package and of Numba's version."""
    version = f"{numba.__version__} {sys.version_info[:2]}"
    digest = hashlib.sha256(version.encode())
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def cache_directory() -> Path | None:
    """Return the directory of the cache, None where nothing can be written.

    It is the first usable of $NUMBA_CACHE_DIR, the user's cache directory and a private temporary
    directory.
    """
    for base in _candidates():
        path = base / source_hash()
        with contextlib.suppress(OSError):
            known = path.is_dir()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.name == "posix":
                status = path.stat()
                if status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH:
                    continue  # code from there would run in our name
            with tempfile.TemporaryFile(dir=path):
                os.utime(path)
            if not known:
                _remove_unused(base)
            return path
    return None


def _remove_unused(base: Path) -> None:
    """Remove the directories of versions that no process has used for UNUSED_SECONDS."""
    with contextlib.suppress(OSError):
        for path in base.iterdir():
            age = time.time() - path.lstat().st_mtime
            if re.fullmatch("[0-9a-f]{16}", path.name) and age > UNUSED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _candidates():
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"]) / "numbanet"
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "numbanet" / "compiled"
    with contextlib.suppress(RuntimeError):
        subfolder = {"win32": "AppData/Local", "darwin": "Library/Caches"}
        home = Path.home() / subfolder.get(sys.platform, ".cache")
        yield home / "numbanet" / "compiled"
    owner = os.getuid() if os.name == "posix" else "user"
    yield Path(tempfile.gettempdir()) / f"numbanet-{owner}"


class _CacheFile:
    """One file per compiled signature: a checksum, then the pickled key and code.

    It is written under a temporary name, then renamed.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name

    def path(self, key) -> Path:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        return self.folder / f"{self.name}-{digest[:16]}.nbc"

    def load(self, key):
        data = self.path(key).read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        stored, code = pickle.loads(data[32:])
        return code if stored == repr(key) else None

    def save(self, key, code):
        data = pickle.dumps((repr(key), code), protocol=-1)
        path = self.path(key)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def flush(self):
        for path in self.folder.glob(f"{self.name}-*.nbc"):
            path.unlink(missing_ok=True)


class _Locator(_CacheLocator):
    """Tells Numba's cache where files are; the hash of the sources is in the directory's name."""

    def __init__(self, function, file):
        self._py_file, self._function = file, function

    def get_cache_path(self):
        return str(cache_directory())

    def get_source_stamp(self):
        return source_hash()

    def get_disambiguator(self):
        return _stamp(self._function)

    @classmethod
    def from_function(cls, function, file):
        return cls(function, file)


def mark_sources(function, written, constants) -> None:
    """Note which functions a function was made from, and the constants that it was given."""
    made_from = dict.fromkeys(source for part in written for source in _sources(part))
    for part in written:
        constants = [*constants, *getattr(part, "__constants__", ())]
    function.__sources__, function.__constants__ = tuple(made_from), tuple(constants)


def _sources(function) -> tuple:
    """The functions that a function is written in: itself, or its template and parts."""
    return getattr(function, "__sources__", (function,))


def _stamp(function) -> str:
    """A hash of the source files of a function, and of what its template was given."""
    hashes = [_file_hash(inspect.getfile(source)) for source in _sources(function)]
    if len(hashes) == 1 and not getattr(function, "__constants__", ()):
        return hashes[0]
    for source in _sources(function):
        code = source.__code__
        values = [one for one in code.co_consts if isinstance(one, (int, float, str))]
        hashes.append(f"{source.__qualname__} {code.co_code!r} {code.co_names} {values}")
    hashes.append(repr(function.__constants__))
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:10]


@cache
def _file_hash(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:10]
    except OSError:
        return "0"


class _Implementation(CompileResultCacheImpl):
    _locator_classes: list = [_Locator]  # noqa: RUF012


class CompileNotice:
    """At most one line in the log "numbanet" for each burst of compilations, after a second of it.

    Numba compiles one function at a time, under its lock, and within it those that it calls: each
    one's own seconds count.

    compiled     how many functions were compiled
    unwritten    why code could not be written into the cache since this was emptied, or ""
    listener     is called after each one, instead of the line
    """

    listener: Callable[[], object] | None = None

    def __init__(self, now=time.perf_counter):
        self._now, self._ended = now, -math.inf
        self._open: list[list] = []
        self._spent, self._said, self._lost = 0.0, False, ""
        self.compiled, self.unwritten = 0, ""

    def begin(self, key: object) -> None:
        """Note that a function, by its `key`, was not found and is compiled now."""
        now = self._now()
        self._open.append([key, now, 0.0])
        if now - self._ended > BURST_GAP:
            self._spent, self._said, self._lost = 0.0, False, ""

    def end(self, key: object, lost: str = "") -> None:
        """Note that it is compiled, and why its code is not kept."""
        while self._open and self._open[-1][0] is not key:
            self._open.pop()  # its compilation failed
        if not self._open:
            return
        _, began, inner = self._open.pop()
        self._ended = self._now()
        seconds = self._ended - began
        if self._open:
            self._open[-1][2] += seconds
        self._spent += seconds - inner
        self.compiled += 1
        self._lost = lost or self._lost
        if self.listener is not None:
            self.listener()
        elif self._spent > NOTICE_SECONDS and not self._said:
            self._said = True
            then = "the next start reads them from the cache"
            if self._lost:
                then = f"each start does so, because {self._lost}"
            text = "numbanet compiles kernels for this machine; %s"
            logging.getLogger("numbanet").warning(text, then)

    def cancel(self, key: object) -> None:
        """Forget that a compilation was begun."""
        self._open = [one for one in self._open if one[0] is not key]


notice = CompileNotice()


class _Cache(FunctionCache):
    """Numba's function cache, which never raises: what cannot be read or written is compiled."""

    _impl_class = _Implementation

    def __init__(self, function, variant=""):
        super().__init__(function)
        self._cache_file = _CacheFile(Path(self._cache_path), self._impl.filename_base + variant)

    def load_overload(self, sig, target_context):
        with contextlib.suppress(Exception):
            found = super().load_overload(sig, target_context)
            if found is not None:
                return found
        notice.begin(self)
        return None

    def holds(self, sig, target_context) -> bool:
        """Whether there is a file for this signature; it may be damaged."""
        return self._cache_file.path(self._index_key(sig, target_context.codegen())).is_file()

    def save_overload(self, sig, data):
        lost = ""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            lost = notice.unwritten = f"the cache cannot be written ({error})"
        notice.end(self, lost)


class _NoCache(NullCache):
    """For code that is not kept, and why."""

    def __init__(self, lost: str):
        self._lost = lost

    def load_overload(self, sig, target_context):
        notice.begin(self)

    def holds(self, sig, target_context) -> bool:
        """True: there is nothing to be gained by compiling it in another process."""
        return True

    def save_overload(self, sig, cres):
        notice.end(self, self._lost)


def cached(compiled, function, variant=""):
    """Give a dispatcher or C function our cache and return it.

    A function without a source file to stamp it with, or with a closure, which a file cannot show,
    is not cached. `variant` distinguishes what is compiled from one function with different flags.
    """
    cacheable = all(
        os.path.isfile(inspect.getfile(source)) and source.__closure__ is None
        for source in _sources(function)
    )
    if cache_directory() is None:
        lost = "no folder for the cache can be written: let NUMBA_CACHE_DIR name one"
        compiled._cache = _NoCache(lost)
    elif not cacheable:
        lost = f"{function.__qualname__} has a closure, or no source file, and is not cached"
        compiled._cache = _NoCache(lost)
    else:
        compiled._cache = _Cache(function, variant)
    return compiled
