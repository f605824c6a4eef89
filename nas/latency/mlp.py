"""A small network from features to latency."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.latency.features import Features
from nas.latency.linear import Scaling
from nas.latency.sample import Sample, check_enough, scalar, seconds_of
from nas.latency.stored import Stored

HIDDEN, MEMBERS, STEPS = 16, 4, 600


@dataclass(frozen=True)
class Net:
    """The mean of M members, each a plane plus one hidden layer: ``(n, F) -> (n,)``.

    The plane carries what is far outside the data; the hidden layer, of tanh, then stays bounded.
    """

    plane: Tensor  # (M, F)
    into: Tensor  # (M, F, H)
    into_bias: Tensor  # (M, H)
    out: Tensor  # (M, H)
    out_bias: Tensor  # (M,)

    @classmethod
    def drawn(cls, count: int, hidden: int, members: int, seed: int) -> "Net":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float) -> Tensor:
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        return cls(
            normal(members, count, scale=0.1 / max(count, 1) ** 0.5),
            normal(members, count, hidden, scale=1 / max(count, 1) ** 0.5),
            normal(members, hidden, scale=0.5),
            normal(members, hidden, scale=0.3 / hidden**0.5),
            torch.zeros(members, dtype=torch.float64),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.plane, self.into, self.into_bias, self.out, self.out_bias

    def members(self, x: Tensor) -> Tensor:
        """``(n, F) -> (M, n)``."""
        hidden = torch.tanh(torch.matmul(x, self.into) + self.into_bias[:, None])
        bent = torch.einsum("mnh,mh->mn", hidden, self.out)
        return bent + self.plane @ x.T + self.out_bias[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        return self.members(x).mean(0)

    def train(self, x: Tensor, y: Tensor, steps: int, decay: float) -> None:
        """Fit each member to ``y (n,)`` of unit deviation: Huber loss, all rows at each step."""
        parameters = [tensor.requires_grad_() for tensor in self.tensors]
        optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
        for _ in range(steps):
            optimizer.zero_grad()
            predicted = self.members(x)
            # The knee: a tenth of a deviation is an outlier once the fit is good.
            loss = F.huber_loss(predicted, y.expand_as(predicted), delta=0.1) * len(predicted)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        for tensor in parameters:
            tensor.requires_grad_(False)

    def to_json(self) -> dict[str, Any]:
        names = ("plane", "into", "into_bias", "out", "out_bias")
        stored = {n: t.flatten().tolist() for n, t in zip(names, self.tensors, strict=True)}
        return {"hidden": self.out.shape[1], "members": self.out.shape[0], **stored}

    @classmethod
    def from_json(cls, stored: Stored, count: int) -> "Net":
        members, hidden = int(stored.number("members")), int(stored.number("hidden"))
        shapes = {
            "plane": (members, count),
            "into": (members, count, hidden),
            "into_bias": (members, hidden),
            "out": (members, hidden),
            "out_bias": (members,),
        }
        tensors = []
        for name, shape in shapes.items():
            numbers = stored.numbers(name, torch.Size(shape).numel())
            tensors.append(torch.tensor(numbers, dtype=torch.float64).reshape(shape))
        return cls(*tensors)


@dataclass(frozen=True)
class MLP:
    """``log(seconds)`` by a small network over the logs of the features."""

    scaling: Scaling
    net: Net
    mean: float  # of log(seconds)
    deviation: float
    kind: ClassVar[str] = "mlp"

    @classmethod
    def fit(
        cls, samples: Sequence[Sample], seed: int = 0, steps: int = STEPS, decay: float = 0.05
    ) -> "MLP":
        """The same samples and seed give the same network.

        Raises:
            UserError: fewer than two samples.
        """
        check_enough(samples)
        scaling = Scaling.fit(samples)
        logs = torch.from_numpy(seconds_of(samples)).log()
        mean, deviation = float(logs.mean()), float(logs.std()) or 1.0
        net = Net.drawn(len(scaling.names), HIDDEN, MEMBERS, seed)
        with torch.enable_grad():
            net.train(scaling.of_samples(samples), (logs - mean) / deviation, steps, decay)
        return cls(scaling, net, mean, deviation)

    def predict(self, key: str, features: Features) -> float | Tensor:
        """Seconds; a tensor with gradient where features are tensors."""
        value = self.net(self.scaling.of(features)[None])[0]
        return scalar((value * self.deviation + self.mean).exp(), features)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "scaling": self.scaling.to_json(),
            "net": self.net.to_json(),
            "mean": self.mean,
            "deviation": self.deviation,
        }

    @classmethod
    def from_json(cls, raw: object) -> "MLP":
        stored = Stored(raw, "mlp")
        scaling = Scaling.from_json(stored.child("scaling"))
        net = Net.from_json(stored.child("net"), len(scaling.names))
        return cls(scaling, net, stored.number("mean"), stored.number("deviation"))
