"""Numbers that are searched, and weights of which an architecture uses a part (Once-for-All).

Under a soft theta the output is that of a mixture of architectures, as far as it is linear, for
one forward pass:

- kernel: the filter is ``sum_k theta_k * filter_k``, smaller ones padded with zeros to the largest;
- width: channel c is multiplied by ``sum_{k: width_k > c} theta_k``, the probability that it is
  there, so that alphas of nested widths compare what each adds to the one below;
- depth and input size: the theta-weighted sum of what each option gives.

Under a one-hot theta only the slice runs, and equals the extracted layer to the bit. Where the
smallest width is sampled, the loss has no gradient for wider ones, which all contain it: costs
alone move those alphas.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from nas.arch import Option
from nas.decision import Decision, Searchable
from nas.errors import UserError
from nas.ops.blocks import Residual
from nas.supernet.relax import Relaxation, RelaxedDecision, softmax


class Elastic(RelaxedDecision):
    """A number that is searched: a kernel, an expansion, channels, a depth, an input size.

    `options` ascend: the first makes the smallest network, the last the largest.

    Raises:
        UserError: fewer than two numbers, one below 1, or they do not ascend.
    """

    ordered = True
    falling: ClassVar[bool] = False  # the smallest network has the largest number: a dilation
    options: tuple[int, ...]

    def __init__(
        self, options: Sequence[int], relax: Relaxation = softmax, gumbel: bool = False
    ) -> None:
        numbers = tuple(options)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
        order = sorted(set(numbers), reverse=self.falling) if whole else []
        if len(numbers) < 2 or not whole or list(numbers) != order:
            raise UserError(
                "an elastic number needs at least two whole numbers in "
                + (
                    "falling order, e.g. [4, 2, 1]"
                    if self.falling
                    else "ascending order, e.g. [3, 5, 7]"
                )
                + f", got {list(options)}"
            )
        super().__init__(numbers, relax, gumbel)

    def active_if(self) -> Mapping[Option, nn.Module]:
        return {}

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """Nothing: the modules that read the number change, not this one."""
        return nn.Identity()


Number = int | Elastic


def elastic(options: int | Sequence[int]) -> Number:
    """`Elastic`, or the number itself where there is nothing to choose."""
    if isinstance(options, int):
        return options
    return options[0] if len(options) == 1 else Elastic(options)


def options_of(number: Number) -> tuple[int, ...]:
    """The values that a number may have, in ascending order."""
    return (number,) if isinstance(number, int) else number.options


def theta_of(number: Number, like: Tensor) -> Tensor:
    """Theta of a number ``(K,)``; ``[1]`` on the device of `like` if it is not searched."""
    return torch.ones(1, device=like.device) if isinstance(number, int) else number.theta


def taken(number: Number, options: Mapping[Decision, Option]) -> int:
    """The value of a number under `options`."""
    return number if isinstance(number, int) else int(str(options[number]))


def decided(*numbers: Number) -> tuple[Decision, ...]:
    """The numbers that are searched, each once."""
    return tuple(dict.fromkeys(n for n in numbers if isinstance(n, Elastic)))


def prefix(theta: Tensor, sizes: Sequence[int]) -> tuple[int, Tensor | None]:
    """How many of the first channels run, and the probability that each is there.

    The latter ``(channels,)``, or None where it is 1 for all and alphas want no gradient.

    Shape: theta ``(K,)``, one size for each of its entries.
    """
    values = theta.tolist()
    channels = max(size for size, value in zip(sizes, values, strict=True) if value)
    if not theta.requires_grad and all(value in (0.0, 1.0) for value in values):
        return channels, None
    places = torch.arange(channels, device=theta.device)
    there = places < torch.tensor(sizes, device=theta.device)[:, None]
    return channels, theta @ there.to(theta)


def weighted(weight: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """`weight` times `mask` along `dim`."""
    if mask is None:
        return weight
    shape = [-1 if d == dim else 1 for d in range(weight.ndim)]
    return weight * mask.to(weight).view(shape)


def weighted_sum(decision: RelaxedDecision, run: Callable[[Any], Tensor]) -> Tensor:
    """``sum_k theta_k * run(k)`` over the options of theta above 0, in their order."""
    theta = decision.theta
    total: Tensor | None = None
    for option, value, share in zip(decision.options, theta.tolist(), theta, strict=True):
        if value == 0:
            continue
        y = run(option)
        term = y if value == 1 and not share.requires_grad else share * y
        total = term if total is None else total + term
    assert total is not None  # relaxations never close every option
    return total


class ElasticDepth(Searchable):
    """A stage of which the first d blocks run, d searched (Cai et al. 2020).

    ``y = sum_d theta_d * blocks[d - 1](...(blocks[0](x)))``; what no open depth reaches is not run.

    Args:
        blocks: name -> block, as many as the largest depth; all after the first keep the shape.
        depth: options between 1 and the number of blocks.
    """

    keeps_parts = True

    def __init__(self, blocks: Mapping[str, nn.Module], depth: Elastic) -> None:
        super().__init__()
        self.depth = depth
        self.blocks = nn.Sequential(OrderedDict(blocks))

    def forward(self, x: Tensor) -> Tensor:
        blocks, done = list(self.blocks), 0

        def run(depth: int) -> Tensor:
            nonlocal x, done
            for block in blocks[done:depth]:
                x = block(x)
            done = depth
            return x

        return weighted_sum(self.depth, run)

    def decisions(self) -> tuple[Decision, ...]:
        return (self.depth,)

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Sequential:
        names = list(dict(self.blocks.named_children()))[: int(str(options[self.depth]))]
        kept = OrderedDict((name, self.blocks.get_submodule(name)) for name in names)
        # One level more than needed, so that paths stay those of the supernet.
        return nn.Sequential(OrderedDict(blocks=nn.Sequential(kept))).train(self.training)


class Resize(nn.Module):
    """Bilinear (linear for sequences) interpolation to `size` along every side."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if all(side == self.size for side in x.shape[2:]):
            return x
        mode = "bilinear" if x.ndim == 4 else "linear"
        return F.interpolate(x, [self.size] * (x.ndim - 2), mode=mode, align_corners=False)


