"""Candidates of a block see one input, whatever they, or who reads their output, write on."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import nas
from nas.arch import Arch
from nas.decision import resample
from nas.discretization import discretize
from nas.errors import UserError
from nas.export.python import python_source
from nas.ops.catalogue import known_names
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import ALL_OPS, op_exclusion_reason
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.inplace import guard_of
from nas.supernet.proxyless import ExactPath, TwoPaths, draw_mixing, mixing
from nas.supernet.relax import one_path, softmax, straight_through

SEEDS = st.integers(0, 2**16)
HARD = [one_path, straight_through]


class Does(nn.Module):
    """Something done to the input, and a convolution of what that gives."""

    def __init__(self, first: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.conv = first, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.first(self, x))


def add_to(self: nn.Module, x: Tensor) -> Tensor:
    x += 1
    return x


def part(self: nn.Module, x: Tensor) -> Tensor:
    x[:, :2].mul_(3)
    return x


def later(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x * 2)
    x.sigmoid_()
    return x + y


def first_in_chain(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))


WRITERS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: first_in_chain(nn.SiLU(inplace=True)),
    "alone": lambda: nn.ELU(inplace=True),
    "method": lambda: Does(lambda self, x: x.sin_()),
    "functional": lambda: Does(lambda self, x: F.silu(x, inplace=True)),
    "augmented": lambda: Does(add_to),
    "part": lambda: Does(part),
    "later": lambda: Does(later),
    "view": lambda: Does(lambda self, x: x.flatten(1).add_(2).view_as(x)),
    "training": lambda: Does(lambda self, x: x.cos_() if self.training else x.tanh_()),
    "looks": lambda: Does(lambda self, x: x.sin_() if x.sum() < 1e9 else x),
    "nested": lambda: nn.Sequential(
        ChoiceBlock([first_in_chain(nn.SiLU(inplace=True)), nn.Identity()]), nn.Conv2d(4, 4, 1)
    ),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    "relu": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    "own": lambda: Does(lambda self, x: x.sin()),
    "scaled": lambda: build("mb_k3_e2", 4, 4),
}
ANY = WRITERS | OTHERS


class Apart(nn.Module):
    """`op` on a copy of its input: what a candidate must come to."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x.clone())


class Around(nn.Module):
    """A block whose input is made and read again by others."""

    def __init__(self, block: nn.Module, writes: bool = False) -> None:
        super().__init__()
        self.stem, self.block, self.writes = nn.Conv2d(3, 4, 3, padding=1), block, writes

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        return (F.silu(y, inplace=True) if self.writes else y) + x.tanh()


def block_of(kinds: list[str], relax: Any = softmax, gumbel: bool = False) -> ChoiceBlock:
    block = ChoiceBlock({f"{i}_{kind}": ANY[kind]() for i, kind in enumerate(kinds)}, relax, gumbel)
    nn.init.normal_(block.alpha)
    return block


@st.composite
def mixed_kinds(draw: Any) -> list[str]:
    kinds = [draw(st.sampled_from(list(WRITERS)))]
    kinds += draw(st.lists(st.sampled_from(list(ANY)), min_size=1, max_size=3))
    return draw(st.permutations(kinds))


def by_hand(net: Around, theta: Tensor, x: Tensor) -> Tensor:
    """`net` with its block written out, every candidate on a copy of the input."""
    x = net.stem(x)
    ops = net.block.candidates.values()
    y = sum(weight * op(x.clone()) for weight, op in zip(theta, ops, strict=True))
    return y + x.tanh()


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in net.named_parameters()}


def assert_same_gradients(net: nn.Module, other: nn.Module) -> None:
    """None is a zero, but for weights of candidates that are not seen it is asserted elsewhere."""
    ours, theirs = gradients(net), gradients(other)
    for name in ours:
        zero = torch.zeros_like(net.get_parameter(name))
        pair = (zero if g is None else g for g in (ours[name], theirs[name]))
        assert_close(*pair, rtol=1e-4, atol=1e-5, msg=name)


