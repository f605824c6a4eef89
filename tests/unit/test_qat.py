"""Rounding as int8 rounds, with gradients; fine-tuning that leaves the network's layers alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas.export.int8 import RoundedInput, RoundedWeight, fine_tune
from nas.tasks.classification import Classification


@given(st.integers(0, 2**16), st.sampled_from([(3, 5), (4, 2, 3), (2, 3, 3, 3)]))
def test_weights_are_rounded_as_torch_fakes_int8_per_channel(seed, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    scale = weight.detach().abs().flatten(1).amax(1) / 127
    expected = torch.fake_quantize_per_channel_affine(
        weight.detach(), scale, torch.zeros(len(scale), dtype=torch.int32), 0, -127, 127
    )

    found = RoundedWeight()(weight)
    found.sum().backward()

    torch.testing.assert_close(found.detach(), expected)
    assert torch.equal(weight.grad, torch.ones(shape))


@given(st.integers(0, 2**16), st.floats(-3, 0), st.floats(0.1, 3))
def test_inputs_are_rounded_within_half_a_step_and_without_gradient_outside(seed, low, high):
    x = (4 * torch.randn(50, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    step = (high - low) / 255

    rounding = RoundedInput(momentum=0)
    rounding.range = torch.tensor(low), torch.tensor(high)
    (found,) = rounding(nn.Identity(), (x,))
    found.sum().backward()

    inside, outside = (x > low) & (x < high), (x < low - 1.01 * step) | (x > high + 1.01 * step)
    # A whole step at the ends, where 0 is moved onto a level.
    assert (found - x.clamp(low, high)).abs().max() <= 1.01 * step
    assert len(found.detach().div(step).round().unique()) <= 256
    assert torch.equal(x.grad[inside], torch.ones(int(inside.sum())))
    assert not x.grad[outside].any()
    assert not rounding(nn.Identity(), (torch.zeros(1),))[0].any()


def problem() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(64, 3))
    batches = [(torch.randn(8, 1, 6, 6), torch.randint(3, (8,))) for _ in range(4)]
    for x, _ in batches:
        network(x)
    return network.eval(), batches


def test_the_layers_and_statistics_stay_and_the_loss_under_rounding_falls():
    network, batches = problem()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    trained = fine_tune(network, Classification(), batches, epochs=8, lr=0.05, seed=0)

    assert not trained.training
    assert str(trained) == str(network)
    assert trained.state_dict().keys() == before.keys()
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(trained[1].running_mean, network[1].running_mean)
    assert not torch.equal(trained[0].weight, network[0].weight)

    def loss(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(nn.functional.cross_entropy(model(x), y)) for x, y in batches)

    assert loss(trained) < 0.8 * loss(network)


def test_it_repeats_to_the_bit():
    (network, batches), again = problem(), problem()
    first, second = (
        fine_tune(net, Classification(), batches, epochs=2, lr=0.01, seed=3)
        for net in (network, again[0])
    )
    assert torch.equal(first[0].weight, second[0].weight)
