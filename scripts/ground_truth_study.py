"""Searches judged by the ground truth: what they find, looked up in the table of all networks.

    python scripts/ground_truth_study.py ROWS.yaml truth=truth.csv out=FOLDER [only=A,B] [KEY=V]

ROWS.yaml: `common`, words of every command; `seeds`; `rows`, name -> a command's words, or a list
of such (their networks together are the row's front), or a mapping with `commands` and `front`:
that many networks taken from the alphas of each search. Every command is run as
``nas search COMMON WORDS seed=S KEY=VALUE ...`` in a folder of its own below FOLDER, and not again
once finished. Written: ``FOLDER/study.csv``, a row for each name and seed, and a table to stdout.

True accuracy is the mean over the seeds of the table. Hypervolumes are of (test error, log
params), up to the worst of the table. Seconds are the processor's, of the searches alone, relative
to training every member once. `random, networks`: the mean hypervolume of as many networks drawn
at random as the row's front has; `random, seconds`: of as many as can be trained in its seconds.
A second table is of rows that rank all members: what is found when the networks that only the
front dominates are trained as well, and those after them.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from scipy.stats import kendalltau

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import write_atomic
from nas.pareto import hypervolume, non_dominated
from nas.search.trials import Trial, TrialLog, front_of

DRAWS = 400  # random searches that a mean is taken of
LAYERS = (2, 3)  # of non-dominated sorting, beside the front
COLUMNS = ("params", "macs", "val_acc", "val_loss", "test_acc", "test_loss", "seconds")


class Truth:
    """The table: every member of the space, trained alone under each seed."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        blocks = [name for name in rows[0] if name not in ("seed", *COLUMNS)]
        self.seeds = list(dict.fromkeys(row["seed"] for row in rows))
        self.of: dict[str, dict[str, dict[str, float]]] = {seed: {} for seed in self.seeds}
        for row in rows:
            choices = {f"blocks.{name}": row[name] for name in blocks}
            self.of[row["seed"]][Arch("truth", choices).hash] = {n: float(row[n]) for n in COLUMNS}
        whole = max(map(len, self.of.values()))
        self.seeds = [seed for seed in self.seeds if len(self.of[seed]) == whole]
        if not self.seeds:
            raise SystemExit(f"{path} has no seed with every member")
        self.names = list(self.of[self.seeds[0]])

    def column(self, name: str, seed: str | None = None) -> np.ndarray:
        """One value for each member, in the order of `names`; the mean over seeds without one."""
        seeds = self.seeds if seed is None else [seed]
        return np.mean([[self.of[s][n][name] for n in self.names] for s in seeds], axis=0)

    @cached_property
    def accuracy(self) -> np.ndarray:
        return self.column("test_acc")

    @cached_property
    def points(self) -> np.ndarray:
        return np.stack([1 - self.accuracy, np.log(self.column("params"))], axis=1)

    @cached_property
    def seconds(self) -> float:
        """Of training every member once."""
        return float(self.column("seconds").sum())

    def places(self, archs: Sequence[Arch]) -> list[int]:
        return [self.names.index(arch.hash) for arch in archs]

    def share(self, places: Sequence[int]) -> float:
        """Hypervolume of these members over that of all."""
        corner = self.points.max(0)
        return hypervolume(self.points[list(places)], corner) / hypervolume(self.points, corner)

    def random(self, networks: int, rng: np.random.Generator) -> float:
        """Mean share of so many members drawn without replacement."""
        count = min(networks, len(self.names))
        drawn = [rng.permutation(len(self.names))[:count].tolist() for _ in range(DRAWS)]
        return mean(map(self.share, drawn)) if count else 0.0


@dataclass
class Row:
    """One way to search."""

    name: str
    commands: Sequence[str]
    front: int = 0
    runs: dict[int, list[RunDir]] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, given: Any) -> "Row":
        if isinstance(given, Mapping):
            return cls(name, list(given["commands"]), int(given.get("front", 0)))
        return cls(name, [given] if isinstance(given, str) else list(given))

    def carry_out(self, seed: int, common: Sequence[str], out: Path) -> None:
        """Run its commands, where they are not done yet."""
        self.runs[seed] = []
        for i, words in enumerate(self.commands):
            run = RunDir(out / f"{self.name}-{i}-seed{seed}")
            where = [f"seed={seed}", f"out={out}", f"name={run.path.name}", "resume=true"]
            if not run.finished:
                command = ["search", *common, *words.split(), *where]
                print("nas", *command, flush=True)
                subprocess.run([sys.executable, "-m", "nas.cli", *command], check=True)
            self.runs[seed].append(run)


def networks(run: RunDir, size: int, layers: int = 1) -> list[Arch]:
    """The front that a run gives: of its trials, of its alphas, or the one network it found.

    Args:
        size: at most so many from alphas.
        layers: of trials, the front, that of the rest, and so on.
    """
    trials = list(TrialLog(run.trials).known.values())
    if trials:
        return [trial.arch for trial in front_of(trials, _sorted_by(run), layers)]
    if size:
        return of_alphas(run, size)
    return [Arch.load(run.arch)]


def _sorted_by(run: RunDir) -> tuple[str, str]:
    from nas.config.saved import read_saved

    search = read_saved(run).search
    return str(search.get("metric") or search.ranking.metric), "params"


def of_alphas(run: RunDir, size: int) -> list[Arch]:
    """At most `size` networks, from the smallest to the most probable."""
    from nas.config.saved import saved_config
    from nas.export import load_supernet
    from nas.problem import SearchProblem
    from nas.selection import front
    from nas.verbs import components_of

    config = saved_config(run)
    problem = SearchProblem(**components_of(config), about={"seed": config.seed})
    load_supernet(problem.supernet, run.checkpoint)
    return front(problem.supernet, problem.space, problem.costs, {}, "params", size)


