"""Integer graphs: exact, close to the network; what has no such form is refused in one line."""

from functools import cache
from itertools import product
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas.discretization import discretize
from nas.errors import UserError
from nas.integer import IntegerGraph, integer_graph
from nas.integer.build import WeightBits, _Build
from nas.integer.capture import NetworkSteps, steps_of
from nas.integer.grids import levels_of
from nas.integer.operators import Conv, fixed_point
from nas.ops.blocks import Recurrent, Site
from nas.spaces.staged import StagedSpace

from .strategies import randomized
from .test_spaces import built, covering

IMAGES = [
    *("conv_k3", "mb_k3_e2_se", "grp_k3_g2", "ssep_k3", "avgpool_k3", "maxpool_k3", "shuffle_k3"),
    *("res_k3", "rconv_k3", "dil_k3", "avgpool_k3_norm", "identity"),
]
SEQUENCES = ["tcn_k3_d2", "sep_k5", "mb_k3_e2_se", "maxpool_k3", "grp_k3_g2", "shuffle_x"]


def chain(ops: list[str], shape: tuple[int, ...], **options: object) -> nn.Module:
    stages = [{"ops": [op], "channels": 4 if op != "shuffle_x" else 8} for op in ops]
    torch.manual_seed(0)
    return discretize(randomized(StagedSpace(shape, 3, stages, **options)).eval())


def of_space(name: str, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    space = randomized(built(name, shape, width=0.1)).eval()
    return discretize(space, list(covering(space))[1]).eval()


NETWORKS = {
    "images": lambda: (chain(IMAGES, (2, 9, 7)), (2, 9, 7)),
    "sequences": lambda: (chain(SEQUENCES, (3, 17), pool="last"), (3, 17)),
    "mobile": lambda: (chain(["mb_k5_e3", "zero"], (1, 8, 8), activation="hardswish"), (1, 8, 8)),
    "ofa_mobilenet": lambda: (of_space("ofa_mobilenet", (2, 16, 16)), (2, 16, 16)),
    "nas_bench_201": lambda: (of_space("nas_bench_201", (2, 9, 9)), (2, 9, 9)),
    "autoencoder": lambda: (of_space("autoencoder", (2, 4, 3)), (2, 4, 3)),
}


@cache
def _read(name: str) -> tuple[nn.Module, NetworkSteps, dict[str, tuple[float, float]], Tensor]:
    """Once for all tests: `torch.export` takes seconds."""
    network, shape = NETWORKS[name]()
    x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        steps = steps_of(network.eval(), x[:16])
        return network, steps, steps.ranges(x), x


def graph_of(name: str, bits: WeightBits = 8) -> tuple[nn.Module, IntegerGraph, Tensor]:
    """A network, its graph as `integer_graph` makes it, and inputs."""
    network, steps, ranges, x = _read(name)
    return network, _Build(steps, levels_of(steps, ranges), bits, {}).graph(), x


@pytest.fixture(scope="module", params=NETWORKS)
def case(request) -> tuple[nn.Module, IntegerGraph, Tensor]:
    return graph_of(request.param)


def test_it_is_close_to_the_network(case):
    network, graph, x = case
    with torch.no_grad():
        expected = network(x)
    error = (graph(x) - expected).abs().max() / expected.std()
    assert error < 0.15
    for operator in graph.operators:
        assert operator.output.scale > 0


def test_all_levels_are_of_8_bits_and_a_sample_does_not_see_the_others(case):
    _, graph, x = case
    levels = graph.start.quantize(x)
    together = graph.run(levels)
    assert together.min() >= -128
    assert together.max() <= 127
    assert torch.equal(together[3:4], graph.run(levels[3:4]))


def by_hand(conv: Conv, x: np.ndarray) -> np.ndarray:
    """One sample ``(C, H, W)``, in Python's whole numbers, straight from the definition."""
    outputs, fan, *kernel = conv.weight.shape
    made = np.zeros((outputs, *conv.sides_out), dtype=np.int64)
    for c, row, column in product(*map(range, made.shape)):
        total, first = 0, c // (outputs // conv.groups) * fan
        for i, u, v in product(range(fan), *map(range, kernel)):
            y = row * conv.stride[0] - conv.padding[0] + u * conv.dilation[0]
            z = column * conv.stride[1] - conv.padding[1] + v * conv.dilation[1]
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                total += (int(x[first + i, y, z]) - conv.zero_in) * int(conv.weight[c, i, u, v])
        value = total * int(conv.multiplier[c])
        value += int(conv.bias[c]) * 2 ** (conv.shift - conv.point)
        level = (value + 2 ** (conv.shift - 1)) // 2**conv.shift + conv.output.zero
        made[c, row, column] = max(conv.low, min(conv.high, level))
    return made


@st.composite
def convolutions(draw) -> tuple[nn.Module, Tensor]:
    groups = draw(st.sampled_from([1, 2, 4]))
    layer = nn.Conv2d(
        4, draw(st.sampled_from([4, 8])), (draw(st.sampled_from([1, 3])), draw(st.integers(1, 3))),
        draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 2)), groups,
        draw(st.booleans()),
    )  # fmt: skip
    torch.manual_seed(draw(st.integers(0, 99)))
    nn.init.normal_(layer.weight, std=draw(st.sampled_from([1e-3, 1.0, 30.0])))
    layers = [layer]
    if draw(st.booleans()):
        layers.append(randomized(nn.BatchNorm2d(layer.out_channels)))
    if draw(st.booleans()):
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers).eval(), torch.randn(4, 4, 6, 5) + draw(st.integers(-2, 2))


