"""numbanet's estimators beside scikit-learn's of the same name, with the same parameters.

    python -m benchmarks.estimators                          all data, 10 rounds: about half an hour
    python -m benchmarks.estimators --rounds 3 --data digits,diabetes,search

A line of a Markdown table for each data set: seconds of a fit, the score on held-out data, and
microseconds to predict one row. Both libraries run in one process, in turns, in float64 and in
float32, and the fastest of the rounds counts. A round has a random state of its own, the same for
all: the scores are means, and their differences from scikit-learn's, seed by seed, are put to a
two-sided paired t-test. The three small sets are fitted by default parameters, the two large ones
for 10 epochs.

The search is one of 48 candidates by 5 folds on digits: GridSearchCV with a process for each core
beside PopulationSearchCV. A winner is as good as scikit-learn's where it is the same, or where
scikit-learn's own mean score of it is within a standard error of the best.

A second process on the machine spoils the figures: scikit-learn's as well as ours. So would the
threads of scikit-learn's BLAS, which spin for a tenth of a second after its last product: before
every fit there is a rest.
"""

import argparse
import os
import time
import warnings

import numpy as np
from scipy import stats
from sklearn import datasets, neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler

import numbanet as nn
from numbanet import sklearn as numbanet_estimators

DTYPES = {"float64": np.float64, "float32": np.float32}
LIBRARIES = {"scikit-learn": neural_network, "numbanet": numbanet_estimators}
KINDS = [(library, dtype) for dtype in DTYPES for library in LIBRARIES]
REST = 0.15
"""Seconds before a fit in which the threads of the fit before it fall asleep."""
PREDICTIONS = 300
"""Predictions of one row in a measurement."""
FOLDS = 5
GRID = {
    "hidden_layer_sizes": [(32,), (64,), (100,), (32, 32)],
    "alpha": [1e-4, 1e-2, 1.0],
    "learning_rate_init": [1e-3, 1e-2],
    "batch_size": [32, 200],
}


# --- data -------------------------------------------------------------------------------------


def split(load):
    """Inputs and targets for training and testing, standardised by the training data."""
    x, y = load()
    x, x_test, y, y_test = train_test_split(x, y, random_state=0)
    if y.dtype.kind == "f":
        y, y_test = (y - y.mean()) / y.std(), (y_test - y.mean()) / y.std()
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), y, scaler.transform(x_test), y_test


def synthetic():
    """100,000 rows of 40 features in 5 classes."""
    return datasets.make_classification(
        100_000, 40, n_informative=20, n_classes=5, flip_y=0.05, random_state=0
    )


def mnist():
    data = nn.datasets.mnist(dtype="float32")
    return data.x, data.y, data.x_test, data.y_test


def small(load):
    return lambda: split(lambda: load(return_X_y=True))


DATA = {
    "digits": (small(datasets.load_digits), "MLPClassifier", {}),
    "breast cancer": (small(datasets.load_breast_cancer), "MLPClassifier", {}),
    "diabetes": (small(datasets.load_diabetes), "MLPRegressor", {}),
    "synthetic": (lambda: split(synthetic), "MLPClassifier", {"max_iter": 10}),
    "mnist": (mnist, "MLPClassifier", {"max_iter": 10}),
}


# --- fits -------------------------------------------------------------------------------------


def fits(name: str, rounds: int) -> dict[tuple[str, str], np.ndarray]:
    """Seconds of a fit, score, and seconds to predict one row: (rounds, 3) for each of KINDS."""
    load, kind, options = DATA[name]
    given = load()
    found: dict[tuple[str, str], list] = {key: [] for key in KINDS}
    for library, dtype in KINDS:  # compiles, and does not count
        first = getattr(LIBRARIES[library], kind)(max_iter=2)
        x, y, *_ = given
        first.fit(x[:400].astype(dtype), y[:400]).predict(x[:1].astype(dtype))
    for seed in range(rounds):
        for library, dtype in KINDS:
            x, x_test = given[0].astype(dtype), given[2].astype(dtype)
            estimator = getattr(LIBRARIES[library], kind)(random_state=seed, **options)
            time.sleep(REST)
            start = time.perf_counter()
            estimator.fit(x, given[1])
            seconds = time.perf_counter() - start
            row = x_test[:1].copy()
            estimator.predict(row)
            estimator.predict(row)
            start = time.perf_counter()
            for _ in range(PREDICTIONS):
                estimator.predict(row)
            each = (time.perf_counter() - start) / PREDICTIONS
            found[library, dtype].append((seconds, estimator.score(x_test, given[3]), each))
    return {key: np.array(values) for key, values in found.items()}


