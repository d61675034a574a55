"""Reproduce the table of accuracies in Nielsen's *Neural Networks and Deep Learning* on MNIST.

    python benchmarks/nielsen.py --rows 1,8,10 --seeds 3
    python benchmarks/nielsen.py --rows 15 --seeds 1 --epochs 5

Each row trains the book's network by the book's recipe (numbanet.models.nielsen) and prints a line
of a Markdown table: published, our protocol, mean and best over the seeds, seconds per run. Before
a row starts, a few hundred steps are timed, and stderr says how long it will take. Results go into
a JSON file as they come, and the network with the optimiser's state and the epochs done stands
beside it, so an interrupted run goes on where it stopped. A run with fewer epochs than the book's
is a row of its own.

    peak                      the best epoch, as the book quotes it in chapters 1 and 3
    last                      after the last epoch
    test at best validation   test accuracy in the first epoch of the best validation accuracy
    vote                      of five networks of row 21, each as it was in that epoch

Some runs from large initial weights never learn a digit: its output neuron begins saturated. Below
the table stands how many runs learned all digits, how many all but one, and so on.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import numbanet as nn
from numbanet.network.zoo import BOOK_ROWS, nielsen

BATCHES = 300
"""Steps that are timed for the estimate."""
PAUSE = 20
"""Seconds between two saves of a run that is under way."""
CHOSEN = "test at best validation"
LEARNED = 0.1
"""A digit counts as learned if at least this part of its test images is recognised."""


class Claim(NamedTuple):
    """What the book says, of which data, and how we measure the same."""

    published: float
    measure: str
    protocol: str


BOOK = {
    1: Claim(95.42, "test", "peak"),
    2: Claim(96.59, "test", "peak"),
    4: Claim(95.49, "test", "peak"),
    7: Claim(87.1, "test", "last"),
    8: Claim(96.49, "test", "peak"),
    9: Claim(97.92, "validation", "peak"),
    10: Claim(98.04, "validation", "peak"),
    14: Claim(97.80, "test", CHOSEN),
    15: Claim(98.78, "test", CHOSEN),
    16: Claim(99.06, "test", CHOSEN),
    17: Claim(99.23, "test", CHOSEN),
    18: Claim(99.37, "test", CHOSEN),
    21: Claim(99.60, "test", CHOSEN),
    22: Claim(99.67, "test", "vote"),
}
VOTERS = 21
"""The row whose networks vote in row 22."""


class Store:
    """The JSON file of results, and the networks beside it."""

    def __init__(self, path: Path):
        self.path = path
        self.records = json.loads(path.read_text()) if path.exists() else {}

    def record(self, key: str) -> dict:
        """The figures of one run, by epoch."""
        return self.records.setdefault(
            key, {"key": key, "validation": [], "test": [], "seconds": []}
        )

    def beside(self, key: str, what: str) -> Path:
        """The file of a run's network: of now ("state"), or of its best validation ("best")."""
        return Path(f"{self.path}.{key}.{what}.safetensors")

    def write(self) -> None:
        """Write the JSON file, whole or not at all."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.records))
        os.replace(part, self.path)


def data_of(row: int):
    """(x, y), (x, y) for validation and for test, as the row requires them.

    They are vectors or images, cut or expanded.
    """
    recipe, shape = BOOK_ROWS[row].recipe, BOOK_ROWS[row].input_shape
    d = nn.datasets.mnist(flat=len(shape) == 1, dtype="float32")
    training = d.x[: recipe.examples], d.y[: recipe.examples]
    if recipe.expanded:
        training = nn.shift_copies(*training)
    return training, (d.x_validation, d.y_validation), (d.x_test, d.y_test)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def estimate(row: int, training, validation, test) -> float:
    """Seconds for an epoch of the row, from a few hundred steps and one evaluation."""
    network, recipe = nielsen(row)
    options = recipe.options | {"epochs": 1, "verbose": 0}
    x, y = (part[: BATCHES * recipe.batch_size] for part in training)
    network.fit(x, y, **options)  # compiles
    network.evaluate(*validation, loss=recipe.loss)
    began = time.perf_counter()
    network.fit(x, y, **options)
    steps = time.perf_counter()
    network.evaluate(*validation, loss=recipe.loss)
    ended = time.perf_counter()
    return (steps - began) * len(training[0]) / len(x) + (ended - steps) * (
        1 + len(test[0]) / len(validation[0])
    )


class Recorder(nn.callbacks.Callback):
    """Measure the test data after every epoch, keep the best network, and save now and then."""

    def __init__(self, row: int, record: dict, epochs: int, test, store: Store, name: str):
        self.record, self.epochs, self.test, self.store, self.name = (
            record,
            epochs,
            test,
            store,
            name,
        )
        self.loss, self.voter = BOOK_ROWS[row].recipe.loss, row == VOTERS
        self.began = self.saved = self.said = time.perf_counter()
        self.first = len(record["test"])
        self.before = sum(record["seconds"])

    def on_epoch_end(self, epoch, logs, network):
        record, accuracy = self.record, logs["val_accuracy"]
        if self.voter and accuracy > max(record["validation"], default=0):
            network.save(self.store.beside(record["key"], "best"))
        record["validation"].append(accuracy)
        record["test"].append(network.evaluate(*self.test, loss=self.loss)["accuracy"])
        if epoch == self.epochs:
            record["not_learned"] = digits_not_learned(network, *self.test)
        now = time.perf_counter()
        record["seconds"].append(now - self.began)
        self.began = now
        if now - self.said > 1 or epoch == self.epochs:
            left = (
                (sum(record["seconds"]) - self.before)
                / (epoch - self.first)
                * (self.epochs - epoch)
            )
            say(
                f"  {self.name} epoch {epoch}/{self.epochs}  loss {logs['loss']:.4f}  "
                f"validation {accuracy:.2%}  "
                f"test {record['test'][-1]:.2%}  {duration(left)} left"
            )
            self.said = now
        if now - self.saved > PAUSE and epoch < self.epochs:
            # first: a record that is ahead of its network is cut back, the reverse could not be
            self.store.write()
            network.save(self.store.beside(record["key"], "state"))
            self.saved = now


def digits_not_learned(network, x, y) -> int:
    """How many digits the network does not recognise."""
    right = network.predict_classes(x) == y
    return int(sum(right[y == digit].mean() < LEARNED for digit in range(10)))


def by_digits_not_learned(row: int, records) -> str:
    """How the runs of a row differ by the number of digits that they never learned."""
    parts = []
    for count in sorted({record.get("not_learned", 0) for record in records}):
        found = [figure(row, one) for one in records if one.get("not_learned", 0) == count]
        parts.append(f"{count} in {len(found)} runs (mean {np.mean(found):.2f} %)")
    return f"row {row}: digits never learned: {', '.join(parts)}"


def train(row: int, seed: int, epochs: int, data, store: Store) -> dict:
    """Train the row's network with one seed, or what is left of it, and return the record."""
    record = store.record(f"row{row}.epochs{epochs}.seed{seed}")
    state = store.beside(record["key"], "state")
    if len(record["test"]) >= epochs:
        return record
    training, validation, test = data
    network, recipe = nielsen(row, seed=seed)
    if state.exists():
        network = nn.load(state)
        say(f"  seed {seed} goes on after epoch {network.epoch}")
    for series in ("validation", "test", "seconds"):
        del record[series][network.epoch :]
    recorder = Recorder(row, record, epochs, test, store, f"seed {seed}")
    network.fit(
        *training,
        **recipe.options | {"epochs": epochs - network.epoch},
        verbose=0,
        validation_data=validation,
        callbacks=[recorder],
    )
    store.write()
    state.unlink(missing_ok=True)
    return record


