"""`IntegerGraph`: operators on int8 values, and their exact simulation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nas.integer.operators import Conv, Operator, Value

_BATCH = 64  # samples that are simulated at once


@dataclass(frozen=True)
class IntegerGraph:
    """A network of whole numbers: what a device computes, to the bit.

    Called with inputs ``(N, *shape)`` it gives outputs ``(N, K)`` as real numbers, as the network
    that it was made from does.

    Args:
        start: the input.
        operators: in an order in which they can run.
        end: the output.
    """

    start: Value
    operators: tuple[Operator, ...]
    end: Value

    def __call__(self, x: Tensor) -> Tensor:
        """Real inputs ``(N, *shape)`` -> real outputs, float32."""
        return self.end.real(self.run(self.start.quantize(x)))

    def run(self, levels: Tensor) -> Tensor:
        """Levels of the input ``(N, *shape)`` -> levels of the output, int64."""
        return torch.cat([self._run(part) for part in torch.split(levels, _BATCH)])

    def _run(self, levels: Tensor) -> Tensor:
        last = {name: i for i, op in enumerate(self.operators) for name in op.inputs}
        last[self.end.name] = len(self.operators)
        found = {self.start.name: levels.to(torch.int64)}
        for number, operator in enumerate(self.operators):
            found[operator.output.name] = operator(*(found[name] for name in operator.inputs))
            found = {name: x for name, x in found.items() if last.get(name, -1) > number}
        return found[self.end.name]

    def convolutions(self) -> Iterator[Conv]:
        """The layers with weights."""
        return (operator for operator in self.operators if isinstance(operator, Conv))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, packed, with 2 for the bias and 2 for the scale of each channel.

        And 1 for the bits of four, in layers whose channels have different ones.
        """
        return sum(convolution.stored for convolution in self.convolutions())
