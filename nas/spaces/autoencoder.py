"""`Autoencoder`: dense layers through a bottleneck, whose widths and depths are searched."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from nas.config.schema import Count, Layers, Positive, checked
from nas.errors import UserError
from nas.ops.blocks import act
from nas.supernet.elastic import ElasticDepth, ElasticWidth, Number, elastic, options_of


@checked("space")
class Autoencoder(nn.Module):
    """Dense layers to a bottleneck and back, each with BatchNorm and ReLU but for the last one.

    The form of MLPerf Tiny's autoencoder (Banbury et al. 2021), which has four layers of 128 on
    either side of 8. All layers of a side have one width.

    Args:
        input_shape: ``(C, *S)``; flattened.
        num_outputs: values to rebuild, ``C * S`` for `nas.tasks.anomaly.Anomaly`.
        encoder, bottleneck, decoder: widths to choose from, in ascending order.
        depth: numbers of layers of a side to choose from, in ascending order.
        name: what `Arch.space` says of architectures found here.
        width: multiplies all widths, rounded, at least 1.

    Shape: ``(N, *input_shape) -> (N, num_outputs)``.

    Raises:
        UserError: numbers that do not ascend.
    """

    def __init__(
        self,
        input_shape: Sequence[Count],
        num_outputs: Count,
        encoder: Sequence[Count],
        bottleneck: Sequence[Count],
        decoder: Sequence[Count],
        depth: Sequence[Layers],
        name: str = "autoencoder",
        width: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.name, self.input_shape = name, tuple(input_shape)
        lists = {"encoder": encoder, "bottleneck": bottleneck, "decoder": decoder, "depth": depth}
        for key, numbers in lists.items():
            if not numbers or list(numbers) != sorted(set(numbers)):
                raise UserError(
                    f"space.{key}={list(numbers)} must be whole numbers in ascending order"
                )
        into, code, out = (
            elastic(sorted({max(1, round(width * n)) for n in widths}))
            for widths in (encoder, bottleneck, decoder)
        )
        self.encoder = _side(prod(input_shape), into, depth)
        self.bottleneck = ElasticWidth(_dense, into, code)
        self.decoder = _side(code, out, depth)
        self.output = ElasticWidth(nn.Linear, out, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.decoder(self.bottleneck(self.encoder(x.flatten(1)))))
        return y


def _side(inputs: Number, width: Number, depths: Sequence[int]) -> nn.Module:
    """As many layers of one width as the largest depth, of which the first ones run."""
    depth = elastic(depths)
    reads = [inputs, *[width] * (options_of(depth)[-1] - 1)]
    blocks = {f"b{b}": ElasticWidth(_dense, read, width) for b, read in enumerate(reads)}
    return (
        nn.Sequential(*blocks.values()) if isinstance(depth, int) else ElasticDepth(blocks, depth)
    )


def _dense(inputs: int, outputs: int) -> nn.Module:
    # The norm has a bias of its own.
    return nn.Sequential(
        nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), act("relu")
    )
