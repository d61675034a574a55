"""Ask the contenders of a line in turn, round after round.

One process each, and only the one that is asked runs. Around every figure a gauge measures the
peak of the processor, on one thread and on several: a virtual machine may give its threads less
than a core each, for minutes, and figures of that time are measured again.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.peers import work

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "benchmarks.peers.worker"]
PATIENCE = 600
"""Seconds after which an answer is no longer waited for."""
LOSS_OFF, WEIGHTS_OFF, OUTPUTS_OFF = 1e-4, 1e-2, 1e-4
"""What a contender may be off: of the loss, of the way the weights went, of the largest output."""
EPOCH_SECONDS = 15
"""An epoch for the accuracy is not run by a peer that would take longer."""
LOW_RATIO = 0.85
"""A turn is repeated where the peak of n threads is below this times n that of one: 1.7 for two."""
REPEATS = 2
"""How often a turn is repeated at most; that of the highest peak counts."""
FEATURES = ("avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe", "popcnt", "xsave")
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": ",".join(f"+{name}" for name in FEATURES),
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    },
}
"""The settings by which each library is held to older vector instructions; ONNX Runtime has none,
and NumPy's own loops keep what they are compiled for."""


def cores() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def environment(threads: int, isa: str = "native") -> dict:
    """The settings by which each library learns its threads and its vector instructions."""
    env = dict(os.environ) | INSTRUCTIONS[isa]
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NPROC",
    ):
        env[name] = str(threads)
    flags = [os.environ.get("XLA_FLAGS", ""), INSTRUCTIONS[isa].get("XLA_FLAGS", "")]
    flags += ["--xla_cpu_multi_thread_eigen=false"] * (threads == 1)
    env["XLA_FLAGS"] = " ".join(filter(None, flags))
    env["JAX_PLATFORMS"], env["CUDA_VISIBLE_DEVICES"] = "cpu", ""
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    return env


