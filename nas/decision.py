"""`Decision`: one searchable thing, and the functions that act on all decisions of a model."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nas.arch import Arch, Option
from nas.errors import UserError

_STATE = ("alpha", "noise", "tau", "open")


class Searchable(nn.Module):
    """A module that becomes another plain module for each combination of its decisions' options."""

    # Whether its submodules are used as they are: others slice the weights of theirs.
    keeps_parts: ClassVar[bool] = False

    channel_dim = 1  # the dimension of its input that `in_channels_used` speaks of

    def decisions(self) -> Sequence["Decision"]:
        """The decisions whose options determine the plain module, each once."""
        raise NotImplementedError

    def materialize(self, options: Mapping["Decision", Option]) -> nn.Module:
        """The module that takes this one's place under `options`.

        It may contain modules or weights of the supernet; `nas.discretization` copies it.
        """
        raise NotImplementedError

    def in_channels_used(self, options: Mapping["Decision", Option]) -> int | None:
        """How many channels of its input, from the first, it uses under `options`; None: all."""
        return None

    def combinations(self) -> Iterator[dict["Decision", Option]]:
        """Every combination of options of its decisions."""
        own = self.decisions()
        for options in product(*(decision.options for decision in own)):
            yield dict(zip(own, options, strict=True))


class Decision(Searchable):
    """Base of everything that is searched: options, logits over them, and the weights in use.

    Subclasses define `theta` and `discretize`; the state that theta is computed from (`alpha`,
    `noise`, `tau`, `open`) lives here, so that a checkpoint holds all of it.

    Several modules may stand for one decision, as the repeated cells of DARTS do: all but one are
    tied to that one; they have no state of their own and take the same option.

    Args:
        options: the names of the alternatives, in the order of `alpha`.
        tied_to: the decision whose state this one uses, of the same options; None: its own state.

    Raises:
        UserError: `tied_to` has other options.

    Shapes: alpha, noise, open, theta ``(K,)``; tau ``()``.
    """

    keeps_parts = True
    derived: ClassVar[bool] = False  # alpha is computed from other decisions, and not trained
    noise: Tensor  # added to alpha; zero unless the relaxation draws some
    tau: Tensor
    open: Tensor  # bool; a closed option has theta exactly 0
    ordered = False  # whether the first option is the smallest network and the last the largest

    def __init__(self, options: Sequence[Option], tied_to: "Decision | None" = None) -> None:
        super().__init__()
        self.options = tuple(options)
        # In a tuple, so that it is no submodule of the modules tied to it.
        self._tied_to = None if tied_to is None else (tied_to.tied_to,)
        # Set on a private copy by `nas.cost.trace`: run every option, whatever theta is.
        self.unrolled = False
        if tied_to is not None:
            if tied_to.options != self.options:
                raise UserError(
                    f"blocks that share a decision must offer the same options, but one has "
                    f"{list(self.options)} and the other {list(tied_to.options)}"
                )
            return
        if not self.derived:
            self.alpha = nn.Parameter(torch.zeros(len(self.options)))
        self.register_buffer("noise", torch.zeros(len(self.options)))
        self.register_buffer("tau", torch.ones(()))
        self.register_buffer("open", torch.ones(len(self.options), dtype=torch.bool))

    @property
    def tied_to(self) -> "Decision":
        """The decision whose state this one uses; itself where it has its own."""
        return self if self._tied_to is None else self._tied_to[0]

    def __getattr__(self, name: str) -> Any:
        # Called only for what is no attribute: the state, where the module is tied to another.
        if name in _STATE and self._tied_to is not None:
            return getattr(self._tied_to[0], name)
        return super().__getattr__(name)

    @property
    def logits(self) -> Tensor:
        """``(alpha + noise) / tau`` in float32, -inf where an option is closed."""
        return (self.drawn() / self.tau).masked_fill(~self.open, -torch.inf)

    def drawn(self) -> Tensor:
        """``alpha + noise`` in float32 ``(K,)``, which `tau` divides."""
        # Under autocast the rest may be half precision; a softmax of alphas may not.
        return self.alpha.float() + self.noise

    @property
    def theta(self) -> Tensor:
        """Mixing weights ``(K,)``, the same for the forward pass and for the cost."""
        raise NotImplementedError

    def resample(self, generator: torch.Generator | None = None) -> None:
        """Draw the noise of the next step; nothing where the relaxation has none."""

    def choose(self, option: Option) -> None:
        """Keep one option: theta becomes exactly one-hot until `free`.

        Raises:
            UserError: no such option.
        """
        if option not in self.options:
            raise UserError(f"no option {option!r} here, only {list(self.options)}")
        keep = self.options.index(option)
        self.open.copy_(torch.arange(len(self.options)) == keep)
        self.noise.zero_()

    def free(self) -> None:
        """Open all options again and forget the last draw."""
        self.open.fill_(True)
        self.noise.zero_()

    def best(self) -> Option:
        """The open option of the largest alpha: from alpha, as theta carries the last draw."""
        scores = self.alpha.detach().float().masked_fill(~self.open, -torch.inf)
        return self.options[int(scores.argmax())]

    def active_if(self) -> Mapping[Option, nn.Module]:
        """Option -> the module that is in the network only if that option is taken.

        Empty for a number, which other modules read.
        """
        raise NotImplementedError

    def decisions(self) -> Sequence["Decision"]:
        return (self.tied_to,) if self.active_if() else ()

    def materialize(self, options: Mapping["Decision", Option]) -> nn.Module:
        return self.active_if()[options[self.tied_to]]

    def discretize(self) -> nn.Module:
        """The module that takes this one's place under `best()`, weights shared."""
        return self.active_if()[self.best()]


