"""Bytes of the stored network against what torch itself stores, with and without folded norms."""

import io
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from nas.arch import Arch
from nas.cost.analytic import MACs, Params, Size
from nas.cost.expected import ExpectedCost, entries
from nas.cost.trace import trace
from nas.decision import apply
from nas.discretization import arch_of, discretize
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import ElasticWidth, Number, elastic
from nas.supernet.elastic_ops import build_op as build

from .elastic_nets import drawn_archs, elastic_nets
from .strategies import archs, counted, randomized, some_archs, supernets


def stored_bytes(network: nn.Module) -> int:
    """Bytes of the tensors of a state dict, each storage once, as a file holds them."""
    tensors = {t.data_ptr(): t for t in network.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


class Tracer(fx.Tracer):
    """Does not look into modules without children: their code may not be made for it."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not any(module.children())


def folded_bytes(network: nn.Module) -> int:
    """The same once torch has fused the norms; it does not look behind an identity."""
    graph = fx.GraphModule(network.eval(), Tracer().trace(network))
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(graph.get_submodule(node.target), nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.recompile()
    return stored_bytes(fuse(graph, no_trace=True))


@settings(max_examples=25)
@given(supernets())
def test_size_of_every_architecture_is_what_torch_stores(net):
    traced = trace(net, net.input_shape)
    whole = ExpectedCost(net, Size(), traced)
    folded = ExpectedCost(net, Size(fold_norm=True), traced)
    for arch in some_archs(net):
        network = discretize(net, arch)
        apply(net, arch)
        assert whole().item() == whole.of(arch.choices) == stored_bytes(network)
        assert folded().item() == folded.of(arch.choices) == folded_bytes(network)


class Chain(nn.Sequential):
    input_shape = (4, 5, 5)


@st.composite
def searched_channels(draw) -> nn.Module:
    """Convolutions and norms between numbers of channels that are searched, or not."""
    torch.manual_seed(0)
    widths = [elastic(draw(st.sampled_from([4, [2, 4], [3, 4, 6]]))) for _ in range(2)]
    layers: list[nn.Module] = []
    channels = 4
    for _ in range(draw(st.integers(2, 4))):
        out = draw(st.sampled_from([*widths, 4]))
        bias = draw(st.booleans())
        make = partial(
            nn.Conv2d, kernel_size=draw(st.sampled_from([1, 3])), padding="same", bias=bias
        )
        layers.append(ElasticWidth(make, channels, out))
        channels = out
        kinds = [[], ["norm"], ["choice"], ["relu", "norm"], ["norm", "choice", "norm"]]
        layers += [behind(kind, channels) for kind in draw(st.sampled_from(kinds))]
    layers += [ElasticWidth(partial(nn.Conv2d, kernel_size=1), channels, 4), norm()]
    return randomized(Chain(*layers)).eval()


def behind(kind: str, channels: Number) -> nn.Module:
    if kind == "relu":
        return nn.ReLU()
    searched = ElasticWidth(lambda _, outputs: nn.BatchNorm2d(outputs), channels, channels)
    return searched if kind == "norm" else ChoiceBlock({"norm": searched, "none": nn.Identity()})


@settings(max_examples=10)
@given(st.one_of(searched_channels(), elastic_nets(resolution=False)))
def test_norms_behind_searched_channels_fold_as_in_the_extracted_network(net):
    traced = trace(net, net.input_shape)
    whole, folded = (ExpectedCost(net, Size(fold_norm=fold), traced) for fold in (False, True))
    for arch in drawn_archs(net):
        network = discretize(net, Arch(arch_of(net).space, arch.choices))
        assert whole.of(arch.choices) == stored_bytes(network)
        assert folded.of(arch.choices) == folded_bytes(network)


def conv(c_in: int = 4, c_out: int = 4, **more) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **more)


class Tree(nn.Module):
    """`forward` over named layers; ``(1, 4, 5, 5)`` in."""

    input_shape = (4, 5, 5)

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def choice_in_front() -> nn.Module:
    options = {"plain": conv(bias=False), "biased": conv(), "none": nn.Identity()}
    return Tree(lambda s, x: s.norm(s.block(x)), block=ChoiceBlock(options), norm=norm())


def choice_behind() -> nn.Module:
    options = {"norm": norm(), "conv": conv(), "none": nn.Identity()}
    block = ChoiceBlock(options)
    return Tree(lambda s, x: s.block(s.conv(x)).relu(), conv=conv(), block=block)


def choice_beside() -> nn.Module:
    """The convolution's output is read by the norm, and by a convolution if that is chosen."""
    block = ChoiceBlock({"conv": conv(bias=False), "none": nn.Identity()})
    other = ChoiceBlock({"pool": nn.AvgPool2d(3, 1, 1), "norm": norm()})

    def forward(self, x):
        y = self.conv(x)
        return self.norm(self.block(y)) + self.other(x)

    return Tree(forward, conv=conv(bias=False), block=block, norm=norm(), other=other)


def nested() -> nn.Module:
    inner = ChoiceBlock({"a": conv(bias=False), "b": nn.AvgPool2d(3, 1, 1)})
    outer = ChoiceBlock({"deep": nn.Sequential(nn.ReLU(), inner), "flat": conv()})
    return Tree(lambda s, x: s.norm(s.block(x)), block=outer, norm=norm())


def directly_nested() -> nn.Module:
    """A choice that is itself an option."""
    inner = ChoiceBlock({"a": conv(bias=False), "b": nn.AvgPool2d(3, 1, 1)})
    outer = ChoiceBlock({"inner": inner, "flat": conv()})
    return Tree(lambda s, x: s.norm(s.block(x)), block=outer, norm=norm())


def residual() -> nn.Module:
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y

    return Tree(forward, conv=conv(), norm=norm(), block=ChoiceBlock([conv(), conv()]))


def in_place() -> nn.Module:
    layers = nn.Sequential(conv(), nn.ReLU(inplace=True), norm(), conv(bias=False), norm())
    return Tree(lambda s, x: s.block(s.layers(x)), layers=layers, block=ChoiceBlock([conv()]))


def linear() -> nn.Module:
    block = ChoiceBlock({"a": nn.Linear(4, 6, bias=False), "b": nn.Linear(4, 6)})
    return Tree(lambda s, x: s.norm(s.block(x.mean((2, 3)))), block=block, norm=nn.BatchNorm1d(6))


def returned() -> nn.Module:
    def forward(self, x):
        y = self.conv(x)
        return y, self.block(self.norm(y))

    return Tree(forward, conv=conv(), norm=norm(), block=ChoiceBlock([conv(), conv(bias=False)]))


def norms_in_a_row() -> nn.Module:
    block = ChoiceBlock({"norm": norm(), "none": nn.Identity(), "relu": nn.ReLU(), "conv": conv()})
    other = ChoiceBlock({"conv": conv(bias=False), "norm": norm(), "none": nn.Identity()})
    layers = {"first": norm(), "block": block, "last": norm(), "other": other}
    return Tree(lambda s, x: s.last(s.block(s.first(s.other(x)))), **layers)


def norms_in_a_row_beside() -> nn.Module:
    """What the first norm gives is read by the second one alone, or is added to that one's."""
    options = {"once": norm(), "added": Tree(lambda s, x: x + s.norm(x), norm=norm())}
    return Tree(
        lambda s, x: s.block(s.first(s.conv(x))),
        conv=conv(bias=False),
        first=norm(),
        block=ChoiceBlock(options),
    )


def two_norms() -> nn.Module:
    block = ChoiceBlock({"norm": norm(), "none": nn.ReLU()})

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + self.block(y)

    return Tree(forward, conv=conv(), norm=norm(), block=block)


def identity_outside() -> nn.Module:
    """An option of the block is called elsewhere as well."""
    shared = nn.Identity()
    block = ChoiceBlock({"none": shared, "conv": conv(bias=False)})

    def forward(self, x):
        return self.norm(self.shared(self.conv(x))) + self.last(self.block(x.relu()))

    return Tree(forward, shared=shared, conv=conv(), norm=norm(), block=block, last=norm())


def statistics_of_the_batch() -> nn.Module:
    plain = nn.BatchNorm2d(4, track_running_stats=False)
    block = ChoiceBlock({"plain": plain, "norm": nn.BatchNorm2d(4, affine=False)})
    return Tree(lambda s, x: s.block(s.conv(x)), conv=conv(bias=False), block=block)


def bare_product() -> nn.Module:
    """No layer that could take up the norm."""
    block = ChoiceBlock({"norm": nn.BatchNorm1d(4), "none": nn.ReLU()})
    net = Tree(lambda s, x: s.block(x.mean((2, 3)) @ s.matrix), block=block)
    net.matrix = nn.Parameter(torch.randn(4, 4))
    return net


def norm() -> nn.Module:
    return nn.BatchNorm2d(4)


NETS = [
    choice_in_front,
    choice_behind,
    choice_beside,
    norms_in_a_row,
    norms_in_a_row_beside,
    nested,
    directly_nested,
    in_place,
    linear,
    returned,
    two_norms,
    identity_outside,
    statistics_of_the_batch,
    bare_product,
]


@pytest.mark.parametrize("make", NETS)
def test_what_folds_may_depend_on_the_choice(make):
    net = make().eval()
    expected = ExpectedCost(net, Size(fold_norm=True), net.input_shape)
    for arch in archs(net):
        network = discretize(net, arch)
        alone = ExpectedCost(network, Size(fold_norm=True), net.input_shape)().item()
        assert expected.of(arch.choices) == alone == folded_bytes(network), arch


def test_a_norm_whose_input_is_read_by_another_stays():
    net = residual()
    for layer in (conv(), conv(bias=False)):
        net.conv = layer
        whole, folded = (Size(fold_norm=fold) for fold in (False, True))
        pair = [ExpectedCost(net, cost, net.input_shape)() for cost in (whole, folded)]
        assert pair[0] == pair[1]


def test_a_norm_shared_by_two_layers_folds_where_one_of_them_is_left():
    """With both layers there, neither can take up the norm."""
    shared = norm()
    block = ChoiceBlock({"again": nn.Sequential(conv(bias=False), shared), "none": nn.ReLU()})
    net = Tree(
        lambda s, x: s.block(s.norm(s.conv(x))), conv=conv(bias=False), norm=shared, block=block
    )
    expected = ExpectedCost(net, Size(fold_norm=True), net.input_shape)
    weights, whole_norm = 4 * 4 * 9 * 4, 4 * 4 * 4 + 8
    assert expected.of({"block": "again"}) == 2 * weights + whole_norm
    assert expected.of({"block": "none"}) == weights + 4 * 4
    for arch in archs(net):
        network = discretize(net, arch)
        alone = ExpectedCost(network, Size(fold_norm=True), net.input_shape)().item()
        assert expected.of(arch.choices) == alone


def test_a_block_that_is_called_twice():
    block = ChoiceBlock({"none": nn.Identity(), "conv": conv(bias=False)})

    def forward(self, x):
        y = self.second(self.block(self.first(x)).relu())
        return self.norm_a(self.block(y)) + self.norm_b(self.block(self.third(x)))

    layers = {"first": conv(), "second": conv(), "third": conv()}
    net = Tree(forward, **layers, block=block, norm_a=norm(), norm_b=norm()).eval()
    expected = ExpectedCost(net, Size(fold_norm=True), net.input_shape)
    three, one, whole_norm = 3 * (4 * 4 * 9 + 4) * 4, 4 * 4 * 9 * 4, 4 * 4 * 4 + 8
    # A norm for each of two calls: the block's convolution can take up neither.
    assert expected.of({"block": "conv"}) == three + one + 2 * whole_norm
    assert expected.of({"block": "none"}) == three
    for arch in archs(net):
        alone = ExpectedCost(discretize(net, arch), Size(fold_norm=True), net.input_shape)
        assert expected.of(arch.choices) == alone().item()


def test_a_file_is_larger_by_its_envelope_only():
    network = nn.Sequential(*(build("mb_k5_e6_se", 16, 16) for _ in range(3)))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    size = ExpectedCost(network, Size(), (16, 8, 8))().item()
    # Zip headers, names and padding to 64 bytes: some hundred bytes for each tensor.
    assert 0 < file.tell() - size < 600 * len(network.state_dict())


def test_integer_weights_and_wide_biases():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(4, 2))
    price = {
        (dtype, fold): ExpectedCost(net, Size(dtype, fold), (3, 6, 4 + 2))().item()
        for dtype in ("int8", "int4", "float16")
        for fold in (False, True)
    }
    weights, biases, norms = 3 * 5 * 9 + 8, 5 + 2, 4 * 5
    assert price["int8", True] == weights + 4 * biases
    assert price["int4", True] == weights / 2 + 4 * biases
    assert price["int8", False] == weights + 4 * (biases + norms) + 8
    assert price["float16", True] == 2 * (weights + biases)


