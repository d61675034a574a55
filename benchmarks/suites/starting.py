"""What a user waits for first: the import, and the first fit with an empty and with a filled cache of compiled code."""

import os
import subprocess
import sys
import tempfile

FIRST_FIT = """
import time, numpy as np, numbanet as nn
x, y = np.random.rand(100, 784).astype("float32"), np.random.randint(0, 10, 100)
network = nn.Sequential([nn.Dense(30, activation="sigmoid"), nn.Dense(10, activation="softmax")], 784)
began = time.perf_counter()
network.fit(x, y, optimizer=nn.SGD(0.5), batch_size=10, verbose=0)
print(time.perf_counter() - began)
"""


def _python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True,
                          check=True).stdout


class Start:
    """Each in a process of its own."""

    timeout = 300

    def track_import(self):
        """Seconds to import the package."""
        times = []
        for _ in range(5):
            code = "import time; t = time.perf_counter(); import numbanet; print(time.perf_counter() - t)"
            times.append(float(_python(code)))
        return sorted(times)[2]

    track_import.unit = "s"

    def track_first_fit_cold(self):
        """Seconds of a first fit that compiles everything."""
        with tempfile.TemporaryDirectory() as folder:
            return float(_python(FIRST_FIT, NUMBA_CACHE_DIR=folder))

    track_first_fit_cold.unit = "s"

    def track_first_fit_warm(self):
        """Seconds of a first fit that finds everything in the cache."""
        _python(FIRST_FIT)
        return float(_python(FIRST_FIT))

    track_first_fit_warm.unit = "s"


if __name__ == "__main__":
    start = Start()
    for name in ("import", "first_fit_cold", "first_fit_warm"):
        print(f"{name.replace('_', ' ')}: {getattr(start, 'track_' + name)():.2f} s")
