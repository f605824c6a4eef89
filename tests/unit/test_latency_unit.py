"""What is measured of a supernet, and under which choices it exists."""

import copy
import itertools
import platform
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from nas.arch import Arch
from nas.cost.analytic import MACs
from nas.cost.trace import trace
from nas.decision import decisions
from nas.discretization import discretize
from nas.latency.cost import Latency
from nas.latency.job import draw
from nas.latency.models import UnitTime
from nas.latency.profile import About, Profile
from nas.latency.runtimes import copy_to_measure, inputs_like, runtime
from nas.latency.units import NAMES, Conditions, features, indices, units_of
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.staged import StagedSpace
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import ElasticWidth, elastic
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.relax import Shared
from tests.contracts.elastic_nets import conv, drawn_archs, elastic_nets, searched_widths
from tests.contracts.strategies import all_counted, archs, counted, supernets

MIXED = ["conv_k3", "sep_k5", "mb_k3_e3_se", "identity"]


def staged(**options):
    stages = [
        {"ops": MIXED, "channels": 4, "repeat": 2},
        {"ops": ["conv_k3", "mb_k3_e1"], "channels": 8, "stride": 2},
    ]
    return StagedSpace((4, 8, 8), 3, stages, name="small", **options)


@settings(max_examples=10)
@given(supernets())
def test_units_do_all_the_work_of_every_network_but_the_functions_between(net):
    units = units_of(net, net.input_shape)
    own, macs = dict(decisions(net)), MACs()
    rest = set()
    for arch, found in all_counted(net).items():
        keys = units.of(indices(own, arch.choices))
        work = sum(macs(layer) for key in keys for layer in units.by_key[key].layers)
        rest.add(found["macs"] - work)
    # The bare convolution at the start of each drawn network is the only such function.
    places = torch.Size(net.input_shape[1:]).numel()
    assert rest == {net.filter.numel() * places}


def test_a_unit_can_be_run_alone_on_inputs_of_its_shapes():
    net = staged().eval()
    conditions = Conditions(batch=3)
    for unit in units_of(net, net.input_shape, conditions).to_measure.values():
        inputs = inputs_like(unit.inputs, unit.dtypes, conditions)
        out = copy_to_measure(unit.module, conditions)(*inputs)
        assert out.shape[0] == 3


def test_equal_work_has_one_key_and_other_work_another():
    def key(op, conditions=None):
        (unit,) = units_of(op, (4, 6, 6), conditions).by_key
        return unit

    plain_key = key(build("conv_k3", 4, 4))
    assert key(build("conv_k3", 4, 4)) == plain_key
    assert plain_key.startswith("conv3x3 4>4@6x6 | in 1x4x6x6 | b1 float32 t1 | ")
    others = [
        key(nn.Sequential(*build("conv_k3", 4, 4)[:2], nn.SiLU())),
        key(nn.Sequential(*build("conv_k3", 4, 4)[:2])),
        key(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
        key(build("conv_k3", 4, 4, stride=2)),
        key(build("conv_k3", 4, 4), Conditions(batch=2)),
        key(build("conv_k3", 4, 4), Conditions(threads=2)),
        key(build("conv_k3", 4, 4), Conditions(dtype="bfloat16")),
        key(nn.MaxPool2d(3, 1, 1)),
        key(nn.MaxPool2d(5, 1, 2)),
    ]
    assert len({plain_key, *others}) == len(others) + 1


def test_what_computes_nothing_is_free_and_the_rest_is_not():
    block = ChoiceBlock(
        {
            "skip": nn.Identity(),
            "flat": nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6))),
            "zero": build("zero", 4, 4),
            "pool": build("maxpool_k3", 4, 4),
        }
    )
    units = units_of(block, (4, 6, 6))
    free = {use.key: units.by_key[use.key].free for use in units.uses}
    assert [free[use.key] for use in units.uses] == [True, True, False, False]


