"""Measure numbanet, PyTorch and CuPy on the same GPU, and print Markdown tables.

    python -m benchmarks.gpu --lines 1,lenet5-128 --seconds 4 --json gpu.json

See the docstring of `benchmarks.gpu` for what is compared and how.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numba

import numbanet as nn
from benchmarks.gpu import gpu_facts, lines, measure, table
from numbanet.backend.cuda import driver


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__.splitlines()[0],
        epilog="lines: " + ", ".join(f"{i} {name}" for i, name in enumerate(lines.NAMES, 1)),
    )
    parser.add_argument("--lines", help="names or numbers between commas (default: all)")
    parser.add_argument(
        "--peers",
        default=",".join(measure.PEERS),
        help=f"of {', '.join(measure.PEERS)} (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="for each contender of a line, over all rounds (default: 3)",
    )
    parser.add_argument(
        "--rounds", type=int, default=7, help="turns that these seconds are split into (default: 7)"
    )
    parser.add_argument("--json", type=Path, help="write all figures there, after every line")
    parser.add_argument(
        "--dry",
        action="store_true",
        help="tiny sizes, numbanet alone, one round: shows that every line runs",
    )
    given = parser.parse_args()
    try:
        given.lines = lines.chosen(given.lines)
    except ValueError as error:
        parser.error(str(error))
    given.peers = [] if given.dry else [peer for peer in given.peers.split(",") if peer]
    unknown = [peer for peer in given.peers if peer not in measure.PEERS]
    if unknown:
        parser.error(f"unknown peers {unknown}; there are {', '.join(measure.PEERS)}")
    if given.seconds <= 0 or given.rounds < 1:
        parser.error("seconds and rounds must be positive")
    if given.dry:
        given.seconds, given.rounds = 1e-3, 1
        sys.setswitchinterval(1e-5)  # the simulator's threads wait for one another
    return given


def main() -> None:
    given = arguments()
    began = time.perf_counter()
    try:
        driver.require_gpu()
        if driver.SIMULATED and not given.dry:
            raise nn.CudaError(
                "Numba's simulator has no speed to measure; "
                "unset NUMBA_ENABLE_CUDASIM, or pass --dry"
            )
    except nn.CudaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:6.0f} s] {text}", file=sys.stderr, flush=True)

    facts = gpu_facts.facts()
    modules, missing = measure.find(given.peers)
    names = {peer: module.NAME for peer, module in modules.items()}
    versions = {
        "numbanet": nn.__version__,
        "numba": numba.__version__,
        "numba-cuda": version("numba-cuda"),
    }
    versions |= {peer: module.VERSION for peer, module in modules.items() if peer != measure.OURS}
    results: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="numbanet-gpu-") as folder, lines.sizes(given.dry):
        for name in given.lines:
            try:
                results.append(
                    measure.measure(
                        name, modules, given.seconds, given.rounds, Path(folder), given.dry, say
                    )
                )
            except KeyboardInterrupt:
                say(f"{name}: stopped; what was measured before follows")
                break
            if given.json:
                everything = {
                    "gpu": facts,
                    "versions": versions,
                    "seconds": given.seconds,
                    "rounds": given.rounds,
                    "dry": given.dry,
                    "missing": missing,
                    "lines": results,
                }
                given.json.write_text(json.dumps(everything, indent=1))
    print(table.header(facts, versions, given.seconds, given.rounds), end="\n\n")
    print(table.summary(results, names))
    for result in results:
        print(f"\n{table.details(result, names, facts)}")
    for note in table.notes(results, missing, names):
        print(f"\nNote: {note}")


if __name__ == "__main__":
    main()
