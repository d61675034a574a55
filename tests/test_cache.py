"""Compiled code that cannot be kept or read again never stops a training: it is compiled anew."""

import ctypes
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numba.core.ccallback import CFunc

import numbanet as nn
from numbanet.backend import ahead, cache, jit
from numbanet.backend.intrinsics import const_like
from numbanet.network import warmup
from numbanet.nn.layers import dense
from numbanet.nn.optimizers import adagrad

SOURCES = str(Path(nn.__file__).parents[1])
SCRIPT = """
import sys
import numpy as np
import numbanet as nn
from numbanet.backend import cache

x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
if "remove" in sys.argv:
    import shutil
    shutil.rmtree(cache.cache_directory())
if "predict" in sys.argv:  # the fewest kernels
    found = nn.Sequential([nn.LeakyReLU(0.5)], 3).predict(x, threads=1) - np.where(x > 0, x, x / 2)
else:
    net, threads = nn.Sequential([nn.Dense(1)], 3, seed=1), 2 if "parallel" in sys.argv else 1
    net.fit(x, x[:, :1], optimizer=nn.SGD(0.1), epochs=3, threads=threads, verbose=0)
    found = net.parameters
print(cache.cache_directory(), found.tobytes().hex())
"""
RIGHT = bytes(20 * 3 * 4).hex()
"""What the script prints where predictions are right."""


def test_numba_without_its_compiler_is_refused():
    child = subprocess.run(
        [sys.executable, "-c", "import numbanet"],
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": SOURCES},
    )
    assert child.returncode == 1
    assert "ImportError: numbanet cannot run without Numba's compiler" in child.stderr


def train(*args, **places):
    """Train or predict in a new process that has these places and no other.

    Return its cache directory and its weights, or the errors of its predictions.
    """
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "TMPDIR")
    }
    env |= {"PYTHONPATH": SOURCES} | {key: str(value) for key, value in places.items()}
    command = [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) <= 1
    assert not done.stderr or done.stderr.startswith("numbanet compiles kernels")
    return done.stdout.split()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder in which a training has left its compiled code, and the weights it came to."""
    base = tmp_path_factory.mktemp("cache")
    directory, weights = train(NUMBA_CACHE_DIR=base)
    return base, Path(directory), weights


def test_code_is_kept_and_read_again(kept):
    base, directory, weights = kept
    files = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert directory.is_relative_to(base) and len(files) > 4
    assert train(NUMBA_CACHE_DIR=base) == [str(directory), weights]
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == files


def test_code_for_one_thread_and_for_many_is_kept_apart(kept):
    base, directory, weights = kept
    alone = set(directory.glob("kernels._run*"))
    assert train("parallel", NUMBA_CACHE_DIR=base) == [str(directory), weights]
    added = set(directory.glob("kernels._run*")) - alone
    assert len(alone) == len(added) == 1
    added.pop().unlink()  # the other tests train with one thread and would not mend it


def test_damaged_files_are_compiled_anew(kept):
    base, directory, weights = kept
    files = sorted(directory.iterdir())
    for k, path in enumerate(files):
        content = path.read_bytes()
        path.write_bytes(
            [
                b"",
                content[:20],
                content[: len(content) // 2],
                content[:-1],
                content[:99] + b"?" + content[100:],
                bytes(len(content)),
                b"\x80\x04not a pickle.",
            ][k % 7]
        )
    assert train(NUMBA_CACHE_DIR=base) == [str(directory), weights]
    assert sorted(directory.iterdir()) == files
    for path in files:
        content = path.read_bytes()
        assert hashlib.sha256(content[32:]).digest() == content[:32]


def test_a_folder_where_a_file_should_be(kept):
    base, directory, weights = kept
    path = min(directory.iterdir())
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    try:
        assert train(NUMBA_CACHE_DIR=base) == [str(directory), weights]
    finally:
        path.rmdir()
        path.write_bytes(content)


def test_a_versions_first_use_removes_what_is_unused_for_a_month(monkeypatch, tmp_path):
    base, month = tmp_path / "numbanet", cache.UNUSED_SECONDS
    ages = {"0" * 16: 1.1 * month, "1" * 16: 0.9 * month, "of the user": 2 * month}
    for name, age in ages.items():
        (base / name).mkdir(parents=True)
        (base / name / "code.nbc").write_bytes(b"")
        os.utime(base / name, (time.time() - age,) * 2)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    used = cache.cache_directory.__wrapped__()
    assert {path.name for path in base.iterdir()} == {used.name, "1" * 16, "of the user"}
    os.utime(used, (0, 0))
    assert cache.cache_directory.__wrapped__() == used
    assert time.time() - used.stat().st_mtime < 0.1 * month


def test_nowhere_to_write(tmp_path):
    (tmp_path / f"numbanet-{os.getuid() if os.name == 'posix' else 'user'}").write_text(
        "a file in the way"
    )
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "below"
    places = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), nowhere)
    assert train("predict", **places, TMPDIR=tmp_path) == ["None", RIGHT]


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of files")
def test_a_home_that_cannot_be_written_gives_way_to_a_private_temporary_folder(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    if os.access(home, os.W_OK):  # the superuser writes everywhere, but not below a file
        (home / ".cache").write_text("")
    directory, errors = train("predict", HOME=home, TMPDIR=tmp_path)
    assert Path(directory).parent == tmp_path / f"numbanet-{os.getuid()}" and errors == RIGHT
    assert list(Path(directory).glob("*.nbc"))
    assert Path(directory).stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name != "posix", reason="needs permissions of files")
def test_a_folder_that_others_can_write_to_is_not_used(kept, tmp_path):
    directory = kept[1]
    open_to_all = tmp_path / "numbanet" / directory.name
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    used, errors = train("predict", NUMBA_CACHE_DIR=tmp_path, XDG_CACHE_HOME=tmp_path / "other")
    assert Path(used).is_relative_to(tmp_path / "other") and errors == RIGHT
    assert not list(open_to_all.iterdir())


def test_a_folder_that_goes_away(tmp_path):
    assert train("remove", "predict", NUMBA_CACHE_DIR=tmp_path)[1] == RIGHT


# --- activations made from the mathematics of one element -----------------------------------------

MINE = """
import numbanet as nn

