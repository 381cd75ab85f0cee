"""Bits: small integers out of the words that several of them share."""

from __future__ import annotations

import torch
from torch import Tensor


def unpacked(words: Tensor, num_bits: int, dim: int) -> Tensor:
    """The unsigned integers of int32 words along a dimension, the lowest bits first; int32.

    A word holds as many as fit into 32 bits.
    """
    per_word = 32 // num_bits
    shifts = torch.arange(per_word, dtype=torch.int32) * num_bits
    dim = dim % words.dim()
    shape = [1] * (words.dim() + 1)
    shape[dim + 1] = per_word
    values: Tensor = (words.unsqueeze(dim + 1) >> shifts.view(shape)) & (2**num_bits - 1)
    return values.flatten(dim, dim + 1)


def nibbles(packed: Tensor, high_first: bool = False) -> Tensor:
    """Two integers of four bits from each byte, along the last dimension; int64."""
    low, high = packed & 0xF, packed >> 4
    pair = (high, low) if high_first else (low, high)
    return torch.stack(pair, -1).flatten(-2).long()


# What four bits stand for in E2M1, by their number.
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4 = torch.cat([FP4, -FP4])


def powers(exponents: Tensor) -> Tensor:
    """The scales that bytes in E8M0 stand for; other scales as float32."""
    if exponents.dtype != torch.uint8:
        return exponents.float()
    # They are the exponents of a float32, whose least is beyond them.
    words = exponents.int() << 23
    return torch.where(exponents == 0, 1 << 22, words).int().view(torch.float32)


def spread(scales: Tensor, shape: torch.Size, block: tuple[int, int] | None = None) -> Tensor:
    """Scales of a weight, or of its blocks, as wide as the weight in its last two dimensions.

    block: rows and columns that share a scale; None: as the numbers of scales divide the weight
    """
    if scales.numel() == 1:
        return scales.reshape(())
    if scales.dim() == 1:
        scales = scales[:, None]
    for dim, size in ((-2, shape[-2]), (-1, shape[-1])):
        num = scales.shape[dim]
        if num in (1, size):
            continue
        width = block[dim] if block is not None else -(-size // num)
        if -(-size // width) != num:
            raise ValueError(f"{num} scales for {size} numbers in blocks of {width}")
        scales = scales.repeat_interleave(width, dim).narrow(dim, 0, size)
    return scales
