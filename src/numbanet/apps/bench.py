"""A short speed check of this machine: times of training steps and of predictions.

    for speed in bench.measure():
        print(bench.format_row(speed))

The data are random, of MNIST's sizes. Fractions of the peak refer to the matrix micro-kernel on
128³ with all threads at once, measured again before each line of the same run; on a GPU to one
multiplication and one addition per lane and cycle at its highest clock. Other libraries are not
measured here: the repository's `python -m benchmarks.peers` and `python -m benchmarks.gpu` compare.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numba
import numpy as np

from numbanet import plotting
from numbanet.apps.system_info import show_versions
from numbanet.backend.cuda import driver
from numbanet.network import profiler, zoo
from numbanet.network.sequential import Sequential
from numbanet.nn.layers import Dense
from numbanet.nn.optimizers import SGD, Adam

SAMPLES = 50_000
"""Most samples in an epoch, as many as MNIST has for training."""
ROUNDS = 5
"""Fewest measurements for a median."""
FP32_LANES = {(7, 0): 64, (7, 2): 64, (7, 5): 64, (8, 0): 64}
"""float32 lanes of a multiprocessor by compute capability; newer: 128.

Source   CUDA C++ Programming Guide, arithmetic instructions
"""
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
    """One line: the time of a training step or of a call of predict, and the fraction of the peak.

    kind      "train" or "predict"
    samples   in the step or in the call
    flops     floating-point operations of the step or the call
    share     fraction of the peak known so far
    """

    name: str
    kind: str
    samples: int
    seconds: float
    samples_per_second: float
    flops: float
    share: float


@dataclass
class Peak:
    """The highest speed seen, of which fractions are given.

    first   floating-point operations per second as they were measured at first
    best    the most until now, of the micro-kernel or of a line
    """

    first: float
    best: float = 0.0

    def __post_init__(self):
        self.best = self.first

    def share(self, flops: float) -> float:
        """The fraction of the peak that a speed is; a higher speed is the peak from now on."""
        self.best = max(self.best, flops)
        return flops / self.best

    @property
    def note(self) -> str:
        """A line where the first measurement was disturbed, else ""."""
        if self.best <= (1 + profiler.BUSY) * self.first:
            return ""
        return (
            f"The measurement was disturbed: the peak was measured at {self.first / 1e9:,.0f} "
            f"GFLOP/s at first and is at least {self.best / 1e9:,.0f}; measure again on a quiet "
            "machine"
        )


def measure(seconds: float = 1.0, peak: Peak | None = None, device: str = "cpu") -> Iterator[Speed]:
    """Measure line after line, each for about that many seconds after warming up; yield medians.

    peak   of which fractions are given, by default measured first; it rises where more is reached
    """
    peak = Peak(peak_flops(device)) if peak is None else peak
    rng = np.random.default_rng(0)
    images, vectors = rng.random((SAMPLES, 784), np.float32), rng.random((SAMPLES, 8), np.float32)
    labels, targets = rng.integers(0, 10, SAMPLES), rng.random((SAMPLES, 1), np.float32)

    def inputs(network):
        return (images if math.prod(network.input_shape) == 784 else vectors).reshape(
            -1, *network.input_shape
        )

    def speed(network, name, kind, n, found):
        passes = [2 * op.n_weights * op.weight_reuse for op in network.layer_ops() if op.n_weights]
        flops = n * (3 * sum(passes) - passes[0] if kind == "train" else sum(passes))
        if device == "cpu":
            peak.share(peak_flops())
        return Speed(name, kind, n, found, n / found, flops, peak.share(flops / found))

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
    """Floating-point operations per second of the matrix micro-kernel on all threads together.

    For "cuda" see `gpu_peak_flops`.
    """
    if device == "cuda":
        return gpu_peak_flops()
    return profiler.peak(np.float32, numba.get_num_threads())


def gpu_peak_flops() -> float:
    """float32 operations per second of the GPU, from its specification.

    multiprocessors · lanes of each · highest clock · 2
    """
    if driver.SIMULATED:
        return math.inf
    gpu = driver.module().get_current_device()
    lanes = FP32_LANES.get(tuple(gpu.compute_capability), 128)
    return 2.0 * driver.multiprocessors() * lanes * 1e3 * int(gpu.CLOCK_RATE)


def _step(network, x, y, seconds: float, batch: int, **recipe) -> float:
    """Median time of a training step, from whole epochs of about a twentieth of the time each."""
    recipe |= {"batch_size": batch, "verbose": 0}
    steps, max_steps = 4, SAMPLES // batch
    while True:
        n = steps * batch
        network.fit(x[:n], y[:n], epochs=2, **recipe)
        taken = network.fit(x[:n], y[:n], **recipe).seconds[-1]
        if taken >= seconds / 20 or steps == max_steps:
            break
        steps = min(max_steps, max(steps * 4, math.ceil(steps * seconds / 20 / taken)))
    ends = time.perf_counter() + seconds
    times = network.fit(x[:n], y[:n], epochs=ROUNDS, **recipe).seconds
    while time.perf_counter() < ends:
        times += network.fit(x[:n], y[:n], epochs=ROUNDS, **recipe).seconds
    return float(np.median(times)) / steps


def _call(run, seconds: float) -> float:
    """Median time of a call, from rounds of calls of about a twentieth of the time each."""

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


# --- showing --------------------------------------------------------------------------------------


def environment_line(device: str = "cpu") -> str:
    """Where this runs, in one line."""
    found = dict(show_versions())
    where = f"{driver.device_name()} · " if device == "cuda" else ""
    return (
        f"{where}{found['processor']} · {found['threads'].split()[0]} threads · "
        f"numbanet {found['numbanet']}, numba "
        f"{found['numba']}, numpy {found['numpy']}, python {found['python']}"
    )


def peak_text(peak: float, device: str = "cpu") -> str:
    """The peak in words."""
    source = "all threads" if device == "cpu" else "from the GPU's specification"
    return f"peak {peak / 1e9:,.0f} GFLOP/s, float32, {source}"


def header() -> str:
    """The names of the columns of `format_row`."""
    return (
        f"{'':8}{'network':26}{'samples':>8}{'time':>11}{'samples/s':>13}{'of peak':>9}\n"
        + "─" * (77 + BAR)
    )


def format_row(speed: Speed) -> str:
    """A line of the table, with a bar as long as the fraction of the peak."""
    eighths = round(8 * BAR * min(1.0, speed.share))
    bar = (BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8]).rstrip()
    return (
        f"{speed.kind:8}{speed.name:26}{speed.samples:8,}{_time(speed.seconds):>11}"
        f"{speed.samples_per_second:13,.0f}"
        f"{speed.share:9.1%}  {bar}"
    ).rstrip()


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} µs"


def record(found: list[Speed], peak: Peak, device: str = "cpu") -> dict[str, Any]:
    """The measurements and their environment, for a JSON file; times in seconds.

    The fractions are those of the highest peak.
    """
    where = {name: str(value) for name, value in show_versions()} | (
        {"gpu": driver.device_name()} if device == "cuda" else {}
    )
    return {
        "system": where,
        "device": device,
        "peak": peak.best,
        "lines": [
            asdict(replace(speed, share=peak.share(speed.flops / speed.seconds))) for speed in found
        ],
    }


def bar_chart(found: list[Speed]):
    """Draw the samples per second as horizontal bars; returns matplotlib's figure."""
    figure = plotting.new_figure(plotting.WIDTH_INCHES, 0.6 + 0.36 * max(4, len(found)))
    axes = figure.add_subplot()
    names = [
        f"train {speed.name}, batch {speed.samples:,}"
        if speed.kind == "train"
        else f"predict {speed.name}, {speed.samples:,} row{'s' * (speed.samples > 1)}"
        for speed in found
    ]
    bars = axes.barh(names, [speed.samples_per_second for speed in found], color=plotting.GREY)
    labels = [f"{speed.samples_per_second:,.0f}" for speed in found]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.invert_yaxis()
    axes.set_xlabel("samples per second")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
