"""Bits of each output channel: mixtures, exact costs, the order of channels, and what runs them."""

import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import nas
from nas.config.compose import compose_config
from nas.cost.analytic import Size
from nas.cost.boards import Flash, Ram
from nas.cost.device import Energy, load
from nas.cost.expected import expected
from nas.cost.memory import PeakMemory
from nas.decision import apply, decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.integer import IntegerGraph, integer_graph
from nas.integer.arena import planned
from nas.integer.c import c_source
from nas.integer.compiled import FILES, CompiledModel
from nas.quantization.channels import ChannelBits
from nas.quantization.layers import SearchedBits
from nas.quantization.network import Quantize, calibrate, quantized, quantized_layers
from nas.quantization.packing import bytes_of_bits, pack_bits
from nas.quantization.quantizers import RowQuantizer, WeightQuantizer
from nas.quantization.sensitivity import order_channels, sensitivity, set_prior
from nas.selection import select
from nas.supernet.relax import softmax, straight_through

from .test_quantization import assert_refused

STORED = Size(dtype="int8", fold_norm=True, bias_bits=16, scale_bits=16)
SHAPE = (2, 5, 5)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of convolutions of one or two dimensions and a linear layer, and its input."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    width, groups = draw(st.integers(2, 5)), draw(st.sampled_from([1, 2, 0]))
    groups = groups or 2 * width
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if draw(st.booleans()) else (nn.Conv2d, nn.BatchNorm2d)
    shape = (2, 5) if conv is nn.Conv1d else SHAPE
    kernel = draw(st.sampled_from([1, 3]))
    layers = [
        conv(2, 2 * width, kernel, padding=kernel // 2, bias=False),
        norm(2 * width),
        nn.ReLU(),
        conv(2 * width, 2 * width, 3, groups=groups),
        nn.Flatten(),
        nn.LazyLinear(draw(st.integers(4, 6))),
    ]
    made = nn.Sequential(*layers).eval()
    made(torch.zeros(1, *shape))
    nn.init.uniform_(made[1].weight, -1, 1)
    return made, shape


def searched(drawn: tuple[nn.Module, tuple[int, ...]], parts: int, **how: object) -> nn.Module:
    network, shape = drawn
    x = torch.randn(16, *shape)
    return quantized(network, Quantize(channels=parts, **how), [x]).eval()


def arch_of(model: nn.Module, picks: list[int]) -> nas.Arch:
    own = enumerate(decisions(model))
    taken = {name: d.options[picks[i] % len(d.options)] for i, (name, d) in own}
    return nas.Arch("Sequential", taken)


picks = st.lists(st.integers(0, 10**6), min_size=6, max_size=6)


@settings(max_examples=15, deadline=None)
@given(networks(), st.integers(2, 4), picks, st.sampled_from([softmax, straight_through]))
def test_one_hot_is_the_plain_network_and_its_size_the_bytes_of_the_graph(
    drawn, parts, taken, relax
):
    model = searched(drawn, parts)
    for _, decision in decisions(model):
        decision.relax = relax
    arch, x = arch_of(model, taken), torch.randn(8, *drawn[1])
    plain = discretize(model, arch)
    apply(model, arch)
    assert torch.equal(model(x), plain(x))
    size = nas.ExpectedCost(model, STORED, drawn[1])
    graph = integer_graph(plain, x)
    assert size().item() == size.of(arch.choices) == graph.weight_bytes
    assert nas.ExpectedCost(plain, STORED, drawn[1])().item() == graph.weight_bytes
    own = {op.path: op for op in graph.convolutions()}
    for path, layer in quantized_layers(plain).items():
        levels = torch.from_numpy(own[path].weight).abs().flatten(1)
        whole = layer.weight_quantizer.integers(layer.weight).abs().flatten(1)
        assert torch.equal(levels.to(torch.int8), whole)
        most = 2 ** (layer.weight_quantizer.bits_of_rows.int() - 1) - 1
        assert (whole.amax(1) <= most).all()
        option = str(arch.choices[f"{path}.weight_bits"])
        if "x" in option:
            asked = [part.split("x") for part in option.split("+")]
            whole_parts = len(layer.weight) // parts
            found = dict(layer.weight_rows)
            assert list(found) == [int(bits) for _, bits in asked]
            for count, bits in asked:
                assert 0 <= found[int(bits)] - int(count) * whole_parts <= int(count)


def small(parts: int = 2) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(2, 5, 3, bias=False)
    network = nn.Sequential(first, nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4))
    return searched((network.eval(), SHAPE), parts)


