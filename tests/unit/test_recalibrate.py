"""Recalibration: statistics as defined, and nothing else touched."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas.errors import UserError
from nas.recalibrate import recalibrate


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(3)
    )


def batches() -> list[torch.Tensor]:
    return [3 * torch.randn(8, 2, 6) + 1 for _ in range(4)]


def test_statistics_are_the_mean_over_batches():
    network, xs = net(), batches()
    assert recalibrate(network, xs) == 4
    outputs = [network[0](x) for x in xs]
    mean = torch.stack([y.mean((0, 2)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2)) for y in outputs]).mean(0)
    assert_close(network[1].running_mean, mean)
    assert_close(network[1].running_var, variance)
    # The second norm sees outputs of the first as it normalises each batch, without dropout.
    inner = [
        nn.functional.batch_norm(y, None, None, network[1].weight, network[1].bias, True).relu()
        for y in outputs
    ]
    assert_close(network[4].running_mean, torch.stack([y.mean((0, 2)) for y in inner]).mean(0))


def test_weights_modes_momenta_and_draws_stay():
    network = net().train()
    network[1].eval()
    network[4].momentum = 0.3
    before, state = copy.deepcopy(network), torch.get_rng_state()
    recalibrate(network, batches()[:1])
    del before[1].running_mean
    for (name, old), new in zip(before.named_parameters(), network.parameters(), strict=True):
        assert torch.equal(old, new), name
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]
    assert (network[1].momentum, network[4].momentum) == (0.1, 0.3)
    torch.set_rng_state(state)
    xs = batches()
    fork = torch.get_rng_state()
    recalibrate(network, xs)
    assert torch.equal(fork, torch.get_rng_state())


def test_no_batch_is_refused_and_changes_nothing():
    network = net()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match="at least one batch"):
        recalibrate(network, [])
    for name, value in network.state_dict().items():
        assert torch.equal(before[name], value), name
