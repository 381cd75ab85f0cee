"""Linear layers that are merged give what they give one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.cpu.linear import MakeLinear, PackedLinear, pack
from engine.cpu.merged_linear import LinearSlice
from engine.cpu.packed_gemm import PackedGemmLinear
from engine.cpu.quantized_linear import HalfLinear, Int8Linear
from tests.processors import NEEDS_BFLOAT16


class Attention(nn.Module):
    """Query heads of another number than those of the keys; only some have a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(64, 96)
        self.k_proj = nn.Linear(64, 32, bias=False)
        self.v_proj = nn.Linear(64, 32)

    def forward(self, x: Tensor, others: Tensor | None = None) -> list[Tensor]:
        keys = x if others is None else others
        return [self.q_proj(x), self.k_proj(keys), self.v_proj(keys)]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.encoder_attn = Attention()


def close(one: list[Tensor], other: list[Tensor], share: float) -> bool:
    return all((a - b).norm() <= share * b.norm() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (PackedGemmLinear, 1e-6),
        (PackedLinear, 1e-6),
        (Int8Linear, 0.03),
        pytest.param(HalfLinear, 0.01, marks=NEEDS_BFLOAT16),
    ],
)
@torch.inference_mode()
def test_each_slice_gives_what_its_layer_gave(make: MakeLinear, share: float) -> None:
    model: Any = Model()
    x, others = torch.randn(5, 1, 64), torch.randn(1, 9, 64)
    expected = [*model.self_attn(x), *model.encoder_attn(x, others)]
    pack(model, make, min_weights=0)
    assert [type(each) for each in model.self_attn.children()] == [LinearSlice] * 3
    found = [*model.self_attn(x), *model.encoder_attn(x, others)]
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert close(found, expected, share)


@torch.inference_mode()
def test_the_merged_product_is_computed_once_and_released() -> None:
    model: Any = Model()
    pack(model, PackedLinear, min_weights=0)
    merged = model.self_attn.q_proj.merged
    products: list[Tensor] = []
    merged.linear.register_forward_hook(lambda *call: products.append(call[-1]))
    x = torch.randn(3, 64)
    model.self_attn(x)
    assert len(products) == 1
    assert merged.rows is merged.product is None
    model.self_attn(x)  # the same tensor may have other numbers by now
    assert len(products) == 2


@torch.inference_mode()
def test_a_slice_called_with_other_rows_gets_their_product() -> None:
    model: Any = Model()
    one, other = torch.randn(3, 64), torch.randn(3, 64)
    expected = model.self_attn(one)
    pack(model, PackedLinear, min_weights=0)
    queries = model.self_attn.q_proj(one)
    model.self_attn.q_proj(other)
    model.self_attn.k_proj(other)
    found = [queries, model.self_attn.k_proj(one), model.self_attn.v_proj(one)]
    assert close(found, expected, 1e-6)


def test_cross_attention_queries_are_not_merged() -> None:
    model: Any = Model()
    pack(model, PackedLinear, min_weights=0)
    kinds = [type(each) for each in model.encoder_attn.children()]
    assert kinds == [PackedLinear, LinearSlice, LinearSlice]


def test_layers_of_different_input_widths_are_not_merged() -> None:
    attention: Any = Attention()
    attention.k_proj = nn.Linear(48, 32)
    model: Any = nn.ModuleDict({"attends_to_another": attention})
    assert pack(model, PackedLinear, min_weights=0) == 3
    assert [type(each) for each in attention.children()] == [PackedLinear] * 3


@torch.inference_mode()
def test_small_layers_are_merged_but_not_packed() -> None:
    model: Any = Model()
    x = torch.randn(3, 64)
    expected = model.self_attn(x)
    assert pack(model, PackedLinear, min_weights=160 * 64 + 1) == 0
    assert type(model.self_attn.q_proj.merged.linear) is nn.Linear
    assert type(model.encoder_attn.q_proj) is nn.Linear
    assert close(model.self_attn(x), expected, 1e-6)
