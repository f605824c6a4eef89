"""The most probable architecture inside every budget, exactly; or why there is none.

Picking one option per decision to maximise ``sum log p`` under ``c_i <= T_i`` is a multiple-choice
knapsack, solved to the optimum by `nas.cost.integer_program`.
"""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from nas.arch import Arch
from nas.cost.expected import Expected
from nas.cost.integer_program import IntegerProgram, Limit, Optimum, worst
from nas.decision import decisions
from nas.discretization import arch_of
from nas.distinct import Distinct, canonical
from nas.errors import UserError
from nas.pareto import thinned
from nas.quantities import amount

Costs = Mapping[str, Expected]
Budgets = Mapping[str, float]  # name of a cost -> at most so much, in its unit
PRICES = 4  # budgets that a front is looked for at, for each network that is asked for


def least_of(cost: Expected) -> float:
    """The smallest cost that an architecture of the space has."""
    if (alone := _alone(cost, min)) is not None:
        return alone
    found = IntegerProgram(cost.options).minimise(cost.constraints)
    assert found is not None
    return found.value


def largest_of(cost: Expected) -> float:
    """The largest cost that an architecture of the space has."""
    if (alone := _alone(cost, max)) is not None:
        return alone
    found = IntegerProgram(cost.options).maximise(cost.constraints)
    assert found is not None
    return found.value


def _alone(cost: Expected, best: Callable[..., int]) -> float | None:
    """The least or largest cost if each decision adds to it by itself, without SciPy; else None."""
    terms, *others = cost.constraints
    if others or any(len(term) > 1 for term in terms):
        return None
    choices = {
        name: best(range(count), key=lambda k: terms.get(frozenset({(name, k)}), 0.0))
        for name, count in cost.options.items()
    }
    return worst([terms], choices)


def check_feasible(costs: Costs, budgets: Budgets) -> None:
    """Refuse budgets that no network of the space meets.

    Raises:
        UserError: which budget cannot be met, alone or together with others, and by how much.
    """
    least = {name: least_of(costs[name]) for name in budgets}
    alone = [
        f"budget.{name}={amount(bound, costs[name].unit)} cannot be met: no network of "
        f"this space has less than {amount(least[name], costs[name].unit)}"
        for name, bound in budgets.items()
        if least[name] > bound
    ]
    if alone:
        raise UserError("; ".join(alone) + ". Raise the budget or choose a space with smaller ops")
    if len(budgets) < 2:
        return
    nearest = _nearest(costs, budgets)
    if nearest.value > 1 + 1e-12:
        parts = [
            f"{name} {amount(worst(costs[name].constraints, nearest.choices), costs[name].unit)} "
            f"(budget {amount(bound, costs[name].unit)}, alone reachable: "
            f"{amount(least[name], costs[name].unit)})"
            for name, bound in budgets.items()
        ]
        raise UserError(
            "no network of this space meets all budgets at once; the nearest has "
            f"{', '.join(parts)}. Raise them by a factor {nearest.value:.3f} or choose another "
            "space"
        )


def _nearest(costs: Costs, budgets: Budgets) -> Optimum:
    """The architecture of the least ``max_i c_i / T_i``."""
    scaled = [
        {term: c / bound for term, c in terms.items()}
        for name, bound in budgets.items()
        for terms in costs[name].constraints
    ]
    options = next(iter(costs.values())).options
    found = IntegerProgram(options).minimise(scaled)
    assert found is not None
    return found


def log_probabilities(supernet: nn.Module) -> dict[str, Tensor]:
    """Decision -> log softmax(alpha) over its options, without noise."""
    return {
        name: decision.alpha.detach().double().cpu().log_softmax(-1)
        for name, decision in decisions(supernet)
    }


def log_probability(supernet: nn.Module) -> Callable[[Arch], float]:
    """A function of an architecture, ``sum log p`` of the options that it takes.

    Of what its network does not read, the most probable option counts: no other of that network is
    more probable.
    """
    distinct, log_p = Distinct.of(supernet), log_probabilities(supernet)

    def of(arch: Arch) -> float:
        taken = {n: p[distinct.options[n].index(arch.choices[n])] for n, p in log_p.items()}
        return float(sum((taken | {n: log_p[n].max() for n in distinct.unread(arch)}).values()))

    return of


