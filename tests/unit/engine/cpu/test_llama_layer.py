"""A layer in four products gives what the model's own layer gives, and leaves it the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from engine.attention.forward_context import DecoderContext
from engine.attention.prompt_attention import SeparatePrompts
from engine.attention.selection import attention_for
from engine.cpu import llama_layer
from engine.cpu.attention_backend import CpuAttentionBackend
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.linear import MakeLinear, PackedLinear
from engine.cpu.llama_layer import LlamaLayer, install
from engine.runners.causal import CausalRunner
from engine.runners.step_executor import FusedExecutor
from tests.unit.engine.cpu.llamas import (
    HEAD_SIZE,
    kv_cache_of,
    laid_out,
    logits_in_flight,
    model_of,
)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    ("make", "min_weights"), [(None, 0), (PackedLinear, 0), (PackedLinear, 10**9)]
)
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_a_step_is_that_of_the_models_own_layers(
    kind: str,
    key_heads: int,
    make: MakeLinear | None,
    min_weights: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 97, (size,), generator=draw).tolist() for size in (5, 150, 9)]
    seen = []
    for is_replaced in (True, False):
        model = laid_out(model_of(kind, key_heads=key_heads), make, min_weights)
        with monkeypatch.context() as patch:
            if not is_replaced:
                patch.setattr(llama_layer, "install", lambda model, attention: 0)
            runner = CausalRunner(model, kv_cache_of(model))
        assert runner.has_own_layers == is_replaced
        assert isinstance(runner.executor, FusedExecutor) == (
            is_replaced and make is None and LANES >= 16
        )
        seen.append(logits_in_flight(runner, prompts))
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
    assert seen[0].isfinite().all()


def test_another_cache_than_that_of_the_engine_goes_to_the_models_own() -> None:
    own, replaced = laid_out(model_of("llama")), laid_out(model_of("llama"))
    install(replaced, attention_for(kv_cache_of(replaced)))
    ids = torch.tensor([[5, 6, 7, 8]])
    expected, found = (
        each.generate(ids, max_new_tokens=6, do_sample=False) for each in (own, replaced)
    )
    assert torch.equal(expected, found)
    other, spans = attention_for(kv_cache_of(replaced)), ((0, 4),)
    other.prepare([], [other.kv_cache.new_sequence(1, 8)], spans)
    mask = torch.ones((1, 1, 1, 1), dtype=torch.bool)
    context = DecoderContext(other, SeparatePrompts(spans))
    read = replaced(ids, attention_mask=mask, use_cache=False, forward_context=context).logits
    torch.testing.assert_close(read, own(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "head_size", "is_packed"),
    [("qwen3", HEAD_SIZE, True), ("llama", 12, True), ("llama", HEAD_SIZE, False)],
)
def test_what_it_does_not_know_is_left_alone(kind: str, head_size: int, is_packed: bool) -> None:
    model = model_of(kind, head_size)
    if is_packed:
        laid_out(model)
    assert install(model, attention_for(kv_cache_of(model))) == 0
    assert not any(isinstance(each, LlamaLayer) for each in model.modules())


@pytest.mark.parametrize("change", [lambda output: 2 * output, lambda output: (output, None)])
def test_what_only_has_the_name_is_left_alone(
    change: Callable[[torch.Tensor], Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = laid_out(model_of("llama"))
    attention = attention_for(kv_cache_of(model))
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, args, output: change(output))
    with caplog.at_level(logging.WARNING):
        assert install(model, attention) == 0
    assert [each.message for each in caplog.records] == ["not fused: it does something else"]


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 63, 64, 65, 300])
def test_a_prompt_is_kept_and_attended_to_as_torch_does(num_tokens: int) -> None:
    kv_cache = kv_cache_of(model_of("llama"))
    shape, attention = kv_cache.shape, attention_for(kv_cache)
    assert isinstance(attention, CpuAttentionBackend)
    draw = torch.Generator().manual_seed(num_tokens)
    heads, key_heads = 4, shape.num_heads
    joined = torch.randn(num_tokens + 2, (heads + 2 * key_heads) * HEAD_SIZE, generator=draw)
    ones, zeros = torch.ones(num_tokens + 2, HEAD_SIZE), torch.zeros(num_tokens + 2, HEAD_SIZE)
    slot = kv_cache.new_sequence(1, num_tokens + 4)
    attention.prepare([], [slot], ((0, num_tokens),))
    found = attention.attend_turned(1, joined, ones, zeros, 0.25)
    parts = joined[:num_tokens].view(1, num_tokens, -1, HEAD_SIZE).transpose(1, 2)
    query, key, value = parts.split([heads, key_heads, key_heads], dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.25, enable_gqa=True
    )
    of_tokens = expected[0].transpose(0, 1).reshape(num_tokens, -1)
    torch.testing.assert_close(found[:num_tokens], of_tokens, rtol=1e-5, atol=1e-5)
    assert not found[num_tokens:].any()
    assert torch.equal(slot.kv[1, 0, 0, :, :num_tokens], key[0])
    assert torch.equal(slot.kv[1, 1, 0, :, :num_tokens], value[0])
