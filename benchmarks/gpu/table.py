"""The tables, from the records of `measure`."""

from benchmarks.gpu import lines
from benchmarks.gpu.measure import OURS
from benchmarks.peers.report import duration

ASKED_SECONDS = 0.76
"""Seconds in which 99 % are to be reached."""


def header(facts: dict, versions: dict, seconds: float, rounds: int) -> str:
    """GPU, versions, times; one paragraph."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    can = (
        (
            f", compute capability {facts['capability']}, {facts['peak'] / 1e12:.1f} TFLOP/s "
            "float32 at most, a copy moves "
            f"{facts['bandwidth'] / 1e12:.2f} TB/s"
        )
        if facts["peak"]
        else ""
    )
    return (
        f"{facts['name']}, {facts['multiprocessors']} multiprocessors{can}; {packages}; float32; "
        f"{seconds:g} s a measurement "
        f"in {rounds} turns."
    )


def median(row: dict) -> float | None:
    return row["quartiles"][1] if row["quartiles"] and not row["note"] else None


def ours(result: dict) -> float | None:
    return next((median(row) for row in result["contenders"] if row["peer"] == OURS), None)


def best(result: dict) -> dict | None:
    """The fastest row of a peer."""
    rows = [
        row
        for row in result["contenders"]
        if row["peer"] != OURS and not row["aside"] and median(row)
    ]
    return min(rows, key=median, default=None)


def eager(result: dict) -> dict | None:
    return next(
        (row for row in result["contenders"] if row["variant"] == "eager" and median(row)), None
    )


def over(row: dict | None, result: dict) -> str:
    """A row's time over ours."""
    mine = ours(result)
    return f"{median(row) / mine:.2f}×" if row and mine else "-"


def summary(results: list[dict], names: dict) -> str:
    """A line each: our speed, the ratios, what was asked for."""
    found = [
        "| line | numbanet | PyTorch eager / numbanet | best peer / numbanet | asked of eager |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        mine, first = ours(result), best(result)
        goal = result["line"] == lines.GOAL
        speed = (
            "-"
            if mine is None
            else duration(mine)
            if goal
            else f"{result['samples'] / mine:,.0f} samples/s"
        )
        asked = (
            f"≤ {ASKED_SECONDS} s" if goal else f"{result['asked']}×" if result["asked"] else "-"
        )
        who = (
            f"{over(first, result)} ({names[first['peer']]}, {first['variant']})"
            if first and mine
            else "-"
        )
        found.append(
            f"| {title(result)} | {speed} | {over(eager(result), result)} | {who} | {asked} |"
        )
    return "\n".join(found)


def title(result: dict) -> str:
    return (
        "MNIST to 99 %, LeNet-5, Adam, batch 256"
        if result["line"] == lines.GOAL
        else result["title"]
    )


def details(result: dict, names: dict, facts: dict) -> str:
    """A line's contenders, a row each."""
    goal = result["line"] == lines.GOAL
    heads = [
        "contender",
        "seconds" if goal else "samples/s: median (quartiles)",
        *([] if goal else ["a step or call", "epochs alone"]),
        "time / numbanet's",
        *([] if goal else ["of fp32 peak", "of bandwidth", "off from float64"]),
        "epochs" if goal else "loss of one epoch",
        "accuracy or R² after it",
    ]
    found = [f"**{title(result)}**", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in result["contenders"]:
        if median(row) is None:
            continue
        low, middle, high = row["quartiles"]
        n, result_of = result["samples"], row["result"]
        who = (
            names[row["peer"]]
            + (f", {row['variant']}" if row["peer"] != OURS else "")
            + (" (not compared)" * row["aside"])
        )
        score = f"{result_of['score']:.2%}" if result_of else "-"
        if goal:
            cells = [
                who,
                f"{duration(middle)} ({duration(low)} – {duration(high)})",
                over(row, result),
                str(result_of["epochs"]),
                score,
            ]
        else:
            cells = [
                who,
                f"{n / middle:,.0f} ({n / high:,.0f} – {n / low:,.0f})",
                duration(middle),
                duration(row["inside"]) if row["inside"] else "-",
                over(row, result),
                share(result["flops"] / middle, facts["peak"]),
                share(result["bytes"] / middle, facts["bandwidth"]),
                f"{row['check']['off']:.1e}",
                f"{result_of['loss']:.5f}" if result_of else "-",
                score,
            ]
        found.append("| " + " | ".join(cells) + " |")
    return "\n".join(found)


def share(rate: float, most: float | None) -> str:
    return f"{rate / most:.1%}" if most else "-"


def notes(results: list[dict], missing: dict, names: dict) -> list[str]:
    """What was left out, and why."""
    found = [f"{peer} was left out: {why}" for peer, why in missing.items()]
    found += dict.fromkeys(result["note"] for result in results if result["note"])
    return found + [
        f"{result['line']}: {names[row['peer']]} ({row['variant']}) left out, {row['note']}"
        for result in results
        for row in result["contenders"]
        if row["note"]
    ]