class Mine(nn.Activation):
    @staticmethod
    def value(z, slope):
        return z + z
"""

USE = """
import numpy as np
import numbanet as nn
from mine import Mine

net = nn.Sequential([Mine()], 3)
print(*net.predict(np.ones((1, 3), "float32"))[0].astype(int))
"""


def test_an_edit_in_the_users_file_is_seen(tmp_path):
    """The kernel is made from a template of the package, and cached under a stamp of both files."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([SOURCES, str(tmp_path)]),
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    env["PYTHONDONTWRITEBYTECODE"] = "1"

    def use():
        done = subprocess.run(
            [sys.executable, "-c", USE], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), len(list(tmp_path.rglob("activations.mine_forward-*.nbc")))

    (tmp_path / "mine.py").write_text(MINE)
    assert use() == (["2"] * 3, 1)
    assert use() == (["2"] * 3, 1)
    (tmp_path / "mine.py").write_text(MINE.replace("z + z", "z - z"))
    assert use() == (["0"] * 3, 2)


def test_two_functions_of_one_file_and_name_are_kept_apart():
    """Activations made by a factory have the same name, module and file."""

    def make(negative):
        class Mine(nn.Activation):
            if negative:

                @staticmethod
                def value(z, slope):
                    return -z
            else:

                @staticmethod
                def value(z, slope):
                    return abs(z)

        return Mine()

    x = np.array([[-3.0, 0, 2]])
    for kept in range(2):
        for negative in (False, True):
            net = nn.Sequential([make(negative)], 3, "float64")
            assert (net.predict(x) == (-x if negative else abs(x))).all(), kept


def test_a_function_with_a_closure_is_not_cached():
    def make(factor):
        class Mine(nn.Activation):
            @staticmethod
            def value(z, slope):
                return z * const_like(z, factor)

        return Mine()

    for factor in (2, 3):
        net = nn.Sequential([make(factor)], 3, "float64")
        assert (net.predict(np.ones((1, 3))) == factor).all()


