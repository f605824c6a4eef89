"""Zero-cost scores by their formulas, on networks small enough to be worked out by hand."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.errors import UserError
from nas.search.zero_cost import naswot, synflow, zico


def test_synflow_of_linear_layers_is_their_number_times_all_paths() -> None:
    """The sum of w * dR/dw over one layer is R itself, whatever the norms between them do."""
    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
    paths = (second.weight.abs() @ first.weight.abs()).sum().item()
    network = nn.Sequential(first, nn.BatchNorm1d(4), nn.ReLU(), second)
    assert synflow(network, torch.zeros(1, 3)) == pytest.approx(log(2 * paths), rel=1e-6)


def test_synflow_without_a_path_is_minus_infinite() -> None:
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(network[0].weight)
    assert synflow(network, torch.zeros(1, 3)) == -torch.inf


def test_naswot_counts_the_signs_that_two_samples_share() -> None:
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU())
    network[0].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    x = torch.tensor([[1.0, 1.0], [-1.0, 3.0]])  # codes 111 and 011: they share two of three
    assert naswot(network, x) == pytest.approx(log(3 * 3 - 2 * 2))
    with pytest.raises(UserError, match="ReLU"):
        naswot(nn.Linear(2, 2), x)


def test_zico_is_the_mean_gradient_over_its_spread() -> None:
    network = nn.Linear(2, 1, bias=False)
    network.weight.data.zero_()
    # The gradient of the mean squared error at 0 is -2 y x.
    batches = [
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0]])),
        (torch.tensor([[3.0, 2.0]]), torch.tensor([[1.0]])),
    ]
    # First weight: -2 and -6, mean 4, spread 2. Second: -4 twice, no spread, left out.
    assert zico(network, batches, F.mse_loss) == pytest.approx(log(4 / 2))


@pytest.mark.parametrize("score", ["synflow", "naswot", "zico"])
def test_a_score_draws_nothing_and_leaves_the_statistics(score: str) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )  # fmt: skip
    x, y = torch.randn(8, 1, 6, 6), torch.arange(8) % 3
    before, drawn = network[1].running_mean.clone(), torch.get_rng_state()

    def value() -> float:
        if score == "naswot":
            return naswot(network, x)
        if score == "zico":
            return zico(network, [(x[:4], y[:4]), (x[4:], y[4:])], F.cross_entropy)
        return synflow(network, torch.zeros(1, 1, 6, 6))

    found = value()
    assert torch.equal(torch.get_rng_state(), drawn)
    if score != "synflow":  # which changes the network that it is given
        assert torch.equal(network[1].running_mean, before)
        assert value() == found
