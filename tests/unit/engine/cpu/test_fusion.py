"""Fused modules give what the model's own modules give."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm
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
        assert torch.equal(model[0](x.t().contiguous().t()), model[0](x))  # however it lies


def test_gelu_is_one_operation() -> None:
    model = nn.Sequential(NewGELUActivation())
    assert fuse(model) == 1
    x = torch.randn(5, 64)
    torch.testing.assert_close(model(x), NewGELUActivation()(x), rtol=1e-6, atol=1e-6)


def test_a_module_that_only_has_the_name_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class LlamaRMSNorm(nn.Module):
        """Adds one to its weight, as some do."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(16))
            self.variance_epsilon = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    model = nn.Sequential(LlamaRMSNorm())
    with caplog.at_level(logging.WARNING):
        assert fuse(model) == 0
    assert type(model[0]) is LlamaRMSNorm
    assert [each.message for each in caplog.records] == ["kernel disagrees with torch"]
