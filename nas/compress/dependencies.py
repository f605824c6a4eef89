"""Which channels of a network must go together, found by running it once without memory."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nas.compress.atoms import FIXED, Places
from nas.compress.labels import Labels
from nas.compress.modules import computed
from nas.compress.operators import follow
from nas.cost.dry_run import Inputs, dry_run
from nas.cost.shapes import run_operator
from nas.decision import Decision
from nas.errors import UserError
from nas.inputs import run

# Names under which modules of attention keep how many heads they have.
HEADS = ("num_heads", "heads", "n_heads", "n_head", "nhead", "num_attention_heads")


@dataclass(frozen=True)
class Cut:
    """A dimension of a tensor of a layer, of which a group's units take parts.

    Attributes:
        layer: path of the module.
        tensor: name of its parameter or buffer.
        units: for each index along the dimension the unit that it goes with, FIXED: it stays.
        reads: a product of the layer sums over it; else the layer makes it, or passes it on.
    """

    layer: str
    tensor: str
    dim: int
    units: Places
    reads: bool


@dataclass(frozen=True)
class Group:
    """Units of channels that are cut in the same tensors: any of them may go, in any order.

    Attributes:
        cuts: the dimensions that they are cut from.
        units: how many there are.
        why: the reason why all of them stay; None: they need not.
        hosts: paths of modules that know how many units there are: heads of attention.
        inputs: the dimensions in which layers are given them.
    """

    cuts: tuple[Cut, ...]
    units: int
    why: str | None
    hosts: tuple[str, ...] = ()
    inputs: tuple[Cut, ...] = ()

    @property
    def makers(self) -> tuple[str, ...]:
        """The layers that make these channels, or pass them on."""
        return tuple(dict.fromkeys(cut.layer for cut in self.cuts if not cut.reads))

    @property
    def width(self) -> int:
        """Channels of a unit, as the layer that makes them counts; heads are counted as such."""
        if self.hosts:
            return 1
        own = [cut for cut in self.cuts if not cut.reads] or self.cuts
        return int((own[0].units == own[0].units[own[0].units >= 0][0]).sum())


def groups_of(model: nn.Module, inputs: Inputs, excluded: Collection[str] = ()) -> list[Group]:
    """The groups of channels of `model`, in the order of its modules.

    Args:
        excluded: paths of modules that stay whole where their code depends on the values of data.

    Raises:
        UserError: the forward pass fails, or depends on the values of data in another module.
    """
    found: list[Group] = dry_run(model, inputs, partial(_analysed, excluded=excluded))
    return found


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = labels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = run_operator(func, args, kwargs or {})
        follow(self.labels, func, args, kwargs or {}, out)
        return out


def _analysed(model: nn.Module, inputs: Inputs, excluded: Collection[str]) -> list[Group]:
    labels, owners = Labels(), _owners(model)
    atoms: dict[tuple[str, str, int], Places] = {}
    for (path, name), (tensor, why) in owners.items():
        # Kernels are no channels.
        rank = 2 if isinstance(model.get_submodule(path), _ConvNd) else tensor.ndim
        sizes = enumerate(tensor.shape[:rank])
        dims = {d: labels.atoms.new(size) for d, size in sizes if size > 1}
        atoms |= {(path, name, d): places for d, places in dims.items()}
        labels.give(tensor, dims)
        for places in dims.values():
            if why is not None:
                labels.atoms.fix(places, why)
    calls: dict[str, list[Any]] = {path: [] for path in excluded}
    ran = _run(model.eval(), inputs, labels, calls)
    for module, line in labels.asked.items():
        whole = _excluded(module, line, excluded, model)
        why = f"{whole} depends on the values of data ({line})"
        for x in tree_leaves(calls[whole]):
            labels.atoms.fix_all(labels.of(x).values(), why)
        inside = [places for (path, _, _), places in atoms.items() if _is_in(path, whole)]
        labels.atoms.fix_all(inside, why)
    holders = {path for path, _, _ in atoms}
    if holders - ran:
        # E.g. classifiers that only help in training. What they read must go with the rest.
        with suppress(Exception):
            ran |= _run(model.train(), tree_map(_twice, inputs), labels, {})
    for (path, _, _), places in atoms.items():
        if path not in ran:
            labels.atoms.fix(places, f"{path} is not called, so that nobody knows what it reads")
    buffers = {key for key, (tensor, _) in owners.items() if not isinstance(tensor, nn.Parameter)}
    return list(_grouped(labels, atoms, buffers))


def _is_in(path: str, whole: str) -> bool:
    return f"{path}.".startswith(f"{whole}.")


def _excluded(module: str, line: str, excluded: Collection[str], model: nn.Module) -> str:
    """The excluded module that `module`, whose code depends on the values of data, is in.

    Raises:
        UserError: there is none.
    """
    for whole in sorted(excluded, key=len):
        if whole and _is_in(module, whole):
            return whole
    how = (
        f"exclude it, space.rules.exclude=[{module}], and it stays whole"
        if module
        else "put that part into a module of its own and exclude that, space.rules.exclude=[PATH]"
    )
    raise UserError(
        f"{f'{type(model).__name__}.{module}'.rstrip('.')} depends on the values of its data "
        f"({line}), so that nobody knows which of its layers read which channels: {how}"
    )


def _twice(x: Any) -> Any:
    """A batch of two, as norms in training need."""
    return torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim else x


def _owners(model: nn.Module) -> dict[tuple[str, str], tuple[Tensor, str | None]]:
    """Path and name of each tensor, once, and why it must stay whole."""
    found: dict[tuple[str, str], tuple[Tensor, str | None]] = {}
    first: dict[int, tuple[str, str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Decision):
            continue  # its alpha is in no network
        inner = any(True for child in module.children() for _ in _tensors(child, True))
        for name, tensor in _tensors(module, False):
            key = (path, name)
            # What computes a weight before each call leaves it beside the parameters.
            why = computed(module) if "weight" in vars(module) else None
            if inner:
                why = f"{'.'.join(filter(None, key))} is held by no layer"
            elif id(tensor) in first:
                other = first[id(tensor)]
                why = f"{'.'.join(key)} and {'.'.join(other)} are one tensor"
                found[other] = tensor, why
                continue
            first[id(tensor)] = key
            found[key] = tensor, why
    return found


def _tensors(module: nn.Module, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(recurse=recurse), module.named_buffers(recurse=recurse))


def _run(
    model: nn.Module, inputs: Inputs, labels: Labels, calls: Mapping[str, list[Any]]
) -> set[str]:
    """Follow one forward pass; the paths of the modules that it has called.

    Args:
        calls: path -> what the module is called with and gives is added to that.
    """
    paths: list[str] = []
    called: set[str] = set()

    def enter(path: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            paths.append(path)
            called.add(path)
            visit()
            labels.inputs.setdefault(path, labels.of(next(iter(args), None)))
            if path in calls:
                calls[path].append((args, kwargs))

        return hook

    def leave(_: Any, args: Any, out: Any) -> None:
        if (path := paths.pop()) in calls:
            calls[path].append(out)
        visit()

    def visit() -> None:
        labels.where = paths[-1] if paths else ""
        own = vars(model.get_submodule(labels.where))
        labels.heads = {own[name] for name in HEADS if isinstance(own.get(name), int)}

    labels.mark([x for x in tree_leaves(inputs) if isinstance(x, Tensor)])
    with ExitStack() as stack, torch.no_grad():
        for path, module in model.named_modules():
            for handle in (
                module.register_forward_pre_hook(enter(path), with_kwargs=True),
                module.register_forward_hook(leave),
            ):
                stack.callback(handle.remove)
        stack.enter_context(_Following(labels))
        out = run(model, inputs)
    for x in tree_leaves(out):
        labels.fix(x, None, "the outputs are fixed")
    return called


def _grouped(
    labels: Labels,
    atoms: Mapping[tuple[str, str, int], Places],
    buffers: Collection[tuple[str, str]],
) -> Iterator[Group]:
    """Units that are cut from the same dimensions, equally often from each."""
    units, reasons = labels.atoms.units()
    read = set(np.concatenate([np.zeros(0, np.int64), *labels.read]).tolist())
    touched: dict[int, list[tuple[int, int]]] = defaultdict(list)  # unit -> dimensions, how often
    keys = list(atoms)
    for index, key in enumerate(keys):
        for unit, count in zip(*np.unique(units[atoms[key]], return_counts=True), strict=True):
            touched[int(unit)].append((index, int(count)))
    given = {
        (path, "", dim): np.where(own < 0, len(reasons), units[own])
        for path, dims in labels.inputs.items()
        for dim, own in dims.items()
    }
    taking: dict[int, list[tuple[str, str, int]]] = defaultdict(list)  # unit -> inputs of layers
    for input_, own_units in given.items():
        for unit in set(own_units.tolist()):
            taking[unit].append(input_)
    alike: dict[Any, list[int]] = defaultdict(list)
    for unit, dims in touched.items():
        alike[tuple(dims), reasons[unit]].append(unit)
    for (dims, why), members in alike.items():
        number = np.full(len(reasons) + 1, FIXED)
        number[sorted(members)] = np.arange(len(members))
        cuts = []
        for index, _ in dims:
            (layer, tensor, dim), places = keys[index], atoms[keys[index]]
            reads = bool(read & set(places.tolist()))
            cuts.append(Cut(layer, tensor, dim, number[units[places]], reads))
        reached = dict.fromkeys(key for unit in members for key in taking[unit])
        inputs = tuple(Cut(*key, number[given[key]], True) for key in reached)
        own = set(members)
        hosts = [path for path, several in labels.hosts.items() if own & _units(units, several)]
        if why is None and len(members) == 1:
            why = "all of these channels go together"
        if why is None and all(keys[index][:2] in buffers for index, _ in dims):
            why = "the outputs do not depend on them"
        yield Group(tuple(cuts), len(members), why, tuple(hosts), inputs)


def _units(units: Places, several: Sequence[Places]) -> set[int]:
    found = np.concatenate(several)
    return set(units[found[found >= 0]].tolist())
