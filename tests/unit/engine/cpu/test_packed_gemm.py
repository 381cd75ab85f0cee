"""Products with panels: torch's numbers, and for each row the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from engine.cpu.kernels.llvm_ir import LANES

# By what the processor has, not by whether they could be imported: that may not fail unseen.
pytestmark = pytest.mark.skipif(LANES < 16, reason="registers have fewer than 16 floats")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def linear(num_inputs: int, num_outputs: int) -> nn.Linear:
    torch.manual_seed(num_inputs)
    return nn.Linear(num_inputs, num_outputs)


def pack_panels(made: nn.Linear) -> nn.Module:
    from engine.cpu.packed_gemm import PackedGemmLinear

    return PackedGemmLinear(made.weight.detach(), made.bias.detach())  # type: ignore[no-any-return]  # a module


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7, 8, 9, 15, 16, 151])
@pytest.mark.parametrize("sizes", [(64, 96), (1, 33), (33, 31), (7, 64), (768, 1001)])
def test_the_product_is_that_of_torch(sizes: tuple[int, int], num_rows: int) -> None:
    made = linear(*sizes)
    ours = pack_panels(made)
    rows, others = torch.randn(num_rows, sizes[0]), torch.randn(num_rows, sizes[1])
    expected = made(rows)
    torch.testing.assert_close(ours(rows), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.plus(rows, others), expected + others, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_gives_the_same_bits_alone_and_in_company(num_threads: int) -> None:
    ours = pack_panels(linear(640, 520))
    rows = torch.randn(77, 640)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        together = ours(rows)
        for row, expected in zip(rows, together, strict=True):
            assert torch.equal(ours(row), expected)
    finally:
        torch.set_num_threads(before)


def test_rows_may_be_parts_of_wider_ones_and_of_any_shape() -> None:
    made = linear(64, 96)
    ours = pack_panels(made)
    x = torch.randn(3, 5, 200)
    part, turned = x[..., 7:71], x[..., :64].transpose(0, 1)
    torch.testing.assert_close(ours(part), made(part), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(turned), made(turned), rtol=1e-4, atol=1e-5)
    assert ours(x[:0, :, :64]).shape == (0, 5, 96)


def test_numbers_that_are_none_stay_in_their_row() -> None:
    ours = pack_panels(linear(64, 33))
    rows = torch.randn(11, 64)
    expected = ours(rows)
    rows[4] = torch.nan
    found = ours(rows)
    assert found[4].isnan().all()
    assert torch.equal(found[:4], expected[:4])
    assert torch.equal(found[5:], expected[5:])
