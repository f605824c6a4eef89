"""Recalibration: statistics as defined, and nothing else touched."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nas.errors import UserError
from nas.recalibrate import recalibrate

from .forward import Forward


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(3)
    )


def batches() -> list[torch.Tensor]:
    return [3 * torch.randn(8, 2, 6) + 1 for _ in range(4)]


def test_statistics_are_those_of_all_samples():
    network, xs = net(), batches()
    assert recalibrate(network, xs) == 4
    outputs = [network[0](x) for x in xs]
    assert_close(network[1].running_mean, torch.cat(outputs).mean((0, 2)))
    assert_close(network[1].running_var, torch.cat(outputs).var((0, 2)))
    assert network[1].num_batches_tracked == 4
    # The second norm sees outputs of the first as it normalises each batch, without dropout.
    inner = [
        nn.functional.batch_norm(y, None, None, network[1].weight, network[1].bias, True).relu()
        for y in outputs
    ]
    assert_close(network[4].running_mean, torch.cat(inner).mean((0, 2)))
    assert_close(network[4].running_var, torch.cat(inner).var((0, 2)))


NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@settings(max_examples=30)
@given(
    st.sampled_from([2, 3, 4, 5]),
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 1),
    st.booleans(),
    st.sampled_from([0.0, 1e3]),
    st.integers(0, 2**16),
)
def test_any_split_gives_the_first_norm_what_one_batch_would(ndim, sizes, sync, shift, seed):
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes), 3, *[2] * (ndim - 2)) * 3 + shift
    kind = nn.SyncBatchNorm if sync else NORMS[max(ndim, 3)]
    norm, whole = kind(3), NORMS[max(ndim, 3)](3, momentum=1.0)
    whole(x)
    recalibrate(nn.Sequential(norm, nn.Flatten()), x.split(sizes))
    assert_close(norm.running_mean, whole.running_mean)
    assert_close(norm.running_var, whole.running_var, rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


@given(st.permutations([1, 1, 3, 8]))
def test_a_norm_that_is_called_twice_pools_both_calls(sizes):
    norm, x = nn.BatchNorm1d(3), torch.randn(13, 3)
    network = Forward(lambda self, x: self.norm(2 * self.norm(x) + 1), norm=norm)
    recalibrate(network, [x])
    second = 2 * nn.functional.batch_norm(x, None, None, training=True) + 1
    both = torch.cat([x, second])
    assert_close(norm.running_mean, both.mean(0))
    assert_close(norm.running_var, both.var(0))
    recalibrate(network, x.split(sizes))
    assert all(value.isfinite().all() for value in norm.state_dict().values())


def test_a_norm_that_does_more_does_it_meanwhile():
    class Doubled(nn.BatchNorm1d):
        def forward(self, x):
            return 2 * super().forward(x)

    network, x = nn.Sequential(Doubled(3), nn.BatchNorm1d(3)), torch.randn(9, 3) + 5
    recalibrate(network, [x])
    assert_close(network[0].running_mean, x.mean(0))
    assert_close(network[1].running_var, torch.full((3,), 4 * 9 / 8), rtol=1e-3, atol=0)
    assert "forward" not in vars(network[0])


def test_a_single_value_leaves_the_variance_where_it_starts():
    norm = nn.BatchNorm1d(2)
    recalibrate(norm, [torch.tensor([[3.0, -1.0]])])
    assert_close(norm.running_mean, torch.tensor([3.0, -1.0]))
    assert_close(norm.running_var, torch.ones(2))


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
