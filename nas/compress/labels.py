"""Places of the tensors of one forward pass, and the registry of what operators do to them.

The places of a tensor are known for some of its dimensions, for each as one atom for each index
along it. Where a dimension has no places, nothing may be taken away from it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nas.compress.atoms import Atoms, Places
from nas.cost.activations import tensors

Dims = Mapping[int, Places]  # dimension -> its places


class Labels:
    """The places of all tensors of one forward pass.

    Attributes:
        where: path of the module that runs, for reasons.
        heads: numbers of heads of the module that runs.
        hosts: path of a module -> places of its heads.
        inputs: path of a module -> the places of what it was first given.
        read: atoms of weights over which a product sums.
        data: ids of the inputs, and of what is made of them.
        asked: path of a module that reads values of data into Python -> the line that does.
    """

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.where = ""
        self.heads: set[int] = set()
        self.hosts: dict[str, list[Places]] = defaultdict(list)
        self.inputs: dict[str, Dims] = {}
        self.read: list[Places] = []
        self.data: set[int] = set()
        self.asked: dict[str, str] = {}
        self._dims: dict[int, Dims] = {}
        self._kept: list[Tensor] = []  # so that no tensor gets the id of another

    def of(self, x: Any) -> Dims:
        """The places of a tensor; {} if it has none, or is none."""
        return self._dims.get(id(x), {})

    def give(self, x: Tensor, dims: Dims) -> None:
        """Set the places of a tensor; dimensions of size 1 have none."""
        known = {d % x.ndim: places for d, places in dims.items() if x.shape[d] > 1}
        if known or id(x) in self._dims:
            self._dims[id(x)] = known
            self._kept.append(x)

    def mark(self, made: Sequence[Tensor]) -> None:
        """Take tensors for data."""
        self.data.update(id(x) for x in made)
        self._kept += made

    def fix(self, x: Any, dims: Sequence[int] | None, why: str) -> None:
        """Nothing may be taken from these dimensions of x; None: from any."""
        for d, places in self.of(x).items():
            if dims is None or d in dims:
                self.atoms.fix(places, f"{why} in {self.where or 'the network'}")

    def tie(self, *several: Places | None) -> Places | None:
        """Tie places of one dimension of several tensors; None stands for a fixed dimension."""
        known = [places for places in several if places is not None]
        if not known:
            return None
        why = f"channels meet a constant in {self.where or 'the network'}"
        if len(known) < len(several):
            for places in known:
                self.atoms.fix(places, why)
        for places in known[1:]:
            self.atoms.tie(known[0], places, why)
        return known[0]

    def in_blocks(self, places: Places, length: int) -> Places:
        """Cut places into blocks of one length, which lose the same ones; the places of a block."""
        blocks: Places = places.reshape(-1, length)
        if length == 1:
            self.atoms.fix(places, f"channels are told apart in {self.where or 'the network'}")
        for block in blocks[1:]:
            self.tie(blocks[0], block)
        own: Places = blocks[0]
        return own


Effect = Callable[[Labels, Sequence[Any], Any], None]  # of an operator: labels, arguments, outputs
EFFECTS: dict[str, Effect] = {}  # by the operator's name


def effect_of(*names: str) -> Callable[[Effect], Effect]:
    """Register what operators of these names do."""

    def register(function: Effect) -> Effect:
        EFFECTS.update(dict.fromkeys(names, function))
        return function

    return register


def pointwise(labels: Labels, args: Sequence[Any], out: Any) -> None:
    """``y[i] = f(x[i], ...)``, broadcast."""
    outs = tensors(out)
    read = tensors(list(args))
    rank = max(x.ndim for x in outs)
    made = {}
    for d in range(-rank, 0):
        size = outs[0].shape[d]
        here = [x for x in read if x.ndim >= -d and x.shape[d] == size]
        if size > 1 and here:
            places = labels.tie(*(labels.of(x).get(x.ndim + d) for x in here))
            if places is not None:
                made[d] = places
    for y in outs:
        labels.give(y, {d: places for d, places in made.items() if -d <= y.ndim})


_POINTWISE = """
clone detach alias lift_fresh contiguous _to_copy to positive hardswish hardsigmoid _prelu_kernel
prelu log_sigmoid_forward native_dropout dropout feature_dropout rrelu_with_noise masked_fill where
copy empty_like zeros_like ones_like full_like rand_like randn_like bernoulli
"""
EFFECTS |= dict.fromkeys(_POINTWISE.split(), pointwise)
