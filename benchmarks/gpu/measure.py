"""Checks, turns and results of the contenders of a line.

All of them in this process, one after the other.
"""

import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import lines
from benchmarks.peers import with_numbanet, work
from benchmarks.peers.rounds import LOSS_OFF, OUTPUTS_OFF, WEIGHTS_OFF
from benchmarks.peers.worker import Predicting, Training

OURS = "numbanet"
PEERS = {"pytorch": "with_pytorch", "cupy": "with_cupy"}
WANTED, MOST_EPOCHS = 0.99, 30


def find(names: list[str]) -> tuple[dict, dict]:
    """The modules of numbanet and of the peers that can be used, and of the others why not."""
    found, missing = {OURS: import_module("benchmarks.gpu.with_numbanet")}, {}
    for name in names:
        try:
            module = import_module(f"benchmarks.gpu.{PEERS[name]}")
            reason = module.missing()
        # a peer whose libraries do not fit the driver may raise anything
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            missing[name] = " ".join(reason.split())[:200]
        else:
            found[name] = module
    return found, missing


@dataclass
class Contender:
    """A peer in one variant, and what was found; `aside` is shown and not compared with."""

    peer: str
    variant: str
    aside: bool
    measured: Any = None
    check: dict = field(default_factory=dict)
    figures: list = field(default_factory=list)
    inside: list = field(default_factory=list)
    result: dict = field(default_factory=dict)
    note: str = ""

    def tried(self, what: str, function):
        """What the function returns; a contender that fails is noted and left out from then on."""
        if self.note:
            return None
        try:
            return function()
        except Exception as error:
            self.note = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return None

    def begin(self, module, case) -> None:
        """Build it, and compare its first steps, or its outputs, with numbanet in float64."""
        made = self.tried("did not start", lambda: module.start(case, self.variant))
        self.measured = (Training if case.line.trains else Predicting)(made, case)
        self.check = self.tried("check", self.measured.check) or {}
        if self.note or self.aside:
            return
        if case.line.trains:
            loss_off = abs(self.check["loss"] - self.check["expected"]) / abs(
                self.check["expected"]
            )
            if not (loss_off <= LOSS_OFF and self.check["off"] <= WEIGHTS_OFF):
                self.note = (
                    f"disagrees: loss off by {loss_off:.2g}, "
                    f"weights by {self.check['off']:.2g} of their change"
                )
        elif not self.check["off"] <= OUTPUTS_OFF:
            self.note = f"disagrees: outputs off by {self.check['off']:.2g}"

    def epoch(self, line, test) -> dict:
        """Loss of the first epoch, and accuracy or R² after it, by numbanet on the CPU."""
        made = self.measured.contender
        made.reset()
        loss = made.run(line.steps)
        net = with_numbanet.network(line)
        with_numbanet.set_weights(net, made.weights())
        return {
            "loss": float(loss),
            "score": net.evaluate(*test, loss=line.loss)["accuracy" if line.has_classes else "r2"],
        }

    def record(self) -> dict:
        """Its figures as plain data, seconds for a step or a call."""
        return {
            "peer": self.peer,
            "variant": self.variant,
            "aside": self.aside,
            "note": self.note,
            "check": self.check,
            "quartiles": np.percentile(self.figures, [25, 50, 75]).tolist()
            if self.figures
            else None,
            "inside": float(np.median(self.inside)) if self.inside else None,
            "result": self.result,
            "figures": self.figures,
        }


def contenders(line, modules) -> list[Contender]:
    return [
        Contender(peer, variant, variant in module.ASIDE)
        for peer, module in modules.items()
        for variant in module.variants(line)
    ]


def measure(
    name: str, modules: dict, seconds: float, rounds: int, folder: Path, dry: bool, say
) -> dict:
    """Everybody's figures for one line, as plain data."""
    line = lines.shrunk(lines.line(name)) if dry else lines.line(name)
    case, note = lines.prepare(line, folder, dry)
    everybody = contenders(line, modules)
    measured = reach if name == lines.GOAL else race
    say(f"{name}: {len(everybody)} contenders")
    for one in everybody:
        one.begin(modules[one.peer], case)
    test = lines.test_set(line, folder) if line.trains else None
    note = measured(line, everybody, test, seconds, rounds, note, dry, say) or note
    for one in everybody:
        one.measured = None
        if one.note:
            say(f"{name}: {one.peer} ({one.variant}) left out, {one.note}")
    return {
        "line": name,
        "title": line.title,
        "asked": line.asked,
        "samples": line.batch if line.trains else line.rows,
        "flops": line.flops,
        "bytes": lines.traffic(line),
        "note": note,
        "contenders": [one.record() for one in everybody],
    }


def race(line: work.Line, everybody, test, seconds, rounds, note, dry, say) -> None:
    """Times of steps or calls, in turns; then one epoch from the start."""
    turn = seconds / rounds
    for one in everybody:
        if dry:
            one.measured.piece = line.steps if line.trains else 1
        else:
            one.tried("warm", lambda one=one: one.measured.warm(turn))
    for number in range(rounds):
        say(f"{line.name}: round {number + 1} of {rounds}")
        for one in everybody:
            found = one.tried("time", lambda one=one: one.measured.time(turn)) or {}
            one.figures += found.get("figures", [])
            one.inside += found.get("inside", [])
    for one in everybody if line.trains else ():
        one.result = one.tried("epoch", lambda one=one: one.epoch(line, test)) or {}


def reach(line: work.Line, everybody, test, seconds, rounds, note, dry, say) -> str:
    """Seconds until the accuracy on the test set is WANTED; a note where that means nothing."""
    if note and not dry:
        return f"to 99 %: left out. {note}"
    wanted, most = (0.0, 1) if dry else (WANTED, MOST_EPOCHS)
    for number in range(rounds + 1):  # round 0 warms up
        say(f"{line.name}: round {number} of {rounds}")
        for one in everybody:
            one.tried(
                "learn",
                lambda one=one, first=not number: learn(
                    one, test, wanted, 1 if first else most, first
                ),
            )
            if one.result and one.result["score"] < wanted:
                one.note = f"reached {one.result['score']:.2%} in {most} epochs"
    return ""


def learn(one: Contender, test, wanted: float, most: int, first: bool) -> None:
    """One contender's way to the accuracy, timed unless it is the first."""
    made = one.measured.contender
    if first:
        made.ready(*test)
    made.reset()
    began = time.perf_counter()
    epochs, score = made.learn(wanted, most)
    if not first:
        one.figures.append(time.perf_counter() - began)
        one.result = {"epochs": epochs, "score": score}
