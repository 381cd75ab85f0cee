"""Packing weights leaves no copy of the originals in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.cpu import quantized_linear
from engine.cpu.linear import MakeLinear, PackedLinear, fastest_linear, pack
from engine.cpu.packed_gemm import PackedGemmLinear
from engine.cpu.quantized_linear import (
    HALF_STEPS,
    HalfLinear,
    Int8Linear,
    PlainInt8Linear,
)
from tests.processors import NEEDS_BFLOAT16

LAYERS = [
    PackedGemmLinear, PackedLinear, Int8Linear, pytest.param(HalfLinear, marks=NEEDS_BFLOAT16)
]  # fmt: skip


def storages(module: nn.Module) -> set[int]:
    """The storages of all tensors that a module reaches, parameters or not."""
    return {each.untyped_storage().data_ptr() for each in tensors(module)} - {0}


def file_of(sizes: list[tuple[int, ...]]) -> list[Tensor]:
    """Tensors that are views of one storage, as those of a checkpoint are."""
    numbers = torch.randn(sum(map(math.prod, sizes)))
    ends = list(accumulate(map(math.prod, sizes)))
    return [
        numbers[end - math.prod(size) : end].view(size)
        for size, end in zip(sizes, ends, strict=True)
    ]


def tensors(module: nn.Module) -> Iterator[Tensor]:
    for each in module.modules():
        yield from each.parameters(recurse=False)
        yield from each.buffers(recurse=False)
        yield from (
            value
            for value in vars(each).values()
            if isinstance(value, Tensor) and value.layout is torch.strided
        )


@pytest.mark.parametrize("make", LAYERS)
def test_no_tensor_of_the_checkpoint_is_held(make: MakeLinear) -> None:
    """All tensors of `from_pretrained` are views of one file, which stays as long as one of
    them."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(5, 64), nn.LayerNorm(64), nn.Linear(64, 64))
    *of_parameters, of_buffer = file_of([*(each.shape for each in model.parameters()), (3,)])
    for parameter, read in zip(model.parameters(), of_parameters, strict=True):
        parameter.data = read
    model.register_buffer("table", of_buffer[None])
    x = torch.tensor([[1, 4]])
    before, expected = storages(model), model(x)
    assert len(before) == 1
    assert pack(model, make, min_weights=0) == 1
    assert not storages(model) & before
    assert model.table._base is None, "a view holds what it is a view of"
    # The error of int8 is about 0.01, and 0.015 with the seven bits of processors without VNNI.
    assert (model(x) - expected).norm() < 0.03 * expected.norm()


def test_a_packed_gemm_that_multiplies_wrongly_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert fastest_linear() is PackedGemmLinear
    whole = PackedGemmLinear.forward
    monkeypatch.setattr(PackedGemmLinear, "forward", lambda self, x: 1.001 * whole(self, x))
    with caplog.at_level(logging.WARNING):
        assert fastest_linear() is PackedLinear
    assert [each.message for each in caplog.records] == ["kernel disagrees with torch"]


@pytest.mark.parametrize("make", [Int8Linear, PlainInt8Linear])
def test_the_largest_products_of_bytes_are_summed_up_whole(make: MakeLinear) -> None:
    """Without VNNI, a processor saturates sums of two products at 16 bits if rows have eight."""
    rows = torch.stack([torch.ones(512), -torch.ones(512), torch.linspace(-3, 3, 512)])
    found = make(torch.ones(64, 512), None)(rows)
    assert torch.allclose(found, rows.sum(dim=1, keepdim=True).expand(3, 64), atol=1e-3)


def test_rows_of_seven_bits_are_multiplied_on_every_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantized_linear, "row_steps", lambda: HALF_STEPS)
    weight, rows = torch.randn(64, 512), torch.randn(5, 512)
    expected = rows @ weight.t()
    assert (Int8Linear(weight, None)(rows) - expected).norm() < 0.025 * expected.norm()


@pytest.mark.parametrize("make", LAYERS)
def test_rows_of_another_width_are_refused(make: MakeLinear) -> None:
    linear = make(torch.randn(64, 64), None)
    for width in (32, 63, 128):
        with pytest.raises(ValueError, match=f"rows of {width} for a product of 64"):
            linear(torch.randn(2, width))


@pytest.mark.parametrize("make", LAYERS)
def test_a_transposed_weight_gives_the_same_products(make: MakeLinear) -> None:
    """GPT-2 keeps its weights transposed."""
    weight, x = torch.randn(64, 96).t(), torch.randn(5, 64)
    expected = x @ weight.t()
    assert (make(weight, None)(x) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(("out_features", "in_features"), [(192, 32), (512, 512), (64, 200)])
def test_a_row_has_the_same_product_alone_and_among_many(
    make: MakeLinear, out_features: int, in_features: int
) -> None:
    linear, x = make(torch.randn(out_features, in_features), None), torch.randn(130, in_features)
    alone = torch.cat([linear(row[None]) for row in x])
    for num_rows in (2, 16, 33, 37, 64, 121, 130):
        assert torch.equal(linear(x[:num_rows]), alone[:num_rows]), num_rows