def select(supernet: nn.Module, space: str, costs: Costs, budgets: Budgets) -> Arch:
    """The architecture of the largest ``prod p`` inside all budgets.

    Without budgets that is the best option of every decision. It is `canonical`, see
    `nas.distinct`.

    Raises:
        UserError: no architecture is inside, see `check_feasible`.

    Example:
        >>> import nas
        >>> from nas.selection import select
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> block.alpha.data[0] = 1.0
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> costs = {"params": nas.ExpectedCost(supernet, nas.Params(), (4,))}
        >>> dict(select(supernet, "mine", costs, {}).choices)
        {'0': 'linear'}
        >>> dict(select(supernet, "mine", costs, {"params": 20}).choices)
        {'0': 'skip'}
    """
    return canonical(supernet, _probable(supernet, space, costs, budgets))


def _probable(supernet: nn.Module, space: str, costs: Costs, budgets: Budgets) -> Arch:
    """The same as its alphas have it, also where its network reads none."""
    check_known(costs, budgets)
    if not budgets:
        return arch_of(supernet, space)
    score = {
        frozenset({(name, k)}): -float(p)
        for name, found in log_probabilities(supernet).items()
        for k, p in enumerate(found)
    }
    options = {name: len(decision.options) for name, decision in decisions(supernet)}
    found = IntegerProgram(options).minimise([score], limits(costs, budgets))
    if found is None:
        check_feasible(costs, budgets)
        raise UserError(f"no network of this space meets the budgets {dict(budgets)}")
    return Arch(space, {name: d.options[found.choices[name]] for name, d in decisions(supernet)})


def front(
    supernet: nn.Module, space: str, costs: Costs, budgets: Budgets, cost: str, size: int
) -> list[Arch]:
    """At most `size` architectures inside the budgets, from the cheapest to the most probable.

    One `select` for each of four times as many budgets of the cost `cost`, spread evenly in log
    scale from the least reachable to what the most probable network inside the budgets has. Of
    these, those that hold the most hypervolume of log probability and log cost together, see
    `nas.pareto.thinned`.

    Raises:
        UserError: `size` below 1, an unknown cost, or budgets that no network meets.
    """
    if size < 1:
        raise UserError(f"front={size} must be at least 1")
    check_known(costs, {cost: 0.0, **budgets})
    top = costs[cost].of(_probable(supernet, space, costs, budgets).choices)
    inner = IntegerProgram(costs[cost].options).minimise(
        costs[cost].constraints, limits(costs, budgets)
    )
    assert inner is not None
    found: dict[Arch, None] = {}
    distinct = Distinct.of(supernet)
    # The least cost may be 0, which has no place in a log scale.
    low = max(inner.value, 1e-9 * top, 1e-300)
    for bound in np.geomspace(low, max(top, low), PRICES * size):
        # geomspace rounds: its ends must let the two networks themselves in.
        arch = _probable(supernet, space, costs, {**budgets, cost: float(bound) * (1 + 1e-12)})
        found[distinct.canonical(arch)] = None
    archs = list(found)
    prices = np.log([max(costs[cost].of(arch.choices), low) for arch in archs])
    score = log_probability(supernet)
    points = [(-score(arch), price) for arch, price in zip(archs, prices, strict=True)]
    return [archs[i] for i in thinned(points, size)]


def limits(costs: Costs, budgets: Budgets) -> list[Limit]:
    """The budgets as limits of an integer program."""
    return [
        Limit(terms, bound) for name, bound in budgets.items() for terms in costs[name].constraints
    ]


def check_known(costs: Costs, budgets: Mapping[str, object]) -> None:
    """Refuse a budget of a cost that is not computed.

    Raises:
        UserError: naming it, and the costs there are.
    """
    for name in budgets:
        if name not in costs:
            raise UserError(
                f"budget.{name}: cost {name!r} is not computed in this run, only {sorted(costs)}; "
                f"add it with cost=[{','.join([*costs, name])}]"
            )
