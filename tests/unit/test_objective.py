"""Task loss joined with costs."""

import pytest
import torch

from nas.errors import UserError
from nas.objective import Plain


def joined(objective: Plain, start: float, now: float) -> torch.Tensor:
    objective.start({"macs": torch.tensor(start)}, {})
    return objective(torch.tensor(2.0), {"macs": torch.tensor(now, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("relative", "log", "expected"),
    [
        (True, False, 2 + 0.5 * 30 / 60),
        (False, False, 2 + 0.5 * 30),
        (True, True, 2 + 0.5 * torch.tensor(0.5).log().item()),
        (False, True, 2 + 0.5 * torch.tensor(30.0).log().item()),
    ],
)
def test_formula(relative: bool, log: bool, expected: float) -> None:
    assert float(joined(Plain(0.5, relative, log), 60.0, 30.0)) == pytest.approx(expected)


@pytest.mark.parametrize("log", [False, True])
def test_a_change_of_unit_changes_nothing_when_relative(log: bool) -> None:
    in_bytes = joined(Plain(0.5, log=log), 6000.0, 3000.0)
    assert float(joined(Plain(0.5, log=log), 6.0, 3.0)) == pytest.approx(float(in_bytes))


def test_costs_add_up_each_relative_to_its_own_start() -> None:
    objective = Plain(1.0)
    objective.start({"params": torch.tensor(10.0), "macs": torch.tensor(1000.0)}, {})
    costs = {"params": torch.tensor(5.0), "macs": torch.tensor(250.0)}
    assert float(objective(torch.tensor(0.0), costs)) == pytest.approx(0.75)


def test_reference_is_part_of_the_checkpoint() -> None:
    saved = Plain(1.0)
    saved.start({"params": torch.tensor(10.0)}, {})
    loaded = Plain(1.0)
    loaded.load_state_dict(saved.state_dict())
    assert float(loaded(torch.tensor(0.0), {"params": torch.tensor(5.0)})) == pytest.approx(0.5)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_strength_must_be_a_finite_price(strength: float) -> None:
    with pytest.raises(UserError, match=r"objective\.strength"):
        Plain(strength)
