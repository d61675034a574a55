"""Measure numbanet beside its peers and print a Markdown table, line by line.

    python -m benchmarks.peers --lines 1,4,lenet5-128 --seconds 4 --json peers.json
    python -m benchmarks.peers --readme peers.json

See the docstring of `benchmarks.peers` for what is compared and how.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import report, rounds, work
from benchmarks.peers.worker import PEERS


def arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__.splitlines()[0],
        epilog="lines: " + ", ".join(f"{i} {line.name}" for i, line in enumerate(work.LINES, 1)),
    )
    others = [peer for peer in PEERS if peer != report.OURS]
    parser.add_argument("--lines", help="names or numbers between commas (default: all)")
    parser.add_argument(
        "--peers",
        default=",".join(others),
        help=f"of {', '.join(others)} (default: those installed)",
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
    parser.add_argument(
        "--threads",
        default="1,2",
        help="every contender runs with each; its best counts (default: 1,2)",
    )
    parser.add_argument(
        "--isa",
        choices=list(rounds.INSTRUCTIONS),
        default="native",
        help="hold every contender to these vector instructions (default: native)",
    )
    parser.add_argument(
        "--readme", type=Path, help="measure nothing: print README's table of a file of --json"
    )
    parser.add_argument("--json", type=Path, help="write all figures there, after every line")
    parser.add_argument("--plot", type=Path, help="draw bars there (PNG; needs matplotlib)")
    given = parser.parse_args()
    try:
        given.lines = (
            [work.line(name.strip()) for name in given.lines.split(",")]
            if given.lines is not None
            else list(work.LINES)
        )
    except ValueError as error:
        parser.error(str(error))
    try:
        given.threads = [int(n) for n in given.threads.split(",")]
    except ValueError:
        parser.error(f"--threads needs integers between commas, got {given.threads!r}")
    given.peers = [peer for peer in given.peers.split(",") if peer]
    unknown = [peer for peer in given.peers if peer not in others]
    if unknown:
        parser.error(f"unknown peers {unknown}; there are {', '.join(others)}")
    if not 0 < given.seconds < math.inf or given.rounds < 1 or min(given.threads) < 1:
        parser.error("seconds, rounds and threads must be positive")
    if given.plot and given.plot.suffix.lower() != ".png":
        parser.error(f"--plot {given.plot}: the name of a PNG file is needed")
    for name in ("json", "plot"):
        if (path := getattr(given, name)) and not _can_be_written(path):
            parser.error(f"--{name} {path}: this file cannot be written")
    if given.readme:
        try:
            given.readme = report.readme(json.loads(given.readme.read_text()))
        except (OSError, ValueError, LookupError, TypeError) as error:
            parser.error(f"--readme {given.readme}: no file of --json: {error}")
    return given


def _can_be_written(path: Path) -> bool:
    """Whether a file may be written or replaced there."""
    return os.access(path if path.exists() else path.parent, os.W_OK) and not path.is_dir()


def main() -> None:
    given = arguments()
    if given.readme:
        print(given.readme)
        return
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:6.0f} s] {text}", file=sys.stderr, flush=True)

    facts, results, stopped = report.machine(), [], False
    abouts = {peer: rounds.once("about", peer) for peer in [report.OURS, *given.peers]}
    missing = {peer: about["missing"] for peer, about in abouts.items() if "missing" in about}
    if report.OURS in missing:
        sys.exit(
            f"numbanet cannot be imported ({missing[report.OURS]}); "
            "install it, or set PYTHONPATH=src"
        )
    abouts = {peer: about for peer, about in abouts.items() if peer not in missing}
    versions = {
        name: version for about in abouts.values() for name, version in about["versions"].items()
    }
    print(report.header(facts, versions, given.threads, given.seconds, given.isa), end="\n\n")
    print(report.heads(abouts), flush=True)

    def write_json() -> None:
        everything = {
            "machine": facts | {"load after": report.load()},
            "names": {peer: about["name"] for peer, about in abouts.items()},
            "versions": versions,
            "threads": given.threads,
            "seconds": given.seconds,
            "rounds": given.rounds,
            "isa": given.isa,
            "missing": missing,
            "lines": results,
        }
        if given.json:
            given.json.write_text(json.dumps(everything, indent=1))

    write_json()
    with tempfile.TemporaryDirectory(prefix="numbanet-peers-") as folder:
        for line in given.lines:
            try:
                result = rounds.measure(
                    line,
                    abouts,
                    given.threads,
                    given.seconds,
                    given.rounds,
                    Path(folder),
                    say,
                    given.isa,
                )
            except KeyboardInterrupt:
                say(f"{line.name}: stopped")
                stopped = True
                break
            results.append(result)
            print(report.table_row(result, abouts), flush=True)
            write_json()
    peaks: dict[int, float] = {}
    for result in results:
        for n, peak in result["peaks"].items():
            peaks[n] = max(peaks.get(n, 0.0), peak)
    if peaks:
        found = ", ".join(f"{peak / 1e9:.0f} GFLOP/s on {n} t" for n, peak in peaks.items())
        print(f"\nFMA peak: {found}")
    for note in report.notes(results, missing, given.isa):
        print(f"\nNote: {note}")
    if given.plot and results:
        report.plot(results, abouts, given.plot)
    if stopped:
        sys.exit(130)


if __name__ == "__main__":
    main()