# --- what is said ------------------------------------------------------------------------------


class Seconds:
    """A time that passes only where a test says so."""

    def __init__(self):
        self.value = 0.0

    def __call__(self):
        return self.value


def lines(caplog):
    found = [record.getMessage() for record in caplog.records if record.name == "numbanet"]
    assert all(record.levelname == "WARNING" for record in caplog.records)
    caplog.clear()
    return found


def test_compiling_for_more_than_a_second_is_said_once_for_each_burst(caplog):
    now = Seconds()
    notice = cache.CompileNotice(now)

    def compile_for(seconds, pause=0.1, lost=""):
        now.value += pause
        notice.begin("a function")
        now.value += seconds
        notice.end("a function", lost)
        return lines(caplog)

    kept = "numbanet compiles kernels for this machine; the next start reads them from the cache"
    assert compile_for(0.6) == [] and compile_for(0.6) == [kept] and compile_for(9.0) == []
    assert compile_for(0.9, pause=60) == []  # a new burst
    assert compile_for(0.3) == [kept]
    assert compile_for(0.9, pause=60) == [] == compile_for(0.9, pause=60)  # short bursts
    (said,) = compile_for(2.0, pause=60, lost="the disk is full")
    assert said.endswith("each start does so, because the disk is full")


def test_the_seconds_of_a_function_that_another_one_calls_count_once(caplog):
    now = Seconds()
    notice = cache.CompileNotice(now)

    def compile_nested(outer, inner):
        notice.begin("outer")
        now.value += outer
        notice.begin("failed")
        notice.begin("inner")
        now.value += inner
        notice.end("inner")
        notice.end("outer")
        return lines(caplog)

    assert compile_nested(0.3, 0.3) == [] and notice.compiled == 2
    assert len(compile_nested(0.3, 0.3)) == 1


def test_what_is_read_from_the_cache_is_silent_and_what_is_compiled_counts(monkeypatch, caplog):
    now, calls = Seconds(), []
    monkeypatch.setattr(cache, "notice", cache.CompileNotice(now))
    compile_uncached = CFunc._compile_uncached

    def slow(self):
        now.value += 2.0
        calls.append(self)
        return compile_uncached(self)

    monkeypatch.setattr(CFunc, "_compile_uncached", slow)
    first, again = (nn.kernel(adagrad.function) for _ in range(2))
    directory = cache.cache_directory()
    for path in directory.glob("optimizers.adagrad*"):
        path.unlink()
    first.address("float32")
    assert len(calls) == 1 and "the next start reads" in lines(caplog)[0]
    now.value += 60
    again.address("float32")
    assert len(calls) == 1 and lines(caplog) == []

    def closed(op, params, grads, acts, deltas, lo, hi):
        params[lo] = now_and_then

    now_and_then = 2.0
    nn.kernel(closed).address("float32")
    assert "closed has a closure" in lines(caplog)[0]


def test_a_cache_that_cannot_be_written_is_said(monkeypatch, caplog):
    now = Seconds()
    monkeypatch.setattr(cache, "notice", cache.CompileNotice(now))
    monkeypatch.setattr(cache, "cache_directory", lambda: None)
    compile_uncached = CFunc._compile_uncached

    def slow(self):
        now.value += 2.0
        return compile_uncached(self)

    monkeypatch.setattr(CFunc, "_compile_uncached", slow)
    nn.kernel(adagrad.function).address("float64")
    assert "no folder for the cache can be written" in lines(caplog)[0]


def test_an_interrupt_waits_until_a_kernel_is_compiled():
    done = []

    def compile_and_swallow():
        with suppress(KeyboardInterrupt):  # as LLVM's callbacks do
            signal.raise_signal(signal.SIGINT)
            done.append("after")

    with pytest.raises(KeyboardInterrupt), jit.interrupts_deferred():
        compile_and_swallow()
    assert done == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with jit.interrupts_deferred():
        pass


# --- helpers -----------------------------------------------------------------------------------


@jit.inline
def scaled(x, factor):
    return x * const_like(x, factor)


