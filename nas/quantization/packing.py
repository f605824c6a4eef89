"""Weights of 2, 4 and 8 bits as bytes, and the tensors that a packed network stores.

A value takes `bits` bits in two's complement. Rows, one for each output channel, begin at a byte;
inside, the first value has the lowest bits (little end first), and what is left of the last byte
is 0.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.errors import UserError
from nas.quantization.layers import QuantizedLayer
from nas.quantization.quantizers import check_bits


def packed_bytes(rows: int, numel: int, bits: int) -> int:
    """Bytes of `numel` values of `bits` bits in `rows` rows, each of whole bytes."""
    return rows * -(-(numel // rows) * bits // 8) if rows else 0


def pack(values: Tensor, bits: int) -> bytes:
    """Whole numbers ``(C_out, ...)`` as bytes.

    Raises:
        UserError: another width than 2, 4 or 8, or a value that it does not hold.

    Example:
        >>> import torch
        >>> from nas.quantization.packing import pack
        >>> pack(torch.tensor([[1, -1, 0], [0, 1, 1]]), 4).hex(" ")
        'f1 00 10 01'
    """
    check_bits("pack", bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if values.numel() and not (low <= int(values.min()) and int(values.max()) <= high):
        raise UserError(
            f"pack: {bits} bits hold {low} to {high}, and the values are from {int(values.min())} "
            f"to {int(values.max())}"
        )
    per_byte = 8 // bits
    rows = values.reshape(len(values), -1).long() & (2**bits - 1)
    rows = nn.functional.pad(rows, (0, -rows.shape[1] % per_byte)).view(len(rows), -1, per_byte)
    shifts = torch.arange(per_byte) * bits
    return bytes((rows << shifts).sum(-1).to(torch.uint8).flatten().tolist())


def unpack(content: bytes, shape: tuple[int, ...], bits: int) -> Tensor:
    """What `pack` was given, int8 of `shape`.

    Raises:
        UserError: another width than 2, 4 or 8, or another number of bytes than `shape` takes.
    """
    check_bits("unpack", bits)
    expected = packed_bytes(shape[0], prod(shape), bits)
    if len(content) != expected:
        raise UserError(
            f"unpack: {shape} of {bits} bits are {expected} bytes, and there are {len(content)}"
        )
    packed = torch.tensor(list(content), dtype=torch.long).view(shape[0], -1, 1)
    values = (packed >> torch.arange(8 // bits) * bits) & (2**bits - 1)
    values = values.flatten(1)[:, : prod(shape[1:])]
    signed = torch.where(values >= 2 ** (bits - 1), values - 2**bits, values)
    return signed.reshape(shape).to(torch.int8)


def packed_tensors(network: nn.Module) -> dict[str, bytes]:
    """The content of every tensor that `network` stores, by name: packed weights, else as it is.

    A network to be stored has no BatchNorm, see `nas.quantization.folding.folded`. Steps, biases,
    and what is not quantised are float32, 4 bytes each.

    Raises:
        UserError: a BatchNorm is left.
    """
    found: dict[str, bytes] = {}
    seen: set[int] = set()
    for path, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            raise UserError(f"{path} is a BatchNorm: fold it first, nas.quantization.folded")
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            key = f"{path}.{name}".lstrip(".")
            if isinstance(module, QuantizedLayer) and name == "weight":
                integers = module.weight_quantizer.integers(tensor)
                found[key] = pack(integers, module.weight_bits)
            else:
                found[key] = tensor.detach().cpu().contiguous().numpy().tobytes()
    return found
