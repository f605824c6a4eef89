"""`TrialSearch`: propose architectures, score each, take the best."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import ClassVar, Literal, cast

import torch
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import remove_leftovers, write_atomic
from nas.config.schema import Count, Processes, Seed, checked
from nas.decision import decisions, free, sample_path
from nas.discretization import arch_of
from nas.distinct import canonical
from nas.errors import UserError
from nas.problem import SearchProblem
from nas.progress import Part, current
from nas.ranks import broadcast, each_rank_alone, world
from nas.search.base import Leaves, ScoredArch, SearchResult, Stage, agreed
from nas.search.evaluate import Scoring, TrainFromScratch
from nas.search.halving import FOLDER, Halving, in_rungs
from nas.search.prediction import Prediction
from nas.search.scoring import Outcomes, in_turn, over_ranks, recorded
from nas.search.searchers import (
    SMALL,
    TRIALS,
    Agreed,
    best,
    check_name,
    make,
    search,
)
from nas.search.space import Searcher, SearchSpace
from nas.search.trials import Trial, TrialLog, comparable, table_of, thinned_front
from nas.search.workers import Workers
from nas.search.zero_cost import METRIC
from nas.supernet.relax import gumbel_noise
from nas.tasks import Task
from nas.tasks.classification import Classification

RANKED_FIRST = 8  # of a front's networks are chosen by their ranking, further ones by trainings
TRAINING = 0.15  # variance of a trained network's score from seed to seed, that of scores being 1


@checked("search")
class TrialSearch:
    """Ask a searcher for architectures, score and record each, and select the best.

    Args:
        supernet: a model that holds decisions.
        searcher: a name of `nas.search.searchers`; "auto": `Enumerate` in small spaces.
        evaluate: ``problem -> (arch -> scores)``, see `nas.search.evaluate`.
        trials: number of different architectures to score; None: all of them where they are
            enumerated, else the `usual_trials` of the evaluation, or 500.
        metric: the score that decides: ``primary``, that of the task; ``val_<metric>``, or
            ``zero_cost_score``.
        cost: the cost that the front is drawn over.
        batch: number of architectures asked for at once; None: one for each worker, or what halving
            needs.
        workers: number of processes that score side by side; 1: this one. In a distributed run,
            every rank has so many, and scores its share of a batch.
        halving: compares the networks of a batch while they train, and goes on with the best.
        seed: of the searcher's draws.
        task: what networks are for; None: classification.
    """

    leaves: ClassVar[Leaves] = "trials"

    def __init__(
        self,
        supernet: nn.Module,
        searcher: str | Callable[..., Searcher],
        evaluate: Callable[[SearchProblem], Scoring],
        trials: Count | None = None,
        metric: str = "primary",
        cost: str = "params",
        batch: Count | None = None,
        workers: Processes = 1,
        halving: Halving | None = None,
        seed: Seed = 0,
        task: Task | None = None,
    ) -> None:
        primary = f"val_{(task or Classification()).primary}"
        metric = primary if metric == "primary" else metric
        if not metric.startswith("val_") and metric != METRIC:
            raise UserError(
                f"search.metric={metric}: a search may judge by {primary} or val_loss only"
            )
        check_name(searcher)
        self.supernet, self.searcher, self.evaluate = supernet, searcher, evaluate
        self.trials, self.metric, self.cost = trials, metric, cost
        self.halving = halving or Halving()
        self._batch, self.workers, self.seed = batch, workers, seed
        if self.halving.rungs:
            self._check_evaluation()

    @property
    def batch(self) -> int:
        """Architectures asked for at once: one for each process at least, unless given."""
        return self._batch or max(self.workers * world()[1], self.halving.cohort)

    def _check_evaluation(self) -> None:
        if not isinstance(self.evaluate, TrainFromScratch):
            raise UserError(
                "search.halving is for networks that are trained one by one (search=random_search, "
                "evolution, ...): leave search.halving.epochs=null where weights are inherited"
            )
        whole, own = self.evaluate.epochs, self.halving.rungs[-1]
        if whole not in (None, own):
            raise UserError(
                f"search.evaluate.epochs={whole} is not the last of search.halving.epochs="
                f"{list(self.halving.rungs)}: leave it null"
            )

    def prepare(self, problem: SearchProblem) -> None:
        """See `nas.search.base.Search`.

        Raises:
            UserError: a cost or a score that there is not; or see the searcher.
        """
        space = SearchSpace.of_problem(problem)
        if self.cost not in space.costs:
            raise UserError(f"search.cost={self.cost} is not one of {sorted(space.costs)}")
        # A user's own evaluation need not say what it gives.
        names = getattr(self.evaluate, "metrics", None)
        if names is not None and self.metric not in (scores := names(problem)):
            raise UserError(f"search.metric={self.metric} is not one of {', '.join(scores)}")
        self._made(space)
        if problem.engine is not None:
            problem.engine.check(self.workers)

    def _made(self, space: SearchSpace) -> tuple[Searcher, int | None]:
        usual = getattr(self.evaluate, "usual_trials", TRIALS)
        large = getattr(self.evaluate, "usual_searcher", "predictor")
        objectives = (self.metric, self.cost)
        return make(self.searcher, space, self.seed, objectives, self.trials, usual, large)

    @property
    def ranking(self) -> "TrialSearch":
        """The search itself, which ranks its networks."""
        return self

    def work(self, problem: SearchProblem) -> dict[str, Part]:
        """What is to be done, for the time that it takes."""
        space = SearchSpace.of_problem(problem)
        count = self._count(space, self._made(space)[1]) or 1
        if isinstance(self.evaluate, TrainFromScratch):
            return {"ranking": Part(count, problem.work(self.evaluate.epochs_of(problem)).work)}
        train, val = problem.images
        measured = min(train, getattr(self.evaluate, "calibration", 0))  # BatchNorm, anew
        return {"ranking": Part(count, measured + val)}

    @property
    def trains(self) -> bool:
        """Whether each network is trained to be scored, which takes long."""
        return isinstance(self.evaluate, TrainFromScratch)

    def _count(self, space: SearchSpace, count: int | None) -> int | None:
        """How many trials there will be; None: not known before, or fewer where budgets rule."""
        return count or (space.size if space.size <= SMALL else None)

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Search, with ``trials.jsonl`` and ``trials.csv`` in the run's folder.

        Raises:
            UserError: see the searcher, and `TrialLog`.
        """
        trials = self.rank(problem, stage.run)
        table = table_of(trials, (self.metric, self.cost))
        write_atomic(stage.run.trials.with_suffix(".csv"), table)
        selected = self.chosen(problem, trials, 1)[0]
        found = [ScoredArch(t.arch, -t.value(self.metric), t.costs) for t in comparable(trials)]
        scores = next((trial.metrics for trial in trials if trial.arch == selected), {})
        if not scores:
            expected = self._ranked_by(problem, trials, self.cost).value(selected)
            costs = SearchSpace.of_problem(problem).price(selected)
            found.append(ScoredArch(selected, -expected, costs))
        return SearchResult(
            selected,
            found,
            self.metric,
            self.cost,
            self.chosen(problem, trials, self.ranked_first(problem.front)),
            {f"trial_{name}": value for name, value in scores.items() if name[:3] == "val"},
            sum(trial.seconds for trial in trials),
            sum(trial.cpu_seconds for trial in trials),
        )

    def chosen(
        self, problem: SearchProblem, trials: Sequence[Trial], size: int, cost: str | None = None
    ) -> list[Arch]:
        """The networks to be trained, the cheapest first.

        They are the front of the scores, thinned. Where networks trained alone depart from their
        scores they are chosen by a `Prediction`, scored or not, by the largest expected
        hypervolume. One network is the best by score; of short trainings, which are few, the best
        by its expected score.

        Args:
            trials: the scored networks, inside the budgets.
            size: how many; 1: the best.
            cost: that the front is spread over; None: that of the search.

        Raises:
            UserError: `size` below 1, or nothing was scored.
        """
        objectives = (self.metric, cost or self.cost)
        top = best(trials, *objectives)
        if size == 1 and not self._briefly:
            return [top.arch]
        if size < 1 or self._noise is None:
            return [trial.arch for trial in thinned_front(trials, objectives, size)]
        predicted = self._ranked_by(problem, trials, objectives[1])
        return [predicted.best()] if size == 1 else predicted.front(size)

    def _ranked_by(self, problem: SearchProblem, trials: Sequence[Trial], cost: str) -> Prediction:
        """Of all networks by the trials."""
        known = {trial.arch: trial.value(self.metric) for trial in comparable(trials)}
        return self._prediction(problem, trials, known, self._noise or 0.0, cost)

    def ranked_first(self, size: int) -> int:
        """Of a front of so many, how many are chosen by the ranking; the rest by `further`."""
        return size if self._noise is None else min(size, RANKED_FIRST)

    def further(
        self,
        problem: SearchProblem,
        trials: Sequence[Trial],
        trained: Mapping[Arch, Mapping[str, float]],
        cost: str | None = None,
    ) -> Arch | None:
        """The network whose training adds most to those trained; None: no other adds anything.

        How good networks are once they are trained is told by an `OptionModel` of those that are:
        beside eight of them the ranking tells nothing more (experiments/ground_truth).

        Args:
            problem: of the search.
            trials: the scored networks, inside the budgets.
            trained: networks, and their metrics once trained alone.
            cost: that the front is spread over; None: that of the search.
        """
        known = {
            arch: Trial(arch, metrics).value(self.metric)
            for arch, metrics in sorted(trained.items(), key=lambda one: one[0].hash)
        }
        found = self._prediction(problem, trials, known, TRAINING, cost or self.cost)
        return found.further()

    @property
    def _noise(self) -> float | None:
        """By how much networks trained alone depart from their scores; None: not at all."""
        found: float | None = getattr(self.evaluate, "noise", None)
        return found

    @property
    def _briefly(self) -> bool:
        """Whether networks are trained for a part of the time that they are trained for alone."""
        return self.trains and self._noise is not None

    def _prediction(
        self,
        problem: SearchProblem,
        trials: Sequence[Trial],
        known: Mapping[Arch, float],
        noise: float,
        cost: str,
    ) -> Prediction:
        """Of all networks by what is known of some; those whose scoring failed are left out."""
        scored = [trial.arch for trial in comparable(trials)]
        failed = [trial.arch for trial in trials if not trial.metrics]
        space = SearchSpace.of_problem(problem)
        return Prediction(space, known, noise, cost, scored, failed, self.seed)

    def rank(self, problem: SearchProblem, run: RunDir) -> list[Trial]:
        """The trials inside the budgets; those in the run's ``trials.jsonl`` are not repeated.

        The ranks of a distributed run score side by side and all end with the same trials. Each
        network is trained by one process: networks are small, scores must not depend on the number
        of processes, and no process has to wait for another.
        """
        with each_rank_alone(problem.data):
            return self._ranked(problem, run)

    def _ranked(self, problem: SearchProblem, run: RunDir) -> list[Trial]:
        space = SearchSpace.of_problem(problem)
        searcher, count = self._made(space)
        searcher = Agreed(searcher)
        log = TrialLog(run.trials)
        # As the first rank reads them, which may have written more by now than this one has read.
        known = broadcast(lambda: [trial.to_json() for trial in log.known.values()])
        log.known = {trial.arch.hash: trial for trial in map(Trial.from_json, known)}
        # Recorded may be the costs of another device, or before a cost was asked for.
        for trial in list(log.known.values()):
            if space.holds(trial.arch):
                arch = space.distinct.canonical(trial.arch)  # of an earlier version it may not be
                del log.known[trial.arch.hash]
                log.known[arch.hash] = replace(trial, arch=arch, costs=space.price(arch))
        total = self._count(space, count)
        if self._briefly and count and len(log.known) >= count:
            # Short trainings tell of networks inside any budget, wherever they lie themselves.
            return list(log.known.values())
        each = Told(self.metric, total, self.trains, list(log.known))
        begun = len(log.known)
        left = max(0, (total or 1) - begun)
        current().begin("ranking", "trials" if self.trains else "ranking", left, at=begun)
        if not self.halving.rungs:
            with self._outcomes(self.evaluate, problem) as outcomes:
                evaluate = recorded(outcomes, space, log, each)
                return search(searcher, evaluate, log, count, self.batch)
        folder, total = run.path / FOLDER, self.halving.rungs[-1]
        remove_leftovers(folder)
        scoring = partial(in_rungs, cast(TrainFromScratch, self.evaluate), total, folder)
        with self._outcomes(scoring, problem) as outcomes:
            evaluate = self.halving.evaluation(outcomes, space, log, each, self.metric, folder)
            found = search(searcher, evaluate, log, count, self.batch, whole=True)
        spent = sum(trial.epochs for trial in found)
        print(f"{len(found)} networks trained, {spent} epochs instead of {total * len(found)}")
        return found

    @contextmanager
    def _outcomes(
        self, factory: Callable[[SearchProblem], Scoring], problem: SearchProblem
    ) -> Iterator[Outcomes]:
        if self.workers == 1:
            yield partial(over_ranks, partial(in_turn, factory(problem)))
            return
        with Workers(factory, problem, self.workers, problem.engine) as workers:
            yield partial(over_ranks, workers)


