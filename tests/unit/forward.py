"""A module whose forward pass is a function of the test."""

from torch import nn


class Forward(nn.Module):
    """`function(self, x)` as the forward pass of a module that holds `layers`."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.function(self, *inputs)