def archs(model: nn.Module) -> list[nas.Arch]:
    own = dict(decisions(model))
    options = product(*(decision.options for decision in own.values()))
    return [nas.Arch("Sequential", dict(zip(own, taken, strict=True))) for taken in options]


@pytest.mark.parametrize("cost", [STORED, Size(fold_norm=True), PeakMemory(weights=True)])
def test_the_expected_bytes_are_the_mean_over_all_networks(cost):
    model = small()
    for _, decision in decisions(model):
        nn.init.normal_(decision.alpha)
    own, price, mean = dict(decisions(model)), expected(model, cost, SHAPE), 0.0
    for arch in archs(model):
        shares = [own[n].theta[own[n].options.index(o)] for n, o in arch.choices.items()]
        alone = expected(discretize(model, arch), cost, SHAPE).of({})
        assert price.of(arch.choices) == alone
        mean += float(torch.stack(shares).detach().prod()) * alone
    assert price().item() == pytest.approx(mean, rel=1e-6)


def test_devices_price_the_mean_bits_of_a_layer():
    model, few = small(), {"0.weight_bits": "1x2+1x4", "4.weight_bits": 8}
    price = nas.ExpectedCost(model, Energy(load("cortex_m7")), SHAPE)
    low, high = (price.of({**few, "0.weight_bits": bits}) for bits in (2, 4))
    # Of 5 channels 3 are in the first part, which has the more bits.
    assert price.of(few) == pytest.approx(low + 0.6 * (high - low))
    scales = Size(dtype="int8", bias_bits=32, scale_bits=8)
    without = Size(dtype="int8", bias_bits=32)
    assert (
        nas.ExpectedCost(model, scales, SHAPE).of(few)
        == nas.ExpectedCost(model, without, SHAPE).of(few) + 5 + 4
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 3))
def test_a_mixture_is_that_of_the_weights_of_all_options(seed, parts):
    torch.manual_seed(seed)
    bits = ChannelBits([2, 4, 8], parts)
    nn.init.normal_(bits.alpha)
    layer, x = SearchedBits(nn.Linear(4, 5), bits), torch.randn(6, 4)
    plain = [layer.materialize({bits: option}) for option in bits.options]
    weights = torch.stack([one.weight_quantizer(one.weight) for one in plain])
    mixed = torch.einsum("k,koi->oi", bits.theta, weights)
    y = nn.functional.linear(layer.inputs["8"](x), mixed, layer.layer.bias)
    assert_close(layer(x), y)
    cotangent = torch.randn(6, 5)
    (by_mixture,) = torch.autograd.grad((y * cotangent).sum(), bits.alpha)
    (by_layer,) = torch.autograd.grad((layer(x) * cotangent).sum(), bits.alpha)
    assert_close(by_layer, by_mixture, rtol=1e-3, atol=1e-4)
    bits.relax = straight_through
    (by_sample,) = torch.autograd.grad((layer(x) * cotangent).sum(), bits.alpha)
    # The gradient of softmax, whichever option is sampled.
    by_theta = torch.einsum("oi,koi->k", cotangent.T @ layer.inputs["8"](x), weights)
    theta = softmax(bits.logits)
    assert_close(by_sample, theta * (by_theta - theta @ by_theta), rtol=1e-3, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 5))
