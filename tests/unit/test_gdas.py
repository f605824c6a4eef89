"""GDAS: one branch runs, and every alpha of the block has a gradient."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock, Relaxing
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.relax import linear, one_path

OPS = ("conv_k3", "sep_k3", "mb_k3_e2", "identity", "zero")
STAND_INS = [None, "ones", "input"]


def block(stand_in: str | None, seed: int = 0) -> ChoiceBlock:
    made = ChoiceBlock({name: build(name, 4, 4, activation="silu") for name in OPS})
    Relaxing("one_path", True, linear(10.0, 0.1), stand_in)(made)
    nn.init.normal_(made.alpha)
    made.resample(torch.Generator().manual_seed(seed))
    return made


def ran_in(made: ChoiceBlock, x: torch.Tensor, cotangent: torch.Tensor) -> list[str]:
    called: list[str] = []
    for name, op in made.candidates.items():
        op.register_forward_hook(lambda *_, name=name: called.append(name))
    (made(x) * cotangent).sum().backward()
    return called


@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("seed", range(8))
def test_one_branch_runs_and_all_alphas_have_a_gradient(seed, stand_in):
    made, x, cotangent = block(stand_in, seed), *torch.randn(2, 3, 4, 5, 5)
    drawn = made.options[int((made.alpha + made.noise).argmax())]
    assert ran_in(made, x, cotangent) == [drawn]
    # With nothing to stand in, a `zero` that is drawn says nothing.
    assert (made.alpha.grad != 0).all() == (drawn != "zero" or stand_in is not None)
    idle = [op for name, op in made.candidates.items() if name != drawn]
    assert all(p.grad is None for op in idle for p in op.parameters())


@pytest.mark.parametrize("stand_in", STAND_INS)
def test_what_is_seen_is_the_candidate_drawn_to_the_bit(stand_in):
    made, x = block(stand_in).eval(), torch.randn(3, 4, 5, 5)
    drawn = made.candidates[made.options[int(made.theta.argmax())]]
    assert torch.equal(made(x), drawn(x))


@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_that_of_hard_minus_soft_plus_soft_by_hand(seed, stand_in):
    made, x, cotangent = block(stand_in, seed).eval(), *torch.randn(2, 3, 4, 5, 5)
    made.tau.fill_(0.7)
    (made(x) * cotangent).sum().backward()
    found, made.alpha.grad = made.alpha.grad, None

    soft = ((made.alpha.log_softmax(-1) + made.noise) / made.tau).softmax(-1)
    index = int(soft.argmax())
    hard = torch.eye(len(OPS))[index] - soft.detach() + soft
    others = {None: torch.zeros_like(x), "ones": torch.ones_like(x), "input": x}[stand_in]
    outs = [made.candidates[n](x) if k == index else others for k, n in enumerate(OPS)]
    (sum(h * out.detach() for h, out in zip(hard, outs, strict=True)) * cotangent).sum().backward()
    assert_close(found, made.alpha.grad, rtol=1e-4, atol=1e-5)


def test_without_gradient_nothing_is_added():
    made, x = block("ones"), torch.randn(3, 4, 5, 5)
    made.alpha.requires_grad_(False)
    made.choose("identity")
    assert made(x) is x
    assert one_path(made.logits).tolist()[3] == 1


def test_another_stand_in_is_named():
    with pytest.raises(UserError, match=r"relax\.stand_in='twos'"):
        Relaxing("softmax", True, linear(1.0, 1.0), "twos")
