"""A network that learns while a simulation runs: every step is a prediction, then a lesson.

A mass hangs between a spring and a damper that nobody has measured: its friction depends on the
speed in a way that the equations do not contain, and it changes halfway, as a bearing that wears
out. After each step the acceleration is known, and with it the friction; one step of training
follows, on samples of the last 16 seconds. Simulation and training are one compiled loop of a few
hundred thousand steps a second.
"""

import math
import time

import numba
import numpy as np

import numbanet as nn
from numbanet import compiled as c

DT = 0.002
ROWS, MEMORY = 16, 8192
"""Samples in a step of training, drawn from so many latest ones."""


@numba.njit(cache=True)
def friction(speed, worn):
    """Newtons against a speed: Stribeck's curve, and more of it where the bearing is worn."""
    sliding = 0.5 + 0.8 * math.exp(-((speed / 0.3) ** 2)) + (0.6 if worn else 0.0)
    return sliding * math.tanh(10 * speed) + 0.2 * speed


@numba.njit(cache=True)
def simulate(model, params, world, worn, steps):
    """Run the mass for some steps, and learn during each; `world` is its time, place and speed."""
    work, grads = np.empty(c.work_size(model), np.float32), np.empty(params.size, np.float32)
    state = np.zeros(c.state_size(model), np.float32)
    speeds, frictions = np.empty(MEMORY, np.float32), np.empty(MEMORY, np.float32)
    x, y = np.empty((ROWS, 1), np.float32), np.empty((ROWS, 1), np.float32)
    clock, place, speed = world
    for t in range(steps):
        push = 9 * math.sin(1.3 * clock) + 7 * math.sin(3.1 * clock)
        acceleration = push - 4 * place - friction(speed, worn)
        speeds[t % MEMORY] = speed
        frictions[t % MEMORY] = push - 4 * place - acceleration  # what is left to explain
        for i in range(ROWS):
            k = int(c.uniform(t, i) * min(t + 1, MEMORY))
            x[i, 0], y[i, 0] = speeds[k], frictions[k]
        grads[:] = 0
        c.loss_gradient(model, params, x, y, grads, work)
        c.update(model, params, grads, state, t + 1)
        speed += DT * acceleration
        place, clock = place + DT * speed, clock + DT
    world[:] = clock, place, speed


def curve_error(network, worn: bool) -> float:
    """The mean error of the learned friction, in N, at speeds of −3 to 3 m/s."""
    speeds = np.linspace(-3, 3, 121)
    wanted = np.array([friction(speed, worn) for speed in speeds])
    return float(np.abs(network.predict(speeds[:, None])[:, 0] - wanted).mean())


def main(steps: int = 150_000) -> tuple[float, float, float]:
    """Run, and return mean errors of the friction: before the wear, right after it, in the end."""
    layers = [nn.Dense(24, activation="tanh"), nn.Dense(24, activation="tanh"), nn.Dense(1)]
    network = nn.Sequential(layers, 1, seed=3)
    model = network.handle(loss="mean_squared_error", optimizer=nn.Adam(1e-3), rows=ROWS)
    world = np.array([0.0, 1.0, 0.0])
    simulate(model, network.parameters, world, False, 0)  # compiles
    errors, began = [], time.perf_counter()
    for worn in (False, True):
        simulate(model, network.parameters, world, worn, steps // 2)
        errors += [curve_error(network, False), curve_error(network, True)]
    seconds = time.perf_counter() - began
    before, after, last = errors[0], errors[1], errors[3]
    told = (
        f"error {before:.3f} N before the wear, {after:.3f} right after it, {last:.3f} in the end"
    )
    print(f"{steps:,} steps in {seconds:.2f} s; {told}")
    return before, after, last


if __name__ == "__main__":
    main()