@given(convolutions(), st.sampled_from([8, 4, 2]))
@settings(max_examples=8)
def test_a_convolution_is_what_its_definition_says(drawn, bits):
    network, x = drawn
    graph = integer_graph(network, x, bits)
    (conv,) = graph.convolutions()
    levels = graph.start.quantize(x)

    found = graph.run(levels)

    for sample, made in zip(levels.numpy(), found.numpy(), strict=True):
        assert np.array_equal(by_hand(conv, sample), made)
    assert np.abs(conv.weight).max() <= 2 ** (bits - 1) - 1
    if bits == 8:  # half a step of the output, and what rounding the weights and inputs costs
        with torch.no_grad():
            expected = network(x)
        step = graph.end.scale
        assert (graph(x) - expected).abs().max() <= 3 * step + 0.02 * expected.abs().max()


@given(
    st.lists(st.floats(1e-9, 1e6) | st.floats(-10, -1e-3), min_size=1, max_size=4),
    st.sampled_from([(16, 40), (21, 30), (14, 30)]),
)
def test_multipliers_are_as_exact_as_their_bits_allow(factors, form):
    bits, most = form
    multipliers, shift = fixed_point(factors, bits, most)
    assert 1 <= shift <= most
    assert all(abs(m) < 2**bits for m in multipliers)
    largest = max(map(abs, factors))
    if largest < 2 ** (bits - 1):
        allowed = max(2 * largest / 2**bits, 2.0 ** -(most + 1))
        for m, factor in zip(multipliers, factors, strict=True):
            assert abs(m / 2**shift - factor) <= allowed


def test_dead_channels_and_outputs_that_are_nearly_always_zero_take_nothing_from_the_others():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3)
    layer.weight.data[1] = 0
    x = torch.randn(16, 2, 6, 6)
    graph = integer_graph(nn.Sequential(layer), x)
    assert (graph(x) - layer(x)).abs().max() < 3 * graph.end.scale
    layer.bias.data[:] = 1e-6 - layer(x).detach().max()
    graph = integer_graph(nn.Sequential(layer, nn.ReLU()), x)
    (conv,) = graph.convolutions()
    assert 15 <= conv.shift <= 40
    levels = torch.randint(-128, 128, (4, 2, 6, 6))
    assert np.array_equal(by_hand(conv, levels[0].numpy()), graph.run(levels)[0].numpy())


def test_a_mean_rounds_half_away_from_zero_and_leaves_padding_out():
    pool = nn.AvgPool2d(2, 1, 1, count_include_pad=False)
    x = torch.tensor([[-127.0, -3, 5], [-2, 4, 4], [0, 128, 1]])[None, None] / 255
    graph = integer_graph(pool, x)
    levels = graph.start.quantize(x)
    plain = (levels - graph.start.zero)[0, 0].double()
    for y, z in product(range(4), range(4)):
        window = plain[max(0, y - 1) : y + 1, max(0, z - 1) : z + 1].flatten()
        mean = float(window.sum()) / len(window)
        expected = (1 if mean >= 0 else -1) * floor(abs(mean) + 0.5)
        assert int(graph.run(levels)[0, 0, y, z]) - graph.start.zero == expected


