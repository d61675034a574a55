"""What control over a training costs, and what frozen layers and pruning save.

    python -m benchmarks.control

Contenders take turns; a ratio is the median over the turns. One thread.
"""

import statistics
import tempfile
import time

import numpy as np

import numbanet as nn

EPOCHS, ROUNDS = 4, 7
STEPS = 200
"""Steps between two calls of a callback."""


class EverySteps(nn.callbacks.Callback):
    """Keeps what it is told."""

    every_steps = STEPS

    def on_step_end(self, step, logs, network):
        self.logs = logs


def controls(folder: str) -> dict[str, dict]:
    """Options of fit by name."""
    schedule = {"optimizer": nn.SGD(nn.schedules.Cosine(3.0, epochs=10_000.0))}
    steps, checkpoint = EverySteps(), nn.callbacks.Checkpoint(folder)
    return {
        "nothing": {},
        "a schedule": schedule,
        f"a callback every {STEPS} steps": {"callbacks": steps},
        "a checkpoint every epoch": {"callbacks": checkpoint},
        "all of it": schedule | {"callbacks": [steps, checkpoint]},
    }


def in_turn(calls: dict) -> dict[str, list[float]]:
    """Seconds of every call, by name, in turns; the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(base: list[float], other: list[float]) -> float:
    """The median of other / base over the turns."""
    return statistics.median(b / a for a, b in zip(base, other, strict=True))


def print_controls() -> None:
    """What schedules, callbacks and checkpoints add to 784-30-10, batch 10."""
    data = nn.datasets.mnist(flat=True, dtype="float32")
    x, y = data.x[:50_000], data.y[:50_000]

    def fitting(options):
        layers = [nn.Dense(30, activation="sigmoid"), nn.Dense(10, activation="sigmoid")]
        network = nn.Sequential(layers, 784, threads=1)
        given = {"loss": "quadratic", "optimizer": nn.SGD(3.0), "batch_size": 10} | options
        return lambda: network.fit(x, y, epochs=EPOCHS, verbose=0, **given)

    with tempfile.TemporaryDirectory() as folder:
        calls = {name: fitting(options) for name, options in controls(folder).items()}
        seconds = in_turn(calls)
    print("784-30-10, batch 10, an epoch of 5,000 steps with")
    for name, found in seconds.items():
        epoch = statistics.median(found) / EPOCHS * 1e3
        print(f"  {name:32} {epoch:6.1f} ms, ratio {ratio(seconds['nothing'], found):.3f}")


def print_frozen() -> None:
    """Steps with all layers trained, and with the lower ones frozen."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 3200)
    dense = [nn.Dense(512, activation="relu") for _ in range(2)]
    networks = {
        "784-512-512-10": lambda: nn.Sequential(
            [*dense, nn.Dense(10, activation="softmax")], 784, threads=1
        ),
        "LeNet-5": lambda: nn.models.lenet5(threads=1),
    }
    for name, build in networks.items():
        all_trained, frozen = build(), build()
        frozen.freeze(*range(len(frozen.layers) - 2))
        x = generator.random((3200, *frozen.input_shape)).astype("float32")
        calls = {
            kind: lambda network=network, x=x: network.fit(x, labels, batch_size=64, verbose=0)
            for kind, network in (("all", all_trained), ("last", frozen))
        }
        seconds = in_turn(calls)
        steps = {kind: statistics.median(found) / 50 * 1e3 for kind, found in seconds.items()}
        print(
            f"{name}, batch 64: {steps['all']:.2f} ms a step, {steps['last']:.2f} ms with all but "
            f"the last layer frozen: {ratio(seconds['last'], seconds['all']):.1f} times faster"
        )


def print_pruned() -> None:
    """A network, and the half of its neurons that matters most."""
    data = nn.datasets.digits()
    layers = [nn.Dense(256, activation="relu"), nn.Dense(128, activation="relu")]
    network = nn.Sequential([*layers, nn.Dense(10, activation="softmax")], 64)
    network.fit(data.x, data.y, epochs=30, verbose=0)
    pruned = nn.diagnostics.prune(network, keep=0.5, x=data.x, y=data.y)
    trained = nn.diagnostics.prune(network, keep=0.5, x=data.x, y=data.y)
    trained.fit(data.x, data.y, epochs=3, verbose=0)
    print("digits, 64-256-128-10; half of its neurons; the same after three more epochs")
    print(nn.diagnostics.compare([network, pruned, trained], data.x_test, data.y_test))


def main() -> None:
    """Print all figures."""
    print_controls()
    print_frozen()
    print_pruned()


if __name__ == "__main__":
    main()
