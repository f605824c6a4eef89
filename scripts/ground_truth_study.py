"""Searches judged by the ground truth: what they find, looked up in the table of all networks.

    python scripts/ground_truth_study.py ROWS.yaml truth=truth.csv out=FOLDER [only=A,B] [KEY=V]

ROWS.yaml: `common`, words of every command; `seeds`; `spaces`, of each the rows, name -> the words
of a search. Every command is run as ``nas search +experiment=SPACE COMMON WORDS seed=S KEY=V ...``
in a folder of its own below FOLDER, and not again once finished. The space is the one that the
table is named after.

A search's networks are those that ``nas extract RUN front=K`` takes, for every K of
``at=4,8,12,20``. The first table has what costs nothing with as many networks, see
`ground_truth.Truth`; with ``only=`` it is all, and needs no run. Seconds are the processor's, of
the searches alone, relative to training every member once. Written: ``FOLDER/SPACE.csv``, a row for
each name and seed, and tables to stdout.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml
from ground_truth import Truth  # beside this file
from scipy.stats import kendalltau

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, write_atomic
from nas.artifacts.reading import read_json
from nas.config.options import ExtractOptions
from nas.config.saved import saved_config
from nas.diagnostics import silence_third_party_warnings
from nas.extract import Extraction
from nas.pareto import hypervolume, non_dominated
from nas.search.evaluate import ShortTraining
from nas.search.model import OptionModel
from nas.search.trials import Trial, TrialLog
from nas.verbs import components_of

Judged = dict[str, Any]  # one row of the table written, of one seed
BASELINES = ("random", "random_alphas", "of_macs", "best")  # methods of `Truth`


def carry_out(run: RunDir, words: Sequence[str]) -> None:
    """Search, unless that is done."""
    command = ["search", *words, f"out={run.path.parent}", f"name={run.path.name}", "resume=true"]
    if not run.finished:
        print("nas", *command, flush=True)
        subprocess.run([sys.executable, "-m", "nas.cli", *command], check=True)


def networks(run: RunDir, sizes: Sequence[int]) -> list[list[Arch]]:
    """What a search says is worth training, for each of these sizes of a front.

    ``nas extract`` trains the first eight of them and asks their accuracies for the rest, which
    ``further_study.py`` simulates: here all are of the search.
    """
    components = {**components_of(saved_config(run)), "about": {}}
    problem = Extraction(ExtractOptions(fine_tune=True), run).problem(components)
    each = [Extraction(ExtractOptions(front=size), run) for size in sizes]
    return [list(extraction.networks(problem, run.front).first) for extraction in each]


def taus(truth: Truth, trials: Mapping[str, Trial]) -> dict[str, float]:
    """Kendall's tau-b of each score with the true accuracy.

    Where not every member has scores, of the model of accuracy over options that they make.
    """
    scored = [place for place, member in enumerate(truth.names) if member in trials]
    found = {}
    for name in trials[truth.names[scored[0]]].metrics if scored else ():
        scores = [trials[truth.names[place]].value(name) for place in scored]
        if len(scored) < len(truth.names):
            model = OptionModel(truth.picks[scored], scores, ShortTraining.noise)
            scores = list(model.mean(truth.picks))
        found[name] = -float(kendalltau(scores, truth.accuracy).statistic)
    return found


def judged(name: str, seed: int, run: RunDir, truth: Truth, at: Sequence[int]) -> Judged:
    """What a row's run under one seed is worth."""
    spent = float((run.read_result() or {})["seconds"]["search_cpu"])
    (best,) = truth.places([Arch.load(run.arch)])
    scores = taus(truth, TrialLog(run.trials).known)
    fronts = {k: truth.places(archs) for k, archs in zip(at, networks(run, at), strict=True)}
    return {
        "row": name,
        "seed": seed,
        "tau": scores.get(read_json(run.path / "search.json")["metric"]),
        "regret": truth.accuracy.max() - truth.accuracy[best],
        "seconds_of_all": spent / truth.seconds,
        "random_seconds": truth.random(int(spent / (truth.seconds / len(truth.names)))),
        **{f"networks_{k}": len(front) for k, front in fronts.items()},
        **{f"hypervolume_{k}": truth.share(front) for k, front in fronts.items()},
        **{f"of_macs_{k}": truth.of_macs(len(front)) for k, front in fronts.items()},
        **{f"tau_{key}": tau for key, tau in scores.items()},
    }


