"""The front of a search: several of its networks, each trained in a folder of its own, one table.

`nas search` and `nas extract` both train here, in ``RUN/front/HASH``, so that what one has trained
the other finds.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pytorch_lightning.loggers import Logger
from rich.table import Table
from rich.text import Text

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import (
    copy_atomic,
    csv_table,
    display_path,
    is_main,
    write_atomic,
    write_json,
)
from nas.errors import UserError
from nas.pipeline import Run, TrainingStage
from nas.problem import SearchProblem
from nas.progress import current
from nas.quantities import amount, error_of, metric_words, primary_metrics
from nas.ranks import broadcast
from nas.report import write_pictures
from nas.report.page import PICTURE
from nas.report.terminal import about_supernet, console, print_next
from nas.result import cost_fields, log_final
from nas.search.space import SearchSpace
from nas.search.trial_search import TrialSearch
from nas.search.trials import Trial, TrialLog
from nas.tasks.classification import task_of

TABLE = "front.csv"
_TRAINING = ("data", "task", "space", "seed", "weights", "finetune")  # keys that decide its weights
_COPIED = ("network.pt", "network.onnx", "network.svg", "network.csv", PICTURE)


class FrontRun(Run):
    """A search, and the training of `SearchProblem.front` of its networks one after another.

    A network that is trained already is not trained again. The run's own files are those of the
    network that is best by the validation metric.
    """

    def _stages(self, loggers: Sequence[Logger]) -> dict[str, Any]:
        started = time.monotonic()
        found = self._find(TrainingStage(self.problem, self.run, loggers))
        chosen, cost = broadcast(lambda: (found["chosen"], found["cost"]))
        first = [Arch(self.problem.space, choices) for choices in chosen]
        asked, config = self.problem.front, broadcast(lambda: _text(self.run.config))
        to_train = self._networks(first, cost)
        networks = list(train_each(self.problem, self.run, self.run.front, to_train, config))
        if not is_main():
            return {}
        if len(networks) < asked:
            print(f"\nfront={asked}: the search found no more than {len(networks)}")
        return self._gathered(found, networks, loggers, time.monotonic() - started)

    def _networks(self, first: Sequence[Arch], cost: str) -> "Networks":
        asked, ranking = self.problem.front, getattr(self.search, "ranking", None)
        if ranking is None or ranking.ranked_first(asked) == asked:
            return Networks(first)
        trials = ranking.rank(self.problem, self.run)
        given = (ranking, self.problem, trials, self.run.front, asked, cost, first)
        return Networks(first, learned(*given), asked)

    def _gathered(
        self,
        found: Mapping[str, Any],
        networks: Sequence[tuple[RunDir, Mapping[str, Any]]],
        loggers: Sequence[Logger],
        seconds: float,
    ) -> dict[str, Any]:
        """The run's own files: copies of the best network's, and those about all of them."""
        metric = self.task.primary
        networks = sorted(networks, key=lambda network: _size(network[1]["costs"]))
        best, known = min(
            networks, key=lambda network: error_of(metric, network[1]["metrics"][f"val_{metric}"])
        )
        spent = [network["seconds"]["finetune"] for _, network in networks]
        result = {
            **known,
            "metrics": {**found["metrics"], **known["metrics"]},
            "seconds": {
                "search": found["seconds"],
                "search_cpu": found.get("cpu_seconds"),
                "finetune": sum(spent),
                "this_session": seconds,
            },
            "front": [network["arch_hash"] for _, network in networks],
        }
        for name in _COPIED:
            if (best.path / name).is_file():
                copy_atomic(best.path / name, self.run.path / name)
        Arch.load(best.arch).save(self.run.arch)
        attempt = self.attempts.attempt
        with attempt("front", "no pictures of the front"):
            write_files(self.run, found["cost"], known["arch_hash"])
        with attempt("tensorboard", "no final figures in TensorBoard"):
            log_final(loggers, result, self.problem)
        result["warnings"] = [*known["warnings"], *self.attempts.warnings]
        write_json(self.run.result, result)
        return result


@dataclass(frozen=True)
class Networks:
    """The networks to train, in their order.

    Args:
        first: those that are known.
        further: others, each known once those before it are trained, see `learned`.
        most: how many they are at most; 0: as many as the first.
    """

    first: Sequence[Arch]
    further: Iterable[Arch] = ()
    most: int = 0


def train_each(
    problem: SearchProblem,
    source: RunDir,
    folder: Path,
    networks: Networks,
    config: str,
    fine_tune: bool = True,
) -> Iterator[tuple[RunDir, dict[str, Any]]]:
    """Train networks of a finished search one after another, see `train`; tell how far it is.

    Args:
        source: the run of the search.
        folder: of the networks' folders, each named by the hash of its architecture.

    Yields:
        The folder of each network, and what `train` returns.
    """
    progress, most = current(), networks.most or len(networks.first)
    progress.expect(_sizes(problem, source, networks.first), most)
    for number, arch in enumerate(chain(networks.first, networks.further), 1):
        progress.place = number, most
        run = RunDir(folder / arch.hash)
        result = train(problem, run, arch, config, fine_tune)
        if result and most > 1:
            _tell(problem, arch, result, f"network {number} of {most}")
        yield run, result


def _sizes(problem: SearchProblem, source: RunDir, archs: Sequence[Arch]) -> list[float]:
    """The work of each network in those of the mean network that was ranked; [] where none was.

    Larger networks take longer, by how much depends on the machine: the ranking has measured it.
    """
    with suppress(UserError):  # a damaged file is told of by whoever needs it
        trials = [trial for trial in TrialLog(source.trials).known.values() if trial.metrics]
        macs = [trial.costs.get("macs", 0.0) for trial in trials]
        seconds = [trial.seconds for trial in trials]
        if len(set(macs)) > 1 and sum(seconds) > 0:
            slope, _ = np.polyfit(macs, seconds, 1)
            each, middle, cost = sum(seconds) / len(trials), sum(macs) / len(macs), problem.costs
            by = max(0.0, slope) / each
            return [max(0.1, 1 + by * (cost["macs"].of(arch.choices) - middle)) for arch in archs]
    return []


def _tell(problem: SearchProblem, arch: Arch, result: Mapping[str, Any], place: str) -> None:
    costs = [
        f"{name} {amount(cost.of(arch.choices), cost.unit)}" for name, cost in problem.costs.items()
    ]
    name = f"test_{task_of(problem.data).primary}"
    figure = f"test {metric_words(name, result['metrics'][name])}"
    print(f"{place} ({arch.hash}): {', '.join(costs)}, {figure}", flush=True)


def learned(
    ranking: TrialSearch,
    problem: SearchProblem,
    trials: Sequence[Trial],
    folder: Path,
    size: int,
    cost: str,
    first: Sequence[Arch],
) -> Iterator[Arch]:
    """Networks beside the `first`, each chosen once those before it are trained.

    Of these, those that are trained already come first, so that what was broken off goes on as it
    was.

    Args:
        ranking: of the search.
        problem: with the supernet as the search has left it.
        trials: the networks scored, inside the budgets.
        folder: of the trained networks.
        size: how many networks at most, the first included.
        cost: that the front is spread over.
        first: networks to train whatever the others are.
    """
    space = SearchSpace.of_problem(problem)
    known = broadcast(lambda: [arch.to_json() for arch in _trained(folder, space)])
    found = [arch for arch in map(Arch.from_json, known) if arch not in first]
    ready = [arch for arch in found if space.fits(arch)][: size - len(first)]
    yield from ready
    for _ in range(size - len(first) - len(ready)):
        text = broadcast(
            lambda: _text_of(ranking.further(problem, trials, _trained(folder, space), cost))
        )
        if text is None:
            return
        yield Arch.from_json(text)


def _text_of(arch: Arch | None) -> str | None:
    return None if arch is None else arch.to_json()


def _trained(folder: Path, space: SearchSpace) -> dict[Arch, dict[str, float]]:
    """The trained networks of a space in a folder of networks, with their metrics."""
    known = trained_in(folder).items()
    found = {Arch.load(RunDir(folder / name).arch): metrics for name, metrics in known}
    own = space.distinct
    return {own.canonical(arch): metrics for arch, metrics in found.items() if space.holds(arch)}


def trained_in(folder: Path) -> dict[str, dict[str, float]]:
    """Hash -> metrics of each trained network in a folder of networks."""
    found = {}
    for path in sorted(folder.glob("*")):
        if (run := RunDir(path)).finished and (known := run.read_result() or {})["trained"]:
            found[path.name] = known["metrics"]
    return found


def train(
    problem: SearchProblem, run: RunDir, arch: Arch, config: str, fine_tune: bool = True
) -> dict[str, Any]:
    """Train a network of a finished search in a folder of its own, unless it is there already.

    Args:
        problem: with the supernet as the search has left it.
        run: the folder.
        config: of the folder, YAML; "": none.
        fine_tune: else the network is evaluated with the supernet's weights as they are.

    Returns:
        What is in its result.json; of the processes of a distributed run, of the first only.

    Raises:
        UserError: it is there, but was trained in another way.
    """
    stages = Run(problem, run, arch, train=fine_tune)
    run.create()
    with run.claimed(wait=True):
        known = run.read_result() or {}
        if broadcast(lambda: run.complete and bool(known.get("trained") or not fine_tune)):
            _check_training(run, config)
            print(f"already there: {display_path(run.path)}")
            return _priced(run, known, problem, arch)
        if config:
            write_atomic(run.config, config)
        return stages()


def _check_training(run: RunDir, config: str) -> None:
    """What is there must have been trained as is asked for now."""
    before, now = (yaml.safe_load(text) or {} for text in (_text(run.config), config))
    other = [key for key in _TRAINING if before and now and before.get(key) != now.get(key)]
    if other:
        raise UserError(
            f"{display_path(run.path)} was trained with other values of {', '.join(other)}: "
            "choose another folder with out=FOLDER, or remove it"
        )


def _priced(
    run: RunDir, known: dict[str, Any], problem: SearchProblem, arch: Arch
) -> dict[str, Any]:
    """The result with those costs that nobody asked for when the network was trained."""
    if known and not problem.costs.keys() <= known["costs"].keys():
        fields = cost_fields(problem.costs, problem.budgets, arch)
        known |= {name: {**table, **known.get(name, {})} for name, table in fields.items()}
        write_json(run.result, known)
    return known


def write_files(run: RunDir, cost: str, best: str) -> None:
    """``front.csv``, ``front.png`` and a page of all trained networks in the run's folder of them.

    Args:
        best: the hash of the one whose files the run has copies of.

    Raises:
        UserError: see `nas.report.report`; the table is written first.
    """
    rows = rows_of(run.path, [RunDir(run.front / name) for name in trained_in(run.front)])
    text = csv_table(list(rows[0]), ([row.get(name, "") for name in rows[0]] for row in rows))
    write_atomic(run.path / TABLE, text)
    write_pictures(run, cost, best)


def rows_of(base: Path, networks: Iterable[RunDir]) -> list[dict[str, Any]]:
    """A row for each finished network, the smallest first; its folder as seen from `base`."""
    rows = []
    for run in networks:
        result = run.read_result() or {}
        scored = {name: result["metrics"].get(name) for name in primary_metrics(result)[::-1]}
        place: dict[str, Any] = {"folder": os.path.relpath(run.path, base)}
        if not result.get("trained", True):
            place["trained"] = False
        rows.append({"network": result["arch_hash"], **scored, **result["costs"], **place})
    return sorted(rows, key=_size)


def _size(costs: Mapping[str, Any]) -> tuple[float, float]:
    return costs["params"], costs["macs"]


def print_rows(rows: Sequence[Mapping[str, Any]], units: Mapping[str, str], best: str = "") -> None:
    """The networks as a table in the terminal; `best` is the hash of the one that is marked."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    names = [name for name in rows[0] if name not in ("network", "folder", "trained")]
    drawn.add_column("network")
    for name in names:
        drawn.add_column(heading(name), justify="right")
    for row in rows:
        cells = [shown(name, row.get(name), units) for name in names]
        mark = " *" * (row["network"] == best) + " (not trained)" * (not row.get("trained", True))
        drawn.add_row(Text(row["folder"] + mark), *cells)
    print()
    console().print(drawn)


