"""Packed experts give what the model's own experts give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from engine.cpu.captured_ops import OpCapturer
from engine.cpu.experts import PackedExperts, pack_experts
from engine.cpu.packed_gemm import PackedGemmLinear

NUM_EXPERTS, TOP_K, WIDTH = 5, 2, 32
SIZES = {
    "hidden_size": WIDTH, "intermediate_size": 48, "moe_intermediate_size": 48,
    "num_local_experts": NUM_EXPERTS, "num_experts": NUM_EXPERTS,
}  # fmt: skip


def mixture(config_type: Any, experts_type: Any) -> Any:
    config = config_type(**SIZES)
    config._experts_implementation = "eager"
    model = nn.Sequential(experts_type(config))
    for each in model.parameters():
        nn.init.normal_(each, std=0.3)
    return model.requires_grad_(False)


def routed(num_rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, WIDTH, generator=draw)
    weights, index = torch.randn(num_rows, NUM_EXPERTS, generator=draw).softmax(-1).topk(TOP_K)
    return rows, index, weights


@pytest.mark.parametrize(
    ("config_type", "experts_type"),
    [
        (MixtralConfig, MixtralExperts),
        (Qwen3MoeConfig, Qwen3MoeExperts),
        (GptOssConfig, GptOssExperts),  # transposed, with biases and a gate of its own
    ],
)
@pytest.mark.parametrize("num_rows", [1, 2, 33])
def test_packed_experts_are_the_experts(config_type: Any, experts_type: Any, num_rows: int) -> None:
    model = mixture(config_type, experts_type)
    own: Any = copy.deepcopy(model)[0]
    assert pack_experts(model, PackedGemmLinear) == 1
    assert isinstance(model[0], PackedExperts)
    assert pack_experts(model, PackedGemmLinear) == 0
    with torch.inference_mode():
        rows, index, weights = routed(num_rows)
        expected = own(rows, index, weights)
        torch.testing.assert_close(model[0](rows, index, weights), expected, rtol=1e-5, atol=1e-5)


def test_a_row_has_the_same_bits_alone_and_in_company() -> None:
    model = mixture(MixtralConfig, MixtralExperts)
    pack_experts(model, PackedGemmLinear)
    rows, index, weights = routed(40)
    with torch.inference_mode():
        together = model[0](rows, index, weights)
        for at in (0, 17, 39):
            alone = model[0](rows[at : at + 1], index[at : at + 1], weights[at : at + 1])
            torch.testing.assert_close(alone[0], together[at], rtol=1e-6, atol=1e-6)


def test_a_captured_step_groups_the_rows_anew() -> None:
    model = mixture(MixtralConfig, MixtralExperts)
    pack_experts(model, PackedGemmLinear)
    inputs = [each.clone() for each in routed(6)]
    with torch.inference_mode():
        _, again = OpCapturer()(lambda: model[0](*inputs) + 1)
        for kept, other in zip(inputs, routed(6, seed=1), strict=True):
            kept.copy_(other)
        found = again().clone()
        torch.testing.assert_close(found, model[0](*routed(6, seed=1)) + 1)
