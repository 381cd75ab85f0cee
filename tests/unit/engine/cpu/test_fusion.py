"""Fused modules give the results of the model's own modules."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP, Phi3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from engine.cpu.fusion import fuse


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
@pytest.mark.parametrize("width", [8, 96, 1000])
def test_a_norm_in_one_pass_is_the_norm(kind: type[nn.Module], width: int) -> None:
    norm: Any = kind(width)
    with torch.no_grad():
        norm.weight.normal_()
    model: Any = nn.Sequential(norm)
    assert fuse(model) == 1
    assert type(model[0]).__name__ == "RMSNorm"
    assert model[0].weight is norm.weight
    for shape in ((1, 1, width), (16, 1, width), (1, 777, width), (5, width)):
        x = 30 * torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(model[0](x), norm(x), rtol=2e-6, atol=1e-6)


def test_a_norm_sees_each_row_by_itself() -> None:
    model = nn.Sequential(LlamaRMSNorm(64))
    fuse(model)
    x = torch.randn(300, 64)
    with torch.inference_mode():
        assert torch.equal(model[0](x)[7:9], model[0](x[7:9]))
        assert torch.equal(model[0](x.t().contiguous().t()), model[0](x))  # with any layout


def test_a_feed_forward_part_whose_gate_and_up_are_one_layer_is_fused() -> None:
    config = hf.Phi3Config(hidden_size=24, intermediate_size=40, pad_token_id=None)
    own = Phi3MLP(config)
    model: Any = nn.Sequential(own)
    assert fuse(model) == 1
    assert type(model[0]).__name__ == "MergedGatedMLP"
    x = torch.randn(3, 5, 24)
    with torch.inference_mode():
        torch.testing.assert_close(model[0](x), own(x), rtol=1e-5, atol=1e-6)


def test_gelu_is_one_operation() -> None:
    model = nn.Sequential(NewGELUActivation())
    assert fuse(model) == 1
    x = torch.randn(5, 64)
    torch.testing.assert_close(model(x), NewGELUActivation()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Gemma3RMSNorm, Phi3RMSNorm, Olmo2RMSNorm])
def test_a_norm_that_adds_one_to_its_weight_is_known_by_what_it_computes(kind: Any) -> None:
    norms = [kind(48), kind(16, eps=1e-2)]
    for norm in norms:
        nn.init.normal_(norm.weight)
    model: Any = nn.Sequential(*norms)
    assert fuse(model) == 2
    for norm, fused in zip(norms, model, strict=True):
        x = torch.randn(2, 3, 5, len(norm.weight)).transpose(1, 2)
        with torch.inference_mode():
            torch.testing.assert_close(fused(x), norm(x), rtol=2e-6, atol=1e-6)
    assert fuse(model) == 0


class LlamaRMSNorm2(nn.Module):
    variance_epsilon = 1e-6

    def __init__(self, has_weight: bool = True) -> None:
        super().__init__()
        if has_weight:
            self.weight = nn.Parameter(torch.randn(16))

    def normed(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class CappedRMSNorm(LlamaRMSNorm2):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normed(x).clamp(-1, 1)


class GatedRMSNorm(LlamaRMSNorm2):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.weight * self.normed(x) * gate


class MaybeScaledRMSNorm(LlamaRMSNorm2):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normed(x) if hasattr(self, "weight") else self.normed(x)


@pytest.mark.parametrize(
    ("norms", "num_fused"),
    [
        ([CappedRMSNorm()], 0),
        ([GatedRMSNorm()], 0),
        ([MaybeScaledRMSNorm(), MaybeScaledRMSNorm(has_weight=False)], 1),
    ],
)
def test_a_module_that_only_has_the_name_is_left_alone(
    norms: list[nn.Module], num_fused: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(*norms)
    with caplog.at_level(logging.WARNING):
        assert fuse(model) == num_fused
    assert [type(each) for each in model][num_fused:] == [type(each) for each in norms][num_fused:]
    assert not caplog.records
