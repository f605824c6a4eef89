"""Bits as decisions: rounding, mixtures, exact costs, and what a packed network holds."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import nas
from nas.compress.space import OwnNetwork, saved
from nas.cost.analytic import Size
from nas.cost.boards import Flash, Ram
from nas.cost.device import Energy, Roofline, load
from nas.cost.expected import expected
from nas.cost.memory import PeakMemory
from nas.decision import apply, decisions, free, resample
from nas.discretization import discretize
from nas.errors import UserError
from nas.export.formats import Source, chosen
from nas.integer import integer_graph
from nas.integer.arena import planned
from nas.integer.c import c_source
from nas.integer.compiled import FILES, CompiledModel
from nas.integer.operators import Add, Conv
from nas.quantization.layers import QuantizedLayer, SearchedBits
from nas.quantization.network import Quantize, calibrate, dequantized, quantized, quantized_layers
from nas.quantization.packing import pack, packed_bytes
from nas.quantization.quantizers import (
    BITS,
    InputQuantizer,
    WeightQuantizer,
    fake_quantize,
    levels,
)
from nas.quantization.sensitivity import sensitivity, set_prior
from nas.selection import select
from nas.supernet.elastic import Elastic
from nas.supernet.relax import softmax, straight_through

SHAPE = (3, 6, 6)


def network() -> nn.Module:
    """Convolutions with and without BatchNorm and bias, and a linear layer, with statistics."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nas.ChoiceBlock({"wide": nn.Conv2d(5, 5, 3, padding=1), "none": nn.Identity()}),
        nn.Conv2d(5, 10, 3),
        nn.BatchNorm2d(10),
        nn.Flatten(),
        nn.Linear(160, 3),
    )
    for norm in (made[1], made[5]):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, -1, 1)
        nn.init.uniform_(norm.bias, -1, 1)
    return made.eval()


def searched(**how: object) -> nn.Module:
    made = quantized(network(), Quantize(**how))
    calibrate(made, [torch.randn(16, *SHAPE)])
    return made


def stored(network: nn.Module) -> int:
    """Bytes of packed weights, and in float32 biases, a step a channel, step and zero of inputs."""
    own = [m for m in network.modules() if isinstance(m, QuantizedLayer)]
    packed = [packed_bytes(len(m.weight), m.weight.numel(), m.weight_bits) for m in own]
    return sum(packed) + sum(8 * len(m.weight) + 8 for m in own)


def archs(model: nn.Module) -> list[nas.Arch]:
    own = dict(decisions(model))
    options = product(*(decision.options for decision in own.values()))
    return [nas.Arch("Sequential", dict(zip(own, taken, strict=True))) for taken in options]


weights = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**16))


@given(weights, st.sampled_from(BITS), st.sampled_from(["mse", "minmax"]))
def test_a_weight_is_its_levels_times_its_step(drawn, bits, start):
    outs, inputs, seed = drawn
    weight = torch.randn(outs, inputs, 2, generator=torch.Generator().manual_seed(seed))
    quantizer = WeightQuantizer(bits, weight, start)
    whole = quantizer.integers(weight)
    assert whole.abs().max() <= levels(bits)
    assert torch.equal(whole * quantizer.step.view(-1, 1, 1), quantizer(weight))


@given(weights, st.sampled_from(BITS))
def test_the_mse_start_is_no_worse_than_that_of_the_range(drawn, bits):
    outs, inputs, seed = drawn
    weight = torch.randn(outs, inputs, generator=torch.Generator().manual_seed(seed))
    errors = [
        (WeightQuantizer(bits, weight, start)(weight) - weight).square().sum(1)
        for start in ("mse", "minmax")
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5) + 1e-12).all()


@given(st.integers(0, 2**16), st.floats(-3, 3), st.sampled_from([4, 8]))
def test_an_input_within_the_range_is_off_by_half_a_step_and_zero_by_nothing(seed, shift, bits):
    x = torch.randn(50, generator=torch.Generator().manual_seed(seed)) + shift
    quantizer = InputQuantizer(bits)
    rounded = quantizer(x)  # the first batch sets the range
    # Half a step, and as much at an end of the range, as the level of 0 is a whole number.
    assert (rounded - x).abs().max() <= 1.001 * quantizer.step
    assert quantizer(torch.zeros(3)).abs().max() == 0


