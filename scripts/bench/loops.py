"""Epochs written by hand: the steps that `nas` takes, on tensors in memory, without Lightning.

Data are normalised before the first epoch, and orders are drawn before it too; what an epoch gives
is summed in tensors and read once at its end. Draws, losses and architecture are the methods' own,
and come from `nas`.
"""

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nas.decision import apply, decisions, free, resample, sample_path, split_parameters
from nas.discretization import arch_of
from nas.recalibrate import batch_statistics

Scores = dict[str, float]
Requests = Sequence[Sequence[tuple[int, Tensor]]]  # of each epoch (seed, indices) of each batch
# A network is trained where all move, or one half of a supernet where the other is frozen.
Parameters = Sequence[nn.Parameter]


class Tensors:
    """A data set of images of bytes, kept as the tensors that a loop by hand reads."""

    def __init__(self, data: Any, epochs: int) -> None:
        self.bytes, self.labels = data.arrays.samples, data.arrays.targets
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
        self.x = self.normalised(self.bytes)
        val = data.parts["val"].split(data.eval_batch_size)
        self.val = [(self.x[part], self.labels[part]) for part in val]
        steps = len(data.weight_loader())
        self.weight_orders = orders(data.weight_loader(), epochs, steps)
        self.alpha_orders = orders(data.alpha_loader(), epochs, steps)

    def normalised(self, images: Tensor) -> Tensor:
        # As `nas` rounds, so that results can be equal to the bit.
        found = images.float() * (1 / (255 * self.std))
        return found + -(self.mean / self.std)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x[indices], self.labels[indices]

    def cropped(self, seed: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """A window of each image, moved by at most an eighth of its size."""
        x, draw = self.bytes[indices], torch.Generator().manual_seed(seed)
        n, _, height, width = x.shape
        pad_y, pad_x = height // 8, width // 8
        top = torch.randint(2 * pad_y + 1, (n,), generator=draw)
        left = torch.randint(2 * pad_x + 1, (n,), generator=draw)
        padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        return self.normalised(windows[torch.arange(n), :, top, left]), self.labels[indices]


def orders(loader: Any, epochs: int, steps: int) -> Requests:
    """What the batches of a loader are made of; a short one is gone through several times."""
    found = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        passes = chain.from_iterable(iter(lambda: list(loader.sampler), None))
        found.append(list(islice(passes, steps)))
    return found


class Sums:
    """Loss and accuracy of an epoch."""

    def __init__(self) -> None:
        self.loss, self.right, self.count = torch.zeros(()), torch.zeros((), dtype=torch.long), 0

    def add(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        self.loss += loss.detach() * len(labels)
        self.right += (logits.detach().argmax(1) == labels).sum()
        self.count += len(labels)

    def scores(self, name: str) -> Scores:
        values = float(self.loss) / self.count, int(self.right) / self.count
        return {f"{name}_loss": values[0], f"{name}_acc": values[1]}


class Descent:
    """A step on one batch: gradients, clipping, optimizer and schedule."""

    def __init__(self, module: Any, weights: list[nn.Parameter]) -> None:
        self.weights, self.clip = weights, module.clip
        self.optimizer, self.schedule = optimizers(module, weights)

    def __call__(self, network: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Logits, labels and loss, of before the step."""
        self.optimizer.zero_grad()
        logits = network(x)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.schedule.step()
        return logits, labels, loss


class FineTuning:
    """An epoch of training of one network, and its validation."""

    def __init__(self, module: Any, network: nn.Module, data: Tensors, crop: bool) -> None:
        self.network, self.data, self.crop = network, data, crop
        self.seed, self.descend = module.seed, Descent(module, list(network.parameters()))

    def __call__(self, epoch: int) -> Scores:
        torch.manual_seed(self.seed + epoch)
        train, val = Sums(), Sums()
        self.network.train()
        for seed, indices in self.data.weight_orders[epoch]:
            x, labels = self.data.cropped(seed, indices) if self.crop else self.data.batch(indices)
            train.add(*self.descend(self.network, x, labels))
        self.network.eval()
        with torch.no_grad():
            for x, labels in self.data.val:
                logits = self.network(x)
                val.add(logits, labels, F.cross_entropy(logits, labels))
        return {**train.scores("train"), **val.scores("val")}


class OneShot:
    """An epoch of training of a supernet, one path drawn for each step."""

    def __init__(self, module: Any, supernet: nn.Module, data: Tensors) -> None:
        self.supernet, self.data, self.seed = supernet, data, module.seed
        weights, alphas = split_parameters(supernet)
        for alpha in alphas:
            alpha.requires_grad_(False)
        self.descend = Descent(module, weights)

    def __call__(self, epoch: int) -> Scores:
        torch.manual_seed(self.seed + epoch)
        draw, train = torch.Generator().manual_seed(self.seed + epoch), Sums()
        self.supernet.train()
        for _, indices in self.data.weight_orders[epoch]:
            x, labels = self.data.batch(indices)
            sample_path(self.supernet, draw)
            train.add(*self.descend(self.supernet, x, labels))
        return train.scores("train")


class Bilevel:
    """An epoch of first-order DARTS, and the validation of the supernet and of its best network."""

    def __init__(self, module: Any, supernet: nn.Module, data: Tensors, costs: Any) -> None:
        self.module, self.supernet, self.data, self.costs = module, supernet, data, costs
        self.weights, self.alphas = split_parameters(supernet)
        self.optimizer = module.weight_factory(self.weights)
        self.alpha_optimizer = module.alpha_factory(self.alphas)
        self.schedule = LambdaLR(self.optimizer, schedule_of(module))
        self.decisions = [decision for _, decision in decisions(supernet)]

    def __call__(self, epoch: int) -> Scores:
        seed = self.module.seed + epoch
        torch.manual_seed(seed)
        self.draw = torch.Generator().manual_seed(seed)
        train, alpha = Sums(), Sums()
        self.supernet.train()
        orders = self.data.alpha_orders[epoch], self.data.weight_orders[epoch]
        steps = len(orders[0])
        for i, ((_, for_alphas), (_, for_weights)) in enumerate(zip(*orders, strict=True)):
            tau = self.module.temperature((epoch + i / steps) / self.module.epochs)
            for decision in self.decisions:
                decision.tau.fill_(tau)
            self.half(self.data.batch(for_alphas), self.alpha_optimizer, self.weights, alpha)
            self.half(self.data.batch(for_weights), self.optimizer, self.alphas, train)
        val, best = Sums(), Sums()
        free(self.supernet)
        self.supernet.eval()
        with torch.no_grad():
            for x, labels in self.data.val:
                logits = self.supernet(x)
                val.add(logits, labels, F.cross_entropy(logits, labels))
                apply(self.supernet, arch_of(self.supernet))
                with batch_statistics(self.supernet):
                    logits = self.supernet(x)
                free(self.supernet)
                best.add(logits, labels, F.cross_entropy(logits, labels))
        self.schedule.step()
        named = {"train": train, "alpha": alpha, "supernet_val": val, "argmax_val": best}
        return {key: v for name, sums in named.items() for key, v in sums.scores(name).items()}

    def half(self, batch: tuple[Tensor, Tensor], optimizer: Any, still: Any, sums: Sums) -> None:
        x, labels = batch
        for parameter in still:
            parameter.requires_grad_(False)
        resample(self.supernet, self.draw)
        optimizer.zero_grad()
        logits = self.supernet(x)
        loss = F.cross_entropy(logits, labels)
        joined = loss
        if still is self.weights:
            joined = self.module.objective(loss, {n: cost() for n, cost in self.costs.items()})
        joined.backward()
        if still is self.alphas:
            nn.utils.clip_grad_norm_(self.weights, self.module.clip)
        optimizer.step()
        sums.add(logits, labels, loss)
        for parameter in still:
            parameter.requires_grad_(True)


def optimizers(module: Any, parameters: Parameters) -> tuple[Any, Any]:
    optimizer = module.optimizer_factory(parameters)
    return optimizer, LambdaLR(optimizer, schedule_of(module))


def schedule_of(module: Any) -> Callable[[int], float]:
    """The factor of the learning rate that the module has set up."""
    found: Callable[[int], float] = module.lr_schedulers().lr_lambdas[0]
    return found
