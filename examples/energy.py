"""An energy that is learned from forces alone: second derivatives inside compiled code.

A network E(x) of the place x shall have the forces F = −∂E/∂x of a potential that it never sees.
With the residual r = F + ∂E/∂x the loss is the mean of ½ |r|², and its gradient by the parameters

    ∂/∂θ ½ |r|² = rᵀ ∂²E/∂x∂θ

is a second derivative times a direction of the inputs, which `hvp` takes: no matrix is built.

Source   Behler, Parrinello 2007; Chmiela et al. 2017 (energies learned from forces)
"""

import time

import numba
import numpy as np

import numbanet as nn
from numbanet import compiled as c

ROWS = 64
"""Places in a step of training."""


@numba.njit(cache=True)
def potential(x, y):
    """Two valleys and a pass between them, and the force at this place."""
    energy = (x * x - 1) ** 2 + y * y + 0.5 * x * y
    return energy, -4 * x * (x * x - 1) - 0.5 * y, -2 * y - 0.5 * x


@numba.njit(cache=True)
def train(model, params, seed, steps, rate):
    """Learn from forces at random places, ±1.5 each way; the mean loss of the last 100 steps."""
    work, none = np.empty(c.work_size(model)), np.empty(0)
    grads, state = np.empty(params.size), np.zeros(c.state_size(model))
    place, slope, residual = np.empty((ROWS, 2)), np.empty((ROWS, 2)), np.empty((ROWS, 2))
    each, out, last = np.full(ROWS, 1 / ROWS), np.empty(ROWS), 0.0
    ones = np.ones(ROWS)
    for t in range(steps):
        for i in range(ROWS):
            for k in range(2):
                place[i, k] = 3 * c.uniform(c.new_key(seed, t), 2 * i + k) - 1.5
        c.forward(model, params, place, out, work)
        c.pullback(model, params, ones, none, slope, work)
        loss = 0.0
        for i in range(ROWS):
            _, force_x, force_y = potential(place[i, 0], place[i, 1])
            residual[i, 0], residual[i, 1] = slope[i, 0] + force_x, slope[i, 1] + force_y
            loss += 0.5 * (residual[i] ** 2).sum() / ROWS
        grads[:] = 0
        c.hvp(model, params, place, each, residual, none, none, grads, work)
        c.update(model, params, grads, state, t + 1, rate * (1 - t / steps))
        if t >= steps - 100:
            last += loss / 100
    return last


def main(steps: int = 8000) -> float:
    """Train, and return the largest error of the energy, whose constant is free."""
    layers = [nn.Dense(32, activation="tanh"), nn.Dense(32, activation="tanh"), nn.Dense(1)]
    network = nn.Sequential(layers, 2, "float64", seed=1)
    model = network.handle(rows=ROWS, optimizer="adam", hvp=True)
    train(model, network.parameters, 0, 0, 0.0)  # compiles
    began = time.perf_counter()
    loss = train(model, network.parameters, 0, steps, 0.01)
    seconds = time.perf_counter() - began
    places = np.stack(np.meshgrid(*[np.linspace(-1.3, 1.3, 30)] * 2), -1).reshape(-1, 2)
    wanted = np.array([potential(x, y)[0] for x, y in places])
    error = network.predict(places)[:, 0] - wanted
    worst = np.abs(error - error.mean()).max()
    print(f"{steps} steps in {seconds:.2f} s; loss {loss:.2g}; largest error of E {worst:.3f}")
    return worst


if __name__ == "__main__":
    main()
