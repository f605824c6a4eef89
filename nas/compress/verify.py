"""What the analysis found is tried: a network without channels equals one with these at 0."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from nas.compress.layer import SearchedLayer, Width
from nas.copying import copied
from nas.cost.dry_run import Inputs, plain_kernels
from nas.decision import decisions
from nas.discretization import discretize

HEAVY = 100_000_000  # parameters; a network of more is tried in single precision


class Verifier:
    """A network with random weights, in which no layer has a part too small to be seen.

    Args:
        model: any network; it stays as it is.
        inputs: of batch size 1.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        heavy = sum(x.numel() for x in model.parameters()) > HEAVY
        self.kind = torch.float32 if heavy else torch.float64
        self.tolerance = 1e-3 if heavy else 1e-6
        # Layers need not begin from anything that training could use; zeros would hide mistakes.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.plain = _randomised(copied(model, device="cpu").to(self.kind).eval())
            self.inputs = tree_map(self._random, inputs)
            try:
                self._run(self.plain, {})
            except Exception:  # e.g. autocast gives single precision to parts of it
                self.kind, self.tolerance = torch.float32, 1e-3
                self.plain.float()
                self.inputs = tree_map(self._random, inputs)

    def _random(self, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.randn(x.shape, dtype=self.kind) if x.is_floating_point() else x.cpu()

    def copy(self) -> nn.Module:
        """A copy that shares all tensors with the network."""
        shared = {id(x): x for x in (*self.plain.parameters(), *self.plain.buffers())}
        return copied(self.plain, dict(shared))

    def failing(self, supernet: nn.Module) -> dict[str, str]:
        """The decisions that do not do what they should, and what they do; {}: all do.

        Args:
            supernet: made of a `copy`.
        """
        names = [name for name, decision in decisions(supernet) if isinstance(decision, Width)]
        found = self._failing(supernet, names, self._fault)
        if not found and self._writes and self._training_fault(self.plain) is None:
            found = self._failing(supernet, names, self._training_fault)
        return found

    def _failing(
        self, supernet: nn.Module, names: Sequence[str], fault: Callable[[nn.Module], str | None]
    ) -> dict[str, str]:
        for name, decision in decisions(supernet):
            if isinstance(decision, Width):  # others are mixed alike in both
                # Half of the channels of these decisions are taken away.
                middle = (len(decision.options) - 1) // 2
                decision.choose(decision.options[middle if name in names else -1])
        reason = fault(supernet)
        if reason is None:
            return {}
        if len(names) == 1:
            return {names[0]: reason}
        half = len(names) // 2
        found = {
            n: why
            for p in (names[:half], names[half:])
            for n, why in self._failing(supernet, p, fault).items()
        }
        return found or dict.fromkeys(names, reason)

    @property
    def _writes(self) -> bool:
        """Whether code of its own may write on buffers in training."""
        return any(
            module._buffers and not type(module).__module__.startswith("torch.nn.")
            for module in self.plain.modules()
        )

    def _training_fault(self, network: nn.Module) -> str | None:
        """What goes wrong in training."""
        two = tree_map(lambda x: torch.cat([x, x]) if x.ndim else x, self.inputs)
        trained = copied(network).train()
        before = _shapes(trained)
        try:
            self._run(trained, {}, two)
        except Exception as error:
            return f"it does not train with fewer of them ({_said(error)})"
        if _shapes(trained) != before:
            return "it does not train with fewer of them (a buffer gets another shape)"
        return None

    def _fault(self, supernet: nn.Module) -> str | None:
        """What goes wrong in the supernet, or in the plain network that comes out of it."""
        networks: list[Callable[[], nn.Module]] = [lambda: supernet]
        if all(isinstance(decision, Width) for _, decision in decisions(supernet)):
            networks.append(partial(discretize, supernet))
        expected = self._run(self.plain, masked(supernet))
        for network in networks:
            try:
                cut = self._run(network(), {})
            except Exception as error:
                return f"the network does not run with fewer of them ({_said(error)})"
            for ours, theirs in zip(cut, expected, strict=True):
                if ours.shape != theirs.shape:
                    return f"the shape of the output depends on them ({tuple(ours.shape)})"
                scale = float(theirs.abs().max())
                off = float((ours - theirs).abs().max()) / max(scale, 1e-30)
                if not off <= self.tolerance:
                    return f"the network computes something else with fewer of them ({off:.1e})"
        return None

    def _run(
        self, network: nn.Module, state: Mapping[str, Tensor], inputs: Any = None
    ) -> list[Tensor]:
        inputs = self.inputs if inputs is None else inputs
        args, kwargs = (), {}
        if isinstance(inputs, Mapping):
            kwargs = dict(inputs)
        else:
            args = tuple(inputs)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), plain_kernels():
            torch.manual_seed(0)
            out = (
                functional_call(network, dict(state), args, kwargs)
                if state
                else network(*args, **kwargs)
            )
        return [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_floating_point()]


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in network.named_buffers()}


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


def _randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fan_in = parameter.numel() / max(parameter.shape)
            nn.init.normal_(parameter, std=fan_in**-0.5 if fan_in > 1 else 1.0)
        elif parameter.is_floating_point():
            nn.init.uniform_(parameter, 0.5, 1.5)
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            module.running_mean.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5)
    return model


def masked(supernet: nn.Module) -> dict[str, Tensor]:
    """The tensors of the layers, with zeros where the chosen options take something away."""
    found: dict[str, Tensor] = {}
    for path, layer in supernet.named_modules():
        if not isinstance(layer, SearchedLayer):
            continue
        for slicing in layer.slicings:
            width = layer.get_submodule(slicing.width)
            assert isinstance(width, Width)
            option = int(width.open.nonzero())
            gone = torch.cat([width.first, width.first.new_full((1,), -1)])[slicing.units] > option
            name = f"{path}.{slicing.tensor}".lstrip(".")
            whole = found.get(name, getattr(layer, slicing.tensor))
            if gone.any():
                found[name] = whole.detach().index_fill(slicing.dim, gone.nonzero().flatten(), 0)
    return found
