"""`StagedSpace`: a table of stages -> supernet."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from nas.config.schema import BelowOne, Count, Positive, checked
from nas.errors import UserError
from nas.ops.blocks import CONV, GlobalPool, InOrder, Site, Stack, act
from nas.quantization.network import Quantize, attach
from nas.spaces.front import Front, SearchedFront
from nas.spaces.stage import Head, SharedChoices, Stage, Stem, misfit, read_row, read_stages
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import (
    Elastic,
    ElasticDepth,
    ElasticResolution,
    ElasticWidth,
    Number,
    elastic,
)
from nas.supernet.elastic_layers import ElasticConv
from nas.supernet.elastic_ops import build_op, op_exclusion_reason

LARGE = 48  # pixels of a side above which a stem of stride "auto" halves the input


@checked("space")
class StagedSpace(InOrder):
    """Stem, stages of choice blocks, 1x1 head, global average pooling, dropout, linear classifier.

    Block b of stage s is ``blocks.s<s>b<b>``, both counted from 0, or ``blocks.s<s>.blocks.b<b>``
    where the depth of the stage is searched. The first block of a stage leaves out, without a
    message, the candidates that cannot change the channels or the size as it must (identity,
    pooling). A block left with one candidate is that op, and no decision. The choices that all
    blocks of stage s share are in ``shared.s<s>``, see `nas.spaces.stage.SharedChoices`.

    Args:
        input_shape: ``(C, H, W)`` for images, ``(C, L)`` for sequences, without the batch.
        num_outputs: size of the output.
        stages: mappings with the keys of `nas.spaces.stage.Stage`: ops, channels, stride, repeat,
            depth, activation, factors, skip.
        name: what `Arch.space` says of architectures found here.
        stem: channels, kernel, stride of a first convolution; None: none.
        head: features of a fixed last 1x1 convolution, mix of a layer after pooling; None: none.
        width: multiplies all channels, rounded to a multiple of `divisor`, at least one of it.
        dropout: probability before the classifier, in training.
        activation: of all ops, stem and head, instead of each one's own: relu, relu6, ...
        front: keys of `nas.spaces.front.Front`: frames made of sound before the stem; None: none.
        resolution: sides to resize the input to, searched; None: the input as it is. Everything
            before `mix` is then below ``features.body``.
        quantize: keys of `nas.quantization.network.Quantize`: bits of the layers, searched where
            there are several; None: floating point.
        pool: what of the positions the classifier reads: their "mean", or the "last" of a sequence.

    Shape: ``(N, *input_shape) -> (N, num_outputs)``.

    Raises:
        UserError: one of these cannot be; the message names the stage, and the block if it is one.
    """

    def __init__(
        self,
        input_shape: Sequence[Count],
        num_outputs: Count,
        stages: Sequence[Mapping[str, Any]],
        name: str = "staged",
        stem: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        width: Positive = 1.0,
        divisor: Count = 1,
        dropout: BelowOne = 0.0,
        activation: str | None = None,
        resolution: Sequence[Count] | None = None,
        pool: Literal["mean", "last"] = "mean",
        front: Mapping[str, Any] | None = None,
        quantize: Mapping[str, Any] | None = None,
    ) -> None:
        if len(input_shape) not in (2, 3):
            raise UserError(f"input_shape must be (C, H, W) or (C, L), got {tuple(input_shape)}")
        table, last = read_stages(stages), pool == "last"
        super().__init__()
        self.name, self.input_shape = name, tuple(input_shape)
        fronts, shape = self._fronts(front)
        if len(fronts) > 1 and resolution is not None:
            raise UserError("space.front and space.resolution cannot be searched together")
        if last and len(shape) == 3:
            raise UserError("space.pool=last is for sequences; images take space.pool=mean")
        self.ndim, self.activation = len(shape) - 1, activation
        self.width, self.divisor = width, divisor

        if any(stage.shared for stage in table):
            self.shared = nn.ModuleDict()  # first, so that its paths name what stages share
        widths = [self._width(stage.channels) for stage in table]
        stem_, channels = self._stem(stem, shape, widths[0])
        blocks = nn.Sequential(OrderedDict(self._blocks(table, widths, channels)))
        head_, channels, mix = self._head(head, widths[-1])
        if len(fronts) > 1:
            body = OrderedDict(stem=stem_, blocks=blocks, head=head_, pool=GlobalPool(last))
            self.features: nn.Module = SearchedFront(fronts, nn.Sequential(body))
        elif resolution is None:
            self.stem, self.blocks, self.head = stem_, blocks, head_
            self.pool = GlobalPool(last)
        else:
            body = OrderedDict(stem=stem_, blocks=blocks, head=head_, pool=GlobalPool(last))
            sizes = Elastic(resolution)
            self.features = ElasticResolution(nn.Sequential(body), sizes)
        if len(fronts) == 1:
            self.front = next(iter(fronts.values()))
        self.mix = mix
        self.dropout = nn.Dropout(dropout)
        self.classifier = _linear(channels, num_outputs)
        if quantize is not None:
            attach(self, read_row(Quantize, quantize, "space.quantize"))

    def in_order(self) -> list[nn.Module]:
        """See `InOrder`."""
        front = [self.front] if hasattr(self, "front") else []
        if hasattr(self, "features"):
            body = [self.features]
        else:
            body = [self.stem, self.blocks, self.head, self.pool]
        mix = [] if self.mix is None else [self.mix]
        return [*front, *body, *mix, self.dropout, self.classifier]

    def _fronts(
        self, row: Mapping[str, Any] | None
    ) -> tuple[Mapping[str, nn.Module], Sequence[int]]:
        """What may stand before the stem, by name, and the shape behind the first of them."""
        if row is None:
            return {}, self.input_shape
        fronts = read_row(Front, row, "the front").modules(self.input_shape)
        first = next(iter(fronts.values()))
        return fronts, first.output_shape(self.input_shape[1])

    def _stem(
        self, row: Mapping[str, Any] | None, shape: Sequence[int], first: Number
    ) -> tuple[nn.Module, Number]:
        channels = shape[0]
        if row is None:
            return nn.Identity(), channels
        stem = read_row(Stem, row, "the stem")
        width = first if stem.channels is None else self._width(stem.channels)
        sides, stride = shape[1:], stem.stride
        if stride == "auto":
            stride = 2 if min(sides) > LARGE else 1
        if isinstance(stem.kernel, int) and stem.kernel % 2:
            return self._op(f"conv_k{stem.kernel}", channels, width, stride), width
        kernel = [stem.kernel] * self.ndim if isinstance(stem.kernel, int) else list(stem.kernel)
        if len(kernel) < self.ndim or (stride == 1 and any(k % 2 == 0 for k in kernel)):
            raise UserError(
                f"the stem: kernel={stem.kernel} must be one number or one for each side, "
                f"{len(sides)} here, and odd at stride 1"
            )
        pads = [_padding(*pair, stride) for pair in zip(sides, kernel, strict=False)]
        site = Site(channels, channels, stride, self.ndim, self.activation)
        make = partial(_first, site, kernel[: self.ndim], pads)
        if isinstance(width, int):
            return make(channels, width), width
        return ElasticWidth(make, channels, width), width

    def _head(
        self, row: Mapping[str, Any] | None, channels: Number
    ) -> tuple[nn.Module, Number, nn.Module | None]:
        """The head, the number of features for the classifier, and the layer after pooling."""
        head = Head() if row is None else read_row(Head, row, "the head")
        if head.features is None:
            return nn.Identity(), head.mix or channels, self._mix(channels, head.mix)
        width = self._scale(head.features)
        made: nn.Module
        if isinstance(channels, int):
            made = self._op("conv_k1", channels, width, 1)
        else:
            made = ElasticConv(Site(channels, width, 1, self.ndim, self.activation), 1)
        return made, head.mix or width, self._mix(width, head.mix)

    def _mix(self, channels: Number, features: int | None) -> nn.Module | None:
        if features is None:
            return None
        return nn.Sequential(_linear(channels, features, False), act(self.activation or "relu"))

    def _blocks(
        self, table: Sequence[Stage], widths: Sequence[Number], channels: Number
    ) -> Iterator[tuple[str, nn.Module]]:
        for s, (stage, width) in enumerate(zip(table, widths, strict=True)):
            depth = elastic(stage.depth or stage.repeat)
            block = self._maker(stage, width, depth, s)
            made = {}
            for b in range(stage.blocks):
                made[f"b{b}"] = block(channels, stage.stride if b == 0 else 1, b)
                channels = width
            if isinstance(depth, Elastic):
                yield f"s{s}", ElasticDepth(made, depth)
            else:
                yield from ((f"s{s}{b}", block) for b, block in made.items())

    def _maker(
        self, stage: Stage, width: Number, depth: Number, s: int
    ) -> Callable[[Number, int, int], nn.Module]:
        """The function that makes a block of stage s: (channels, stride, number) -> block."""
        if stage.shared:
            activation = stage.activation or self.activation
            own = SharedChoices(stage, width, self.ndim, activation, f"stage {s}")
            self.shared[f"s{s}"] = own.modules(depth)
            return lambda channels, stride, b: own.block(channels, stride)
        self._check_ops(stage, width, f"stage {s}")
        where = f"stage {s}, block "
        return lambda channels, stride, b: self._block(
            stage, channels, width, stride, where + str(b)
        )

    def _width(self, channels: int | Sequence[int]) -> Number:
        """The channels of a stage: a number, or several scaled ones that are searched."""
        numbers = [channels] if isinstance(channels, int) else channels
        return elastic(sorted({self._scale(number) for number in numbers}))

    def _check_ops(self, stage: Stage, width: Number, where: str) -> None:
        # Only the shape of a first block is a reason to leave an op out without a word.
        for op in stage.ops:
            if reason := misfit(op, width, width, 1, self.ndim):
                raise UserError(f"{where}: {reason}")

    def _block(
        self, stage: Stage, in_channels: Number, out_channels: Number, stride: int, where: str
    ) -> nn.Module:
        site, names = (in_channels, out_channels, stride), list(stage.ops)
        fitting = {
            name: self._op(name, *site, stage.activation)
            for name in names
            if op_exclusion_reason(name, *site, self.ndim) is None
        }
        if not fitting:
            reason = op_exclusion_reason(names[0], *site, self.ndim)
            raise UserError(f"{where}: none of {names} can stand here ({reason})")
        if len(fitting) == 1:
            return next(iter(fitting.values()))
        return ChoiceBlock(fitting)

    def _op(
        self,
        name: str,
        in_channels: Number,
        out_channels: Number,
        stride: int,
        activation: str | None = None,
    ) -> nn.Module:
        chosen = activation or self.activation
        return build_op(name, in_channels, out_channels, stride, self.ndim, chosen)

    def _scale(self, channels: int) -> int:
        return self.divisor * max(1, round(channels * self.width / self.divisor))


def _linear(inputs: Number, outputs: int, bias: bool = True) -> nn.Module:
    """A linear layer whose inputs may be searched."""
    make = partial(nn.Linear, bias=bias)
    return make(inputs, outputs) if isinstance(inputs, int) else ElasticWidth(make, inputs, outputs)


def _first(
    site: Site[int], kernel: Sequence[int], pads: Sequence[int], inputs: int, outputs: int
) -> Stack:
    """A convolution of any kernel, BatchNorm and activation."""
    make: Any = CONV[site.ndim]
    conv = make(inputs, outputs, kernel, site.stride, pads, bias=False)
    return Stack(conv, site.norm(outputs), site.act())


def _padding(side: int, kernel: int, stride: int) -> int:
    """Before and behind a side of n, so that ``ceil(n / stride)`` positions come out."""
    if kernel % 2:
        return kernel // 2
    return max(0, -(-((-(-side // stride) - 1) * stride + kernel - side) // 2))
