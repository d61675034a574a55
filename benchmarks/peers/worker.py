"""The process around a contender: it does what it is told, a line of JSON in, a line of JSON out.

python -m benchmarks.peers.worker PEER VARIANT THREADS LINE FOLDER
python -m benchmarks.peers.worker prepare LINE FOLDER        numbanet writes the case
python -m benchmarks.peers.worker about PEER
                                  name, versions, and variants of each line
python -m benchmarks.peers.worker gauge                      only answers to peak

check   a few steps or one prediction, and how far they are from numbanet in float64
warm    run until compiled; choose how much work one figure covers
time    work for so many seconds; seconds per step or call, one figure for each piece of work
epoch   one epoch from the start; leaves the weights in a file
score   (numbanet) the test set, with the weights of a file
peak    (gauge) the processor's operations per second, on each number of threads
"""

import json
import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.peers import work

PEERS = {
    "numbanet": "with_numbanet",
    "pytorch": "with_pytorch",
    "jax": "with_jax",
    "sklearn": "with_sklearn",
    "onnxruntime": "with_onnxruntime",
}
PIECES = 4
"""Pieces that the time of a turn is cut into, each a figure, where steps can be taken singly."""


def module(peer: str):
    """The module of a contender; ImportError where it is not installed."""
    return import_module(f"benchmarks.peers.{PEERS[peer]}")


class Training:
    """Times a contender that trains."""

    def __init__(self, contender, case):
        self.contender, self.case = contender, case

    def check(self) -> dict:
        """Loss, its expected value, and the error of the weights relative to their change."""
        self.contender.reset()
        loss = self.contender.run(work.CHECKED_STEPS)
        found, case = self.contender.weights(), self.case
        off = sum(
            float(np.sum((np.asarray(a, np.float64) - b) ** 2))
            for a, b in zip(found, case.expected, strict=True)
        )
        way = sum(
            float(np.sum((np.asarray(a, np.float64) - b) ** 2))
            for a, b in zip(case.weights, case.expected, strict=True)
        )
        return {"loss": float(loss), "expected": case.loss, "off": (off / way) ** 0.5}

    def warm(self, seconds: float) -> dict:
        """Estimate a step, choose the steps of a piece, and run one."""
        contender = self.contender
        contender.reset()
        for _ in range(2):
            began = time.perf_counter()
            contender.run(contender.first)
            step = (time.perf_counter() - began) / contender.first
        self.piece = contender.piece(step, seconds)
        began = time.perf_counter()
        contender.run(self.piece)
        return {"step": (time.perf_counter() - began) / self.piece, "piece": self.piece}

    def time(self, seconds: float) -> dict:
        """Seconds per step, for each piece of work within that many seconds."""
        self.contender.reset()
        figures, began, busy = [], time.perf_counter(), time.process_time()
        while not figures or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self.contender.run(self.piece)
            figures.append((time.perf_counter() - start) / self.piece)
        result = {
            "figures": figures,
            "cores": (time.process_time() - busy) / (time.perf_counter() - began),
        }
        return result | self.contender.besides()

    def epoch(self, file: str) -> dict:
        """One epoch from the start."""
        self.contender.reset()
        loss = self.contender.run(self.case.line.steps)
        work.write(Path(file), self.contender.weights())
        return {"loss": float(loss)}


class Predicting:
    """Times a contender that predicts."""

    def __init__(self, contender, case):
        self.contender, self.case = contender, case

    def check(self) -> dict:
        """How far the outputs are off, over their size."""
        outputs, expected = np.asarray(self.contender.outputs(), np.float64), self.case.expected[0]
        if outputs.shape != expected.shape:
            raise ValueError(f"outputs have shape {outputs.shape}, expected {expected.shape}")
        return {"off": float(np.abs(outputs - expected).max() / np.abs(expected).max())}

    def warm(self, seconds: float) -> dict:
        """Estimate a call, and choose the calls of a piece."""
        calls = 1
        while True:
            began = time.perf_counter()
            self.contender.repeat(calls)
            spent = time.perf_counter() - began
            if spent > 0.05 or calls >= 1 << 20:
                break
            calls *= 2
        self.piece = max(1, int(seconds / PIECES / (spent / calls)))
        return {"step": spent / calls, "piece": self.piece}

    def time(self, seconds: float) -> dict:
        """Seconds per call, for each piece of work within that many seconds."""
        self.contender.repeat(min(self.piece, 10))
        figures, began, busy = [], time.perf_counter(), time.process_time()
        while not figures or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            self.contender.repeat(self.piece)
            figures.append((time.perf_counter() - start) / self.piece)
        return {
            "figures": figures,
            "cores": (time.process_time() - busy) / (time.perf_counter() - began),
        }


def whole_epochs(line: work.Line, step: float, seconds: float) -> int:
    """Steps of as many whole epochs as last about so many seconds."""
    return line.steps * max(1, round(seconds / (step * line.steps)))


class Contender:
    """What a contender is asked for.

    One that trains has reset, run, weights; one that predicts has outputs and call.
    """

    first = 4
    """Steps of the first, short runs, by which a step is estimated."""

    def piece(self, step: float, seconds: float) -> int:
        """Steps of a piece of work in a turn of so many seconds, at most an epoch."""
        return max(1, min(self.case.line.steps, int(seconds / PIECES / step)))

    def besides(self) -> dict:
        """More figures about the last runs."""
        return {}

    def repeat(self, calls: int) -> None:
        """Call so often."""
        call = self.call
        for _ in range(calls):
            call()


def about(peer: str) -> dict:
    """What the parent must know of a peer; {"missing": why} where it cannot be imported."""
    try:
        found = module(peer)
    except ImportError as error:
        return {"missing": str(error)}
    versions = {package: version(package) for package in found.PACKAGES}
    if peer == "numbanet":  # also where it is not installed but on the path
        versions = {peer: found.nn.__version__} | versions
    variants = {line.name: list(found.variants(line)) for line in work.LINES}
    return {"name": found.NAME, "versions": versions, "variants": variants}


class Gauge:
    """Measures what the processor can do at the moment."""

    def peak(self, threads: list[int]) -> dict:
        from benchmarks.peers.peak import peak

        return {n: peak(n) for n in threads}


def answer(measured, contender, request: dict) -> dict:
    do = request["do"]
    if do in ("check", "warm", "time", "epoch"):
        return getattr(measured, do)(
            *[request[key] for key in ("seconds", "file") if key in request]
        )
    return getattr(contender, do)(*[request[key] for key in ("file", "threads") if key in request])


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not stand between the answers

    def say(what: dict) -> None:
        print(json.dumps(what), file=out, flush=True)

    if sys.argv[1] == "prepare":
        say(module("numbanet").prepare(work.line(sys.argv[2]), Path(sys.argv[3])))
        return
    if sys.argv[1] == "about":
        say(about(sys.argv[2]))
        return
    measured = None
    try:
        if sys.argv[1] == "gauge":
            contender = Gauge()
        else:
            peer, variant, threads, name, folder = sys.argv[1:]
            case = work.load(Path(folder), work.line(name))
            contender = module(peer).start(case, variant, int(threads))
            measured = (Training if case.line.trains else Predicting)(contender, case)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for text in sys.stdin:
        try:
            say(answer(measured, contender, json.loads(text)))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
