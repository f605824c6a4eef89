"""The four reference networks of MLPerf Tiny (Banbury et al. 2021): parameters and MACs.

Built as in the benchmark's training code, github.com/mlcommons/tiny, benchmark/training:
keyword_spotting/keras_model.py (ds_cnn), image_classification/keras_model.py (resnet_v1_eembc with
16 filters), visual_wake_words/vww_model.py and anomaly_detection/keras_model.py. Its parameters are
those that Keras counts: biases in front of BatchNorms and running statistics included.
"""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import decisions
from nas.discretization import discretize
from nas.ops.blocks import GlobalPool, Residual, Stack

from .strategies import counted
from .test_spaces import built

# Shape, parameters of Keras, MACs.
PUBLISHED = {
    "ds_cnn": ((1, 49, 10), 24_908, 2_656_768),
    "resnet_8": ((3, 32, 32), 78_666, 12_501_632),
    "mobilenet_v1": ((3, 96, 96), 221_794, 7_489_664),
    "autoencoder": ((640,), 269_992, 264_192),
}
WIDTHS = [(8, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)]
WIDTHS += [(128, 128, 1)] * 5 + [(128, 256, 2), (256, 256, 1)]


def layers(*args, **kwargs) -> list[nn.Module]:
    conv = nn.Conv2d(*args, **kwargs)
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]


def separable(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return layers(inputs, inputs, 3, stride, 1, groups=inputs) + layers(inputs, outputs, 1)


class Block(Residual):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        first = layers(inputs, outputs, 3, stride, 1)
        super().__init__(Stack(*first, *layers(outputs, outputs, 3, 1, 1)[:2]), True)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        return (self.branch(x) + self.shortcut(x)).relu()


def dense() -> Iterator[nn.Module]:
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    for inputs, outputs in pairwise(widths):
        yield from (nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())
    yield nn.Linear(128, 640)


def reference(name: str) -> nn.Module:
    if name == "autoencoder":
        return nn.Sequential(*dense())
    if name == "ds_cnn":
        body = layers(1, 64, (10, 4), 2, (5, 1)) + [m for _ in range(4) for m in separable(64, 64)]
        return nn.Sequential(*body, GlobalPool(), nn.Linear(64, 12))
    if name == "resnet_8":
        blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
        return nn.Sequential(*layers(3, 16, 3, 1, 1), *blocks, GlobalPool(), nn.Linear(64, 10))
    body = layers(3, 8, 3, 2, 1) + [m for widths in WIDTHS for m in separable(*widths)]
    return nn.Sequential(*body, GlobalPool(), nn.Linear(256, 2))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_reference_costs_what_is_published(name):
    shape, params, macs = PUBLISHED[name]
    network = reference(name).eval()
    traced = trace(network, shape)
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    statistics = sum(2 * norm.num_features for norm in norms)
    found = [ExpectedCost(network, cost, traced)().item() for cost in (Params(), MACs())]
    assert found == [params - statistics, macs]


# The space, and what its decisions take; biases in front of BatchNorms, which do nothing, are not
# in our networks.
MEMBERS = {
    "ds_cnn": ("ds_cnn", 12, {"channels": 64, "depth": 2, "op": "sep_k3"}),
    "resnet_8": ("resnet_tiny", 10, {"channels": None, "depth": 1, "op": "res_k3"}),
    "mobilenet_v1": ("mobilenet_v1_tiny", 2, {"channels": None, "depth": None, "op": "sep_k3"}),
    "autoencoder": ("autoencoder", 640, {"channels": 128, "depth": 4}),
}


def member(space: nn.Module, taken: dict[str, object]) -> Arch:
    """Of searched channels the second, of depths the largest, where nothing else is said."""
    choices: dict[str, object] = {}
    for name, decision in decisions(space):
        if isinstance(decision.options[0], str):
            choices[name] = taken["op"]
        elif name.endswith("depth"):
            choices[name] = taken["depth"] or decision.options[-1]
        else:
            wanted = taken["channels"]
            choices[name] = wanted if wanted in decision.options else decision.options[1]
    return Arch(space.name, choices)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_network_is_a_member_of_its_space(name):
    kind, outputs, taken = MEMBERS[name]
    shape, params, macs = PUBLISHED[name]
    with torch.device("meta"):
        space = built(kind, shape, outputs=outputs).eval()
        published = reference(name)
    arch = member(space, taken)
    norms = [m for m in published.modules() if isinstance(m, _BatchNorm)]
    biased = [m for m in published.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    extra = sum(2 * norm.num_features for norm in norms) + sum(len(m.bias) for m in biased)
    traced = trace(space, shape)
    found = {c.name: ExpectedCost(space, c, traced).of(arch.choices) for c in (Params(), MACs())}
    assert found == {"params": params - extra, "macs": macs}
    with torch.device("meta"):
        assert counted(discretize(space, arch)) == found