def vote(records, test, store: Store) -> float:
    """Test accuracy in per cent of the networks of these runs together."""
    networks = [nn.load(store.beside(record["key"], "best")) for record in records]
    return 100 * nn.Ensemble(networks, "vote").evaluate(*test)["accuracy"]


def figure(row: int, record: dict) -> float:
    """The accuracy that the protocol names, in per cent."""
    series, protocol = record[BOOK[row].measure], BOOK[row].protocol
    if protocol == CHOSEN:
        return 100 * record["test"][int(np.argmax(record["validation"]))]
    return 100 * (max(series) if protocol == "peak" else series[-1])


def line(row: int, wanted: int | None, seeds: int, store: Store) -> tuple[str, str]:
    """Train what is not trained yet; return the row of the table, and what stands below it."""
    recipe, networks = BOOK_ROWS[row].recipe, BOOK_ROWS[row].networks
    trained = VOTERS if networks > 1 else row
    epochs = min(recipe.epochs, wanted or recipe.epochs)
    data = data_of(trained)
    runs = [
        [
            store.record(f"row{trained}.epochs{epochs}.seed{seed}")
            for seed in range(s * networks, (s + 1) * networks)
        ]
        for s in range(seeds)
    ]
    left = sum(epochs - len(record["test"]) for run in runs for record in run)
    if left:
        an_epoch = estimate(trained, *data)
        say(
            f"row {row}, {recipe.name}: {left} epochs, {an_epoch:.2f} s each, "
            f"about {duration(left * an_epoch)} in all"
        )
    figures, seconds, everyone = [], [], []
    for s in range(seeds):
        records = [
            train(trained, seed, epochs, data, store)
            for seed in range(s * networks, (s + 1) * networks)
        ]
        figures.append(vote(records, data[2], store) if networks > 1 else figure(row, records[0]))
        seconds.append(sum(sum(record["seconds"]) for record in records))
        everyone += records
    shorter = "" if epochs == recipe.epochs else f" ({epochs} of {recipe.epochs} epochs)"
    claim = BOOK[row]
    below = ""
    if any(record.get("not_learned") for record in everyone):
        below = by_digits_not_learned(trained, everyone)
    text = (
        f"| {row} | {recipe.name}{shorter} | {claim.published:.2f} {claim.measure} "
        f"| {claim.protocol}, {epochs} epochs, "
        f"{seeds} seed{'s' * (seeds > 1)} | {np.mean(figures):.2f} | {max(figures):.2f} "
        f"| {np.median(seconds):.1f} |"
    )
    return text, below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", default="1,2,4,7,8,9,10,14", help=f"of {', '.join(map(str, BOOK))}"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--epochs", type=int, help="fewer than the book's: another row, marked as such"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("nielsen.json"),
        help="where results are kept between runs",
    )
    given = parser.parse_args()
    try:
        rows = [int(n) for n in given.rows.split(",")]
    except ValueError:
        parser.error(f'--rows are numbers such as "1,8,10", got {given.rows!r}')
    unknown = [n for n in rows if n not in BOOK]
    if unknown or given.seeds < 1 or (given.epochs is not None and given.epochs < 1):
        parser.error(
            f"unknown rows {unknown}; there are {sorted(BOOK)}"
            if unknown
            else "--seeds and --epochs must be at least 1"
        )
    store = Store(given.results)
    lines = []
    try:
        for row in rows:
            lines.append(line(row, given.epochs, given.seeds, store))
            say(lines[-1][0])
    except KeyboardInterrupt:
        say("stopped; the same command goes on from the last saved epoch")
    print(
        "| row | network | published % | our protocol | mean % | best % | seconds a run |\n"
        "|---|---|---|---|---|---|---|"
    )
    print("\n".join(text for text, _ in lines))
    print("\n".join(["", *(below for _, below in lines if below)]))


if __name__ == "__main__":
    main()
