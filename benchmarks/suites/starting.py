"""What a user waits for first: the import, and the first fit.

The cache of compiled code is empty or filled.

    python benchmarks/suites/starting.py

prints the medians. Every figure is of a process of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EMPTY_CACHE = """
import atexit, os, shutil, tempfile
folder = tempfile.mkdtemp()
atexit.register(shutil.rmtree, folder, True)
os.environ["NUMBA_CACHE_DIR"] = folder
"""
DATA = """
import numpy as np, numbanet as nn
x, y = np.random.rand(100, 28, 28, 1).astype("float32"), np.random.randint(0, 10, 100)
"""
NETWORKS = {
    "784-30-10": """
x = x.reshape(100, 784)
layers = [nn.Dense(30, activation="sigmoid"), nn.Dense(10, activation="softmax")]
network = nn.Sequential(layers, 784)
""",
    "lenet5": "network = nn.models.lenet5()\n",
}
FIT = "network.fit(x, y, optimizer=nn.SGD(0.1), batch_size=10, verbose=0)"


def run(code, **environment) -> str:
    """What a program of its own prints."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def run_or_skip(code) -> None:
    """Run a program; asv shows n/a where it fails, on a commit that lacks something."""
    try:
        run(code)
    except subprocess.CalledProcessError as error:
        raise NotImplementedError(f"this commit lacks it: {error.stderr}") from error


class Import:
    """`import numbanet`, with Numba and NumPy or after them."""

    repeat = (1, 5, 20.0)

    def timeraw_everything(self):
        return "import numbanet"

    def timeraw_after_numba(self):
        return "import numbanet", "import numba, numpy"


class Cold:
    """A first fit that compiles everything, and the size of what it compiled."""

    params = (list(NETWORKS),)
    param_names = ("network",)
    timeout, repeat, rounds, warmup_time, min_run_count = 300, (1, 3, 60.0), 1, 0, 1

    def setup(self, name):
        run_or_skip(DATA + NETWORKS[name])

    def timeraw_first_fit(self, name):
        return FIT, EMPTY_CACHE + DATA + NETWORKS[name]

    def track_bytes_of_the_cache(self, name):
        with tempfile.TemporaryDirectory() as folder:
            run(DATA + NETWORKS[name] + FIT, NUMBA_CACHE_DIR=folder)
            return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

    track_bytes_of_the_cache.unit = "bytes"


class Warm:
    """A first fit that finds everything in the cache."""

    params = (list(NETWORKS),)
    param_names = ("network",)
    timeout, repeat, warmup_time = 300, (1, 5, 20.0), 0

    def setup(self, name):
        run_or_skip(DATA + NETWORKS[name] + FIT)

    def timeraw_first_fit(self, name):
        return FIT, DATA + NETWORKS[name]


def seconds(statement, setup="") -> float:
    """The time of a statement in a process of its own."""
    return float(
        run(
            f"import time\n{setup}\nbegan = time.perf_counter()\n"
            f"{statement}\nprint(time.perf_counter() - began)"
        )
    )


if __name__ == "__main__":
    print(f"import: {statistics.median(seconds('import numbanet') for _ in range(5)):.2f} s")
    for network, build in NETWORKS.items():
        run(DATA + build + FIT)
        for cache, before in (("empty", EMPTY_CACHE), ("filled", "")):
            median = statistics.median(seconds(FIT, before + DATA + build) for _ in range(3))
            print(f"first fit of {network}, {cache} cache: {median:.2f} s")
