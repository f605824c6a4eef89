"""Small supernets drawn by hypothesis, and what is measured on them without help from `nas.cost`.

The spaces that ship use few of the layers that a user's module may hold. These use what has been
priced or extracted wrongly somewhere: groups, a depthwise multiplier, transposed convolution,
LayerNorm, functional calls on a bare parameter, nesting, and everything that can be shared.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas.arch import Arch
from nas.decision import decisions
from nas.discretization import discretize
from nas.ops.catalogue import known_names
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.elastic_ops import op_exclusion_reason
from nas.supernet.relax import softmax

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
UPSCALE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
FUNCTIONAL = {1: F.conv1d, 2: F.conv2d}
SIDES = {1: (6,), 2: (6, 5)}
MAX_DECISIONS = 3  # of at most 3 options: all architectures can be enumerated

Draw = Callable[[st.SearchStrategy], object]


class ChannelsLast(nn.Module):
    """LayerNorm and a linear layer over the channels of every position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.norm(x.movedim(1, -1))).movedim(-1, 1)


class Net(nn.Module):
    """Bare filter, drawn layers, one of them called twice, classifier; ``(N, 4, *S) -> (N, 3)``."""

    def __init__(self, ndim: int, layers: list[nn.Module], channels: int, again: int) -> None:
        super().__init__()
        self.input_shape = (4, *SIDES[ndim])
        self.functional, self.again = FUNCTIONAL[ndim], again
        self.filter = nn.Parameter(torch.randn(4, 2, *[3] * ndim) / 4)
        self.layers = nn.ModuleList(layers)
        self.classifier = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.functional(x, self.filter, padding=1, groups=2)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == self.again:
                # At another resolution, so that pricing both calls alike is noticed.
                x = layer(x.repeat_interleave(2, dim=-1))
        return self.classifier(x.flatten(2).mean(-1))


