"""The space of a network of the user's own: what of it can be left out."""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.artifacts.reading import read_tensors
from nas.compress.convert import EXPORTED, Converted, check_plain, converted
from nas.compress.kernels import Kernels
from nas.compress.modules import uncompiled
from nas.compress.refit import Refit
from nas.compress.rules import Rules
from nas.config import given
from nas.config.schema import short_repr
from nas.copying import copied
from nas.cost.dry_run import dry_run, inputs_of
from nas.decision import decisions
from nas.errors import UserError
from nas.inputs import Inputs, Shapes, run
from nas.quantization.network import Quantize, attach
from nas.spaces.stage import read_row

Model = nn.Module | Callable[[], nn.Module]


class OwnNetwork:
    """The space of a network: the largest of its networks is that one, with its weights.

    Args:
        model: the network, which is copied, or what makes it.
        weights: a file that holds its state dict; None: it has them.
        rules: what of it is searched; None: all that can be.
        quantize: keys of `nas.quantization.network.Quantize`: bits of its layers are searched, and
            nothing else, but what `rules` say too where 0 is one of the bits of weights; None: they
            stay in floating point.
        refit: smaller layers have weights that make up for the channels and taps that are gone,
            see `nas.compress.refit`, as long as the supernet is not trained.
    """

    def __init__(
        self,
        model: Model | None = None,
        weights: str | None = None,
        rules: Rules | None = None,
        quantize: Mapping[str, Any] | None = None,
        refit: bool = True,
    ) -> None:
        self.model, self.weights = model, weights
        self.rules, self.quantize, self.refit = rules or Rules(), quantize, refit
        self._network: nn.Module | None = None  # made once
        self._converted: tuple[Shapes, Converted] | None = None  # which takes seconds

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_network": None, "_converted": None}

    def __call__(
        self, input_shape: Shapes, num_outputs: int, batches: Iterable[Inputs] | None = None
    ) -> nn.Module:
        """The supernet.

        Args:
            input_shape: of a sample.
            num_outputs: unused: the network has its outputs.
            batches: as of `converted`.

        Raises:
            UserError: see `network` and `nas.compress.convert.converted`.
        """
        with torch.device("cpu"):  # where the weights have values
            return copied(self.converted(input_shape, batches).supernet).train()

    def converted(self, input_shape: Shapes, batches: Iterable[Inputs] | None = None) -> Converted:
        """The supernet, not to be changed, and the table of what is searched in it.

        Args:
            input_shape: of a sample.
            batches: training data, not augmented, on which operations, kernels and narrower layers
                are fitted, the first time; None: the former are fitted to the weights alone.

        Raises:
            UserError: the network cannot be made searchable.
        """
        if self._converted is None or self._converted[0] != input_shape:
            self._converted = input_shape, self._made(input_shape, batches)
        return self._converted[1]

    def _made(self, input_shape: Shapes, batches: Iterable[Inputs] | None) -> Converted:
        how = self.quantize
        bits = None if how is None else read_row(Quantize, how, "space.quantize")
        known = list(batches) if self.is_fitted and batches is not None else None
        if bits is None or bits.leaves_out:
            network = self.network()
            found = converted(network, example_for(network, input_shape), self.rules, known)
        else:  # its channels stay
            found = Converted(self.network(), ())
        if bits is None:
            if self.refit and batches is not None:
                Refit(found.supernet, batches if known is None else known)
            return found
        before = dict(decisions(found.supernet))
        attach(found.supernet, bits)
        now = {id(decision): name for name, decision in decisions(found.supernet)}
        names = {old: now[id(decision)] for old, decision in before.items()}
        rows = (replace(row, decision=names.get(row.decision or "")) for row in found.rows)
        return Converted(found.supernet, tuple(rows))

    @property
    def is_fitted(self) -> bool:
        """Whether the rules ask for weights that are fitted on data."""
        kernels = self.rules.kernels
        return bool(self.rules.operations) or (isinstance(kernels, Kernels) and kernels.refit)

    def network(self) -> nn.Module:
        """The network as it is given, a copy of its own.

        Raises:
            UserError: there is none, or weights that do not fit it.
        """
        if self._network is None:
            with torch.random.fork_rng(devices=[]):  # so that the first time is as the others
                network = network_of(self.model)
            if self.weights is not None:
                load(network, Path(self.weights).expanduser())
            self._network = network
        return copied(self._network)


@dataclass(frozen=True)
class Original:
    """The network of the user's own that a run makes smaller.

    Args:
        network: with its weights, in eval mode on the CPU.
        metrics: ``val_loss`` and ``val_<metric>`` on the validation part.
        constant_loss: ``val_loss`` of outputs of zeros, which are the mean of standardised targets,
            or all classes alike.
    """

    network: nn.Module
    metrics: Mapping[str, float]
    constant_loss: float

    @property
    def is_trained(self) -> bool:
        """Whether it knows more of these data than a constant."""
        return self.metrics["val_loss"] < self.constant_loss


