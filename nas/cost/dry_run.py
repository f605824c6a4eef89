"""A copy of a supernet that runs every option, and a run of it without the work where possible."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from nas.copying import copied
from nas.cost.polynomial import Condition
from nas.decision import Decision, Searchable, decisions, sites
from nas.discretization import outermost
from nas.errors import UserError
from nas.inputs import moved, run

T = TypeVar("T")

Example = Tensor | Sequence[Any] | Mapping[str, Any]
Inputs = tuple[Any, ...] | Mapping[str, Any]  # arguments by position, or by name
Ids = set[int]  # of modules and tensors


def inputs_of(example: Example, model: nn.Module) -> Inputs:
    """The arguments that `example`, see `nas.cost.trace.trace`, stands for.

    Raises:
        UserError: it is neither a shape nor holds a tensor.
    """
    if isinstance(example, Tensor):
        return (example,)
    if any(isinstance(leaf, Tensor) for leaf in tree_leaves(example)):
        return dict(example) if isinstance(example, Mapping) else tuple(example)
    sizes = tuple(example) if isinstance(example, Sequence) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(
            f"example={example!r} must be the shape of one sample, e.g. (3, 32, 32), an input "
            "tensor of batch size 1, a tuple of arguments, or a dict of arguments by name"
        )
    return (torch.zeros(1, *sizes, dtype=_dtype(model)),)


def _dtype(model: nn.Module) -> torch.dtype:
    """Of the first weight of floating point; alphas keep a type of their own."""
    own = {id(x) for _, site in sites(model) for x in _tensors(site, recurse=False)}
    kinds = (x.dtype for x in _tensors(model) if id(x) not in own and x.is_floating_point())
    return next(kinds, torch.get_default_dtype())


def _tensors(model: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    return chain(model.parameters(recurse), model.buffers(recurse))


def dry_run(model: nn.Module, inputs: Inputs, record: Callable[[nn.Module, Inputs], T]) -> T:
    """What `record` makes of a copy of `model` on the meta device, else of one on the CPU.

    The global random state is left as it was: a forward pass may draw.

    Raises:
        UserError: the forward pass fails for `inputs` on either device, or `record` raised one.
    """
    init_lazy(model, inputs)
    with torch.random.fork_rng(devices=[]):
        try:
            return record(copied(model, device="meta"), moved(inputs, "meta"))
        except UserError:
            raise
        except Exception:
            # E.g. a forward that looks at values. A second failure is the model's own.
            with _failing(model, inputs), plain_kernels():
                return record(copied(model, device="cpu"), moved(inputs, "cpu"))


def init_lazy(model: nn.Module, inputs: Inputs) -> None:
    """Give the lazy modules of `model` their weights: all candidates run once, if there are any.

    Raises:
        UserError: the forward pass fails, or does not reach one of them.
    """
    if not _lazy(model):
        return
    modes = [(module, module.training) for module in model.modules()]
    blocks = [(site, site.unrolled) for _, site in sites(model)]
    device = next(model.parameters()).device
    try:
        for site, _ in blocks:
            site.unrolled = True
        model.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad(), _failing(model, inputs):
            run(model, moved(inputs, device))
    finally:
        for site, unrolled in blocks:
            site.unrolled = unrolled
        for module, training in modes:
            module.training = training
    if missed := _lazy(model):
        raise UserError(
            f"the forward pass of {type(model).__name__} does not reach the lazy modules {missed}: "
            "remove them, or give them their sizes"
        )


def _lazy(model: nn.Module) -> list[str]:
    """Paths of the modules that have no weights yet."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return list(dict.fromkeys(name.rpartition(".")[0] for name, x in tensors if is_lazy(x)))


