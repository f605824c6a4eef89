"""Progressive shrinking: from the largest network alone to networks of every size, in phases."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.cost.base import Expected
from nas.cost.programme import Programme
from nas.decision import Decision, decisions
from nas.errors import UserError
from nas.search.schemes import Loss
from nas.values import Count, NonNegative, Positive, checked

PHASES = "search.phases"
KINDS = ("kernel", "depth", "expand", "channels", "resolution", "ops")


@checked(PHASES)
@dataclass(frozen=True)
class Phase:
    """Some epochs in which the decisions of some kinds may shrink.

    Args:
        epochs: of this phase.
        open: kind of decision (one of `KINDS`) -> how many of its options are sampled from, the
            largest ones, or "all"; every other decision stays at its largest option.
        subnets: networks in a step, whose gradients add up.
        lr: multiplies the optimizer's rate.
        warmup_epochs: linear warm-up at the start of the phase.
    """

    epochs: Count
    open: Mapping[str, Count | Literal["all"]] = field(default_factory=dict)
    subnets: Count = 1
    lr: Positive = 1.0
    warmup_epochs: NonNegative = 0.0


def read_phases(rows: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """The phases as a user writes them.

    Raises:
        UserError: no phase, an unknown key or kind, or a number out of its range.
    """
    if isinstance(rows, str | Mapping) or not rows:
        raise UserError(f"search.phases must be a list of at least one phase, got {rows!r}")
    return [_read(row, f"{PHASES}[{i}]") for i, row in enumerate(rows)]


def _read(row: Mapping[str, Any], where: str) -> Phase:
    known = [entry.name for entry in fields(Phase)]
    if not isinstance(row, Mapping):
        raise UserError(f"{where}={row!r} must be a mapping with keys of {known}")
    for key in row:
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}{_hint(key, known)}")
    if "epochs" not in row:
        raise UserError(f"{where} lacks the key 'epochs', got only {list(row)}")
    try:
        phase = Phase(**row)
    except UserError as error:
        raise UserError(f"{where}{str(error).removeprefix(PHASES)}") from None
    for kind in phase.open:
        if kind not in KINDS:
            raise UserError(f"{where}.open: no kind of decision {kind!r}{_hint(kind, KINDS)}")
    return phase


def _hint(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; there are {list(known)}"


def kind_of(name: str, decision: Decision) -> str:
    """What a decision is about: one of `KINDS`, from its place in the model."""
    if not decision.ordered:
        return "ops"
    last = name.rpartition(".")[2]
    return "channels" if last in ("in_channels", "out_channels") else last


@checked("search")
class Shrinking:
    """The paths of a step in each phase (Cai et al. 2020, Section 3.3), a `Scheme`.

    Where nothing is open, the largest network learns from the labels. Then each sampled network
    learns from the labels and, `distill` times, from the largest one as it was before:
    ``CE(y, labels) + distill * CE(y, softmax(teacher))``.

    Args:
        cost: that tells the largest of the options that have no order.
    """

    def __init__(
        self, phases: Sequence[Phase], distill: NonNegative = 1.0, cost: str = "macs"
    ) -> None:
        self.phases, self.distill, self.cost = tuple(phases), distill, cost
        self.phase = self.phases[0]
        self.taught: Tensor | None = None  # logits of the teacher on the batch of this step

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        if self.cost not in costs:
            raise UserError(f"search.cost={self.cost} is not one of {sorted(costs)}")
        self.own = dict(decisions(supernet))
        kinds = {kind_of(name, decision) for name, decision in self.own.items()}
        for phase in self.phases:
            for kind in phase.open:
                if kind not in kinds:
                    raise UserError(
                        f"search.phases opens {kind!r}, but the space has no such decision, only "
                        f"{sorted(kinds)}: take an elastic space (space=ofa_mobilenet_small) or "
                        "phases of what there is"
                    )
        self.largest = self._largest(costs[self.cost])

    def _largest(self, cost: Expected) -> dict[str, Any]:
        found = Programme(cost.options).maximise(cost.constraints)
        assert found is not None  # without limits every programme has a solution
        best = {name: -1 if d.ordered else found.choices[name] for name, d in self.own.items()}
        return {name: d.options[best[name]] for name, d in self.own.items()}

    def epoch(self) -> None:
        """Nothing to forget: what is drawn depends on the epoch's generator alone."""

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        if not self.phase.open:
            self._choose(self.largest)
            yield loss
            return

        def taught(logits: Tensor) -> Tensor:
            total = loss(logits)
            if self.taught is None:
                return total
            return total + self.distill * F.cross_entropy(logits, self.taught.softmax(-1))

        for _ in range(self.phase.subnets):
            self._choose({n: self._draw(n, d, generator) for n, d in self.own.items()})
            yield taught

    def _draw(self, name: str, decision: Decision, generator: torch.Generator) -> Any:
        count = self.phase.open.get(kind_of(name, decision), 1)
        if count == 1:
            return self.largest[name]
        options = decision.options
        if decision.ordered and isinstance(count, int):
            options = options[-count:]
        return options[int(torch.randint(len(options), (), generator=generator))]

    def _choose(self, choices: Mapping[str, Any]) -> None:
        for name, decision in self.own.items():
            decision.choose(choices[name])