@settings(max_examples=30)
@given(mixed_kinds(), st.sampled_from([softmax, straight_through]), SEEDS, st.booleans())
def test_every_candidate_sees_the_input_as_it_came(kinds, relax, seed, training):
    torch.manual_seed(seed)
    net = Around(block_of(kinds, relax)).double().train(training)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 5, 5).double()
    for _ in range(2):  # what is learned in the first step holds in the next
        net.zero_grad()
        twin.zero_grad()
        given_x = x.clone()
        y = net(given_x)
        right = by_hand(twin, twin.block.theta, x)
        assert_close(y, right)
        assert torch.equal(given_x, x)
        y.square().sum().backward()
        right.square().sum().backward()
        assert_same_gradients(net, twin)


@settings(max_examples=20)
@given(mixed_kinds(), SEEDS, st.booleans())
def test_a_network_taken_out_reads_what_the_supernet_read(kinds, seed, ran):
    torch.manual_seed(seed)
    net, x = Around(block_of(kinds)).eval(), torch.randn(2, 3, 5, 5)
    if ran:
        net(x)
    for option in net.block.options:
        net.block.choose(option)
        choices = {n: d.options[0] for n, d in net.named_modules() if isinstance(d, ChoiceBlock)}
        network = discretize(net, Arch("Around", {**choices, "block": str(option)}))
        for name, decision in net.named_modules():
            if isinstance(decision, ChoiceBlock) and name != "block":
                decision.choose(decision.options[0])
        assert torch.equal(net(x), network(x))
        assert torch.equal(net(x), copy.deepcopy(network)(x))
        net.block.free()


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"nested", "looks", "view"}))
def test_an_exported_network_reads_what_the_supernet_read(kind):
    net, x = Around(block_of([kind, "conv"])).eval(), torch.randn(2, 3, 5, 5)
    network = discretize(net, Arch("Around", {"block": f"0_{kind}"}))
    net.block.choose(f"0_{kind}")
    right = net(x)
    program = torch.export.export(network, (x,)).module()
    assert_close(program(x), right)
    space: dict[str, Any] = {"__file__": "network.py"}
    text = python_source(network, x, "a test", {"INPUT_SHAPE": [3, 5, 5]}, "network.pt")
    exec(compile(text, "network.py", "exec"), space)
    made = space["build"]()
    made.load_state_dict(network.state_dict())
    assert torch.equal(made.eval()(x), right)


@pytest.mark.parametrize("draw", [TwoPaths.draw, ExactPath.draw])
@settings(max_examples=10)
@given(mixed_kinds(), SEEDS)
def test_sampled_gates_judge_what_the_input_was(draw, kinds, seed):
    torch.manual_seed(seed)
    net = Around(block_of([k for k in kinds if k != "nested"] + ["conv", "own"])).eval()
    twin = copy.deepcopy(net)
    twin.block.candidates = nn.ModuleDict({k: Apart(o) for k, o in twin.block.candidates.items()})
    x, found = torch.randn(2, 3, 5, 5), []
    for made in (net, twin):
        draws = draw_mixing(made, draw, torch.Generator().manual_seed(seed))
        with mixing(made, draws):
            y = made(x)
            y.square().sum().backward()
        found.append((y, made.block.alpha.grad, made.stem.weight.grad))
    for ours, right in zip(*found, strict=True):
        assert_close(ours, right, rtol=1e-4, atol=1e-4)


def test_who_does_not_write_gets_the_input_itself():
    seen: list[int] = []
    block = ChoiceBlock([Does(lambda self, x: seen.append(id(x)) or x), nn.Identity()])
    x = torch.randn(2, 4, 5, 5)
    for training in (True, False):
        block.train(training)
        block(x)
        seen.clear()
        block(x)
        assert seen == [id(x)]


