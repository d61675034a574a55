"""Ask the contenders of a line in turn, round after round.

One process each, and only the one that is asked runs.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
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


def environment(threads: int) -> dict:
    """The settings by which each library learns how many threads it has."""
    env = dict(os.environ)
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "NPROC",
    ):
        env[name] = str(threads)
    if threads == 1:
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    env["JAX_PLATFORMS"], env["CUDA_VISIBLE_DEVICES"] = "cpu", ""
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    return env


def once(*arguments: str) -> dict:
    """A worker that answers once."""
    done = subprocess.run(
        [*WORKER, *arguments], env=environment(1), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


@dataclass
class Contender:
    """A peer in one variant with one number of threads, and what it said."""

    peer: str
    variant: str
    threads: int
    step: float = 0.0
    figures: list = field(default_factory=list)
    inside: list = field(default_factory=list)
    cores: list = field(default_factory=list)
    check: dict = field(default_factory=dict)
    note: str = ""

    def begin(self, line: work.Line, folder: Path) -> None:
        """Start the process; it loads its data and makes itself ready."""
        command = [*WORKER, self.peer, self.variant, str(self.threads), line.name, str(folder)]
        self.process = subprocess.Popen(
            command,
            env=environment(self.threads),
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
) -> dict:
    """Measure one line: figures, the peaks of the processor and the accuracies, as plain data."""
    prepared = once("prepare", line.name, str(folder))
    everybody = [
        Contender(peer, variant, n)
        for peer, about in abouts.items()
        for variant in about["variants"][line.name]
        for n in (threads if line.kind != "inside" else [1])
    ]
    turn = seconds / rounds
    peaks: dict[int, float] = {}
    try:
        for one in everybody:
            say(f"{line.name}: {one.label}, begins")
            one.begin(line, folder)
            one.agree(line)
            one.step = one.ask("warm", seconds=turn).get("step", 0.0)
            if one.note:
                say(f"{line.name}: {one.label} left out, {one.note}")
                one.end()
        running = [one for one in everybody if not one.note]
        for number in range(rounds):
            say(f"{line.name}: round {number + 1} of {rounds}, {len(running)} contenders")
            for one in running:
                if one.peer == "numbanet":
                    found = one.ask("peak")
                    peaks[one.threads] = max(peaks.get(one.threads, 0.0), found.get("peak", 0.0))
                time.sleep(0.02)  # threads that still wait for the last one's work come to rest
                answer = one.ask("time", seconds=turn)
                one.figures += answer.get("figures", [])
                one.inside += answer.get("inside", [])
                one.cores += [answer["cores"]] if "cores" in answer else []
        best = {}
        for one in running:
            if one.figures and (one.peer not in best or one.median < best[one.peer].median):
                best[one.peer] = one
        scores = accuracies(line, best, folder) if line.trains else {}
    finally:
        for one in everybody:
            one.end()
    return {
        "line": line.name,
        "title": line.title,
        "asked": line.asked,
        "flops": line.flops,
        "note": prepared["note"],
        "peaks": peaks,
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
        "cores": float(np.median(one.cores)) if one.cores else None,
        "inside": float(np.median(one.inside)) if one.inside else None,
    }
