"""Small elastic supernets drawn by hypothesis: tables of stages, mixed with choices of ops."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import nn

from nas.arch import Arch
from nas.decision import decisions
from nas.spaces.staged import StagedSpace

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
