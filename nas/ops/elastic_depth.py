"""Elastic depth of a stage, and elastic size of the network's input."""

from collections import OrderedDict
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision, Varying
from nas.ops.elastic import Elastic


class ElasticDepth(Varying):
    """A stage of which the first d blocks run, d searched (Cai et al. 2020).

    ``y = sum_d theta_d * blocks[d - 1](...(blocks[0](x)))``; what no open depth reaches is not run.

    Args:
        blocks: name -> block, as many as the largest depth; all after the first keep the shape.
        depth: options between 1 and the number of blocks.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], depth: Elastic) -> None:
        super().__init__()
        self.depth = depth
        self.blocks = nn.Sequential(OrderedDict(blocks))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.depth.theta
        shares = zip(self.depth.options, theta.tolist(), theta, strict=True)
        total: Tensor | None = None
        done = 0
        for depth, value, share in shares:
            if value == 0:
                continue
            for block in list(self.blocks)[done:depth]:
                x = block(x)
            done = depth
            term = x if value == 1 and not share.requires_grad else share * x
            total = term if total is None else total + term
        assert total is not None  # relaxations never close every option
        return total

    def decides(self) -> tuple[Decision, ...]:
        return (self.depth,)

    def variant(self, options: Mapping[Decision, Option]) -> nn.Sequential:
        names = list(dict(self.blocks.named_children()))[: int(str(options[self.depth]))]
        kept = OrderedDict((name, self.blocks.get_submodule(name)) for name in names)
        # One level more than needed, so that paths stay those of the supernet.
        return nn.Sequential(OrderedDict(blocks=nn.Sequential(kept))).train(self.training)


class Resize(nn.Module):
    """Bilinear (linear for sequences) interpolation to `size` along every side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if all(side == self.size for side in x.shape[2:]):
            return x
        mode = "bilinear" if x.ndim == 4 else "linear"
        return F.interpolate(x, [self.size] * (x.ndim - 2), mode=mode, align_corners=False)


class ElasticResolution(Varying):
    """A body whose input is resized to a searched size first.

    ``y = sum_r theta_r * body(resize(x, r))``.

    Args:
        body: gives the same shape for every size.
        resolution: sides of the input.
    """

    def __init__(self, body: nn.Module, resolution: Elastic) -> None:
        super().__init__()
        self.resolution, self.body = resolution, body

    def forward(self, x: Tensor) -> Tensor:
        theta = self.resolution.theta
        total: Tensor | None = None
        shares = zip(self.resolution.options, theta.tolist(), theta, strict=True)
        for size, value, share in shares:
            if value == 0:
                continue
            y = self.body(Resize(size)(x))
            term = y if value == 1 and not share.requires_grad else share * y
            total = term if total is None else total + term
        assert total is not None  # relaxations never close every option
        return total

    def decides(self) -> tuple[Decision, ...]:
        return (self.resolution,)

    def variant(self, options: Mapping[Decision, Option]) -> nn.Sequential:
        kept = OrderedDict(resize=Resize(int(str(options[self.resolution]))), body=self.body)
        return nn.Sequential(kept).train(self.training)