@dataclass
class Told:
    """Tells the run's progress of each trial: where many are ranked quickly, of every tenth part.

    Args:
        metric: that decides.
        count: of the trials; None: not known before.
        each: tell of every one.
        begun: trials of an earlier session.
    """

    metric: str
    count: int | None
    each: bool
    begun: Sequence[str]  # their hashes
    best: Trial | None = None

    def __post_init__(self) -> None:
        self.numbers = {arch: number for number, arch in enumerate(self.begun, 1)}

    def __call__(self, trial: Trial) -> None:
        number = self.numbers.setdefault(trial.arch.hash, len(self.numbers) + 1)
        if self.best is None or trial.value(self.metric) < self.best.value(self.metric):
            self.best = trial
        progress, known = current(), {}
        if self.count:
            share = (number - len(self.begun)) / max(1, self.count - len(self.begun))
            progress.reach(max(0.0, share))
        of = f" of {self.count}" if self.count else ""
        epochs = f" after {trial.epochs} epochs" if trial.epochs else ""
        progress.step = f"network {number}{of}{epochs}"
        if self.metric in trial.metrics and self.each:
            known[self.metric] = trial.metrics[self.metric]
        elif not trial.metrics:
            progress.step += f" ({trial.message})"
        if self.metric in self.best.metrics:
            known[f"best {self.metric}"] = self.best.metrics[self.metric]
        tenth = number % max(1, (self.count or 1) // 10) == 0 or number == self.count
        progress.tell(known, self.each or tenth or not trial.metrics)


class RandomArch:
    """Draws one architecture, every option of every decision equally likely.

    With budgets it is the architecture inside them of the largest sum of Gumbel draws, one for each
    option; without budgets that would be the same uniform distribution (Gumbel-max).

    Args:
        supernet: a model that holds decisions.
        seed: of the draw.
    """

    leaves: ClassVar[Literal["nothing"]] = "nothing"

    def __init__(self, supernet: nn.Module, seed: int = 0) -> None:
        self.supernet, self.seed = supernet, seed

    def prepare(self, problem: SearchProblem) -> None:
        """See `nas.search.base.Search`.

        Raises:
            UserError: several networks are asked for.
        """
        if (count := problem.front) > 1:
            raise UserError(
                f"front={count}: search=random draws one network; take search=random_search "
                f"search.trials={count}, which trains {count}"
            )

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Draw; the score is the logarithm of the probability, budgets aside."""
        cost, arch = next(iter(problem.cost_models), "params"), agreed(lambda: self.draw(problem))
        costs = {name: priced.of(arch.choices) for name, priced in problem.costs.items()}
        score = -sum(log(len(d.options)) for _, d in decisions(self.supernet))
        return SearchResult(arch, [ScoredArch(arch, score, costs)], "log_probability", cost)

    def draw(self, problem: SearchProblem) -> Arch:
        """The architecture of this seed."""
        generator = torch.Generator().manual_seed(self.seed)
        if problem.budgets:
            for _, decision in decisions(self.supernet):
                decision.alpha.data = gumbel_noise(decision.alpha.data, generator)
            return problem.select()
        sample_path(self.supernet, generator)
        arch = canonical(self.supernet, arch_of(self.supernet, problem.space))
        free(self.supernet)
        return arch