def test_a_row_and_its_gradients_are_those_of_the_quantizer_of_its_bits(seed, outs, inputs):
    generator = torch.Generator().manual_seed(seed)
    weight, cotangent = (torch.randn(outs, inputs, generator=generator) for _ in range(2))
    bits = torch.tensor([2, 4, 8], dtype=torch.uint8)[
        torch.randint(3, (outs,), generator=generator)
    ]
    widths = {b: WeightQuantizer(b, weight) for b in (2, 4, 8)}
    for quantizer in widths.values():
        quantizer.step.data *= 0.5  # as training does, so that values are cut off
    rows = tuple((b, int((bits == b).sum())) for b in (2, 4, 8))
    mine = RowQuantizer({b: quantizer.step for b, quantizer in widths.items()}, bits, rows)
    given_weight = weight.clone().requires_grad_()
    y = mine(given_weight)
    y.backward(cotangent)
    for row, width in enumerate(bits.tolist()):
        other, whole = widths[width], weight.clone().requires_grad_()
        other.step.grad = None
        theirs = other(whole)
        theirs.backward(cotangent)
        assert torch.equal(y[row], theirs[row])
        assert torch.equal(given_weight.grad[row], whole.grad[row])
        assert_close(mine.step.grad[row], other.step.grad[row])


def test_the_channels_whose_rounding_costs_most_have_the_most_bits():
    model = small()
    batches = [(torch.randn(8, *SHAPE), torch.randn(8, 4)) for _ in range(5)]

    def losses(network: nn.Module):
        yield from ((network(x) - y).square().mean() for x, y in batches)

    order_channels(model, losses)
    assert all(bool(d.open.all()) for _, d in decisions(model))
    first = model[0]
    scores = torch.zeros(5)
    apply(model, nas.Arch("Sequential", dict.fromkeys(dict(decisions(model)), 8)))
    for loss in losses(model):
        (gradient,) = torch.autograd.grad(loss, first.layer.weight)
        weight = first.layer.weight.detach()
        error = first.weights["2"](weight).detach() - weight
        scores += torch.stack([(g * e).sum() ** 2 for g, e in zip(gradient, error, strict=True)])
    plain = discretize(
        model, nas.Arch("Sequential", {"0.weight_bits": "1x2+1x8", "4.weight_bits": 8})
    )
    bits = plain[0].weight_quantizer.bits_of_rows
    assert dict(plain[0].weight_rows) == {2: 2, 8: 3}
    assert scores[bits == 8].min() > scores[bits == 2].max()


def test_a_prior_and_a_budget_select_the_best_bits_of_all_channels():
    model, x, target = small(), torch.randn(32, *SHAPE), torch.randn(32, 4)

    def loss(network: nn.Module) -> float:
        return float((network(x) - target).square().mean().detach())

    found = sensitivity(model, loss)
    set_prior(model, found, 10.0)
    size = nas.ExpectedCost(model, STORED, SHAPE)

    def added(arch: nas.Arch) -> float:
        return sum(found[name][option] for name, option in arch.choices.items())

    for bound in (150, 200, 230):
        best = min(added(arch) for arch in archs(model) if size.of(arch.choices) <= bound)
        chosen = select(model, "Sequential", {"size": size}, {"size": bound})
        assert added(chosen) == pytest.approx(best, abs=1e-7)


def assert_c_is_exact(
    model: nn.Module, arch: nas.Arch, shape: tuple[int, ...], folder: Path
) -> IntegerGraph:
    """The C file of an architecture gives its integer graph, to the bit, in the RAM predicted."""
    graph = integer_graph(discretize(model, arch), torch.randn(32, *shape))
    for name, text in zip(FILES, c_source(graph, "a test"), strict=False):
        (folder / name).write_text(text)
    levels = torch.randint(-128, 128, (50, *shape))
    made = CompiledModel(folder / FILES[0])
    assert torch.equal(made.run(levels), graph.run(levels).flatten(1))
    ram = expected(model, Ram(), shape).of(arch.choices)
    assert ram == planned(graph).size + graph.start.numel + graph.end.numel
    return graph


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
@settings(max_examples=3, deadline=None)
@given(networks(), picks)
def test_the_c_file_gives_the_integer_graph_to_the_bit(tmp_path_factory, drawn, taken):
    model, shape = searched(drawn, 3), drawn[1]
    arch = arch_of(model, taken)
    graph = assert_c_is_exact(model, arch, shape, tmp_path_factory.mktemp("c"))
    flash = expected(model, Flash(), shape)
    uniform = dict.fromkeys(arch.choices, 2)
    others = integer_graph(
        discretize(model, nas.Arch("Sequential", uniform)), torch.randn(32, *shape)
    )
    if min(min(op.bits) for op in graph.convolutions()) < 8:  # both unpack
        apart = flash.of(arch.choices) - flash.of(uniform)
        assert apart == graph.weight_bytes - others.weight_bytes


