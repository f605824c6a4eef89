"""Small elastic supernets drawn by hypothesis: tables of stages, mixed with choices of ops."""

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from nas.arch import Arch
from nas.decision import decisions
from nas.ops.blocks import Zero
from nas.spaces.staged import StagedSpace
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import Elastic, ElasticWidth, Number

from .strategies import randomized

Draw = Callable[[st.SearchStrategy], object]
OPS = (
    ["elastic_k5_e4"],
    ["elastic_k3_e6_se"],
    ["elastic_k7_e3"],
    ["elastic_k3_e4", "identity"],
    ["elastic_k5_e3_se", "elastic_k3_e4"],
)
PLAIN = (["mb_k3_e3", "conv_k3"], ["sep_k3", "identity"])


@st.composite
def elastic_nets(draw: Draw, resolution: bool = True) -> nn.Module:
    """In eval mode, with random weights, statistics and alphas, for 1-D and for images."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    stages = [_stage(draw) for _ in range(draw(st.integers(1, 2)))]
    sized = resolution and draw(st.booleans())
    net = StagedSpace(
        input_shape=(2, *draw(st.sampled_from([(9,), (7, 6)]))),
        num_outputs=3,
        stages=stages,
        name="drawn",
        stem={"channels": 8},
        head={"features": 5, "mix": draw(st.sampled_from([None, 6]))},
        activation=draw(st.sampled_from([None, "relu", "hardswish"])),
        resolution=[5, 8] if sized else None,
    )
    return randomized(net).eval()


def _stage(draw: Draw) -> dict[str, object]:
    width = draw(st.sampled_from([4, 8, [4, 8], [3, 6, 8]]))
    ops = OPS if isinstance(width, list) else OPS + PLAIN
    depth = draw(st.sampled_from([None, [1, 2], [2, 3]]))
    # After searched channels plain ops cannot stand.
    return {
        "ops": draw(st.sampled_from(OPS if draw(st.booleans()) else ops)),
        "channels": width,
        "stride": draw(st.sampled_from([1, 2])),
        **({"repeat": 1} if depth is None else {"depth": depth}),
    }


def drawn_archs(net: nn.Module, count: int = 3) -> list[Arch]:
    """Some architectures, among them the smallest and the largest of what has an order."""
    own = dict(decisions(net))
    picks = [
        {n: d.options[0] for n, d in own.items()},
        {n: d.options[-1] for n, d in own.items()},
    ]
    for _ in range(count - 2):
        picks.append({n: d.options[int(torch.randint(len(d.options), ()))] for n, d in own.items()})
    return [Arch("drawn", taken) for taken in picks]


def conv(in_channels: Number, out_channels: Number, times: int = 1) -> nn.Module:
    """A convolution of `times` as many inputs as `in_channels` takes."""

    def make(inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(times * inputs, outputs, 1)

    kind = ElasticWidth if times == 1 else Concatenated
    return kind(make, in_channels, out_channels)


class Concatenated(ElasticWidth):
    """Reads more channels than its number says: all that there are."""

    def in_channels_used(self, options: object) -> None:
        return None


PLAIN_BEHIND = {
    "relu": lambda width: nn.ReLU(),
    "relu_": lambda width: nn.ReLU(inplace=True),
    "pool": lambda width: nn.AvgPool2d(3, 1, 1),
    "pools": lambda width: nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Sigmoid()),
    "norm": lambda width: ElasticWidth(lambda _, outputs: nn.BatchNorm2d(outputs), width, width),
    "zero": lambda width: Zero(None, 1),
    "skip": lambda width: ChoiceBlock([Zero(None, 1), nn.Identity(), nn.AvgPool2d(3, 1, 1)]),
    "choice": lambda width: ChoiceBlock([conv(width, width), nn.ReLU()]),
}


class SearchedWidths(nn.Module):
    """Convolutions of searched widths; behind each, plain modules and code that sees its width."""

    input_shape = (4, 6, 6)

    def __init__(self, layers: Sequence[tuple[nn.Module, Sequence[nn.Module], str]]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(layer for layer, _, _ in layers)
        self.behind = nn.ModuleList(nn.Sequential(*plain) for _, plain, _ in layers)
        self.joins = [join for _, _, join in layers]

    def forward(self, x: Tensor) -> Tensor:
        for layer, behind, join in zip(self.convs, self.behind, self.joins, strict=True):
            before = layer(x)
            x = behind(before)
            if join == "add":
                x = before + x
            if join == "cat":
                x = torch.cat([x, torch.relu(before)], 1)
        return torch.flatten(x.mean((2, 3), keepdim=True), 1)


@st.composite
def searched_widths(draw: Draw) -> nn.Module:
    """Networks on which the size of activations depends on decisions."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    widths = [Elastic(draw(st.sampled_from([[2, 4], [3, 4, 6]]))) for _ in range(2)]
    layers, channels, times = [], 4, 1
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.sampled_from(widths))
        kinds = draw(st.lists(st.sampled_from(sorted(PLAIN_BEHIND)), max_size=3))
        join = draw(st.sampled_from(["", "add", "cat"]))
        plain = [PLAIN_BEHIND[kind](width) for kind in kinds]
        layers.append((conv(channels, width, times), plain, join))
        channels, times = width, 2 if join == "cat" else 1
    return randomized(SearchedWidths(layers)).eval()
