"""Selection under budgets against trying all architectures."""

from functools import cache
from itertools import product
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import decisions
from nas.distinct import canonical
from nas.errors import UserError
from nas.pareto import thinned
from nas.selection import (
    check_feasible,
    front,
    largest_of,
    least_of,
    log_probabilities,
    log_probability,
    select,
)
from nas.supernet.choice import ChoiceBlock


class Nested(nn.Module):
    """Three choices, one inside an option of another; parameters and MACs disagree."""

    name = "nested"

    def __init__(self) -> None:
        super().__init__()
        inner = ChoiceBlock([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Identity()])
        self.first = ChoiceBlock([nn.Conv2d(2, 4, 5, padding=2), nn.Conv2d(2, 4, 1)])
        self.second = ChoiceBlock([nn.Sequential(nn.Conv2d(4, 4, 1), inner), nn.Identity()])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = ChoiceBlock(
            [nn.Linear(4, 10), nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 10))]
        )

    def forward(self, x):
        x = self.pool(self.second(self.first(x))).flatten(1)
        return self.last(x)


def supernet(seed: int = 0) -> tuple[nn.Module, dict[str, ExpectedCost]]:
    net = Nested()
    generator = torch.Generator().manual_seed(seed)
    for _, decision in decisions(net):
        decision.alpha.data = torch.randn(len(decision.options), generator=generator)
    traced = trace(net, (2, 6, 6))
    return net, {c.name: ExpectedCost(net, c, traced) for c in (Params(), MACs())}


@cache
def priced_archs() -> list[tuple[Arch, dict[str, float]]]:
    """All architectures with their costs, which do not depend on alphas."""
    net, costs = supernet()
    return [
        (arch, {n: cost.of(arch.choices) for n, cost in costs.items()}) for arch in all_archs(net)
    ]


def all_archs(net: nn.Module) -> list[Arch]:
    found = dict(decisions(net))
    options = [decision.options for decision in found.values()]
    return [Arch("nested", dict(zip(found, p, strict=True))) for p in product(*options)]


def score(net: nn.Module, arch: Arch) -> float:
    logs = log_probabilities(net)
    found = dict(decisions(net))
    return sum(float(logs[n][found[n].options.index(o)]) for n, o in arch.choices.items())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0.0, 1.2), st.floats(0.0, 1.2))
def test_the_most_probable_of_all_inside(seed, share_params, share_macs):
    net, costs = supernet(seed)
    shares = {"params": share_params, "macs": share_macs}
    budgets = {n: least_of(c) + shares[n] * (largest_of(c) - least_of(c)) for n, c in costs.items()}
    inside = [
        arch
        for arch, priced in priced_archs()
        if all(priced[n] <= bound for n, bound in budgets.items())
    ]
    if not inside:
        with pytest.raises(UserError, match="at once"):
            select(net, "nested", costs, budgets)
        return
    chosen = select(net, "nested", costs, budgets)
    assert all(costs[n].of(chosen.choices) <= bound for n, bound in budgets.items())
    best = pytest.approx(max(score(net, arch) for arch in inside))
    assert log_probability(net)(chosen) == best
    alike = [arch for arch in inside if canonical(net, arch) == chosen]
    assert max(score(net, arch) for arch in alike) == best


def test_without_budgets_the_best_option_of_each():
    net, costs = supernet()
    chosen = select(net, "nested", costs, {})
    assert chosen == canonical(net, Arch("nested", {name: d.best() for name, d in decisions(net)}))


def test_an_unreachable_budget_is_named_with_the_least_there_is():
    _, costs = supernet()
    least = int(least_of(costs["params"]))
    with pytest.raises(UserError, match=rf"budget\.params={least - 1} .* less than {least}"):
        check_feasible(costs, {"params": least - 1.0})
    check_feasible(costs, {"params": float(least)})


def test_budgets_that_exclude_each_other_are_named():
    small_on_every_pixel = nn.Conv2d(4, 4, 1, bias=False)  # 16 parameters, 576 MACs
    large_on_one = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 3, padding=1, bias=False))
    net = nn.Sequential(
        ChoiceBlock([nn.Sequential(small_on_every_pixel, nn.AdaptiveAvgPool2d(1)), large_on_one])
    )
    costs = {c.name: ExpectedCost(net, c, (4, 6, 6)) for c in (Params(), MACs())}
    check_feasible(costs, {"params": 16.0, "macs": 576.0})
    check_feasible(costs, {"params": 144.0, "macs": 144.0})
    with pytest.raises(
        UserError, match=r"at once.*params 144 \(budget 72, alone reachable: 16\).*factor 2"
    ):
        check_feasible(costs, {"params": 72.0, "macs": 144.0})


def test_a_front_holds_the_most_hypervolume_of_log_probability_and_log_cost():
    net, costs = supernet(3)
    many = front(net, "nested", costs, {}, "params", 50)
    score = log_probability(net)
    points = [(-score(a), log(costs["params"].of(a.choices))) for a in many]
    assert len(many) > 2
    few = front(net, "nested", costs, {}, "params", 2)
    assert few == [many[i] for i in thinned(points, 2)]


def test_a_front_goes_from_the_smallest_to_the_most_probable():
    net, costs = supernet(3)
    archs = front(net, "nested", costs, {}, "params", 8)
    values = [costs["params"].of(arch.choices) for arch in archs]
    assert values == sorted(values)
    assert len(set(values)) > 2
    assert values[0] == least_of(costs["params"])
    assert archs[-1] == select(net, "nested", costs, {})
    bound = (values[0] + values[-1]) / 2
    within = front(net, "nested", costs, {"params": bound}, "params", 8)
    assert all(costs["params"].of(arch.choices) <= bound for arch in within)


def test_a_cost_that_is_not_computed():
    net, costs = supernet()
    with pytest.raises(UserError, match=r"budget\.latency.*macs.*params"):
        select(net, "nested", costs, {"latency": 1.0})
    with pytest.raises(UserError, match="front=0"):
        front(net, "nested", costs, {}, "params", 0)
