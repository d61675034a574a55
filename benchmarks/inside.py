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


@numba.njit
def jvps(model, params, x, drow, dparams, out, dout, work, calls):
    for _ in range(calls):
        c.jvp(model, params, x, drow, dparams, out, dout, work)


@numba.njit
def hvps(model, params, x, dout, vrow, vparams, hrow, hparams, work, calls):
    for _ in range(calls):
        c.hvp(model, params, x, dout, vrow, vparams, hrow, hparams, work)


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
    params, n = network.memory, network.parameters.size
    for rows, calls in ((1, 200), (64, 20)):
        model = network.handle(rows=rows, hvp=True)
        work = np.zeros(c.work_size(model), np.float32)
        x = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
        out, dout = np.ones((rows, 1), np.float32), np.ones((rows, 1), np.float32)
        by_row, by_params = [x.copy(), x.copy()], list(np.zeros((2, n), np.float32))
        timed = {
            "forward": (forwards, x, out, work),
            "vjp": (vjps, x, dout, by_params[0], by_row[0], work),
            "jvp": (jvps, x, by_row[0], by_params[0], out, out, work),
            "hvp": (hvps, x, dout, by_row[0], by_params[0], by_row[1], by_params[1], work),
        }
        told = [
            f"{name} {microseconds(function, model, params, *rest, calls=calls) / rows:.3f}"
            for name, (function, *rest) in timed.items()
        ]
        print(f"{rows:3} rows a call, µs a row: {', '.join(told)}")


if __name__ == "__main__":
    main()
