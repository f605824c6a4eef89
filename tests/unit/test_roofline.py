"""Latency bound and energy: worked by hand from a device's figures."""

import pytest
import torch
from torch import nn

from nas.cost.device import Device, Energy, Roofline
from nas.cost.expected import ExpectedCost
from nas.cost.layer import LayerSpec
from nas.cost.trace import trace
from nas.errors import UserError

TOY = {
    "name": "toy",
    "native_dtype": "int8",
    "peak_ops_per_s": {"int8": 1000.0, "float32": 100.0},
    "bandwidth_bytes_per_s": 10.0,
    "on_chip_bytes": 500,
    "energy_pj_per_mac": {"int8": 2.0, "float32": 7.0},
    "energy_pj_per_on_chip_byte": 3.0,
    "energy_pj_per_main_byte": 50.0,
}
DEVICE = Device(**TOY)
# C_in 8, C_out 6, groups 2, 3 x 3, 4 x 5 -> 4 x 5
CONV = LayerSpec("conv", "a", 8, 6, 2, (3, 3), (4, 5), (4, 5))
WEIGHTS, ACTIVATIONS = 8 * 6 // 2 * 9, (8 + 6) * 20
MACS = WEIGHTS * 20


def test_a_layer_that_fits_moves_its_weights_only():
    cost = Roofline(DEVICE)
    assert cost.main_bytes(CONV) == WEIGHTS
    assert cost(CONV) == max(2 * MACS / 1000, WEIGHTS / 10) == WEIGHTS / 10
    assert cost.intensity(CONV) == 2 * MACS / WEIGHTS == 40 < cost.ridge == 100


def test_a_layer_that_does_not_fit_moves_input_and_output_too():
    for room, moved in ((280, WEIGHTS), (279, WEIGHTS + ACTIVATIONS)):
        cost = Roofline(Device(**TOY | {"on_chip_bytes": room}))
        assert cost.main_bytes(CONV) == moved
        assert cost.intensity(CONV) == 2 * MACS / moved


def test_arithmetic_is_the_bound_above_the_ridge():
    fast_memory = Device(**TOY | {"bandwidth_bytes_per_s": 1e6})
    assert Roofline(fast_memory)(CONV) == 2 * MACS / 1000
    assert Roofline(fast_memory, dtype="float32")(CONV) == 2 * MACS / 100


def test_widths_are_those_of_the_format_or_as_given():
    assert Roofline(DEVICE, dtype="float32").weight_bytes(CONV) == 4 * WEIGHTS
    assert Roofline(DEVICE, dtype="float32").activation_bytes(CONV) == 4 * ACTIVATIONS
    packed = Roofline(DEVICE, weight_bits=4, activation_bits=16)
    assert packed.weight_bytes(CONV) == WEIGHTS / 2
    assert packed.activation_bytes(CONV) == 2 * ACTIVATIONS
    assert packed.main_bytes(CONV) == WEIGHTS / 2 + 2 * ACTIVATIONS  # 560 bytes do not fit


def test_energy_is_arithmetic_and_both_memories():
    on_chip = 3 * (WEIGHTS + ACTIVATIONS)
    assert Energy(DEVICE)(CONV) == pytest.approx((2 * MACS + on_chip + 50 * WEIGHTS) * 1e-12)
    full = Energy(Device(**TOY | {"on_chip_bytes": 1}), dtype="float32")
    touched = 4 * (WEIGHTS + ACTIVATIONS)
    assert full(CONV) == pytest.approx((7 * MACS + 3 * touched + 50 * touched) * 1e-12)


@pytest.mark.parametrize(
    ("layer", "shape", "weights", "activations"),
    [
        (nn.Conv1d(4, 8, 3, 2, 1, groups=4), (4, 10), 8 * 3, 4 * 10 + 8 * 5),
        (nn.Conv2d(4, 8, (1, 3), bias=False), (4, 5, 6), 4 * 8 * 3, 4 * 30 + 8 * 20),
        (nn.ConvTranspose1d(4, 6, 2, 2, groups=2), (4, 5), 4 * 3 * 2, 4 * 5 + 6 * 10),
        (nn.Linear(7, 3), (5, 7), 21, 5 * (7 + 3)),
        (nn.Bilinear, (2, 3), 0, 0),
    ],
    ids=["depthwise", "conv2d", "transposed", "linear", "product"],
)
def test_bytes_of_each_kind_of_call(layer, shape, weights, activations):
    example: object = shape
    if layer is nn.Bilinear:  # stands for a product of two inputs, 6 of them
        layer, example = Product(), (torch.ones(6, 2, 3), torch.ones(6, 3, 4))
        activations = 6 * (2 * 3 + 3 * 4 + 2 * 4)
    calls = [x.spec for x in trace(layer, example).layers if x.spec.is_call]
    cost = Roofline(DEVICE)
    assert [cost.weight_bytes(call) for call in calls] == [weights]
    assert [cost.activation_bytes(call) for call in calls] == [activations]
    assert weights == sum(p.numel() for p in layer.parameters() if p.ndim > 1)


class Product(nn.Module):
    def forward(self, a, b):
        return a @ b


def test_a_product_of_activations_that_fits_moves_nothing():
    spec = LayerSpec("matmul", "a", 3, 4, in_size=(2,), out_size=(2,), batch=6)
    assert Roofline(DEVICE).intensity(spec) == float("inf")
    assert Roofline(DEVICE)(spec) == 2 * 6 * 2 * 3 * 4 / 1000


def test_a_layer_called_twice_costs_twice_and_stored_tensors_nothing():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    for cost in (Roofline(DEVICE), Energy(DEVICE)):
        once, twice = (ExpectedCost(net, cost, (4, 5, 5))() for net in (conv, Twice(conv)))
        assert twice == 2 * once
        for kind in ("parameter", "buffer", "folded", "gained"):
            assert cost(LayerSpec(kind, "a", numel=9, dtype="float32", ndim=1)) == 0


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize("model", [Roofline, Energy])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"device": None}, r"(roofline|energy) needs a device, got None: .*device=NAME"),
        ({"device": "gap9"}, "needs a device, got 'gap9'"),
        ({"dtype": "float16"}, "'toy' has no .* for 'float16', only for"),
        ({"dtype": "half"}, "dtype='half' is not a number format"),
        ({"weight_bits": 0}, "weight_bits=0 must be a whole number above 0"),
        ({"activation_bits": 2.5}, "activation_bits=2.5 must be"),
    ],
)
def test_mistakes_are_named(model, arguments, says):
    with pytest.raises(UserError, match=says):
        model(**{"device": DEVICE} | arguments)


def test_energy_needs_energies_and_the_bound_does_not():
    bare = Device(**{k: v for k, v in TOY.items() if not k.startswith("energy")})
    Roofline(bare)
    with pytest.raises(UserError, match="'toy' has no energy_pj_per_mac, which this cost needs"):
        Energy(bare)
