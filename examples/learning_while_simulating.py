"""A network that learns while a simulation runs: every step is a prediction, then a lesson.

A mass hangs between a spring and a damper that nobody has measured: its friction depends on the
speed in a way that the equations do not contain, and it changes halfway, as a bearing that wears
out. The network predicts the friction from the motion so far; after each step the acceleration is
known, and one step of training follows. The loop is compiled; it makes a few hundred thousand steps
in a second.
"""

import math
import time

import numba
import numpy as np

import numbanet as nn
from numbanet import compiled as c

DT = 0.002


@numba.njit(cache=True)
def friction(speed, worn):
    """Newtons against a speed: Stribeck's curve, and more of it where the bearing is worn."""
    sliding = 0.5 + 0.8 * math.exp(-((speed / 0.3) ** 2)) + (0.6 if worn else 0.0)
    return sliding * math.tanh(10 * speed) + 0.2 * speed


@numba.njit(cache=True)
def simulate(model, params, steps, errors):
    """Run the mass for some steps; `errors` takes what the network erred by before each lesson."""
    work, grads = np.empty(c.work_size(model), np.float32), np.empty(params.size, np.float32)
    state = np.zeros(c.state_size(model), np.float32)
    seen, target, found = np.empty(1, np.float32), np.empty(1, np.float32), np.empty(1, np.float32)
    dout, none = np.empty(1, np.float32), work[:0]
    place, speed = 1.0, 0.0
    for t in range(steps):
        push = 6 * math.sin(1.3 * t * DT) + 4 * math.sin(3.1 * t * DT)
        seen[0] = speed
        c.forward(model, params, seen, found, work)
        acceleration = push - 4 * place - friction(speed, t > steps // 2)
        target[0] = push - 4 * place - acceleration  # what no term of the equations explains
        errors[t] = abs(found[0] - target[0])
        dout[0], grads[:] = found[0] - target[0], 0
        c.pullback(model, params, dout, grads, none, work)
        c.update(model, params, grads, state, t + 1)
        speed += DT * acceleration
        place += DT * speed


def main(steps: int = 300_000) -> tuple[float, float, float]:
    """Run, and return the mean errors: at first, before and some time after the wear."""
    layers = [nn.Dense(24, activation="tanh"), nn.Dense(24, activation="tanh"), nn.Dense(1)]
    network = nn.Sequential(layers, 1, seed=3)
    model, errors = network.handle(optimizer=nn.Adam(2e-3)), np.empty(steps)
    simulate(model, network.parameters.copy(), 1, errors)  # compiles
    began = time.perf_counter()
    simulate(model, network.parameters, steps, errors)
    seconds, tenth = time.perf_counter() - began, steps // 10
    first, before, after = (
        float(errors[k : k + tenth].mean()) for k in (0, steps // 2 - tenth, steps - tenth)
    )
    told = f"error {first:.3f} N at first, {before:.3f} before the wear, {after:.3f} after it"
    print(f"{steps:,} steps in {seconds:.2f} s; {told}")
    return first, before, after


if __name__ == "__main__":
    main()
