"""Second-order DARTS against double backward on a smooth toy."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas.decision import decisions, split_parameters
from nas.search.darts import unrolled_gradient
from nas.supernet.choice import ChoiceBlock

OPTIMIZERS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "dampening": {"momentum": 0.8, "dampening": 0.3},
}


def supernet() -> nn.Module:
    torch.manual_seed(0)
    blocks = [ChoiceBlock([nn.Linear(3, 3), nn.Linear(3, 3), nn.Identity()]) for _ in range(2)]
    for block in blocks:
        nn.init.normal_(block.alpha)
    return nn.Sequential(blocks[0], nn.Tanh(), blocks[1], nn.Tanh(), nn.Linear(3, 1)).double()


def loss(net, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 3, generator=generator), torch.randn(16, 1, generator=generator)
    return (net(x.double()) - y.double()).square().mean()


def trained(options, steps: int):
    """A supernet and its optimizer after some steps, so that there is momentum."""
    net = supernet()
    weights, alphas = split_parameters(net)
    optimizer = torch.optim.SGD(weights, lr=0.3, **options)
    for step in range(steps):
        optimizer.zero_grad()
        loss(net, 10 + step).backward()
        optimizer.step()
    net.zero_grad()
    return net, optimizer, alphas


def by_double_backward(net, optimizer, alphas):
    """d L_val(w'(alpha)) / d alpha, with the step as torch.optim.SGD documents it."""
    group = optimizer.param_groups[0]
    gradients = torch.autograd.grad(loss(net, 1), group["params"], create_graph=True)
    ahead = {}
    for w, gradient in zip(group["params"], gradients, strict=True):
        step = gradient + group["weight_decay"] * w.detach()
        if m := group["momentum"]:
            old = optimizer.state[w].get("momentum_buffer")
            buffer = step if old is None else m * old + (1 - group["dampening"]) * step
            step = step + m * buffer if group["nesterov"] else buffer
        ahead[w] = w.detach() - group["lr"] * step
    names = {name: ahead[w] for name, w in net.named_parameters() if w in ahead}
    value = loss(partial(torch.func.functional_call, net, names), 2)
    return torch.autograd.grad(value, alphas)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_is_the_gradient_through_the_step(options, steps):
    net, optimizer, alphas = trained(options, steps)
    exact = flat(by_double_backward(net, optimizer, alphas))
    found = flat(unrolled_gradient(lambda: loss(net, 1), lambda: loss(net, 2), optimizer, alphas))
    present = flat(torch.autograd.grad(loss(net, 2), alphas))

    # The finite difference errs by the square of its radius, 1e-4; the first order by much more.
    assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert float((present - exact).norm()) > 100 * float((found - exact).norm())
    assert float((present - exact).norm()) > 0.05 * float(exact.norm())


def test_nothing_is_left_of_the_virtual_step():
    net, optimizer, alphas = trained({"momentum": 0.9}, 2)
    before = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    addresses = [p.data_ptr() for p in net.parameters()]

    unrolled_gradient(lambda: loss(net, 1), lambda: loss(net, 2), optimizer, alphas)

    for key, value in net.state_dict().items():
        assert torch.equal(value, before[0][key])
    for old, new in zip(
        before[1]["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(old["momentum_buffer"], new["momentum_buffer"])
    assert [p.data_ptr() for p in net.parameters()] == addresses
    assert all(p.grad is None for p in net.parameters())


def test_weights_are_restored_when_a_loss_fails():
    net, optimizer, alphas = trained({}, 1)
    before = copy.deepcopy(net.state_dict())

    def fails():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        unrolled_gradient(lambda: loss(net, 1), fails, optimizer, alphas)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_weight_off_the_path_stays_where_it_is():
    net, optimizer, alphas = trained({"momentum": 0.9, "weight_decay": 0.1}, 1)
    for _, decision in decisions(net):
        decision.choose(decision.options[0])
    off = net[0].candidates["1_Linear"].weight
    seen = []

    def watched():
        seen.append(off.detach().clone())
        return loss(net, 2)

    unrolled_gradient(lambda: loss(net, 1), watched, optimizer, alphas)
    assert torch.equal(seen[0], off)
