"""`ElasticWidth`: any convolutional op between searched numbers of channels."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.arch import Option
from nas.decision import Decision, Varying
from nas.ops.elastic import Number, decided, options_of, prefix, taken, theta_of, weighted

Make = Callable[[int, int], nn.Module]  # input and output channels -> op


class ElasticWidth(Varying):
    """The op of the widest channels, of which narrower ones use the first slice of every tensor.

    Under a soft theta it runs on the channels that are there, and channel c of the output is
    multiplied by the probability that it is there, as `nas.ops.elastic` has it; what it widens
    inside (an expansion) follows the widest input.

    Args:
        make: builds the op; all its tensors grow with the channels and in nothing else.
        in_channels, out_channels: each a number, or an `Elastic` one.

    Shape: ``(N, C_in, *S) -> (N, C_out, *S / stride)``.
    """

    def __init__(self, make: Make, in_channels: Number, out_channels: Number) -> None:
        super().__init__()
        self.make, self.in_channels, self.out_channels = make, in_channels, out_channels
        self.op = make(options_of(in_channels)[-1], options_of(out_channels)[-1])
        # Of each pair of channels, without values. No submodules: they hold nothing of their own.
        self._forms: dict[tuple[int, int], nn.Module] = {}

    def forward(self, x: Tensor) -> Tensor:
        outputs, there = prefix(theta_of(self.out_channels, x), options_of(self.out_channels))
        form = self._form(x.shape[1], outputs).train(self.training)
        # Statistics of norms are updated in place, and slices are views.
        y: Tensor = functional_call(form, self._slices(form), (x,))
        return weighted(y, there, 1)

    def decides(self) -> tuple[Decision, ...]:
        return decided(self.in_channels, self.out_channels)

    def reads(self, options: Mapping[Decision, Option]) -> int | None:
        return taken(self.in_channels, options)

    def variant(self, options: Mapping[Decision, Option]) -> nn.Module:
        """The plain op of these channels, with copies of the weights it uses."""
        with torch.device("meta"):  # no time for values that are not kept
            made = self.make(taken(self.in_channels, options), taken(self.out_channels, options))
        for name, value in self._slices(made).items():
            path, _, key = name.rpartition(".")
            owner, own = made.get_submodule(path), value.detach().clone()
            if isinstance(value, nn.Parameter) or key in owner._parameters:
                setattr(owner, key, nn.Parameter(own, requires_grad=value.requires_grad))
            else:
                owner.register_buffer(key, own)
        return made.train(self.training)

    def _form(self, inputs: int, outputs: int) -> nn.Module:
        if (inputs, outputs) not in self._forms:
            with torch.device("meta"):
                self._forms[inputs, outputs] = self.make(inputs, outputs)
        return self._forms[inputs, outputs]

    def _slices(self, form: nn.Module) -> dict[str, Tensor]:
        """What stands in `form` for its tensors, by their names."""
        own = dict([*self.op.named_parameters(), *self.op.named_buffers()])
        shapes = [*form.named_parameters(), *form.named_buffers()]
        return {name: own[name][tuple(slice(size) for size in like.shape)] for name, like in shapes}
