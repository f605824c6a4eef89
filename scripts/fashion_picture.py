"""The picture of the README: fronts of one command on Fashion-MNIST beside what costs nothing.

    python scripts/fashion_picture.py FOLDER out=experiments/first_fronts

FOLDER holds the runs of ``experiments/first_fronts/README.md``, part 2: ``ours<S>`` and ``macs<S>``
with eight trained networks each, ``random<S>`` with sixteen, for every seed S. Written:
``front.png``, ``front.csv`` and a table of hypervolumes in Markdown to stdout.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev

import matplotlib as mpl
import numpy as np

from nas.artifacts.files import csv_table, write_atomic
from nas.pareto import hypervolume, non_dominated

Points = list[tuple[float, float]]  # (parameters, test accuracy)
METHODS = {
    "ours": ("nas search, 8 networks", "#1f5fbf", "-"),
    "macs": ("front of counted MACs, 8", "#888888", "--"),
    "random": ("random, 16", "#c9862b", ":"),
}


def networks(run: Path) -> Points:
    """The trained networks of a run, of its front or of its trials."""
    table = next(path for name in ("front.csv", "trials.csv") if (path := run / name).is_file())
    with table.open(encoding="utf-8", newline="") as file:
        return [(float(row["params"]), float(row["test_acc"])) for row in csv.DictReader(file)]


def errors(points: Points) -> np.ndarray:
    """(test error, log10 of the parameters), both to be minimised."""
    return np.array([(1 - accuracy, np.log10(params)) for params, accuracy in points])


def main(arguments: list[str]) -> None:
    """Read the runs, draw, and print the table."""
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    folder, out = Path(arguments[0]), Path(words["out"])
    seeds = sorted(path.name.removeprefix("ours") for path in folder.glob("ours*"))
    found = {m: {s: networks(folder / f"{m}{s}") for s in seeds} for m in METHODS}
    every = errors([point for runs in found.values() for own in runs.values() for point in own])
    corner = every.max(0) + 0.05 * np.ptp(every, axis=0)
    volumes = {m: [hypervolume(errors(found[m][s]), corner) for s in seeds] for m in METHODS}
    print(f"| hypervolume, seed | {' | '.join(seeds)} | mean |")
    print("|---" * (len(seeds) + 2) + "|")
    for method, (label, _, _) in METHODS.items():
        own = volumes[method]
        cells = " | ".join(f"{volume:.4f}" for volume in own)
        print(f"| {label} | {cells} | {mean(own):.4f} ± {pstdev(own):.4f} |")
    rows = [[m, s, int(p), a] for m in METHODS for s in seeds for p, a in sorted(found[m][s])]
    write_atomic(out / "front.csv", csv_table(["method", "seed", "params", "test_acc"], rows))
    draw(found, out / "front.png")


def draw(found: Mapping[str, Mapping[str, Points]], target: Path) -> None:
    """Mean of the seeds' best accuracy within a size, from the least to the largest seed."""
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=130)
    sizes = [p for runs in found.values() for own in runs.values() for p, _ in own]
    grid = np.geomspace(min(sizes), max(sizes), 400)
    for method, (label, colour, style) in METHODS.items():
        curves = np.array([_best(own, grid) for own in found[method].values()])
        seen = np.isfinite(curves).all(axis=0)
        axes.plot(grid[seen], curves[:, seen].mean(0), style, color=colour, lw=2, label=label)
        band = curves[:, seen].min(0), curves[:, seen].max(0)
        axes.fill_between(grid[seen], *band, color=colour, alpha=0.15, lw=0)
        for own in found[method].values():
            kept = [p for p, on in zip(own, non_dominated(errors(own)), strict=True) if on]
            axes.plot(*zip(*kept, strict=True), "o", color=colour, ms=3.5, alpha=0.7, mec="none")
    axes.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
    axes.set_xticks([20_000, 50_000, 100_000, 200_000], labels=["20k", "50k", "100k", "200k"])
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", title="mean and range of the seeds")
    figure.tight_layout()
    figure.savefig(target)


def _best(points: Points, grid: Sequence[float] | np.ndarray) -> list[float]:
    return [max((a for p, a in points if p <= size), default=np.nan) for size in grid]


if __name__ == "__main__":
    main(sys.argv[1:])
