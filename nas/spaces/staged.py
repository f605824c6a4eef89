"""`StagedSpace`: a table of stages -> supernet."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nas.errors import UserError
from nas.ops.catalogue import allowed, build, obstacle
from nas.spaces.table import Head, Stage, Stem, check_positive, read_row, read_stages
from nas.supernet.choice import ChoiceBlock


class StagedSpace(nn.Module):
    """Stem, stages of choice blocks, 1x1 head, global average pooling, dropout, linear classifier.

    Block b of stage s is ``blocks.s<s>b<b>``, both counted from 0. The first block of a stage
    leaves out, without a word, the candidates that cannot change the channels or the size as it
    must (identity, pooling). A block left with one candidate is that op, and no decision.

    Args:
        input_shape: ``(C, H, W)`` for images, ``(C, L)`` for sequences, without the batch.
        num_classes: size of the output.
        stages: mappings with the keys of `table.Stage`: ops, channels, stride, repeat.
        name: what `Arch.space` says of architectures found here.
        stem: channels, kernel, stride of a fixed first convolution; None: none.
        head: features of a fixed last 1x1 convolution; None: none.
        width: multiplies all channels, rounded to a multiple of `divisor`, at least one of it.
        dropout: probability before the classifier, in training.
        activation: of all ops, stem and head, instead of each one's own: relu, relu6, ...

    Shape: ``(N, *input_shape) -> (N, num_classes)``.

    Raises:
        UserError: one of these cannot be; the message names the stage, and the block if it is one.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        stages: Sequence[Mapping[str, Any]],
        name: str = "staged",
        stem: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        width: float = 1.0,
        divisor: int = 1,
        dropout: float = 0.0,
        activation: str | None = None,
    ) -> None:
        _check_numbers(input_shape, num_classes, width, divisor, dropout)
        table = read_stages(stages)
        super().__init__()
        self.name, self.input_shape = name, tuple(input_shape)
        self.ndim, self.activation = len(input_shape) - 1, activation
        self.width, self.divisor = width, divisor

        channels = self.input_shape[0]
        self.stem, channels = self._stem(stem, channels)
        self.blocks = nn.Sequential(OrderedDict(self._blocks(table, channels)))
        self.head, channels = self._head(head, self._scale(table[-1].channels))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        y: Tensor = self.classifier(self.dropout(x.flatten(2).mean(-1)))
        return y

    def _stem(self, row: Mapping[str, Any] | None, channels: int) -> tuple[nn.Module, int]:
        if row is None:
            return nn.Identity(), channels
        stem = read_row(Stem, row, "the stem")
        width = self._scale(stem.channels)
        return self._op(f"conv_k{stem.kernel}", channels, width, stem.stride), width

    def _head(self, row: Mapping[str, Any] | None, channels: int) -> tuple[nn.Module, int]:
        features = None if row is None else read_row(Head, row, "the head").features
        if features is None:
            return nn.Identity(), channels
        return self._op("conv_k1", channels, self._scale(features), 1), self._scale(features)

    def _blocks(self, table: Sequence[Stage], channels: int) -> Iterator[tuple[str, nn.Module]]:
        for s, stage in enumerate(table):
            width = self._scale(stage.channels)
            self._check_ops(stage, width, f"stage {s}")
            for b in range(stage.repeat):
                stride = stage.stride if b == 0 else 1
                where = f"stage {s}, block {b}"
                yield f"s{s}b{b}", self._block(stage.ops, channels, width, stride, where)
                channels = width

    def _check_ops(self, stage: Stage, width: int, where: str) -> None:
        # Only the shape of a first block is a reason to leave an op out without a word.
        for op in stage.ops:
            try:
                reason = obstacle(op, width, width, 1, self.ndim)
            except UserError as error:
                reason = str(error)
            if reason is not None:
                raise UserError(f"{where}: {reason}")

    def _block(
        self, names: Sequence[str], in_channels: int, out_channels: int, stride: int, where: str
    ) -> nn.Module:
        fitting = {
            name: self._op(name, in_channels, out_channels, stride)
            for name in names
            if allowed(name, in_channels, out_channels, stride, self.ndim)
        }
        if not fitting:
            reason = obstacle(names[0], in_channels, out_channels, stride, self.ndim)
            raise UserError(f"{where}: none of {list(names)} can stand here ({reason})")
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        return ChoiceBlock(fitting)

    def _op(self, name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
        return build(name, in_channels, out_channels, stride, self.ndim, self.activation)

    def _scale(self, channels: int) -> int:
        return self.divisor * max(1, round(channels * self.width / self.divisor))


def _check_numbers(
    input_shape: Sequence[int], num_classes: int, width: float, divisor: int, dropout: float
) -> None:
    if len(input_shape) not in (2, 3):
        raise UserError(f"input_shape must be (C, H, W) or (C, L), got {tuple(input_shape)}")
    for size in input_shape:
        check_positive(size, f"each size in input_shape {tuple(input_shape)}")
    check_positive(num_classes, "num_classes")
    check_positive(divisor, "divisor")
    if not width > 0:
        raise UserError(f"width must be above 0 (1 leaves the channels as they are), got {width}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout must be at least 0 and below 1, got {dropout}")
