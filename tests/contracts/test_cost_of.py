"""`nas.cost_of`: any module, against counters that are not ours, and left as it was."""

import copy
from collections import OrderedDict
from html.parser import HTMLParser

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nas
from nas.cost.by_layer import Costs
from nas.cost.device import Roofline, load
from nas.cost.memory import PeakMemory
from nas.errors import UserError

from .reference_peak import peak
from .strategies import archs, counted, randomized, sample, supernets


def adds_up(costs: Costs) -> None:
    """Layers are parts of the network, none of them missing or twice."""
    for name in ("params", "macs"):
        assert getattr(costs, name) == sum(getattr(layer, name) for layer in costs.layers)
    assert sum(layer.share for layer in costs.layers) == pytest.approx(1)
    assert costs.peak_memory == max(layer.memory for layer in costs.layers)
    names = [layer.name for layer in costs.layers]
    assert len(names) == len(set(names))


@settings(max_examples=12)
@given(net=supernets(), index=st.integers(0, 999))
def test_drawn_supernets_with_their_choices_made_and_the_networks_they_become(net, index):
    randomized(net)
    every = list(archs(net))
    arch = every[index % len(every)]
    network = nas.discretize(net, arch)
    nas.apply(net, arch)
    for model in (net, network):
        costs = nas.cost_of(model, net.input_shape)
        assert {"params": costs.params, "macs": costs.macs} == counted(network)
        assert costs.peak_memory == peak(network.eval(), sample(net))
        assert not costs.open
        adds_up(costs)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vit_b_16"])
def test_every_layer_of_torchvision(name):
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(weights=None).eval()
        example = torch.zeros(1, 3, 224, 224)
        # Told to use plain products: the counter has no formula for fused attention.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            network(example)
    costs = nas.cost_of(network, example)
    flops = {key: sum(own.values()) for key, own in count.get_flop_counts().items()}
    assert costs.macs * 2 == flops["Global"]
    assert costs.params == sum(p.numel() for p in network.parameters())
    root = type(network).__name__
    modules = dict(network.named_modules())
    for layer in costs.layers:
        if not any(modules[layer.name].children()):
            assert layer.macs * 2 == flops.get(f"{root}.{layer.name}", 0)
            own = modules[layer.name].parameters(recurse=False)
            assert layer.params == sum(p.numel() for p in own)
    adds_up(costs)


def test_shared_weights_count_once_and_calls_each():
    first = nn.Linear(4, 4)
    tied = nn.Linear(4, 4, bias=False)
    tied.weight = first.weight
    costs = nas.cost_of(nn.Sequential(OrderedDict(a=first, b=first, c=tied)), (4,))
    assert [(x.name, x.params, x.macs) for x in costs.layers] == [("a", 20, 32), ("c", 0, 16)]


