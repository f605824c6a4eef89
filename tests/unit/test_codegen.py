"""The stand-alone Python file: same output to the bit, same state dict, no nas."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas.discretization import discretize
from nas.errors import UserError
from nas.export.python import constructor, python_source
from nas.ops.catalogue import known_names
from nas.supernet.elastic_ops import ALL_OPS, op_exclusion_reason
from nas.supernet.elastic_ops import build_op as build

CONSTANTS = {"INPUT_SHAPE": [4, 8, 8], "MEAN": [0.5], "STD": [0.25], "CLASSES": ['a "b"', "ü"]}


def randomized(network: nn.Module) -> nn.Module:
    """Statistics and weights unlike those of a fresh module; eval mode."""
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=draw) + 0.1 * ("var" in name))
    return network.eval()


def regenerated(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network that the generated text builds, with the weights of the original."""
    text = python_source(network, x[:2], "a test", CONSTANTS, "network.pt")
    assert "nas" not in text.replace("nas.", "").split()
    space: dict[str, object] = {"__file__": "network.py"}
    exec(compile(text, "network.py", "exec"), space)
    assert {name: space[name] for name in CONSTANTS} == CONSTANTS
    made = space["build"]()
    made.load_state_dict(network.state_dict())
    return made.eval()


def check(network: nn.Module, x: torch.Tensor) -> None:
    network = randomized(network)
    made = regenerated(network, x)
    with torch.no_grad():
        for batch in (x, x[:1]):
            assert torch.equal(made(batch), network(batch))


def inputs(ndim: int = 2) -> torch.Tensor:
    return torch.randn(3, 4, *[8] * ndim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_operation(stride: int, ndim: int) -> None:
    for name in known_names(ALL_OPS):
        if op_exclusion_reason(name, 4, 4, stride, ndim) is None:
            check(discretize(nn.Sequential(build(name, 4, 4, stride, ndim))), inputs(ndim))


class Scaled(nn.Module):
    """Own parameters and buffers, functions, infix, slices, a float and an in-place operation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("shift", torch.randn(1))
        self.kernel = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x, scale=None):
        y = F.conv2d(x, self.kernel[:, :, 1:, 1:], padding=1)[:, :, :-1, :-1]
        y = torch.cat([y[:, :2], y[:, 2:]], dim=1) * self.weight - self.shift / 2.0
        y.clamp_(max=3)
        height = x.size(2)
        if x.shape[-1] == height and scale is None:
            return F.relu(y).view(x.size(0), -1, height, x.shape[3])
        raise AssertionError


class Cell(nn.Module):
    """Takes a list of states, as the cells of NAS spaces do, and unpacks sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.ModuleList([nn.Conv2d(4, 4, 1), Scaled()])

    def forward(self, states):
        n, c, h, w = states[0].shape
        done = [edge(state) for edge, state in zip(self.edges, states, strict=True)]
        return sum(done).reshape(n, c, h, w)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.cell, self.dict = Scaled(), Cell(), nn.ModuleDict({"a b": nn.ReLU6()})
        self.twice = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
        self.again = self.twice
        self.tail = nn.Linear(4, 2)

    def forward(self, x):
        y = self.scaled(x, None)
        y = self.again(self.twice(self.cell([x, y])) + x * (y - 1))
        return self.tail(self.dict["a b"](y).mean((2, 3)))


def test_a_module_of_the_users_own() -> None:
    check(Whole(), inputs())


class Sizes(nn.Module):
    """One module on two sizes: the sizes written into it would fit only one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = build("zero", 4, 4, 2)

    def forward(self, x):
        return self.halve(self.halve(x)) + self.halve(x)[:, :, ::2, ::2] + x[:, :, ::4, ::4]


def test_a_module_that_is_used_on_two_sizes() -> None:
    check(Sizes(), inputs())


class Asking(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_depends_on_the_data_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"Asking cannot be written as Python code.*pt2"):
        python_source(nn.Sequential(Asking()).eval(), inputs(), "", {}, "network.pt")


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False),
            "nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False)",
        ),
        (nn.Conv1d(4, 8, 5, stride=2), "nn.Conv1d(4, 8, 5, stride=2)"),
        (nn.AvgPool2d((3, 1), 2), "nn.AvgPool2d((3, 1), stride=2)"),
        (nn.Linear(3, 2, bias=False), "nn.Linear(3, 2, bias=False)"),
        (nn.LayerNorm((4, 4)), "nn.LayerNorm((4, 4))"),
        (nn.BatchNorm2d(4, eps=1e-3), "nn.BatchNorm2d(4, eps=0.001)"),
    ],
    ids=str,
)
def test_a_layer_as_it_would_be_written(layer: nn.Module, text: str) -> None:
    assert constructor(layer) == text


def test_a_layer_that_does_not_tell_how_it_was_built() -> None:
    with pytest.raises(UserError, match="MultiheadAttention"):
        constructor(nn.MultiheadAttention(8, 2))


STRANGER = """
import sys
sys.modules["nas"] = None  # importing it is an error
sys.path.insert(0, sys.argv[1])
import torch, network
torch.set_num_threads(1)
x, expected = torch.load(sys.argv[1] + "/io.pt", weights_only=True)
model = network.load()
assert not model.training
with torch.no_grad():
    print(torch.equal(model(x), expected))
"""


def test_it_runs_in_an_interpreter_without_nas(tmp_path) -> None:
    ops = [build(name, 4, 4) for name in ("mb_k3_e3_se", "grp_k3_g2", "sep_k3", "zero")]
    network = randomized(nn.Sequential(*ops, nn.Flatten(), nn.Linear(256, 2)))
    text = python_source(network, inputs(), "a test", CONSTANTS, "network.pt")
    (tmp_path / "network.py").write_text(text, encoding="utf-8")
    torch.save(network.state_dict(), tmp_path / "network.pt")
    with torch.no_grad():
        torch.save((inputs(), network(inputs())), tmp_path / "io.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "True", done.stderr
