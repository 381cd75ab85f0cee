"""Unpacks small integers from the words or bytes that hold several of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def unpacked(words: Tensor, num_bits: int, dim: int) -> Tensor:
    """Unpack unsigned integers from int32 words along a dimension, lowest bits first.

    words:   int32; a word holds as many integers as fit into 32 bits
    returns: int32, larger along `dim`
    """
    per_word = 32 // num_bits
    shifts = torch.arange(per_word, dtype=torch.int32) * num_bits
    dim = dim % words.dim()
    shape = [1] * (words.dim() + 1)
    shape[dim + 1] = per_word
    values: Tensor = (words.unsqueeze(dim + 1) >> shifts.view(shape)) & (2**num_bits - 1)
    return values.flatten(dim, dim + 1)


def nibbles(packed: Tensor, high_first: bool = False) -> Tensor:
    """Unpack two four-bit integers from each byte.

    Returns int64, twice as long in the last dimension.
    """
    low, high = packed & 0xF, packed >> 4
    pair = (high, low) if high_first else (low, high)
    return torch.stack(pair, -1).flatten(-2).long()


# The values of the four-bit codes of E2M1.
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4 = torch.cat([FP4, -FP4])


def powers(exponents: Tensor) -> Tensor:
    """Convert scales to float32; bytes are read as E8M0 exponents. Returns the same shape."""
    if exponents.dtype != torch.uint8:
        return exponents.float()
    # The bytes are float32 exponents; the smallest is a subnormal number.
    words = exponents.int() << 23
    return torch.where(exponents == 0, 1 << 22, words).int().view(torch.float32)


def spread(scales: Tensor, shape: torch.Size, blocks: Iterable[tuple[int, int]] = ()) -> Tensor:
    """Expand the scales of a weight's blocks to the weight's last two dimensions.

    blocks:  the possible rows and columns of a block; none: the number of scales divides the size
    returns: a tensor that broadcasts to `shape`
    """
    if scales.numel() == 1:
        return scales.reshape(())
    if scales.dim() == 1:
        scales = scales[:, None]
    for dim, size in ((-2, shape[-2]), (-1, shape[-1])):
        num = scales.shape[dim]
        if num not in (1, size):
            width = width_of_blocks(size, num, [each[dim] for each in blocks])
            scales = scales.repeat_interleave(width, dim).narrow(dim, 0, size)
    return scales


def width_of_blocks(size: int, num: int, widths: Iterable[int]) -> int:
    """How many of `size` numbers share one of `num` scales.

    Raises ValueError if it is ambiguous.

    widths: the widths that the settings name; none: the blocks are equal
    """
    known = {each for each in widths if each > 0}
    fitting = {each for each in known if -(-size // each) == num}
    if not known and size % num == 0:
        fitting = {size // num}
    if len(fitting) != 1:
        named = ", ".join(map(str, sorted(known))) or "no size that is named"
        raise ValueError(f"{num} scales for {size} numbers in blocks of {named}")
    return fitting.pop()