def paired(theirs: np.ndarray, ours: np.ndarray) -> str:
    """The mean difference of scores, seed by seed, and the probability of it by chance."""
    differences = ours - theirs
    if len(differences) < 2 or not differences.any():
        return f"{differences.mean():+.4f}"
    p = stats.ttest_rel(ours, theirs).pvalue if np.ptp(differences) else 0.0
    return f"{differences.mean():+.4f} (p {p:.2f})"


def print_fits(names, rounds: int) -> None:
    print(
        "| data | dtype | scikit-learn | numbanet | times faster | scores | difference "
        "| one row |\n|---|---|---|---|---|---|---|---|"
    )
    for name in names:
        found = fits(name, rounds)
        for dtype in DTYPES:
            theirs, ours = found["scikit-learn", dtype], found["numbanet", dtype]
            (a, _, one), (b, _, two) = theirs.min(axis=0), ours.min(axis=0)
            scores = f"{theirs[:, 1].mean():.4f}, {ours[:, 1].mean():.4f}"
            times = f"{a * 1e3:.0f} ms | {b * 1e3:.0f} ms | {a / b:.1f}"
            rows = f"{one * 1e6:.0f}, {two * 1e6:.1f} µs"
            difference = paired(theirs[:, 1], ours[:, 1])
            print(f"| {name} | {dtype} | {times} | {scores} | {difference} | {rows} |", flush=True)


# --- search -----------------------------------------------------------------------------------


def search(library: str, x, y, grid: dict, cores: int):
    """A search that is done, and its seconds."""
    estimator = LIBRARIES[library].MLPClassifier(random_state=0)
    if library == "scikit-learn":
        made = GridSearchCV(estimator, grid, cv=FOLDS, n_jobs=cores)
    else:
        made = numbanet_estimators.PopulationSearchCV(estimator, grid, cv=FOLDS)
    start = time.perf_counter()
    return made.fit(x, y), time.perf_counter() - start


def print_search() -> None:
    cores = os.cpu_count() or 1
    x, y = datasets.load_digits(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    candidates = int(np.prod([len(values) for values in GRID.values()]))
    print(
        f"\n{candidates} candidates by {FOLDS} folds on digits, {cores} cores\n\n"
        "| dtype | scikit-learn | numbanet | times faster | winners |\n|---|---|---|---|---|"
    )
    for dtype in DTYPES:
        given = x.astype(dtype)
        for library in LIBRARIES:  # starts the processes, and compiles
            tiny = {"max_iter": [2], "hidden_layer_sizes": GRID["hidden_layer_sizes"]}
            search(library, given, y, tiny, cores)
        (theirs, a), (ours, b) = (search(one, given, y, GRID, cores) for one in LIBRARIES)
        means = theirs.cv_results_["mean_test_score"]
        error = theirs.cv_results_["std_test_score"][theirs.best_index_] / np.sqrt(FOLDS - 1)
        lost = means.max() - means[ours.best_index_]
        same = "the same" if ours.best_index_ == theirs.best_index_ else f"{lost:.4f} apart"
        times = f"{a:.1f} s | {b:.1f} s | {a / b:.1f}"
        print(f"| {dtype} | {times} | {same}, standard error {error:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="fits of each library")
    chosen = ",".join([*DATA, "search"])
    parser.add_argument("--data", default=chosen, help="names, with commas between")
    arguments = parser.parse_args()
    names = arguments.data.split(",")
    unknown = [name for name in names if name not in (*DATA, "search")]
    if unknown:
        parser.error(f"no data {', '.join(unknown)}; there are {chosen}")
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    os.environ["PYTHONWARNINGS"] = "ignore"  # in the processes of scikit-learn's search
    if fitted := [name for name in names if name != "search"]:
        print_fits(fitted, arguments.rounds)
    if "search" in names:
        print_search()


if __name__ == "__main__":
    main()