def conv(draw: Draw, ndim: int, c_in: int, c_out: int, stride: int) -> nn.Module:
    kernel = draw(st.sampled_from([1, 3, 5]))
    dilation = draw(st.sampled_from([1, 1, 2]))
    return CONV[ndim](
        c_in,
        c_out,
        kernel,
        stride,
        dilation * (kernel // 2),
        dilation,
        groups=draw(st.sampled_from([1, 2, 4])),  # 4 -> 8 by 4: depthwise, multiplier 2
        bias=draw(st.booleans()),
    )


def transposed(draw: Draw, ndim: int, c_in: int, c_out: int, stride: int) -> nn.Module:
    groups = draw(st.sampled_from([1, 2, 4]))
    up = UPSCALE[ndim](c_in, c_out, 3, 2, 1, output_padding=1, groups=groups)
    return nn.Sequential(up, nn.ReLU(), POOL[ndim](2), POOL[ndim](1, stride))


def operation(draw: Draw, ndim: int, c_in: int, c_out: int, stride: int) -> nn.Module:
    """One op that keeps "same" padding: a side of n becomes ``ceil(n / stride)``."""
    site = (c_in, c_out, stride, ndim)
    kinds = ["conv", "conv", "conv_norm", "catalogue", "transposed"]
    kinds += ["channels_last"] if stride == 1 and c_in == c_out else []
    kind = draw(st.sampled_from(kinds))
    if kind == "catalogue":
        names = [
            n for n in known_names() if op_exclusion_reason(n, *site) is None and "_k7" not in n
        ]
        return build(draw(st.sampled_from(names)), *site)
    if kind == "transposed":
        return transposed(draw, ndim, c_in, c_out, stride)
    if kind == "channels_last":
        return ChannelsLast(c_in)
    op = conv(draw, ndim, c_in, c_out, stride)
    return op if kind == "conv" else nn.Sequential(op, NORM[ndim](c_out), nn.ReLU())


class Drawing:
    """The state of drawing one supernet: decisions left, and modules to use once more."""

    def __init__(self, draw: Draw, ndim: int, nested: bool, shared: bool) -> None:
        self.draw, self.ndim, self.nested, self.shared = draw, ndim, nested, shared
        self.left = MAX_DECISIONS
        self.made: dict[tuple[int, int, int], list[nn.Module]] = {}

    def layer(self, c_in: int, c_out: int, stride: int, depth: int = 0) -> nn.Module:
        old = self.made.setdefault((c_in, c_out, stride), [])
        if self.shared and old and self.draw(st.booleans()):
            return self.draw(st.sampled_from(old))
        choose = self.left > 0 and (depth == 0 or self.nested) and self.draw(st.booleans())
        if choose:
            made = self.block(c_in, c_out, stride, depth)
        else:
            made = operation(self.draw, self.ndim, c_in, c_out, stride)
        old.append(made)
        return made

    def block(self, c_in: int, c_out: int, stride: int, depth: int = 0) -> ChoiceBlock:
        self.left -= 1
        ops: dict[int, nn.Module] = {}
        for _ in range(self.draw(st.integers(2, 3))):
            op = self.layer(c_in, c_out, stride, depth + 1)
            if id(op) in ops or self.draw(st.integers(0, 3)) == 0:
                # The same module twice is refused; inside something larger it may be shared.
                op = nn.Sequential(op, conv(self.draw, self.ndim, c_out, c_out, 1))
            ops[id(op)] = op
        return ChoiceBlock({f"op{i}": op for i, op in enumerate(ops.values())})


@st.composite
def supernets(draw: Draw, nested: bool = True, shared: bool = True) -> Net:
    """A supernet in eval mode with 1 to 3 decisions, random weights, statistics and alphas."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    ndim, c = draw(st.sampled_from([1, 2])), 4
    drawing = Drawing(draw, ndim, nested, shared)
    layers: list[nn.Module] = [drawing.block(c, c, 1)]
    for _ in range(draw(st.integers(0, 2))):
        c_out, stride = draw(st.sampled_from([(c, 1), (c, 1), (8, 1), (8, 2), (c, 2)]))
        layers.append(drawing.layer(c, c_out, stride))
        c = c_out
    net = Net(ndim, layers, c, again=draw(st.sampled_from([-1, 0])))
    return randomized(net).eval()


def randomized(net: nn.Module) -> nn.Module:
    """Statistics and alphas away from the start, where wrong formulas agree with right ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.ParameterDict):  # transforms of kernels, identities at the start
            for transform in module.values():
                transform.data.add_(torch.randn_like(transform), alpha=0.1)
    for _, decision in decisions(net):
        nn.init.normal_(decision.alpha)
    return net


def sample(net: nn.Module, batch: int = 1) -> Tensor:
    return torch.randn(batch, *net.input_shape)


def archs(net: nn.Module) -> Iterator[Arch]:
    """Every architecture of the supernet."""
    own = dict(decisions(net))
    for options in product(*(decision.options for decision in own.values())):
        yield Arch(getattr(net, "name", "Net"), dict(zip(own, options, strict=True)))


def some_archs(net: nn.Module, count: int = 3) -> list[Arch]:
    """A few architectures, drawn; running all of them would leave time for few supernets."""
    every = list(archs(net))
    return [every[i] for i in torch.randperm(len(every))[:count].tolist()]


def probability(net: nn.Module, arch: Arch) -> float:
    """Product of the softmax of alphas over the options that `arch` takes, in float64."""
    p = 1.0
    for name, decision in decisions(net):
        theta = softmax(decision.alpha.detach().double())
        p *= float(theta[decision.options.index(arch.choices[name])])
    return p


def counted(network: nn.Module) -> dict[str, int]:
    """Costs of a plain network by counters that are not ours."""
    assert not any(decisions(network))
    counter = FlopCounterMode(display=False)
    # oneDNN does the work of a recurrent layer in one operator, which the counter does not know.
    fast = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    with torch.no_grad(), counter:
        network(torch.zeros(1, *network.input_shape))
    torch.backends.mkldnn.enabled = fast
    params = sum(p.numel() for p in network.parameters())
    return {"params": params, "macs": counter.get_total_flops() // 2}


def all_counted(net: nn.Module) -> dict[Arch, dict[str, int]]:
    """Architecture -> costs of the network extracted for it."""
    return {arch: counted(discretize(net, arch)) for arch in archs(net)}
