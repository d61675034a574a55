"""Learn where no gradient passes: an evolution strategy for a network of thresholds.

    python examples/evolution.py

Every unit answers 0 or 1, so the derivative of the loss is zero wherever it exists, and `fit`
refuses such a network. In each generation random changes of the parameters are tried, all at once,
by `evaluate_parameters`; the parameters move by the weighted mean of the best changes.

The tumours come with scikit-learn: pip install "numbanet[sklearn]".

Source   Rechenberg 1973; Hansen, Ostermeier 2001 (the weights of the best)
"""

import time

import numpy as np

import numbanet as nn

CANDIDATES, PARENTS = 128, 32
"""Changes that are tried in a generation, and the best of them, which count."""


def main(generations: int = 200) -> float:
    """Train; the accuracy on tumours that were held out."""
    data = nn.datasets.breast_cancer()
    layers = [nn.Dense(16, activation="step"), nn.Dense(1, activation="step")]
    network = nn.Sequential(layers, 30, seed=1)
    loss = "mean_squared_error"  # of answers 0 and 1 the fraction of mistakes
    weights = np.log(PARENTS + 0.5) - np.log(np.arange(1, PARENTS + 1))
    weights /= weights.sum()
    generator, center = np.random.default_rng(1), network.parameters.copy()
    began = time.perf_counter()
    for generation in range(generations):
        spread = 0.2 * (1 - generation / generations)
        noise = spread * generator.standard_normal((CANDIDATES, center.size))
        losses = nn.evaluate_parameters(network, center + noise, data.x, data.y, loss=loss)
        center += weights @ noise[losses.argsort(kind="stable")[:PARENTS]]
    seconds = time.perf_counter() - began
    network.parameters = center
    found = network.evaluate(data.x_test, data.y_test, loss=loss)
    print(
        f"{generations} generations of {CANDIDATES} candidates in {seconds:.2f} s; accuracy "
        f"{found['accuracy']:.4f}, {found['mistakes']} mistakes in {len(data.x_test)}"
    )
    return found["accuracy"]


if __name__ == "__main__":
    main()