def once(*arguments: str) -> dict:
    """A worker that answers once."""
    done = subprocess.run(
        [*WORKER, *arguments], env=environment(1), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


class Process:
    """A worker that is halted while it is not asked. `note` says why it is of no use, else ""."""

    note: str = ""

    def start(self, arguments: list[str], env: dict) -> None:
        """Start the process; it makes itself ready."""
        self.process = subprocess.Popen(
            [*WORKER, *arguments],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answer("did not start")
        self._halt(True)

    def ask(self, do: str, **details) -> dict:
        """Let the process run, ask, wait for the answer, and halt it again.

        {} from one that failed.
        """
        if self.note:
            return {}
        self._halt(False)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self.process.stdin.flush()
        answer = self._answer(do)
        self._halt(True)
        return answer

    def _answer(self, where: str) -> dict:
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        text = self.process.stdout.readline() if ready else ""
        answer = (
            json.loads(text)
            if text
            else {"error": "no answer" if not ready else "the process ended"}
        )
        if "error" in answer:
            self.note = f"{where}: {answer['error'].splitlines()[0][:200]}"
            return {}
        return answer

    def _halt(self, stop: bool) -> None:
        if hasattr(signal, "SIGSTOP") and self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    def end(self) -> None:
        """End the process, stopped or not."""
        if hasattr(self, "process"):
            self.process.kill()
            self.process.wait()


class Gauge(Process):
    """What the processor can do at the moment: the FMA peak on one thread and on `most`."""

    def __init__(self, most: int):
        self.threads = sorted({1, most})

    def begin(self, isa: str) -> None:
        """Start the process and let it compile."""
        self.start(["gauge"], environment(self.threads[-1], isa))
        self.measure()

    def measure(self) -> dict[int, float]:
        """Operations per second by the number of threads. RuntimeError where it fails."""
        found = self.ask("peak", threads=self.threads)
        if self.note:
            raise RuntimeError(f"the peak of the processor cannot be measured: {self.note}")
        return {int(n): peak for n, peak in found.items()}


def peak_ratio(peaks: list[dict[int, float]]) -> float:
    """The lowest of the peaks of the most threads over those of one thread."""
    return min(peak[max(peak)] / peak[1] for peak in peaks)


@dataclass
class Contender(Process):
    """A peer in one variant with one number of threads, and what it said."""

    peer: str
    variant: str
    threads: int
    step: float = 0.0
    figures: list = field(default_factory=list)
    inside: list = field(default_factory=list)
    cores: list = field(default_factory=list)
    ratios: list = field(default_factory=list)
    repeated: int = 0
    check: dict = field(default_factory=dict)
    note: str = ""

    def begin(self, line: work.Line, folder: Path, isa: str) -> None:
        """Start the process; it loads its data, makes itself ready, and is checked."""
        arguments = [self.peer, self.variant, str(self.threads), line.name, str(folder)]
        self.start(arguments, environment(self.threads, isa))
        self.agree(line)

    def agree(self, line: work.Line) -> None:
        """Compare with numbanet in float64; note it where they differ."""
        found = self.check = self.ask("check")
        if not found:
            return
        if line.trains:
            loss_off = abs(found["loss"] - found["expected"]) / abs(found["expected"])
            if not (loss_off <= LOSS_OFF and found["off"] <= WEIGHTS_OFF):
                self.note = (
                    f"disagrees: loss {found['loss']:.6g}, expected {found['expected']:.6g}; "
                    "weights off by "
                    f"{found['off']:.2g} of their way"
                )
        elif not found["off"] <= OUTPUTS_OFF:
            self.note = f"disagrees: outputs off by {found['off']:.2g}"

    def take_turn(self, gauge: "Gauge", seconds: float, peaks: list[dict[int, float]]) -> None:
        """Take figures for so many seconds, again where the peaks around them are too low.

        peaks   what the gauge has found until now; the last of them just before. Grows
        """
        kept: tuple[float, dict] | None = None
        for repeat in range(1 + REPEATS):
            self.repeated += repeat > 0
            time.sleep(0.02)  # threads that still wait for the last one's work come to rest
            answer = self.ask("time", seconds=seconds)
            peaks.append(gauge.measure())
            found = peak_ratio(peaks[-2:])
            if kept is None or found > kept[0]:
                kept = found, answer
            if found >= LOW_RATIO * gauge.threads[-1]:
                break
        self.ratios.append(kept[0])
        for name in ("figures", "inside"):
            getattr(self, name).extend(kept[1].get(name, []))
        self.cores += [kept[1]["cores"]] if "cores" in kept[1] else []

    @property
    def label(self) -> str:
        return f"{self.peer} ({self.variant}, {self.threads} thread{'s' * (self.threads > 1)})"

    @property
    def median(self) -> float:
        return float(np.median(self.figures)) if self.figures else float("inf")


def measure(
    line: work.Line,
    abouts: dict,
    threads: list[int],
    seconds: float,
    rounds: int,
    folder: Path,
    say,
    isa: str = "native",
) -> dict:
    """Measure one line: figures, the peaks of the processor and the accuracies, as plain data."""
    prepared = once("prepare", line.name, str(folder))
    everybody = [
        Contender(peer, variant, n)
        for peer, about in abouts.items()
        for variant in about["variants"][line.name]
        for n in (threads if line.kind != "inside" else [1])
    ]
    turn, gauge = seconds / rounds, Gauge(min(max(threads), cores()))
    try:
        gauge.begin(isa)
        say(f"{line.name}: {len(everybody)} contenders begin")
        with ThreadPoolExecutor(cores()) as pool:  # libraries take seconds to load and to compile
            list(pool.map(lambda one: one.begin(line, folder, isa), everybody))
        for one in everybody:
            one.step = one.ask("warm", seconds=turn).get("step", 0.0)
            if one.note:
                say(f"{line.name}: {one.label} left out, {one.note}")
                one.end()
        running = [one for one in everybody if not one.note]
        peaks = [gauge.measure()]
        for number in range(rounds):
            say(f"{line.name}: round {number + 1} of {rounds}, {len(running)} contenders")
            for one in running:
                one.take_turn(gauge, turn, peaks)
        best = {}
        for one in running:
            if one.figures and (one.peer not in best or one.median < best[one.peer].median):
                best[one.peer] = one
        scores = accuracies(line, best, folder) if line.trains else {}
    finally:
        for one in [gauge, *everybody]:
            one.end()
    return {
        "line": line.name,
        "title": line.title,
        "asked": line.asked,
        "flops": line.flops,
        "note": prepared["note"],
        "peaks": {n: max(peak.get(n, 0.0) for peak in peaks) for n in gauge.threads},
        "ratios": [found for one in running for found in one.ratios],
        "repeated": sum(one.repeated for one in running),
        "scores": scores,
        "best": {peer: everybody.index(one) for peer, one in best.items()},
        "contenders": [record(one) for one in everybody],
    }


def accuracies(line: work.Line, best: dict, folder: Path) -> dict:
    """The score on the test set after one epoch, of each peer's best.

    All are judged by numbanet's evaluation.
    """
    scores = {}
    for peer, one in best.items():
        file = folder / f"{line.name}.{peer}.npz"
        if (
            "numbanet" in best
            and one.median * line.steps < EPOCH_SECONDS
            and one.ask("epoch", file=str(file))
        ):
            scores[peer] = best["numbanet"].ask("score", file=str(file)).get("score")
            file.unlink()
    return scores


def record(one: Contender) -> dict:
    """A contender's figures as plain data, seconds."""
    quartiles = np.percentile(one.figures, [25, 50, 75]).tolist() if one.figures else None
    return {
        "peer": one.peer,
        "variant": one.variant,
        "threads": one.threads,
        "quartiles": quartiles,
        "note": one.note,
        "check": one.check,
        "figures": one.figures,
        "ratios": one.ratios,
        "repeated": one.repeated,
        "cores": float(np.median(one.cores)) if one.cores else None,
        "inside": float(np.median(one.inside)) if one.inside else None,
    }
