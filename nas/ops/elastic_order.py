"""Which of its channels an elastic layer keeps: the most important ones come first."""

import torch
from torch import nn

from nas.ops.elastic import Elastic
from nas.ops.elastic_conv import ElasticConv
from nas.ops.elastic_mbconv import ElasticMBConv


@torch.no_grad()
def sort_channels(model: nn.Module) -> None:
    """Reorder all elastic channels of `model` by falling importance, in place.

    Importance is ``sum |w|`` over the weights of the next pointwise convolutions that read the
    channel (Cai et al. 2020, Section 3.3). The network of all channels computes what it did before.
    """
    layers = [m for m in model.modules() if isinstance(m, ElasticConv | ElasticMBConv)]
    for layer in layers:
        if isinstance(layer, ElasticMBConv):
            layer.sort_hidden()
    for width in dict.fromkeys(layer.in_channels for layer in layers):
        if isinstance(width, Elastic):
            # All layers that write or read these channels are permuted alike: residuals add them.
            readers = [layer for layer in layers if layer.in_channels is width]
            importance = torch.stack([reader.importance() for reader in readers]).sum(0)
            order = importance.argsort(descending=True, stable=True)
            for layer in layers:
                if layer.out_channels is width:
                    layer.permute_outputs(order)
                if layer.in_channels is width:
                    layer.permute_inputs(order)
