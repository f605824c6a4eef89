"""A network as one readable Python file that imports only torch.

The network is a tree of layers of `torch.nn` and one ``forward`` that calls them (traced, with what
is fixed written out). Names are kept, so that the state dict of the network fits the file. Only
plain names stand in the code; all others are string literals.
"""

import ast
import inspect
from collections.abc import Container, Iterable, Mapping
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.export.tracing import OTHER_FORMAT, is_layer, is_numbered, is_plain, literal, traced

_FILE = '''"""{about}

Needs only torch, and {weights} beside it.

    network = load()
    logits = network(x)  # (N, *INPUT_SHAPE) -> (N, len(CLASSES)); x = (image in 0..1 - MEAN) / STD
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

{values}


class Parts(nn.Module):
    """Layers, parameters and buffers by their names."""

    def __init__(self, /, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Network(Parts):
{forward}


def build() -> nn.Module:
    """The network, not trained."""
    return {body}


def load(weights: str | Path = Path(__file__).with_name("{weights}")) -> nn.Module:
    """The trained network in eval mode; only tensors are read from the file."""
    network = build()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()
'''


def python_source(
    network: nn.Module, example: Tensor, about: str, constants: Mapping[str, Any], weights: str
) -> str:
    """The file's text.

    Args:
        network: in eval mode.
        example: an input ``(N, ...)``, N at least 2; sizes but N's are fixed in the code.
        about: first line of the file's docstring.
        constants: NAME -> value, written at the top.
        weights: name of the file beside it that holds the state dict.

    Raises:
        UserError: something in the network cannot be written as code; the message names it.
    """
    forward, sequences = traced(network, example)
    tree = _Tree(sequences)
    text = _FILE.format(
        about=about.replace("\\", "/").replace('"', "'"),
        values="\n".join(f"{name} = {literal(value)}" for name, value in constants.items()),
        forward=indent(forward, "    "),
        body=indent(tree.parts("Network", network), "    ").lstrip(),
        weights=weights,
    )
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(
            f"the network cannot be written as Python code ({error}): {OTHER_FORMAT}"
        ) from None
    return text


class _Tree:
    """Expressions that build modules with weights of their own.

    Args:
        sequences: modules that call their children in turn.
    """

    def __init__(self, sequences: Container[nn.Module]) -> None:
        self.sequences = sequences

    def expression(self, module: nn.Module) -> str:
        """What builds `module`."""
        if is_layer(module):
            return constructor(module)
        if is_numbered(module):
            kind = "nn.Sequential(" if module in self.sequences else "nn.ModuleList(["
            return _block(kind, self._children(module).values(), "])" if "[" in kind else ")")
        if module in self.sequences:
            return _block("nn.Sequential(OrderedDict({", _named(self._children(module)), "}))")
        return self.parts("Parts", module)

    def parts(self, kind: str, module: nn.Module) -> str:
        """A call of `kind` with the children, parameters and buffers of `module`."""
        parts = self._children(module) | _own_tensors(module)
        if all(map(is_plain, parts)):
            return _block(f"{kind}(", [f"{key}={part}" for key, part in parts.items()], ")")
        return _block(f"{kind}(**{{", _named(parts), "})")

    def _children(self, module: nn.Module) -> dict[str, str]:
        # Not `named_children`, which leaves out a module that stands there twice.
        children = module._modules.items()
        return {name: self.expression(child) for name, child in children if child is not None}


def _own_tensors(module: nn.Module) -> dict[str, str]:
    """Parameters and buffers as expressions of their size and type."""
    found = {}
    for name, buffer in module.named_buffers(recurse=False):
        if name in module._non_persistent_buffers_set:
            raise UserError(
                f"the module {type(module).__name__} holds a buffer that is not in its state dict, "
                f"so that it cannot be written as Python code; {OTHER_FORMAT}"
            )
        found[name] = f"nn.Buffer({_empty(buffer)})"
    for name, parameter in module.named_parameters(recurse=False):
        found[name] = f"nn.Parameter({_empty(parameter)})"
    return found


def _empty(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.empty({tuple(tensor.shape)}{dtype})"


def _named(parts: Mapping[str, str]) -> list[str]:
    return [f"{literal(name)}: {part}" for name, part in parts.items()]


def _block(opening: str, parts: Iterable[str], closing: str) -> str:
    """On one line where it is short, else one part a line."""
    parts = list(parts)
    line = opening + ", ".join(parts) + closing
    if len(line) <= 60 and "\n" not in line:
        return line
    return "\n".join([opening, *(indent(f"{part},", "    ") for part in parts), closing])


def constructor(layer: nn.Module) -> str:
    """``nn.Conv2d(1, 16, 3, padding=1)``: what builds a layer like this, with weights of its own.

    Raises:
        UserError: the layer does not tell how it was built.
    """
    kind = type(layer)
    required, options = list[Any](), dict[str, Any]()
    try:
        for name, parameter in _parameters(kind).items():
            value = _passed(getattr(layer, name), name)
            if parameter.default is parameter.empty:
                required.append(value)
            elif value != parameter.default:
                options[name] = value
        built = kind(*required, **options)
    except Exception:
        built = None
    sizes = [{k: v.shape for k, v in m.state_dict().items()} for m in (layer, built) if m]
    if str(built) != str(layer) or sizes[0] != sizes[1]:
        raise UserError(
            f"the layer {kind.__name__} cannot be written as Python code, as it does not tell how "
            f"it was built; {OTHER_FORMAT}"
        )
    arguments = [*map(literal, required), *(f"{k}={literal(v)}" for k, v in options.items())]
    return f"nn.{kind.__name__}({', '.join(arguments)})"


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What the constructor takes; those of recurrent layers tell only in their common base."""
    found = dict(inspect.signature(nn.RNNBase if issubclass(kind, nn.RNNBase) else kind).parameters)
    mode = found.pop("mode") if issubclass(kind, nn.RNNBase) else None
    if kind is nn.RNN and mode is not None:
        found["nonlinearity"] = mode.replace(name="nonlinearity", default="tanh")
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    left_out = ("device", "dtype")
    return {k: p for k, p in found.items() if k not in left_out and p.kind not in variable}


def _passed(value: Any, name: str) -> Any:
    """What was passed for what is stored: True for a bias, 3 for (3, 3)."""
    if isinstance(value, Tensor) or name == "bias":
        return value is not None and value is not False
    equal = isinstance(value, tuple) and len(set(value)) == 1 and name != "normalized_shape"
    return value[0] if equal else value
