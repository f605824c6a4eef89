"""Transformer encoders over patches of images or sequences, of searched heads, widths and depth."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nas.config.schema import BelowOne, Count, Positive, checked
from nas.errors import UserError
from nas.ops.blocks import CONV
from nas.supernet.elastic import (
    ElasticDepth,
    ElasticForm,
    Number,
    elastic,
    options_of,
    prefix,
    theta_of,
    weighted,
)


class EncoderBlock(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm and beside its input (ViT, Dosovitskiy 2021).

    Attention is ``softmax(Q K^T / sqrt(head_dim)) V`` for each head (Vaswani et al. 2017, Eq. 1),
    as two products of matrices that every exporter and every counter knows.

    Args:
        dim: of a token.
        head_dim: of a head; not bound to ``dim / heads``, so that heads can be left out.
        heads: number of them.
        mlp: hidden width of the MLP.

    Shape: ``(N, tokens, dim) -> (N, tokens, dim)``.
    """

    def __init__(self, dim: int, head_dim: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.norm = nn.LayerNorm(dim)
        # The rows of a head are together, so that fewer heads are the first rows.
        self.qkv = nn.Linear(dim, heads * 3 * head_dim)
        self.project = nn.Linear(heads * head_dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.expand, self.gelu, self.reduce = nn.Linear(dim, mlp), nn.GELU(), nn.Linear(mlp, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(2, (self.heads, 3, self.head_dim))
        query, key, value = parts.permute(3, 0, 2, 1, 4).unbind()  # each (N, heads, tokens, dim)
        scores = query @ key.transpose(2, 3) * self.head_dim**-0.5
        y = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + self.project(y)
        out: Tensor = x + self.reduce(self.gelu(self.expand(self.mlp_norm(x))))
        return out


class ElasticEncoderBlock(ElasticForm):
    """`EncoderBlock` of which the first heads and the first hidden channels run.

    Under a soft theta each is multiplied by the probability that it is there, in the weights that
    read it.
    """

    heads: Number
    mlp: Number

    def __init__(self, dim: int, head_dim: int, heads: Number, mlp: Number) -> None:
        super().__init__(partial(EncoderBlock, dim, head_dim), heads=heads, mlp=mlp)
        self.head_dim = head_dim

    def forward(self, x: Tensor) -> Tensor:
        heads, head_there = prefix(theta_of(self.heads, x), options_of(self.heads))
        width, there = prefix(theta_of(self.mlp, x), options_of(self.mlp))
        form = self._form(heads, width)
        tensors = self._slices(form)
        if head_there is not None:
            head_there = head_there.repeat_interleave(self.head_dim)
        tensors["project.weight"] = weighted(tensors["project.weight"], head_there, 1)
        tensors["reduce.weight"] = weighted(tensors["reduce.weight"], there, 1)
        y: Tensor = functional_call(form, tensors, (x,))
        return y


@checked("space")
class Transformer(nn.Module):
    """Patches, positions, encoder blocks, LayerNorm, mean over the tokens, linear classifier.

    The mean in place of a class token: as accurate at this size, and one token less (Beyer et al.
    2022). Block b is ``blocks.blocks.b<b>``, with the decisions ``.heads`` and ``.mlp``.

    Args:
        input_shape: ``(C, H, W)`` for images, ``(C, L)`` for sequences, without the batch.
        num_outputs: size of the output.
        name: what `Arch.space` says of architectures found here.
        patch: side of a patch; it divides the sides of the input.
        dim: of a token.
        head_dim: of a head.
        heads: of each block; several are searched, and so are `mlp` and `depth`.
        mlp: hidden widths of each block.
        depth: numbers of blocks.
        width: factor of `dim`, `head_dim` and `mlp`.
        dropout: probability before the classifier, in training.

    Shape: ``(N, *input_shape) -> (N, num_outputs)``.

    Raises:
        UserError: one of these cannot be.
    """

    def __init__(
        self,
        input_shape: Sequence[Count],
        num_outputs: Count,
        name: str = "transformer",
        patch: Count = 4,
        dim: Count = 64,
        head_dim: Count = 16,
        heads: Sequence[Count] = (1, 2, 4),
        mlp: Sequence[Count] = (64, 128, 256),
        depth: Sequence[Count] = (2, 3, 4),
        width: Positive = 1.0,
        dropout: BelowOne = 0.0,
    ) -> None:
        super().__init__()
        self.name, self.input_shape = name, tuple(input_shape)
        sides = self.input_shape[1:]
        if len(sides) not in CONV:
            raise UserError(f"input_shape must be (C, H, W) or (C, L), got {self.input_shape}")
        if any(side % patch for side in sides):
            fits = [p for p in range(1, min(sides) + 1) if not any(side % p for side in sides)]
            raise UserError(
                f"space.patch={patch} does not divide the sides {sides} of the input: take one of "
                f"{fits}"
            )
        dim, head_dim, *widths = (max(1, round(n * width)) for n in (dim, head_dim, *mlp))
        self.embed = CONV[len(sides)](self.input_shape[0], dim, patch, patch)
        tokens = int(torch.Size(side // patch for side in sides).numel())
        self.positions = nn.Parameter(torch.empty(1, tokens, dim).normal_(std=0.02))
        numbers = sorted(set(widths))
        blocks = {
            f"b{b}": ElasticEncoderBlock(dim, head_dim, elastic(heads), elastic(numbers))
            for b in range(max(depth))
        }
        blocks_of = elastic(depth)
        if isinstance(blocks_of, int):
            self.blocks: nn.Module = nn.Sequential(OrderedDict(blocks))
        else:
            self.blocks = ElasticDepth(blocks, blocks_of)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        x = self.norm(self.blocks(tokens)).mean(1)
        y: Tensor = self.classifier(self.dropout(x))
        return y
