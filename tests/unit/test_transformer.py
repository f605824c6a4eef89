"""Transformer encoders: what attention costs, what a soft theta mixes, what is refused."""

import pytest
import torch
from torch.testing import assert_close

from nas.cost.analytic import MACs
from nas.cost.expected import ExpectedCost
from nas.decision import decisions
from nas.errors import UserError
from nas.spaces.transformer import ElasticEncoderBlock, Transformer
from nas.supernet.elastic import Elastic

SMALL = {"dim": 8, "head_dim": 4, "heads": [1, 3], "mlp": [8, 12], "depth": [1, 2]}


@pytest.mark.parametrize(("shape", "tokens"), [((3, 8, 12), 6), ((3, 20), 5)])
def test_macs_are_those_of_its_matrix_products(shape, tokens):
    net = Transformer(shape, 4, **SMALL)
    taken = {name: decision.options[-1] for name, decision in decisions(net)}
    inputs = 3 * 4 ** (len(shape) - 1)  # values of a patch
    block = 8 * 3 * 12 + 12 * 8 + 2 * 8 * 12 + 2 * 3 * tokens * 4  # of a token; QK^T and AV at last
    expected = tokens * (inputs * 8 + 2 * block) + 8 * 4
    assert ExpectedCost(net, MACs(), shape).of(taken) == expected
    assert net(torch.randn(2, *shape)).shape == (2, 4)


def test_attention_is_torchs():
    block = Transformer((3, 8, 8), 4, **SMALL).blocks.blocks[0].op
    x = torch.randn(2, 5, 8)
    parts = block.qkv(block.norm(x)).view(2, 5, 3, 3, 4).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(*parts.unbind(3))
    y = x + block.project(attended.transpose(1, 2).flatten(2))
    assert_close(block(x), y + block.reduce(block.gelu(block.expand(block.mlp_norm(y)))))


def test_a_soft_theta_scales_what_each_head_adds():
    block = ElasticEncoderBlock(8, 4, Elastic([1, 3]), 6).eval()
    x = torch.randn(2, 5, 8)
    theta = block.heads.theta[1].item()
    project = block.op.project.weight
    with torch.no_grad():
        mixed = block(x)
        project[:, 4:] *= theta
        assert_close(block.op(x), mixed)


def test_a_patch_that_does_not_divide_the_input_is_refused():
    with pytest.raises(UserError, match=r"patch=4 does not divide .*\(30, 20\).*\[1, 2, 5, 10\]"):
        Transformer((3, 30, 20), 4)
