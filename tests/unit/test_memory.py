"""Peak memory of networks small enough to count by hand, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost, expected
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock

from .forward import Forward

SHAPE = (2, 8)  # 16 values


def conv(c_in: int, c_out: int) -> nn.Conv1d:
    return nn.Conv1d(c_in, c_out, 1, bias=False)


def values(model: nn.Module, example=SHAPE, **options) -> float:
    """Peak in numbers, not bytes."""
    return PeakMemory(bits=8, **options).expected(model, example)().item()


def both(model: nn.Module, example=SHAPE) -> tuple[float, float]:
    """Fused, and as eager PyTorch allocates."""
    return values(model, example), values(model, example, fuse=False)


def test_a_perceptron():
    net = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))
    assert both(net, (4,)) == (10 + 4, 10 + 10)


def test_norm_and_activation_write_over_their_input():
    net = nn.Sequential(conv(2, 4), nn.BatchNorm1d(4), nn.Hardswish(), conv(4, 2))
    assert both(net) == (32 + 16, 32 + 32)


def test_an_input_that_a_skip_needs_is_not_written_over():
    net = Forward(lambda self, x: x + self.a(x.relu()), a=conv(2, 2))
    assert both(net) == (3 * 16, 3 * 16)
    net = Forward(lambda self, x: (x + self.a(x).relu()).relu(), a=conv(2, 2))
    assert both(net) == (3 * 16, 3 * 16)


def test_an_in_place_operator_makes_nothing_either_way():
    net = nn.Sequential(conv(2, 4), nn.ReLU(inplace=True), conv(4, 1))
    assert both(net) == (16 + 32, 16 + 32)


def test_an_in_place_operator_needs_what_it_writes():
    def forward(self, x):
        early = self.a(x)
        late = self.c(self.b(early))
        early.relu_()
        return late

    net = Forward(forward, a=conv(2, 4), b=conv(4, 8), c=conv(8, 1))
    assert both(net) == (32 + 64 + 8, 32 + 64 + 8)


def test_a_long_skip_lives_until_it_is_joined():
    def forward(self, x):
        return torch.cat([self.c(self.b(self.a(x))), x], dim=1)

    net = Forward(forward, a=conv(2, 8), b=conv(8, 8), c=conv(8, 1))
    assert both(net) == (16 + 64 + 64, 16 + 64 + 64)


def test_the_output_lives_to_the_end():
    def forward(self, x):
        first = self.a(x)
        return first, self.c(self.b(x))

    net = Forward(forward, a=conv(2, 4), b=conv(2, 8), c=conv(8, 1))
    assert both(net) == (32 + 16 + 64, 32 + 64 + 16)


def test_views_share_what_they_view():
    def forward(self, x):
        return self.a(x.view(1, 4, 4).reshape(1, 2, 8).unsqueeze(-1).squeeze(-1))

    assert both(Forward(forward, a=conv(2, 2))) == (32, 32)


def test_a_transposition_is_copied_once():
    def forward(self, x):
        y = x.transpose(1, 2)
        return y.reshape(1, 16).contiguous(), y.flatten()

    assert both(Forward(forward)) == (32, 32)


def test_a_view_keeps_the_whole_of_what_it_views():
    # One channel of eight, by a slice that needs no copy.
    net = Forward(lambda self, x: self.b(self.a(x)[:, :1]), a=conv(2, 8), b=conv(1, 9))
    assert both(net) == (64 + 72, 64 + 72)


def test_functional_calls_count():
    weight = nn.Parameter(torch.randn(4, 2, 1))
    net = Forward(lambda self, x: F.relu(F.conv1d(x, self.weight)).mean(-1))
    net.weight = weight
    assert both(net) == (16 + 32, 32 + 32)


def test_parameters_and_buffers_are_no_activations():
    def forward(self, x):
        return self.norm(x) * self.scale.t().t()

    net = Forward(forward, norm=nn.BatchNorm1d(2))
    net.scale = nn.Parameter(torch.randn(2, 8))
    assert both(net) == (16, 32)


def test_indices_and_masks_are_not_counted():
    assert both(nn.MaxPool1d(2, return_indices=True)) == (16 + 8, 16 + 8)
    assert both(Forward(lambda self, x: torch.where(x > 0, x, 0.0))) == (16, 32)


def test_statistics_that_only_training_reads_are_not_counted():
    assert both(nn.LayerNorm(8)) == (32, 32)
    assert both(nn.Sequential(nn.BatchNorm1d(2))) == (16, 32)


def test_tokens_are_not_counted_but_their_embedding_is():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    assert both(net, torch.zeros(1, 5, dtype=torch.long)) == (20 + 10, 20 + 10)


def test_a_network_without_an_operator_holds_its_input():
    assert both(nn.Identity()) == (16, 16)
    assert both(nn.Sequential(ChoiceBlock([nn.Identity()]))) == (16, 16)


def test_a_forward_that_looks_at_values_is_traced_on_the_cpu():
    net = Forward(lambda self, x: self.a(x) if float(x.sum()) >= 0 else x, a=conv(2, 4))
    assert both(net) == (48, 48)


def test_the_mixing_of_candidates_is_in_no_network():
    net = nn.Sequential(conv(2, 2), ChoiceBlock([conv(2, 2), conv(2, 2), nn.Identity()]))
    steps = trace(net, SHAPE).operators
    assert [step.module for step in steps] == [
        "0",
        "1.candidates.0_Conv1d",
        "1.candidates.1_Conv1d",
    ]
    assert [step.choices for step in steps] == [(), (("1", 0),), (("1", 1),)]


def test_an_option_that_passes_its_input_on_keeps_it():
    # Behind `identity` the skip and what is added to it are one buffer.
    def forward(self, x):
        x = self.a(x)
        return x + self.block(x)

    block = ChoiceBlock({"conv": conv(2, 2), "identity": nn.Identity()})
    cost = PeakMemory(bits=8).expected(Forward(forward, a=conv(2, 2), block=block), SHAPE)
    assert cost.of({"block": "conv"}) == 48
    assert cost.of({"block": "identity"}) == 32


def test_the_step_of_the_peak_depends_on_another_decision():
    def forward(self, x):
        y = self.a(x)
        return torch.cat([self.kept(y), self.block(y)], dim=1)

    # While `block` runs its first layer, y is there besides what `kept` gives, if that is another.
    kept = ChoiceBlock({"conv": conv(2, 2), "identity": nn.Identity()})
    block = ChoiceBlock([nn.Sequential(conv(2, c), conv(c, 1)) for c in (4, 8)])
    net = Forward(forward, a=conv(2, 2), kept=kept, block=block)
    cost = PeakMemory(bits=8).expected(net, SHAPE)
    for option, width in (("0_Sequential", 32), ("1_Sequential", 64)):
        assert cost.of({"kept": "conv", "block": option}) == 16 + 16 + width
        assert cost.of({"kept": "identity", "block": option}) == 16 + width + 8


def test_the_expected_peak_does_not_dilute_options():
    wide = [conv(2, 16), conv(2, 16), conv(2, 16)]
    net = nn.Sequential(ChoiceBlock(wide), conv(16, 2))
    cost = PeakMemory(bits=8).expected(net, SHAPE)
    assert cost().item() == cost.mean().item() == 16 + 128


def test_bits_per_activation_and_per_parameter():
    net = nn.Linear(3, 4)
    assert PeakMemory().expected(net, (3,))().item() == 4 * 7
    # Each buffer takes whole bytes: 3 numbers of 4 bits take 2, 4 numbers take 2.
    assert PeakMemory(bits=4).expected(net, (3,))().item() == 4
    with_weights = PeakMemory(bits=8, weights=True, weight_bits=16)
    assert with_weights.expected(net, (3,))().item() == 7 + 2 * 16


@pytest.mark.parametrize("field", ["bits", "weight_bits"])
@pytest.mark.parametrize("value", [0, -8, 8.0, True, None, "8"])
def test_bits_that_cannot_be_are_refused(field, value):
    with pytest.raises(UserError, match=f"{field} must be a whole number .* got {value!r}"):
        PeakMemory(**{field: value})


def test_one_function_gives_the_expected_value_of_either_kind_of_cost():
    net = nn.Sequential(ChoiceBlock([conv(2, 2), nn.Identity()]))
    traced = trace(net, SHAPE)
    for cost in (Params(), MACs(), PeakMemory()):
        found = expected(net, cost, traced)
        assert (found.name, found.unit) == (cost.name, cost.unit)
        assert found.options == {"0": 2}
        assert all(term <= {("0", 0)} for terms in found.constraints for term in terms)
        assert found.of({"0": "0_Conv1d"}) > found.of({"0": "1_Identity"})
    assert isinstance(expected(net, Params(), SHAPE), ExpectedCost)


def test_a_forward_that_fails_is_reported():
    with pytest.raises(UserError, match="Conv1d fails for an input of shape"):
        PeakMemory().expected(conv(2, 2), (3, 8))


def test_attention_and_recurrence_of_torch_run_through():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert values(layer, (5, 8)) >= 5 * 8 * 4


def test_the_value_is_float64_whatever_the_network_is():
    net = nn.Sequential(ChoiceBlock([conv(2, 2), nn.Identity()])).to(torch.bfloat16)
    value = PeakMemory().expected(net, (torch.zeros(1, *SHAPE, dtype=torch.bfloat16),))()
    assert value.dtype == torch.float64
    value.backward()
    assert net[0].alpha.grad.isfinite().all()
