"""CPU seconds and peak memory of a command: until it ends, or until its first training step.

python scripts/bench_start.py [--runs 3] [--whole]
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FIRST = "_target_=bench_start.first_step"
ROWS = {
    "nas --help": ["--help"],
    "a refused name": ["search", "data=didgits"],
    "a refused value": ["search", "finetune.epochs=-1"],
    "a refused argument of a trainer": ["search", "trainer.accelerator=gpux"],
    "nas describe trial=false": ["describe", "trial=false"],
    "nas search, first step": ["search", f"finetune.optimizer.{FIRST}"],
    "nas search search=bilevel, first step": [
        "search",
        "search=bilevel",
        f"search.weight_optimizer.{FIRST}",
    ],
}
WHOLE = {"nas search": ["search"]}


def first_step(parameters: Any, **options: Any) -> Any:
    """An optimizer whose first step ends the process."""
    import torch  # not above: what this process holds would count as the peak of those it starts

    class FirstStep(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            if closure is not None:
                closure()
            os._exit(0)

    return FirstStep(parameters, **options)


def measured(words: list[str]) -> tuple[float, float, float]:
    """CPU seconds, peak MB and wall seconds of one command, with its processes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path[:1], *paths()])}
    with tempfile.TemporaryDirectory() as folder:
        began = os.times().elapsed
        process = subprocess.Popen(
            [sys.executable, "-m", "nas.cli", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, _, used = os.wait4(process.pid, 0)
        return cpu(used), used.ru_maxrss / 1024, os.times().elapsed - began


def cpu(used: resource.struct_rusage) -> float:
    """User and system seconds."""
    return used.ru_utime + used.ru_stime


def paths() -> list[str]:
    """Where this repository and what else is on the path are found."""
    return [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]


def main() -> None:
    """Print a table: medians of the runs, which are interleaved."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="a whole search, too")
    given = parser.parse_args()
    rows = {**ROWS, **(WHOLE if given.whole else {})}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rows}
    for _ in range(given.runs):
        for name, words in rows.items():
            found[name].append(measured(words))
    print("| command | CPU s | peak MB | wall s |\n|---|---|---|---|")
    for name, runs in found.items():
        seconds, peak, wall = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {seconds:.2f} | {peak:.0f} | {wall:.1f} |")


if __name__ == "__main__":
    main()
