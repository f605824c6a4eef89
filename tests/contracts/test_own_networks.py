"""What a network of one's own may be like: taken as it is, or refused in one line."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.prune import l1_unstructured

import nas
from nas.compress.convert import converted, searchable
from nas.compress.rules import Rules
from nas.compress.space import OwnNetwork, load


def convs(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv1d(a, b, 1) for a, b in pairwise(widths)))


class Branch(nn.Module):
    """A convolution where the mean of `gate` is positive, else nothing: so a dry run on zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.conv(x) if (x if gate is None else gate).mean() > 0 else x


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.branch, self.head = convs(2, 8, 8), Branch(), convs(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.branch(self.body(x), gate=x))


class Length(nn.Module):
    """As many positions as the largest value says."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : 1 + int(x.abs().amax().clamp(1, 3).item())]


def scripted() -> nn.Module:
    return torch.jit.script(convs(2, 8, 1))


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(convs(2, 8, 1), (torch.zeros(1, 2, 5),))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "scripted": (scripted, "is scripted, its code is no longer Python"),
    "traced": (
        lambda: torch.jit.trace(convs(2, 8, 1), torch.zeros(1, 2, 5)),
        "TopLevelTracedModule is scripted",
    ),
    "a part is scripted": (
        lambda: nn.Sequential(scripted(), nn.Conv1d(1, 1, 1)),
        r"Sequential\.0 is scripted",
    ),
    "exported": (lambda: exported().module(), "GraphModule comes from torch.export and has no lay"),
    "a part is exported": (
        lambda: nn.Sequential(exported().module(), nn.Conv1d(1, 1, 1)),
        r"Sequential\.0 comes from torch\.export",
    ),
    "for several devices": (
        lambda: nn.DataParallel(convs(2, 8, 1)),
        r"several devices: give its \.module",
    ),
    "without values": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 1, device="meta"), nn.Conv1d(8, 1, 1)),
        r"Sequential\.0\.weight is on the meta device",
    ),
    "computed weights": (
        lambda: nn.Sequential(weight_norm(nn.Conv1d(2, 8, 1)), nn.Conv1d(8, 1, 1)),
        "no channels of Sequential can be searched: 0",
    ),
    "nothing to search": (nn.Flatten, "no channels of Flatten can be searched: it has no such"),
    "a part that branches": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 1), Branch(), nn.Conv1d(8, 1, 1)),
        r"Sequential\.1 depends on the values of its data \(test_own_networks\.py:\d+\), so that "
        r"nobody knows .*: exclude it, space\.rules\.exclude=\[1\]",
    ),
    "a part that cuts by values": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 1), Length(), nn.Conv1d(8, 1, 1)),
        r"Sequential\.1 depends on the values of its data",
    ),
    "the whole branches": (
        Branch,
        r"Branch depends on the values of its data \(.*\), .* put that part into a module",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_in_one_line(name: str) -> None:
    make, said = REFUSED[name]
    with pytest.raises(nas.UserError, match=said) as found:
        searchable(make(), (8 if make is Branch else 2, 5))
    assert "\n" not in str(found.value)


def compiled() -> nn.Module:
    return torch.compile(convs(2, 8, 1))  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    net = convs(2, 8, 1)
    net.compile()
    return net


def hooked() -> nn.Module:
    """Doubled by one hook, and halved again by another."""
    net = convs(2, 8, 1)
    net[0].register_forward_hook(lambda _module, _args, out: 2 * out)
    net[1].register_forward_pre_hook(lambda _, args: (args[0] / 2,))
    return net


def tied() -> nn.Module:
    net = convs(2, 8, 8, 8, 6, 1)
    net[2].weight = net[1].weight
    return net


def frozen() -> nn.Module:
    """In train mode, with a frozen first layer and statistics that stay."""
    net = nn.Sequential(nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 1, 1)).train()
    net[0].requires_grad_(False)
    net[1].eval()
    return net


def buffered() -> nn.Module:
    net = convs(2, 8, 1)
    net.register_buffer("steps", torch.tensor(3))
    return net


# Network -> the decisions in it.
TAKEN: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "compiled": (compiled, ["0.channels"]),
    "compiled in place": (compiled_in_place, ["0.channels"]),
    "a part is compiled": (
        lambda: nn.Sequential(torch.compile(convs(2, 8, 8)), nn.Conv1d(8, 1, 1)),
        ["0.0.channels", "0.1.channels"],
    ),
    "hooks": (hooked, ["0.channels"]),
    "tied weights": (tied, ["3.channels"]),
    "frozen parts in train mode": (frozen, ["0.channels"]),
    "a buffer that counts": (buffered, ["0.channels"]),
    "in double precision": (lambda: convs(2, 8, 1).double(), ["0.channels"]),
    "spectral norm": (
        lambda: nn.Sequential(*convs(2, 8, 6), spectral_norm(nn.Conv1d(6, 8, 1)), *convs(8, 8, 1)),
        ["0.channels", "3.channels"],
    ),
    "pruned by masks": (
        lambda: nn.Sequential(
            *convs(2, 8, 6), l1_unstructured(nn.Conv1d(6, 8, 1), "weight", 0.5), *convs(8, 8, 1)
        ),
        ["0.channels", "3.channels"],
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_special_about_a_network_is_kept(name: str) -> None:
    make, expected = TAKEN[name]
    net = make()
    own = getattr(net, "_orig_mod", net)
    supernet = searchable(net, (2, 5))
    assert [path for path, _ in nas.decisions(supernet)] == expected
    for _, decision in nas.decisions(supernet):
        decision.choose(decision.options[-1])
    network = nas.discretize(supernet)
    names = [key.replace("_orig_mod.", "") for key in own.state_dict()]
    assert list(network.state_dict()) == names
    modes = [m.training for m in own.modules() if "_orig_mod" not in m._modules]
    assert [m.training for m in network.modules()] == modes
    parameters = list(own.parameters())
    assert [x.requires_grad for x in network.parameters()] == [x.requires_grad for x in parameters]
    assert len(list(network.parameters())) == len(parameters)  # tied ones are one
    x = torch.randn(2, 2, 5, dtype=parameters[0].dtype)
    if "compiled" not in name:  # which takes seconds
        torch.testing.assert_close(network.eval()(x), net.eval()(x))
    nas.free(supernet)
    nas.sample_path(supernet)
    smaller = nas.discretize(supernet).eval()
    torch.testing.assert_close(smaller(x), supernet.eval()(x))


def test_weights_that_are_computed_before_each_call_stay_and_are_said_to() -> None:
    net = TAKEN["spectral norm"][0]()
    rows = {row.layers[0]: row for row in converted(net, (2, 5)).rows}
    assert str(rows["1"].why).startswith("its weight is computed before each call")


def test_an_excluded_part_may_depend_on_the_values_of_data() -> None:
    """It stays whole, with what it reads and makes, whichever way it goes."""
    rows = converted(Routed(), (2, 5), Rules(exclude=["branch"])).rows
    assert [row.decision for row in rows if row.decision] == ["body.0.channels", "head.0.channels"]
    whys = {name: str(row.why) for row in rows for name in row.layers}
    for name in ("body.1", "branch.conv"):
        assert whys[name].startswith("branch depends on the values of data (test_own_networks.py:")
    supernet = searchable(Routed().eval(), (2, 5), Rules(exclude=["Branch"]))
    for _, decision in nas.decisions(supernet):
        decision.choose(decision.options[0])
    network, ways = nas.discretize(supernet), []
    network.branch.conv.register_forward_hook(lambda *_: ways.append("conv"))
    for value in (-1.0, 1.0):
        assert network(torch.full((1, 2, 5), value)).shape == (1, 1, 5)
    assert ways == ["conv"]


class Made(nn.Module):
    """A network of named parts, whose code is a function."""

    def __init__(self, code: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.code = code
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self, x)


class Held(nn.Module):
    """A layer that holds a parameter, for channels in a dimension of its own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(*shape))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.gain


