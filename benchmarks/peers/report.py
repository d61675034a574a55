"""The table line by line, README's table, and the plot, from the records of `rounds.measure`."""

import os
import platform
from pathlib import Path
from statistics import median

from benchmarks.peers import work

OURS = "numbanet"
PACKAGE_OF = {
    "pytorch": "torch",
    "jax": "jax",
    "sklearn": "scikit-learn",
    "onnxruntime": "onnxruntime",
}
"""Whose version README gives."""
TOLD = ("fma", "avx", "avx2", "avx512f", "amx_tile")
"""Vector features that the header names; the JSON has all."""


def machine() -> dict:
    """What a figure depends on: processor, cores of this process, vector features, load."""
    facts: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    if path.exists():
        pairs = (
            text.split(":", 1)
            for text in path.read_text().split("\n\n")[0].splitlines()
            if ":" in text
        )
        facts = {key.strip(): value.strip() for key, value in pairs}
    features = [
        flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "fma", "amx"))
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = facts.get("model name", platform.processor() or platform.machine())
    return {
        "processor": name,
        "cores": cores,
        "features": features,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": load(),
    }


def load() -> float | None:
    """The machine's load over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def duration(seconds: float) -> str:
    """Seconds in a unit that reads well, three digits."""
    for unit, size in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def header(facts: dict, versions: dict, threads: list, seconds: float, isa: str) -> str:
    """Machine, versions, threads; one paragraph."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    features = " ".join(name for name in facts["features"] if name in TOLD)
    held = "" if isa == "native" else f", all held to {isa.upper()}"
    loads = f", load {facts['load']:.2f} before" if facts["load"] is not None else ""
    return (
        f"{facts['processor']}, {facts['cores']} cores ({features}), "
        f"{facts['system']}{held}{loads}; Python {facts['python']}, "
        f"{packages}; float32, threads {' and '.join(map(str, threads))}, the best counts; "
        f"{seconds:g} s a measurement."
    )


def ratio(result: dict) -> float | None:
    """The best peer's time over ours."""
    rows, best = result["contenders"], result["best"]
    peers = [rows[k]["quartiles"][1] for peer, k in best.items() if peer != OURS]
    return min(peers) / rows[best[OURS]]["quartiles"][1] if peers and OURS in best else None


def share(result: dict) -> float | None:
    """Our arithmetic over what the processor could do on the most threads measured."""
    if OURS not in result["best"] or not result["peaks"]:
        return None
    seconds = result["contenders"][result["best"][OURS]]["quartiles"][1]
    return result["flops"] / seconds / max(result["peaks"].values())


def cell(row: dict, single: bool) -> str:
    """A best time with its variant and threads."""
    how = f"{row['threads']} t" if single else f"{row['variant']}, {row['threads']} t"
    return f"{duration(row['quartiles'][1])} ({how})"


def heads(abouts: dict) -> str:
    """The first two lines of the Markdown table."""
    names = [
        "line",
        "numbanet: median (quartiles)",
        "its epochs alone",
        *(abouts[peer]["name"] for peer in abouts if peer != OURS),
        "best peer / numbanet",
        "asked",
        "share of FMA peak",
        "peak of all threads / of one: median (lowest)",
        "after one epoch",
    ]
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def table_row(result: dict, abouts: dict) -> str:
    """A line of the Markdown table."""
    rows, best = result["contenders"], result["best"]
    cells = [result["title"]]
    if OURS in best:
        row = rows[best[OURS]]
        low, _, high = row["quartiles"]
        cells.append(f"{cell(row, True)} ({duration(low)} – {duration(high)})")
    else:
        cells.append("-")
    inside = rows[best[OURS]]["inside"] if OURS in best else None
    cells.append(duration(inside) if inside else "-")
    for peer in abouts:
        if peer != OURS:
            single = len(abouts[peer]["variants"][result["line"]]) == 1
            cells.append(cell(rows[best[peer]], single) if peer in best else "-")
    found, part = ratio(result), share(result)
    cells += [
        f"{found:.2f}×" if found else "-",
        f"{result['asked']}×" if result["asked"] else "≤ 1 µs",
        f"{part:.1%}" if part else "-",
        f"{median(result['ratios']):.2f} ({min(result['ratios']):.2f})"
        if result["ratios"]
        else "-",
        scores(result, abouts),
    ]
    return "| " + " | ".join(cells) + " |"


