"""What some scores say of all networks of a space: which may be trained, and which are chosen."""

from itertools import product
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

import nas
from nas.arch import Arch
from nas.cost.expected import ExpectedCost
from nas.pareto import hypervolume, thinned
from nas.search import space as spaces
from nas.search.evaluate import ShortTraining
from nas.search.model import near_front
from nas.search.prediction import Prediction
from nas.search.space import SearchSpace

OPTIONS = ("none", "k1", "k3", "k5")


def made(blocks: int = 3, share: float | None = None) -> SearchSpace:
    """Blocks of 4 options; inside `share` of the parameters of the largest network."""
    layers = {"k1": 1, "k3": 3, "k5": 5}
    supernet = nn.Sequential(
        nn.Conv1d(2, 2, 1),
        *(
            nas.ChoiceBlock(
                {
                    "none": nn.Identity(),
                    **{n: nn.Conv1d(2, 2, k, padding=k // 2) for n, k in layers.items()},
                }
            )
            for _ in range(blocks)
        ),
    )
    costs = {"params": ExpectedCost(supernet, nas.Params(), (2, 8))}
    largest = costs["params"].of({str(i + 1): "k5" for i in range(blocks)})
    budgets = {} if share is None else {"params": share * largest}
    return SearchSpace.of(supernet, "s", costs, budgets)


def error(arch: Arch) -> float:
    """Lower with larger kernels, most in the first block."""
    kernels = [OPTIONS.index(str(option)) for option in arch.choices.values()]
    return float(np.exp(-sum(k / (2 + i) for i, k in enumerate(kernels))))


def predicted(space: SearchSpace, every: int, noise: float = 1e-6) -> Prediction:
    scored = list(space)[::every]
    return Prediction(space, {arch: error(arch) for arch in scored}, noise, "params")


@pytest.mark.parametrize("share", [None, 0.7, 0.3])
def test_all_networks_inside_the_budgets_may_be_trained(share: float | None) -> None:
    space = made(share=share)
    found = predicted(space, every=5)
    assert [found._arch(i) for i in range(len(found.picks))] == list(space)


@pytest.mark.parametrize("share", [None, 0.5])
def test_of_a_large_space_the_neighbours_of_what_was_scored(
    share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = made(4, share)
    monkeypatch.setattr(spaces, "WHOLE", 10)
    scored = list(space)[3:9:2]
    found = Prediction(space, {arch: error(arch) for arch in scored}, 0.1, "params")
    near = {
        arch
        for arch in space
        if min(sum(arch.choices[n] != one.choices[n] for n in arch.choices) for one in scored) <= 1
    }
    assert {found._arch(i) for i in range(len(found.picks))} == near


def test_what_could_not_be_scored_is_never_chosen() -> None:
    space = made()
    scored = list(space)[::3]
    scores = {arch: error(arch) for arch in scored}
    best = min(space, key=error)
    assert Prediction(space, scores, 1e-6, "params").best() == best
    without = Prediction(space, scores, 1e-6, "params", without=[best])
    assert without.best() != best
    assert best not in without.front(20)


def test_a_network_without_a_score_is_found_where_effects_add_up() -> None:
    space = made()
    best = min(space, key=error)
    scores = {arch: error(arch) for arch in space if arch != best and int(arch.hash, 16) % 2}
    found = Prediction(space, scores, 1e-3, "params")
    assert found.best() == best
    assert found.value(best) == pytest.approx(error(best), rel=0.2)
    negative = Prediction(space, {a: -1 / s for a, s in scores.items()}, 1e-3, "params")
    assert negative.value(best) < 0


def test_fronts_of_all_networks_hold_more_than_those_of_the_scored_ones() -> None:
    space, gains = made(4), []
    archs = list(space)
    errors = np.log([error(arch) for arch in archs])
    costs = np.log(space.prices("params", space.picks(archs)) + 1)
    corner = np.array([errors.max(), costs.max() + 0.1])

    def volume(taken: list[Arch]) -> float:
        places = [archs.index(arch) for arch in taken]
        return hypervolume(np.stack([errors[places], costs[places]], axis=1), corner)

    for seed in range(4):
        rng = np.random.default_rng(seed)
        taken = rng.permutation(len(archs))[:28]
        seen = {archs[i]: float(np.exp(errors[i] + 0.2 * rng.standard_normal())) for i in taken}
        own = np.stack([np.log(list(seen.values())), costs[taken]], axis=1)
        best = [archs[taken[i]] for i in thinned(own, 8)]
        gains.append(volume(Prediction(space, seen, 0.3, "params").front(8)) - volume(best))
    assert min(gains) > 0


def test_the_next_network_is_none_of_those_trained_and_none_where_nothing_adds() -> None:
    space = made()
    found = predicted(space, every=7, noise=0.15)
    assert found.further() not in found.scored
    assert predicted(space, every=1).further() is None


@pytest.mark.parametrize("count", [1, 5, 40])
def test_near_the_front_are_the_least_worse_than_what_costs_no_more(count: int) -> None:
    rng = np.random.default_rng(count)
    values, costs = rng.standard_normal(30), rng.integers(1, 6, 30).astype(float)
    above = [v - values[costs <= c].min() for v, c in zip(values, costs, strict=True)]
    kept = near_front(values, costs, count)
    assert len(kept) == min(count, 30)
    left = set(range(30)) - set(kept.tolist())
    assert max(above[i] for i in kept) <= min((above[i] for i in left), default=np.inf)


def test_options_as_rows_of_numbers_and_back() -> None:
    space = made()
    archs = list(space)
    picks = space.picks(archs)
    assert picks.tolist() == [list(row) for row in product(range(4), repeat=3)]
    assert len(archs) == prod(map(len, space.options.values()))
    assert space.picks([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("given", "recipe", "epochs"), [(None, 15, 4), (None, 8, 2), (None, 1, 2), (1, 15, 1)]
)
def test_a_short_training_is_a_quarter_of_the_recipe(
    given: int | None, recipe: int, epochs: int
) -> None:
    problem: Any = SimpleNamespace(epochs=recipe)
    assert ShortTraining(given).epochs_of(problem) == epochs
