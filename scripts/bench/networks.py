"""The networks that are compared, and their training steps."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from nas.config.compose import made
from nas.decision import decisions, resample, split_parameters
from nas.discretization import discretize
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import Relaxation, RelaxedDecision
from nas.train import frozen

CONFIGS = Path(__file__).parents[2] / "configs"
NUM_CLASSES = 10
# Space -> shape of an image. The `mobilenet` space is for 224 x 224; here a step must take seconds.
SHAPES = {
    "chain_tiny": (1, 8, 8),
    "chain": (3, 32, 32),
    "mobilenet_tiny": (3, 64, 64),
    "mobilenet": (3, 64, 64),
    "mobilenet_v2": (3, 64, 64),
    "nas_bench_201": (3, 32, 32),
    "truth": (1, 28, 28),
}
# More candidates for each block of the chain, for steps that should not depend on their number.
MORE = (
    "conv_k3", "conv_k5", "sep_k3", "sep_k5", "conv_k1", "mb_k3_e1",
    "sep_k7", "ssep_k3", "ssep_k5", "mb_k5_e1", "mb_k3_e3", "conv_k7",
)  # fmt: skip

Batch = tuple[Tensor, Tensor]  # x (N, C, H, W), labels (N,)


class Sum(nn.Module):
    """The branches of a choice block, added: what is left without theta."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class Trainee:
    """A network with its batch and its optimizers.

    Learning rates are 0: a step does all of its arithmetic, and the next one finds the same alphas
    and weights, so that every round does the same work.
    """

    def __init__(
        self, net: nn.Module, batch: Batch, frozen: bool = False, bf16: bool = False
    ) -> None:
        self.net, (self.x, self.labels), self.bf16 = net.train(), batch, bf16
        self.generator = torch.Generator().manual_seed(0)
        weights, alphas = split_parameters(net)
        for alpha in alphas:
            alpha.requires_grad_(not frozen)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(weights, lr=0.0, momentum=0.9, weight_decay=3e-4)
        ]
        if alphas and not frozen:
            self.optimizers.append(torch.optim.Adam(alphas, lr=0.0, betas=(0.5, 0.999), fused=True))

    def loss(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return F.cross_entropy(self.net(self.x), self.labels)

    def drawn_step(self, seed: int) -> None:
        """A step on the path of `seed`; the draw is part of it."""
        resample(self.net, torch.Generator().manual_seed(seed))
        self.step()

    def step(self) -> None:
        self._step(self.optimizers)

    def step_alphas(self) -> None:
        """A step of the alphas alone, the weights without gradient."""
        with frozen(split_parameters(self.net).weights):
            self._step(self.optimizers[1:])

    def bilevel_step(self) -> None:
        """Alphas, then weights, each drawn for, each half frozen while the other moves."""
        for index, still in ((1, "weights"), (0, "alphas")):
            resample(self.net, self.generator)
            with frozen(getattr(split_parameters(self.net), still)):
                self._step(self.optimizers[index : index + 1])

    def _step(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(self.loss())
        for optimizer in optimizers:
            optimizer.step()


def build_supernet(
    space: str, relax: Relaxation, gumbel: bool = False, candidates: int | None = None
) -> nn.Module:
    """The supernet of a configuration, in `chain` with so many candidates in each block."""
    torch.manual_seed(0)
    config = OmegaConf.load(CONFIGS / "space" / f"{space}.yaml")
    if candidates is not None:
        for stage in config.stages:
            stage.ops = list(MORE[:candidates])
    if space == "nas_bench_201":
        config.channels, config.cells = 8, 1
    net: nn.Module = made(config)(input_shape=SHAPES[space], num_outputs=NUM_CLASSES)
    for module in net.modules():
        if isinstance(module, RelaxedDecision):
            module.relax, module.gumbel = relax, gumbel
    return net


def sum_of_branches(supernet: nn.Module) -> nn.Module:
    """A copy of `supernet` that runs the same branches of the same weights and adds them."""
    net = copy.deepcopy(supernet)
    blocks = [(name, m) for name, m in net.named_modules() if isinstance(m, ChoiceBlock)]
    for name, block in blocks:
        net.set_submodule(name, Sum(list(block.candidates.values())))
    return net


def network_drawn(supernet: nn.Module, seed: int) -> nn.Module:
    """The plain network of the path that `seed` draws."""
    one_path = copy.deepcopy(supernet)
    resample(one_path, torch.Generator().manual_seed(seed))
    for _, block in decisions(one_path):
        block.choose(block.options[int(block.theta.argmax())])
    return discretize(one_path)


def saved_bytes(trainee: Trainee) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainee.net.parameters()}
    # The tensors stay alive until all are counted: a freed address would be given out again.
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainee.loss()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in kept}
    del loss
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)
