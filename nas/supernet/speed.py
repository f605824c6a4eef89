"""How a supernet's layers are run: the same results within rounding, in less time.

Each speed does what those before it do:

- ``none``: PyTorch as it is;
- ``kernels``: other kernels for the convolutions that its CPU library is slow at, see
  `nas.ops.convolution`;
- ``channels_last``: weights and activations of images with the channels as the last in memory;
- ``compile``: one graph of the pass through all candidates by `torch.compile`.

Networks of their own, to be ranked or trained, go through `prepare_network`.

No speed changes a state dict. One wide pointwise convolution instead of the first layers of several
MBConv over the same input was measured, too, and is no gain on a CPU: its parts must be copied out
for what follows, which costs more than the shared read of the input saves (from 16 x 16 up it takes
1.1 to 1.6 times as long as separate ones).
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas.copying import copied
from nas.decision import free
from nas.errors import UserError
from nas.inputs import Inputs, device_of, run
from nas.ops.convolution import Conv2d
from nas.supernet.relax import RelaxedDecision

SPEEDS = ("none", "kernels", "channels_last", "compile")
# Compilation takes minutes, which a quick measurement cannot: it is for the user to ask for.
MEASURED = SPEEDS[:3]
STEPS = 3  # of each, after one to warm up
GAIN = 0.97  # a later speed must be at most so much of an earlier one's time to be preferred


def check(speed: str) -> None:
    """Check the name of a speed.

    Raises:
        UserError: it is neither "auto" nor one of `SPEEDS`.
    """
    if speed not in ("auto", *SPEEDS):
        raise UserError(f"speed={speed!r} is not one of {['auto', *SPEEDS]}")


def prepare(model: nn.Module, speed: str) -> None:
    """Make the layers of `model` run at `speed`; for ``compile``, call `compiled` as well."""
    level = SPEEDS.index(speed)
    for module in model.modules():
        if isinstance(module, Conv2d):
            module.quick = level >= SPEEDS.index("kernels")
    last = level >= SPEEDS.index("channels_last")
    model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _last]:
        del model._forward_pre_hooks[key]
    if last:
        model.register_forward_pre_hook(_last)
    model._compiled_call_impl = None


def prepare_network(network: nn.Module, speed: str, x: Inputs) -> None:
    """Make a plain network that runs on a CPU do so with channels last, unless `speed` is "none".

    A step of MBConv blocks takes three fifths of the time, one of ordinary convolutions at most as
    long. A network that cannot, as one that takes a `view` of feature maps, stays as it is.

    Args:
        x: a few samples, on the device where the network is to run.
    """
    if speed == "none" or device_of(x).type != "cpu":
        return
    try:
        prepare(network, "channels_last")
        with torch.no_grad():
            run(copied(network).eval(), x)
    except RuntimeError:
        prepare(network, "none")


def is_channels_last(model: nn.Module) -> bool:
    """Whether `prepare` has made it run so."""
    return any(hook is _last for hook in model._forward_pre_hooks.values())


def _last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.contiguous(memory_format=torch.channels_last)
        if isinstance(x, Tensor) and x.ndim == 4
        else x
        for x in inputs
    )


def compiled(model: nn.Module, x: Inputs, backend: Any = "inductor") -> Callable[..., Any]:
    """Make `model` use a compiled graph for inputs of the shape of `x`.

    The graph is used in training where all candidates run. Sampled paths, evaluation and other
    shapes go through `model` as it is. It is one graph for each half of a step, whatever alphas,
    noise and temperature are.

    Args:
        backend: of `torch.compile`.
    """
    eager: Callable[..., Any] = model._call_impl
    graph = torch.compile(eager, dynamic=False, backend=backend)
    shape = _shape((x,))
    blocks = [m for m in model.modules() if isinstance(m, RelaxedDecision)]

    def call(*inputs: Any, **options: Any) -> Any:
        alike = _shape(options or inputs) == shape
        if model.training and torch.is_grad_enabled() and alike and all(map(_all_run, blocks)):
            return graph(*inputs)
        return eager(*inputs, **options)

    model._compiled_call_impl = call  # what `nn.Module.compile` sets; never copied nor saved
    return call


def _shape(inputs: Any) -> list[Any]:
    return [x.shape for x in tree_leaves(inputs)]


def _all_run(block: RelaxedDecision) -> bool:
    with torch.no_grad():
        return block.mixing is None and bool((block.theta > 0).all())


def fastest(model: nn.Module, x: Inputs) -> tuple[str, dict[str, float]]:
    """Measure a few steps of a copy at each speed: the speed to train at, and seconds of a step.

    Nothing of `model` or of the global generator changes. A speed that fails is not chosen.
    """
    seconds: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        for speed in MEASURED:
            trial = copied(model).train()
            free(trial)
            prepare(trial, speed)
            try:
                seconds[speed] = min(_seconds(trial, x) for _ in range(STEPS + 1))
            except RuntimeError:
                if speed == MEASURED[0]:
                    raise
    best = next(iter(seconds))
    for speed, value in seconds.items():
        if value < GAIN * seconds[best]:
            best = speed
    return best, seconds


def _seconds(model: nn.Module, x: Inputs) -> float:
    start = time.perf_counter()
    step(model, x)
    return time.perf_counter() - start


def step(model: nn.Module, x: Inputs) -> None:
    """A forward and a backward pass; gradients are dropped."""
    torch.autograd.backward(run(model, x).float().square().mean())
    model.zero_grad()
