"""A controller that learns through the equations of what it controls: adjoint gradients.

A network gives the torque that brings a pendulum upright and holds it there. The motion is
integrated step by step, and the derivative of the cost by the parameters is carried back through
the same steps: λ, the derivative of all later costs by the state, by the transposed equations, and
through the network by `vjp`, which gives its part of λ and adds to the gradient.

Source   Pontryagin et al. 1962 (the adjoint equations); Chen et al. 2018 (neural ODEs)
"""

import math
import time

import numba
import numpy as np

import numbanet as nn
from numbanet import compiled as c

STEPS, DT = 150, 0.02
"""Steps of a motion, of so many seconds."""
TORQUE = 15.0
"""Newton metres for an output of 1, on a mass of 1 kg at 1 m; gravity has at most 9.81."""
MOTIONS = 8
"""Motions in a step of training."""


@numba.njit(cache=True)
def features(angle, speed, row):
    """What the controller sees; `angle` is 0 upright."""
    row[0], row[1], row[2] = math.sin(angle), math.cos(angle), speed / 5


@numba.njit(cache=True)
def motion(model, params, angle, speed, states, rows, outputs, work):
    """Integrate (semi-implicit Euler); the cost: mean of 1 − cos angle, speed² and torque²."""
    cost = 0.0
    for t in range(STEPS):
        states[t, 0], states[t, 1] = angle, speed
        features(angle, speed, rows[t])
        c.forward(model, params, rows[t], outputs[t], work)
        cost += (1 - math.cos(angle) + 0.01 * speed**2 + 0.05 * outputs[t, 0] ** 2) / STEPS
        speed += DT * (9.81 * math.sin(angle) + TORQUE * outputs[t, 0] - 0.1 * speed)
        angle += DT * speed
    states[STEPS, 0], states[STEPS, 1] = angle, speed
    return cost


@numba.njit(cache=True)
def adjoint(model, params, states, rows, outputs, grads, work):
    """Add the derivative of the cost of a motion by the parameters, from its last step back."""
    by_angle, by_speed = 0.0, 0.0
    dout, drow = np.empty(1), np.empty(3)
    for t in range(STEPS - 1, -1, -1):
        angle, speed = states[t]
        by_speed += DT * by_angle  # the angle's step, then that of the speed
        dout[0] = TORQUE * DT * by_speed + 0.1 * outputs[t, 0] / STEPS
        c.vjp(model, params, rows[t], dout, grads, drow, work)
        by_angle += DT * 9.81 * math.cos(angle) * by_speed + math.sin(angle) / STEPS
        by_angle += math.cos(angle) * drow[0] - math.sin(angle) * drow[1]
        by_speed += -0.1 * DT * by_speed + 0.02 * speed / STEPS + drow[2] / 5


@numba.njit(cache=True)
def train(model, params, seed, steps, rate):
    """Learn from motions that begin at any angle; the mean cost of the last 20 steps."""
    work, grads = np.empty(c.work_size(model)), np.empty(params.size)
    state, last = np.zeros(c.state_size(model)), 0.0
    states, rows, outputs = np.empty((STEPS + 1, 2)), np.empty((STEPS, 3)), np.empty((STEPS, 1))
    for k in range(steps):
        grads[:] = 0
        for m in range(MOTIONS):
            key = c.new_key(seed, k * MOTIONS + m)
            angle = math.pi * (2 * c.uniform(key, 0) - 1)
            speed = 2 * c.uniform(key, 1) - 1
            cost = motion(model, params, angle, speed, states, rows, outputs, work)
            adjoint(model, params, states, rows, outputs, grads, work)
            if k >= steps - 20:
                last += cost / (20 * MOTIONS)
        c.clip_by_norm(grads, 1.0)
        c.update(model, params, grads, state, k + 1, rate * (1 - k / steps))
    return last


def main(steps: int = 600) -> float:
    """Train, and return the largest angle, in radians, after motions from 20 places."""
    layers = [nn.Dense(32, activation="tanh"), nn.Dense(32, activation="tanh")]
    network = nn.Sequential([*layers, nn.Dense(1, activation="tanh")], 3, "float64", seed=2)
    model = network.handle(optimizer="adam")
    train(model, network.parameters, 0, 0, 0.0)  # compiles
    began = time.perf_counter()
    cost = train(model, network.parameters, 0, steps, 0.01)
    seconds = time.perf_counter() - began
    work, worst = np.empty(c.work_size(model)), 0.0
    arrays = np.empty((STEPS + 1, 2)), np.empty((STEPS, 3)), np.empty((STEPS, 1))
    for angle in np.linspace(-3, 3, 20):
        motion(model, network.parameters, angle, 0.0, *arrays, work)
        last = arrays[0][-1, 0]
        worst = max(worst, abs(math.atan2(math.sin(last), math.cos(last))))
    print(f"{steps} steps in {seconds:.2f} s; mean cost {cost:.3f}; largest angle {worst:.3f} rad")
    return worst


if __name__ == "__main__":
    main()