class ElasticResolution(Searchable):
    """A body whose input is resized to a searched size first.

    ``y = sum_r theta_r * body(resize(x, r))``.

    Args:
        body: gives the same shape for every size.
        resolution: sides of the input.
    """

    keeps_parts = True

    def __init__(self, body: nn.Module, resolution: Elastic) -> None:
        super().__init__()
        self.resolution, self.body = resolution, body

    def forward(self, x: Tensor) -> Tensor:
        return weighted_sum(self.resolution, lambda size: self.body(Resize(size)(x)))

    def decisions(self) -> tuple[Decision, ...]:
        return (self.resolution,)

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Sequential:
        kept = OrderedDict(resize=Resize(int(str(options[self.resolution]))), body=self.body)
        return nn.Sequential(kept).train(self.training)


class ElasticChannels(Searchable):
    """Base of layers whose input or output channels may be searched."""

    in_channels: Number
    out_channels: Number

    def decisions(self) -> tuple[Decision, ...]:
        return decided(self.in_channels, self.out_channels)

    def in_channels_used(self, options: Mapping[Decision, Option]) -> int | None:
        return taken(self.in_channels, options)


Make = Callable[..., nn.Module]  # sizes -> op


class ElasticForm(Searchable):
    """An op at its largest sizes; smaller ones use the first slice of each of its tensors.

    Args:
        make: builds the op of these sizes; all its tensors grow with them and in nothing else.
        sizes: by name, each a number, or an `Elastic` one; the decision is called by the name.
    """

    def __init__(self, make: Make, **sizes: Number) -> None:
        super().__init__()
        self.make, self.sizes = make, tuple(sizes)
        for name, size in sizes.items():
            setattr(self, name, size)
        self.op = make(*(options_of(size)[-1] for size in sizes.values()))
        # Of each combination, without values. No submodules: they hold nothing of their own.
        self._forms: dict[tuple[int, ...], nn.Module] = {}

    def decisions(self) -> tuple[Decision, ...]:
        return decided(*(getattr(self, name) for name in self.sizes))

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """The plain op of these sizes, with copies of the weights it uses."""
        sizes = [taken(getattr(self, name), options) for name in self.sizes]
        with torch.device("meta"), Unfilled():  # no time for values that are not kept
            made = self.make(*sizes)
        # In a trace the weights are without values, too.
        if all(_alike_without_values(whole, part) for _, whole, part in self._pairs(made)):
            return made.train(self.training)
        for name, value in self._slices(made).items():
            path, _, key = name.rpartition(".")
            owner, own = made.get_submodule(path), value.detach().clone()
            if isinstance(value, nn.Parameter) or key in owner._parameters:
                setattr(owner, key, nn.Parameter(own, requires_grad=value.requires_grad))
            else:
                owner.register_buffer(key, own)
        return made.train(self.training)

    def _form(self, *sizes: int) -> nn.Module:
        if sizes not in self._forms:
            with torch.device("meta"), Unfilled():
                self._forms[sizes] = self.make(*sizes)
        return self._forms[sizes].train(self.training)

    def _slices(self, form: nn.Module) -> dict[str, Tensor]:
        """The values for the tensors of `form`, by name."""
        found = self._pairs(form)
        return {name: x[tuple(slice(size) for size in like.shape)] for name, x, like in found}

    def _pairs(self, form: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
        """Name of each tensor of `form`, that of the whole op, its own."""
        own = dict([*self.op.named_parameters(), *self.op.named_buffers()])
        shapes = [*form.named_parameters(), *form.named_buffers()]
        return [(name, own[name], like) for name, like in shapes]


class Unfilled(TorchFunctionMode):
    """Modules that are made inside keep their tensors as they are allocated."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _alike_without_values(whole: Tensor, part: Tensor) -> bool:
    grads = whole.requires_grad == part.requires_grad
    return whole.is_meta and whole.dtype == part.dtype and grads


class ElasticWidth(ElasticForm):
    """An op of searched channels.

    Under a soft theta it runs on the channels that are there, and channel c of the output is
    multiplied by the probability that it is there, see above; inner widths (an expansion)
    follow the widest input.

    Args:
        make: as of `ElasticForm`, of input and output channels.
        in_channels, out_channels: each a number, or an `Elastic` one.

    Shape: ``(N, C_in, *S) -> (N, C_out, *S / stride)``.
    """

    in_channels: Number
    out_channels: Number

    def __init__(self, make: Make, in_channels: Number, out_channels: Number) -> None:
        super().__init__(make, in_channels=in_channels, out_channels=out_channels)

    def forward(self, x: Tensor) -> Tensor:
        outputs, there = prefix(theta_of(self.out_channels, x), options_of(self.out_channels))
        form = self._form(x.shape[1], outputs)
        masked = isinstance(form, Residual) and there is not None
        # Statistics of norms are updated in place, and slices are views.
        mask = {"mask": there} if masked else {}
        y: Tensor = functional_call(form, self._slices(form), (x,), mask)
        return y if masked else weighted(y, there, 1)

    def in_channels_used(self, options: Mapping[Decision, Option]) -> int | None:
        return taken(self.in_channels, options)
