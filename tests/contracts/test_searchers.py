"""What holds for every searcher: inside the budgets, resumable, better than luck."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from nas import ChoiceBlock, MACs, Params, build_op
from nas.arch import Arch
from nas.config.help import config_dir
from nas.cost.expected import expected
from nas.errors import UserError
from nas.pareto import hypervolume
from nas.search import searchers
from nas.search.additive import RANGE, Additive
from nas.search.evaluate import ShortTraining
from nas.search.predictor import Predictor, enlarged
from nas.search.searchers import (
    SEARCHERS,
    Enumerate,
    check_name,
    make,
    search,
)
from nas.search.space import SearchSpace
from nas.search.trial_search import TrialSearch
from nas.search.trials import Trial, TrialLog
from nas.search.zero_cost import ZeroCost

OPS = ("conv_k3", "conv_k5", "sep_k3", "identity")
OBJECTIVES = ("val_loss", "params")


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """4 x 4 x 4 networks of convolutions, priced by their parameters."""
    blocks = [ChoiceBlock({name: build_op(name, 4, 4) for name in OPS}) for _ in range(3)]
    model = nn.Sequential(*blocks)
    costs = {"params": expected(model, Params(), (4, 8, 8))}
    return SearchSpace.of(model, "s", costs, {})


def within(space: SearchSpace, share: float) -> SearchSpace:
    prices = [space.price(arch)["params"] for arch in space]
    bound = min(prices) + share * (max(prices) - min(prices))
    return replace(space, budgets={"params": bound})


def loss(arch: Arch) -> float:
    """Falls with the work an op does; the middle block counts most."""
    worth = dict(zip(OPS, (0.6, 1.0, 0.5, 0.0), strict=True))
    parts = [worth[str(option)] for option in arch.choices.values()]
    return 3 - parts[0] - 1.5 * parts[1] - 0.5 * parts[2] + 0.1 * parts[0] * parts[2]


def scoring(space: SearchSpace, log: TrialLog, asked: list[str]):
    def evaluate(archs: Sequence[Arch]) -> None:
        for arch in archs:
            asked.append(arch.hash)
            log.append(Trial(arch, {"val_loss": loss(arch)}, space.price(arch)))

    return evaluate


def run(name: str, space: SearchSpace, path, trials: int, batch: int = 1):
    log, asked = TrialLog(path), []
    searcher, _ = make(name, space, 3, OBJECTIVES, trials)
    found = search(searcher, scoring(space, log, asked), log, trials, batch)
    return [trial.arch.hash for trial in found], asked


@pytest.mark.parametrize("name", SEARCHERS)
def test_only_architectures_inside_the_budgets_and_none_scored_twice(name, space, tmp_path):
    tight = within(space, 0.3)
    found, asked = run(name, tight, tmp_path / "t.jsonl", 12, batch=3)
    inside = {arch.hash for arch in tight}
    assert len(inside) < 30  # so that most draws are outside
    assert len(found) == 12
    assert set(found) <= inside
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(name, space, tmp_path):
    whole, _ = run(name, space, tmp_path / "whole.jsonl", 20)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_text("".join(lines[:13]) + lines[13][:30])
    resumed, asked = run(name, space, tmp_path / "cut.jsonl", 20)
    assert resumed == whole
    assert asked == whole[13:]


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_space_that_runs_out_ends_the_search(name, space, tmp_path):
    tight = within(space, 0.05)
    few = {arch.hash for arch in tight}
    found, _ = run(name, tight, tmp_path / "t.jsonl", 50)
    assert set(found) == few


TABLE = SearchSpace(
    "t", {str(i): (0, 1, 2, 3, 4) for i in range(5)}, ordered=frozenset(map(str, range(5)))
)


def measured(arch: Arch) -> dict[str, float]:
    """Two scores at odds: loss falls and time rises with the options, not alike in each place."""
    x = np.array([arch.choices[name] for name in TABLE.options], dtype=float)
    loss = 1 + ((4 - x) ** 2 * (1.0, 0.2, 0.6, 0.1, 0.4)).sum() + 0.5 * abs(x[0] - x[1])
    return {"val_loss": float(loss), "ms": float(1 + (x * (0.3, 2.0, 1.0, 1.5, 0.4)).sum())}


LEARNING = sorted(set(SEARCHERS) - {"enumerate", "random"})


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns(name, tmp_path):
    """80 trials of 3,125 cover more than 80 random ones nearly always do."""
    objectives, log = ("val_loss", "ms"), TrialLog(tmp_path / "t.jsonl")
    log.append = lambda trial: log.known.update({trial.arch.hash: trial})  # spare the disk

    def evaluate(archs):
        for arch in archs:
            log.append(Trial(arch, measured(arch)))

    def volume(archs):
        return hypervolume([tuple(measured(arch).values()) for arch in archs], (30, 22))

    searcher, _ = make(name, TABLE, 0, objectives, 80)
    own = volume([trial.arch for trial in search(searcher, evaluate, log, 80)])
    generator = torch.Generator().manual_seed(0)
    random = [volume([TABLE.draw(generator) for _ in range(80)]) for _ in range(20)]
    assert own > np.quantile(random, 0.9)


def test_an_additive_model_expects_less_of_each_further_step():
    """Else a budget is spent on the decisions whose steps cost least, and others starve."""
    own = Additive(TABLE, 0, ("val_loss",))
    draws = np.mean([own._weights(0) for _ in range(2000)], axis=0).reshape(5, 5)
    steps = draws[:, 1:].mean(axis=0)
    assert (steps < 0).all()
    assert steps[0] < 1.5 * steps[1] < 1.5 * 1.2 * steps[2]
    assert steps.sum() == pytest.approx(-RANGE / 5, rel=0.1)


def test_an_additive_model_takes_the_order_of_options_from_their_decisions():
    """Names and descending numbers may have an order, and ascending numbers none."""
    options = {"there": ("identity", "given"), "dilation": (8, 4, 2, 1), "kind": (1, 2, 3, 4)}
    space = SearchSpace("s", options, ordered=frozenset({"there", "dilation"}))
    found = [Additive(space, seed, ("val_loss",)).ask(1)[0].choices for seed in range(60)]
    last = {n: sum(one[n] == own[-1] for one in found) for n, own in options.items()}
    assert last["there"] > 40
    assert last["dilation"] > 30 > 25 > last["kind"]


def counted() -> SearchSpace:
    """4 x 4 x 4 networks, priced by parameters and MACs, which do not always go together."""
    blocks = [ChoiceBlock({name: build_op(name, 4, 4) for name in OPS}) for _ in range(2)]
    model = nn.Sequential(
        *blocks, nn.MaxPool2d(2), ChoiceBlock({n: build_op(n, 4, 4) for n in OPS})
    )
    costs = {c.name: expected(model, c, (4, 8, 8)) for c in (Params(), MACs())}
    return SearchSpace.of(model, "s", costs, {})


@pytest.mark.parametrize("whole", [20_000, 0])
def test_the_start_is_on_the_front_of_macs_over_the_cost(whole, monkeypatch):
    monkeypatch.setattr("nas.search.space.WHOLE", whole)
    space = counted()
    found = space.most_macs("params", 4, np.random.default_rng(0))
    assert len({arch.hash for arch in found}) == 4
    for arch in found:
        own = space.price(arch)
        assert not any(
            p["params"] <= own["params"] and p["macs"] > own["macs"]
            for p in map(space.price, space)
        )
    first = space.start(OBJECTIVES, 3)
    for name in sorted({*LEARNING} - {"additive"}):  # its model begins with "larger is better"
        searcher, _ = make(name, space, 3, OBJECTIVES, 20)
        assert [a.hash for a in searcher.ask(len(first))] == [arch.hash for arch in first], name


def test_the_region_is_the_budget_or_the_space_and_not_the_front_found():
    space = counted()
    searcher = Predictor(space, 0, OBJECTIVES, startup=2)
    prices = [space.price(arch)["params"] for arch in space]
    points = np.array([[2.0, min(prices)], [1.9, min(prices) + 1]])
    assert searcher._corner(points)[1] == pytest.approx(1.05 * max(prices))
    bound = sorted(prices)[30]
    tight = replace(space, budgets={"params": bound})
    assert Predictor(tight, 0, OBJECTIVES)._corner(points)[1] == pytest.approx(1.05 * bound)


def test_enumeration_is_exact_and_refuses_what_is_large(space, tmp_path):
    found, _ = run("enumerate", space, tmp_path / "t.jsonl", None)
    assert len(set(found)) == len(found) == 64
    with pytest.raises(UserError, match="64 architectures, more than the 10"):
        Enumerate(space, limit=10)


def test_repair_changes_as_little_as_possible(space):
    tight = within(space, 0.3)
    for arch in space:
        repaired = tight.repaired(arch)
        assert tight.fits(repaired)
        apart = distance(repaired, arch)
        assert apart == min(distance(other, arch) for other in tight)


def distance(a: Arch, b: Arch) -> int:
    return sum(a.choices[name] != b.choices[name] for name in a.choices)


def test_prices_of_many_are_the_prices_of_each(space):
    archs = list(space)
    picks = np.array([list(space.indices(arch).values()) for arch in archs])
    assert space.prices("params", picks).tolist() == [space.price(a)["params"] for a in archs]


def test_random_draws_are_uniform(space):
    generator = torch.Generator().manual_seed(0)
    counts: dict[str, int] = {}
    for _ in range(6400):
        name = space.draw(generator).hash
        counts[name] = counts.get(name, 0) + 1
    chi = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi < 104  # 63 degrees of freedom, p = 0.001


def test_what_a_point_adds_to_a_front_is_the_difference_of_hypervolumes():
    rng = np.random.default_rng(0)
    corner = np.array([0.9, 0.8])
    for _ in range(50):
        front, found = rng.random((rng.integers(1, 8), 2)), rng.random((5, 2))
        gains = enlarged(found, front, corner)
        for point, gain in zip(found, gains, strict=True):
            more = hypervolume(np.vstack([front, point]), corner) - hypervolume(front, corner)
            assert gain == pytest.approx(more, abs=1e-12)


def test_an_unknown_searcher_is_named():
    with pytest.raises(UserError, match=r"nsga3.*there are auto, enumerate"):
        check_name("nsga3")


def test_every_searcher_has_a_yaml():
    files = {path.stem.removesuffix("_search") for path in (config_dir() / "search").glob("*.yaml")}
    assert set(SEARCHERS) <= files


@pytest.mark.parametrize(
    ("evaluate", "size", "name"),
    [
        (ZeroCost(), 3000, "nsga2"),  # choosing by a model would take far longer than scoring
        (ShortTraining(), 3000, "predictor"),
        (ZeroCost(), 1000, "enumerate"),
    ],
)
def test_auto_takes_a_searcher_that_suits_the_size_and_the_scores(evaluate, size, name):
    made = {key: lambda *_, key=key: key for key in SEARCHERS}
    search = TrialSearch(nn.Identity(), "auto", evaluate, metric="zero_cost_score")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(searchers, "SEARCHERS", made)
        assert search._made(cast(Any, SimpleNamespace(size=size)))[0] == name
