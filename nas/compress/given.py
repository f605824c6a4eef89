"""The space of a network of the user's own: what of it can be left out."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.artifacts.reading import read_tensors
from nas.compress.convert import Row, check_plain, converted
from nas.compress.rules import Rules
from nas.config import given as objects
from nas.config.schema import short_repr
from nas.copying import copied
from nas.errors import UserError
from nas.inputs import Inputs, Shapes
from nas.quantization.network import Quantize, attach
from nas.spaces.stage import read_row

Model = nn.Module | Callable[[], nn.Module]
SPACE = "nas.compress.given.given"  # as configurations name it


def given(
    input_shape: Shapes,
    num_outputs: int,
    model: Model | None = None,
    weights: str | None = None,
    rules: Rules | None = None,
    quantize: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The supernet of a network: the largest of its networks is that one, with its weights.

    Args:
        input_shape: of a sample.
        num_outputs: unused: the network has its outputs.
        model: the network, which is copied, or what makes it.
        weights: a file that holds its state dict; None: it has them.
        rules: what of it is searched; None: all that can be.
        quantize: keys of `nas.quantization.network.Quantize`: bits of its layers are searched, and
            nothing else; None: they stay in floating point.

    Raises:
        UserError: no network, or one that cannot be made searchable; weights that do not fit.
    """
    with torch.device("cpu"):  # where the weights have values
        if quantize is not None:
            network = plain(model, weights)
            attach(network, read_row(Quantize, quantize, "space.quantize"))
            return network.train()
        found = converted(plain(model, weights), example_of(input_shape), rules or Rules())
        return found.supernet.train()


def is_given(space: object) -> bool:
    """Whether a space is one of `given`, its other arguments known."""
    return getattr(space, "func", None) is given


def rows(space: Callable[..., nn.Module], input_shape: Shapes) -> tuple[Row, ...]:
    """What is searched of the network of a space of `given`, and what is not and why."""
    keys = getattr(space, "keywords", {})
    if keys.get("quantize") is not None:
        return ()  # its channels stay
    network = plain(keys.get("model"), keys.get("weights"))
    return converted(network, example_of(input_shape), keys.get("rules") or Rules()).rows


def plain(model: Model | None, weights: str | None = None) -> nn.Module:
    """The network as it is given, a copy of its own.

    Args:
        model, weights: as of `given`.

    Raises:
        UserError: no network, or weights that do not fit it.
    """
    network = network_of(model)
    if weights is not None:
        _load(network, Path(weights).expanduser())
    return network


def again(
    config: Mapping[str, Any], input_shape: Shapes, num_outputs: int, model: Model | None
) -> nn.Module:
    """The supernet of a finished run, whose weights are read from its files afterwards.

    Args:
        config: of the space, from the run's folder, which names nothing that is imported.
        input_shape, num_outputs: as of `given`.
        model: the network; None: what is given for it, see `nas.config.given`.

    Raises:
        UserError: no network is given, or another one.
    """
    node = config.get("model")
    named = node if isinstance(node, Mapping) else {}
    if model is None and named.get("_target_") == objects.TARGET:
        model = objects.given("space.model", str(named.get("kind")))
    if model is None:
        raise UserError(
            f"the network is made by {named.get('_target_')!r}, which is not run from a file: pass "
            "nas.load(run, model=your_network), or trust=true to `nas export` and `nas extract`"
        )
    rules, quantize = _rules(config.get("rules")), config.get("quantize")
    return given(input_shape, num_outputs, model, rules=rules, quantize=quantize)


def _rules(node: Any) -> Rules | None:
    """The rules that a configuration describes, without importing what it names."""
    if not isinstance(node, Mapping):
        return None
    if node.get("_target_") == objects.TARGET:
        found: Rules = objects.given("space.rules", str(node.get("kind")))
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
    if isinstance(model, nn.Module):
        name, network = f"model={type(model).__name__}", model
    else:
        name, network = f"model={_name(model)}", _made(model)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{name} gives {short_repr(network)}, a {type(network).__name__}: it must give a "
            "network, an nn.Module"
        )
    network = getattr(network, "_orig_mod", network)  # of a compiled one
    check_plain(network)
    return copied(network, device="cpu")


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


def _load(network: nn.Module, path: Path) -> None:
    """Read a state dict, or a checkpoint that holds one, into `network`.

    Raises:
        UserError: no such file, not one of tensors only, or one of another network.
    """
    try:
        state: Any = read_tensors(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model.weights={path}: {' '.join(str(error).split())[:300]}") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise UserError(
            f"model.weights={path} holds no state dict: write one by "
            "torch.save(network.state_dict(), FILE)"
        )
    own = network.state_dict()
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
