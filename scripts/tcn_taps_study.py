"""Does a search of taps and channels beat dilations that are set by hand?

    python scripts/tcn_taps_study.py OUT [--seeds 3]

The digits of scikit-learn as sequences of 64 values, and a causal TCN of three layers of 17 taps,
trained. `nas search model=` makes it fit a part of its MACs, by taps and channels together and by
each alone. Beside it: a network drawn at random inside each budget, fine-tuned alike; and TCNs of
kernels, dilations and widths set by hand, trained from fresh weights for as many epochs as both
trainings take together. None has a teacher.

What is in OUT is not done again. Prints the tables of experiments/compress.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.cli import run as nas
from nas.config.compose import compose_config, with_budgets
from nas.config.model import with_model
from nas.decision import decisions
from nas.pareto import hypervolume
from nas.pipeline import Run
from nas.problem import SearchProblem
from nas.verbs import components_of

GIVEN, FINE = 16, 8  # epochs
LARGEST = (17, (1, 1, 1), 32)  # kernel, dilations, width
BY_HAND = [
    *((kernel, (1, 2, 4), width) for kernel in (3, 5, 9) for width in (8, 16)),
    *((kernel, (1, 1, 1), 16) for kernel in (5, 9)),
]
BUDGETS = (1.25, 2.5, 5, 10)  # percent of the MACs
KERNELS = "space.rules.kernels={sizes: [3, 5, 9], dilations: [2, 4, 8]}"
BOTH = [KERNELS, "space.rules.channels.choices=4"]
# Name -> its words, and the budgets that it can meet.
SEARCHES: Mapping[str, tuple[Sequence[str], Sequence[float]]] = {
    "taps and channels": (BOTH, BUDGETS),
    "random taps and channels": ([*BOTH, "search.searcher=random", "search.trials=1"], BUDGETS),
    "channels": ([], BUDGETS[1:]),
    "taps": ([KERNELS, "space.rules.channels=null"], BUDGETS[-1:]),
}
WORST = 0.25, 0.25  # error and share of the MACs at which the hypervolume begins


class Row(NamedTuple):
    """A trained network."""

    name: str
    budget: float | None
    macs: float
    accuracy: float


def tcn(kernel: int, dilations: Sequence[int], width: int) -> nn.Sequential:
    """Causal convolutions with BatchNorm and ReLU, the mean over time, and a linear layer."""
    rows: list[nn.Module] = []
    inputs = 1
    for step in dilations:
        pad = nn.ConstantPad1d(((kernel - 1) * step, 0), 0.0)
        conv = nn.Conv1d(inputs, width, kernel, dilation=step, bias=False)
        rows += [pad, conv, nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*rows, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 10))


class Study:
    """One seed: of data, weights and draws."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out = out / str(seed)
        path = self.out / "digits.npz"
        if not path.exists():
            self.out.mkdir(parents=True, exist_ok=True)
            x, y = load_digits(return_X_y=True)
            order = np.random.default_rng(seed).permutation(len(y))
            x, y = (x[order].reshape(-1, 1, 64) / 8 - 1).astype(np.float32), y[order]
            np.savez(path, x=x[:1200], y=y[:1200], x_test=x[1200:], y_test=y[1200:])
        self.words = ["data=arrays", f"data.path={path}", "data.batch_size=32", f"seed={seed}"]
        self.words += ["onnx=false", "threads=1", "logger=[]"]
        self.words += ["trainer.enable_progress_bar=false", f"out={self.out}"]

    def rows(self) -> Iterator[Row]:
        """All its networks, the given one first."""
        yield self.trained("given", LARGEST, GIVEN)
        yield from self.all_searched("taps and channels")
        for kernel, dilations, width in BY_HAND:
            name = f"by hand, kernel {kernel}, dilations {dilations}, width {width}"
            yield self.trained(name, (kernel, dilations, width), GIVEN + FINE)
        for name in list(SEARCHES)[1:]:
            yield from self.all_searched(name)

    def all_searched(self, name: str) -> Iterator[Row]:
        """The networks that a search finds inside each budget."""
        words, budgets = SEARCHES[name]
        return (self.searched(name, words, budget) for budget in budgets)

    def trained(self, name: str, sizes: tuple[int, Sequence[int], int], epochs: int) -> Row:
        """A TCN of these sizes, trained from fresh weights."""
        run = RunDir(self.out / name.replace(" ", "_"))
        if not run.finished:
            words = [*self.words, *model(*sizes), "finetune=default", f"finetune.epochs={epochs}"]
            config = compose_config(with_budgets(with_model([*words, "name=x"])))
            problem = SearchProblem(**components_of(config))
            own = decisions(problem.supernet)
            arch = Arch(problem.space, {path: one.options[-1] for path, one in own})
            run.create()
            Run(problem, run, arch)()
        return row(name, None, run)

    def searched(self, name: str, words: Sequence[str], budget: float) -> Row:
        """The network that `nas search model=` finds."""
        run = RunDir(self.out / f"{name.replace(' ', '_')}-{budget}")
        if not run.finished:
            words = [*self.words, *model(*LARGEST), *words, f"budget.macs={budget}%"]
            words += [f"model.weights={self.out}/given/network.pt", f"name={run.path.name}"]
            words += [f"finetune.epochs={FINE}", "finetune.teacher=null", "resume=true"]
            assert nas(["search", *words]) == 0
        return row(name, budget, run)