def test_operations_of_the_catalogue_and_of_pytorch_need_no_guard():
    for name in known_names(ALL_OPS):
        if op_exclusion_reason(name, 4, 4, 1, 2) is None:
            op, x = build(name, 4, 4), torch.randn(2, 4, 8, 8)
            op(x)
            assert x._version == 0, name
            assert guard_of(ChoiceBlock({name: op, "skip": nn.Identity()}).candidates[name]) is None
    plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    assert guard_of(ChoiceBlock([plain, nn.Identity()]).candidates["0_Sequential"]) is None


def test_a_write_that_comes_late_is_an_error_and_not_a_wrong_number():
    class Late(nn.Module):
        write = False

        def forward(self, x: Tensor) -> Tensor:
            return x.relu_() if self.write else x * 2

    block = ChoiceBlock({"late": Late(), "skip": nn.Identity()})
    block(torch.randn(2, 4))
    block.candidates["late"].write = True
    with pytest.raises(UserError, match="'late' has written on its input"):
        block(torch.randn(2, 4))


def test_looking_whether_a_module_writes_leaves_no_trace():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls = nn.BatchNorm2d(4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.dropout(self.norm(x)) + torch.rand(())

    block = ChoiceBlock({"counts": Counts(), "skip": nn.Identity()}).train()
    x, state = torch.randn(2, 4, 5, 5), torch.get_rng_state()
    y = block(x)
    assert block.candidates["counts"].calls == 1
    assert int(block.candidates["counts"].norm.num_batches_tracked) == 1
    torch.set_rng_state(state)
    assert torch.equal(block(x), y)


def test_half_precision_and_inference_mode_find_out_the_same():
    for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        net, x = Around(block_of(["functional", "identity"])).eval(), torch.randn(2, 3, 5, 5)
        with context:
            assert_close(net(x), by_hand(net, net.block.theta, x))
        assert guard_of(net.block.candidates["0_functional"]).writes == {False: True}
        kept = Around(block_of(["own", "identity"])).eval()
        with context:
            kept(x)
        assert guard_of(kept.block.candidates["0_own"]).writes == {False: False}


# What reads a block's output may write on it.


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(["identity", "conv", "norm", "own", "scaled", "functional"]), min_size=2
    ),
    st.sampled_from(HARD),
    SEEDS,
)
def test_what_follows_a_block_may_write_on_its_output(kinds, relax, seed):
    torch.manual_seed(seed)
    net = Around(block_of(kinds, relax, gumbel=True), writes=True).double()
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 5, 5).double()
    for step in range(3):
        resample(net.block, torch.Generator().manual_seed(seed + step))
        twin.block.load_state_dict(net.block.state_dict())
        net.zero_grad()
        twin.zero_grad()
        y = net(x)
        inner = twin.stem(x)
        outs = [op(inner) for op in twin.block.candidates.values()]
        theta = twin.block.theta
        if relax is one_path:
            outs = [
                o if v else torch.zeros_like(o) for o, v in zip(outs, theta.tolist(), strict=True)
            ]
        right = F.silu(sum(w * o for w, o in zip(theta, outs, strict=True))) + inner.tanh()
        assert_close(y, right)
        y.square().sum().backward()
        right.square().sum().backward()
        assert_same_gradients(net, twin)


def test_a_candidate_that_holds_a_choice_is_not_taken_for_one_that_writes() -> None:
    class Residual(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inner(x)

    inner = ChoiceBlock([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)])
    block = ChoiceBlock([Residual(inner), nn.Conv2d(4, 4, 1)]).eval()
    steps = nas.trace(nn.Sequential(block), (4, 3, 3)).operators
    assert {step.name for step in steps} == {"convolution", "add"}
    # What was found while it was traced is known to the network that is taken out.
    network = nas.discretize(block)
    hook = guard_of(network)
    assert hook is None or hook.writes == {False: False}