def test_a_helper_is_compiled_into_its_callers_and_not_by_itself(monkeypatch):
    """Once for all literals, without machine code; Python cannot call it."""
    monkeypatch.setattr(cache, "cache_directory", lambda: None)  # compiled, not read

    @nn.kernel
    def uses(op, params, grads, acts, deltas, lo, hi):
        acts[0] = scaled(scaled(acts[0], 2), 3)

    memory = np.array([1.0, 0.0])
    pointer = memory.ctypes.data
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(uses.address("float64"))(*[pointer] * 5, 0, 1)
    assert memory[0] == 6
    (code,) = scaled.overloads.values()
    symbols = [name for name in code.library.codegen._engine._defined_symbols if "Env" not in name]
    assert any("uses" in name for name in symbols)
    assert not any("scaled" in name for name in symbols)
    with pytest.raises(TypeError, match=r"in Python, call scaled\.py_func"):
        scaled(1.0, 2)


# --- several processes -------------------------------------------------------------------------


@pytest.fixture
def missing(monkeypatch):
    """Two kernels that are not in the cache, and a machine that compiles them in two processes."""
    monkeypatch.setattr(ahead, "processes", lambda: 2)
    monkeypatch.setattr(ahead, "LEAST", 2)
    kernels = [nn.kernel(one.function) for one in (adagrad, dense.forward)]
    for name in ("optimizers.adagrad-*", "dense.forward-*"):
        for path in cache.cache_directory().glob(name):
            path.unlink()
    return kernels


def compilations(monkeypatch):
    """A list that grows with every compilation in this process."""
    calls, compile_uncached = [], CFunc._compile_uncached

    def noted(self):
        calls.append(self.__name__)
        return compile_uncached(self)

    monkeypatch.setattr(CFunc, "_compile_uncached", noted)
    return calls


def no_children():
    """Whether every child has ended and been waited for, and left no file half written."""
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return all(path.suffix == ".nbc" for path in cache.cache_directory().iterdir())


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux")


@needs_fork
def test_children_compile_what_is_linked_and_this_process_reads_it(missing, monkeypatch):
    calls, done = compilations(monkeypatch), []
    before = cache.notice.compiled
    ahead.compile_ahead(jit.units(missing, "float32"), done.append)
    assert "nn.layers.dense.forward" in map(repr, done)  # linked: this process leaves it alone
    assert calls in ([], ["adagrad"]) and no_children()
    compiled = len(done) + len(calls)
    assert cache.notice.compiled - before == compiled
    for kernel in missing:
        kernel.address("float32")
    ahead.compile_ahead(jit.units([nn.kernel(one.function) for one in missing], "float32"))
    assert cache.notice.compiled - before == compiled  # nothing was missing


@needs_fork
def test_children_are_not_forked_for_a_few_kernels(missing, monkeypatch):
    monkeypatch.setattr(ahead, "LEAST", 9)
    ahead.compile_ahead(jit.units(missing, "float32"))
    assert not any(unit.is_cached for unit in jit.units(missing, "float32")[-2:])


