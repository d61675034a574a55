"""Code compiled ahead of its first use, by several processes, for the cache and through it.

Numba compiles under a lock, so threads would wait for one another. Forked children share what is
imported, compile what is missing in the cache, each one unit after the other, and end. They run
none of it, so a helper that is linked by its name need not be there. Meanwhile this process
compiles what links none; the rest it reads. Where there is no cache, no fork or one processor, or
where a child fails, nothing is lost: what is not in the cache is compiled at its first use.
"""

import logging
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from numbanet.backend.cache import cache_directory, notice
from numbanet.backend.threads import max_threads

LEAST = 6
"""Units for which children are worth it: each one prepares Numba and compiles its helpers anew."""
PATIENCE = 60.0
"""Seconds without any unit compiled after which the children count as lost."""
ONE_AT_A_TIME = threading.Lock()
"""So that threads which need the same code compile it once."""
RECORD = 4
"""Bytes of a unit's number in a pipe, which are read and written as one."""


@dataclass(frozen=True, eq=False)
class Unit:
    """A function for one signature.

    compiled    Numba's object, with the cache of the package
    signature   as the cache knows it
    compile     compiles it into the cache
    linked      it calls helpers by their names: what a child compiles cannot run there
    """

    compiled: Any
    signature: Any
    compile: Callable[[], object]
    linked: bool = False

    @property
    def is_cached(self) -> bool:
        """Whether it is in the cache, or cannot be kept there."""
        return self.compiled._cache.holds(self.signature, cpu_target.target_context)

    def __repr__(self):
        function = self.compiled.__wrapped__
        return f"{function.__module__.removeprefix('numbanet.')}.{function.__qualname__}"


def processes() -> int:
    """How many processes compile at once; 1 where none can be forked or no cache be written."""
    if sys.platform != "linux" or cache_directory() is None:
        return 1
    return min(len(os.sched_getaffinity(0)), max_threads())


def compile_ahead(units: Iterable[Unit], done: Callable[[Unit], None] | None = None) -> None:
    """Let several processes compile the units that the cache lacks, where they can.

    done   is called with each unit that a child has compiled
    The first ones are begun first: long ones should come first.
    """
    units = list(units)
    if len(units) < LEAST or processes() < 2:
        return
    with ONE_AT_A_TIME:
        missing = [unit for unit in units if not unit.is_cached]
        if len(missing) >= LEAST:
            _compile_in_children(missing, done)


def _compile_in_children(missing: list[Unit], done) -> None:
    """Let several processes compile these units."""
    with global_compiler_lock:
        cpu_target.target_context.refresh()  # what every child would do
    todo = [_queue(missing, linked) for linked in (True, False)]
    finished, report = os.pipe()
    children: list[int] = []
    notice.begin(missing)
    try:
        with suppress(OSError), global_compiler_lock:
            for _ in range(min(processes(), len(missing)) - 1):
                children.append(_fork(missing, todo, report))
        os.close(report)
        report = -1
        while children and (record := os.read(todo[1], RECORD)):
            _compile(missing, record)
        while select.select([finished], [], [], PATIENCE)[0]:
            record = os.read(finished, RECORD)
            if not record:
                break  # all have ended
            notice.end(missing)
            notice.begin(missing)
            if done is not None:
                done(missing[int.from_bytes(record, "little")])
    finally:
        for file in (*todo, finished, report):
            if file >= 0:
                os.close(file)
        _end(children)
        notice.cancel(missing)


def _queue(units: list[Unit], linked: bool) -> int:
    """A pipe with the numbers of the units that are linked, or not: whoever reads one takes it."""
    todo, fill = os.pipe()
    numbers = [k for k, unit in enumerate(units) if unit.linked == linked]
    os.write(fill, b"".join(k.to_bytes(RECORD, "little") for k in numbers))
    os.close(fill)
    return todo


def _compile(units: list[Unit], record: bytes) -> None:
    """Compile the unit that a record names; an error comes again at its first use, and is said."""
    with suppress(Exception):
        units[int.from_bytes(record, "little")].compile()


def _fork(units: list[Unit], todo: list[int], report: int) -> int:
    """Fork a child that compiles units; its id."""
    parent = os.getpid()
    with warnings.catch_warnings():
        # of threads, which the child does not have: it takes no lock but the compiler's own
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
        logging.disable()
        notice.listener = None  # the parent's
        for queue in todo:
            while os.getppid() == parent and (record := os.read(queue, RECORD)):
                _compile(units, record)
                os.write(report, record)
    finally:
        os._exit(0)


def _end(children: list[int]) -> None:
    """End children that have not ended, and remove what they were writing."""
    folder = cache_directory()
    for child in children:
        with suppress(OSError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        for path in folder.glob(f"*.{child}.*") if folder is not None else ():
            path.unlink(missing_ok=True)