def test_modules_in_a_row_are_one_unit_and_a_choice_ends_it():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        ChoiceBlock([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )
    units = units_of(net, (4, 6, 6))
    gates = [use.condition for use in units.uses]
    assert gates == [frozenset(), {("3", 0)}, {("3", 1)}, frozenset()]
    first, *_, last = (units.by_key[use.key].module for use in units.uses)
    assert [type(m) for m in first] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [type(m) for m in last] == [nn.ReLU, nn.AdaptiveAvgPool2d]


@settings(max_examples=10)
@given(searched_widths())
def test_units_behind_searched_widths_have_the_sizes_of_every_network(net):
    traced = trace(net, net.input_shape)
    for arch in drawn_archs(net):
        taken = indices(dict(decisions(net)), arch.choices).items()
        pieces = [piece for piece in traced.pieces if piece.condition <= taken]
        found = [o.text for piece in pieces for o in traced.operators[piece.first : piece.end]]
        network = trace(discretize(net, arch), net.input_shape)
        # The functions that the network itself calls belong to no unit.
        assert sorted(found) == sorted(o.text for o in network.operators if o.module)


def test_modules_in_a_row_behind_searched_widths_are_one_unit_for_each_width():
    width = elastic([2, 4])
    net = nn.Sequential(conv(4, width), nn.ReLU(), nn.MaxPool2d(3), conv(width, 4))
    units = units_of(net, (4, 6, 6))
    conditions = [use.condition for use in units.uses]
    assert conditions == [{("0.out_channels", k)} for k in (0, 1)] * 3
    narrow, wide = (units.by_key[use.key] for use in units.uses[2:4])
    assert (narrow.inputs, wide.inputs) == (((1, 2, 6, 6),), ((1, 4, 6, 6),))
    assert [type(m) for m in narrow.module] == [nn.ReLU, nn.MaxPool2d]


def test_an_option_with_choices_of_its_own_is_taken_apart():
    inner = ChoiceBlock({"a": nn.Conv2d(4, 4, 1), "b": nn.Identity()})
    deep = nn.Sequential(inner, nn.Conv2d(4, 4, 3, padding=1))
    outer = ChoiceBlock({"deep": deep, "skip": nn.Identity()})
    units = units_of(nn.Sequential(outer), (4, 6, 6))
    paid = {use.key: use.condition for use in units.uses if not units.by_key[use.key].free}
    taken, a = ("0", 0), ("0.candidates.deep.0", 0)
    assert sorted(map(len, paid.values())) == [1, 2]
    assert set(paid.values()) == {frozenset({taken}), frozenset({taken, a})}


class Gated(nn.Module):
    """Takes a keyword and a number, besides its tensors."""

    def forward(self, x, y, scale=1.0, add=True):
        return x * scale + y if add else x


class WithArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = ChoiceBlock([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)])
        self.gated = Gated()

    def forward(self, x):
        return self.gated(self.block(x), x, scale=2.0, add=True)


def test_arguments_that_are_no_tensors_are_filled_in():
    units = units_of(WithArguments(), (4, 6, 6))
    unit = units.by_key[units.uses[-1].key]
    x, y = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    assert unit.inputs == ((1, 4, 6, 6), (1, 4, 6, 6))
    assert torch.equal(unit.module(x, y), 2 * x + y)


def test_the_model_is_left_as_it_was():
    net = staged()
    before = copy.deepcopy(net.state_dict())
    units_of(net, net.input_shape)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert not any(decision.unrolled for _, decision in decisions(net))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_networks_to_calibrate_and_to_validate_differ_and_are_the_same_each_time():
    net = staged()
    units = units_of(net, net.input_shape)
    calibration, validation = draw(net, "small", units, 12, 5, seed=3)
    assert (len(calibration), len(validation)) == (5, 7)
    assert len({*calibration, *validation}) == 12
    assert draw(net, "small", units, 12, 5, seed=3) == (calibration, validation)
    assert draw(net, "small", units, 12, 5, seed=4) != (calibration, validation)
    few, rest = draw(net, "small", units, 1000, 10, seed=0)  # the space has 32
    assert (len(few), len(rest)) == (10, 22)


