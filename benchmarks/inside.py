"""Microseconds of a call of `numbanet.compiled` inside compiled code.

python -m benchmarks.inside
"""

import time

import numba
import numpy as np

import numbanet as nn
from numbanet import compiled as c


@numba.njit
def forwards(model, params, x, out, work, calls):
    for _ in range(calls):
        c.forward(model, params, x, out, work)


@numba.njit
def vjps(model, params, x, dout, dparams, drow, work, calls):
    for _ in range(calls):
        c.vjp(model, params, x, dout, dparams, drow, work)


def microseconds(function, *arguments, calls: int = 200, rounds: int = 500) -> float:
    """The least of many rounds, a call."""
    function(*arguments, 1)
    best = np.inf
    for _ in range(rounds):
        began = time.perf_counter()
        function(*arguments, calls)
        best = min(best, (time.perf_counter() - began) / calls)
    return best * 1e6


def main() -> None:
    """Print a line for one row and one for 64 rows at once."""
    layers = [nn.Dense(64, activation="tanh"), nn.Dense(64, activation="tanh"), nn.Dense(1)]
    network = nn.Sequential(layers, 8)
    for rows, calls in ((1, 200), (64, 20)):
        model = network.handle(rows=rows)
        work = np.zeros(c.work_size(model), np.float32)
        x = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
        out, drow = np.ones((rows, 1), np.float32), np.zeros_like(x)
        dparams = np.zeros(network.parameters.size, np.float32)
        shared = model, network.memory, x, out
        forward = microseconds(forwards, *shared, work, calls=calls) / rows
        vjp = microseconds(vjps, *shared, dparams, drow, work, calls=calls) / rows
        print(f"{rows:3} rows a call: forward {forward:.3f} µs a row, vjp {vjp:.3f} µs a row")


if __name__ == "__main__":
    main()
