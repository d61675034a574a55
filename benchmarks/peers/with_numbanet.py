"""numbanet itself, and the case that everybody starts from."""

import json
from pathlib import Path

import numba
import numpy as np

import numbanet as nn
from benchmarks.peers import work
from benchmarks.peers.worker import Contender, whole_epochs

NAME, PACKAGES = "numbanet", ("numba", "numpy")
OTHER_LAYERS = {
    "pool": nn.MaxPool2D,
    "lp_pool": nn.LpPool2D,
    "avg_pool": nn.AvgPool2D,
    "batch_norm": nn.BatchNorm,
    "layer_norm": nn.LayerNorm,
    "flatten": nn.Flatten,
    "lstm": nn.LSTM,
    "gru": nn.GRU,
}
DRAWN = {"regression": work.regression, "sequences": work.sequences}
"""Data that are made here."""
RUNNING_BATCHES = 100
"""Training batches whose statistics become the running means of a network that is scored."""


def variants(line: work.Line) -> tuple[str, ...]:
    return ("compiled",) if line.kind == "inside" else ("fit" if line.trains else "predict",)


def network(line: work.Line, dtype: str = "float32") -> nn.Sequential:
    """The line's network; its shuffling follows work.order."""
    layers: list = []
    for kind, *own in line.layers:
        if kind == "dense":
            layers.append(nn.Dense(own[0], activation=own[1] or None))
        elif kind in work.CONVOLUTIONS:
            groups = own[0] if kind == "depthwise" else 1
            layers.append(nn.Conv2D(own[0], own[1], groups=groups, activation=own[2]))
        else:
            layers.append(OTHER_LAYERS[kind](*own))
    return nn.Sequential(layers, line.input_shape, dtype=dtype, seed=work.SEED)


def optimizer(line: work.Line):
    name, rate = line.optimizer
    return {"sgd": nn.SGD, "adam": nn.Adam}[name](rate)


def weights(net) -> list[np.ndarray]:
    """Copies of the parameters, in the order of work.Case."""
    return [values.copy() for built in net.layers for values in built.parameters.values()]


def set_weights(net, given: list) -> None:
    places = [values for built in net.layers for values in built.parameters.values()]
    for place, values in zip(places, given, strict=True):
        place[...] = values


def prepare(line: work.Line, folder: Path) -> dict:
    """Write the data, unless they exist, the initial weights, and the results in float64."""
    note = _data(line, folder)
    net, exact = network(line), network(line, "float64")
    work.write(folder / f"{line.name}.weights.npz", weights(net))
    exact.parameters = net.parameters
    part = "" if line.trains else "_test"
    x, y = (
        np.load(folder / f"{line.data}.x{part}.npy", mmap_mode="r"),
        np.load(folder / f"{line.data}.y{part}.npy"),
    )
    loss = 0.0
    if line.trains:
        chosen = work.Batches(line).take(work.CHECKED_STEPS).ravel()
        history = exact.fit(
            _shaped(line, x[chosen]),
            y[chosen],
            loss=line.loss,
            optimizer=optimizer(line),
            batch_size=line.batch,
            epochs=1,
            shuffle=False,
            verbose=0,
            threads=1,
        )
        expected, loss = weights(exact), history.history["loss"][0]
    else:
        expected = [exact.predict(_shaped(line, x[: line.rows]), threads=1)]
    work.write(folder / f"{line.name}.expected.npz", expected)
    (folder / f"{line.name}.json").write_text(json.dumps({"loss": loss}))
    return {"note": note, "version": nn.__version__}


def _shaped(line, x):
    return np.ascontiguousarray(x).reshape(len(x), *line.input_shape)


def _data(line, folder) -> str:
    """Write the data set's arrays; a note where they are not the real ones."""
    missing = folder / "mnist.missing"
    if not (folder / f"{line.data}.y_test.npy").exists():
        if line.data in DRAWN:
            arrays = DRAWN[line.data]()
        else:
            try:
                data = nn.datasets.mnist(dtype="float32")
                arrays = (data.x, data.y, data.x_test, data.y_test)
            except (OSError, ValueError) as error:
                missing.write_text(
                    f"MNIST was not found ({error}): "
                    "random data of its shape, accuracies mean nothing"
                )
                arrays = work.noise()
        for name, values in zip(("x", "y", "x_test", "y_test"), arrays, strict=True):
            np.save(folder / f"{line.data}.{name}.npy", values)
    return missing.read_text() if line.data == "mnist" and missing.exists() else ""


