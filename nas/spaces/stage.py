"""The rows of a staged space as a user writes them, and the shared choices of a stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from itertools import product
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field
from torch import Tensor, nn

from nas.config.schema import Count, Layers, short_repr, violation
from nas.errors import UserError
from nas.ops.blocks import Zero
from nas.quantization.network import Quantize
from nas.spaces.front import Front
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import Elastic, Number, options_of
from nas.supernet.elastic_ops import build_op, op_exclusion_reason
from nas.supernet.relax import Shared

Kernel = Annotated[int, Field(ge=1, le=999)]
Stride = Annotated[int, Field(ge=1, le=1000)]
Row = TypeVar("Row", "Stage", "Stem", "Head", Front, Quantize)


@dataclass(frozen=True)
class Stage:
    """`repeat` blocks of one width; the first has the stride and the change of channels.

    Several `channels`, or several depths in place of `repeat`, are searched; `activation` is that
    of the ops of this stage, instead of the space's.

    `ops` as a mapping, label -> form, are one decision for all blocks of the stage, and so are
    `factors`, each label -> text that stands for ``{factor}`` in the forms, and `skip`: what is
    added beside the op where the shape stays, of "none" and names of ops without weights.
    """

    ops: Sequence[str] | Mapping[str, str]
    channels: Count | Sequence[Count]
    stride: Stride = 1
    repeat: Layers = 1
    depth: Sequence[Count] | None = None
    activation: str | None = None
    factors: Mapping[str, Mapping[Any, str | int]] | None = None
    skip: Sequence[str] | None = None

    @property
    def shared(self) -> bool:
        """Whether the blocks of the stage are all alike."""
        return isinstance(self.ops, Mapping)

    @property
    def blocks(self) -> int:
        """How many blocks the supernet has here."""
        return self.depth[-1] if self.depth else self.repeat

    def faults(self) -> Iterator[str]:
        """Yield what is wrong with values that fit their types."""
        for key in ("channels", "depth"):
            value = getattr(self, key)
            if isinstance(value, Sequence) and (not value or list(value) != sorted(set(value))):
                yield f"{key}={value} must be in ascending order, e.g. [2, 3, 4]"
        if isinstance(self.ops, Mapping):
            yield from _wrong_labels("ops", self.ops)
            for name, labels in (self.factors or {}).items():
                yield from _wrong_labels(f"factor {name}", labels)
                if name in ("op", "skip", "channels", "depth"):
                    yield f"a factor cannot be called {name!r}, which is another choice"
                if not any(f"{{{name}}}" in form for form in self.ops.values()):
                    yield f"no form in ops has {{{name}}}, so this factor does nothing"
        else:
            yield from _wrong_names("ops", self.ops, "[conv_k3]")
            for key in ("factors", "skip"):
                if getattr(self, key) is not None:
                    yield f"{key} needs ops as a mapping, e.g. {{conv: conv_k3}}"
        if self.skip is not None:
            yield from _wrong_names("skip", self.skip, "[none, identity]")


@dataclass(frozen=True)
class Stem:
    """A convolution, BatchNorm and activation before the stages.

    Several `channels` are searched; None: the decision of the first stage. A `kernel` may have a
    size for each side, ``[10, 4]``, of which a sequence takes the first. `stride` "auto" is 2 for
    inputs whose shorter side is above 48, else 1.
    """

    channels: Count | Sequence[Count] | None = None
    kernel: Kernel | Sequence[Kernel] = 3
    stride: Stride | Literal["auto"] = 1


@dataclass(frozen=True)
class Head:
    """A fixed 1x1 convolution to `features` channels after the stages; None: no such layer.

    `mix`: features of a second one, without BatchNorm, after the pooling, as in MobileNetV3.
    """

    features: Count | None = None
    mix: Count | None = None


def read_stages(stages: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """Read the table of a space, one `Stage` a row.

    Raises:
        UserError: no rows, or an unknown key or a wrong value, naming the stage.
    """
    if isinstance(stages, str | Mapping) or not isinstance(stages, Sequence) or not stages:
        raise UserError(f"stages must be a list of at least one stage, got {stages!r}")
    rows = [read_row(Stage, row, f"stage {s}") for s, row in enumerate(stages)]
    for s, row in enumerate(rows):
        if row.depth is not None and "repeat" in stages[s]:
            raise UserError(f"stage {s}: give either repeat (fixed) or depth (searched), not both")
        for fault in row.faults():
            raise UserError(f"stage {s}: {fault}")
    return rows


def read_row(kind: type[Row], row: Mapping[str, Any], where: str) -> Row:
    """Read one row as a `kind`.

    Raises:
        UserError: unknown or missing key, or a wrong value; `where` begins the message.
    """
    hints = get_type_hints(kind, include_extras=True)
    if not isinstance(row, Mapping):
        raise UserError(f"{where} must be a mapping with keys of {list(hints)}, got {row!r}")
    for key, value in row.items():
        if key not in hints:
            close = get_close_matches(str(key), hints, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"{where} has an unknown key {key!r}{hint}; allowed: {list(hints)}")
        if reason := violation(value, hints[key]):
            raise UserError(f"{where}: {key}={short_repr(value)} {reason}")
    for field in fields(kind):
        if field.default is field.default_factory is MISSING and field.name not in row:
            raise UserError(f"{where} lacks the key {field.name!r}, got only {list(row)}")
    return kind(**row)


def _wrong_labels(what: str, labels: Mapping[Any, object]) -> Iterator[str]:
    if not labels:
        yield f"{what} must be a mapping of labels, e.g. {{k3: 3}}, got {labels!r}"
    texts = [str(text) for text in labels.values()]
    for label, text in labels.items():
        if not isinstance(label, str) or not label or "." in label:
            yield f"{what}: label {label!r} must be a word without a dot, e.g. k3"
        if texts.count(str(text)) > 1:
            yield f"{what}: {text!r} has more than one label"


def _wrong_names(key: str, names: Sequence[str], example: str) -> Iterator[str]:
    if not names:
        yield f"{key} must be a list of at least one name, e.g. {example}, got []"
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"{key}: {name!r} is listed more than once"


class Skipping(nn.Module):
    """``op(x) + skip(x)``."""

    def __init__(self, op: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.op, self.skip = op, skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x) + self.skip(x)
        return y


class SharedChoices:
    """The decisions and blocks of a stage whose blocks are all alike (MnasNet, Tan et al. 2019).

    The form of an op, its factors (kernel, squeeze-and-excitation, ...) and the skip beside it are
    decisions of their own; an op is looked up by the name that they make together. Where `skip`
    is searched, no op adds its input by itself, and the first block of a stage has no skip.

    Args:
        stage: its `ops` are a mapping.
        width: output channels.
        ndim: 2 for images, 1 for sequences.
        activation: of all ops, instead of each one's own.
        where: begins the message of an error.

    Raises:
        UserError: a name that is no op, or an op that cannot stand in this stage.
    """

    def __init__(
        self, stage: Stage, width: Number, ndim: int, activation: str | None, where: str
    ) -> None:
        assert isinstance(stage.ops, Mapping)
        self.labels: dict[str, Mapping[Any, object]] = {"op": stage.ops, **(stage.factors or {})}
        self.width, self.ndim, self.activation = width, ndim, activation
        self.stride = stage.stride
        self.skip = tuple(stage.skip or ())
        options = {**self.labels, "skip": self.skip}
        self.decisions = {key: Shared(tuple(own)) for key, own in options.items() if len(own) > 1}
        for fault in self._faults():
            raise UserError(f"{where}: {fault}")

    def modules(self, depth: Number) -> nn.ModuleDict:
        """The decisions, as the module of the supernet whose path names them."""
        numbers = {"channels": self.width, "depth": depth}
        searched = {key: n for key, n in numbers.items() if isinstance(n, Elastic)}
        return nn.ModuleDict({**self.decisions, **searched})

    def block(self, in_channels: Number, stride: int) -> nn.Module:
        """A block of the stage, the first where the channels or the size change."""
        made = self._pick((), in_channels, stride)
        if not self.skip or stride != 1 or in_channels is not self.width:
            return made
        return Skipping(made, self._skips())

    def _pick(self, taken: tuple[object, ...], in_channels: Number, stride: int) -> nn.Module:
        """A choice among the values of one key; its candidates choose among those of later keys."""
        if len(taken) == len(self.labels):
            return self._op(self._name(taken), in_channels, stride)
        key, labels = list(self.labels.items())[len(taken)]
        made = {
            label: self._pick((*taken, text), in_channels, stride) for label, text in labels.items()
        }
        if len(made) > 1:
            return ChoiceBlock(made, tied_to=self.decisions[key])
        return next(iter(made.values()))

    def _op(self, name: str, in_channels: Number, stride: int) -> nn.Module:
        site = (in_channels, self.width, stride, self.ndim, self.activation)
        return build_op(name, *site, bare=bool(self.skip))

    def _skips(self) -> nn.Module:
        # What can be added to an op's output is the same for any number of channels.
        channels = options_of(self.width)[-1]
        made = {
            name: Zero(None, 1)
            if name == "none"
            else build_op(name, channels, channels, 1, self.ndim)
            for name in self.skip
        }
        if len(made) > 1:
            return ChoiceBlock(made, tied_to=self.decisions["skip"])
        return next(iter(made.values()))

    def _name(self, texts: Sequence[object]) -> str:
        """The name of an op: its form with the texts of its factors filled in."""
        form, *values = texts
        name = str(form)
        for key, text in zip(list(self.labels)[1:], values, strict=True):
            name = name.replace(f"{{{key}}}", str(text))
        return name

    def _faults(self) -> Iterator[str]:
        channels = options_of(self.width)[-1]
        for texts in product(*(labels.values() for labels in self.labels.values())):
            # A first block may change both channels and size.
            site = (channels + 1, self.width, self.stride, self.ndim)
            if reason := misfit(self._name(texts), *site):
                yield reason
        for name in self.skip:
            if name == "none":
                continue
            if reason := misfit(name, channels, channels, 1, self.ndim):
                yield reason
            elif any(True for _ in build_op(name, channels, channels, 1, self.ndim).parameters()):
                yield f"skip {name!r} has weights; there are none, identity, avgpool_k3"


def misfit(
    name: str, in_channels: Number, out_channels: Number, stride: int, ndim: int
) -> str | None:
    """As `op_exclusion_reason`; also for a name that is no op's."""
    try:
        return op_exclusion_reason(name, in_channels, out_channels, stride, ndim)
    except UserError as error:
        return str(error)
