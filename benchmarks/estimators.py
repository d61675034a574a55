"""numbanet's estimators beside scikit-learn's of the same name, with the same parameters.

    python -m benchmarks.estimators --rounds 5

A line of a Markdown table for each data set: seconds of a default fit and the score on held-out
data, and microseconds to predict one row. Both libraries run in one process, in turns, and the
fastest of the rounds counts; the scores are means over one random state per round. A column says
how many times faster numbanet is, in float64 as scikit-learn computes, and in float32. A second
process on the machine spoils the figures: scikit-learn's as well as ours.
"""

import argparse
import time
import warnings

import numpy as np
from sklearn import datasets, neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from numbanet import sklearn as numbanet_estimators

DATA = {
    "digits": (datasets.load_digits, "MLPClassifier"),
    "breast cancer": (datasets.load_breast_cancer, "MLPClassifier"),
    "diabetes": (datasets.load_diabetes, "MLPRegressor"),
}
LIBRARIES = {
    "scikit-learn": (neural_network, {}),
    "float64": (numbanet_estimators, {}),
    "float32": (numbanet_estimators, {"dtype": "float32"}),
}
PREDICTIONS = 300
"""Predictions of one row in a measurement."""


def data(load):
    """Inputs and targets for training and testing, standardised by the training data."""
    x, y = load(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, random_state=0)
    if y.dtype.kind == "f":
        y, y_test = (y - y.mean()) / y.std(), (y_test - y.mean()) / y.std()
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), y, scaler.transform(x_test), y_test


def measure(name: str, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Seconds of a fit, mean score, and seconds to predict one row, for each library."""
    load, kind = DATA[name]
    x, y, x_test, y_test = data(load)
    found: dict[str, list] = {library: [] for library in LIBRARIES}
    for seed in range(rounds + 1):  # the first round compiles, and does not count
        for library, (module, options) in LIBRARIES.items():
            estimator = getattr(module, kind)(random_state=seed, **options)
            start = time.perf_counter()
            estimator.fit(x, y)
            seconds = time.perf_counter() - start
            row = x_test[:1].copy()
            start = time.perf_counter()
            for _ in range(PREDICTIONS):
                estimator.predict(row)
            each = (time.perf_counter() - start) / PREDICTIONS
            found[library].append((seconds, estimator.score(x_test, y_test), each))
    table = {library: np.array(rows[1:]) for library, rows in found.items()}
    return {
        library: (rows[:, 0].min(), rows[:, 1].mean(), rows[:, 2].min())
        for library, rows in table.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="fits of each library")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore", ConvergenceWarning)
    print("| data | scikit-learn | float64 | float32 | times faster | scores | one row |")
    print("|---|---|---|---|---|---|---|")
    for name in DATA:
        (theirs, *_), *ours = (found := measure(name, rounds)).values()
        times = " | ".join(f"{values[0] * 1e3:.0f} ms" for values in found.values())
        faster = ", ".join(f"{theirs / values[0]:.1f}" for values in ours)
        scores = ", ".join(f"{values[1]:.4f}" for values in found.values())
        rows = ", ".join(f"{values[2] * 1e6:.0f} µs" for values in found.values())
        print(f"| {name} | {times} | {faster} | {scores} | {rows} |", flush=True)


if __name__ == "__main__":
    main()
