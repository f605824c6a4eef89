"""`nas extract`: other networks out of a finished search, without searching again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, display_path, is_main, write_atomic
from nas.config.check import check
from nas.config.compose import Arguments
from nas.config.options import ExtractOptions
from nas.config.saved import configs_to_extract, overrides_of_each
from nas.diagnostics import silence_third_party_warnings
from nas.errors import FailedRunError, InterruptedRunError, UserError, is_full, refusal
from nas.export import load_supernet
from nas.front import Networks, learned, print_rows, rows_of, train_each, write_files
from nas.problem import SearchProblem
from nas.progress import shown
from nas.quantities import amount, metric_name, metric_words, primary_metrics
from nas.report.terminal import announce, console
from nas.search.base import build_search, leaves_of
from nas.search.trial_search import TrialSearch
from nas.selection import front
from nas.verbs import components_of, cores, most_threads, only_main_prints, values_by_key

COST = "latency"
TABLE = "devices.csv"


@dataclass(frozen=True)
class Device:
    """A device that networks are taken out for.

    Args:
        name: as its profile calls it.
        folder: where its networks go.
        problem: the search's supernet, priced on it.
        config: of its runs, YAML.
    """

    name: str
    folder: Path
    problem: SearchProblem
    config: str


def folders(names: Sequence[str], profiles: Sequence[str]) -> list[str]:
    """A folder's name for each device; of equal devices the profile's name is added.

    Raises:
        UserError: two of one name all the same.
    """
    plain = [re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "device" for name in names]
    found = [
        f"{name}_{Path(profile).stem}" if plain.count(name) > 1 else name
        for name, profile in zip(plain, profiles, strict=True)
    ]
    if len(set(found)) < len(found):
        raise UserError(
            f"profile=[{','.join(profiles)}] has two profiles of one name for one device: name "
            "each file once, and files of one device differently"
        )
    return found


def summarise(folder: Path, taken: Sequence[tuple[Device, RunDir]]) -> None:
    """One table of all networks, printed, and in ``devices.csv``."""
    rows = [_row(device, run) for device, run in taken]
    text = csv_table(list(rows[0]), ([row.get(name, "") for name in rows[0]] for row in rows))
    write_atomic(folder / TABLE, text)
    units = {name: cost.unit for name, cost in taken[0][0].problem.costs.items()}
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in rows[0]:
        title = metric_name(name) if name.startswith("test_") else name
        title = "validation" if name.startswith("val_") else title
        left = name in ("device", "network", "folder")
        drawn.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(_shown(name, value, units) for name, value in row.items()))
    print()
    console().print(drawn)
    print(f"the same in {display_path(folder / TABLE)}")


def _row(device: Device, run: RunDir) -> dict[str, Any]:
    result = run.read_result() or {}
    choices, problem = result["arch"], device.problem
    costs = {name: cost.of(choices) for name, cost in problem.costs.items()}
    return {
        "device": device.name,
        "network": result["arch_hash"],
        **{name: result["metrics"].get(name) for name in primary_metrics(result)},
        "trained": result["trained"],
        COST: costs.pop(COST),
        "budget": problem.budgets.get(COST),
        "measured": result["costs"].get(f"{COST}_measured"),
        **costs,
        "folder": str(display_path(run.path)),
    }


def _shown(name: str, value: Any, units: Mapping[str, str]) -> str:
    if value is None:
        return "-"
    if name.startswith(("test_", "val_")):
        return metric_words(name, value)
    if name == "trained":
        return "yes" if value else "not trained"
    if name in ("budget", "measured"):
        return amount(value, units[COST])
    return amount(value, units[name]) if name in units else str(value)


@dataclass(frozen=True)
class Extraction:
    """Networks of a finished search.

    Args:
        options: what to take.
        source: the run of the search.
    """

    options: ExtractOptions
    source: RunDir

    def problem(self, components: dict[str, Any]) -> SearchProblem:
        """The search's supernet with its weights, and the costs and budgets of `components`.

        Raises:
            UserError: the search has left no weights, or no network meets the budgets.
        """
        options, source = self.options, self.source
        priced = {"params", "macs", *components["cost_models"]}
        if options.cost not in priced:
            raise UserError(f"cost={options.cost} is not one of {', '.join(sorted(priced))}")
        leaves = leaves_of(components["search"])
        if leaves == "trials":
            if not options.fine_tune:
                raise UserError(
                    f"the search of {source.path} trained its networks one by one and kept no "
                    "weights: pass fine_tune=true to train those you take out"
                )
            components = {**components, "inherit": False}
        elif leaves != "given" and not source.checkpoint.is_file():
            raise UserError(
                f"{source.path} has no last.ckpt: its supernet was not kept (keep=network), or its "
                "search has none. Search again, with keep=supernet and search=fairnas, bilevel, ..."
            )
        elif not options.fine_tune:
            components = {**components, "inherit": True}
        problem = SearchProblem(**components)
        if source.checkpoint.is_file():
            load_supernet(problem.supernet, source.checkpoint)
        return problem

    def __call__(self, device: Device) -> list[RunDir]:
        """Select, evaluate and export; one run in the device's folder for each network."""
        problem, fine_tune = device.problem, self.options.fine_tune
        with shown({"network": problem.work()}, problem.shows_progress):
            to_train = self.networks(problem, device.folder)
            given = (device.folder, to_train, device.config, fine_tune)
            return [run for run, _ in train_each(problem, self.source, *given)]

    def networks(self, problem: SearchProblem, folder: Path) -> Networks:
        """What to take, the smallest first.

        Where networks have scores of their own instead of alphas, those that the run has scored
        already are not scored again, and those after the first eight depend on their training, in
        `folder`.
        """
        size = self.options.front or 1
        if (ranking := _ranking(problem)) is None:
            return Networks(self._by_alphas(problem))
        with self.source.claimed(wait=True):
            trials = ranking.rank(problem, self.source)
        ranked = ranking.ranked_first(size) if self.options.fine_tune else size
        first = ranking.chosen(problem, trials, ranked, self.options.cost)
        if ranked == size:
            return Networks(first)
        given = (ranking, problem, trials, folder, size, self.options.cost, first)
        return Networks(first, learned(*given), size)

    def _by_alphas(self, problem: SearchProblem) -> list[Arch]:
        options = self.options
        if not options.front:
            return [problem.select()]
        priced = (problem.costs, problem.budgets)
        return front(problem.supernet, problem.space, *priced, options.cost, options.front)


