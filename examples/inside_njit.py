"""A network inside compiled code: a surrogate for a force, called by a simulation in `@njit`.

    python examples/inside_njit.py

A pendulum's acceleration is learned from samples; the simulation then asks the network instead of
the formula, a few million times a second, without leaving compiled code.
"""

import math

import numba
import numpy as np

import numbanet as nn


def samples(n: int, seed: int = 0):
    """States (angle, velocity) of a damped pendulum, and its acceleration."""
    generator = np.random.default_rng(seed)
    x = generator.uniform([-math.pi, -3.0], [math.pi, 3.0], (n, 2)).astype(np.float32)
    return x, (-np.sin(x[:, 0]) - 0.1 * x[:, 1]).astype(np.float32)


@numba.njit
def simulate_exactly(angle, velocity, steps, dt):
    """The angle after some steps of the semi-implicit Euler method."""
    for _ in range(steps):
        velocity += dt * (-math.sin(angle) - 0.1 * velocity)
        angle += dt * velocity
    return angle


def simulate_with(acceleration):
    """The same simulation with a network's `compiled()` function in the place of the formula."""

    @numba.njit
    def simulate(angle, velocity, steps, dt):
        state, out = np.empty(2, np.float32), np.empty(1, np.float32)
        for _ in range(steps):
            state[0], state[1] = angle, velocity
            acceleration(state, out)
            velocity += dt * out[0]
            angle += dt * velocity
        return angle

    return simulate


def main(epochs: int = 60) -> float:
    """Learn the acceleration and simulate with it; the difference between the two angles."""
    x, y = samples(4000)
    network = nn.Sequential(
        [nn.Dense(32, activation="tanh"), nn.Dense(32, activation="tanh"), nn.Dense(1)],
        input_shape=2,
    )
    network.fit(x, y, optimizer=nn.Adam(0.01), batch_size=64, epochs=epochs, verbose=0)
    simulate = simulate_with(network.compiled())
    learned, exact = (run(1.0, 0.0, 500, 0.01) for run in (simulate, simulate_exactly))
    print(f"angle after 5 s: {exact:.4f} by the formula, {learned:.4f} by the network")
    return abs(learned - exact)


if __name__ == "__main__":
    main()
