"""`nas extract`: other networks out of a finished search, without searching again."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, display_path, is_main, write_atomic
from nas.config.check import check
from nas.config.saved import add_cost, change, saved_config
from nas.config.schema import Count, Whole, checked, parsed, register
from nas.diagnostics import silence_third_party_warnings
from nas.errors import FailedRunError, InterruptedRunError, UserError, is_full, refusal
from nas.export import load_supernet
from nas.pipeline import Run
from nas.problem import Plan, Problem
from nas.quantities import amount
from nas.report.terminal import announce, console
from nas.search.base import build_search, leaves_of
from nas.search.searchers import best
from nas.search.trial_search import TrialSearch
from nas.search.trials import front_of, spread
from nas.selection import front
from nas.verbs import cores, one_voice, plan_of

COST = "latency"
TABLE = "devices.csv"
_FIGURES = ("test_acc", "val_acc")


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
    problem: Problem
    config: str


def listed(text: str) -> list[str]:
    """The words of ``[a,b]`` or ``a,b``."""
    return [word for part in text.strip().strip("[]").split(",") if (word := part.strip())]


def words_of_each(words: Mapping[str, str]) -> list[dict[str, str]]:
    """The words for each device: of ``profile=[a,b]``, and of budgets with a value for each.

    Returns:
        The words as they are, where there is one profile or none.

    Raises:
        UserError: an empty list, or a budget with another number of values.
    """
    given = words.get("profile")
    profiles = [] if given is None else listed(given)
    if given is not None and not profiles:
        raise UserError(f"profile={given} names no file; e.g. profile=[A.json,B.json]")
    each: list[dict[str, str]] = [dict(words) for _ in range(max(1, len(profiles)))]
    for key in ("profile", *(key for key in words if key.startswith("budget."))):
        if key not in words or not (key == "profile" or words[key].startswith("[")):
            continue
        values = listed(words[key])
        if len(values) != len(each):
            raise UserError(
                f"{key}={words[key]} must be one amount, or one for each of the {len(each)} "
                f"devices of profile=[A.json,B.json]"
            )
        for own, value in zip(each, values, strict=True):
            own[key] = value
    return each


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
        title = {"test_acc": "test accuracy", "val_acc": "validation"}.get(name, name)
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
        **{name: result["metrics"].get(name) for name in _FIGURES},
        COST: costs.pop(COST),
        "budget": problem.budgets.get(COST),
        "measured": result["costs"].get(f"{COST}_measured"),
        **costs,
        "folder": str(display_path(run.path)),
    }


def _shown(name: str, value: Any, units: Mapping[str, str]) -> str:
    if value is None:
        return "-"
    if name in _FIGURES:
        return f"{value:.2%}"
    if name in ("budget", "measured"):
        return amount(value, units[COST])
    return amount(value, units[name]) if name in units else str(value)


@checked()
@dataclass(frozen=True)
class Extraction:
    """What to take out of a search.

    Args:
        front: 0 for the most probable network inside the budgets, N for a front of at most N.
        cost: the cost that the front's networks are spread over.
        layers: of a ranking, take in what only the front dominates (2), and so on; see `front_of`.
        fine_tune: train each network; else it is evaluated with the supernet's weights.

    Raises:
        UserError: several layers of no front.
    """

    front: Whole = 0
    cost: str = "params"
    layers: Count = 1
    fine_tune: bool = False

    def __post_init__(self) -> None:
        if self.layers > 1 and not self.front:
            raise UserError(
                f"layers={self.layers} is of a front: say of how many networks, e.g. front=40"
            )

    def problem(self, plan: Plan, source: RunDir) -> Problem:
        """The search's supernet with its weights, priced as `plan` says.

        Raises:
            UserError: the search has left no weights, or no network meets the budgets.
        """
        priced = {"params", "macs", *plan.costs}
        if self.cost not in priced:
            raise UserError(f"cost={self.cost} is not one of {', '.join(sorted(priced))}")
        if leaves_of(plan.search) == "trials":
            if not self.fine_tune:
                raise UserError(
                    f"the search of {source.path} trained its networks one by one and kept no "
                    "weights: pass fine_tune=true to train those you take out"
                )
            plan = replace(plan, inherit=False)
        elif not source.checkpoint.is_file():
            raise UserError(
                f"{source.path} has no last.ckpt, the weights of a finished search: extract from "
                "a run of `nas search` with search=bilevel, single_level, spos, fairnas, ..."
            )
        elif not self.fine_tune:
            plan = replace(plan, inherit=True)
        problem = Problem(plan)
        if source.checkpoint.is_file():
            load_supernet(problem.supernet, source.checkpoint)
        return problem

    def __call__(self, problem: Problem, source: RunDir, folder: Path, config: str) -> list[RunDir]:
        """Select, evaluate and export; one run in `folder` for each network, named by its hash.

        Args:
            problem: see `Extraction.problem`.
            config: what the runs keep as their configuration, YAML.
        """
        archs = self.archs(problem, source)
        return [
            self._carry_out(problem, arch, RunDir(folder / arch.hash), config) for arch in archs
        ]

    def archs(self, problem: Problem, source: RunDir) -> list[Arch]:
        """The architectures to take, the smallest first.

        Where networks have scores of their own instead of alphas, those that the run has scored
        already are not scored again.
        """
        if (ranking := _ranking(problem)) is not None:
            with source.claimed(wait=True):
                trials = ranking.rank(problem, source)
            if not self.front:
                return [best(trials, ranking.metric).arch]
            ranked = front_of(trials, (ranking.metric, self.cost), self.layers)
            return [trial.arch for trial in spread(ranked, self.cost, self.front)]
        if not self.front:
            return [problem.select()]
        priced = (problem.costs, problem.budgets)
        return front(problem.supernet, problem.space, *priced, self.cost, self.front)

    def _carry_out(self, problem: Problem, arch: Arch, run: RunDir, config: str) -> RunDir:
        stages = Run(problem.plan, run, arch, problem, train=self.fine_tune)
        run.create()
        with run.claimed(wait=True):
            known: Mapping[str, Any] = run.read_result() or {}
            if run.complete and (known.get("trained") or not self.fine_tune):
                print(f"already there: {run.path}")
                return run
            write_atomic(run.config, config)
            announce(run, stages())
        return run


def _ranking(problem: Problem) -> TrialSearch | None:
    """What ranks the networks of a search that moves no alphas; None for one that does."""
    if leaves_of(problem.plan.search) not in ("supernet", "trials"):
        return None
    ranking: TrialSearch = cast(Any, build_search(problem)).ranking
    return ranking


def extract(arguments: Sequence[str]) -> int:
    """``nas extract RUN key=value ...``: see `Extraction`; the exit code."""
    for word in arguments[1:]:
        if "=" not in word:
            raise UserError(f"{word!r} is not of the form key=value; see `nas extract --help`")
    words = dict(word.split("=", 1) for word in arguments[1:])
    wanted = parsed(words, get_type_hints(Extraction, include_extras=True))
    own = parsed(words, {"out": str, "trust": bool})
    source = RunDir(Path(arguments[0]))
    each = words_of_each(words)
    trust = own.get("trust", False)
    configs = [_config(source, given, trust, len(each) > 1) for given in each]
    extraction = Extraction(**wanted)
    silence_third_party_warnings()
    torch.set_num_threads(configs[0].threads or cores())
    command = " ".join(["nas extract", *arguments])
    folder = Path(own["out"]) if "out" in own else source.extracts
    try:
        # All of them before the first network: a mistake in the last one is found at once.
        with one_voice():
            devices = _devices(extraction, source, folder, each, configs, command)
            taken = [
                (d, r) for d in devices for r in extraction(d.problem, source, d.folder, d.config)
            ]
    except KeyboardInterrupt:
        raise InterruptedRunError("interrupted; the same command goes on") from None
    except (FailedRunError, InterruptedRunError) as error:
        raise type(error)(f"{error}; the same command goes on") from error
    except OSError as error:
        if not is_full(error):
            raise
        raise FailedRunError(f"{refusal(error)}; the same command goes on") from error
    if not is_main():
        return 0
    if len(devices) > 1:
        summarise(folder, taken)
    print(f"{len(taken)} network(s) in {display_path(folder)}")
    return 0


def _config(source: RunDir, words: Mapping[str, str], trust: bool, several: bool) -> DictConfig:
    """The run's configuration with these words; a profile brings its cost along."""
    config = saved_config(source, trust)
    register()
    if "profile" in words:
        add_cost(config, COST)
        # A run saves the cost with the profile it was searched with.
        config.cost[COST].profile = words["profile"]
        if several:
            config.cost[COST].expect_device = None  # the run's own can be one of them only
    change(config, [f"{key}={value}" for key, value in words.items()])
    check(config)
    return config


def _devices(
    extraction: Extraction,
    source: RunDir,
    folder: Path,
    words: Sequence[Mapping[str, str]],
    configs: Sequence[DictConfig],
    command: str,
) -> list[Device]:
    plans = []
    for given, config in zip(words, configs, strict=True):
        overrides = {key: yaml.safe_load(value) for key, value in given.items()}
        about = {"seed": config.seed, "overrides": overrides, "command": command}
        plans.append(plan_of(config, about))
    names, places = [""], [folder]
    if len(plans) > 1:
        names = [plan.costs[COST].profile.device for plan in plans]
        places = [folder / name for name in folders(names, [given["profile"] for given in words])]
    found = []
    for name, place, plan, config in zip(names, places, plans, configs, strict=True):
        try:
            problem = extraction.problem(plan, source)
        except UserError as error:
            raise UserError(f"{name}: {error}" if name else str(error)) from None
        found.append(Device(name, place, problem, OmegaConf.to_yaml(config, resolve=True)))
    return found