def ceiling(truth: Truth) -> dict[str, Any]:
    """What one seed of the truth itself says of another: no search can be judged beyond it."""
    if len(truth.seeds) < 2:
        return {}
    one, two = truth.seeds[:2]
    known, validation = truth.column("test_acc", one), truth.column("val_acc", one)
    other, params = truth.column("test_acc", two), truth.points[:, 1]
    there = np.stack([1 - other, params], axis=1)
    kept = there[non_dominated(np.stack([1 - validation, params], axis=1))]
    worst, picked = there.max(0), validation.argmax()
    return {
        "tau, test of seed a / test of seed b": kendalltau(known, other).statistic,
        "tau, validation of a / test of b": kendalltau(validation, other).statistic,
        "regret in b of the best validation accuracy in a": other.max() - other[picked],
        "hypervolume in b of the front of validation in a": hypervolume(kept, worst)
        / hypervolume(there, worst),
    }


def free_table(truth: Truth, at: Sequence[int]) -> str:
    """What every search has to beat, and what none can, in Markdown."""
    names = ("random networks", "random alphas", "MACs front", "true front")
    lines = [f"| networks | {' | '.join(map(str, at))} |", "|---" * (len(at) + 1) + "|"]
    for name, key in zip(names, BASELINES, strict=True):
        cells = [percent(getattr(truth, key)(k)) for k in at]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: Sequence[Judged], truth: Truth, at: Sequence[int]) -> str:
    """Means over the seeds, in Markdown.

    Of K networks: hypervolume, in brackets that of the least seed, and how many there were where
    they are not K. The way is from the MACs front to the true front of K networks.
    """
    heads = ["row", "tau", "regret", "seconds of all", "random, seconds"]
    heads += [f"K = {k}{rest}" for rest in ("", ", of the way") for k in at]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]
        of = {
            key: mean(row[key] for row in own)
            for key, value in own[0].items()
            if isinstance(value, int | float)
        }

        cells = [name, f"{of['tau']:.3f}" if "tau" in of else "-", percent(of["regret"], 2)]
        cells += [percent(of["seconds_of_all"]), percent(of["random_seconds"])]
        for k in at:
            share, found = of[f"hypervolume_{k}"], of[f"networks_{k}"]
            least = min(row[f"hypervolume_{k}"] for row in own)
            number = f" of {found:.1f}" if found < k else ""
            below = ", below counting" if share < of[f"of_macs_{k}"] else ""
            cells.append(f"{percent(share)} ({percent(least)}){number}{below}")
        for k in at:
            counted, most = truth.of_macs(k), truth.best(k)
            cells.append(percent((of[f"hypervolume_{k}"] - counted) / (most - counted), 0))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(value: float | None, digits: int = 1) -> str:
    """As a cell of a table."""
    return "-" if value is None else f"{value:.{digits}%}"


def main(arguments: list[str]) -> None:
    """Run what is missing, judge everything."""
    silence_third_party_warnings()
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    plan = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    truth, out = Truth(Path(words.pop("truth"))), Path(words.pop("out", "."))
    at = [int(k) for k in words.pop("at", "4,8,12,20").split(",")]
    planned = plan["spaces"][truth.space]
    only = [name for name in words.pop("only", ",".join(planned)).split(",") if name]
    given = [f"{key}={value}" for key, value in words.items()]
    for name, value in ceiling(truth).items():
        print(f"{name}: {value:.4f}")
    print(free_table(truth, at), flush=True)
    results = []
    for name in only:
        for seed in plan["seeds"]:
            run = RunDir(out / truth.space / f"{name}-seed{seed}")
            common = [f"+experiment={truth.space}", *plan["common"].split(), *given]
            carry_out(run, [*common, *planned[name].split(), f"seed={seed}"])
            results.append(judged(name, seed, run, truth, at))
            write_csv(out / f"{truth.space}.csv", results)
    if results:
        print(table(results, truth, at))


def write_csv(path: Path, rows: Sequence[Judged]) -> None:
    """All figures of all rows and seeds; those that a row does not have are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name) for name in names] for row in rows]
    short = [[f"{v:.5f}" if isinstance(v, float) else v for v in row] for row in values]
    write_atomic(path, csv_table(names, short))


if __name__ == "__main__":
    main(sys.argv[1:])