@needs_fork
def test_threads_that_need_the_same_code_compile_it_once(missing, monkeypatch):
    calls, done = compilations(monkeypatch), []
    units = [jit.units(missing, "float32") for _ in range(2)]
    threads = [
        threading.Thread(target=ahead.compile_ahead, args=(one, done.append)) for one in units
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    compiled = [*calls, *(repr(unit).rpartition(".")[2] for unit in done)]
    assert len(compiled) == len(set(compiled)) and {"adagrad", "forward"} <= set(compiled)
    assert no_children()


def test_what_is_compiled_is_not_looked_at_again(monkeypatch):
    dense.forward.address(np.dtype("float64"))
    monkeypatch.setattr(jit.Kernel, "helpers", lambda self: 1 / 0)
    for dtype in ("float64", np.dtype("float64")):
        assert jit.units([dense.forward], dtype) == []


@needs_fork
@pytest.mark.parametrize("fail", [lambda: os._exit(3), lambda: 1 / 0, lambda: time.sleep(60)])
def test_a_child_that_fails_stops_nobody(missing, monkeypatch, fail):
    monkeypatch.setattr(ahead, "PATIENCE", 5.0)
    ill = replace(jit.units(missing, "float32")[-1], compile=fail)
    ahead.compile_ahead([ill, *jit.units(missing[:1], "float32")])
    assert no_children() and all(unit.is_cached for unit in jit.units(missing[:1], "float32"))
    assert missing[1].address("float32")


@needs_fork
def test_an_interrupt_ends_the_children(missing):
    def interrupt():
        raise KeyboardInterrupt

    (own,), slow = jit.units(missing[:1], "float32"), jit.units(missing, "float32")[-1]
    units = replace(own, compile=interrupt), replace(slow, compile=lambda: time.sleep(60))
    with pytest.raises(KeyboardInterrupt):
        ahead.compile_ahead(units)
    assert no_children()


def test_with_one_process_each_kernel_is_compiled_at_its_first_use(missing, monkeypatch):
    calls = compilations(monkeypatch)
    monkeypatch.setattr(ahead, "processes", lambda: 1)
    ahead.compile_ahead(jit.units(missing, "float32"))
    assert calls == []
    missing[0].address("float32")
    assert calls == ["adagrad"]


def test_one_process_compiles_where_no_cache_can_be_written(monkeypatch):
    monkeypatch.setattr(ahead, "cache_directory", lambda: None)
    assert ahead.processes() == 1


WARM = """
import numpy as np
import numbanet as nn
from numbanet.backend import cache

network, recipe = nn.models.nielsen(1)
x, y = np.zeros((20, 784), "float32"), np.arange(20) % 10
network.fit(x, y, **recipe.options | {"epochs": 1, "verbose": 0}, validation_data=(x, y))
network.predict(x[:1])
print(cache.notice.compiled)
"""


def test_after_a_warmup_the_next_process_compiles_nothing(tmp_path):
    env = {**os.environ, "PYTHONPATH": SOURCES, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first, *_, last = run("-m", "numbanet", "warmup", "--models", "nielsen1")
    assert str(tmp_path) in first and re.fullmatch(r"float32: \d\d functions .* in [\d.]+ s", last)
    assert run("-c", WARM) == ["0"]
    assert "float32: 0 functions" in run("-m", "numbanet", "warmup", "--models", "nielsen1")[-1]


def test_a_warmup_of_everything_takes_all_kernels(monkeypatch):
    few, said = [nn.kernel(adagrad.function)], []
    names = {one.__name__ for one in jit.all_kernels()}
    assert names >= {"sigmoid_forward", "adam", "lstm_forward", "train"}
    monkeypatch.setattr(warmup, "all_kernels", lambda: few)
    nn.warmup(dtypes="float64", say=said.append)
    assert few[0]._compiled and len(said) >= 2
    with pytest.raises(ValueError, match=r"unknown model 'lenet'; did you mean 'lenet5'"):
        nn.warmup("lenet")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/nope")
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR=/proc/nope: this folder cannot be .*"):
        nn.warmup(dtypes="float64", say=None)
    monkeypatch.setattr(warmup, "cache_directory", lambda: None)
    with pytest.raises(OSError, match="let NUMBA_CACHE_DIR name one"):
        nn.warmup()


def test_a_warmup_tells_how_far_it_is_and_fails_where_nothing_is_kept(monkeypatch, caplog):
    """In the place of the line in the log."""
    monkeypatch.setattr(cache, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(warmup, "PROGRESS_SECONDS", 0.0)

    def warm(say=None):
        for path in cache.cache_directory().glob("optimizers.adagrad-*"):
            path.unlink()
        kernel = nn.kernel(adagrad.function)
        monkeypatch.setattr(warmup, "all_kernels", lambda: [kernel])
        return nn.warmup(dtypes="float64", say=say)

    said = []
    assert warm(said.append) >= 1 and lines(caplog) == []
    assert re.fullmatch(r"float64: 1 functions compiled in .* s, more follow", said[1])

    def fail(self, key, code):
        raise OSError(27, "File too large")

    monkeypatch.setattr(cache._CacheFile, "save", fail)
    with pytest.raises(OSError, match=r"cannot be written .*File too large.*; it is "):
        warm()
    assert cache.notice.listener is None