class Perceptron(nn.Module):
    """A network that holds all weights itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias = nn.Parameter(torch.randn(10, 8)), nn.Parameter(torch.zeros(8))
        self.last = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.first + self.bias).relu() @ self.last


def encoder() -> nn.Module:
    """With the layers of PyTorch, which run as one kernel where no gradient is asked for."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    last = nn.Linear(8, 3)
    return Made(
        lambda own, x: own.last(own.body(own.first(x.mT)).mean(1)),
        first=nn.Linear(2, 8),
        body=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        last=last,
    )


def half_precise(own: Made, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = own.first(x)
    return own.last(x.float())


# What code around layers, or layers of one's own, may do -> the network, and its decisions.
CODE: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "one kernel for a whole block": (
        encoder,
        ["body.layers.0.linear1.channels", "body.layers.1.linear1.channels"],
    ),
    "channels that come from a table": (
        lambda: Made(
            lambda own, x: own.last((own.first(x.mT) + own.table(torch.arange(5))).relu()),
            first=nn.Linear(2, 8),
            table=nn.Embedding(5, 8),
            last=nn.Linear(8, 1),
        ),
        ["first.channels"],
    ),
    "channels in the last dimension": (
        lambda: nn.Sequential(nn.Linear(5, 8), Held(8), nn.ReLU(), nn.Linear(8, 1)),
        ["0.channels"],
    ),
    "channels in the first of two dimensions": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 1), Held(8, 1), nn.ReLU(), nn.Conv1d(8, 1, 1)),
        ["0.channels"],
    ),
    "a layer that is called by name": (
        lambda: Made(
            lambda own, x: own.last(own.gain(values=own.first(x))),
            first=nn.Conv1d(2, 8, 1),
            gain=Held(8, 1),
            last=nn.Conv1d(8, 1, 1),
        ),
        ["first.channels"],
    ),
    "weights that no layer holds": (Perceptron, ["channels"]),
    "a weight that is computed from channels": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 8, 1), nn.Flatten(), orthogonal(nn.Linear(40, 16)), nn.Linear(16, 1)
        ),
        ["0.channels"],
    ),
    "code that asks for the type of a weight": (
        lambda: Made(
            lambda own, x: own.last(own.first(x.to(own.first.weight.dtype))),
            first=nn.Conv1d(2, 8, 1),
            last=nn.Conv1d(8, 1, 1),
        ),
        ["first.channels"],
    ),
    "a part in half precision": (
        lambda: Made(half_precise, first=convs(2, 8, 8), last=nn.Conv1d(8, 1, 1)),
        ["first.0.channels", "first.1.channels"],
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_whatever_code_does_networks_are_those_of_the_supernet_and_priced_exactly(
    name: str,
) -> None:
    make, expected = CODE[name]
    net, x = make().eval(), torch.randn(3, 2, 5)
    supernet = searchable(net, (2, 5))
    assert [path for path, _ in nas.decisions(supernet)] == expected
    traced = nas.trace(supernet, (2, 5))
    params, macs = (nas.ExpectedCost(supernet, c, traced) for c in (nas.Params(), nas.MACs()))
    for _ in range(3):
        nas.sample_path(supernet)
        choices = nas.arch_of(supernet, "net").choices
        network = nas.discretize(supernet)
        exact = 1e-2 if "half" in name else 1e-5
        with torch.no_grad():
            torch.testing.assert_close(network(x), supernet(x), rtol=exact, atol=exact)
        assert params.of(choices) == sum(p.numel() for p in network.parameters())
        assert macs.of(choices) == nas.cost_of(network, (2, 5)).macs


class Reading(nn.Module):
    """A network of two inputs; each is numbers, or names rows of a table."""

    def __init__(self, tokens: tuple[bool, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Embedding(7, 8) if t else nn.Linear(1, 8) for t in tokens)
        self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for part, x in zip(self.parts, (a, b), strict=True):
            total = total + part(x[..., None] if isinstance(part, nn.Linear) else x)
        return self.last(self.hidden(total).relu().mean(1))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("tokens", list(product((False, True), repeat=2)))
def test_inputs_may_be_the_rows_of_an_embedding(tokens: tuple[bool, ...], named: bool) -> None:
    shapes = {"a": (5,), "b": (5,)} if named else ((5,), (5,))
    supernet = OwnNetwork(Reading(tokens))(shapes, 3)
    assert "hidden.channels" in dict(nas.decisions(supernet))


class Assigning(nn.Module):
    """A norm of one's own that puts other tensors in the place of its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean, self.steps = x.detach().mean((0, 2)), self.steps + 1
        return x - self.mean[:, None]


@settings(max_examples=10)
@given(st.permutations(range(8)), st.integers(1, 8))
def test_statistics_that_are_assigned_are_those_of_the_channels_that_ran(
    order: list[int], channels: int
) -> None:
    net = nn.Sequential(nn.Conv1d(2, 8, 1), Assigning(), nn.Conv1d(8, 1, 1))
    with torch.no_grad():
        for rank, channel in enumerate(order):  # the first ones stay longest
            net[0].weight[channel] *= (8 - rank) / net[0].weight[channel].abs().sum()
            net[2].weight[:, channel] = 8 - rank
    supernet = searchable(net, (2, 5)).train()
    ((_, width),) = nas.decisions(supernet)
    width.choose(channels)
    network, x = nas.discretize(supernet), torch.randn(3, 2, 5)
    torch.testing.assert_close(supernet(x), network(x))  # each by what it has just assigned
    assert supernet[1].steps == network[1].steps == 1
    left = sorted(order[:channels])
    assert torch.equal(supernet[1].mean[left], network[1].mean)
    assert not supernet[1].mean[order[channels:]].any()


class Averaging(nn.Module):
    """A network that keeps a mean of its channels in training."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = convs(2, 8, 8), nn.Conv1d(8, 1, 1)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.training:
            self.mean.lerp_(x.detach().mean((0, 2)), 0.1)
        return self.head(x)


class Keeping(nn.Module):
    """It keeps in training what the outputs never depend on."""

    def __init__(self, assigns: bool) -> None:
        super().__init__()
        self.assigns, self.scale = assigns, nn.Parameter(torch.ones(8))
        self.register_buffer("old", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().mean((0, 2))
        if self.training and self.assigns:
            self.old = mean
        elif self.training:
            self.old.copy_(mean)
        return x * self.scale[:, None]


def kept(assigns: bool) -> tuple[Callable[[], nn.Module], list[str], str]:
    return (
        lambda: nn.Sequential(*convs(2, 8, 8), Keeping(assigns), nn.Conv1d(8, 1, 1)),
        ["0.channels"],
        "it does not train",
    )


UNLIKE: dict[str, tuple[Callable[[], nn.Module], list[str], str]] = {
    "buffers that are written in training": (Averaging, ["body.0.channels"], "it does not train"),
    "buffers that are assigned and never read": kept(assigns=True),
    "buffers that are written and never read": kept(assigns=False),
    "code that counts with a number of channels": (
        lambda: Made(
            lambda own, x: own.last(own.second(own.first(x)) / own.second.out_channels),
            first=nn.Conv1d(2, 8, 1),
            second=nn.Conv1d(8, 8, 1),
            last=nn.Conv1d(8, 1, 1),
        ),
        ["first.channels"],
        "the network computes something else with fewer of them",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_channels_that_training_or_the_plain_network_would_miss_stay(name: str) -> None:
    make, expected, said = UNLIKE[name]
    rows = converted(make(), (2, 5)).rows
    assert [row.decision for row in rows if row.decision] == expected
    assert any(said in str(row.why) for row in rows)


CHECKPOINTS = {
    "Lightning": lambda name: f"net.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "a compiled part": lambda name: name.replace("1.", "1._orig_mod."),
    "both": lambda name: f"module._orig_mod.{name}",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_wrapped_networks_are_read(name, tmp_path) -> None:
    trained, net = convs(2, 8, 1), convs(2, 8, 1)
    state = {CHECKPOINTS[name](key): x for key, x in trained.state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    load(net, tmp_path / "net.pt")
    assert torch.equal(net[1].weight, trained[1].weight)
    torch.save({**state, "module.other": torch.zeros(1)}, tmp_path / "net.pt")
    with pytest.raises(nas.UserError, match="the network has no other"):
        load(net, tmp_path / "net.pt")


class Dense(nn.Module):
    """A layer that adds channels to its input, as those of DenseNets do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"conv_1": nn.Conv1d(channels, 8, 1)})
        self.layers["norm_1"] = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        made = x
        for layer in self.layers.values():
            made = layer(made)
        return torch.cat([x, made], 1)


def test_keys_of_nested_and_concatenated_layers_are_kept() -> None:
    net = nn.Sequential()
    net.add_module("features", nn.Sequential())
    net.features.add_module("conv0", nn.Conv1d(2, 8, 1))
    net.features.add_module("denseblock1", nn.Sequential(Dense(8), Dense(16)))
    net.add_module("classifier", nn.Conv1d(24, 1, 1))
    net.eval()
    supernet = searchable(net, (2, 5))
    nas.sample_path(supernet)
    network = nas.discretize(supernet)
    assert list(network.state_dict()) == list(net.state_dict())
    other = nas.discretize(searchable(net, (2, 5)), nas.arch_of(supernet, "Sequential"))
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 2, 5)
    torch.testing.assert_close(other.eval()(x), supernet.eval()(x))


TOO_LARGE = {
    r"kernels\.sizes=\[7\]: 0 has a kernel of 5, so that 7 is too large: at most 5": {
        "kernels": {"include": ["0"], "sizes": [7]}
    },
    r"kernels\.dilations=\[2, 5\]: 0 has a kernel of 5, so that 5 is too large: at most 4": {
        "kernels": {"include": ["0"], "dilations": [2, 5]}
    },
    r"resolution\.sizes=\[4, 9\]: 9 is larger than the input's 8": {
        "resolution": {"sizes": [4, 9]}
    },
}


@pytest.mark.parametrize("said", TOO_LARGE)
def test_sizes_too_large_for_what_a_rule_names_are_refused(said: str) -> None:
    net = nn.Sequential(nn.Conv1d(2, 8, 5, padding=2), nn.Conv1d(8, 1, 3, padding=1))
    with pytest.raises(nas.UserError, match=said):
        searchable(net, (2, 8), Rules(**TOO_LARGE[said]))  # type: ignore[arg-type]


def test_candidates_that_do_not_fit_a_layer_that_a_rule_names_are_said() -> None:
    net = nn.Sequential(nn.Conv1d(4, 8, 5, padding=2), nn.Conv1d(8, 1, 1))
    asked = {"include": ["0"], "candidates": ["low_rank_2", "grouped_3"]}
    rows = converted(net, (4, 8), Rules(operations=asked)).rows
    whys = [row.why for row in rows if row.kind == "operation" and row.why]
    assert whys == ["grouped_3 would have no fewer weights"]
