"""The peak of live memory of a plain network, found by running it node by node.

Independent of `nas.cost`: torch.fx gives the nodes (a module of `torch.nn` is one), storages tell
which tensors are one buffer, and each buffer is there from the node that makes it to the last that
reads it. Tensors are row-major: a view that is not is a copy.
"""

import operator
from dataclasses import dataclass, field
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from nas.ops.blocks import ChannelShuffle, Zero

# Nodes that may write over what they read.
OVER_MODULES = (
    _BatchNorm, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Sigmoid, nn.PReLU, nn.GELU,
)  # fmt: skip
OVER_CALLS = {"relu", "sigmoid", "tanh", torch.relu, F.relu, F.gelu, torch.sigmoid, torch.exp}
ARITHMETIC = {operator.add, operator.mul, operator.sub, torch.add, torch.mul}  # with a constant


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # These unpack the shape of their input, which torch.fx cannot follow.
        return isinstance(m, Zero | ChannelShuffle) or super().is_leaf_module(
            m, module_qualified_name
        )


@dataclass
class Moment:
    reads: list[int]
    makes: list[int] = field(default_factory=list)
    over: bool = False


class Player(fx.Interpreter):
    """Runs `network` and keeps every storage, to tell one from another."""

    def __init__(self, network: nn.Module) -> None:
        graph = Tracer().trace(network)
        super().__init__(fx.GraphModule(network, graph), garbage_collect_values=False)
        self.moments: list[Moment] = []
        self.sizes: dict[int, int] = {}  # activation -> elements
        self.storages: list[object] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        if n.op == "placeholder":
            self.inputs += self.new(out)
            return out
        if n.op == "output":
            self.outputs = self.known(out)
            return out
        if n.op == "get_attr":
            return out
        return self.note(n, tree_leaves(self.fetch_args_kwargs_from_env(n)), out)

    def note(self, n: fx.Node, given: list[object], out: object) -> object:
        reads, old = self.known(given), {key(x) for x in given if isinstance(x, Tensor)}
        fresh = [x for x in tree_leaves(out) if isinstance(x, Tensor) and key(x) not in old]
        if fresh:
            out = tree_map(row_major, out)
            over = len(reads) == 1 and self.may_overwrite(n)
            self.moments.append(Moment(reads, self.new(out), over))
        elif self.in_place(n):
            self.moments.append(Moment(reads))
        elif reads:
            copied = tree_map(row_major, out)
            for before, after in zip(tree_leaves(out), tree_leaves(copied), strict=True):
                if before is not after:
                    self.moments.append(Moment(self.known(before), self.new(after)))
            return copied
        return out

    def may_overwrite(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return isinstance(self.fetch_attr(n.target), OVER_MODULES)
        return n.target in OVER_CALLS | ARITHMETIC

    def in_place(self, n: fx.Node) -> bool:
        if n.op == "call_module":
            return getattr(self.fetch_attr(n.target), "inplace", False)
        return (n.op == "call_method" and n.target.endswith("_")) or n.target is operator.iadd

    def known(self, value: object) -> list[int]:
        found = (key(x) for x in tree_leaves(value) if isinstance(x, Tensor))
        return [k for k in found if k in self.sizes]

    def new(self, value: object) -> list[int]:
        made = []
        for x in tree_leaves(value):
            if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim == 0:
                continue
            if key(x) not in self.sizes:
                self.storages.append(x.untyped_storage())
                self.sizes[key(x)] = x.untyped_storage().nbytes() // x.element_size()
                made.append(key(x))
        return made


def key(x: Tensor) -> int:
    return x.untyped_storage().data_ptr() or id(x.untyped_storage())


def row_major(x: object) -> object:
    if not isinstance(x, Tensor) or x.is_contiguous() or 0 in x.stride():
        return x
    return x.contiguous()


def peak(network: nn.Module, *inputs: Tensor, fuse: bool = True, bits: int = 32) -> int:
    """Bytes of the largest set of live activations."""
    player = Player(network)
    with torch.no_grad():
        player.run(*(x.clone() for x in inputs))
    return _peak(player, fuse, bits)


def _peak(player: Player, fuse: bool, bits: int) -> int:
    born = dict.fromkeys(player.inputs, -1)
    dies: dict[int, float] = {}
    for now, moment in enumerate(player.moments):
        born.update(dict.fromkeys(moment.makes, now))
        dies.update(dict.fromkeys(moment.reads + moment.makes, now))
    dies.update(dict.fromkeys(player.outputs, inf))

    place = {buffer: buffer for buffer in born}  # buffers at one place share its memory
    for now, moment in enumerate(player.moments):
        if fuse and moment.over:
            (old,), (new,) = moment.reads, moment.makes
            if dies[old] == now and player.sizes[old] == player.sizes[new]:
                place[new] = place[old]
    largest = 0
    for now in range(len(player.moments) + 1):
        here = {place[b] for b, end in dies.items() if born[b] <= now <= end}
        largest = max(largest, sum(-(-player.sizes[p] * bits // 8) for p in here))
    return largest