@contextmanager
def _failing(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Name the model and the shapes in what a forward pass raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        shapes = [tuple(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise UserError(
            f"the forward pass of {type(model).__name__} fails for an input of shape "
            f"{shapes}: {said}"
        ) from error


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Without kernels of the CPU that do the work of a whole layer in one operator."""
    encoders, recurrent = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(encoders)
        torch.backends.mkldnn.enabled = recurrent


class Unrolled(nn.Module):
    """All plain modules that one `Searchable` may become, each with the condition of its options.

    Runs them one after another on the channels that each uses, and gives zeros of their largest
    shape: values do not matter in a dry run. The `Recorder` knows them for the outputs of all
    shapes, and runs what stands behind for each one. Only where code between modules puts a size
    into a function that it has written down, as ``x.view(1, 64, -1)`` does, or that went through
    other arithmetic than that of `nas.cost.sizes`, what stands behind is seen at the largest
    shape, up to the next searchable module.
    """

    def __init__(
        self, variants: Sequence[tuple[Condition, nn.Module, int | None]], dim: int = 1
    ) -> None:
        super().__init__()
        self.dim = dim  # of the channels of the input
        # Of a tensor, whether it has so many channels under a condition, for all that is known.
        self.fits: Callable[[Tensor, Condition, int, int], bool] | None = None
        self.conditions = [condition for condition, _, _ in variants]
        self.channels = [channels for _, _, channels in variants]
        self.candidates = nn.ModuleDict()
        for i, (condition, module, _) in enumerate(variants):
            label = "_".join(f"{name}.{k}" for name, k in sorted(condition)).replace(".", "_")
            self.candidates[f"{i}_{label}"] = module

    def __getattr__(self, name: str) -> Any:
        """What code around the layer reads of it, such as the type of its weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            candidates = vars(self).get("_modules", {}).get("candidates")
            found = getattr([*candidates.values()][-1], name, None) if candidates else None
            if found is None or callable(found):
                raise
            return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = zip(self.conditions, self.channels, self.candidates.values(), strict=True)
        outs = [
            variant(*(self._used(x, c, n) for x in args[:1]), *args[1:], **kwargs)
            for c, n, variant in found
        ]
        leaves, structure = tree_flatten(outs[0])
        others = zip(*(tree_leaves(out) for out in outs), strict=True)
        return tree_unflatten(map(_largest, leaves, others), structure)

    def _used(self, x: Any, condition: Condition, channels: int | None) -> Any:
        if channels is None or channels == x.shape[self.dim]:
            return x
        known = self.fits is not None and self.fits(x, condition, self.dim, channels)
        return x if known else x.narrow(self.dim, 0, channels)


def _largest(leaf: Any, others: Sequence[Any]) -> Any:
    """Zeros of the largest shape of any of these, or what is no tensor as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    shape = [max(sizes) for sizes in zip(*(x.shape for x in others), strict=True)]
    # Of no tensor: recorders would take an operator on an output for a reader of it.
    return torch.zeros(shape, dtype=leaf.dtype, device=leaf.device)


@dataclass(frozen=True)
class ChoiceNode:
    """A module of the unrolled supernet that runs candidates.

    Attributes:
        candidates: name below `path`, the condition under which it is active, and the module.
    """

    path: str
    module: nn.Module
    candidates: Sequence[tuple[str, Condition, nn.Module]]


def unroll(model: nn.Module) -> tuple[nn.Module, list[ChoiceNode]]:
    """A supernet like `model`, copied if numbers are searched, and its choice nodes.

    In the copy every plain module that a `Searchable` may become is a module of its own. Conditions
    name decisions as in `model`. Tensors that variants slice are slices here too, each with its own
    identity, but a variant that stands in several places is one module.
    """
    names = {decision: name for name, decision in decisions(model)}
    memo: dict[int, Any] = {}
    held = {id(part) for part in (*model.modules(), *_tensors(model))}
    numbers = any(
        isinstance(m, Searchable) and not isinstance(m, Decision) for m in model.modules()
    )
    made = _unrolled(model, names, held, memo) if numbers else model
    own = {id(memo.get(id(decision), decision)): name for decision, name in names.items()}
    return made, list(_nodes(made, own))


def _unrolled(
    module: nn.Module, names: Mapping[Decision, str], held: Ids, memo: dict[int, Any]
) -> Any:
    for searchable in _unrollable(module):
        if id(searchable) not in memo:
            memo[id(searchable)] = Unrolled(
                list(_variants(searchable, names, held, memo)), searchable.channel_dim
            )
    return copied(module, memo)


def _unrollable(module: nn.Module) -> Iterator[Searchable]:
    """As `outermost`, but a decision runs its options itself: they are looked into."""
    for searchable in outermost(module):
        if isinstance(searchable, Decision):
            for child in searchable.children():
                yield from _unrollable(child)
        else:
            yield searchable


def _variants(
    searchable: Searchable,
    names: Mapping[Decision, str],
    held: Ids,
    memo: dict[int, Any],
) -> Iterator[tuple[Condition, nn.Module, int | None]]:
    for options in searchable.combinations():
        condition = frozenset((names[d], d.options.index(option)) for d, option in options.items())
        made = searchable.materialize(options)
        # Kept, as in `copy.deepcopy`: another module may not get the id of one that is gone.
        memo.setdefault(id(memo), []).append(made)
        parts = {id(part) for part in (*made.modules(), *_tensors(made))}
        # What is new, and nothing else, need not be copied: that takes as long as to make it.
        plain = not any(isinstance(part, Searchable) for part in made.modules())
        if plain and parts.isdisjoint(held):
            module = made
        else:
            module = _unrolled(made, names, parts.union(held), memo)
        yield condition, module, searchable.in_channels_used(options)


def _nodes(model: nn.Module, names: Mapping[int, str]) -> Iterator[ChoiceNode]:
    for path, module in model.named_modules():
        if isinstance(module, Unrolled):
            found = zip(
                module.candidates, module.conditions, module.candidates.values(), strict=True
            )
            yield ChoiceNode(path, module, list(found))
        elif isinstance(module, Decision) and module.active_if():
            name, options = names[id(module.tied_to)], enumerate(module.active_if().items())
            made = [(str(option), frozenset({(name, k)}), m) for k, (option, m) in options]
            yield ChoiceNode(path, module, made)
