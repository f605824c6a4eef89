"""Task loss joined with costs: every formula by hand."""

import copy
from math import exp, inf, log, log1p, nan
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from nas.errors import UserError
from nas.objective import (
    AddLinear,
    AugmentedLagrangian,
    Constrained,
    FBNet,
    Hinge,
    MulLog,
    Objective,
    Plain,
)

P = TypeVar("P", bound=Objective)


def tensors(values: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def loss(objective: Objective, task: float = 2.0, **costs: float) -> float:
    return float(objective(torch.tensor(task), tensors(costs)))


def started(objective: P, **reference_and_target: tuple[float, float]) -> P:
    pairs = reference_and_target.items()
    reference = tensors({name: reference for name, (reference, _) in pairs})
    objective.start(reference, {name: target for name, (_, target) in pairs})
    return objective


@pytest.mark.parametrize(
    ("relative", "in_logs", "expected"),
    [
        (True, False, 2 + 0.5 * 30 / 60),
        (False, False, 2 + 0.5 * 30),
        (True, True, 2 + 0.5 * log(30 / 60)),
        (False, True, 2 + 0.5 * log(30)),
    ],
)
def test_plain(relative: bool, in_logs: bool, expected: float) -> None:
    objective = started(Plain(0.5, relative, in_logs), macs=(60.0, 10.0))
    assert loss(objective, macs=30.0) == pytest.approx(expected)


def test_hinge_adds_up_what_exceeds() -> None:
    objective = started(Hinge(0.5), params=(9.0, 10.0), macs=(9.0, 100.0), bytes=(9.0, 4.0))
    costs = {"params": 15.0, "macs": 90.0, "bytes": 5.0}
    assert loss(objective, **costs) == pytest.approx(2 + 0.5 * (0.5 + 0 + 0.25))


def test_add_linear_rewards_what_falls_short_too() -> None:
    objective = started(AddLinear(), params=(9.0, 10.0), macs=(9.0, 100.0))
    assert loss(objective, params=15.0, macs=90.0) == pytest.approx(2 + 0.1 * (0.5 - 0.1))


def test_mul_log_multiplies_over_costs() -> None:
    objective = started(MulLog(scale=50.0), params=(8.0, 4.0), macs=(100.0, 10.0))
    params, macs = (log1p(50 * c / r) / log1p(50 * t / r) for c, t, r in [(6, 4, 8), (5, 10, 100)])
    expected = 0.2 * 2 * params**0.3 * macs**0.3
    assert loss(objective, params=6.0, macs=5.0) == pytest.approx(expected)


def test_mul_log_is_the_papers_in_the_unit_in_which_the_mean_network_measures_scale() -> None:
    objective = started(MulLog(scale=1e6), latency=(1e6, 3e5))
    expected = 0.2 * 2 * (log(5e5) / log(3e5)) ** 0.3
    assert loss(objective, latency=5e5) == pytest.approx(expected, rel=1e-5)


def test_fbnet_raises_the_logarithm_not_its_argument() -> None:
    objective = started(FBNet(), latency=(20.0, 10.0), macs=(9.0, 1.0))
    expected = 0.2 * 2 * log1p(2e4 * 15 / 20) ** 0.6 * log1p(2e4 * 3 / 9) ** 0.6
    assert loss(objective, latency=15.0, macs=3.0) == pytest.approx(expected)


@pytest.mark.parametrize("make", [MulLog, FBNet])
def test_logarithms_have_a_finite_slope_where_nothing_is_left_to_pay(make: Any) -> None:
    cost = torch.zeros((), dtype=torch.float64, requires_grad=True)
    started(make(), params=(8.0, 4.0))(torch.tensor(2.0), {"params": cost}).backward()
    assert cost.grad is not None
    assert cost.grad.isfinite()


def test_constrained_makes_each_excess_as_bad_as_the_task_loss_after_warm_up() -> None:
    objective = started(Constrained(), params=(30.0, 10.0), macs=(150.0, 100.0))
    # Of 1/100 at first: strengths 2 / 2 and 2 / 0.5 of the relative excess.
    assert loss(objective, 2.0, params=30.0, macs=150.0) == pytest.approx(2 + 0.01 * (2 + 2))
    assert objective.state() == pytest.approx({"strength/params": 0.01, "strength/macs": 0.04})

    objective.update({}, 0.25)
    half = 0.01 + 0.99 * 0.5
    # Of the first task loss, not of later ones.
    assert loss(objective, 1.0, params=30.0, macs=80.0) == pytest.approx(1 + half * 2)
    for progress in (0.5, 1.0):
        objective.update({}, progress)
        assert loss(objective, 1.0, params=20.0, macs=150.0) == pytest.approx(1 + 1 + 2)


def test_constrained_takes_its_strength_from_the_task_loss_without_a_gradient() -> None:
    objective = started(Constrained(), params=(30.0, 10.0))
    for _ in range(2):  # the second step has the first one's graph no more
        task = torch.tensor(2.0, requires_grad=True)
        objective(task**2, tensors({"params": 30.0})).backward()
        assert task.grad == 2 * 2


@pytest.mark.parametrize("reference", [5.0, 10.0, 10.0001], ids=["inside", "equal", "just above"])
def test_constrained_prices_a_search_that_starts_inside_or_at_the_budget(reference: float) -> None:
    objective = started(Constrained(margin=0.1), params=(reference, 10.0))
    assert loss(objective, params=5.0) == 2
    objective.update({}, 1.0)
    # 10 % above costs the task loss, and so in proportion.
    assert loss(objective, params=10.5) == pytest.approx(2 + 1)


def test_augmented_lagrangian_for_three_updates_by_hand() -> None:
    objective = started(AugmentedLagrangian(0.5, rho_max=1.5, ramp=0.0), params=(exp(2), 1.0))
    # mu 0, rho 0.5, g 2
    assert loss(objective, params=exp(2)) == pytest.approx(2 + (0.5 * 2) ** 2 / (2 * 0.5))

    def update(g: float, **expected: float) -> None:
        objective.update(tensors({"params": exp(g)}), 1.0)
        state = {f"{name}/params": value for name, value in expected.items()}
        assert objective.state() == pytest.approx({**state, "budget/params": 1.0})

    update(1.9, multiplier=0.95, strength=1.0)  # 1.9 > 0.9 * 2: too slow
    update(0.2, multiplier=1.15, strength=1.0)  # fast enough
    force = 1.15 + 1.0 * 0.3
    assert loss(objective, params=exp(0.3)) == pytest.approx(2 + (force**2 - 1.15**2) / 2)
    update(0.3, multiplier=1.45, strength=1.5)  # grew; at most rho_max
    update(-0.5, multiplier=0.7, strength=1.5)  # inside: the price falls,
    update(-0.5, multiplier=0.0, strength=1.5)  # to 0 and not below
    assert loss(objective, params=exp(-0.5)) == pytest.approx(2)


def test_augmented_lagrangian_gets_no_stronger_inside_the_budget() -> None:
    objective = started(AugmentedLagrangian(ramp=0.0), params=(1.0, 2.0))
    for cost in (1.0, 1.5, 2.0):
        objective.update(tensors({"params": cost}), 1.0)
    assert objective.state()["strength/params"] == 1


def test_augmented_lagrangian_has_a_price_for_each_cost() -> None:
    objective = started(AugmentedLagrangian(ramp=0.0), params=(4.0, 2.0), macs=(4.0, 8.0))
    objective.update(tensors({"params": 3.0, "macs": 4.0}), 0.1)
    state = objective.state()
    assert state["multiplier/params"] == pytest.approx(log(1.5))
    assert state["multiplier/macs"] == 0


def test_augmented_lagrangian_moves_from_the_mean_network_to_the_budget() -> None:
    objective = started(AugmentedLagrangian(ramp=0.5), params=(100.0, 1.0), macs=(1.0, 4.0))
    for progress, share in [(0.0, 0.05), (0.25, 0.525), (0.5, 1.0), (1.0, 1.0)]:
        if progress:
            objective.update(tensors({"params": 1.0, "macs": 1.0}), progress)
        assert objective.state()["budget/params"] == pytest.approx(100 ** (1 - share))
        assert objective.state()["budget/macs"] == 4


def test_costs_are_matched_by_name() -> None:
    objective = started(Hinge(), params=(9.0, 10.0), macs=(9.0, 100.0))
    assert loss(objective, macs=100.0, params=15.0) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((kind, "strength") for kind in (Plain, Hinge, AddLinear)),
        *((kind, name) for kind in (MulLog, FBNet) for name in ("a", "b", "scale")),
        (Constrained, "margin"),
        *((AugmentedLagrangian, name) for name in ("rho", "rho_max", "ramp")),
    ],
)
@pytest.mark.parametrize("value", [-0.1, nan, inf])
def test_arguments_must_be_finite_and_not_negative(make: Any, name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"objective\.{name}={value}"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (MulLog, {"a": 0}),
        (FBNet, {"scale": 0}),
        (Constrained, {"margin": 0}),
        (AugmentedLagrangian, {"rho": 0}),
        (AugmentedLagrangian, {"rho": 2, "rho_max": 1}),
        (AugmentedLagrangian, {"ramp": 1.5}),
    ],
)
def test_senseless_arguments_are_refused(make: Any, arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"objective\.{list(arguments)[-1]}"):
        make(**arguments)


def test_a_cost_that_is_0_for_every_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"'params' is 0 .* leave it out"):
        started(Plain(), params=(0.0, 1.0))


def test_a_multiplier_goes_on_where_it_was_saved() -> None:
    saved = started(AugmentedLagrangian(), params=(4.0, 1.0), macs=(4.0, 2.0))
    saved.update(tensors({"params": 3.0, "macs": 3.0}), 0.1)
    loaded = AugmentedLagrangian()
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    for objective in (saved, loaded):
        objective.update(tensors({"params": 3.5, "macs": 1.0}), 0.2)
    assert loaded.state() == saved.state()
