"""A packed gemm gives torch's numbers, and for each row the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from engine.cpu.packed_gemm import PackedGemmLinear


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    torch.manual_seed(num_inputs)
    return nn.Linear(num_inputs, num_outputs)


def packed(made: nn.Linear) -> PackedGemmLinear:
    return PackedGemmLinear(made.weight.detach(), made.bias.detach())


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7, 8, 9, 15, 16, 151])
@pytest.mark.parametrize("sizes", [(64, 96), (1, 33), (33, 31), (7, 64), (768, 1001)])
def test_the_product_is_that_of_torch(sizes: tuple[int, int], num_rows: int) -> None:
    made = linear(*sizes)
    ours = packed(made)
    rows = torch.randn(num_rows, sizes[0])
    torch.testing.assert_close(ours(rows), made(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(num_threads: int) -> None:
    ours = packed(linear(640, 520))
    rows = torch.randn(77, 640)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = ours(rows)
        for row, expected in zip(rows, together, strict=True):
            assert torch.equal(ours(row), expected)
    finally:
        torch.set_num_threads(before)


def test_rows_may_be_slices_of_wider_rows_in_any_shape() -> None:
    made = linear(64, 96)
    ours = packed(made)
    x = torch.randn(3, 5, 200)
    part, turned = x[..., 7:71], x[..., :64].transpose(0, 1)
    torch.testing.assert_close(ours(part), made(part), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(turned), made(turned), rtol=1e-4, atol=1e-5)
    assert ours(x[:0, :, :64]).shape == (0, 5, 96)


def test_nan_stays_in_its_row() -> None:
    ours = packed(linear(64, 33))
    rows = torch.randn(11, 64)
    expected = ours(rows)
    rows[4] = torch.nan
    found = ours(rows)
    assert found[4].isnan().all()
    assert torch.equal(found[:4], expected[:4])
    assert torch.equal(found[5:], expected[5:])
