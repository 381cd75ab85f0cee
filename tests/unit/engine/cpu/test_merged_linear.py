"""Products that are computed as one are those that are asked for one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.cpu.linear import MakeLinear, PackedLinear, best, pack
from engine.cpu.merged_linear import Part
from engine.cpu.quantized import HalfLinear, Int8Linear


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
    [(best(), 1e-6), (PackedLinear, 1e-6), (Int8Linear, 0.03), (HalfLinear, 0.01)],
)
@torch.inference_mode()
def test_parts_are_what_they_were(make: MakeLinear, share: float) -> None:
    model: Any = Model()
    x, others = torch.randn(5, 1, 64), torch.randn(1, 9, 64)
    expected = [*model.self_attn(x), *model.encoder_attn(x, others)]
    pack(model, make, min_weights=0)
    assert [type(each) for each in model.self_attn.children()] == [Part] * 3
    found = [*model.self_attn(x), *model.encoder_attn(x, others)]
    assert [each.shape for each in found] == [each.shape for each in expected]
    assert close(found, expected, share)


@torch.inference_mode()
def test_the_product_is_computed_once_and_let_go() -> None:
    model: Any = Model()
    pack(model, PackedLinear, min_weights=0)
    together = model.self_attn.q_proj.together
    products: list[Tensor] = []
    together.linear.register_forward_hook(lambda *call: products.append(call[-1]))
    x = torch.randn(3, 64)
    model.self_attn(x)
    assert len(products) == 1
    assert together.rows is together.product is None
    model.self_attn(x)  # the same tensor may have other numbers by now
    assert len(products) == 2


@torch.inference_mode()
def test_other_rows_in_between_are_not_taken_for_the_first() -> None:
    model: Any = Model()
    one, other = torch.randn(3, 64), torch.randn(3, 64)
    expected = model.self_attn(one)
    pack(model, PackedLinear, min_weights=0)
    queries = model.self_attn.q_proj(one)
    model.self_attn.q_proj(other)
    model.self_attn.k_proj(other)
    found = [queries, model.self_attn.k_proj(one), model.self_attn.v_proj(one)]
    assert close(found, expected, 1e-6)


def test_queries_to_an_encoder_are_by_themselves() -> None:
    model: Any = Model()
    pack(model, PackedLinear, min_weights=0)
    kinds = [type(each) for each in model.encoder_attn.children()]
    assert kinds == [PackedLinear, Part, Part]


def test_what_takes_rows_of_another_width_is_by_itself() -> None:
    attention: Any = Attention()
    attention.k_proj = nn.Linear(48, 32)
    model: Any = nn.ModuleDict({"attends_to_another": attention})
    assert pack(model, PackedLinear, min_weights=0) == 3
    assert [type(each) for each in attention.children()] == [PackedLinear] * 3


@torch.inference_mode()
def test_small_products_are_one_and_otherwise_stay_as_they_are() -> None:
    model: Any = Model()
    x = torch.randn(3, 64)
    expected = model.self_attn(x)
    assert pack(model, PackedLinear, min_weights=160 * 64 + 1) == 0
    assert type(model.self_attn.q_proj.together.linear) is nn.Linear
    assert type(model.encoder_attn.q_proj) is nn.Linear
    assert close(model.self_attn(x), expected, 1e-6)
