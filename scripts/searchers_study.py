"""Searchers on a table where every answer is known, nothing trained.

    python scripts/searchers_study.py nas_bench_201_dev.csv out=FOLDER [device=silver_4114]
        [seeds=10] [names=predictor,nsga2] [budgets=50,200,1000]
    python scripts/searchers_study.py experiments/ground_truth/truth.csv out=FOLDER budgets=8,16,32

A searcher sees the validation accuracy, or with ``see=test`` the test accuracy, of what it asks
for, and knows parameters and MACs before, as in ``nas search``. Of NAS-Bench-201 it also sees the
latency. Of a table as `ground_truth.Truth` reads it, seed n of a searcher sees the trainings of one
seed of the table, and is judged by the mean over all of them.

Reported at so many different evaluations: the best test accuracy, and the hypervolume of all that
was evaluated over that of the whole table, of (test error in %, latency in ms) up to 25 % and the
latency in `DEVICES`; or as `Truth.share`. Row ``macs`` is the front of counted MACs over
parameters, thinned. Rows are appended to ``FOLDER/DEVICE_see_val.csv``; those there are kept.
"""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, pstdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ground_truth import Truth  # beside this file
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from nas.arch import Arch
from nas.config.help import config_dir
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
SHAPES = {"truth": (1, 28, 28), "truth_mobile": (3, 24, 24)}  # of the images, by space
Table = dict[Arch, dict[str, float]]


@dataclass(frozen=True)
class Question:
    """What is searched, and the answers.

    Args:
        name: of the file of results.
        space: with the costs that are known before.
        tables: one for each seed that networks were trained with; ``val``, ``test``, and the cost.
        cost: the second objective.
        share: hypervolume of architectures over that of all.
    """

    name: str
    space: SearchSpace
    tables: Sequence[Table]
    cost: str
    share: Callable[[Sequence[Arch]], float]


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


def space_of(supernet: nn.Module, name: str, shape: tuple[int, ...]) -> SearchSpace:
    """The space of a supernet, its parameters and MACs known."""
    traced = trace(supernet, shape)
    costs = {cost.name: expected(supernet, cost, traced) for cost in (Params(), MACs())}
    return SearchSpace.of(supernet, name, costs, {})


def cells(path: Path, device: str) -> Question:
    """NAS-Bench-201, with the latency on `device`."""
    shape = (3, 32, 32)
    space = space_of(NasBench201(shape, 10), "nas_bench_201", shape)
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

    def volume(archs: Sequence[Arch]) -> float:
        points = [[100 * (1 - table[a]["test"]), table[a]["latency_ms"]] for a in archs]
        return hypervolume(points, (25.0, DEVICES[device]))

    whole = volume(list(table))
    return Question(device, space, [table], "latency_ms", lambda archs: volume(archs) / whole)


def trainings(path: Path) -> Question:
    """A space in which every network was trained, over its parameters."""
    truth, name = Truth(path), path.stem
    made = instantiate(OmegaConf.load(config_dir() / "space" / f"{name}.yaml"), _convert_="all")
    space = space_of(made(input_shape=SHAPES[name], num_outputs=10), name, SHAPES[name])
    tables = []
    for seed in truth.seeds:
        values = zip(truth.names, truth.column("val_acc", seed), truth.accuracy, strict=True)
        tables.append({truth.archs[n]: {"val": val, "test": test} for n, val, test in values})
    return Question(name, space, tables, "params", lambda archs: truth.share(truth.places(archs)))


def run(
    make: Callable[..., Any], question: Question, see: str, seed: int, count: int
) -> tuple[list[Arch], float]:
    """What the searcher evaluated, in order, and the seconds it took to choose them."""
    space, table = question.space, question.tables[seed % len(question.tables)]
    with TemporaryDirectory() as folder:
        log = Memory(Path(folder) / "trials.jsonl")

        def evaluate(archs: Sequence[Arch]) -> None:
            for arch in archs:
                seen = {"val_acc": table[arch][see], question.cost: table[arch].get(question.cost)}
                known = space.price(arch) if question.cost in space.costs else {}
                log.append(Trial(arch, {k: v for k, v in seen.items() if v is not None}, known))

        started = time.process_time()
        searcher = make(space, seed, ("val_acc", question.cost))
        found = search(searcher, evaluate, log, count)
        return [trial.arch for trial in found], time.process_time() - started


def main(arguments: list[str]) -> None:
    """Every searcher, every seed; what the result file holds already is left."""
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    path = Path(next(word for word in arguments if "=" not in word))
    see, seeds = words.get("see", "val"), int(words.get("seeds", "10"))
    device = words.get("device", "raspi4")
    budgets = [int(count) for count in words.get("budgets", "50,200,1000").split(",")]
    names = words.get("names", ",".join(SEARCHERS)).split(",")
    question = trainings(path) if path.stem in SHAPES else cells(path, device)
    out = Path(words["out"]) / f"{question.name}_see_{see}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if out.exists():
        with out.open(encoding="utf-8", newline="") as file:
            done = {(row["searcher"], row["seed"]) for row in csv.DictReader(file)}
    for seed in range(seeds):
        table = question.tables[seed % len(question.tables)]
        for name in names:
            if (name, str(seed)) in done:
                continue
            found, seconds = run(SEARCHERS[name], question, see, seed, max(budgets))
            lines = []
            for budget in budgets:
                first = found[:budget]
                best = max(table[arch]["test"] for arch in first)
                picked = table[max(first, key=lambda arch: table[arch]["val"])]["test"]
                share = question.share(first)
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
