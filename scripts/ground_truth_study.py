"""Searches judged by the ground truth: what they find, looked up in the table of all networks.

    python scripts/ground_truth_study.py ROWS.yaml truth=truth.csv out=FOLDER [only=A,B] [KEY=V]

ROWS.yaml: `common`, words of every command; `seeds`; `spaces`, of each the rows, name -> the words
of a search, or a list of such, whose networks found together are the row's. Every command is run as
``nas search +experiment=SPACE COMMON WORDS seed=S KEY=VALUE ...`` in a folder of its own below
FOLDER, and not again once finished. The space is the one that the table is named after.

The networks of a search are those that ``nas extract RUN front=K`` takes, as many as there are and
K of them for every K of ``at=4,8,12``. Beside them stands what costs nothing at the same number of
networks, see `ground_truth.Truth`. Seconds are the processor's, of the searches alone, relative to
training every member once. Written: ``FOLDER/SPACE.csv``, a row for each name and seed, and tables
to stdout; with ``only=`` alone, the first of them, which needs no run.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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
from nas.search.trials import Trial, TrialLog
from nas.verbs import components_of

Judged = dict[str, Any]  # one row of the table written, of one seed
BASELINES = ("random", "random_alphas", "of_macs", "best")  # methods of `Truth`


def carry_out(folder: str, commands: Sequence[str], words: Sequence[str]) -> list[RunDir]:
    """Run the commands, each in a folder of its own, where they are not done yet."""
    runs = []
    for i, command in enumerate(commands):
        run = RunDir(Path(folder.format(i)))
        where = [f"out={run.path.parent}", f"name={run.path.name}", "resume=true"]
        if not run.finished:
            search = ["search", *words, *command.split(), *where]
            print("nas", *search, flush=True)
            subprocess.run([sys.executable, "-m", "nas.cli", *search], check=True)
        runs.append(run)
    return runs


def networks(run: RunDir, sizes: Sequence[int]) -> list[list[Arch]]:
    """What ``nas extract`` takes out of a search, for each of these sizes of a front."""
    components = {**components_of(saved_config(run)), "about": {}}
    found = []
    for size in sizes:
        extraction = Extraction(ExtractOptions(front=size, fine_tune=True), run)
        found.append(extraction.archs(extraction.problem(components)))
    return found


def taus(truth: Truth, trials: Mapping[str, Trial]) -> dict[str, float]:
    """Kendall's tau-b of each score with the true accuracy, where every member has scores."""
    if not set(truth.names) <= trials.keys():
        return {}
    found = {}
    for name in trials[truth.names[0]].metrics:
        scores = [-trials[member].value(name) for member in truth.names]
        found[name] = float(kendalltau(scores, truth.accuracy).statistic)
    return found


def judged(name: str, seed: int, runs: Sequence[RunDir], truth: Truth, at: Sequence[int]) -> Judged:
    """What a row's runs under one seed are worth."""
    own = truth.places([Arch.load(run.arch) for run in runs])
    fronts = {}
    if len(runs) == 1:
        whole, *thinned = map(truth.places, networks(runs[0], [len(truth.names), *at]))
        fronts = {f"hypervolume_{k}": truth.share(f) for k, f in zip(at, thinned, strict=True)}
    else:
        whole = sorted(set(own))
    spent = sum(float((run.read_result() or {})["seconds"]["search_cpu"]) for run in runs)
    scores = taus(truth, TrialLog(runs[0].trials).known)
    score = read_json(runs[0].path / "search.json")["metric"]
    return {
        "row": name,
        "seed": seed,
        "tau": scores.get(score),
        "regret": truth.accuracy.max() - truth.accuracy[own].max(),
        "seconds_of_all": spent / truth.seconds,
        "random_seconds": truth.random(int(spent / (truth.seconds / len(truth.names)))),
        "networks": len(whole),
        "hypervolume": truth.share(whole),
        **{key: getattr(truth, key)(len(whole)) for key in BASELINES},
        **fronts,
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
    lines = [f"| networks | {' | '.join(map(str, at))} | all |", "|---" * (len(at) + 2) + "|"]
    for name, key in zip(names, BASELINES, strict=True):
        cells = [percent(getattr(truth, key)(k)) for k in (*at, len(truth.names))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: Sequence[Judged], truth: Truth, at: Sequence[int]) -> str:
    """Means over the seeds, in Markdown; of fronts of K also the least seed.

    The way is from the MACs front to the true front of as many networks.
    """
    ks = [f"K = {k}{rest}" for rest in ("", ", of the way") for k in at]
    heads = ["row", "tau", "regret", "seconds of all", "networks", "hypervolume"]
    heads += ["random", "random alphas", "MACs front", *ks]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["row"] for row in rows):
        own = [row for row in rows if row["row"] == name]

        def of(key: str, by: Callable[..., float] = mean, own: Sequence[Judged] = own) -> Any:
            values = [row.get(key) for row in own]
            return None if None in values else by(values)

        tau, volume = of("tau"), of("hypervolume")
        cells = [name, "-" if tau is None else f"{tau:.3f}", percent(of("regret"), 2)]
        cells += [percent(of("seconds_of_all")), f"{of('networks'):.1f}"]
        below = " (below counting)" if volume < of("of_macs") else ""
        cells += [percent(volume) + below]
        cells += [percent(of(key)) for key in ("random", "random_alphas", "of_macs")]
        shares = {k: of(f"hypervolume_{k}") for k in at}
        cells += [f"{percent(shares[k])} ({percent(of(f'hypervolume_{k}', min))})" for k in at]
        cells += [percent(way(truth, share, k), 0) for k, share in shares.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def way(truth: Truth, share: float | None, networks: int) -> float | None:
    """How far a share lies on the way from the MACs front to the true front."""
    least, most = truth.of_macs(networks), truth.best(networks)
    return None if share is None else (share - least) / (most - least)


def percent(value: float | None, digits: int = 1) -> str:
    """As a cell of a table."""
    return "-" if value is None else f"{value:.{digits}%}"


def main(arguments: list[str]) -> None:
    """Run what is missing, judge everything."""
    silence_third_party_warnings()
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    plan = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    truth, out = Truth(Path(words.pop("truth"))), Path(words.pop("out", "."))
    at = [int(k) for k in words.pop("at", "4,8,12").split(",")]
    planned = plan["spaces"][truth.space]
    only = [name for name in words.pop("only", ",".join(planned)).split(",") if name]
    given = [f"{key}={value}" for key, value in words.items()]
    for name, value in ceiling(truth).items():
        print(f"{name}: {value:.4f}")
    print(free_table(truth, at), flush=True)
    results = []
    for name in only:
        commands = [planned[name]] if isinstance(planned[name], str) else planned[name]
        for seed in plan["seeds"]:
            common = [f"+experiment={truth.space}", *plan["common"].split(), *given]
            folder = f"{out}/{truth.space}/{name}-{{}}-seed{seed}"
            runs = carry_out(folder, commands, [*common, f"seed={seed}"])
            results.append(judged(name, seed, runs, truth, at))
            names = dict.fromkeys(key for row in results for key in row)
            write_atomic(
                out / f"{truth.space}.csv",
                csv_table(list(names), [[cell(row.get(key)) for key in names] for row in results]),
            )
    if results:
        print(table(results, truth, at))


def cell(value: Any) -> Any:
    """Of the table written."""
    return f"{value:.5f}" if isinstance(value, float) else "" if value is None else value


if __name__ == "__main__":
    main(sys.argv[1:])
