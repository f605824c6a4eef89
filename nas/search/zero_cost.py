"""Zero-cost scores: what a network may be worth, said without training it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite, log
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from nas.arch import Arch
from nas.config.schema import checked
from nas.discretization import discretize
from nas.errors import NotFiniteError, UserError
from nas.inputs import Inputs, device_of, moved, run, samples_in
from nas.problem import SearchProblem
from nas.recalibrate import batch_statistics
from nas.search.evaluate import Scoring, sample_of
from nas.tasks.classification import task_of
from nas.train import Batch

METRIC = "zero_cost_score"  # larger is better
Loss = Callable[[Tensor, Tensor], Tensor]


@checked("search.evaluate")
@dataclass(frozen=True)
class ZeroCost:
    """Scores each architecture as the run's seed initialises it, untrained.

    Args:
        score: "params" and "macs": the logarithm of the count, of at least 1. "synflow": see
            `synflow`. "naswot": see `naswot`, of one batch. "zico": see `zico`.
        batches: number of batches of training images for "zico".

    Attributes:
        usual_searcher: of a large space. `predictor` takes a second to choose a network: far longer
            than a score, and NSGA-II finds in that time as good ones.
    """

    usual_searcher: ClassVar[str] = "nsga2"

    score: Literal["params", "macs", "synflow", "naswot", "zico"] = "macs"
    batches: Annotated[int, Field(ge=2, le=1000)] = 2

    def metrics(self, problem: SearchProblem) -> list[str]:
        """Names of the scores."""
        return [METRIC]

    def __call__(self, problem: SearchProblem) -> Scoring:
        """The function that scores architectures of `problem`."""
        counted = problem.costs[self.score] if self.score in ("params", "macs") else None
        if counted is not None:
            return lambda arch: {METRIC: log(max(1.0, counted.of(arch.choices)))}
        device = device_of(sample_of(problem))
        fresh, loss = problem.build().to(device), task_of(problem.data).loss
        images = self.batches * problem.data.batch_size
        loader = () if self.score == "synflow" else problem.data.calibration_loader(images)
        batches = [(moved(x, device), labels.to(device)) for x, labels in loader]

        def score(arch: Arch) -> Mapping[str, float]:
            network = discretize(fresh, arch)  # a copy: `synflow` changes it
            if self.score == "synflow":
                found = synflow(network, problem.data.example)
            elif self.score == "naswot":
                found = naswot(network, batches[0][0])
            else:
                found = zico(network, batches, loss)
            if not isfinite(found):
                raise NotFiniteError(f"the score {self.score} is {found}")
            return {METRIC: found}

        return score


def synflow(network: nn.Module, example: Inputs) -> float:
    """``log sum_i |w_i * dR/dw_i|``, R the sum of the outputs for an input of ones.

    All parameters are taken by their absolute value, in float64, and BatchNorm is left out, so that
    no score depends on data (Tanaka et al. 2020, eq. 2; for search Abdelfattah et al. 2021).

    Args:
        network: a plain network; it is changed.
        example: an empty batch of one sample.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    network.double().eval()
    parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in parameters:
            parameter.abs_()
    device = parameters[0].device if parameters else None
    ones = tree_map(
        lambda x: torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else x, example
    )
    outputs = run(network, moved(ones, device or "cpu")).sum()
    flows = torch.autograd.grad(outputs, parameters, allow_unused=True)
    total = sum(
        float((p.detach() * flow).abs().sum())
        for p, flow in zip(parameters, flows, strict=True)
        if flow is not None
    )
    return _log(total)


def naswot(network: nn.Module, x: Inputs) -> float:
    """``log |det K|``, K the number of ReLUs on whose sign two samples agree.

    Samples that an untrained network tells apart have different codes (Mellor et al. 2021, eq. 2).

    Args:
        x: inputs of a batch.

    Raises:
        UserError: the network has no ReLU.
    """
    kernel = torch.zeros(samples_in(x), samples_in(x), dtype=torch.float64, device=device_of(x))

    def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        code = (out.flatten(1) > 0).double()
        kernel.add_(code @ code.T + (1 - code) @ (1 - code).T)

    rectifiers = [m for m in network.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    if not rectifiers:
        raise UserError("score=naswot compares the signs of ReLUs, and this network has none")
    handles = [module.register_forward_hook(count) for module in rectifiers]
    with torch.no_grad(), batch_statistics(network):
        run(network, x)
    for handle in handles:
        handle.remove()
    return float(torch.linalg.slogdet(kernel).logabsdet)


def zico(network: nn.Module, batches: list[Batch], loss: Loss) -> float:
    """``sum_l log sum_{w in l} mean|g_w| / std(g_w)`` over the batches' gradients g.

    The layers l are those with a weight of at least two dimensions; weights whose gradient is the
    same in every batch are left out (Li et al. 2023, eq. 16).

    Args:
        batches: at least two, ``(inputs, targets)``.
        loss: ``outputs, targets -> mean loss``.
    """
    weights = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    gradients = []
    with batch_statistics(network):
        for x, targets in batches:
            value = loss(run(network, x), targets)
            found = torch.autograd.grad(value, weights, allow_unused=True)
            gradients.append([None if g is None else g.double() for g in found])
    score = 0.0
    for own in zip(*gradients, strict=True):
        known = [g for g in own if g is not None]
        if len(known) < 2:
            continue
        layer = torch.stack(known)
        spread = layer.std(0, correction=0)
        moving = spread > 0
        total = float((layer.abs().mean(0)[moving] / spread[moving]).sum())
        score += _log(total) if total else 0.0
    return score


def _log(value: float) -> float:
    return log(value) if value > 0 else -inf