class Training(Contender):
    """A whole call of fit, of some epochs."""

    def __init__(self, case: work.Case, threads: int):
        self.case, self.threads, self.net = case, threads, network(case.line)
        self.first = case.line.steps
        self.inside: list[float] = []

    def reset(self) -> None:
        self.net.initialize()
        set_weights(self.net, self.case.weights)
        self.inside = []

    def piece(self, step: float, seconds: float) -> int:
        """Whole epochs, for all of the time.

        So the checks that begin a fit have the weight that they have in one of many epochs.
        """
        return whole_epochs(self.case.line, step, seconds)

    def run(self, steps: int) -> float:
        line, case = self.case.line, self.case
        x, y, epochs = case.x, case.y, steps // line.steps
        if not epochs:  # the check's few steps
            chosen = work.Batches(line).take(steps).ravel()
            x, y = x[chosen], y[chosen]
        history = self.net.fit(
            x,
            y,
            loss=line.loss,
            optimizer=optimizer(line),
            batch_size=line.batch,
            epochs=max(1, epochs),
            shuffle=epochs > 0,
            verbose=0,
            threads=self.threads,
        )
        if epochs:
            self.inside += [seconds / line.steps for seconds in history.seconds]
        return history.history["loss"][-1]

    def besides(self) -> dict:
        """Seconds per step by the history's own clock: epochs without the checks before them."""
        return {"inside": self.inside}

    def weights(self) -> list:
        return weights(self.net)

    def score(self, file: str) -> dict:
        """Accuracy, or R² of a regression, of the test set with the weights of a file."""
        line, folder = self.case.line, Path(file).parent
        net = network(line)
        set_weights(net, work.read(Path(file)))
        self._fill_running_means(net)
        x, y = (np.load(folder / f"{line.data}.{name}_test.npy") for name in "xy")
        result = net.evaluate(_shaped(line, x), y, loss=line.loss, threads=1)
        return {"score": result["accuracy" if line.has_classes else "r2"]}

    def _fill_running_means(self, net) -> None:
        """Take the running means of BatchNorm from training batches, by steps too small to count.

        The file of a contender holds its weights alone.
        """
        if any(kind == "batch_norm" for kind, *_ in self.case.line.layers):
            line, samples = self.case.line, RUNNING_BATCHES * self.case.line.batch
            net.fit(
                self.case.x[:samples],
                self.case.y[:samples],
                loss=line.loss,
                optimizer=nn.SGD(1e-30),
                batch_size=line.batch,
                epochs=1,
                verbose=0,
                threads=1,
            )


class Predicting(Contender):
    """A call of predict."""

    def __init__(self, case: work.Case, threads: int):
        self.threads, self.net, self.x = threads, network(case.line), case.x
        set_weights(self.net, case.weights)

    def call(self) -> None:
        self.net.predict(self.x, threads=self.threads)

    def outputs(self) -> np.ndarray:
        return self.net.predict(self.x, threads=self.threads)


class Inside(Predicting):
    """A call of the compiled network from compiled code, one row at a time."""

    def __init__(self, case: work.Case, threads: int):
        super().__init__(case, threads)
        self.row, self.out = case.x[0].copy(), np.zeros(case.line.layers[-1][1], np.float32)
        f = self.net.compiled()

        @numba.njit
        def calls(row, out, n):
            total = np.float32(0)
            for _ in range(n):
                f(row, out)
                total += out[0]
                row[0] = -row[0]  # the next call reads something else, so none can be left out
            return total

        self.calls = calls

    def repeat(self, calls: int) -> None:
        self.calls(self.row, self.out, calls)

    def outputs(self) -> np.ndarray:
        row = self.x[0].copy()
        self.calls(row, self.out, 1)
        return self.out[None].copy()


def start(case: work.Case, variant: str, threads: int):
    """A contender for the line."""
    if case.line.kind == "inside":
        return Inside(case, threads)
    return (Training if case.line.trains else Predicting)(case, threads)