def test_buffers_are_nothing_to_other_costs_and_folds_are_shown_to_those_that_ask():
    net = nn.Sequential(build("mb_k3_e3", 8, 8), nn.BatchNorm2d(8, affine=False))
    net.input_shape = (8, 4, 4)
    traced = trace(net, net.input_shape)
    assert "buffer" in {layer.spec.kind for layer in traced.layers}
    folds = {"folded", "gained"}
    for cost in (Params(), MACs(), Size(), Size(fold_norm=True)):
        shown = {layer.spec.kind for layer in entries(traced, cost)}
        assert shown & folds == (folds if getattr(cost, "fold_norm", False) else set())
    values = {c.name: ExpectedCost(net, c, traced)().item() for c in (Params(), MACs())}
    assert values == counted(net.eval())


def test_a_buffer_that_is_not_saved_is_not_stored():
    net = nn.Sequential(conv(), norm()).eval()
    for layer in net:
        layer.register_buffer("table", torch.zeros(100), persistent=False)
    net[0].register_buffer("scale", torch.zeros(3))
    size, folded = (
        ExpectedCost(net, Size(fold_norm=fold), Tree.input_shape)().item() for fold in (False, True)
    )
    assert size == stored_bytes(net) == 4 * (4 * 4 * 9 + 4 + 3 + 16) + 8
    assert folded == 4 * (4 * 4 * 9 + 4 + 3)


@pytest.mark.parametrize("dtype", ["float8", "int1", "int32", "", "INT8", 8])
def test_unknown_formats_are_refused(dtype):
    with pytest.raises(UserError, match=r"size\.dtype=.*choose float32, float16, .*int8"):
        Size(dtype)
