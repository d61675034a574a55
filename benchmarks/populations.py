"""Many networks 8-64-64-1 at once, and each of them alone: tanh, Adam, batches of 32, float32.

    python -m benchmarks.populations [how many networks, 256]

Microseconds for a step of one network: those of a whole `fit`, its checks included, over networks
and steps; the fastest of some rounds. A member of the population and the same network alone must
end with the same bits.
"""

import sys
import time

import numpy as np

import numbanet as nn
from numbanet.backend.threads import max_threads

SAMPLES, BATCH, EPOCHS, ROUNDS = 4096, 32, 20, 2
STEPS = EPOCHS * SAMPLES // BATCH
OPTIONS = {"optimizer": "adam", "epochs": EPOCHS, "batch_size": BATCH, "verbose": 0}


def networks(size: int) -> nn.Population:
    """Fresh networks with the seeds 0, 1, …"""
    layers = [nn.Dense(64, activation="tanh"), nn.Dense(64, activation="tanh"), nn.Dense(1)]
    return nn.Population(nn.Sequential(layers, 8, seed=0), size)


def seconds_of(network, x, y, threads: int) -> float:
    """Seconds of a fit."""
    start = time.perf_counter()
    network.fit(x, y, threads=threads, **OPTIONS)
    return time.perf_counter() - start


def main(size: int = 256) -> None:
    """Print a table: a row for each number of threads."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, 8), dtype=np.float32)
    y = np.sin(x.sum(axis=1, keepdims=True))
    seconds_of(networks(2), x, y, max_threads())  # compiles
    print(f"| threads | {size} networks, µs a step of each | one network | equal bits |")
    print("|---|---|---|---|")
    for threads in sorted({1, max_threads()}):
        together, alone = [], []
        for _ in range(ROUNDS):
            population, single = networks(size), networks(1).member(0)
            together.append(seconds_of(population, x, y, threads) / size)
            alone.append(seconds_of(single, x, y, threads))
            equal = np.array_equal(population.member(0).parameters, single.parameters)
        figures = (f"{1e6 * min(one) / STEPS:.2f}" for one in (together, alone))
        print(f"| {threads} | {' | '.join(figures)} | {'yes' if equal else 'NO'} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