@pytest.mark.parametrize(
    "name",
    ["torch", "onnxruntime", pytest.param("executorch", marks=pytest.mark.slow)],
)
def test_a_runtime_runs_what_it_is_given(name):
    module = build("mb_k3_e3_se", 4, 4).eval()
    x = torch.randn(2, 4, 6, 6)
    if name != "torch":
        pytest.importorskip(name)
    (out, *_) = [runtime(name, "cpu", Conditions(batch=2)).prepare(module, (x,))()]
    found = out if name == "torch" else torch.as_tensor(out[0])
    torch.testing.assert_close(found, module(x), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    """Two blocks that carry out one decision, which stands apart from them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Shared(("k1", "k3"))
        self.blocks = nn.ModuleList(
            ChoiceBlock(
                {"k1": nn.Conv2d(2, 2, 1), "k3": nn.Conv2d(2, 2, 3, padding=1)}, tied_to=self.shared
            )
            for _ in range(2)
        )

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


def test_blocks_that_share_a_decision_are_gated_by_it():
    found = units_of(Twice(), (2, 5, 5))
    gates = [frozenset({("shared", 0)}), frozenset({("shared", 1)})]
    assert [use.condition for use in found.uses] == gates * 2
    assert len(found.to_measure) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_large_activations_are_not_given_back_to_the_system_between_calls():
    # In a process of its own: it sets the allocator for good.
    code = """
import resource, torch
from nas.latency.runtimes import runtime
from nas.latency.units import Conditions
layers = [torch.nn.Conv2d(64, 64, 1, groups=64), torch.nn.ReLU()]
net = torch.nn.Sequential(*[layer for _ in range(4) for layer in layers])
call = runtime("torch", "cpu", Conditions()).prepare(net, (torch.zeros(1, 64, 160, 160),))
for _ in range(3):
    call()
faults = []
for _ in range(6):  # the system may take pages back by itself now and then
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 100  # one activation alone is 1,600 pages


@settings(max_examples=6)
@given(elastic_nets())
def test_units_of_searched_numbers_do_the_work_of_each_extracted_network(net):
    units = units_of(net, net.input_shape)
    own, macs = dict(decisions(net)), MACs()
    for arch in drawn_archs(net):
        keys = units.of(indices(own, arch.choices))
        work = sum(macs(layer) for key in keys for layer in units.by_key[key].layers)
        assert work == counted(discretize(net, Arch("drawn", arch.choices)))["macs"]


def test_the_latency_of_an_elastic_space_is_the_sum_over_each_extracted_network():
    """The extracted network is one unit: its time is that of its layers, as drawn here."""
    stages = [{"ops": ["elastic_k5_e4"], "channels": [4, 8], "stride": 2, "depth": [1, 2]}]
    net = StagedSpace(
        (3, 8, 8), 3, stages, name="small", resolution=[6, 8], head={"features": 4}
    ).eval()
    own = dict(decisions(net))

    def seconds(unit):
        texts = (str(replace(layer, module="")) for layer in unit.layers if layer.is_call)
        return sum(crc32(text.encode()) / 2**32 for text in texts)

    units = units_of(net, net.input_shape)
    times = {
        key: UnitTime(1 + seconds(unit), features(unit.layers))
        for key, unit in units.to_measure.items()
    }
    about = About("small", ((1, 3, 8, 8),), "x", "", "torch", "cpu", 1, "float32", 1, {}, "")
    expected = Latency(Profile(about, times)).expected(net, net.input_shape)
    for arch in archs(net):
        (whole,) = units_of(discretize(net, arch), net.input_shape).by_key.values()
        calls = len(units.of(indices(own, arch.choices)))
        assert expected.of(arch.choices) == pytest.approx(calls + seconds(whole))


def test_a_unit_of_searched_numbers_can_be_run_alone():
    net = ElasticWidth(partial(nn.Conv2d, kernel_size=3), elastic([2, 4]), elastic([3, 6]))
    found = units_of(net, (4, 6, 6))
    for unit, use in zip(found.by_key.values(), found.uses, strict=True):
        network = discretize(net, arch_with(net, use.condition))
        x = torch.randn(unit.inputs[0])
        assert torch.equal(unit.module(x), network(x))


def arch_with(net, condition):
    own = dict(decisions(net))
    return Arch(type(net).__name__, {name: own[name].options[k] for name, k in condition})


@pytest.mark.parametrize("seed", range(12))
def test_what_reaches_no_output_costs_nothing_in_runtimes_of_graphs(seed):
    space = NasBench201((3, 8, 8), 4, channels=2, cells=2).eval()
    traced, own, draw = trace(space, (3, 8, 8)), dict(decisions(space)), Random(seed)
    arch = {name: draw.choice(["none", *d.options]) for name, d in own.items()}
    network = discretize(space, Arch(space.name, arch)).eval()
    outputs = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *given: outputs.append(given[2]))
    y = network(torch.randn(2, 3, 8, 8)).sum()
    found = torch.autograd.grad(y, outputs, allow_unused=True)
    for unused, count in ((True, len(found)), (False, sum(g is not None for g in found))):
        units = units_of(space, traced, None, unused)
        layers = [s for key in units.of(indices(own, arch)) for s in units.by_key[key].layers]
        assert sum(layer.kind == "conv" for layer in layers) == count


def test_features_of_the_units_of_a_path_are_those_of_the_plain_network_which_is_one_unit():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        ChoiceBlock([build("sep_k3", 4, 4), build("mb_k3_e3", 4, 4)]),
        ChoiceBlock([build("conv_k3", 4, 6), nn.Conv2d(4, 6, 1)]),
        nn.Flatten(),
        nn.Linear(150, 2),
    ).eval()
    units, own = units_of(model, (3, 5, 5)), dict(decisions(model))
    for picks in itertools.product((0, 1), repeat=2):
        taken = dict(zip(own, picks, strict=True))
        found = Counter(dict.fromkeys(NAMES, 0.0))
        for key in units.of(taken):
            found.update(features(units.by_key[key].layers))
        choices = {name: own[name].options[pick] for name, pick in taken.items()}
        plain = units_of(discretize(model, Arch("a", choices)), (3, 5, 5))
        (whole,) = plain.by_key.values()
        assert features(whole.layers) == found
        assert found["norm_weights"] > 0
