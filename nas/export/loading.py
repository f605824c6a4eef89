"""Networks and supernets out of a run directory; nothing in its files is executed."""

import io
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import write_atomic
from nas.artifacts.reading import read_config, read_tensors
from nas.compress.space import Model, saved
from nas.config.model import SPACE
from nas.decision import free
from nas.discretization import discretize
from nas.errors import UserError
from nas.inputs import Shapes
from nas.spaces import build

_KEPT = ("epoch", "global_step", "state_dict")  # of a finished search's checkpoint

Builder = Callable[[Shapes, int], nn.Module]


def load(run: str | Path, space: Builder | None = None, model: Model | None = None) -> nn.Module:
    """The network that a finished run found, with its trained weights, in eval mode on the CPU.

    Nothing is executed from the run's files: the space must be one of `nas.spaces`, or be passed.

    Args:
        run: the run's folder.
        space: ``(input_shape, num_outputs) -> supernet``, for a space of your own in Python.
        model: the network of your own that a run has made smaller, or what makes it.

    Raises:
        UserError: no finished run there, or files that do not fit each other.
    """
    folder = RunDir(Path(run))
    result = folder.read_result()
    if result is None or result.get("status") != "finished":
        raise UserError(
            f"{folder.path} holds no finished run (no result.json that says so): finish it with "
            f"`nas search resume={folder.path}`"
        )
    shape, outputs = _size(result, folder)
    supernet = _supernet(folder, space, model, shape, outputs)
    network = discretize(supernet, Arch.load(folder.arch))
    load_weights(network, folder.network)
    return network.eval()


def _size(result: Mapping[str, Any], folder: RunDir) -> tuple[Shapes, int]:
    """Shape of an input, or of several, and number of outputs."""
    given = result.get("input")
    given = given if isinstance(given, dict) else {}
    shape, classes = _shapes(given.get("shape")), given.get("classes")
    if shape and isinstance(classes, list) and classes:
        anomaly = (result.get("task") or {}).get("name") == "anomaly"
        return shape, prod(shape) if anomaly and type(shape[0]) is int else len(classes)
    raise UserError(
        f"{folder.result} does not say the shape and the classes of the input, which every "
        "finished run writes: it is damaged"
    )


def _shapes(found: object) -> Any:
    """As they were written; () where they are none."""
    if isinstance(found, dict):
        return {str(name): _sizes_of(one) for name, one in found.items()}
    if isinstance(found, list) and any(isinstance(one, list) for one in found):
        return tuple(map(_sizes_of, found))
    return _sizes_of(found)


def _sizes_of(found: object) -> tuple[int, ...]:
    known = isinstance(found, list) and all(type(n) is int and 0 < n < 1 << 20 for n in found)
    return tuple(found) if known and isinstance(found, list) else ()


def _supernet(
    folder: RunDir, space: Builder | None, model: Model | None, shape: Shapes, outputs: int
) -> nn.Module:
    if space is not None:
        return space(shape, outputs)
    try:
        config = yaml.safe_load(read_config(folder.config))["space"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the space from {folder.config}: {error}") from None
    if isinstance(config, Mapping) and config.get("_target_") == SPACE:
        return saved(config, model)(shape, outputs)
    return build(config, shape, outputs)


def load_weights(network: nn.Module, path: Path) -> None:
    """Read a state dict into `network`; only tensors are read from the file.

    Raises:
        UserError: no such file, or one of another network.
    """
    try:
        state = read_tensors(path)
        network.load_state_dict(state)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} holds no weights that fit this network: {reason}") from None


def load_supernet(supernet: nn.Module, checkpoint: Path) -> None:
    """Read the weights and alphas of a search's last.ckpt into `supernet`; only tensors are read.

    Raises:
        UserError: no such file, no checkpoint of a search, or one of another space.
    """
    if not checkpoint.exists():
        raise UserError(
            f"no {checkpoint}: the supernet was not kept (keep=network), or the search has none. "
            "Search again, with keep=supernet"
        )
    try:
        state = read_tensors(checkpoint)["state_dict"]
    except Exception as error:
        raise UserError(f"{checkpoint} is not the last.ckpt of a search: {error}") from None
    prefix = "supernet."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    try:
        supernet.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        name = getattr(supernet, "name", type(supernet).__name__)
        raise UserError(
            f"{checkpoint} is of another space than {name!r}: {reason}... Pass the space and the "
            "data that the search was run with"
        ) from None
    free(supernet)


def slim(checkpoint: Path) -> None:
    """Leave in a finished search's last.ckpt what `load_supernet` reads, about half of it.

    Raises:
        OSError, ValueError: it cannot be read or written; what is there stays as it is.
    """
    saved = read_tensors(checkpoint)
    kept = {name: saved[name] for name in _KEPT if name in saved}
    if saved.keys() > kept.keys():
        buffer = io.BytesIO()
        torch.save(kept, buffer)
        write_atomic(checkpoint, buffer.getvalue())


def check_checkpoint(module: nn.Module, path: Path) -> None:
    """Refuse a checkpoint that a training of `module` cannot go on from.

    Lightning would end in a traceback.

    Raises:
        UserError: it is damaged, or a checkpoint of something else.
    """
    try:
        saved = read_tensors(path)
        found = _sizes(saved["state_dict"])
        parts = ("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers")
        lacking = [name for name in parts if name not in saved]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no checkpoint to go on from: {error}; remove it") from None
    wanted = _sizes(module.state_dict())
    other = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if lacking or other:
        what = f"it lacks {lacking[0]}" if lacking else f"{other[0]} is of another size, or missing"
        raise UserError(f"{path} is no checkpoint of this training ({what}): remove it")


def _sizes(state: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the tensors; a module's extra state, such as its draws, has none."""
    return {name: getattr(value, "shape", ()) for name, value in state.items()}


def state_bytes(module: nn.Module) -> bytes:
    """The module's state dict as the content of a file."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in module.state_dict().items()}, buffer)
    return buffer.getvalue()
