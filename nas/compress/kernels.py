"""Which convolutions of a network may lose taps, and the network in which that is searched."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nas.compress.modules import Finding, Where, swappable, swapped
from nas.compress.moments import Moments, moments
from nas.compress.refit import solutions
from nas.compress.taps import Convolution, Dilation, ElasticTaps, dilations, fixed, windows
from nas.config.schema import Count, checked
from nas.copying import copied
from nas.cost.dry_run import Example, inputs_of
from nas.errors import UserError
from nas.inputs import Inputs, run
from nas.recalibrate import kept_modes
from nas.supernet.elastic import Elastic

PADS = (nn.ConstantPad1d, nn.ZeroPad1d)


@checked("space.rules.kernels")
@dataclass(frozen=True)
class Kernels(Where):
    """Convolutions whose kernel is searched, and of 1-D ones the dilation too.

    Args:
        include, exclude: see `Where`.
        sizes: of the kernel, besides the one it has; None: for 1-D, 1 + powers of two, see
            `windows`; for images, every second size down.
        dilations: of 1-D convolutions, in taps of the given one, besides 1; None: powers of two.
        causal: whether 1-D convolutions keep the newest tap, or the middle one; None: as their
            padding shows.
        refit: whether each choice of taps has weights of its own, which begin as those that come
            nearest to the outputs of all taps, by least squares; else all share those of the layer.
    """

    sizes: Sequence[Count] | None = None
    dilations: Sequence[Count] | None = None
    causal: bool | None = None
    refit: bool = False


@dataclass(frozen=True)
class _Plan:
    """What is searched of one convolution."""

    sizes: tuple[int, ...]
    dilations: tuple[int, ...]
    causal: bool
    pad: nn.ConstantPad1d | None  # that stands right before it


def kernels_found(model: nn.Module, example: Example, rule: Kernels | None = None) -> list[Finding]:
    """What `searched_kernels` searches under this rule; of modules that are named, also why not."""
    rule = rule or Kernels()
    found = []
    for name, module, plan in _plans(model, example, rule):
        if isinstance(plan, str):
            if rule.named:
                found.append(Finding(name, module, "kernel", (), plan))
            continue
        for kind, options in (("kernel", plan.sizes), ("dilation", plan.dilations)):
            if len(options) > 1:
                found.append(Finding(name, module, kind, options))
    return found


def searched_kernels(
    model: nn.Module,
    example: Example,
    rule: Kernels | None = None,
    batches: Iterable[Inputs] | None = None,
) -> nn.Module:
    """A copy of `model` in which kernels and dilations are searched, see `nas.compress.taps`.

    The largest kernels at dilation 1 are the given network.

    Args:
        example: as of `nas.trace`; it shows which convolutions are causal.
        rule: None: all convolutions of more than one tap.
        batches: inputs ``(N, ...)`` to fit the weights on that `rule` may ask for; None: they are
            those of the layer at the start.

    Raises:
        UserError: weights are to be fitted, and `batches` is empty.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> causal = nn.Sequential(nn.ConstantPad1d((8, 0), 0.0), nn.Conv1d(2, 4, 9))
        >>> supernet = searched_kernels(causal, (2, 32))
        >>> {name: decision.options for name, decision in nas.decisions(supernet)}
        {'1.kernel': (1, 2, 3, 5, 9), '1.dilation': (8, 4, 2, 1)}
        >>> nas.discretize(supernet, nas.Arch("Sequential", {"1.kernel": 5, "1.dilation": 2}))
        Sequential(
          (0): Identity()
          (1): Sequential(
            (pad): ConstantPad1d(padding=(4, 0), value=0.0)
            (conv): Conv1d(2, 4, kernel_size=(3,), stride=(1,), dilation=(2,))
          )
        )
    """
    model, rule = copied(model), rule or Kernels()
    plans = {
        cast(Convolution, module): plan
        for _, module, plan in _plans(model, example, rule)
        if not isinstance(plan, str)
    }
    known = moments(model, list(plans), batches) if rule.refit and plans else {}
    swaps: dict[nn.Module, nn.Module] = {}
    for conv, plan in plans.items():
        kernel = Elastic(plan.sizes) if len(plan.sizes) > 1 else plan.sizes[0]
        dilation = Dilation(plan.dilations) if len(plan.dilations) > 1 else 1
        pads = plan.pad.padding if plan.pad is not None else ()
        taps = swaps[conv] = ElasticTaps(conv, kernel, dilation, plan.causal, pads)
        if conv in known:
            _refit(taps, known[conv])
        if plan.pad is not None:
            swaps[plan.pad] = nn.Identity()
    return swapped(model, swaps)


@torch.no_grad()
def _refit(taps: ElasticTaps, known: Moments) -> None:
    """Weights for each choice of taps, which take what the taps that are gone did upon them."""
    found = solutions(taps, known)
    for kernel, dilation in taps.combinations_of_taps():
        if (left := (0, taps.places(kernel, dilation))) in found:  # else all taps are there
            _, made = found[left]
            taps.fit(kernel, dilation, made["weight"], made.get("bias"))


def _plans(
    model: nn.Module, example: Example, rule: Kernels
) -> Iterator[tuple[str, nn.Module, _Plan | str]]:
    """Of each convolution that `rule` takes what is searched, or why nothing is."""
    convs = [
        (name, module)
        for name, module in swappable(model)
        if isinstance(module, nn.Conv1d | nn.Conv2d) and rule.takes(name, module)
    ]
    pads, led = _pads_before(model), _led_by_zeros(model, example, [conv for _, conv in convs])
    for name, conv in convs:
        if reason := fixed(conv):
            yield name, conv, reason
        elif all(step >= size for step, size in zip(conv.stride, conv.kernel_size, strict=True)):
            yield name, conv, "its windows do not overlap: what it crops no output would see"
        else:
            if name in rule.include:
                _check_sizes(name, conv, rule)
            pad = pads.get(conv) if isinstance(conv, nn.Conv1d) else None
            plan = _plan(conv, rule, pad, conv in led)
            few = len(plan.sizes) == len(plan.dilations) == 1
            yield (
                name,
                conv,
                f"nothing smaller is offered for its kernel {conv.kernel_size}" if few else plan,
            )


def _plan(conv: Convolution, rule: Kernels, pad: nn.ConstantPad1d | None, led: bool) -> _Plan:
    size = max(conv.kernel_size)
    if isinstance(conv, nn.Conv2d):
        usual = tuple(range(2 - size % 2, size + 1, 2))
        return _Plan(_options(rule.sizes, size, usual), (1,), False, None)
    causal = led or _chomped(conv) if rule.causal is None else rule.causal
    sizes = _options(rule.sizes, size, windows(size, causal))
    usual = dilations(size, causal)
    steps = usual if rule.dilations is None else [d for d in rule.dilations if d in range(1, size)]
    return _Plan(sizes, tuple(sorted({1, *steps}, reverse=True)), causal, pad)


def _check_sizes(name: str, conv: Convolution, rule: Kernels) -> None:
    """Refuse what a layer that is named cannot have, instead of leaving it out."""
    size = max(conv.kernel_size)
    known = {"sizes": (rule.sizes, size), "dilations": (rule.dilations, size - 1)}
    for key, (asked, most) in known.items():
        if isinstance(conv, nn.Conv1d) or key == "sizes":
            for number in asked or ():
                if number > most:
                    raise UserError(
                        f"space.rules.kernels.{key}={list(asked or ())}: {name} has a kernel of "
                        f"{size}, so that {number} is too large: at most {most}"
                    )


def _options(asked: Sequence[int] | None, size: int, usual: tuple[int, ...]) -> tuple[int, ...]:
    return usual if asked is None else tuple(sorted({*(n for n in asked if n < size), size}))


def _chomped(conv: nn.Conv1d) -> bool:
    """Whether it pads both sides by all it reaches back, as where the end is cut off after it."""
    pads = conv._reversed_padding_repeated_twice
    return min(pads) >= (conv.kernel_size[0] - 1) * conv.dilation[0]


def _pads_before(model: nn.Module) -> Mapping[nn.Module, nn.ConstantPad1d]:
    """Of a module that stands in a row behind a padding with zeros, that padding."""
    rows = [row for row in model.modules() if type(row) is nn.Sequential]
    pairs = [pair for row in rows for pair in zip(row, list(row)[1:], strict=False)]
    stands = [child for row in model.modules() for child in row._modules.values()]
    return {
        conv: pad
        for pad, conv in pairs
        if isinstance(pad, PADS) and pad.value == 0 and stands.count(pad) == stands.count(conv) == 1
    }


def _led_by_zeros(model: nn.Module, example: Example, convs: Sequence[nn.Module]) -> set[nn.Module]:
    """1-D convolutions whose input begins with zeros alone, as many as they reach back."""
    found: set[nn.Module] = set()

    def look(conv: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv1d)
        reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
        if reach and not args[0][..., :reach].any() and args[0][..., reach:].any():
            found.add(conv)

    hooks = [c.register_forward_pre_hook(look) for c in convs if isinstance(c, nn.Conv1d)]
    try:
        if hooks:
            with kept_modes(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
                run(model.eval(), tree_map(_random, inputs_of(example, model)))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _random(x: object) -> object:
    return torch.randn_like(x) if isinstance(x, Tensor) and x.is_floating_point() else x
