"""`Conv2d` with faster gradients on a CPU, for the shapes that its library treats badly."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN has no kernel of its own for these weight gradients and falls back on one small matrix
# product per channel and sample: 20 to 60 times the time of the forward pass.
SMALLEST_KERNEL = 5
# Products of whole rows grow with the side of the map; from about here on they are no gain. With
# channels last the fallback is four times as fast.
LARGEST_SIDE = {torch.contiguous_format: 64, torch.channels_last: 16}
# Output positions up to which a product with the input's columns beats a direct convolution.
FEW_POSITIONS = 4


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with, if wanted, faster kernels in training; equal within rounding.

    With `quick` set (see `nas.supernet.speed`), in training mode, in float32 on a CPU:

    - taps of the kernel that meet padding alone, whatever the position, are left out;
    - depthwise: the gradient of the weights is computed row by row, see `row_products`;
    - a large kernel over a map of few output positions is a matrix product.

    Everywhere else, and by default, it is its base class.
    """

    quick: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if not (self.quick and self.training and self._simple(input)):
            return super().forward(input)
        sides, kernel = input.shape[2:], self.kernel_size
        # An offset of a whole side or more meets no value.
        cut = [max(0, (k + 1) // 2 - side) for k, side in zip(kernel, sides, strict=True)]
        weight = self.weight[:, :, cut[0] : kernel[0] - cut[0], cut[1] : kernel[1] - cut[1]]
        padding = [k // 2 - c for k, c in zip(kernel, cut, strict=True)]
        if self.groups == 1:
            return _product(input, weight, self.stride, padding)
        y: Tensor = _Depthwise.apply(input, weight, self.stride, padding)
        return y

    def _simple(self, x: Tensor) -> bool:
        """Whether this is one of the convolutions that the other kernels make faster."""
        if (
            x.device.type != "cpu"
            or x.dtype != torch.float32
            or x.ndim != 4
            or torch.is_autocast_enabled("cpu")
            or self.bias is not None
            or self.dilation != (1, 1)
            or self.padding_mode != "zeros"
            or self.padding != tuple(k // 2 for k in self.kernel_size)
        ):
            return False
        sides, small = x.shape[2:], min(self.kernel_size) < SMALLEST_KERNEL
        if self.groups == 1:
            places = [-(-side // s) for side, s in zip(sides, self.stride, strict=True)]
            return not small and places[0] * places[1] <= FEW_POSITIONS
        if not self.groups == self.in_channels == self.out_channels:
            return False
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        limit = LARGEST_SIDE[torch.channels_last if last else torch.contiguous_format]
        return max(sides) <= limit and (not small or min(self.kernel_size) > max(sides))


def _product(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: list[int]) -> Tensor:
    # (N, C_in k k, L)
    columns = F.unfold(x, weight.shape[2:], padding=tuple(padding), stride=stride)
    places = [-(-side // s) for side, s in zip(x.shape[2:], stride, strict=True)]
    y = weight.flatten(1) @ columns
    return y.view(len(x), len(weight), *places)


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution whose gradient of the weights comes from `row_products`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: list[int]) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, ctx.stride, ctx.padding, [1, 1], False, [0, 0],
                len(weight), [True, False, False],
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            of_weight = row_products(x, grad, weight.shape[2:], ctx.stride, ctx.padding)
        return of_x, of_weight, None, None


def row_products(
    x: Tensor,
    grad: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: list[int],
) -> Tensor:
    """Gradient of the weights of a depthwise convolution, as few large batched products.

    ``dL/dw[c, i, j] = sum_(n, h, v) x[n, c, h s + i - p, v s + j - p] grad[n, c, h, v]``. For each
    row i of the kernel, one product over samples and rows gives ``(W, V)`` for all pairs of columns
    (u, v); tap j is the sum over the pairs with ``u = v s + j - p``, a diagonal.

    Shapes: x ``(N, C, H, W)``, grad ``(N, C, H', V)`` -> ``(C, 1, *kernel)``.
    """
    (n, c, side, width), (high, wide) = x.shape, grad.shape[2:]
    (rows, taps), (down, right) = kernel, stride
    reach = (high - 1) * down  # from the first to the last row that one row of the kernel meets
    below = reach + rows - padding[0] - side
    # (C, H, N, W): the rows that a row of the kernel meets lie behind one another.
    lines = F.pad(x.permute(1, 2, 0, 3), (0, 0, 0, 0, padding[0], below))
    grads = grad.permute(1, 2, 0, 3).reshape(c, high * n, wide)
    pairs = torch.stack(
        [
            lines[:, i : i + reach + 1 : down].reshape(c, high * n, width).mT @ grads
            for i in range(rows)
        ],
        1,
    )  # (C, rows, W, V)
    after = (wide - 1) * right + taps - padding[1] - width
    padded = F.pad(pairs, (0, 0, padding[1], after)).contiguous()
    across, step = padded.stride(1), padded.stride(2)
    diagonals = padded.as_strided(
        (c, rows, taps, wide), (padded.stride(0), across, step, step * right + 1)
    )
    return diagonals.sum(-1)[:, None]