def model(kernel: int, dilations: Sequence[int], width: int) -> list[str]:
    """Words that name a TCN."""
    sizes = {"kernel": kernel, "dilations": f"[{','.join(map(str, dilations))}]", "width": width}
    return ["model=tcn_taps_study:tcn", *(f"model.args.{n}={value}" for n, value in sizes.items())]


def row(name: str, budget: float | None, run: RunDir) -> Row:
    """What the tables say of a finished run."""
    result = run.read_result() or {}
    return Row(name, budget, result["costs"]["macs"], result["metrics"]["test_acc"])


def tell(seeds: Sequence[Sequence[Row]]) -> None:
    """Each network over the seeds, and what the fronts have that they make."""
    cells: dict[tuple[str, float | None], list[Row]] = defaultdict(list)
    volumes: dict[str, list[float]] = defaultdict(list)
    for rows in seeds:
        fronts: dict[str, list[Row]] = defaultdict(list)
        for one in rows:
            cells[one.name, one.budget].append(one)
            fronts[one.name.partition(",")[0]].append(one)
        largest = rows[0].macs
        for budget in BUDGETS:
            inside = [r for r in fronts.get("by hand", ()) if r.macs <= largest * budget / 100]
            if inside:
                best = max(inside, key=lambda r: r.accuracy)
                cells["the best by hand, by its test accuracy", budget].append(best)
        for name, own in fronts.items():
            points = np.array([(1 - r.accuracy, log(r.macs / largest)) for r in own])
            points = (points - (0, log(0.01))) / (WORST[0], log(WORST[1] / 0.01))
            volumes[name].append(hypervolume(points, (1.0, 1.0)))
    print("\n| network | MACs at most | test accuracy | MACs | seeds |\n|---|---|---|---|---|")
    for (name, bound), several in cells.items():
        accuracy = spread([100 * r.accuracy for r in several], 2)
        macs = mean(r.macs for r in several) / 1000
        most = f"{bound} %" if bound else ""
        print(f"| {name} | {most} | {accuracy} % | {macs:.1f} k | {len(several)} |")
    print("\n| front of | hypervolume |\n|---|---|")
    for name, values in volumes.items():
        print(f"| {name} | {spread(values, 3)} |", flush=True)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    found = f"{mean(values):.{digits}f}"
    return f"{found} +- {stdev(values):.{digits}f}" if len(values) > 1 else found


def main() -> None:
    """Do what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    studies = [Study(given.out.absolute(), seed) for seed in range(given.seeds)]
    seeds: list[list[Row]] = [[] for _ in studies]
    for several in zip(*(study.rows() for study in studies), strict=True):
        for own, one in zip(seeds, several, strict=True):
            own.append(one)
        tell(seeds)


if __name__ == "__main__":
    main()