def test_learned_steps_between_weights_are_kept_through_a_norm():
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 4, 3, bias=False), randomized(nn.BatchNorm2d(4))
    norm.weight.data = torch.tensor([0.5, -2, 1.5, 3])
    steps, levels = torch.rand(4) + 0.1, torch.randint(-7, 8, layer.weight.shape)
    levels[:, 0, 0, 0] = 3  # no largest weight from which the step could be guessed
    levels.clamp_(-5, 5)
    layer.weight.data = levels * steps.view(-1, 1, 1, 1)
    network, x = nn.Sequential(layer, norm).eval(), torch.randn(8, 3, 6, 6)

    (conv,) = integer_graph(network, x, {"0": 4}, {"0": steps}).convolutions()

    signs = norm.weight.sign().detach().view(-1, 1, 1, 1)
    assert torch.equal(torch.from_numpy(conv.weight).float(), levels * signs)
    assert set(conv.bits) == {4}


def test_the_bytes_of_weights_are_those_of_channels_packed_one_by_one():
    network, x = nn.Conv2d(3, 4, 3), torch.randn(8, 3, 6, 6)
    graph = integer_graph(network, x, {"": torch.tensor([8, 4, 2, 2])})
    # And a byte for the bits of four channels.
    assert graph.weight_bytes == 27 + 14 + 7 + 7 + 4 * (2 + 2) + 1


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions


@pytest.mark.parametrize(
    ("layers", "shape", "said"),
    [
        ([nn.Conv1d(2, 4, 3), Recurrent(nn.LSTM, Site(4, 4, ndim=1))], (2, 8), "'1.layer' (LSTM)"),
        (
            [nn.Linear(6, 6), nn.LayerNorm(6)],
            (6,),
            "'1' (LayerNorm) has no integer form (operator layer_norm)",
        ),
        ([nn.Softmax(-1)], (6,), "'0' (Softmax) has no integer form (operator softmax)"),
        ([nn.Linear(6, 4)], (3, 6), "a linear layer over several positions"),
        ([nn.Conv2d(2, 4, 3, padding="same")], (2, 6, 6), "padding='same'"),
        ([Positions()], (6,), "arithmetic with a tensor of constants"),
        ([nn.AdaptiveAvgPool2d(2)], (2, 6, 6), "adaptive pooling to several positions"),
        ([nn.ReplicationPad2d(1), nn.Conv2d(2, 4, 3)], (2, 6, 6), "'0' (ReplicationPad2d)"),
    ],
)
def test_what_has_no_integer_form_is_refused_in_one_line_that_names_it(layers, shape, said):
    network = nn.Sequential(*layers).eval()
    with pytest.raises(UserError) as caught:
        integer_graph(network, torch.randn(4, *shape))
    assert "\n" not in str(caught.value)
    assert said in str(caught.value)


def test_a_channel_of_zeros_makes_no_level_coarser():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).eval(), torch.randn(20, 2, 6, 6)
    steps = torch.full((3,), 0.01)
    found = []
    for largest in (0.01, 500.0):  # as training leaves it, far above all weights
        network[0].weight.data[1], steps[1] = 0, largest
        graph = integer_graph(network, x, 8, {"0": steps})
        found.append((graph.end.scale, graph(x)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_a_bias_that_products_outweigh_is_not_cut_off():
    network, x = nn.Linear(64, 1).eval(), torch.ones(64, 64)
    network.weight.data.fill_(1)
    network.bias.data.fill_(-64)
    x[:, 0] -= torch.arange(64) % 4 / 255
    graph = integer_graph(network, x)
    with torch.no_grad():
        expected = network(x)
    assert 64 / graph.end.scale < 2**20
    # Multipliers of 16 bits are off by 2^-17 of so many levels.
    assert (graph(x) - expected).abs().max() < 16 * graph.end.scale
    assert graph(x).min() < -2.5 / 255


def test_wrong_bits_and_wrong_data_are_refused():
    network, x = nn.Conv2d(2, 4, 3), torch.randn(4, 2, 6, 6)
    with pytest.raises(UserError, match="bits=3 is not one of"):
        integer_graph(network, x, 3)
    with pytest.raises(UserError, match="not finite"):
        integer_graph(network, x * float("nan"))
    with pytest.raises(UserError, match="there are none"):
        integer_graph(network, x[:0])
    wide = nn.Linear(70_000, 1)
    nn.init.ones_(wide.weight)
    with pytest.raises(UserError, match="70000 products"):
        integer_graph(wide, torch.randn(2, 70_000))