def heading(name: str) -> str:
    """Of the column of a cost, or of the validation or test metric."""
    return {"val": "validation", "test": "test"}.get(name.partition("_")[0], name)


def announce_front(run: RunDir, result: Mapping[str, Any], leaves: str) -> None:
    """Print the table of a front, where its files are, and what to type next.

    Args:
        leaves: what its search has left, see `nas.search.base.Search`.
    """
    if not is_main():
        return
    networks, seconds = [RunDir(run.front / name) for name in result["front"]], result["seconds"]
    rows, folder = rows_of(run.path, networks), display_path(run.path)
    print_rows(rows, result["units"], result["arch_hash"])
    print("* best by validation; its files lie in the run's folder, too")
    print(f"search {seconds['search']:.0f} s, training of the networks {seconds['finetune']:.0f} s")
    print(f"\nfiles: {folder}")
    for name, about in _ABOUT.items():
        if (run.path / name).exists():
            print(f"  {name:12} {about}")
    if supernet := about_supernet(run):
        print(f"  {run.checkpoint.name:12} {supernet}")
    print_next(run, leaves, len(rows) + 4)


_ABOUT = {
    "report.html": "the page: open it in a browser",
    "front.png": "the test metric over cost",
    "front.csv": "the table",
    "front": "a folder for each network: network.pt, network.onnx, ...",
}


def shown(name: str, value: Any, units: Mapping[str, str]) -> str:
    """A cost or a metric as a cell of a table."""
    if value is None:
        return "-"
    return amount(value, units[name]) if name in units else metric_words(name, value)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
