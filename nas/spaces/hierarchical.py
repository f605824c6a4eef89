"""Stages whose blocks are all alike: their choices are made once (Tan et al. 2019, MnasNet)."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from nas.errors import UserError
from nas.ops.blocks import Residual, Zero
from nas.ops.catalogue import build, obstacle
from nas.ops.elastic import Elastic, Number, options_of
from nas.ops.elastic_width import ElasticWidth
from nas.spaces.table import Stage
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relaxed import Shared


class Skipping(nn.Module):
    """``op(x) + skip(x)``."""

    def __init__(self, op: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.op, self.skip = op, skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x) + self.skip(x)
        return y


class SharedChoices:
    """The decisions of one stage, and the blocks that carry them out.

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
        self.forms, self.factors = dict(stage.ops), dict(stage.factors or {})
        self.width, self.ndim, self.activation = width, ndim, activation
        self.skip = tuple(stage.skip or ())
        labels = {"op": self.forms, **self.factors, "skip": self.skip}
        self.leads = {key: Shared(tuple(own)) for key, own in labels.items() if len(own) > 1}
        self._check(where)

    def modules(self, depth: Number) -> nn.ModuleDict:
        """The decisions, for the place in the model that names them."""
        numbers = {"channels": self.width, "depth": depth}
        searched = {key: n for key, n in numbers.items() if isinstance(n, Elastic)}
        return nn.ModuleDict({**self.leads, **searched})

    def block(self, in_channels: Number, stride: int) -> nn.Module:
        """A block of the stage, the first where the channels or the size change."""
        made = self._pick("op", {}, in_channels, stride)
        if not self.skip or stride != 1 or in_channels is not self.width:
            return made
        return Skipping(made, self._skips())

    def _pick(
        self, key: str, taken: Mapping[str, str], in_channels: Number, stride: int
    ) -> nn.Module:
        """A choice among what `key` may be, of choices among what comes after it."""
        keys = ["op", *self.factors]
        after = keys[keys.index(key) + 1 :]
        labels = self.forms if key == "op" else self.factors[key]
        made = {}
        for label, text in labels.items():
            now = {**taken, key: str(text)}
            if after:
                made[label] = self._pick(after[0], now, in_channels, stride)
            else:
                made[label] = self._op(_name(now), in_channels, stride)
        return ChoiceBlock(made, lead=self.leads[key]) if len(made) > 1 else made[label]

    def _op(self, name: str, in_channels: Number, stride: int) -> nn.Module:
        make = partial(_plain, name, stride, self.ndim, self.activation, bool(self.skip))
        if isinstance(in_channels, int) and isinstance(self.width, int):
            return make(in_channels, self.width)
        return ElasticWidth(make, in_channels, self.width)

    def _skips(self) -> nn.Module:
        # What can be added to an op's output is the same for any number of channels.
        channels = options_of(self.width)[-1]
        made = {
            name: Zero(None, 1) if name == "none" else build(name, channels, channels, 1, self.ndim)
            for name in self.skip
        }
        if len(made) > 1:
            return ChoiceBlock(made, lead=self.leads["skip"])
        return next(iter(made.values()))

    def _names(self) -> Iterator[str]:
        """Every name that the stage's op may have."""
        found: list[dict[str, str]] = [{"op": form} for form in self.forms.values()]
        for key, labels in self.factors.items():
            found = [{**taken, key: str(text)} for taken in found for text in labels.values()]
        return map(_name, found)

    def _check(self, where: str) -> None:
        channels = options_of(self.width)[-1]
        for name in self._names():
            sides = (channels + 1, channels, 2)  # a first block may change both
            _refuse(_obstacle(name, *sides, self.ndim), where)
        for name in self.skip:
            if name != "none":
                _refuse(_obstacle(name, channels, channels, 1, self.ndim), where)
                if any(True for _ in build(name, channels, channels, 1, self.ndim).parameters()):
                    _refuse(
                        f"skip {name!r} has weights; there are none, identity, avgpool_k3", where
                    )


def _plain(
    name: str,
    stride: int,
    ndim: int,
    activation: str | None,
    bare: bool,
    in_channels: int,
    out_channels: int,
) -> nn.Module:
    """The op of that name, without the residual of its own where it is `bare`."""
    made = build(name, in_channels, out_channels, stride, ndim, activation)
    return made.branch if bare and isinstance(made, Residual) else made


def _name(taken: Mapping[str, str]) -> str:
    form = taken["op"]
    for key, text in taken.items():
        form = form.replace(f"{{{key}}}", text)
    return form


def _obstacle(*site: Any) -> str | None:
    try:
        return obstacle(*site)
    except UserError as error:
        return str(error)


def _refuse(reason: str | None, where: str) -> None:
    if reason is not None:
        raise UserError(f"{where}: {reason}")