def _ranking(problem: SearchProblem) -> TrialSearch | None:
    """What ranks the networks of a search that moves no alphas; None for one that does."""
    if leaves_of(problem.search) not in ("supernet", "trials", "given"):
        return None
    ranking: TrialSearch = cast(Any, build_search(problem)).ranking
    return ranking


def extract(given: Arguments, announced: bool = True) -> list[RunDir]:
    """``nas extract RUN key=value ...``: see `ExtractOptions`; the networks taken.

    Args:
        announced: print a table of them.
    """
    options: ExtractOptions = given.options
    extraction = Extraction(options, RunDir(Path(given.places[0])))
    each = overrides_of_each(given.overrides, options.profile or ())
    configs = configs_to_extract(given)
    silence_third_party_warnings()
    most = most_threads(cores())
    torch.set_num_threads(configs[0].threads or most)
    folder = Path(options.out) if options.out else extraction.source.front
    try:
        # All of them before the first network: a mistake in the last one is found at once.
        with only_main_prints():
            devices = _devices(extraction, folder, each, configs, given.command)
            torch.set_num_threads(configs[0].threads or devices[0].problem.threads(most))
            taken = [(device, run) for device in devices for run in extraction(device)]
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; the same command goes on") from None
    except (FailedRunError, InterruptedRunError) as error:
        raise type(error)(f"{error}; the same command goes on") from error
    except OSError as error:
        if not is_full(error):
            raise
        raise FailedRunError(f"{refusal(error)}; the same command goes on") from error
    runs = [run for _, run in taken]
    if is_main():
        if len(devices) > 1:
            summarise(folder, taken)
        elif announced:
            _announce(folder, devices[0], runs)
        if options.fine_tune and folder == extraction.source.front:
            try:
                source = extraction.source
                best = (source.read_result() or {}).get("arch_hash", "")
                write_files(source, options.cost, best)
            except UserError as error:  # no matplotlib
                print(error)
        print(f"{len(taken)} network(s) in {display_path(folder)}")
    return runs


def _announce(folder: Path, device: Device, runs: Sequence[RunDir]) -> None:
    if len(runs) == 1:
        announce(runs[0], runs[0].read_result() or {})
    elif runs:
        units = {name: cost.unit for name, cost in device.problem.costs.items()}
        print_rows(rows_of(folder, runs), units)


def _devices(
    extraction: Extraction,
    folder: Path,
    words: Sequence[Sequence[str]],
    configs: Sequence[DictConfig],
    command: str,
) -> list[Device]:
    each = []
    for given, config in zip(words, configs, strict=True):
        check(config)
        overrides = {"profile": config.profile} if extraction.options.profile else {}
        about = {"seed": config.seed, "overrides": overrides | values_by_key(given)}
        each.append({**components_of(config), "about": {**about, "command": command}})
    names, places = [""], [folder]
    if len(each) > 1:
        names = [one["cost_models"][COST].profile.device for one in each]
        places = [folder / name for name in folders(names, extraction.options.profile or ())]
    found = []
    for name, place, components, config in zip(names, places, each, configs, strict=True):
        try:
            problem = extraction.problem(components)
        except UserError as error:
            raise UserError(f"{name}: {error}" if name else str(error)) from None
        found.append(Device(name, place, problem, OmegaConf.to_yaml(config, resolve=True)))
    return found