def tau(truth: Truth, trials: Sequence[Trial], name: str) -> float | None:
    """Kendall's tau-b of a score with the true accuracy, where every member has the score."""
    known = {trial.arch.hash: trial for trial in trials}
    if not set(truth.names) <= known.keys() or name not in known[truth.names[0]].metrics:
        return None
    scores = [-known[member].value(name) for member in truth.names]
    found = float(kendalltau(scores, truth.accuracy).statistic)
    return None if np.isnan(found) else found  # all scores equal


def judged(row: Row, seed: int, truth: Truth) -> dict[str, Any]:
    """What a row's runs under one seed are worth."""
    runs = row.runs[seed]
    rng = np.random.default_rng(seed)
    results = [run.read_result() or {} for run in runs]
    spent = sum(float(result["seconds"]["search_cpu"]) for result in results)
    found = truth.places([Arch.load(run.arch) for run in runs])
    best = max(found, key=lambda place: truth.accuracy[place])
    front = sorted(set(truth.places([a for run in runs for a in networks(run, row.front)])))
    trials = list(TrialLog(runs[0].trials).known.values())
    taus = {
        f"tau_{name}": tau(truth, trials, name)
        for name in ("val_loss", "val_acc", "raw_val_loss", "raw_val_acc", "zero_cost_score")
    }
    deeper: dict[str, Any] = {}
    for layers in LAYERS:
        more = [a for run in runs for a in networks(run, row.front, layers)] if trials else []
        places = sorted(set(truth.places(more)))
        deeper[f"networks_{layers}"] = len(places) if trials else None
        deeper[f"hypervolume_{layers}"] = truth.share(places) if trials else None
        deeper[f"random_{layers}"] = truth.random(len(places), rng) if trials else None
    affordable = int(spent / (truth.seconds / len(truth.names)))
    return {
        "row": row.name,
        "seed": seed,
        "test_acc": truth.accuracy[best],
        "regret": truth.accuracy.max() - truth.accuracy[best],
        "rank": int((truth.accuracy > truth.accuracy[best]).sum()) + 1,
        "networks": len(front),
        "hypervolume": truth.share(front),
        "random_networks": truth.random(len(front), rng),
        "random_seconds": truth.random(affordable, rng),
        **taus,
        "seconds": spent,
        "share_of_all": spent / truth.seconds,
        **deeper,
    }


def ceiling(truth: Truth) -> dict[str, Any]:
    """What one seed of the truth itself says of another: no search can be judged beyond it."""
    if len(truth.seeds) < 2:
        return {}
    one, two = truth.seeds[:2]
    other = truth.column("test_acc", two)
    picked = int(truth.column("val_acc", one).argmax())
    params = np.log(truth.column("params"))
    here = np.stack([1 - truth.column("val_acc", one), params], axis=1)
    there = np.stack([1 - other, params], axis=1)
    corner = there.max(0)
    kept = there[non_dominated(here)]
    return {
        "tau, test of seed a / test of seed b": kendalltau(
            truth.column("test_acc", one), other
        ).statistic,
        "tau, validation of a / test of b": kendalltau(
            truth.column("val_acc", one), other
        ).statistic,
        "regret in b of the best validation accuracy in a": other.max() - other[picked],
        "hypervolume in b of the front of validation in a": hypervolume(kept, corner)
        / hypervolume(there, corner),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds, in Markdown."""
    lines = [
        "| row | true accuracy | regret | rank | networks | hypervolume | random, networks "
        "| random, seconds | tau | tau, not recalibrated | seconds of all |",
        "|---" * 11 + "|",
    ]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]

        def of(key: str, form: str, own: Sequence[Mapping[str, Any]] = own) -> str:
            values = [row[key] for row in own]
            return "-" if None in values else format(mean(values), form)

        cells = [name, of("test_acc", ".2%"), of("regret", ".2%"), of("rank", ".1f")]
        cells += [of("networks", ".1f")]
        cells += [of(key, ".1%") for key in ("hypervolume", "random_networks", "random_seconds")]
        own_tau = of("tau_val_loss", ".3f")
        cells += [of("tau_zero_cost_score", ".3f") if own_tau == "-" else own_tau]
        cells += [of("tau_raw_val_loss", ".3f")]
        cells += [of("share_of_all", ".1%")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def deeper_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds, in Markdown, of rows that rank all members."""
    ranked = [row for row in rows if row["networks_2"] is not None]
    lines = ["| row | layers | networks | hypervolume | random, networks |", "|---" * 5 + "|"]
    for name in dict.fromkeys(row["row"] for row in ranked):
        own = [row for row in ranked if row["row"] == name]
        for layers in LAYERS:
            count, share, random = (
                mean(row[f"{key}_{layers}"] for row in own)
                for key in ("networks", "hypervolume", "random")
            )
            lines.append(f"| {name} | {layers} | {count:.1f} | {share:.1%} | {random:.1%} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Run what is missing, judge everything."""
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    plan = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    truth, out = Truth(Path(words.pop("truth"))), Path(words.pop("out"))
    only = words.pop("only", ",".join(plan["rows"])).split(",")
    common = [*plan["common"].split(), *(f"{key}={value}" for key, value in words.items())]
    for name, value in ceiling(truth).items():
        print(f"{name}: {value:.4f}")
    results = []
    for name in only:
        row = Row.read(name, plan["rows"][name])
        for seed in plan["seeds"]:
            row.carry_out(seed, common, out)
            results.append(judged(row, seed, truth))
            write_csv(out / "study.csv", results)
    print(table(results))
    if any(row["networks_2"] is not None for row in results):
        print(deeper_table(results))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        short = {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow(short)
    write_atomic(path, text.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
