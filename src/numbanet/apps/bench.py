"""A short speed check of this machine, on random numbers of MNIST's sizes: times of training steps and of predictions.

    for one in bench.measure(): print(bench.row(one))

Shares refer to what the matrix tile reaches on 128³ with all threads at once, measured in the same run; on a GPU to a product and a
sum in each of its lanes at its highest clock. Other libraries are not measured here: the repository's `python -m benchmarks.peers`
and `python -m benchmarks.gpu` compare.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numba
import numpy as np

from numbanet import plotting
from numbanet.apps.system_info import show_versions
from numbanet.backend.cuda import driver
from numbanet.network import zoo
from numbanet.network.profiler import peak
from numbanet.network.sequential import Sequential
from numbanet.nn.layers import Dense
from numbanet.nn.optimizers import SGD, Adam

SAMPLES = 50_000
"""Samples in an epoch at most, as many as MNIST has for training."""
ROUNDS = 5
"""Fewest measurements that a median is taken of."""
FP32_LANES = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
"""float32 lanes of a multiprocessor by compute capability (CUDA C++ Programming Guide, arithmetic instructions); newer: 128."""
BLOCKS = " ▏▎▍▌▋▊▉█"
BAR = 20


def _small() -> Sequential:
    return Sequential([Dense(64, activation="tanh"), Dense(64, activation="tanh"), Dense(1)], 8)


def _classes(*units: int, activation: str = "relu", last: str = "softmax") -> Sequential:
    return Sequential(
        [*(Dense(n, activation=activation) for n in units), Dense(10, activation=last)], 784
    )


TRAINED: list[tuple] = [
    (
        "784-30-10 sigmoid, SGD",
        lambda: _classes(30, activation="sigmoid", last="sigmoid"),
        "quadratic",
        SGD(0.5),
        10,
    ),
    ("784-100-10 ReLU, Adam", lambda: _classes(100), "cross_entropy", Adam(), 32),
    ("784-512-512-10 ReLU, SGD", lambda: _classes(512, 512), "cross_entropy", SGD(0.01), 128),
    ("8-64-64-1 tanh, Adam", _small, "quadratic", Adam(), 32),
    ("LeNet-5 ReLU, Adam", zoo.lenet5, "cross_entropy", Adam(), 128),
]
"""Title, network, loss, optimiser and batch of each line that trains."""
PREDICTED: list[tuple] = [
    ("8-64-64-1", _small),
    ("784-100-10", lambda: _classes(100)),
    ("LeNet-5", zoo.lenet5),
]
PREDICT_BATCHES = (1, 1024)
"""Rows that a prediction is given."""


@dataclass(frozen=True)
class Speed:
    """One line: seconds of a training step or of a call of predict on that many samples, and the share of the peak."""

    name: str
    kind: str
    samples: int
    seconds: float
    samples_per_second: float
    share: float


def measure(
    seconds: float = 1.0, most: float | None = None, device: str = "cpu"
) -> Iterator[Speed]:
    """Measure line after line, each for about that many seconds after it has warmed up; the times are medians.

    most   floating-point operations per second that shares refer to, by default measured first
    """
    most = peak_flops(device) if most is None else most
    rng = np.random.default_rng(0)
    pictures, numbers = rng.random((SAMPLES, 784), np.float32), rng.random((SAMPLES, 8), np.float32)
    labels, targets = rng.integers(0, 10, SAMPLES), rng.random((SAMPLES, 1), np.float32)

    def inputs(network):
        return (pictures if math.prod(network.input_shape) == 784 else numbers).reshape(
            -1, *network.input_shape
        )

    def speed(network, name, kind, n, found):
        passes = [2 * op.n_weights * op.weight_reuse for op in network.layer_ops() if op.n_weights]
        flops = 3 * sum(passes) - passes[0] if kind == "train" else sum(passes)
        return Speed(name, kind, n, found, n / found, n * flops / found / most)

    for name, build, loss, optimizer, batch in TRAINED:
        network = build().to(device)
        y = labels if network.output_shape == (10,) else targets
        found = _step(network, inputs(network), y, seconds, batch, loss=loss, optimizer=optimizer)
        yield speed(network, name, "train", batch, found)
    for n in PREDICT_BATCHES:
        for name, build in PREDICTED:
            network = build().to(device)
            x = inputs(network)[:n]
            yield speed(
                network,
                name,
                "predict",
                n,
                _call(lambda network=network, x=x: network.predict(x), seconds),
            )


def peak_flops(device: str = "cpu") -> float:
    """Floating-point operations per second of the matrix tile on all threads together, the best of three; or `card_peak`."""
    if device == "cuda":
        return gpu_peak_flops()
    threads = numba.get_num_threads()
    peak(np.float32)  # compiles
    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(peak, [np.float32] * threads)) for _ in range(3))


def gpu_peak_flops() -> float:
    """float32 operations per second of the GPU, by its data: multiprocessors · lanes of each · highest clock · 2."""
    if driver.SIMULATED:
        return math.inf
    card = driver.module().get_current_device()
    lanes = FP32_LANES.get(tuple(card.compute_capability), 128)
    return 2.0 * driver.multiprocessors() * lanes * 1e3 * int(card.CLOCK_RATE)


def _step(network, x, y, seconds: float, batch: int, **recipe) -> float:
    """Median time of a training step: of whole epochs, of so many steps that about twenty of them fit into the time."""
    recipe |= {"batch_size": batch, "verbose": 0}
    steps, most = 4, SAMPLES // batch
    while True:
        n = steps * batch
        network.fit(x[:n], y[:n], epochs=2, **recipe)
        taken = network.fit(x[:n], y[:n], **recipe).seconds[-1]
        if taken >= seconds / 20 or steps == most:
            break
        steps = min(most, max(steps * 4, math.ceil(steps * seconds / 20 / taken)))
    ends = time.perf_counter() + seconds
    times = network.fit(x[:n], y[:n], epochs=ROUNDS, **recipe).seconds
    while time.perf_counter() < ends:
        times += network.fit(x[:n], y[:n], epochs=ROUNDS, **recipe).seconds
    return float(np.median(times)) / steps


def _call(run, seconds: float) -> float:
    """Median time of a call, of rounds of so many calls that about twenty rounds fit into the time."""

    def round_of(calls):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - began) / calls

    round_of(3)
    calls = max(1, int(seconds / 20 / round_of(3)))
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < ROUNDS or time.perf_counter() < ends:
        times.append(round_of(calls))
    return float(np.median(times))


# --- showing ----------------------------------------------------------------------------------------------------------


def environment_line(device: str = "cpu") -> str:
    """Where this runs, in one line."""
    found = dict(show_versions())
    where = f"{driver.device_name()} · " if device == "cuda" else ""
    return (
        f"{where}{found['processor']} · {found['threads'].split()[0]} threads · numbanet {found['numbanet']}, numba "
        f"{found['numba']}, numpy {found['numpy']}, python {found['python']}"
    )


def peak_text(most: float, device: str = "cpu") -> str:
    """The peak in words."""
    return f"peak {most / 1e9:,.0f} GFLOP/s, float32, {'all threads' if device == 'cpu' else 'by the data of the card'}"


def header() -> str:
    """The names of the columns of `row`."""
    return (
        f"{'':8}{'network':26}{'samples':>8}{'time':>11}{'samples/s':>13}{'of peak':>9}\n"
        + "─" * (77 + BAR)
    )


def format_row(one: Speed) -> str:
    """A line of the table, with a bar as long as its share of the peak."""
    eighths = round(8 * BAR * min(1.0, one.share))
    bar = (BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8]).rstrip()
    return (
        f"{one.kind:8}{one.name:26}{one.samples:8,}{_time(one.seconds):>11}{one.samples_per_second:13,.0f}"
        f"{one.share:9.1%}  {bar}"
    ).rstrip()


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} µs"


def record(found: list[Speed], most: float, device: str = "cpu") -> dict[str, Any]:
    """The figures and where they were taken, for a JSON file: seconds, samples per second, operations per second."""
    where = {name: str(value) for name, value in show_versions()} | (
        {"gpu": driver.device_name()} if device == "cuda" else {}
    )
    return {
        "system": where,
        "device": device,
        "peak": most,
        "lines": [asdict(one) for one in found],
    }


def picture(found: list[Speed]):
    """Draw the samples per second as horizontal bars; returns matplotlib's figure."""
    figure = plotting._figure(plotting.WIDTH_INCHES, 0.6 + 0.36 * max(4, len(found)))
    axes = figure.add_subplot()
    names = [
        f"train {one.name}, batch {one.samples:,}"
        if one.kind == "train"
        else f"predict {one.name}, {one.samples:,} row{'s' * (one.samples > 1)}"
        for one in found
    ]
    bars = axes.barh(names, [one.samples_per_second for one in found], color=plotting.GREY)
    axes.bar_label(bars, [f"{one.samples_per_second:,.0f}" for one in found], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.invert_yaxis()
    axes.set_xlabel("samples per second")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
