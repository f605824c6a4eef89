"""Weights of smaller layers that make up, by least squares, for channels and taps that are gone."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nas
from nas.arch import Arch
from nas.compress.convert import searchable
from nas.compress.refit import RIDGE, Refit
from nas.compress.rules import Rules
from nas.copying import copied


def network(seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 3, bias=bias),
    ).eval()


def cut(supernet: nn.Module, choices: Mapping[str, Any]) -> Any:
    return nas.discretize(supernet, Arch("any", dict(choices))).eval()


CHOICES = {"0.channels": 4, "2.channels": 16}


@given(st.integers(0, 2**16), st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_weights_solve_the_normal_equations(seed: int, bias: bool) -> None:
    plain = network(seed, bias)
    x = torch.randn(16, 2, 6, 6)
    supernet = searchable(plain, (2, 6, 6))
    Refit(supernet, [x[:8], x[8:]])
    made = cut(supernet, CHOICES)
    width: Any = dict(nas.decisions(supernet))["0.channels"]
    kept = width.first <= width.options.index(4)
    with torch.no_grad():
        reads = nn.functional.unfold(plain[:2](x), 3).transpose(0, 1).flatten(1).double()
        change = plain[2](plain[:2](x)) - made[2](made[:2](x))
    left = change.transpose(0, 1).flatten(1).double()
    if bias:
        assert left.mean(1).abs().max() < 1e-5
        reads = reads - reads.mean(1, keepdim=True)
        left = left - left.mean(1, keepdim=True)
    columns = kept.repeat_interleave(9)
    moved = (made[2].weight - plain[2].weight[:, kept]).detach().flatten(1)
    ridge = RIDGE * reads.square().mean(1).mean()
    slope = left @ reads[columns].mT / reads.shape[1]
    torch.testing.assert_close(slope, ridge * moved.double(), rtol=1e-3, atol=1e-6)


def test_outputs_change_less_than_by_leaving_channels_out() -> None:
    plain = network()
    x = torch.randn(64, 2, 6, 6)
    supernet = searchable(plain, (2, 6, 6))
    without = cut(supernet, CHOICES)
    Refit(supernet, [x])
    refitted = cut(supernet, CHOICES)
    fresh = torch.randn(64, 2, 6, 6)

    def change(made: nn.Module) -> float:
        return float((made[:3](fresh) - plain[:3](fresh)).detach().square().mean())  # type: ignore[index]

    assert change(refitted) < 0.7 * change(without)


def test_the_widest_is_the_network_given_and_copies_are_refitted_too() -> None:
    plain = network()
    supernet = searchable(plain, (2, 6, 6))
    seen: list[int] = []

    def batches() -> Any:
        seen.append(1)
        yield torch.randn(32, 2, 6, 6)

    Refit(supernet, batches())
    whole = cut(supernet, {name: one.options[-1] for name, one in nas.decisions(supernet)})
    assert not seen  # nothing is measured before it is needed
    assert all(map(torch.equal, whole.state_dict().values(), plain.state_dict().values()))
    twice = [cut(one, CHOICES)[2].weight for one in (copied(supernet), supernet)]
    assert torch.equal(*twice)
    assert len(seen) == 1
    assert "refit" not in vars(cut(supernet, CHOICES)[2])


@pytest.mark.parametrize("change", ["trained", "reordered"])
def test_what_is_no_more_as_it_was_keeps_its_own_weights(change: str) -> None:
    supernet = searchable(network(), (2, 6, 6))
    Refit(supernet, [torch.randn(32, 2, 6, 6)])
    before = cut(supernet, CHOICES)
    if change == "trained":
        with torch.no_grad():
            supernet[2].weight += 0.1  # type: ignore[index, operator]
    else:
        order: Any = dict(nas.decisions(supernet))["0.channels"]
        order.first.copy_(order.first.flip(0).roll(1))
    own = searchable(network(), (2, 6, 6))
    own.load_state_dict(supernet.state_dict())
    assert torch.equal(cut(supernet, CHOICES)[2].weight, cut(own, CHOICES)[2].weight)
    assert not torch.equal(cut(supernet, CHOICES)[2].weight, before[2].weight)


def test_operations_in_the_place_of_a_layer_are_refitted() -> None:
    x = torch.randn(64, 2, 6, 6)
    rules = Rules(operations={"include": ["2"], "candidates": ["low_rank_2"]})

    def made(refit: bool) -> Tensor:
        supernet = searchable(network(), (2, 6, 6), rules, [x])
        if refit:
            Refit(supernet, [x])
        choices = {name: one.options[-1] for name, one in nas.decisions(supernet)}
        own = cut(supernet, {**choices, "2": "low_rank_2", "0.channels": 4})
        found: Tensor = own[:3](x) - network()[:3](x)
        return found.square().mean()

    assert made(refit=True) < 0.9 * made(refit=False)


def temporal(bias: bool, groups: int = 1) -> nn.Sequential:
    first = nn.Sequential(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(2, 8, 5), nn.ReLU())
    second = nn.Sequential(
        nn.ConstantPad1d((8, 0), 0.0), nn.Conv1d(8, 8, 9, bias=bias, groups=groups)
    )
    return nn.Sequential(*first, *second, nn.ReLU(), nn.Flatten(), nn.Linear(160, 3)).eval()


@given(
    st.integers(0, 2**16),
    st.booleans(),
    st.sampled_from([(9, 8), (9, 2), (5, 1), (3, 4)]),
    st.sampled_from([None, 4, 8]),
)
@settings(max_examples=15, deadline=None)
def test_taps_and_channels_left_together_solve_the_normal_equations(
    seed: int, bias: bool, taps: tuple[int, int], channels: int | None
) -> None:
    torch.manual_seed(seed)
    plain, x = temporal(bias), torch.randn(32, 2, 20)
    rules = Rules(kernels={"include": ["4"]}, channels=None if channels is None else True)
    supernet = searchable(plain, (2, 20), rules)
    Refit(supernet, [x[:16], x[16:]])
    own: Any = dict(nas.decisions(supernet))
    largest = {name: one.options[-1] for name, one in own.items()}
    choices = {"4.kernel": taps[0], "4.dilation": taps[1]}
    kept = torch.ones(8, dtype=torch.bool)
    if channels is not None:
        choices["1.channels"], width = channels, own["1.channels"]
        kept = width.first <= width.options.index(channels)
    made = cut(supernet, {**largest, **choices})
    with torch.no_grad():
        reads = plain[:4](x).unfold(-1, 9, 1).permute(1, 3, 0, 2).flatten(2).double()
        change = plain[3:5](plain[:3](x)) - made[3:5](made[:3](x))
    left = change.transpose(0, 1).flatten(1).double()
    if bias:
        assert left.mean(1).abs().max() < 1e-5
        reads = reads - reads.mean(-1, keepdim=True)
        left = left - left.mean(1, keepdim=True)
    there = [i for i in range(9 - taps[0], 9) if (8 - i) % taps[1] == 0]
    seen = reads[kept][:, there].flatten(0, 1)
    conv = next(m for m in made[4].modules() if isinstance(m, nn.Conv1d))
    moved = (conv.weight - plain[4].weight[:, kept][:, :, there]).detach().flatten(1)  # type: ignore
    ridge = RIDGE * reads.square().mean()
    slope = left @ seen.mT / seen.shape[1]
    torch.testing.assert_close(slope, ridge * moved.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 8])
def test_outputs_change_less_than_by_leaving_taps_out(groups: int) -> None:
    torch.manual_seed(0)
    plain, x = temporal(True, groups), torch.randn(256, 2, 20).cumsum(-1)
    choices = {"4.kernel": 9, "4.dilation": 4}

    def change(batches: list[Tensor] | None) -> float:
        rules = Rules(kernels={"include": ["4"]}, exclude=["1", "4"])
        supernet = searchable(plain, (2, 20), rules)
        if batches is not None:
            Refit(supernet, batches)
        made = cut(supernet, choices)
        return float((made[:5](x[128:]) - plain[:5](x[128:])).detach().square().mean())

    assert change([x[:128]]) < 0.5 * change(None)


def test_all_that_a_layer_may_become_has_hooks_of_its_own() -> None:
    supernet = searchable(temporal(bias=True), (2, 20), Rules(kernels={"include": ["4"]}))
    inner = supernet[4].conv  # type: ignore[index, union-attr]
    for searched in (supernet[4], inner, supernet[7]):  # type: ignore[index]
        options = {one: one.options[0] for one in (*searched.decisions(), *inner.decisions())}  # type: ignore
        first, second = (searched.materialize(options) for _ in range(2))  # type: ignore[operator]
        for module in first.modules():
            if isinstance(module, nn.Conv1d | nn.Linear):  # not the decisions inside
                module.register_forward_hook(lambda *_: None)
        others = [
            *second.modules(),
            *list(supernet.modules())[1:],
        ]  # the supernet counts its passes
        assert not any(module._forward_hooks for module in others)
