"""Seconds and mean returns of the examples that balance a pole, over several seeds.

python -m benchmarks.balance [SEEDS]
"""

import argparse
import importlib
import statistics
import sys
from pathlib import Path

SOLVED = 475
"""Mean return over 100 episodes at which CartPole-v1 counts as solved."""
EXAMPLES = {"cartpole": "policy gradient", "ppo": "PPO, 500,000 steps"}


def line(name: str, seeds: int) -> str:
    """What an example takes on one core after compilation, and how many seeds solve it."""
    folder = str(Path(__file__).parents[1] / "examples")
    sys.path.insert(0, folder)  # Numba looks for the modules of code that it has cached
    try:
        example = importlib.import_module(name)
        runs = [example.learn(seed) for seed in range(seeds)]
    finally:
        sys.path.remove(folder)
    seconds, solved = [run[1] for run in runs], sum(run[2] >= SOLVED for run in runs)
    return (
        f"{EXAMPLES[name]}: {solved} of {seeds} seeds reach {SOLVED}, median "
        f"{statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s"
    )


def main() -> None:
    """Print a line for each example."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.balance", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("seeds", type=int, nargs="?", default=10, help="how many (default: 10)")
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error(f"at least 1 seed is needed, got {given.seeds}")
    for name in EXAMPLES:
        print(line(name, given.seeds), flush=True)


if __name__ == "__main__":
    main()
