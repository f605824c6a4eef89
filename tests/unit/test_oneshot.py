"""What a step of one-shot training leaves alone."""

from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nas import ChoiceBlock, MACs, build_op
from nas.cost.expected import expected
from nas.decision import split_parameters
from nas.search.oneshot.oneshot import OneShot
from nas.search.oneshot.path_sampling import AllPaths, Sandwich, StrictFairness, UniformPath


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        names = ("conv_k3", "conv_k5", "identity")
        blocks = [ChoiceBlock({n: build_op(n, 2, 2) for n in names}) for _ in range(2)]
        self.blocks, self.last = nn.Sequential(*blocks), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.blocks(x).mean((2, 3)))


@pytest.mark.parametrize("scheme", [AllPaths(), UniformPath(), StrictFairness(), Sandwich()])
def test_no_gradient_is_computed_for_alphas_and_they_thaw_afterwards(scheme):
    torch.manual_seed(0)
    net = Net()
    fixed, *searched = split_parameters(net).alphas
    fixed.requires_grad_(False)  # by the user
    costs = {"macs": expected(net, MACs(), (2, 6, 6))}
    module = OneShot(
        net, costs, scheme, lambda **_: None, lambda p: torch.optim.SGD(p, lr=0.1), epochs=1
    )
    seen, weights = [], [p.clone() for p in split_parameters(net).weights]
    step = torch.optim.SGD.step

    def look(self, *arguments, **options):
        seen.extend(alpha.grad for alpha in (fixed, *searched))
        return step(self, *arguments, **options)

    data = TensorDataset(torch.randn(8, 2, 6, 6), torch.tensor([0, 1] * 4))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with patch.object(torch.optim.SGD, "step", look):
        trainer.fit(module, DataLoader(data, batch_size=4))
    assert seen
    assert all(grad is None for grad in seen)
    assert not fixed.requires_grad
    assert all(alpha.requires_grad for alpha in searched)
    pairs = zip(weights, split_parameters(net).weights, strict=True)
    assert any(not torch.equal(before, now) for before, now in pairs)