@given(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=9))
def test_bits_of_rows_are_packed_four_in_a_byte(bits):
    content = pack_bits(torch.tensor(bits))
    assert len(content) == bytes_of_bits(len(bits)) == -(-len(bits) // 4)
    codes = [content[row // 4] >> 2 * (row % 4) & 3 for row in range(len(bits))]
    assert [1 << code for code in codes] == bits


def test_a_file_of_weights_says_which_channel_has_which_bits():
    one, other = small(), small()
    other[0].order(torch.arange(5.0))
    one[0].order(-torch.arange(5.0))
    arch = nas.Arch("Sequential", {"0.weight_bits": "1x2+1x4", "4.weight_bits": 8})
    first, second, x = discretize(one, arch), discretize(other, arch), torch.randn(3, *SHAPE)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_patterns_say_which_layers_have_one_number_of_bits_and_blocks_share_parts():
    model = quantized(
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)),
        Quantize(weights=(4, 8), first=8, channels=4),
    )
    assert {n: d.options for n, d in decisions(model)} == {
        f"{layer}.weight_bits": (4, "3x4+1x8", "2x4+2x8", "1x4+3x8", 8) for layer in (1, 2)
    }
    block = nas.ChoiceBlock({str(i): nn.Sequential(nn.Conv2d(3, 3 + i, 1)) for i in range(2)})
    shared = quantized(nn.Sequential(block), Quantize(share="block", channels=3))
    assert len(dict(decisions(shared))) == 2


REFUSED = {
    "more parts than channels": (
        lambda: small(5),
        "quantize.channels=5: the layer '4' has fewer output channels (4): give fewer parts, or "
        "this layer one number of bits, '++space.quantize.layers={4: 8}'",
    ),
    "no parts": (lambda: Quantize(channels=0), "quantize.channels=0 must be at least 1"),
    "a truth value": (lambda: Quantize(channels=True), "quantize.channels=True must be a whole"),
    "too many options": (lambda: ChannelBits([2, 4, 8], 19), "210 options for each layer"),
    "bits of no format": (lambda: Quantize(weights=(3, 8), channels=2), "bits=3 is not one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case):
    assert_refused(*REFUSED[case])


def test_the_command_line_can_name_a_layer_whose_path_is_a_number():
    inner = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)], nn.Linear(4, 2))
    network = nn.Sequential(inner)
    with pytest.raises(UserError) as caught:
        quantized(network, Quantize(channels=3))
    word = str(caught.value).rpartition("bits, ")[2].strip("'")
    for layers in ("", ", layers: {blocks.*: 8}"):
        words = [f"space.quantize={{weights: [2, 4]{layers}}}", word]
        found = dict(compose_config(words).space.quantize.layers)
    found.pop("blocks.*")
    assert set(decisions_of(network, found)) == set(range(10))


def decisions_of(network, layers):
    found = decisions(quantized(network, Quantize(channels=3, layers=layers)))
    return [int(name.split(".")[1]) for name, _ in found]


def test_calibration_runs_in_floating_point():
    network, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(16, 4)
    model: nn.Module = quantized(network, Quantize(channels=2))
    calibrate(model, [x])
    _, zero, low, high = model[1].inputs["8"].numbers
    step = model[1].inputs["8"].numbers[0]
    hidden: Tensor = network[0](x).detach()
    assert step * (high - zero) == pytest.approx(float(hidden.max()), abs=1.01 * step)
    assert step * (low - zero) == pytest.approx(float(hidden.min()), abs=1.01 * step)