def readme(record: dict) -> str:
    """README's table, from a record that --json wrote: the time of each library at its best."""
    names = {peer: name for peer, name in record["names"].items() if peer != OURS}
    versions = record["versions"]
    heads = [
        f"{name} {'.'.join(versions[PACKAGE_OF[peer]].split('.')[:2])}"
        for peer, name in names.items()
    ]
    lines = ["| | numbanet | " + " | ".join(heads) + " | best other / numbanet |"]
    lines.append("|" + "---|" * (len(heads) + 3))
    for result in record["lines"]:
        rows, best = result["contenders"], result["best"]
        times = {peer: duration(rows[k]["quartiles"][1]) for peer, k in best.items()}
        found = ratio(result)
        cells = [f"**{times[OURS]}**" if OURS in times else "–"]
        cells += [times.get(peer, "–") for peer in names]
        lines.append(
            f"| {result['title']} | {' | '.join(cells)} | {f'{found:.1f}' if found else '–'} |"
        )
    return "\n".join(lines)


def scores(result: dict, abouts: dict) -> str:
    """Accuracy (or R²) after one epoch, ours first."""
    found = {peer: score for peer, score in result["scores"].items() if score is not None}
    kind = "" if work.line(result["line"]).has_classes else "R² "
    return (
        kind + ", ".join(f"{abouts[peer]['name']} {score:.2%}" for peer, score in found.items())
        if found
        else "-"
    )


def notes(results: list[dict], missing: dict, isa: str) -> list[str]:
    """What was left out, and why; what was measured again."""
    found = [f"{peer} is not installed ({why}), it was left out" for peer, why in missing.items()]
    measured = {row["peer"] for result in results for row in result["contenders"]}
    if isa != "native" and "onnxruntime" in measured:
        found.append(f"ONNX Runtime cannot be held to {isa.upper()}: it used all the processor has")
    found += sorted({result["note"] for result in results if result["note"]})
    for result in results:
        if result["repeated"]:
            found.append(
                f"{result['line']}: {result['repeated']} turns were measured again, because the "
                "peak of all threads around them was low"
            )
        for row in result["contenders"]:
            if row["note"]:
                who = f"{row['peer']} ({row['variant']}, {row['threads']} t)"
                found.append(f"{result['line']}: {who} left out, {row['note']}")
    return found


def plot(results: list[dict], abouts: dict, path: Path) -> None:
    """Horizontal bars: for each line how many times longer than numbanet each peer takes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept = [result for result in results if OURS in result["best"] and ratio(result)]
    peers = [peer for peer in abouts if any(peer in result["best"] for result in kept)]
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.9 * len(kept)))
    height = 0.85 / max(1, len(peers))
    for i, peer in enumerate(peers):
        places, lengths, texts = [], [], []
        for k, result in enumerate(kept):
            if peer in result["best"]:
                rows, best = result["contenders"], result["best"]
                seconds = rows[best[peer]]["quartiles"][1]
                places.append(k + (i - (len(peers) - 1) / 2) * height)
                lengths.append(seconds / rows[best[OURS]]["quartiles"][1])
                texts.append(f" {duration(seconds)}")
        bars = axes.barh(places, lengths, height, label=abouts[peer]["name"])
        axes.bar_label(bars, texts, fontsize=7)
    axes.set_yticks(range(len(kept)), [result["title"] for result in kept], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time over numbanet's (each at its best; left of 1 is faster)")
    axes.margins(x=0.12)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)