def decisions(model: nn.Module) -> Iterator[tuple[str, Decision]]:
    """Name and decision, each decision once, named by the first path that leads to it.

    Modules that are tied to a decision count as that one.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> [(name, decision.options) for name, decision in nas.decisions(supernet)]
        [('0', ('linear', 'skip'))]
    """
    seen = set()
    for name, site in sites(model):
        if id(site.tied_to) not in seen:
            seen.add(id(site.tied_to))
            yield name, site.tied_to


def sites(model: nn.Module) -> Iterator[tuple[str, Decision]]:
    """Path and module of every decision, those that are tied to another one included."""
    for name, module in model.named_modules():
        if isinstance(module, Decision):
            yield name, module


def apply(model: nn.Module, arch: Arch) -> None:
    """Choose in every decision of `model` what `arch` says.

    Raises:
        UserError: `arch` is of another space, or lacks, or has more than, the model's decisions.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> nas.apply(supernet, nas.Arch("mine", {"0": "skip"}))
        >>> block.theta.tolist()
        [0.0, 1.0]
    """
    own = dict(decisions(model))
    space = getattr(model, "name", None)
    if isinstance(space, str) and space != arch.space:
        raise UserError(
            f"the architecture is of space {arch.space!r}, this supernet is {space!r}: "
            f"build the space it names (space={arch.space})"
        )
    missing, unknown = sorted(own.keys() - arch.choices), sorted(arch.choices.keys() - own)
    if missing or unknown:
        raise UserError(
            f"the architecture (space {arch.space!r}) does not fit this supernet: "
            f"it lacks the decisions {missing} and has unknown ones {unknown}"
        )
    for name, decision in own.items():
        try:
            decision.choose(arch.choices[name])
        except UserError as error:
            raise UserError(f"decision {name!r}: {error}") from None


def free(model: nn.Module) -> None:
    """Open every option of every decision.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> block.choose("skip")
        >>> nas.free(supernet)
        >>> block.theta.tolist()
        [0.5, 0.5]
    """
    for _, decision in decisions(model):
        decision.free()


def resample(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw anew in every decision, in the order of the modules.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()}, gumbel=True)
        >>> before = block.theta.tolist()
        >>> nas.resample(block)
        >>> block.theta.tolist() == before
        False
    """
    for _, decision in decisions(model):
        decision.resample(generator)


def sample_path(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Choose one option of every decision, all with the same probability.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> nas.sample_path(supernet)
        >>> sorted(block.theta.tolist())
        [0.0, 1.0]
    """
    for _, decision in decisions(model):
        pick = torch.randint(len(decision.options), (), generator=generator)
        decision.choose(decision.options[int(pick)])


class SplitParameters(NamedTuple):
    """Parameters by the optimizer they belong to."""

    weights: list[nn.Parameter]
    alphas: list[nn.Parameter]


def split_parameters(model: nn.Module) -> SplitParameters:
    """Network weights and architecture logits, each once, in the order of the modules.

    Weights that are fixed (``requires_grad=False``) are left out.

    Raises:
        UserError: a lazy module has no weights yet.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> weights, alphas = nas.split_parameters(supernet)
        >>> len(weights), alphas[0] is block.alpha
        (4, True)
    """
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise UserError(
            f"the lazy parameters {lazy} are not made yet: call nas.trace(model, example) first, "
            "which runs every candidate once"
        )
    # dict, not set: optimizer state is saved by position, and a set of tensors iterates in
    # memory-address order, so a resumed run would give alphas each other's Adam moments.
    alphas = dict.fromkeys(d.alpha for _, d in decisions(model) if not d.derived)
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    weights = [parameter for parameter in trained if parameter not in alphas]
    return SplitParameters(weights, list(alphas))
