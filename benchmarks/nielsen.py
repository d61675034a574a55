"""Reproduce the table of accuracies in Nielsen's *Neural Networks and Deep Learning* on MNIST.

    python benchmarks/nielsen.py --rows 1,8,10 --seeds 3

Each row trains the book's network by the book's recipe (mini-batches of 10, 50,000 training images) and prints a Markdown table:
published, our protocol, mean and best over the seeds, seconds per run. Results go into a JSON file as they come, with the epochs
done so far, so an interrupted run goes on where it stopped. A run with fewer epochs than the book's is a row of its own.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import numbanet as nn


@dataclass(frozen=True)
class Row:
    """One line of the table: the network as a function of nothing, and the recipe."""

    name: str
    published: float
    measure: str
    protocol: str
    layers: object
    loss: str
    rate: float
    epochs: int
    penalty: object = None
    examples: int = 50_000
    momentum: float = 0.0


def dense(hidden, last="sigmoid", start="lecun"):
    """A network of sigmoid neurons; weights N(0, 1) ("normal") or N(0, 1 / n_in) ("lecun"), biases N(0, 1)."""

    def layers():
        common = {"initializer": start, "bias_initializer": "normal"}
        return [nn.Dense(hidden, activation="sigmoid", **common), nn.Dense(10, activation=last, **common)]

    return layers


def per_sample(strength):
    return nn.L2(strength, per="sample")


ROWS = {
    1: Row("784-30-10, quadratic, large weights", 95.42, "test", "peak", dense(30, start="normal"), "quadratic", 3.0, 30),
    2: Row("784-100-10, quadratic, large weights", 96.59, "test", "peak", dense(100, start="normal"), "quadratic", 3.0, 30),
    4: Row("784-30-10, cross-entropy, large weights", 95.49, "test", "peak", dense(30, start="normal"),
           "binary_cross_entropy", 0.5, 30),
    7: Row("784-30-10, first 1,000 images, λ = 0.1, large weights", 87.1, "test", "last", dense(30, start="normal"),
           "binary_cross_entropy", 0.5, 400, per_sample(0.1), 1000),
    8: Row("784-30-10, cross-entropy, λ = 5, large weights", 96.49, "test", "peak", dense(30, start="normal"),
           "binary_cross_entropy", 0.5, 30, per_sample(5.0)),
    9: Row("784-100-10, cross-entropy, λ = 5, η = 0.5", 97.92, "validation", "peak", dense(100, start="normal"),
           "binary_cross_entropy", 0.5, 30, per_sample(5.0)),
    10: Row("784-100-10, cross-entropy, λ = 5, η = 0.1", 98.04, "validation", "peak", dense(100),
            "binary_cross_entropy", 0.1, 60, per_sample(5.0)),
    14: Row("784-100 sigmoid, softmax, log-likelihood", 97.80, "test", "test at best validation", dense(100, "softmax"),
            "cross_entropy", 0.1, 60),
}


def train(row: Row, data, seed: int, epochs: int, record: dict, save) -> None:
    """Train one row with one seed, adding the figures of every epoch to `record`."""
    x, y = data.x[: row.examples], data.y[: row.examples]
    network = nn.Sequential(row.layers(), x.shape[1:], seed=seed, penalty=row.penalty)
    state = Path(f"{save.path}.{record['key']}.safetensors")
    if record["test"] and state.exists():
        network = nn.load(state)
    optimizer = nn.SGD(row.rate, momentum=row.momentum)
    before = sum(record["seconds"])

    def after(epoch, logs, network):
        record["validation"].append(logs["val_accuracy"])
        record["test"].append(network.evaluate(data.x_test, data.y_test, loss=row.loss)["accuracy"])
        seconds = time.perf_counter() - after.began
        record["seconds"].append(seconds)
        spent = sum(record["seconds"]) - before
        if sys.stderr.isatty() or spent > 20:
            left = spent / (epoch - begun) * (epochs - epoch)
            print(f"  seed {seed} epoch {epoch}/{epochs}  validation {logs['val_accuracy']:.2%}  test {record['test'][-1]:.2%}  "
                  f"about {left:.0f} s left", file=sys.stderr)
        if spent - after.saved > 20:
            after.saved = spent
            network.save(state)
            save()
        after.began = time.perf_counter()

    after.began, after.saved, begun = time.perf_counter(), 0.0, network.epoch
    record["validation"], record["test"], record["seconds"] = (record[k][:begun] for k in ("validation", "test", "seconds"))
    network.fit(x, y, loss=row.loss, optimizer=optimizer, batch_size=10, epochs=epochs - begun, verbose=0,
                validation_data=(data.x_validation, data.y_validation), callbacks=[after])
    state.unlink(missing_ok=True)
    save()


def figure(row: Row, record: dict) -> float:
    """The accuracy that the protocol names, in per cent."""
    series = record[row.measure]
    if row.protocol == "test at best validation":
        return 100 * record["test"][int(np.argmax(record["validation"]))]
    return 100 * (max(series) if row.protocol == "peak" else series[-1])


class Store:
    """The JSON file of results."""

    def __init__(self, path: Path):
        self.path = path
        self.records = json.loads(path.read_text()) if path.exists() else {}

    def record(self, key: str) -> dict:
        return self.records.setdefault(key, {"key": key, "validation": [], "test": [], "seconds": []})

    def __call__(self) -> None:
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.records))
        os.replace(beside, self.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,2,4,7,8,9,10,14", help=f"of {', '.join(map(str, ROWS))}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="fewer than the book's: another row, marked as such")
    parser.add_argument("--results", type=Path, default=Path("nielsen.json"), help="where results are kept between runs")
    given = parser.parse_args()
    rows = [int(n) for n in given.rows.split(",")]
    unknown = [n for n in rows if n not in ROWS]
    if unknown:
        parser.error(f"unknown rows {unknown}; there are {sorted(ROWS)}")
    store = Store(given.results)
    lines = []
    for n in rows:
        row = ROWS[n]
        data = nn.datasets.mnist(flat=not callable(getattr(row.layers, "pictures", None)), dtype="uint8")
        epochs = min(row.epochs, given.epochs or row.epochs)
        figures, seconds = [], []
        for seed in range(given.seeds):
            record = store.record(f"row{n}.epochs{epochs}.seed{seed}")
            if len(record["test"]) < epochs:
                train(row, data, seed, epochs, record, store)
            figures.append(figure(row, record))
            seconds.append(sum(record["seconds"]))
        shorter = "" if epochs == row.epochs else f" ({epochs} of {row.epochs} epochs)"
        lines.append(f"| {n} | {row.name}{shorter} | {row.published:.2f} {row.measure} | {row.protocol}, {epochs} epochs, "
                     f"{given.seeds} seed{'s' * (given.seeds > 1)} | {np.mean(figures):.2f} | {max(figures):.2f} | "
                     f"{np.median(seconds):.1f} |")
        print(lines[-1], file=sys.stderr)
    print("| row | network | published % | our protocol | mean % | best % | seconds a run |\n|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