class Named(nn.Module):
    """Takes words and an image; gives several tensors, the first by its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Embedding(9, 4), nn.Conv2d(3, 4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, words, image):
        return self.image(image), self.words(words)


def test_examples_are_tensors_tuples_or_dicts():
    words, image = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 3, 6, 6)
    by_place = nas.cost_of(Named(), (words, image))
    assert by_place == nas.cost_of(Named(), {"words": words, "image": image})
    assert by_place.title == "Named for 1x5, 1x3x6x6"
    rows = [(x.name, x.type, x.shape, x.params, x.macs) for x in by_place.layers]
    assert rows == [
        ("words", "Embedding", (1, 5, 4), 36, 0),
        ("image", "Conv2d", (1, 4, 4, 4), 112, 3 * 4 * 9 * 16),
        ("idle", "Linear", (), 6, 0),
    ]
    layer = nn.Linear(3, 2)
    assert nas.cost_of(layer, torch.zeros(8, 3)).macs == 8 * nas.cost_of(layer, (3,)).macs


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        nas.ChoiceBlock({"a": nn.Conv1d(2, 2, 3), "b": nn.Conv1d(2, 2, 3)}, gumbel=True),
        nn.BatchNorm1d(2),
        nn.Dropout(),
    ).train()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    model[1].bias.grad = torch.ones(2)
    model[1].register_forward_hook(lambda *_: None)
    nas.resample(model)
    before = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
    seen = model[1]._forward_hooks.copy()
    random = torch.get_rng_state()
    costs = nas.cost_of(model, (2, 8))
    assert costs.params == 14 + 4
    assert costs.open == ("0",)
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [module.training for module in model] == [True, False, True]
    assert not model[1].weight.requires_grad
    assert torch.equal(model[1].bias.grad, torch.ones(2))
    assert model[1]._forward_hooks == seen


def test_a_lazy_module_is_counted_and_stays_lazy():
    model = nn.Sequential(nn.LazyConv1d(2, 1))
    assert nas.cost_of(model, (2, 8)).params == 6
    assert isinstance(model[0], nn.LazyConv1d)


def test_an_open_choice_is_named_and_its_largest_alpha_counted():
    block = nas.ChoiceBlock({"skip": nn.Identity(), "linear": nn.Linear(4, 4)})
    model = nn.Sequential(OrderedDict(made=copy.deepcopy(block), open=block))
    model.made.choose("skip")
    block.alpha.data[1] = 1.0
    costs = nas.cost_of(model, (4,))
    assert (costs.params, costs.open) == (20, ("open",))
    assert "open choices: open; " in str(costs)
    assert "open choices: open; " in costs._repr_html_()
    model.open.choose("linear")
    assert "open choices" not in str(nas.cost_of(model, (4,)))


def test_memory_and_roofline_of_a_device():
    model = torchvision.models.squeezenet1_1()
    costs = nas.cost_of(model, (3, 64, 64), "cortex_m7", PeakMemory(bits=8))
    m7 = load("cortex_m7")
    seconds = nas.ExpectedCost(model, Roofline(m7), (3, 64, 64))()
    assert costs.roofline == pytest.approx(seconds.item())
    assert costs.roofline == pytest.approx(sum(x.roofline for x in costs.layers))
    assert costs.title == f"SqueezeNet for 1x3x64x64 on {m7.name}"
    adds_up(costs)
    assert costs.peak_memory * 4 == nas.cost_of(model, (3, 64, 64)).peak_memory


def long_names() -> nn.Module:
    """Deep inside, with markup in its name and brackets that a terminal might take for a style."""
    model: nn.Module = nn.Conv2d(3, 4096, 3)
    for name in ("[red]<b>", "classifier", "backbone_of_the_network", "features"):
        model = nn.Sequential(OrderedDict({name: model}))
    return model


def test_the_table_is_80_columns_wide_and_whole():
    text = str(nas.cost_of(long_names(), (3, 512, 512), "cortex_m7"))
    assert max(map(len, text.splitlines())) <= 80
    assert "".join(line[:10].strip() for line in text.splitlines()[3:]).endswith("[red]<b>")
    assert f"{4096 * 27 * 510 * 510:,}" in text.splitlines()[3]


def test_a_notebook_shows_a_table():
    costs = nas.cost_of(long_names(), (3, 512, 512), "cortex_m7")
    cells, parser = [], HTMLParser()
    parser.handle_data = cells.append
    parser.feed(costs._repr_html_())
    assert "features.backbone_of_the_network.classifier.[red]<b>" in cells
    assert "<b>" not in costs._repr_html_()
    assert costs._repr_html_().count("<tr>") == 1 + len(costs.layers)


class Silent(nn.Module):
    """Fails without a word."""

    def forward(self, x):
        raise AssertionError


@pytest.mark.parametrize(
    ("model", "example", "device", "said"),
    [
        (nn.Linear(3, 2), (4,), None, r"Linear fails for an input of shape \[\(1, 4\)\]: Runtime"),
        (Silent(), (3,), None, r"Silent fails .*: AssertionError$"),
        (Named(), (3, 6, 6), None, "Named fails .*: TypeError: .* 'image'"),
        (nn.Identity(), "big", None, "example='big' must be the shape"),
        (len, (3,), None, "must be a torch.nn.Module"),
        (nn.Linear(3, 2), (3,), "cortex", "device file cortex.* shipped devices are .*'cortex_m7'"),
    ],
)
def test_what_cannot_be_counted_is_said_in_one_line(model, example, device, said):
    with pytest.raises(UserError, match=said) as caught:
        nas.cost_of(model, example, device)
    assert "\n" not in str(caught.value)
