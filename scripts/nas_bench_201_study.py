"""What runs on the space `nas_bench_201` found, looked up in a table of trained networks.

    python scripts/nas_bench_201_study.py RUNS --truth nas_bench_201_dev.csv --out study.csv

RUNS is a folder of runs; each one's `arch.json` is the cell found, and its `last.ckpt` knows the
cells that were best after each epoch. The truth is a CSV with a column `arch_str` (the cell in the
published notation) and one of accuracies. Prints a Markdown table, one row per method (the first
part of a run's name, before the last underscore), and writes one CSV row per run and epoch.
"""

import argparse
import csv
import statistics
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from nas.arch import Arch
from nas.artifacts import RunDir, find_runs
from nas.spaces.nas_bench_201 import EDGES, OPS, cell_of, parse, render


@dataclass(frozen=True)
class Row:
    """A cell that was the best after an epoch of a run, or (epoch -1) the one found."""

    method: str
    seed: int
    epoch: int
    cell: str
    accuracy: float  # %
    better: float  # share of all cells that are better, %
    skips: int
    weightless: int  # edges without weights: none, skip_connect, avg_pool_3x3
    seconds: float  # of the search

    @classmethod
    def of(
        cls, method: str, seed: int, epoch: int, cell: str, truth: "Truth", seconds: float
    ) -> "Row":
        ops = parse(cell)
        return cls(
            method,
            seed,
            epoch,
            cell,
            truth.accuracy[cell],
            round(100 * truth.share_better(cell), 2),
            ops.count("skip_connect"),
            sum(not op.startswith("nor_conv") for op in ops),
            round(seconds, 1),
        )


class Truth:
    """Cell -> accuracy, of all trained networks."""

    def __init__(self, path: Path, column: str) -> None:
        with path.open(newline="") as file:
            self.accuracy = {row["arch_str"]: float(row[column]) for row in csv.DictReader(file)}
        self.sorted = sorted(-value for value in self.accuracy.values())

    def share_better(self, cell: str) -> float:
        return bisect_left(self.sorted, -self.accuracy[cell]) / len(self.sorted)


def rows(runs: Path, truth: Truth) -> Iterator[Row]:
    for run in find_runs(runs):
        result = run.read_result()
        if result is None or result.get("status") != "finished":
            continue
        method, seed = run.path.name.rpartition("_")[0], int(result["seed"])
        seconds = float(result["seconds"]["search"])
        for epoch, cell in enumerate(course(run)):
            yield Row.of(method, seed, epoch, cell, truth, seconds)
        yield Row.of(method, seed, -1, cell_of(Arch.load(run.arch)), truth, seconds)


def course(run: RunDir) -> list[str]:
    """The best cell after each epoch, from what was kept for the heat maps."""
    if not run.checkpoint.is_file():
        return []
    states = torch.load(run.checkpoint, weights_only=True)["callbacks"]
    history = next(state["history"] for name, state in states.items() if "Telemetry" in name)
    best = history.view(len(history), len(EDGES), len(OPS)).argmax(-1)
    return [render([OPS[k] for k in line]) for line in best.tolist()]


def table(found: list[Row]) -> str:
    lines = [
        "| method | accuracy of the cell found | better cells | skips of 6 | edges without weights "
        "| best cell on the way | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    methods: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        methods[row.method].append(row)
    for method, own in methods.items():
        last = [row for row in own if row.epoch == -1]
        way = [max(row.accuracy for row in own if row.seed == end.seed) for end in last]
        lines.append(
            f"| {method} | {joined(row.accuracy for row in last)} | "
            f"{joined((row.better for row in last), ' %')} | "
            f"{joined((row.skips for row in last), digits=0)} | "
            f"{joined((row.weightless for row in last), digits=0)} | {joined(way)} | "
            f"{statistics.fmean(row.seconds for row in last):.0f} |"
        )
    return "\n".join(lines)


def joined(values: "Iterator[float] | list[float]", unit: str = "", digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}{unit}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--truth", type=Path, required=True, help="CSV of all trained cells")
    parser.add_argument("--column", default="cifar10_test_acc", help="of the truth")
    parser.add_argument("--out", type=Path, help="CSV, one row per run and epoch")
    args = parser.parse_args()
    found = list(rows(args.runs, Truth(args.truth, args.column)))
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in found)
    print(table(found))


if __name__ == "__main__":
    main()