@given(st.integers(0, 2**16), st.sampled_from(BITS), st.floats(0.01, 0.5), st.integers(0, 1))
def test_rounding_and_its_gradients_are_those_of_pytorch(seed, bits, step, zero):
    # Zero points from 0 on: backward, PyTorch 2.14 takes -1 for 0 in its kernel per tensor.
    generator = torch.Generator().manual_seed(seed)
    x, cotangent = (torch.randn(3, 7, generator=generator) for _ in range(2))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    whole = torch._fake_quantize_learnable_per_tensor_affine
    channels = torch._fake_quantize_learnable_per_channel_affine
    found = []
    for per_channel, ours in product((False, True), (True, False)):
        shape = (3, 1) if per_channel else ()
        steps, zeros = torch.full(shape, step), torch.full((), float(zero))
        given = [t.clone().requires_grad_() for t in (x, steps, zeros)]
        if ours:
            y = fake_quantize(*given, low, high, 0.3)
        elif per_channel:
            y = channels(given[0], given[1][:, 0], given[2].expand(3), 0, low, high, 0.3)
        else:
            y = whole(given[0], given[1].view(1), given[2].view(1), low, high, 0.3)
        y.backward(cotangent)
        found.append((y.detach(), *(t.grad for t in given)))
    for mine, theirs in (found[:2], found[2:]):
        assert torch.equal(mine[0], theirs[0])
        assert_close(mine[1:], theirs[1:], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_identity_inside_and_of_lsq_for_the_step():
    weight = torch.tensor([[0.26, -0.9]], requires_grad=True)
    quantizer = WeightQuantizer(4, weight, "minmax")
    with torch.no_grad():
        quantizer.step.fill_(0.1)
    quantizer(weight).sum().backward()
    assert weight.grad.tolist() == [[1.0, 0.0]]
    # Eq. 3 of LSQ: round(2.6) - 2.6 inside, -7 below the range; scaled by 1 / sqrt(2 * 7).
    assert_close(quantizer.step.grad, torch.tensor([(3 - 2.6 - 7) / 14**0.5]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("relax", [softmax, straight_through])
def test_one_hot_bits_are_the_plain_layer_exactly(relax):
    model = searched(weights=(2, 4, 8), inputs=(4, 8))
    for _, decision in decisions(model):
        decision.relax = relax
    x = torch.randn(2, *SHAPE)
    for arch in archs(model)[::37]:
        plain = discretize(model, arch)
        apply(model, arch)
        assert torch.equal(model(x), plain(x))
        assert not any(decisions(plain))
        assert all(
            arch.choices[f"{path}.weight_bits"] == layer.weight_bits
            for path, layer in quantized_layers(plain).items()
            if f"{path}.weight_bits" in arch.choices
        )


def test_every_open_width_learns_from_a_hard_sample():
    model = searched(weights=(2, 4, 8))
    for _, decision in decisions(model):
        decision.relax, decision.gumbel = straight_through, True
    resample(model, torch.Generator().manual_seed(0))
    model(torch.randn(4, *SHAPE)).square().sum().backward()
    for name, decision in decisions(model):
        if name.endswith("bits") and "candidates" not in name:
            assert (decision.alpha.grad != 0).all(), name


@given(st.integers(0, 2**16), st.sampled_from([2, 4, 8]))
def test_the_alphas_of_a_hard_sample_have_the_gradient_of_every_width(seed, drawn):
    torch.manual_seed(seed)
    bits = Elastic([2, 4, 8], straight_through)
    layer, x, cotangent = SearchedBits(nn.Linear(5, 3), bits), torch.randn(4, 5), torch.randn(4, 3)
    bits.noise[bits.options.index(drawn)] = 5.0
    (layer(x) * cotangent).sum().backward()
    rounded = [q(layer.layer.weight) for q in layer.weights.values()]
    by_weight = cotangent.T @ layer.inputs["8"](x)
    by_theta = torch.stack([(by_weight * weight).sum() for weight in rounded])
    theta = softmax(bits.logits)
    assert_close(bits.alpha.grad, theta * (by_theta - theta @ by_theta), rtol=1e-3, atol=1e-4)


def test_the_size_at_one_hot_is_the_bytes_of_the_packed_network():
    model = searched(weights=(2, 4, 8), inputs=(4, 8), last=8)
    cost = nas.ExpectedCost(model, Size(fold_norm=True), SHAPE)
    for arch in archs(model)[::13]:
        apply(model, arch)
        assert cost().item() == cost.of(arch.choices) == stored(discretize(model, arch))


def test_the_expected_size_is_the_mean_over_all_networks():
    model = searched(weights=(2, 4, 8))
    for _, decision in decisions(model):
        nn.init.normal_(decision.alpha)
    cost, own = nas.ExpectedCost(model, Size(fold_norm=True), SHAPE), dict(decisions(model))
    mean = 0.0
    for arch in archs(model):
        taken = [own[name].options.index(option) for name, option in arch.choices.items()]
        thetas = [own[name].theta[k] for name, k in zip(arch.choices, taken, strict=True)]
        mean += float(torch.stack(thetas).detach().prod()) * stored(discretize(model, arch))
    assert cost().item() == pytest.approx(mean, rel=1e-6)


def test_a_budget_over_bits_is_met_exactly_by_the_best_architecture():
    model = searched(weights=(2, 4, 8))
    for _, decision in decisions(model):
        nn.init.normal_(decision.alpha)
    cost = nas.ExpectedCost(model, Size(fold_norm=True), SHAPE)
    log_p = {name: d.alpha.detach().log_softmax(-1) for name, d in decisions(model)}
    own = dict(decisions(model))

    def score(arch: nas.Arch) -> float:
        return sum(float(log_p[n][own[n].options.index(o)]) for n, o in arch.choices.items())

    sizes = {arch: cost.of(arch.choices) for arch in archs(model)}
    for bound in (min(sizes.values()), 1000.0, 1100.0, 1300.0):
        best = max((a for a, size in sizes.items() if size <= bound), key=score)
        found = select(model, "Sequential", {"size": cost}, {"size": bound})
        assert score(found) == pytest.approx(score(best))
        assert sizes[found] <= bound


def test_device_costs_price_the_bits_of_each_layer():
    model, device = searched(weights=(2, 8), inputs=(4, 8)), load("cortex_m7")
    few, many = archs(model)[0], archs(model)[-1]
    for kind in (Roofline(device), Energy(device)):
        cost = nas.ExpectedCost(model, kind, SHAPE)
        dear = cost.of({**many.choices, **_blocks(few)})
        for key in ("weight_bits", "input_bits"):
            own = {name: option for name, option in few.choices.items() if name.endswith(key)}
            cheap = cost.of({**many.choices, **_blocks(few), **own})
            assert cheap < dear if isinstance(kind, Energy) else cheap <= dear  # arithmetic bounds
        plain = nas.ExpectedCost(discretize(model, many), kind, SHAPE)()
        usual = nas.ExpectedCost(
            discretize(network(), nas.Arch("Sequential", _blocks(many))), kind, SHAPE
        )()
        assert plain.item() == usual.item() == cost.of(many.choices)  # the device's own 8 bits


def _blocks(arch: nas.Arch) -> dict[str, object]:
    return {name: option for name, option in arch.choices.items() if "bits" not in name}


def test_rounding_takes_no_memory_and_weights_that_of_their_bits():
    model = searched(weights=(2, 4, 8))
    for arch in archs(model)[::17]:
        plain = discretize(model, arch)
        bare = discretize(network(), nas.Arch("Sequential", _blocks(arch)))
        here, there = (PeakMemory().expected(m, SHAPE)().item() for m in (plain, bare))
        assert here == there
        whole = PeakMemory(weights=True).expected(model, SHAPE)
        weights = sum(
            packed_bytes(len(m.weight), m.weight.numel(), m.weight_bits) - 4 * m.weight.numel()
            for m in plain.modules()
            if isinstance(m, QuantizedLayer)
        )
        params = sum(p.numel() for p in plain.parameters())
        assert whole.of(arch.choices) == here + 4 * params + weights


@given(weights, st.sampled_from(BITS))
def test_packing_is_undone_by_unpacking(drawn, bits):
    outs, inputs, seed = drawn
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(low, high, (outs, inputs, 3), generator=generator)
    content = pack(values, bits)
    assert len(content) == packed_bytes(outs, values.numel(), bits)
    rows = torch.tensor(list(content)).view(outs, -1, 1) >> torch.arange(0, 8, bits)
    found = (rows & (2**bits - 1)).flatten(1)[:, : inputs * 3]
    assert torch.equal(torch.where(found < high, found, found + 2 * low), values.flatten(1))


def test_the_float_copy_has_the_rounded_weights_and_plain_layers():
    plain = discretize(searched(weights=(2, 4, 8)))
    made = dequantized(plain)
    assert type(made[0]) is nn.Conv2d
    assert torch.equal(made[0].weight, plain[0].weight_quantizer(plain[0].weight))
    assert not any(isinstance(m, QuantizedLayer) for m in made.modules())


def test_patterns_first_and_last_say_which_layers_have_which_bits():
    how = Quantize(weights=4, first=8, last=(4, 8), layers={"3.*": "float", "4": 2})
    model = quantized(network(), how)
    assert [n for n, _ in decisions(model)] == ["3", "7.weight_bits"]
    found = quantized_layers(discretize(model))
    assert {path: layer.weight_bits for path, layer in found.items()} == {"0": 8, "4": 2, "7": 4}


def test_the_layers_of_a_block_may_share_their_bits():
    block = nas.ChoiceBlock({str(i): nn.Sequential(nn.Conv2d(3, 3, 1)) for i in range(3)})
    model = quantized(nn.Sequential(block, nn.Conv2d(3, 1, 1)), Quantize(share="block"))
    assert len(dict(decisions(model))) == 3


def test_quantising_leaves_the_network_as_it_is_and_draws_nothing():
    plain = discretize(network())
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    state = torch.get_rng_state()
    quantized(plain, calibration=[torch.zeros(16, *SHAPE)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], x) for name, x in plain.state_dict().items())


REFUSED = {
    "bits of no format": (lambda: Quantize(weights=(3, 8)), "bits=3 is not one of"),
    "a truth value": (lambda: Quantize(inputs=True), "is not one of"),
    "no bits": (lambda: Quantize(weights=()), "is empty"),
    "bits of a pattern": (lambda: Quantize(layers={"a": 5}), "quantize.layers"),
    "a text": (lambda: Quantize(layers={"a": "int8"}), "quantize.layers"),
    "a start": (lambda: Quantize(start="best"), "quantize.start"),
    "a share": (lambda: Quantize(share="net"), "quantize.share"),
    "no layer": (lambda: quantized(nn.Sequential(nn.ReLU())), "no layer to quantise"),
    "all in float": (
        lambda: quantized(network(), Quantize(layers={"*": "float"})),
        "no layer to quantise",
    ),
    "a pattern of nothing": (
        lambda: quantized(network(), Quantize(layers={"conv9": 8})),
        "no layer is called 'conv9'",
    ),
    "one layer alone": (lambda: quantized(nn.Linear(3, 2)), "torch.nn.Sequential"),
    "twice": (lambda: quantized(quantized(network())), "quantised already"),
    "searched widths": (
        lambda: quantized(nn.Sequential(nas.build_op("elastic_k5_e6", 8, 8))),
        "searched channels or kernels",
    ),
    "few samples": (
        lambda: quantized(network(), calibration=[torch.zeros(3, *SHAPE)]),
        "3 samples, too few",
    ),
    "nothing to decide": (lambda: sensitivity(nn.Linear(2, 2), lambda _: 0.0), "no decision"),
    "a loss that is no number": (
        lambda: sensitivity(quantized(network()), lambda _: float("nan")),
        "not finite",
    ),
    "size of negative bits": (lambda: Size(scale_bits=-1), "size.scale_bits=-1"),
    "packing of 3 bits": (lambda: pack(torch.zeros(1, 1), 3), "bits=3"),
    "packing of large values": (lambda: pack(torch.tensor([[9]]), 4), "4 bits hold -8 to 7"),
}


def assert_refused(attempt: Callable[[], object], said: str) -> None:
    """It is refused in one line that says so."""
    with pytest.raises(UserError) as caught:
        attempt()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case):
    assert_refused(*REFUSED[case])


def test_a_staged_space_has_bits_beside_its_operations():
    from nas.spaces.staged import StagedSpace

    stages = [{"ops": ["conv_k3", "identity"], "channels": 4}]
    how = {"weights": [2, 8], "first": 8, "last": 8}
    space = StagedSpace(SHAPE, 3, stages, stem={"channels": 4}, quantize=how)
    assert {n: d.options for n, d in decisions(space)} == {
        "blocks.s0b0": ("conv_k3", "identity"),
        "blocks.s0b0.candidates.conv_k3.0.weight_bits": (2, 8),
    }
    cost = nas.ExpectedCost(space, Size(fold_norm=True), SHAPE)
    space(torch.randn(4, *SHAPE))
    for arch in archs(space):
        arch = nas.Arch("staged", arch.choices)
        apply(space, arch)
        assert cost().item() == stored(discretize(space, arch))
    free(space)


def test_the_integer_graph_has_the_levels_of_the_network_and_the_bytes_of_its_size():
    model = searched(weights=(2, 4, 8))
    whole = Size(dtype="int8", fold_norm=True, bias_bits=16, scale_bits=16)
    cost, x = nas.ExpectedCost(model, whole, SHAPE), torch.randn(64, *SHAPE)
    for arch in archs(model)[::29]:
        plain = discretize(model, arch)
        graph = integer_graph(plain, x)
        found = {op.path: op for op in graph.operators if isinstance(op, Conv)}
        for path, layer in quantized_layers(plain).items():
            levels = torch.from_numpy(found[path].weight).abs().flatten(1)
            own = layer.weight_quantizer.integers(layer.weight).abs().flatten(1)
            assert torch.equal(levels.to(torch.int8), own)
        assert graph.weight_bytes == cost.of(arch.choices)
        same = (graph(x).argmax(1) == plain(x).argmax(1)).float().mean()
        assert same > 0.9


@pytest.mark.parametrize("bits", BITS)
def test_the_integer_graph_rounds_inputs_as_they_were_in_training(bits):
    plain = discretize(searched(weights=8, inputs=bits)).eval()
    with torch.no_grad():
        for layer in quantized_layers(plain).values():
            layer.input_quantizer.step.mul_(0.7)  # as training does, so that values are cut off
    step, zero, low, high = plain[0].input_quantizer.numbers
    x = (torch.randint(low, high + 1, (200, *SHAPE)) - zero) * step
    graph = integer_graph(plain, x)
    with torch.no_grad():
        error = (graph(x) - plain(x)).abs()
    # Of the output's own rounding alone, but where a number lay between two levels.
    assert (error <= 0.51 * graph.end.scale).float().mean() > 0.98
    for operator, layer in zip(graph.operators[-3:-1], (plain[4], plain[7]), strict=True):
        assert operator.output.scale == layer.input_quantizer.numbers[0]


class Shared(nn.Module):
    """Values that several layers read, behind a pool, a concatenation and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.d = nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(8, 6, 1)
        self.e, self.f = nn.Conv2d(6, 6, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        y = self.b(x).relu() + x
        both = self.d(torch.cat([self.c(x).clamp(0, 6), y], 1)).tanh()
        return self.f(self.e(nn.functional.avg_pool2d(both, 2)).relu().mean((2, 3)))


@pytest.mark.parametrize("bits", BITS)
def test_a_value_of_several_readers_is_rounded_for_each_and_its_copy_is_counted(bits, tmp_path):
    torch.manual_seed(0)
    shape = (2, 8, 8)
    plain = quantized(Shared(), Quantize(weights=(8 if bits == 8 else 4), inputs=bits)).eval()
    x = torch.randn(64, *shape)
    calibrate(plain, [x])
    plain.c.input_quantizer.step.data *= 0.9  # else both readers share a copy
    graph = integer_graph(plain, x)
    copies = [op.path for op in graph.operators if isinstance(op, Add) and len(op.inputs) == 1]
    assert copies == ([] if bits == 8 else ["a", "b", "c", "e"])
    with torch.no_grad():
        error = (graph(x) - plain(x)).abs().mean() / plain(x).std()
    assert error < {8: 0.03, 4: 0.1, 2: 0.3}[bits]
    ram = expected(plain, Ram(), shape).of({})
    assert ram == planned(graph).size + graph.start.numel + graph.end.numel
    usual = quantized(Shared(), Quantize(weights=(8 if bits == 8 else 4))).eval()
    flash, without = (expected(m, Flash(), shape).of({}) for m in (plain, usual))
    # One copy more for what is concatenated, which the graph can round where it is made. The sum,
    # no longer the only call of its kernel, is not put into its caller any more.
    assert flash - without == (0 if bits == 8 else 40 * (len(copies) + 1) + 100)
    if not shutil.which("gcc"):
        return
    for name, text in zip(FILES, c_source(graph, "a test"), strict=False):
        (tmp_path / name).write_text(text)
    model = CompiledModel(tmp_path / FILES[0])
    for wanted in (graph.start.quantize(x), torch.randint(-128, 128, (20, *shape))):
        assert torch.equal(model.run(wanted), graph.run(wanted).flatten(1))


def test_the_sensitivity_is_the_difference_of_the_loss_and_the_prior_selects_by_its_sum():
    model = searched(weights=(2, 4, 8))
    x, target = torch.randn(32, *SHAPE), torch.randn(32, 3)

    def loss(network: nn.Module) -> float:
        return float((network(x) - target).square().mean().detach())

    found = sensitivity(model, loss)
    assert all(bool(d.open.all()) for _, d in decisions(model))
    usual = {name: d.options[-1] if d.ordered else d.best() for name, d in decisions(model)}
    for name, options in found.items():
        for option, difference in options.items():
            plain = discretize(model, nas.Arch("Sequential", {**usual, name: option}))
            base = loss(discretize(model, nas.Arch("Sequential", usual)))
            assert difference == pytest.approx(loss(plain) - base, abs=1e-6)
    set_prior(model, found, 10.0)
    cost = nas.ExpectedCost(model, Size(fold_norm=True), SHAPE)
    bound = 1100.0
    chosen = select(model, "Sequential", {"size": cost}, {"size": bound})
    best = min(
        sum(found[n][o] for n, o in arch.choices.items())
        for arch in archs(model)
        if cost.of(arch.choices) <= bound
    )
    assert sum(found[n][o] for n, o in chosen.choices.items()) == pytest.approx(best, abs=1e-6)


def test_the_c_file_packs_the_bits_and_float_formats_have_the_rounded_weights():
    plain = discretize(searched(weights=(2, 4, 8)), archs(searched(weights=(2, 4, 8)))[0])
    x = torch.randn(32, *SHAPE)
    known = {"shape": SHAPE, "classes": ["a", "b", "c"], "mean": [0.0] * 3, "std": [1.0] * 3}
    source = Source(dequantized(plain), x, "about", known, x, rounded=plain)
    text = str(chosen(["c"], plain)["c"].contents(source)[0])
    assert ".all_bits = 2" in text
    assert ".all_bits = 2" not in str(
        chosen(["c"], plain)["c"].contents(replace(source, rounded=None))[0]
    )


def test_bits_alone_of_a_network_of_the_users_own():
    plain = discretize(network())
    asked = {"weights": [2, 8], "layers": {"7": "float"}}
    space = OwnNetwork(plain, quantize=asked)(SHAPE, 3)
    assert all(n.endswith("weight_bits") and d.options == (2, 8) for n, d in decisions(space))
    other = saved({"quantize": asked}, plain)(SHAPE, 3)
    assert list(dict(decisions(other))) == list(dict(decisions(space)))
    with pytest.raises(UserError, match=r"quantize\.weights: bits=3"):
        OwnNetwork(plain, quantize={"weights": [3]})(SHAPE, 3)