def saved(config: Mapping[str, Any], model: Model | None) -> OwnNetwork:
    """The space of a finished run, whose weights are read from its files afterwards.

    Args:
        config: of the space, from the run's folder, which names nothing that is imported.
        model: the network; None: what is given for it, see `nas.config.given`.

    Raises:
        UserError: no network is given.
    """
    node = config.get("model")
    named = node if isinstance(node, Mapping) else {}
    if model is None and named.get("_target_") == given.TARGET:
        model = given.given("space.model", str(named.get("kind")))
    if model is None:
        raise UserError(
            f"the network is made by {named.get('_target_')!r}, which is not run from a file: pass "
            "nas.load(run, model=your_network), or trust=true to `nas export` and `nas extract`"
        )
    return OwnNetwork(model, None, _rules(config.get("rules")), config.get("quantize"), False)


def _rules(node: Any) -> Rules | None:
    """The rules that a configuration describes, without importing what it names."""
    if not isinstance(node, Mapping):
        return None
    if node.get("_target_") == given.TARGET:
        found: Rules = given.given("space.rules", str(node.get("kind")))
        return found
    own = {key: value for key, value in node.items() if not str(key).startswith("_")}
    try:
        return Rules(**own)
    except TypeError as error:
        raise UserError(f"the configuration of space.rules: {error}") from None


def example_of(shapes: Shapes) -> Inputs:
    """Empty inputs of one sample: of one shape, or of several by position or by name."""
    if isinstance(shapes, Mapping):
        return {name: torch.zeros(1, *shape) for name, shape in shapes.items()}
    if isinstance(shapes[0], int):
        return torch.zeros(1, *shapes)
    return tuple(torch.zeros(1, *shape) for shape in shapes)


def example_for(network: nn.Module, shapes: Shapes) -> Inputs:
    """Empty inputs that `network` runs on: of floating point, or the rows of an embedding."""
    example = example_of(shapes)
    leaves, structure = tree_flatten(example)
    for kinds in product((torch.float32, torch.int64), repeat=len(leaves)):
        made: Inputs = tree_unflatten(map(Tensor.to, leaves, kinds), structure)
        with suppress(UserError):
            dry_run(network, inputs_of(made, network), run)
            return made
    return example


def network_of(model: Model | None) -> nn.Module:
    """A copy of the network given, or the one that its factory makes.

    Raises:
        UserError: there is none, or not one that can be copied, see `check_plain`.
    """
    if model is None:
        raise UserError(
            "space=given needs the network: model=MODULE:FACTORY, or nas.compress(network, data) "
            "from Python"
        )
    if isinstance(model, nn.Module | torch.export.ExportedProgram):
        name, network = f"model={type(model).__name__}", model
    else:
        name, network = f"model={_name(model)}", _made(model)
    if isinstance(network, torch.export.ExportedProgram):
        raise UserError(f"{name} {EXPORTED}")
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{name} gives {short_repr(network)}, a {type(network).__name__}: it must give a "
            "network, an nn.Module"
        )
    check_plain(network)
    kinds = {x.dtype for x in network.parameters() if x.is_floating_point()}
    if kinds and torch.float32 not in kinds:
        kind = str(kinds.pop()).removeprefix("torch.")
        raise UserError(
            f"{name} has weights of {kind}, and the data are float32: give network.float()"
        )
    return uncompiled(copied(network, device="cpu"))


def _plain_name(name: str, own: Collection[str]) -> str:
    """A name in a state dict without what `DataParallel` and `torch.compile` have put into it."""
    if name in own:
        return name
    return name.removeprefix("module.").replace("_orig_mod.", "").removeprefix("module.")


def _made(factory: Callable[[], Any]) -> Any:
    """What a factory gives.

    Raises:
        UserError: it raises.
    """
    try:
        return factory()
    except Exception as error:  # it is the user's own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"model={_name(factory)} fails: {reason}") from None


def _name(factory: Any) -> str:
    own = factory.func if isinstance(factory, partial) else factory
    return f"{getattr(own, '__module__', '')}:{getattr(own, '__qualname__', own)}"


_WRITE = "write one by torch.save(network.state_dict(), FILE)"


def load(network: nn.Module, path: Path) -> None:
    """Read a state dict, or a checkpoint that holds one, into `network`.

    Raises:
        UserError: no such file, not one of tensors only, or one of another network.
    """
    try:
        state: Any = read_tensors(path)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        how = "" if isinstance(error, OSError) else f"; {_WRITE}"
        raise UserError(f"model.weights={path}: {said}{how}") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise UserError(f"model.weights={path} holds no state dict: {_WRITE}")
    own = network.state_dict()
    first = next(iter(own), "")
    prefixes = (name.removesuffix(first) for name in state if name.endswith(f".{first}"))
    # A module of Lightning that holds the network puts its own name before each.
    before = next((p for p in prefixes if all(p + name in state for name in own)), "")
    state = {name.removeprefix(before): value for name, value in state.items()}
    state = {_plain_name(name, own): value for name, value in state.items()}
    wrong = [
        *(f"it lacks {name}" for name in own if name not in state),
        *(f"the network has no {name}" for name in state if name not in own),
        *(
            f"{name} has the shape {tuple(value.shape)}, in the network {tuple(own[name].shape)}"
            for name, value in state.items()
            if name in own and value.shape != own[name].shape
        ),
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"model.weights={path} is not of this network: {wrong[0]}{more}")
    network.load_state_dict(state)
