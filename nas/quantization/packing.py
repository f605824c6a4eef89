"""Weights of 2, 4 and 8 bits as bytes.

A value takes `bits` bits in two's complement. Rows, one for each output channel, begin at a byte;
inside, the first value has the lowest bits (little end first), and what is left of the last byte
is 0.
"""

import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.quantization.quantizers import check_bits


def packed_bytes(rows: int, numel: int, bits: int) -> int:
    """Bytes of `numel` values of `bits` bits in `rows` rows, each of whole bytes."""
    return rows * -(-(numel // rows) * bits // 8) if rows else 0


def bytes_of_bits(rows: int) -> int:
    """Bytes that say how many bits each of so many rows has, see `pack_bits`."""
    return -(-rows // 4)


def pack_bits(bits: Tensor) -> bytes:
    """``log2`` of the bits 2, 4 or 8 of each row ``(C_out,)``, four rows in a byte.

    Example:
        >>> import torch
        >>> from nas.quantization.packing import pack_bits
        >>> pack_bits(torch.tensor([2, 4, 8, 8, 4])).hex(" ")
        'f9 02'
    """
    codes = bits.float().log2().long()
    return pack(torch.where(codes > 1, codes - 4, codes)[None], 2)


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
