"""A fused step gives the results of the model's own code, with the same bits in any batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from engine.attention.hf_plugin import install as install_attention
from engine.attention.selection import contiguous_kv_cache
from engine.cpu.kernels import decode_attention, prefill_attention
from engine.cpu.linear import MakeLinear, PackedLinear
from engine.cpu.quantized_linear import Int8Linear
from engine.kv_cache.planning.kv_shape import probe_kv_shape
from engine.runners.causal import CausalRunner
from engine.runners.step_executor import EagerExecutor, FusedExecutor
from tests.unit.engine.cpu.llamas import (
    HEAD_SIZE,
    kv_cache_of,
    laid_out,
    logits_in_flight,
    model_of,
    sequence,
)

FUSED = [
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen3_moe",
]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def runner_of(model: Any, is_fused: bool = True) -> CausalRunner:
    runner = CausalRunner(laid_out(model), kv_cache_of(model))
    assert isinstance(runner.executor, FusedExecutor) == is_fused
    return runner


def plain_runner_of(model: Any) -> CausalRunner:
    """Return a runner of the model's own code, with plain torch."""
    install_attention(model)
    kv_cache = contiguous_kv_cache(probe_kv_shape(model), poisoned=True, cpu_kernels=False)
    runner = CausalRunner(model, kv_cache)
    assert type(runner.executor) is EagerExecutor
    return runner


def prompt_of(num_tokens: int) -> list[int]:
    draw = torch.Generator().manual_seed(num_tokens)
    return torch.randint(0, 97, (num_tokens,), generator=draw).tolist()


def logits_alone(runner: CausalRunner, prompt: list[int], following: list[int]) -> list[Any]:
    """Return the logits after the prompt and after each of the following tokens."""
    (cache,), read = runner.prefill([sequence(prompt, num_rows=1)])
    seen = [read[0]]
    for token in following:
        seen.append(runner.decode([cache], [token])[0].clone())
        cache.commit_token()
    return seen


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("kind", FUSED)
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(kind: str, num_threads: int) -> None:
    runner = runner_of(model_of(kind))
    first, second = prompt_of(70), prompt_of(9)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        of_first, of_second = (logits_alone(runner, each, [3, 4]) for each in (first, second))
        (one,), read = runner.prefill([sequence(first, num_rows=1)])
        assert torch.equal(read[0], of_first[0])
        (other,), mixed = runner.prefill_and_decode([sequence(second, num_rows=1)], [one], [3])
        assert torch.equal(mixed, torch.stack([of_first[1], of_second[0]]))
        one.commit_token()
        together = runner.decode([one, other], [4, 3])
        assert torch.equal(together, torch.stack([of_first[2], of_second[1]]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", FUSED)
def test_a_step_gives_the_logits_of_the_models_own_code(kind: str, key_heads: int) -> None:
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, 97, (size,), generator=draw).tolist() for size in (5, 150, 9)]
    found = logits_in_flight(runner_of(model_of(kind, key_heads=key_heads)), prompts)
    expected = logits_in_flight(plain_runner_of(model_of(kind, key_heads=key_heads)), prompts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "head_size", "make"),
    [
        ("cohere", HEAD_SIZE, None),
        ("llama", 12, None),
        ("llama", HEAD_SIZE, PackedLinear),
        ("llama", HEAD_SIZE, Int8Linear),
    ],
)
def test_a_model_of_other_parts_is_not_fused(
    kind: str, head_size: int, make: MakeLinear | None
) -> None:
    model = model_of(kind, head_size)
    runner = CausalRunner(laid_out(model, make), kv_cache_of(model))
    assert not isinstance(runner.executor, FusedExecutor)


def test_the_buffers_grow_with_longer_prompts_and_later_positions() -> None:
    ours, own = runner_of(model_of("llama")), plain_runner_of(model_of("llama"))
    for num_tokens in (3, 63, 64, 65, 700, 5):
        found, expected = (
            logits_alone(each, prompt_of(num_tokens), list(range(1, 5))) for each in (ours, own)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_prompts_prefilled_in_several_chunks_keep_their_logits(kind: str) -> None:
    runner = runner_of(model_of(kind))
    prompts = [prompt_of(size) for size in (300, 290, 280)]
    _, read = runner.prefill([sequence(each, num_rows=1) for each in prompts])
    for each, prompt in zip(read, prompts, strict=True):
        assert torch.equal(each, logits_alone(runner, prompt, [])[0])


@pytest.mark.parametrize("token", [-1, 97])
def test_a_token_without_an_embedding_is_refused(token: int) -> None:
    runner = runner_of(model_of("llama"))
    with pytest.raises(IndexError):
        runner.prefill([sequence([5, token, 6], num_rows=1)])
    expected = logits_alone(runner_of(model_of("llama")), [5, 6], [7])
    torch.testing.assert_close(logits_alone(runner, [5, 6], [7]), expected, rtol=0, atol=0)


def test_a_rotary_embedding_that_depends_on_the_longest_text_is_left_to_the_model() -> None:
    model = model_of("llama")
    model.model.rotary_emb.rope_type = "dynamic"
    runner_of(model, is_fused=False)


def test_each_kind_of_rotary_embedding_is_looked_at() -> None:
    model = model_of("gemma3")
    model.model.rotary_emb.rope_type["full_attention"] = "dynamic"
    runner_of(model, is_fused=False)


def test_prompts_that_see_beyond_their_window_are_found_by_the_self_test(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = prefill_attention.attend_prompts

    def without_windows(num_threads: int, *arguments: float) -> None:
        own(num_threads, *arguments[:-1], decode_attention.UNBOUNDED)

    monkeypatch.setattr(prefill_attention, "attend_prompts", without_windows)
    with caplog.at_level(logging.WARNING):
        runner_of(model_of("gemma3"), is_fused=False)
    assert "kernel disagrees with torch" in [each.message for each in caplog.records]


def test_heads_that_are_rotated_in_part_are_left_to_the_model() -> None:
    model = model_of("phi3")
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[: HEAD_SIZE // 4]
    runner_of(model, is_fused=False)


def test_a_hook_beside_the_layers_is_found_by_the_self_test(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of("llama")
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: 2 * output)
    with caplog.at_level(logging.WARNING):
        runner_of(model, is_fused=False)
    assert "kernel disagrees with torch" in [each.message for each in caplog.records]


def test_beams_of_one_request_are_rows() -> None:
    runner = runner_of(model_of("llama"))
    (cache,), read = runner.prefill([sequence(prompt_of(20), num_rows=3)])
    assert read.shape == (1, 97)
    stepped = runner.decode([cache], [1, 2, 3]).clone()
    for row, token in enumerate((1, 2, 3)):
        assert torch.equal(stepped[row], logits_alone(runner, prompt_of(20), [token])[1])
