"""Searchers on a table where every answer is known: NAS-Bench-201, nothing trained.

    python scripts/searchers_study.py nas_bench_201_dev.csv out=FOLDER [device=silver_4114]
        [seeds=10] [names=predictor,nsga2] [budgets=50,200,1000]

A searcher sees the validation accuracy, or with ``see=test`` the test accuracy, and the latency of
what it asks for; parameters and MACs it knows before, as in ``nas search space=nas_bench_201``.
Reported at so many different evaluations: the best test accuracy, and the hypervolume of (test
error in %, latency in ms) of all that was evaluated, up to 25 % and the latency in `DEVICES`, over
that of the whole table. Row ``macs`` is the front of counted MACs over parameters, thinned.
Rows are appended to ``FOLDER/DEVICE_see_val.csv``; those there are kept.
"""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, pstdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import expected
from nas.cost.trace import trace
from nas.pareto import hypervolume
from nas.search.evolution import NSGA2, RegularisedEvolution
from nas.search.predictor import Predictor
from nas.search.searchers import TPE, RandomSearch, search
from nas.search.space import Searcher, SearchSpace
from nas.search.trials import Trial, TrialLog
from nas.spaces.nas_bench_201 import EDGES, NasBench201, parse

# Column of the table -> where the latency ends that counts, in ms: a little beyond the true front.
DEVICES = {"raspi4": 60.0, "silver_4114": 30.5, "1080ti_1": 14.0}
OBJECTIVES = ("val_acc", "latency_ms")
Table = dict[Arch, dict[str, float]]


class MostMACs(Searcher):
    """The front of counted MACs over parameters, as many as there are of it; nothing is learned."""

    def __init__(self, space: SearchSpace, seed: int, objectives: Sequence[str]) -> None:
        self.left = space.most_macs("params", 1000, np.random.default_rng(seed))

    def ask(self, count: int) -> Sequence[Arch]:
        return [self.left.pop(0) for _ in range(min(count, len(self.left)))]


SEARCHERS: dict[str, Callable[..., Any]] = {
    "macs": MostMACs,
    "random": RandomSearch,
    "evolution": RegularisedEvolution,
    "nsga2": NSGA2,
    "tpe": TPE,
    "predictor": Predictor,
}


class Memory(TrialLog):
    """Trials of a search that is not worth a file."""

    def append(self, trial: Trial) -> None:
        self.known[trial.arch.hash] = trial


def read(path: Path, device: str) -> tuple[SearchSpace, Table]:
    """The space, and what the table says of each of its architectures."""
    supernet = NasBench201((3, 32, 32), 10)
    traced = trace(supernet, (3, 32, 32))
    costs = {
        "params": expected(supernet, Params(), traced),
        "macs": expected(supernet, MACs(), traced),
    }
    space = SearchSpace.of(supernet, "nas_bench_201", costs, {})
    names = [f"cell.{source}_{to}" for source, to in EDGES]
    table = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            arch = Arch(space.name, dict(zip(names, parse(row["arch_str"]), strict=True)))
            table[arch] = {
                "val": float(row["cifar10_val_acc"]) / 100,
                "test": float(row["cifar10_test_acc"]) / 100,
                "latency_ms": float(row[f"latency_{device}"]),
            }
    return space, table


def points(values: Sequence[dict[str, float]]) -> list[list[float]]:
    """(test error in %, latency in ms)."""
    return [[100 * (1 - v["test"]), v["latency_ms"]] for v in values]


def run(
    make: Callable[..., Any], space: SearchSpace, table: Table, see: str, seed: int, count: int
) -> tuple[list[dict[str, float]], float]:
    """What the searcher evaluated, in order, and the seconds it took to choose them."""
    with TemporaryDirectory() as folder:
        log = Memory(Path(folder) / "trials.jsonl")

        def evaluate(archs: Sequence[Arch]) -> None:
            for arch in archs:
                known = table[arch]
                seen = {"val_acc": known[see], "latency_ms": known["latency_ms"]}
                log.append(Trial(arch, seen))

        started = time.process_time()
        searcher = make(space, seed, OBJECTIVES)
        found = search(searcher, evaluate, log, count)
        return [table[trial.arch] for trial in found], time.process_time() - started


def main(arguments: list[str]) -> None:
    """Every searcher, every seed; what the result file holds already is left."""
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    path = Path(next(word for word in arguments if "=" not in word))
    see, seeds = words.get("see", "val"), int(words.get("seeds", "10"))
    device = words.get("device", "raspi4")
    budgets = [int(count) for count in words.get("budgets", "50,200,1000").split(",")]
    names = words.get("names", ",".join(SEARCHERS)).split(",")
    out = Path(words["out"]) / f"{device}_see_{see}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if out.exists():
        with out.open(encoding="utf-8", newline="") as file:
            done = {(row["searcher"], row["seed"]) for row in csv.DictReader(file)}
    space, table = read(path, device)
    reference = (25.0, DEVICES[device])
    whole = hypervolume(points(list(table.values())), reference)
    print(f"{len(table)} architectures, hypervolume of the true front {whole:.2f}")
    for seed in range(seeds):
        for name in names:
            if (name, str(seed)) in done:
                continue
            found, seconds = run(SEARCHERS[name], space, table, see, seed, max(budgets))
            lines = []
            for budget in budgets:
                first = found[:budget]
                share = hypervolume(points(first), reference) / whole
                best = max(v["test"] for v in first)
                picked = max(first, key=lambda v: v["val"])["test"]
                lines.append([name, seed, budget, f"{share:.5f}", f"{best:.5f}", f"{picked:.5f}"])
            with out.open("a", encoding="utf-8") as file:
                if file.tell() == 0:
                    file.write("searcher,seed,evaluations,hypervolume,best_test,picked_test,cpu\n")
                file.writelines(f"{','.join(map(str, line))},{seconds:.1f}\n" for line in lines)
            print(name, seed, [line[3] for line in lines], f"{seconds:.1f} s", flush=True)
    print(summary(out, budgets))


def summary(path: Path, budgets: Sequence[int]) -> str:
    """Mean and standard deviation over the seeds, as a table in Markdown."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| searcher | " + " | ".join(f"{b} evaluations" for b in budgets) + " | CPU s |"]
    lines.append("|---" * (len(budgets) + 2) + "|")
    for name in dict.fromkeys(row["searcher"] for row in rows):
        own = [row for row in rows if row["searcher"] == name]
        cells = [_cell([row for row in own if row["evaluations"] == str(b)]) for b in budgets]
        seconds = mean(float(row["cpu"]) for row in own)
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def _cell(rows: Sequence[dict[str, str]]) -> str:
    volumes = [100 * float(row["hypervolume"]) for row in rows]
    best = mean(100 * float(row["best_test"]) for row in rows)
    return f"{mean(volumes):.1f} ± {pstdev(volumes):.1f} % ({best:.2f} %)"


if __name__ == "__main__":
    main(sys.argv[1:])
